/**
 * A sample as a heatmap: lines of tokens, lists of items, patches over their picture. Everything that
 * hovering shows comes with the sample, so it never waits for the kernel.
 * @typedef {import("../types.js").Answer} Answer
 * @typedef {import("../types.js").Part} Part
 * @typedef {import("../types.js").View} View
 */
import { cardPlace } from "../shared/cards.js";
import { h, tokenElement, tokenName } from "../shared/dom.js";
import { isOfTheHost } from "../shared/keys.js";
import { addPicture, gridElement, partsOf, patchElement, placeOf } from "../shared/pictures.js";
import { paint, short, spoken } from "../shared/scales.js";
import { rendering } from "../shared/view.js";

const HOVERED = 5;
const PINNED = 12;
const AHEAD = 3;
const STEPS = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10 };
/** Keys that go up and down: by a row of a grid. */
const UPRIGHT = { ArrowDown: 1, ArrowUp: -1 };

export const render = rendering(async (view) => {
  const heatmap = new Heatmap(view);
  const answer = await view.ask("codes");
  if (answer) heatmap.show(new SampleCodes(answer));
});

/**
 * What the positions of a sample show, and the codes of each, in CSR form. Where a module runs several times,
 * the positions of one call come after those of another; `at` is a position of all.
 */
class SampleCodes {
  /** @param {Answer} answer */
  constructor({ header, fields }) {
    /** @type {(string | null)[]} null of a token that goes on with the character before it */
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
    /** @type {Uint8Array} */
    this.picture = fields.picture;
    /** @type {string[]} */
    this.labels = header.labels;
    /** @type {Record<string, string>} latent -> its label */
    this.labelled = header.named ?? {};
    /** @type {string} in how many parts it was read; "" where in one */
    this.parted = header.parted ?? "";
    /** @type {number[]} where parts begin, but the first */
    this.starts = header.starts ?? [];
    /** @type {number} */
    this.calls = header.calls;
    /** of one call */
    this.length = this.names.length / this.calls;
    /** of one call */
    this.parts = partsOf(header.parts);
    /** @type {{part: Part, i: number}[]} of each position of one call, where it lies */
    this.places = this.parts.flatMap((part) => Array.from({ length: part.n }, (_, i) => ({ part, i })));
  }

  /** For people: "3,5" in a grid, else a number. @param {number} at */
  placeName(at) {
    const within = at % this.length;
    const { part, i } = this.places[within];
    if (part.kind === "grid") {
      const { row, column } = placeOf(part, i);
      return `${row},${column}`;
    }
    return String(part.kind === "line" ? within : part.at + i);
  }

  /** Whether a position shows more than where it lies. @param {number} at */
  named(at) {
    return this.facets[at] === "token" || this.names[at] !== this.placeName(at);
  }

  /** What a position shows: of one that goes on with a character, that character. @param {number} at */
  whole(at) {
    let first = at;
    while (first > 0 && this.names[first] === null) first--;
    return this.names[first];
  }

  /** What a position is called. @param {number} at */
  called(at) {
    const kind = this.facets[at];
    if (kind === "token") return tokenName(this.names[at]);
    const own = this.named(at) ? ` ${tokenName(this.names[at])}` : "";
    return `${kind} ${this.placeName(at)}${own}`;
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
    /** @type {HTMLElement[]} one for each position of a call */
    this.elements = [];
    /** which call is shown */
    this.call = 0;
    this.pinned = -1;
    this.legend = h("div", { class: "sl-legend" });
    this.chooser = h("div", { class: "sl-calls" });
    this.sample = h("div", { class: "sl-sample", role: "group", "aria-label": "sample", dir: "ltr" });
    this.note = h("div", { class: "sl-hint" });
    this.detail = h("div", { class: "sl-detail", "aria-live": "polite" });
    const place = h("div", { class: "sl-place" });
    view.body.append(this.legend, this.note, this.chooser, this.sample, this.detail, place);
    this.card = cardPlace(view, place);
    this.listen();
  }

  /** The label of a latent, "" for none. @param {number} latent */
  labelOf(latent) {
    return this.view.edited(latent)?.label ?? this.codes?.labelled[latent] ?? "";
  }

  listen() {
    const { sample, view } = this;
    view.relabelled(() => {
      this.colour();
      if (this.pinned >= 0) this.describe(this.pinned, PINNED);
    });
    sample.addEventListener("pointerover", (event) => {
      const at = this.indexOf(event);
      if (at >= 0 && this.pinned < 0) this.describe(at, HOVERED);
    });
    sample.addEventListener("pointerleave", () => {
      if (this.pinned < 0) this.describe(-1, HOVERED);
    });
    sample.addEventListener("click", (event) => {
      const at = this.indexOf(event);
      if (at < 0) return;
      this.focus(at);
      this.pin(at);
    });
    sample.addEventListener("keydown", (event) => this.keydown(event));
    view.follow("latent", (latent) => {
      this.colour();
      if (this.pinned >= 0) this.describe(this.pinned, PINNED);
      if (view.option("with_card")) this.card.show(latent);
    });
  }

  /** @param {SampleCodes} codes */
  show(codes) {
    this.codes = codes;
    this.elements = codes.places.map(({ part, i }, at) => {
      const attributes = {
        role: "button",
        tabindex: at ? -1 : 0,
        class: codes.counted[at] ? "" : "sl-uncounted",
      };
      if (part.kind === "grid") return patchElement(part, i, attributes);
      if (boxed(codes, at)) attributes.class += " sl-boxed";
      if (codes.starts.includes(at)) attributes.class += " sl-anew";
      return tokenElement(codes.names[at], attributes, !boxed(codes, at));
    });
    let first = 0;
    const parts = codes.parts.map((part) => {
      const own = this.elements.slice(first, first + part.n);
      const element = this.partElement(part, own, first);
      first += part.n;
      return element;
    });
    this.sample.replaceChildren(...this.pictured(codes, parts));
    this.note.textContent = codes.parted;
    if (codes.calls > 1) this.chooser.replaceChildren(...this.callChooser(codes));
    this.colour();
    const latent = this.view.chosen("latent");
    if (this.view.option("with_card") && latent !== null) this.card.show(latent);
  }

  /** @param {Part} part @param {HTMLElement[]} own its positions @param {number} first of them */
  partElement(part, own, first) {
    if (part.kind === "grid") return gridElement(part, own);
    const codes = /** @type {SampleCodes} */ (this.codes);
    if (part.kind === "extra") return h("div", { class: "sl-extra" }, h("small", {}, "extra"), ...own);
    return h("div", { class: boxed(codes, first) ? "sl-text sl-items" : "sl-text" }, ...own);
  }

  /**
   * The parts with the picture, which lies grey under the grid too if there is one.
   * @param {SampleCodes} codes @param {HTMLElement[]} parts
   */
  pictured(codes, parts) {
    const label = codes.labels.join(", ");
    const labels = label ? [h("bdi", { class: "sl-labels" }, label)] : [];
    const grids = parts.filter((part) => part.classList.contains("sl-grid"));
    if (!codes.picture.length) return [...labels, ...parts];
    const apart = h("div", { class: "sl-apart" });
    addPicture(apart, codes.picture, label);
    if (grids.length !== 1) return [...labels, apart, ...parts];
    addPicture(grids[0], codes.picture, label);
    return [...labels, ...parts.flatMap((part) => (part === grids[0] ? [part, apart] : [part]))];
  }

  /** Which call of the module is shown, such as a step of denoising. @param {SampleCodes} codes */
  callChooser(codes) {
    const said = h("output", {});
    const slider = /** @type {HTMLInputElement} */ (
      h("input", { type: "range", min: 0, max: codes.calls - 1, value: 0, "aria-label": "call" })
    );
    const show = () => {
      this.call = Number(slider.value);
      said.textContent = `call ${this.call} of 0 to ${codes.calls - 1}`;
    };
    slider.addEventListener("input", () => {
      show();
      this.colour();
      if (this.pinned >= 0) this.describe(this.pinned, PINNED);
    });
    show();
    return [slider, said];
  }

  /** Shade the positions, and say by what. */
  colour() {
    const { codes, elements } = this;
    if (!codes) return;
    const latent = this.view.chosen("latent");
    const own = codes.along(latent);
    const silent = latent !== null && !own.some(Boolean);
    const values = silent ? codes.along(null) : own;
    // one scale for all calls
    const max = values.reduce((m, v) => Math.max(m, Math.abs(v)), 0);
    const first = this.call * codes.length;
    elements.forEach((element, i) => {
      paint(element, values[first + i], max);
      element.setAttribute("aria-label", `${codes.called(first + i)}, ${spoken(values[first + i])}`);
      element.classList.toggle("sl-pinned", i === this.pinned);
    });
    const both = values.some((v) => v < 0);
    this.legend.replaceChildren(...this.legendOf(codes.facet, latent, silent, { max, both }));
  }

  /**
   * @param {string} facet @param {number | null} latent @param {boolean} silent whether that fires nowhere
   * @param {{max: number, both: boolean}} scale whether there are values of both signs
   */
  legendOf(facet, latent, silent, { max, both }) {
    const strongest = `strongest latent of each ${facet}`;
    const label = latent === null ? "" : this.labelOf(latent);
    const called = `latent #${latent}${label && ` «${label}»`}`;
    const what = latent === null ? strongest : silent ? `${called} does not fire here; ${strongest}` : called;
    const dashed = () => tokenElement("dashed", { class: "sl-negative sl-key" });
    const clear = () => this.view.choose({ latent: null });
    const article = /^[aeiou]/.test(facet) ? "an" : "a";
    return [
      h("bdi", {}, what),
      h("span", { class: both ? "sl-ramp sl-both" : "sl-ramp", "aria-hidden": true }),
      h("span", {}, `${both ? short(-max) : "0"} to ${short(max)}`),
      ...(both ? [h("span", {}, dashed(), " is negative")] : []),
      latent === null
        ? h("span", { class: "sl-hint" }, `hover ${article} ${facet}, click to pin its latents`)
        : h("button", { class: "sl-clear", type: "button", onclick: clear }, "clear"),
    ];
  }

  /**
   * Show the latents of a position of the call, at most so many; of none for -1.
   * @param {number} i @param {number} most
   */
  describe(i, most) {
    const { codes } = this;
    if (i < 0 || !codes) {
      this.detail.replaceChildren();
      return;
    }
    const at = this.call * codes.length + i;
    const all = codes.strongest(at);
    const found = all.slice(0, most);
    const scale = found.length ? Math.abs(found[0][1]) : 1;
    const chosen = this.view.chosen("latent");
    const own = all.find(([latent]) => latent === chosen)?.[1] ?? 0;
    const head = h(
      "div",
      { class: "sl-detail-head" },
      h("span", {}, `${codes.facets[at]} ${codes.placeName(at)}`),
      codes.named(at) ? tokenElement(codes.whole(at), { class: "sl-quoted" }) : null,
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
    const label = this.labelOf(latent);
    const name = label ? h("bdi", { class: "sl-label", title: label }, label) : null;
    return h("button", attributes, number, name, meter, h("span", { class: "sl-value" }, short(value)));
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
          .strongest(this.call * this.codes.length + this.pinned)
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
    if (isOfTheHost(event)) return;
    const at = this.indexOf(event);
    const step = this.stepOf(event.key, at);
    if (step) this.focus(at + step);
    else if (event.key === "Home") this.focus(0);
    else if (event.key === "End") this.focus(this.elements.length - 1);
    else if (event.key === "Enter" || event.key === " ") this.pin(at);
    else if (event.key === "Escape") {
      if (this.pinned >= 0) this.pin(this.pinned);
      else this.view.choose({ latent: null });
    } else return;
    event.preventDefault();
  }

  /** How far a key goes, 0 for other keys. @param {string} key @param {number} at */
  stepOf(key, at) {
    const place = this.codes?.places[at];
    const rows = UPRIGHT[/** @type {keyof typeof UPRIGHT} */ (key)];
    if (rows && place?.part.kind === "grid") return rows * place.part.width;
    return STEPS[/** @type {keyof typeof STEPS} */ (key)] ?? 0;
  }

  /** The position of an event, -1 for none. @param {Event} event */
  indexOf(event) {
    const element = /** @type {Element} */ (event.target).closest(".sl-token, .sl-patch");
    return this.elements.indexOf(/** @type {HTMLElement} */ (element));
  }
}

/**
 * Whether a position stands for itself: tokens run on as a text.
 * @param {SampleCodes} codes @param {number} at
 */
function boxed(codes, at) {
  return codes.facets[at] !== "token";
}
