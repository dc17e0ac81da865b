/** One latent in full; it follows the selection. */
import { cardPlace } from "../shared/cards.js";
import { h } from "../shared/dom.js";
import { rendering } from "../shared/view.js";

export const render = rendering((view) => {
  const place = h("div", { class: "sl-place", "aria-live": "polite" });
  view.body.append(place);
  const card = cardPlace(view, place);
  view.follow("latent", card.show);
  return card.show(view.chosen("latent"));
});
