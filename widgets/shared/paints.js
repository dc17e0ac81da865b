/**
 * By what positions are coloured: one value each, or several latents at once. A paint says of a position how
 * it looks and what that is called, and of itself what the colours mean.
 * @typedef {import("./codes.js").SampleCodes} SampleCodes
 * @typedef {{paint(element: HTMLElement, at: number): void, spoken(at: number): string,
 *   told(at: number): Node[], has(at: number): boolean, legend(): (Node | null)[], more: Node | null}} Paint
 */
import { h, tokenElement } from "./dom.js";
import { paint, short, spoken } from "./scales.js";

/** As many latents as have a colour of their own; the letter and the lane under a token say the same. */
export const LETTERS = "ABCDEF";
/** Per cent of a colour behind a token, at most: its text stays readable on it. */
export const GROUND = 35;

/** One value a position: of a latent, or of a layer such as the loss. */
export class OneValue {
  /**
   * @param {ArrayLike<number>} values NaN where there is none
   * @param {{what: string, unit?: string, note?: string, scale?: number}} told what they are; scale: the
   *   largest |value| of a scale that others share
   */
  constructor(values, { what, unit = "", note = "", scale = 0 }) {
    this.values = values;
    this.what = what;
    this.unit = unit && ` ${unit}`;
    this.note = note;
    this.max = scale;
    /** @type {Node | null} what else the legend has */
    this.more = null;
    /** whether there are values below 0, and above */
    this.below = false;
    this.above = false;
    for (let i = 0; i < values.length; i++) {
      const value = values[i];
      if (Math.abs(value) > this.max) this.max = Math.abs(value);
      if (value < 0) this.below = true;
      if (value > 0) this.above = true;
    }
  }

  /** @param {HTMLElement} element @param {number} at */
  paint(element, at) {
    paint(element, this.values[at], this.max);
  }

  /** @param {number} at */
  spoken(at) {
    return `${spoken(this.values[at])}${this.unit}`;
  }

  /** What the head of the details says of a position. @param {number} at @returns {Node[]} */
  told(at) {
    return [h("span", {}, `${this.what}: ${short(this.values[at])}${this.unit}`)];
  }

  /** @returns {(Node | null)[]} */
  legend() {
    const { above, below, max } = this;
    const dashed = () => tokenElement("dashed", { class: "sl-negative sl-key" });
    const ends = `${below ? short(-max) : "0"} to ${below && !above ? "0" : short(max)}${this.unit}`;
    const ramp = `sl-ramp${below ? (above ? " sl-both" : " sl-below") : ""}`;
    return [
      h("bdi", {}, this.what),
      h("span", { class: ramp, "aria-hidden": true }),
      h("span", {}, ends),
      below ? h("span", {}, dashed(), " is negative") : null,
      this.note ? h("span", { class: "sl-hint" }, this.note) : null,
      this.more,
    ];
  }

  /** Whether a position has a colour. @param {number} at */
  has(at) {
    return Boolean(this.values[at]);
  }
}

/** Several latents at once: each has a colour, a letter, and a lane of its own under the tokens. */
export class SeveralLatents {
  /**
   * @param {number[]} latents at most as many as LETTERS
   * @param {Float32Array[]} values of each, along the text
   * @param {(latent: number) => string} labelOf @param {number} leftOut latents that are not shown
   */
  constructor(latents, values, labelOf, leftOut) {
    this.latents = latents;
    this.values = values;
    this.labelOf = labelOf;
    this.leftOut = leftOut;
    /** @type {Node | null} what else the legend has */
    this.more = null;
    this.most = values.map((own) => own.reduce((m, v) => Math.max(m, Math.abs(v)), 0));
  }

  /** Those that fire at a position: number of each, and its share of its own largest. @param {number} at */
  at(at) {
    return this.latents
      .map((_, i) => ({
        i,
        value: this.values[i][at],
        share: Math.abs(this.values[i][at]) / (this.most[i] || 1),
      }))
      .filter(({ value }) => value);
  }

  /** @param {HTMLElement} element @param {number} at */
  paint(element, at) {
    const here = this.at(at);
    const lanes = here.map(({ i, value, share }) => {
      const colour = shade(i, 30 + 70 * share);
      const line =
        value < 0 ? `repeating-linear-gradient(to right, ${colour} 0 4px, transparent 4px 8px)` : "";
      const image = line || `linear-gradient(${colour} 0 0)`;
      return `${image} left 0 bottom ${4 * i}px / 100% 3px no-repeat`;
    });
    const first = here.reduce((a, b) => (b.share > a.share ? b : a), { i: 0, share: 0 });
    element.style.setProperty("--sl-lanes", [...lanes, shade(first.i, GROUND * first.share)].join(", "));
    element.classList.remove("sl-negative");
  }

  /** @param {number} at */
  spoken(at) {
    const here = this.at(at);
    return here.map(({ i, value }) => `${LETTERS[i]} ${spoken(value)}`).join(", ") || "none of them";
  }

  /** @param {number} at @returns {Node[]} */
  told(at) {
    const here = this.at(at);
    if (!here.length) return [h("span", {}, "none of the coloured latents")];
    return here.map(({ i, value }) => h("span", {}, keyOf(i), ` #${this.latents[i]}: ${short(value)}`));
  }

  /** @returns {(Node | null)[]} */
  legend() {
    const items = this.latents.map((latent, i) => {
      const label = this.labelOf(latent);
      const scale = this.most[i] ? `up to ${short(this.most[i])}` : "does not fire here";
      const name = h("bdi", {}, `#${latent}${label && ` «${label}»`}`);
      return h("li", {}, keyOf(i), " ", name, ` ${scale}`);
    });
    const more = this.leftOut ? `; ${this.leftOut} more are not shown` : "";
    return [
      h("ul", { class: "sl-several-key" }, ...items),
      h(
        "span",
        { class: "sl-hint" },
        `a lane for each under a token, A lowest; each on its own scale${more}`,
      ),
      this.more,
    ];
  }

  /** Whether a position has a colour. @param {number} at */
  has(at) {
    return this.values.some((own) => own[at]);
  }
}

/** @param {number} i of several latents @param {number} percent of its colour */
function shade(i, percent) {
  return `color-mix(in srgb, var(--sl-several-${i}) ${percent.toFixed(0)}%, transparent)`;
}

/** The letter of one of several latents, on its colour. @param {number} i */
export function keyOf(i) {
  return h("span", { class: "sl-letter", style: { "--sl-own": `var(--sl-several-${i})` } }, LETTERS[i]);
}
