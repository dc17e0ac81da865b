/**
 * How often latents fire: a histogram of log10 of the share of rows, the dead ones apart.
 * @typedef {import("../types.js").Answer} Answer
 * @typedef {import("../types.js").View} View
 * @typedef {{latents: Int32Array, low: number | null, high: number}} Bin low is null of the dead
 */
import { h } from "../shared/dom.js";
import { percent } from "../shared/scales.js";
import { rendering } from "../shared/view.js";

const HEIGHT = 140;
const GAP = { dead: "0 0 34px", alive: "1 1 0" };

export const render = rendering(async (view) => {
  const answer = await view.ask("densities");
  if (!answer) return;
  const bins = binsOf(answer);
  const columns = h("div", {
    role: "group",
    "aria-label": "latents by how often they fire",
    style: { display: "flex", gap: "2px", "align-items": "flex-end" },
  });
  const said = h("p", { class: "sl-hint", "aria-live": "polite" });
  view.body.style.maxWidth = "720px";
  view.body.append(columns, axis(bins), said);

  const draw = () => {
    const chosen = new Set(view.chosen("latents") ?? []);
    const most = Math.max(...bins.map((bin) => bin.latents.length), 1);
    columns.replaceChildren(...bins.map((bin) => column(view, bin, most, chosen)));
    said.replaceChildren(...summary(view, answer, chosen.size));
  };
  view.follow("latents", draw);
  view.follow("latent", draw);
  draw();
});

/** The dead, if there are any, and the bins. @param {Answer} answer @returns {Bin[]} */
function binsOf({ header, fields }) {
  const { dead, low, per_decade: per } = header;
  /** @type {Bin[]} */
  const bins = dead ? [{ latents: fields.latents.subarray(0, dead), low: null, high: 0 }] : [];
  let at = dead;
  fields.counts.forEach((/** @type {number} */ count, /** @type {number} */ i) => {
    const edge = (/** @type {number} */ k) => 10 ** (low + k / per);
    bins.push({ latents: fields.latents.subarray(at, at + count), low: edge(i), high: edge(i + 1) });
    at += count;
  });
  return bins;
}

/** @param {Bin} bin */
function nameOf({ latents, low, high }) {
  const n = latents.length.toLocaleString("en");
  return low === null ? `${n} never fire` : `${n} fire on ${percent(low)} to ${percent(high)} of rows`;
}

/**
 * A bar as a button over the whole height: its latents, and from below those of them that are chosen.
 * @param {View} view @param {Bin} bin @param {number} most of a bin @param {Set<number>} chosen
 */
function column(view, { latents, low, high }, most, chosen) {
  const own = latents.filter((j) => chosen.has(j)).length;
  const here = latents.includes(view.chosen("latent") ?? -1);
  // square root, so that few latents stay visible beside many
  const tall = latents.length ? Math.max(3, HEIGHT * Math.sqrt(latents.length / most)) : 0;
  const part = latents.length ? (100 * own) / latents.length : 0;
  const colour = low === null ? "var(--sl-soft)" : "var(--sl-positive)";
  const bar = h("span", {
    style: {
      display: "block",
      height: `${tall}px`,
      background: `linear-gradient(to top, var(--sl-accent) ${part}%, ${colour} ${part}%)`,
    },
  });
  const name = nameOf({ latents, low, high });
  const all = own === latents.length && own === chosen.size && own > 0;
  const attributes = {
    type: "button",
    title: here ? `${name}; #${view.chosen("latent")} is one of them` : name,
    "aria-label": name,
    "aria-pressed": all,
    "data-low": low ?? "dead",
    disabled: latents.length === 0,
    style: {
      flex: low === null ? GAP.dead : GAP.alive,
      "margin-right": low === null ? "10px" : "0",
      "min-width": "0",
      height: `${HEIGHT + 4}px`,
      padding: "0",
      display: "flex",
      "flex-direction": "column",
      "justify-content": "flex-end",
      border: "none",
      "border-radius": "0",
      "border-bottom": here ? "4px solid var(--sl-accent)" : "1px solid var(--sl-edge)",
    },
    onclick: () => view.choose({ latents: all ? null : Array.from(latents) }),
  };
  return h("button", attributes, bar);
}

/** A label below the bin that ends at each factor of ten. @param {Bin[]} bins */
function axis(bins) {
  const labels = bins.map(({ low, high }) => {
    const decade = Math.abs(Math.log10(high) - Math.round(Math.log10(high))) < 1e-6;
    const text = low === null ? "never" : decade ? percent(high) : "";
    const style = {
      flex: low === null ? GAP.dead : GAP.alive,
      "margin-right": low === null ? "10px" : "0",
      "min-width": "0",
      display: "flex",
      "justify-content": low === null ? "center" : "flex-end",
      "white-space": "nowrap",
    };
    return h("span", { style }, text);
  });
  const style = { display: "flex", gap: "2px", "padding-top": "2px" };
  return h("div", { class: "sl-hint", style, "aria-hidden": true }, ...labels);
}

/** @param {View} view @param {Answer} answer @param {number} chosen how many */
function summary(view, { header, fields }, chosen) {
  const [all, dead, n] = [fields.latents.length, header.dead, chosen].map((k) => k.toLocaleString("en"));
  const text = `${all} latents, ${dead} never fire; share of rows (bar height: √ of latents). `;
  if (!chosen) return [text, "Click a bar to choose its latents."];
  const clear = () => view.choose({ latents: null });
  return [
    `${text}${n} chosen. `,
    h("button", { class: "sl-clear", type: "button", onclick: clear }, "clear"),
  ];
}
