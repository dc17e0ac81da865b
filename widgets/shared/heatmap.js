/**
 * A sample as a heatmap: lines of tokens, lists of items, patches over their picture. Hovering asks the
 * kernel for nothing. Several heatmaps may stand beside each other: what they show is given by those who make
 * them.
 * @typedef {import("../types.js").Answer} Answer
 * @typedef {import("../types.js").Args} Args
 * @typedef {import("../types.js").View} View
 * @typedef {import("./paints.js").Paint} Paint
 */
import { SampleCodes } from "./codes.js";
import { h, tokenElement } from "./dom.js";
import { findBar } from "./find.js";
import { isOfTheHost } from "./keys.js";
import { latentChips } from "./latents.js";
import { Layers } from "./layers.js";
import { shadingElement } from "./pictures.js";
import { short } from "./scales.js";
import { LONG, ScrolledSheet, WholeSheet } from "./sheets.js";

const HOVERED = 5;
const PINNED = 12;
const AHEAD = 3;
const STEPS = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10 };
/** Keys that go up and down: by a row of a grid. */
const UPRIGHT = { ArrowDown: 1, ArrowUp: -1 };

export class Heatmap {
  /**
   * @param {View} view @param {HTMLElement} place where it draws
   * @param {object} [options]
   * @param {(question: string, args?: Args) => Promise<Answer | null>} [options.ask] of this sample
   * @param {(latents: (number | undefined)[]) => void} [options.ahead] fetches cards ahead of time
   * @param {(at: number) => void} [options.met] told of the position that is described, -1 for none
   * @param {(paint: Paint) => void} [options.share] sees a paint before it is used, for a common scale
   * @param {boolean} [options.fallback] whether a silent latent gives way to the strongest of each position
   * @param {boolean} [options.controls] whether it has a chooser of layers of its own
   */
  constructor(
    view,
    place,
    {
      ask = view.ask,
      ahead = () => {},
      met = () => {},
      share = () => {},
      fallback = true,
      controls = true,
    } = {},
  ) {
    this.view = view;
    this.ask = ask;
    this.ahead = ahead;
    this.met = met;
    this.share = share;
    /** @type {(at: number) => boolean} whether a position has no partner in another sample */
    this.alone = () => false;
    /** @type {SampleCodes | null} */
    this.codes = null;
    /** @type {WholeSheet | ScrolledSheet | null} */
    this.sheet = null;
    /** @type {Paint | null} */
    this.paint = null;
    /** which call is shown */
    this.call = 0;
    this.pinned = -1;
    /** the chunk of codes that is asked for; -1 for none */
    this.fetching = -1;
    /** the position that Tab leads to */
    this.current = 0;
    this.legend = h("div", { class: "sl-legend" });
    this.chooser = h("div", { class: "sl-calls" });
    this.finder = h("div", { class: "sl-find" });
    this.shading = h("div", {});
    this.sample = h("div", { class: "sl-sample", role: "group", "aria-label": "sample", dir: "ltr" });
    this.note = h("div", { class: "sl-hint" });
    this.detail = h("div", { class: "sl-detail", "aria-live": "polite" });
    this.layers = new Layers(this, fallback);
    place.append(
      ...(controls ? [this.layers.place] : []),
      ...[this.legend, this.note, this.chooser, this.finder, this.shading, this.sample, this.detail],
    );
    this.listen();
  }

  /** The label of a latent, "" for none. @param {number} latent */
  labelOf(latent) {
    return this.view.edited(latent)?.label ?? this.codes?.labelled[latent] ?? "";
  }

  listen() {
    const { sample, view } = this;
    view.relabelled(() => this.colour());
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
    view.follow("latent", (latent) => this.layers.latentChosen(latent));
    view.follow("latents", (latents) => this.layers.latentsChosen(latents));
  }

  /** @param {Answer} answer */
  show(answer) {
    this.codes = new SampleCodes(answer);
    const { codes } = this;
    this.pinned = -1;
    this.call = 0;
    this.current = 0;
    const long = codes.length > LONG && codes.parts.length === 1 && codes.facet === "token";
    const Sheet = long ? ScrolledSheet : WholeSheet;
    this.sheet = new Sheet(codes, this.sample, () => this.repaint());
    this.note.textContent = codes.parted;
    this.chooser.replaceChildren(...(codes.calls > 1 ? this.callChooser(codes) : []));
    this.finder.replaceChildren(...(long ? findBar(codes, (at, n) => this.found(at, n)) : []));
    const pictured = codes.picture.length > 0 && codes.parts.some(({ kind }) => kind === "grid");
    this.shading.replaceChildren(...(pictured ? [shadingElement(this.sample)] : []));
    this.describe(-1, HOVERED);
    this.layers.begin(codes);
    this.sheet.begin();
  }

  /** Take it all away. @param {...Node} instead */
  clear(...instead) {
    this.codes = this.sheet = this.paint = null;
    const { legend, chooser, finder, shading, detail, layers } = this;
    for (const part of [legend, chooser, finder, shading, detail, layers.place]) part.replaceChildren();
    this.note.textContent = "";
    this.sample.replaceChildren(...instead);
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
    });
    show();
    return [slider, said];
  }

  /** Shade the positions anew, and say by what. */
  colour() {
    if (this.codes) this.layers.choose();
  }

  /** Shade by a paint. @param {Paint} paint */
  paintBy(paint) {
    this.paint = paint;
    this.share(paint);
    this.restyle();
    if (this.pinned >= 0) this.describe(this.pinned, PINNED);
  }

  /** Shade by the paint that there is, and say what it means. */
  restyle() {
    const { paint } = this;
    if (!paint) return;
    this.legend.replaceChildren(...paint.legend().filter((part) => part !== null));
    this.sample.classList.toggle("sl-several", "latents" in paint);
    this.repaint();
  }

  /** Shade what is drawn. */
  repaint() {
    const { codes, paint, sheet } = this;
    if (!codes || !paint || !sheet) return;
    const first = this.call * codes.length;
    let reachable = false;
    for (const [i, element] of sheet.entries()) {
      paint.paint(element, first + i);
      const anew = codes.starts.includes(i) ? ", the model reads anew here" : "";
      const alone = this.alone(i) ? ", only on this side" : "";
      element.classList.toggle("sl-alone", Boolean(alone));
      element.setAttribute(
        "aria-label",
        `${codes.called(first + i)}, ${paint.spoken(first + i)}${anew}${alone}`,
      );
      element.classList.toggle("sl-pinned", i === this.pinned);
      element.setAttribute("aria-pressed", String(i === this.pinned));
      element.tabIndex = i === this.current ? 0 : -1;
      if (i === this.current) reachable = true;
    }
    if (reachable) return;
    for (const [, element] of sheet.entries()) {
      element.tabIndex = 0;
      return;
    }
  }

  /**
   * Show the latents of a position of the call, at most so many; of none for -1.
   * @param {number} i @param {number} most
   */
  describe(i, most) {
    const { codes, paint } = this;
    this.met(i);
    if (i < 0 || !codes) {
      this.detail.replaceChildren();
      return;
    }
    const at = this.call * codes.length + i;
    const all = codes.strongest(at);
    if (!all) this.fetch(Math.floor(at / codes.per));
    const chosen = this.view.chosen("latent");
    const own = all?.find(([latent]) => latent === chosen)?.[1] ?? 0;
    const told = chosen !== null && all ? [h("span", {}, `#${chosen}: ${short(own)}`)] : [];
    const head = h(
      "div",
      { class: "sl-detail-head" },
      h("span", {}, `${codes.facets[at]} ${codes.placeName(at)}`),
      codes.named(at) ? tokenElement(codes.shown(at), { class: "sl-quoted" }) : null,
      ...(paint && this.layers.tells ? paint.told(at) : told),
      codes.counted[at] ? null : h("span", { class: "sl-hint" }, "not counted in statistics"),
    );
    const list = latentChips(this.view, (all ?? []).slice(0, most), (latent) => this.labelOf(latent));
    const none = all ? "no latent fires here" : "asking for its latents…";
    if (!all?.length) list.append(h("li", { class: "sl-hint" }, none));
    this.detail.replaceChildren(head, list);
  }

  /** Ask for a chunk of the codes, and show what was waited for. @param {number} number */
  async fetch(number) {
    const { codes } = this;
    if (!codes || this.fetching === number) return;
    this.fetching = number;
    const answer = await this.ask("chunk", { number });
    this.fetching = -1;
    if (!answer || codes !== this.codes) return;
    codes.add(number, answer.fields);
    if (this.pinned >= 0) this.describe(this.pinned, PINNED);
    else if (this.detail.childElementCount) this.describe(this.current, HOVERED);
  }

  /** Keep a position's latents in sight, or let go of them. @param {number} at */
  pin(at) {
    this.pinned = at === this.pinned ? -1 : at;
    this.describe(this.pinned, PINNED);
    for (const [i, element] of this.sheet?.entries() ?? []) {
      element.classList.toggle("sl-pinned", i === this.pinned);
      element.setAttribute("aria-pressed", String(i === this.pinned));
    }
    if (!this.codes || this.pinned < 0) return;
    const found = this.codes.strongest(this.call * this.codes.length + this.pinned) ?? [];
    this.ahead(found.slice(0, AHEAD).map(([latent]) => latent));
  }

  /** @param {number} at */
  focus(at) {
    const { codes, sheet } = this;
    if (!codes || !sheet) return;
    const to = Math.max(0, Math.min(codes.length - 1, at));
    this.current = to;
    sheet.reveal(to);
    for (const [i, element] of sheet.entries()) element.tabIndex = i === to ? 0 : -1;
    sheet.element(to)?.focus({ preventScroll: sheet instanceof ScrolledSheet });
    if (this.pinned < 0) this.describe(to, HOVERED);
  }

  /**
   * Show what was looked for: n tokens from a position on, none for -1.
   * @param {number} at @param {number} n
   */
  found(at, n) {
    const { sheet } = this;
    if (!sheet) return;
    if (at >= 0) sheet.reveal(at);
    for (const [i, element] of sheet.entries())
      element.classList.toggle("sl-found", at >= 0 && i >= at && i < at + n);
    if (at >= 0) {
      this.current = at;
      this.repaint();
      if (this.pinned < 0) this.describe(at, HOVERED);
    }
  }

  /** @param {KeyboardEvent} event */
  keydown(event) {
    if (isOfTheHost(event)) return;
    const indexed = this.indexOf(event);
    const at = indexed < 0 ? this.current : indexed;
    const step = this.stepOf(event.key, at);
    if (step) this.focus(at + step);
    else if (event.key === "Home") this.focus(0);
    else if (event.key === "End") this.focus((this.codes?.length ?? 1) - 1);
    else if (event.key === "l" || event.key === "L") this.layers.step(event.key === "l" ? 1 : -1);
    else if (event.key === "/" && this.finder.childElementCount) this.finder.querySelector("input")?.focus();
    else if (event.key === "n" || event.key === "p") this.next(at, event.key === "n" ? 1 : -1);
    else if (event.key === "Enter" || event.key === " ") this.pin(at);
    else if (event.key === "Escape") {
      if (this.pinned >= 0) this.pin(this.pinned);
      else this.view.choose({ latent: null });
    } else return;
    event.preventDefault();
  }

  /** Go to the next position, or the one before, that has a colour. @param {number} at @param {number} by */
  next(at, by) {
    const { codes, paint } = this;
    if (!codes || !paint) return;
    const first = this.call * codes.length;
    for (let i = at + by; i >= 0 && i < codes.length; i += by) {
      if (!paint.has(first + i)) continue;
      this.focus(i);
      return;
    }
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
    const element = /** @type {Element} */ (event.target).closest("[data-at]");
    return element instanceof HTMLElement ? Number(element.dataset.at) : -1;
  }
}
