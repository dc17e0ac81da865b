/**
 * What colours a heatmap: the chosen latent, several latents, or another layer such as the loss of tokens.
 * @typedef {import("../types.js").Answer} Answer
 * @typedef {import("./codes.js").SampleCodes} SampleCodes
 * @typedef {import("./heatmap.js").Heatmap} Heatmap
 */
import { focusedIn, h } from "./dom.js";
import { LETTERS, OneValue, SeveralLatents } from "./paints.js";
import { short } from "./scales.js";

const UNITS = ["nats", "bits"];

export class Layers {
  /** @param {Heatmap} heatmap @param {boolean} fallback whether a silent latent gives way to the strongest */
  constructor(heatmap, fallback) {
    this.heatmap = heatmap;
    this.view = heatmap.view;
    this.fallback = fallback;
    /** @type {Layers | null} of another heatmap, which shows the same */
    this.follower = null;
    this.mode = "latent";
    this.asked = 0;
    this.place = h("div", { class: "sl-fields sl-layers" });
    this.select = /** @type {HTMLSelectElement} */ (h("select", { "aria-label": "colour by" }));
    this.units = /** @type {HTMLSelectElement} */ (
      h("select", { "aria-label": "unit" }, ...UNITS.map((unit) => h("option", { value: unit }, unit)))
    );
    this.units.value = this.view.option("unit") ?? UNITS[0];
    this.select.addEventListener("change", () => this.set(this.select.value));
    this.units.addEventListener("change", () => this.choose());
  }

  /** Whether the details of a position say what its colour stands for. */
  get tells() {
    return this.mode !== "latent";
  }

  /** @param {SampleCodes} codes */
  begin(codes) {
    const asked = this.view.option("layer") || "latent";
    const known = codes.layers.some(([name]) => name === asked);
    this.mode = known ? asked : this.several().length > 1 && asked === "latent" ? "latents" : "latent";
    this.offer();
    this.choose();
  }

  /** The latents that colour together. @returns {number[]} */
  several() {
    return (this.view.chosen("latents") ?? []).slice(0, LETTERS.length);
  }

  /** What there is to choose from. */
  offer() {
    const { codes } = this.heatmap;
    if (!codes) return;
    const n = (this.view.chosen("latents") ?? []).length;
    const options = [
      ["latent", "the chosen latent"],
      ...(n ? [["latents", `${n} latents at once`]] : []),
      ...codes.layers,
    ];
    this.select.replaceChildren(...options.map(([value, title]) => h("option", { value }, title)));
    this.select.value = this.mode;
    const layer = codes.layers.some(([name]) => name === this.mode);
    const shown = [h("label", {}, "colour by ", this.select), layer ? this.units : null];
    this.place.replaceChildren(...(options.length > 1 ? shown.filter((part) => part !== null) : []));
  }

  /** @param {string} mode */
  set(mode) {
    this.mode = mode;
    const had = focusedIn(this.select);
    this.offer();
    if (had) this.select.focus();
    this.choose();
  }

  /** To the next of what can be chosen, or the one before. @param {number} by */
  step(by) {
    const values = [...this.select.options].map((option) => option.value);
    if (values.length < 2) return;
    this.set(values[(values.indexOf(this.mode) + by + values.length) % values.length]);
  }

  /** @param {number | null} latent */
  latentChosen(latent) {
    const within = latent === null || this.several().includes(latent);
    if (this.mode === "latents" && !within) this.mode = "latent";
    this.offer();
    this.choose();
  }

  /** @param {number[] | null} latents */
  latentsChosen(latents) {
    const n = latents?.length ?? 0;
    if (this.mode === "latents" && !n) this.mode = "latent";
    else if (this.mode === "latent" && n > 1 && n <= LETTERS.length) this.mode = "latents";
    this.offer();
    this.choose();
  }

  /** What is chosen here is shown there too. @param {Layers} other */
  leads(other) {
    this.follower = other;
  }

  /** Find the paint, and give it to the heatmap once it is there. */
  choose() {
    if (this.follower?.heatmap.codes) {
      this.follower.mode = this.mode;
      this.follower.units.value = this.units.value;
      this.follower.choose();
    }
    const mine = ++this.asked;
    const done = (/** @type {any} */ paint) => {
      if (mine === this.asked && paint && this.heatmap.codes) this.heatmap.paintBy(paint);
      if (mine === this.asked) this.place.removeAttribute("aria-busy");
    };
    const found = this.mode === "latent" ? this.one() : this.mode === "latents" ? this.many() : this.layer();
    if (!(found instanceof Promise)) {
      done(found);
      return;
    }
    this.place.setAttribute("aria-busy", "true");
    found.then(done);
  }

  /**
   * A latent along the text, at once where it is here.
   * @param {number | null} latent @returns {Float32Array | Promise<Float32Array | null>}
   */
  along(latent) {
    const { codes, ask } = this.heatmap;
    const here = codes?.along(latent);
    if (here) return here;
    return ask("along", { latent: latent ?? -1 }).then((answer) =>
      answer && codes ? codes.keep(latent ?? -1, answer) : null,
    );
  }

  one() {
    const latent = this.view.chosen("latent");
    const own = this.along(latent);
    return own instanceof Promise
      ? own.then((values) => values && this.shaded(latent, values))
      : this.shaded(latent, own);
  }

  /**
   * By the chosen latent, or where it is silent the strongest of each.
   * @param {number | null} latent @param {Float32Array} own
   */
  shaded(latent, own) {
    const codes = /** @type {SampleCodes} */ (this.heatmap.codes);
    if (!codes) return null;
    const silent = latent !== null && this.fallback && !own.some(Boolean);
    const values = silent ? /** @type {Float32Array} */ (codes.along(null)) : own;
    const strongest = `strongest latent of each ${codes.facet}`;
    const label = latent === null ? "" : this.heatmap.labelOf(latent);
    const called = `latent #${latent}${label && ` «${label}»`}`;
    const what = latent === null ? strongest : silent ? `${called} does not fire here; ${strongest}` : called;
    const paint = new OneValue(values, { what });
    const article = /^[aeiou]/.test(codes.facet) ? "an" : "a";
    const clear = () => this.view.choose({ latent: null });
    paint.more =
      latent === null
        ? h("span", { class: "sl-hint" }, `hover ${article} ${codes.facet}, click to pin its latents`)
        : h("button", { class: "sl-clear", type: "button", onclick: clear }, "clear");
    return paint;
  }

  many() {
    const latents = this.several();
    const all = (this.view.chosen("latents") ?? []).length;
    const made = (/** @type {(Float32Array | null)[]} */ values) => {
      const here = values.filter((each) => each !== null);
      if (here.length < values.length) return null;
      const labelOf = (/** @type {number} */ latent) => this.heatmap.labelOf(latent);
      const paint = new SeveralLatents(latents, here, labelOf, all - latents.length);
      const clear = () => this.view.choose({ latents: null });
      paint.more = h("button", { class: "sl-clear", type: "button", onclick: clear }, "clear");
      return paint;
    };
    const values = latents.map((latent) => this.along(latent));
    const here = values.filter((each) => !(each instanceof Promise));
    return here.length === values.length
      ? made(/** @type {Float32Array[]} */ (here))
      : Promise.all(values).then(made);
  }

  /** Another layer: asked for, and kept by whoever answers. */
  async layer() {
    const answer = await this.heatmap.ask("layer", { name: this.mode, unit: this.units.value });
    return answer && layerPaint(answer);
  }
}

/** @param {Answer} answer of a question "layer" */
export function layerPaint({ header, fields }) {
  const { title, unit, note, mean, control, beside } = header;
  const figures = `mean ${short(mean)} ${unit}; ${beside}: ${short(control)} ${unit}`;
  return new OneValue(fields.values, { what: title, unit, note: `${note}. ${figures}` });
}
