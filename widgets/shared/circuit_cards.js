/**
 * Cards of latents of several SAEs in one view: the questions of all but the first have a number before them.
 * @typedef {import("../types.js").View} View
 */
import { cardPlace } from "./cards.js";
import { h } from "./dom.js";

/** The card of one latent at a time, of whichever SAE; those of the others wait out of sight. */
export class SideCards {
  /** @param {View} view */
  constructor(view) {
    this.view = view;
    this.element = h("div", {});
    /** @type {Map<number, {place: HTMLElement, card: {show: (latent: number | null) => void}}>} */
    this.cards = new Map();
  }

  /** @param {number} sae -1: no card is shown @param {number} latent */
  show(sae, latent) {
    for (const [number, { place }] of this.cards) place.hidden = number !== sae;
    if (sae < 0) return;
    let own = this.cards.get(sae);
    if (!own) {
      const place = h("div", { class: "sl-place" });
      this.element.append(place);
      own = { place, card: cardPlace(sideOf(this.view, sae), place) };
      this.cards.set(sae, own);
    }
    own.card.show(latent);
  }
}

/** The view as the cards of one SAE see it. @param {View} view @param {number} sae @returns {View} */
function sideOf(view, sae) {
  if (sae === 0) return view;
  return {
    ...view,
    ask: (question, args) => view.ask(`${sae}_${question}`, args),
    request: (question, args) => view.request(`${sae}_${question}`, args),
    holds: (question) => view.holds(`${sae}_${question}`),
    edited: () => undefined,
    choose: ({ latent, ...others }) => {
      if (latent !== undefined && view.live) view.ask("choose", { sae, latent });
      if (Object.keys(others).length) view.choose(others);
    },
  };
}
