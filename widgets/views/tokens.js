/**
 * A sample as a heatmap. Everything that hovering shows comes with the sample, so it never waits for the
 * kernel.
 * @typedef {import("../types.js").Answer} Answer
 * @typedef {import("../types.js").View} View
 */
import { cardPlace } from "../shared/cards.js";
import { h, tokenElement, tokenName } from "../shared/dom.js";
import { paint, short, spoken } from "../shared/scales.js";
import { rendering } from "../shared/view.js";

const HOVERED = 5;
const PINNED = 12;
const AHEAD = 3;
const STEPS = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10 };

export const render = rendering(async (view) => {
  const heatmap = new Heatmap(view);
  const answer = await view.ask("codes");
  if (answer) heatmap.show(new SampleCodes(answer));
});

/** What the positions of a sample show, and the codes of each, in CSR form. */
class SampleCodes {
  /** @param {Answer} answer */
  constructor({ header, fields }) {
    /** @type {string[]} */
    this.names = fields.names;
    /** @type {string[]} what kind of thing each position shows: "token", ... */
    this.facets = Array.from(fields.facets, (i) => header.facets[i]);
    /** @type {string} a word for any of them */
    this.facet = header.facets.length === 1 ? header.facets[0] : "row";
    /** @type {Uint8Array} whether statistics count a position */
    this.counted = fields.counted;
    /** @type {Int32Array} */
    this.indptr = fields.indptr;
    /** @type {Int32Array} */
    this.indices = fields.indices;
    /** @type {Float32Array} */
    this.values = fields.values;
  }

  /** Latents of a position, strongest first. @param {number} at @returns {[number, number][]} */
  strongest(at) {
    /** @type {[number, number][]} */
    const found = [];
    for (let i = this.indptr[at]; i < this.indptr[at + 1]; i++) found.push([this.indices[i], this.values[i]]);
    return found.sort((a, b) => Math.abs(b[1]) - Math.abs(a[1]));
  }

  /**
   * Value of each position: of the chosen latent, or without one the strongest of any.
   * @param {number | null} latent
   */
  along(latent) {
    const out = new Float32Array(this.names.length);
    for (let at = 0; at < out.length; at++) {
      for (let i = this.indptr[at]; i < this.indptr[at + 1]; i++) {
        const stronger = this.counted[at] && Math.abs(this.values[i]) > Math.abs(out[at]);
        if (latent === null ? stronger : this.indices[i] === latent) out[at] = this.values[i];
      }
    }
    return out;
  }
}

class Heatmap {
  /** @param {View} view */
  constructor(view) {
    this.view = view;
    /** @type {SampleCodes | null} */
    this.codes = null;
    /** @type {HTMLElement[]} one for each position */
    this.elements = [];
    this.pinned = -1;
    this.legend = h("div", { class: "sl-legend" });
    this.text = h("div", { class: "sl-text", role: "group", "aria-label": "sample", dir: "ltr" });
    this.detail = h("div", { class: "sl-detail", "aria-live": "polite" });
    const place = h("div", { class: "sl-place" });
    view.body.append(this.legend, this.text, this.detail, place);
    this.card = cardPlace(view, place);
    this.listen();
  }

  listen() {
    const { text, view } = this;
    text.addEventListener("pointerover", (event) => {
      const at = this.indexOf(event);
      if (at >= 0 && this.pinned < 0) this.describe(at, HOVERED);
    });
    text.addEventListener("pointerleave", () => {
      if (this.pinned < 0) this.describe(-1, HOVERED);
    });
    text.addEventListener("click", (event) => {
      const at = this.indexOf(event);
      if (at < 0) return;
      this.focus(at);
      this.pin(at);
    });
    text.addEventListener("keydown", (event) => this.keydown(event));
    view.follow("latent", (latent) => {
      this.colour();
      if (this.pinned >= 0) this.describe(this.pinned, PINNED);
      if (view.option("with_card")) this.card.show(latent);
    });
  }

  /** @param {SampleCodes} codes */
  show(codes) {
    this.codes = codes;
    this.elements = codes.names.map((name, at) =>
      tokenElement(name, {
        role: "button",
        tabindex: at ? -1 : 0,
        class: codes.counted[at] ? "" : "sl-uncounted",
      }),
    );
    this.text.replaceChildren();
    this.elements.forEach((element, at) => {
      this.text.append(element);
      if (codes.names[at].includes("\n")) this.text.append(h("br"));
    });
    this.colour();
    const latent = this.view.chosen("latent");
    if (this.view.option("with_card") && latent !== null) this.card.show(latent);
  }

  /** Shade the positions, and say by what. */
  colour() {
    const { codes, elements } = this;
    if (!codes) return;
    const latent = this.view.chosen("latent");
    const values = codes.along(latent);
    const max = values.reduce((m, v) => Math.max(m, Math.abs(v)), 0);
    elements.forEach((element, at) => {
      paint(element, values[at], max);
      element.setAttribute("aria-label", `${tokenName(codes.names[at])}, ${spoken(values[at])}`);
      element.classList.toggle("sl-pinned", at === this.pinned);
    });
    const both = values.some((v) => v < 0);
    this.legend.replaceChildren(...this.legendOf(codes.facet, latent, max, both));
  }

  /**
   * @param {string} facet @param {number | null} latent @param {number} max
   * @param {boolean} both whether there are values of both signs
   */
  legendOf(facet, latent, max, both) {
    const what = latent === null ? `strongest latent of each ${facet}` : `latent #${latent}`;
    const dashed = () => tokenElement("dashed", { class: "sl-negative sl-key" });
    const clear = () => this.view.choose({ latent: null });
    return [
      h("span", {}, what),
      h("span", { class: both ? "sl-ramp sl-both" : "sl-ramp", "aria-hidden": true }),
      h("span", {}, `${both ? short(-max) : "0"} to ${short(max)}`),
      ...(both ? [h("span", {}, dashed(), " is negative")] : []),
      latent === null
        ? h("span", { class: "sl-hint" }, `hover a ${facet}, click to pin its latents`)
        : h("button", { class: "sl-clear", type: "button", onclick: clear }, "clear"),
    ];
  }

  /**
   * Show the latents of a position, at most so many; of none for -1.
   * @param {number} at @param {number} most
   */
  describe(at, most) {
    const { codes } = this;
    if (at < 0 || !codes) {
      this.detail.replaceChildren();
      return;
    }
    const all = codes.strongest(at);
    const found = all.slice(0, most);
    const scale = found.length ? Math.abs(found[0][1]) : 1;
    const chosen = this.view.chosen("latent");
    const own = all.find(([latent]) => latent === chosen)?.[1] ?? 0;
    const head = h(
      "div",
      { class: "sl-detail-head" },
      h("span", {}, `${codes.facets[at]} ${at}`),
      tokenElement(codes.names[at], { class: "sl-quoted" }),
      chosen === null ? null : h("span", {}, `#${chosen}: ${short(own)}`),
      codes.counted[at] ? null : h("span", { class: "sl-hint" }, "not counted in statistics"),
    );
    const chips = found.map(([latent, value]) => h("li", {}, this.chip(latent, value, scale)));
    const none = found.length ? null : h("li", { class: "sl-hint" }, "no latent fires here");
    this.detail.replaceChildren(head, h("ul", { class: "sl-latents" }, ...chips, none));
  }

  /** @param {number} latent @param {number} value @param {number} scale the longest meter's value */
  chip(latent, value, scale) {
    const chosen = latent === this.view.chosen("latent");
    const meter = h("span", {
      class: value < 0 ? "sl-meter sl-negative" : "sl-meter",
      "aria-hidden": true,
      style: { "--sl-share": `${(100 * Math.abs(value)) / scale}%` },
    });
    const attributes = {
      type: "button",
      class: chosen ? "sl-chip sl-chosen" : "sl-chip",
      "aria-pressed": chosen,
      onclick: () => this.view.choose({ latent }),
    };
    const number = h("span", { class: "sl-number" }, `#${latent}`);
    return h("button", attributes, number, meter, h("span", { class: "sl-value" }, short(value)));
  }

  /** Keep a position's latents in sight, or let go of them. @param {number} at */
  pin(at) {
    this.pinned = at === this.pinned ? -1 : at;
    this.describe(this.pinned, PINNED);
    this.elements.forEach((element, i) => {
      element.classList.toggle("sl-pinned", i === this.pinned);
      element.setAttribute("aria-pressed", String(i === this.pinned));
    });
    if (this.codes && this.pinned >= 0)
      this.card.ahead(
        this.codes
          .strongest(this.pinned)
          .slice(0, AHEAD)
          .map(([latent]) => latent),
      );
  }

  /** @param {number} at */
  focus(at) {
    const to = Math.max(0, Math.min(this.elements.length - 1, at));
    this.elements.forEach((element, i) => {
      element.tabIndex = i === to ? 0 : -1;
    });
    this.elements[to]?.focus();
    if (this.pinned < 0) this.describe(to, HOVERED);
  }

  /** @param {KeyboardEvent} event */
  keydown(event) {
    const at = this.indexOf(event);
    const step = STEPS[/** @type {keyof typeof STEPS} */ (event.key)];
    if (step) this.focus(at + step);
    else if (event.key === "Home") this.focus(0);
    else if (event.key === "End") this.focus(this.elements.length - 1);
    else if (event.key === "Enter" || event.key === " ") this.pin(at);
    else if (event.key === "Escape") {
      if (this.pinned >= 0) this.pin(this.pinned);
      else this.view.choose({ latent: null });
    } else return;
    event.preventDefault();
    event.stopPropagation();
  }

  /** The position of an event, -1 for none. @param {Event} event */
  indexOf(event) {
    const element = /** @type {Element} */ (event.target).closest(".sl-token");
    return this.elements.indexOf(/** @type {HTMLElement} */ (element));
  }
}
