/**
 * Colours of a map, which colour-blind people can tell apart, and what they stand for.
 * @typedef {{title: string, categories: string[], low: number, high: number, log: boolean}} Scale
 * @typedef {{scale: Scale, values: Float32Array}} Column
 */
import { DIM } from "./cloud_paint.js";
import { h } from "./dom.js";
import { short } from "./scales.js";

/** Of what has no cluster or value. */
export const NONE = 254;
/** Tones of a scale of numbers: 0 to this, without the last. */
const STEPS = 200;
/** Okabe and Ito's, those that are faint on the page darker or lighter. */
const HUES = {
  light: ["#b37700", "#2f8fc7", "#009e73", "#8a7d00", "#0072b2", "#d55e00", "#b4578f", "#5f3dc4"],
  dark: ["#e69f00", "#56b4e9", "#2fc495", "#f0e442", "#4a9ede", "#f0803c", "#d98cba", "#a993f5"],
};
const GREYS = { light: ["#8b93a1", "#b4b9c2"], dark: ["#858c98", "#5a616d"] };
/** Viridis, without the end that is faint on the page. */
const RAMP = [
  "#440154",
  "#472d7b",
  "#3b528b",
  "#2c728e",
  "#21918c",
  "#28ae80",
  "#5ec962",
  "#addc30",
  "#fde725",
];
const PART = { light: [0, 0.86], dark: [0.2, 1] };

/** @param {string} colour @returns {number[]} */
const parts = (colour) => [1, 3, 5].map((i) => Number.parseInt(colour.slice(i, i + 2), 16));

/** @param {number} share from 0 to 1 @param {"light" | "dark"} theme */
function ramp(share, theme) {
  const [low, high] = PART[theme];
  const at = (low + share * (high - low)) * (RAMP.length - 1);
  const first = Math.min(RAMP.length - 2, Math.floor(at));
  const [a, b] = [parts(RAMP[first]), parts(RAMP[first + 1])];
  return a.map((v, i) => Math.round(v + (at - first) * (b[i] - v)));
}

/** RGBA of 256 tones. @param {boolean} numbers whether they are of a scale @param {boolean} dark */
export function paletteOf(numbers, dark) {
  const theme = dark ? "dark" : "light";
  const palette = new Uint8Array(1024);
  const set = (/** @type {number} */ tone, /** @type {number[]} */ colour, alpha = 255) =>
    palette.set([...colour, alpha], 4 * tone);
  for (let i = 0; i < STEPS; i++)
    set(i, numbers ? ramp(i / (STEPS - 1), theme) : parts(HUES[theme][i % HUES[theme].length]));
  set(NONE, parts(GREYS[theme][0]));
  set(DIM, parts(GREYS[theme][1]), 110);
  return palette;
}

/** Where a value lies on its scale, from 0 to 1. @param {number} value @param {Scale} scale */
export function shareOf(value, { low, high, log }) {
  const share = log ? Math.log(value / low) / Math.log(high / low) : (value - low) / (high - low);
  return Math.max(0, Math.min(1, share));
}

/** A tone for each value. @param {Column} column */
export function tonesOf({ scale, values }) {
  const tones = new Uint8Array(values.length).fill(NONE);
  const words = scale.categories.length;
  for (let i = 0; i < values.length; i++) {
    if (!Number.isFinite(values[i])) continue;
    if (!words) tones[i] = Math.floor(shareOf(values[i], scale) * (STEPS - 1));
    else if (values[i] < words) tones[i] = values[i];
  }
  return tones;
}

/** A size from 0 to 7 for each value. @param {Column} column */
export function sizesOf({ scale, values }) {
  const words = scale.categories.length;
  return Uint8Array.from(values, (v) =>
    Number.isFinite(v) ? Math.round(7 * (words ? v / words : shareOf(v, scale))) : 0,
  );
}

/** A value of a column in words. @param {Column} column @param {number} latent */
export function valueText({ scale, values }, latent) {
  const value = values[latent];
  if (!scale.categories.length || !Number.isFinite(value)) return short(value);
  return scale.categories[value] ?? "another";
}

/**
 * What colours, sizes and shapes stand for.
 * @param {Column | null} colour null for clusters @param {Column | null} size @param {boolean} dark
 * @param {boolean} dim whether some do not stand out
 */
export function legend(colour, size, dark, dim) {
  const theme = dark ? "dark" : "light";
  const swatch = (/** @type {string} */ background) =>
    h("span", { class: "sl-swatch", style: { background } });
  const ends = (/** @type {Scale} */ { low, high, log }) =>
    `${short(low)} to ${short(high)}${log ? ", log scale" : ""}`;
  /** @type {HTMLElement[]} */
  const rows = [];
  if (!colour) rows.push(h("div", {}, "Colour: cluster, eight colours in turn; names on the map say which"));
  else if (colour.scale.categories.length)
    rows.push(
      h("div", {}, "Colour: ", h("bdi", {}, colour.scale.title)),
      ...colour.scale.categories.map((word, i) => h("div", {}, swatch(HUES[theme][i]), h("bdi", {}, word))),
      h("div", {}, swatch(GREYS[theme][0]), "another, or none"),
    );
  else {
    const stops = [0, 0.25, 0.5, 0.75, 1].map((share) => `rgb(${ramp(share, theme).join(" ")})`);
    rows.push(
      h("div", {}, "Colour: ", h("bdi", {}, colour.scale.title)),
      h("div", {
        class: "sl-map-ramp",
        style: { background: `linear-gradient(to right, ${stops.join(", ")})` },
      }),
      h("div", {}, ends(colour.scale), "; beyond: the colour of that end; grey: no value"),
    );
  }
  if (size) rows.push(h("div", {}, "Size: ", h("bdi", {}, size.scale.title), `, ${ends(size.scale)}`));
  rows.push(h("div", {}, `Crosses never fire${dim ? "; pale ones are not chosen or found" : ""}`));
  return rows;
}
