/**
 * A sample as a heatmap of its latents, or of how well the model predicts it; the card of the chosen latent
 * below.
 * @typedef {import("../types.js").View} View
 */
import { cardPlace } from "../shared/cards.js";
import { h } from "../shared/dom.js";
import { Heatmap } from "../shared/heatmap.js";
import { rendering } from "../shared/view.js";

export const render = rendering(async (view) => {
  const place = h("div", { class: "sl-place" });
  const sample = h("div", {});
  view.body.append(sample, place);
  const card = cardPlace(view, place);
  const heatmap = new Heatmap(view, sample, { ahead: card.ahead });
  const showCard = () => {
    if (view.option("with_card")) card.show(view.chosen("latent"));
  };
  view.follow("latent", showCard);
  const answer = await view.ask("codes");
  if (!answer) return;
  heatmap.show(answer);
  if (view.chosen("latent") !== null) showCard();
});
