/**
 * Two samples beside each other, or one with and without edits: what stands for each other, on one scale, and
 * the latents that differ most, beside their control.
 * @typedef {import("../types.js").Answer} Answer
 * @typedef {import("../types.js").Args} Args
 * @typedef {import("../types.js").View} View
 * @typedef {import("./paints.js").Paint} Paint
 */
import { h } from "./dom.js";
import { Heatmap } from "./heatmap.js";
import { latentChips } from "./latents.js";
import { OneValue } from "./paints.js";
import { short } from "./scales.js";

const LISTED = 12;

/**
 * @param {View} view @param {HTMLElement} place
 * @param {(latents: (number | undefined)[]) => void} ahead fetches cards ahead of time
 */
export async function compare(view, place, ahead) {
  const told = await view.ask("difference");
  if (!told) return;
  const pairs = told.fields.pairs;
  /** @type {Map<number, number>[]} position of a side -> the one that it stands for */
  const partner = [new Map(), new Map()];
  for (let i = 0; i < pairs.length; i += 2) {
    partner[0].set(pairs[i], pairs[i + 1]);
    partner[1].set(pairs[i + 1], pairs[i]);
  }
  /** @type {Paint[]} */
  const paints = [];
  /** @type {Heatmap[]} */
  const heatmaps = [0, 1].map((side) => {
    const own = h("section", { class: "sl-compared-side" }, h("h3", {}, told.header.titles[side]));
    place.append(own);
    return new Heatmap(view, own, {
      ask: (question, args = {}) => view.ask(question, side ? { ...args, side } : args),
      ahead,
      met: (at) => mark(1 - side, partner[side].get(at) ?? -1),
      // both on the larger of their scales
      share: (paint) => {
        paints[side] = paint;
        const other = paints[1 - side];
        if (!(paint instanceof OneValue && other instanceof OneValue) || paint.what !== other.what) return;
        const max = Math.max(paint.max, other.max);
        const moved = other.max < max;
        paint.max = other.max = max;
        if (moved) heatmaps[1 - side].restyle();
      },
      fallback: false,
      controls: side === 0,
    });
  });
  /** @param {number} side @param {number} at */
  const mark = (side, at) => {
    for (const [i, element] of heatmaps[side]?.sheet?.entries() ?? [])
      element.classList.toggle("sl-partner", i === at);
  };
  heatmaps[0].layers.leads(heatmaps[1].layers);
  const answers = await Promise.all(heatmaps.map(({ ask }) => ask("codes")));
  heatmaps.forEach((heatmap, side) => {
    const answer = answers[side];
    if (!answer) return;
    heatmap.alone = (at) => !partner[side].has(at);
    heatmap.show(answer);
  });
  const list = h("section", { class: "sl-differing" });
  const draw = () => list.replaceChildren(...listed(view, told, (latent) => heatmaps[0].labelOf(latent)));
  view.relabelled(draw);
  view.follow("latent", draw);
  view.follow("latents", draw);
  draw();
  place.append(list);
}

/**
 * The latents that differ most, each beside its control.
 * @param {View} view @param {Answer} told @param {(latent: number) => string} labelOf
 */
function listed(view, { header, fields }, labelOf) {
  /** @type {[number, number][]} */
  const found = [...fields.latents.slice(0, LISTED)].map((latent, i) => [latent, fields.size[i]]);
  if (!found.length) return [h("h3", {}, "No latent differs.")];
  const chips = latentChips(view, found, labelOf);
  [...chips.children].forEach((item, i) => {
    item.append(h("span", { class: "sl-beside-it" }, `control ${short(fields.control[i])}`));
  });
  const more =
    fields.latents.length > found.length ? ` ${found.length} of ${header.n.toLocaleString("en")}.` : "";
  return [
    h("h3", {}, "Latents that differ most"),
    h(
      "p",
      { class: "sl-hint" },
      `mean |difference| a token, ${header.titles[0]} and ${header.titles[1]}; beside it the control, ` +
        `${header.titles[0]} and ${header.beside}.${more} Dotted: only on this side.`,
    ),
    chips,
  ];
}
