/**
 * Lines of a table of latents: their heads, which sort, and their cells.
 * @typedef {import("./lines.js").Lines} Lines
 */
import { focusedIn, h } from "./dom.js";
import { percent, short } from "./scales.js";

/** What columns of figures are, for their heads. @type {Record<string, string>} */
const UNITS = {
  density: "share of rows on which it fires",
  mean: "mean activation where it fires",
  max: "largest activation",
  min: "smallest activation",
  count: "rows on which it fires",
  strongest: "largest |activation|",
  score: "how well it is found",
};

/** How wide columns are, for a grid. @param {Lines} table @param {string[]} columns */
export function widths(table, columns) {
  const each = columns.map((name) =>
    name === "density" ? "108px" : table.isText(name) ? "minmax(90px, 1fr)" : "72px",
  );
  return ["58px", "minmax(90px, 2fr)", ...each].join(" ");
}

/**
 * Heads of columns; each sorts by its own, and the other way round when it is the one.
 * @param {HTMLElement} place @param {Lines} table @param {string[]} columns @param {string} sort
 * @param {boolean} descending
 * @param {(name: string) => void} by
 */
export function drawHeads(place, table, columns, sort, descending, by) {
  const focused = focusedIn(place)?.getAttribute("data-sort") ?? null;
  const heads = columns.map((name) => {
    const is = name === sort;
    const way = is ? (descending ? ", the largest first" : ", the smallest first") : "";
    const unit = UNITS[name] ? `: ${UNITS[name]}` : "";
    return h(
      "button",
      {
        type: "button",
        class: name === "latent" || name === "name" || table.isText(name) ? "sl-head" : "sl-head sl-right",
        "aria-pressed": is,
        "aria-label": `${name}${unit}${way}`,
        title: `${name}${unit}`,
        "data-sort": name,
        onclick: () => by(name),
      },
      h("span", {}, name),
      is ? (descending ? "↓" : "↑") : null,
    );
  });
  place.replaceChildren(...heads);
  heads.find((head) => head.dataset.sort === focused)?.focus();
}

/**
 * @param {Lines} table @param {number} j @param {string[]} columns
 * @param {number | undefined} score where it was searched for @param {boolean} chosen
 */
export function rowElement(table, j, columns, score, chosen) {
  return h(
    "div",
    {
      class: `sl-row${chosen ? " sl-chosen" : ""}${table.count[j] ? "" : " sl-dead"}`,
      role: "option",
      "aria-selected": chosen,
      "data-latent": j,
    },
    h("span", { class: "sl-number" }, `#${j}`),
    h("bdi", { class: "sl-name" }, table.names[j] || "—"),
    ...columns.map((name) => cell(table, j, name, score)),
  );
}

/** @param {Lines} table @param {number} j @param {string} name @param {number | undefined} score */
function cell(table, j, name, score) {
  const value = name === "score" ? (score ?? Number.NaN) : table.columns.get(name)?.[j];
  if (typeof value !== "number") return h("bdi", { class: "sl-cell", title: value }, value ?? "");
  if (name === "count") return h("span", { class: "sl-value" }, value.toLocaleString("en"));
  if (name !== "density") return h("span", { class: "sl-value" }, short(value));
  const share = `${100 * Math.sqrt(value / table.mostDense)}%`;
  return h(
    "span",
    { class: "sl-dense" },
    h("span", { class: "sl-meter", "aria-hidden": true, style: { "--sl-share": share } }),
    h("span", { class: "sl-value" }, percent(value)),
  );
}
