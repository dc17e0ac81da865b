/**
 * A sample as a heatmap of its latents, or of how well the model predicts it; the card of the chosen latent
 * below.
 * @typedef {import("../types.js").View} View
 */
import { cardPlace } from "../shared/cards.js";
import { compare } from "../shared/compared.js";
import { h } from "../shared/dom.js";
import { Heatmap } from "../shared/heatmap.js";
import { rendering } from "../shared/view.js";

export const render = rendering(async (view) => {
  const place = h("div", { class: "sl-place" });
  const sample = h("div", { class: view.option("compared") ? "sl-compared" : "" });
  view.body.append(sample, place);
  const card = cardPlace(view, place);
  const showCard = () => {
    if (view.option("with_card")) card.show(view.chosen("latent"));
  };
  view.follow("latent", showCard);
  if (view.option("compared")) await compare(view, sample, card.ahead);
  else {
    const heatmap = new Heatmap(view, sample, { ahead: card.ahead });
    const answer = await view.ask("codes");
    if (!answer) return;
    heatmap.show(answer);
  }
  if (view.chosen("latent") !== null) showCard();
});
