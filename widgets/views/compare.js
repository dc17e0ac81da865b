/**
 * Two SAEs side by side: a list of pairs of latents, the cards of the chosen pair, a text under both, scores.
 * @typedef {import("../types.js").Answer} Answer
 * @typedef {import("../types.js").View} View
 */
import { cardPlace } from "../shared/cards.js";
import { h, tokenElement } from "../shared/dom.js";
import { note } from "../shared/notes.js";
import { PairList, TITLES } from "../shared/pairs.js";
import { paint, short, spoken } from "../shared/scales.js";
import { scorePart } from "../shared/scores.js";
import { rendering } from "../shared/view.js";

const SHARED =
  "A partner is the most similar latent of the other SAE. Above chance: more similar than 99 % of " +
  "best partners among random directions, or with the rows of one SAE shifted against the other's. " +
  "In brackets 95 % intervals; the share by chance is measured on latents that set no threshold. " +
  "Matched: each is the other's partner. Shared: one is.";

export const render = rendering(async (view) => {
  const [pairs, names] = await Promise.all([view.ask("pairs"), view.ask("names")]);
  if (pairs && names) new Comparison(view, pairs, names);
});

/**
 * The view of the other SAE's cards: its questions have names of their own.
 * @param {View} view @returns {View}
 */
function otherSide(view) {
  return {
    ...view,
    request: (question, args) => view.request(`other_${question}`, args),
    edited: () => undefined,
    choose: () => {},
  };
}

class Comparison {
  /** @param {View} view @param {Answer} pairs @param {Answer} names */
  constructor(view, pairs, names) {
    this.view = view;
    this.header = pairs.header;
    /** @type {(number | null | undefined)[]} the latents whose cards are shown */
    this.shown = [];
    this.pairs = new PairList(
      view,
      pairs,
      names,
      () => this.chosen,
      (latent, other) => this.choose(latent, other),
    );
    this.heat = h("div", { class: "sl-compare-heat", "aria-live": "polite" });
    this.input = /** @type {HTMLInputElement} */ (
      h("input", {
        class: "sl-box",
        "aria-label": "a text",
        placeholder: "a text to read under both SAEs",
      })
    );
    this.cards = this.build();
    const chosen = () => {
      this.pairs.mark();
      this.showCards();
      this.readText();
    };
    view.follow("latent", chosen);
    view.changed("other", chosen);
    this.showCards();
  }

  /** @returns {[number | null, number | null]} */
  get chosen() {
    return [this.view.chosen("latent"), this.view.option("other") ?? null];
  }

  /** @param {number | null} latent @param {number | null} other */
  choose(latent, other) {
    this.view.choose(/** @type {any} */ ({ latent, other }));
    // a page tells nobody of an option
    this.pairs.mark();
    this.showCards();
  }

  build() {
    const { view } = this;
    const [ours, theirs] = this.header.names;
    const left = h("section", { class: "sl-compare-side", "aria-label": `latents of ${ours}` });
    const right = h("section", { class: "sl-compare-side", "aria-label": `latents of ${theirs}` });
    const places = [left, right].map((side, i) => {
      const place = h("div", { class: "sl-place" });
      side.append(h("h3", { class: "sl-compare-name" }, h("bdi", {}, this.header.names[i])), place);
      return place;
    });
    view.body.append(
      this.summary(),
      this.pairs.fieldset,
      this.pairs.table,
      h("div", { class: "sl-compare-cards" }, left, right),
      this.textPart(),
      scorePart(view),
    );
    return [cardPlace(view, places[0]), cardPlace(otherSide(view), places[1])];
  }

  /** What is shared, beside chance. */
  summary() {
    const { names, shares, reasons } = this.header;
    const row = (/** @type {[string, string, string, number | null]} */ [measure, name, share, threshold]) =>
      h(
        "tr",
        {},
        h("th", { scope: "row" }, TITLES[/** @type {"phi"} */ (measure)] ?? measure),
        h("td", {}, h("bdi", {}, name)),
        h("td", {}, share),
        h("td", { class: "sl-value" }, short(threshold)),
      );
    const head = ["measure", "SAE", "latents with a partner above chance", "chance reaches"];
    return h(
      "div",
      { class: "sl-compare-summary" },
      h("h2", {}, h("bdi", {}, names[0]), " and ", h("bdi", {}, names[1])),
      h(
        "table",
        { class: "sl-compare-shares" },
        h("thead", {}, h("tr", {}, ...head.map((text) => h("th", { scope: "col" }, text)))),
        h("tbody", {}, ...shares.map(row)),
      ),
      ...reasons.map((/** @type {string} */ reason) => h("p", { class: "sl-hint" }, reason)),
      note("this table", SHARED),
    );
  }

  showCards() {
    this.chosen.forEach((latent, i) => {
      if (this.shown[i] !== latent) this.cards[i].show(latent);
    });
    this.shown = this.chosen;
  }

  textPart() {
    if (!this.view.live) return h("div", {});
    const form = h("form", { class: "sl-fields" }, this.input, h("button", { type: "submit" }, "read"));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.readText();
    });
    return h(
      "section",
      { "aria-label": "a text under both" },
      h("h4", {}, "A text under both"),
      form,
      this.heat,
    );
  }

  async readText() {
    const text = this.input.value;
    if (!text) return;
    const [ours, theirs] = this.chosen;
    this.heat.setAttribute("aria-busy", "true");
    const answer = await this.view.ask("text", { text, latent: ours ?? -1, other: theirs ?? -1 });
    this.heat.removeAttribute("aria-busy");
    if (!answer) return;
    this.view.say("");
    const sides = ["ours", "theirs"].map((side, i) => {
      const values = /** @type {Float32Array} */ (answer.fields[`${side}_values`]);
      const max = values.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
      const tokens = answer.fields[`${side}_names`].map(
        (/** @type {string | null} */ name, /** @type {number} */ at) => {
          const token = tokenElement(name, { title: spoken(values[at]) }, true);
          paint(token, values[at], max);
          return token;
        },
      );
      const latent = this.chosen[i];
      const what = latent === null ? "strongest latent of each token" : `#${latent}`;
      const silent = max === 0 ? ", which does not fire here" : `, up to ${short(max)}`;
      return h(
        "figure",
        {},
        h("figcaption", { class: "sl-hint" }, h("bdi", {}, this.header.names[i]), ` ${what}${silent}`),
        h("div", { class: "sl-text sl-sample", dir: "ltr" }, ...tokens),
      );
    });
    this.heat.replaceChildren(...sides);
  }
}
