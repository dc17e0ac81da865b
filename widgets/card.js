/** One latent in full; it follows the selection. */
import { cardElement } from "./shared/card.js";
import { h } from "./shared/dom.js";
import { cardPlace, rendering } from "./shared/view.js";

export const renderCard = rendering((view) => {
  const place = h("div", { class: "sl-place", "aria-live": "polite" });
  view.body.append(place);
  const shown = cardPlace(view, place, cardElement);
  view.onLatent((latent) => shown.show(latent));
  shown.show(view.latent());
});
