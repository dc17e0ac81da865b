/**
 * Layers x heads: a value each, one of them chosen. The arrow keys go from head to head.
 * @typedef {{values: ArrayLike<number>, max: number, spoken: (at: number) => string}} Shown
 */
import { h } from "./dom.js";
import { isOfTheHost } from "./keys.js";
import { paint } from "./scales.js";

/** Heads of a layer up to which a cell has its figure in it. */
const WRITTEN = 16;

export class HeadGrid {
  /**
   * @param {number} layers @param {number} heads
   * @param {(layer: number, head: number) => void} choose a click, Enter or Space
   */
  constructor(layers, heads, choose) {
    this.layers = layers;
    this.heads = heads;
    this.choose = choose;
    /** the cell that Tab leads to */
    this.current = 0;
    /** the chosen one, -1 for none */
    this.chosen = -1;
    /** @type {HTMLElement[]} */
    this.cells = [];
    const head = h(
      "div",
      { role: "row", class: "sl-heads-row" },
      h("span", { role: "columnheader", class: "sl-heads-name" }, "layer"),
      ...Array.from({ length: heads }, (_, i) =>
        h("span", { role: "columnheader", class: "sl-heads-name" }, String(i)),
      ),
    );
    const rows = Array.from({ length: layers }, (_, layer) => {
      const cells = Array.from({ length: heads }, () =>
        h("span", { role: "gridcell", class: "sl-head-cell" }),
      );
      this.cells.push(...cells);
      const name = h("span", { role: "rowheader", class: "sl-heads-name" }, String(layer));
      return h("div", { role: "row", class: "sl-heads-row" }, name, ...cells);
    });
    this.element = h(
      "div",
      {
        ...{ role: "grid", class: "sl-heads-grid", "aria-label": "layers and heads" },
        style: { "--sl-heads": heads },
      },
      head,
      ...rows,
    );
    this.element.classList.toggle("sl-narrow", heads > WRITTEN);
    this.element.addEventListener("click", (event) => {
      const at = this.cells.indexOf(/** @type {HTMLElement} */ (event.target));
      if (at >= 0) this.take(at);
    });
    this.element.addEventListener("keydown", (event) => this.keydown(event));
  }

  /**
   * @param {Shown} shown values NaN of those that have none
   * @returns {string} the unit of the figures in the cells, "" where it is 1 or there are none
   */
  draw({ values, max, spoken }) {
    const power = max > 0 ? Math.floor(Math.log10(max)) : 0;
    const unit = power < -1 || power > 2 ? 10 ** power : 1;
    this.cells.forEach((cell, at) => {
      const [layer, head] = [Math.floor(at / this.heads), at % this.heads];
      const value = values[at];
      const has = Number.isFinite(value);
      paint(cell, has ? value : 0, max);
      cell.classList.toggle("sl-none", !has);
      cell.dataset.figure = this.heads <= WRITTEN && has ? figure(value / unit) : "";
      const said = has ? spoken(at) : "nothing known";
      cell.setAttribute("aria-label", `head ${layer}.${head}: ${said}`);
      cell.title = `${layer}.${head}: ${said}`;
    });
    this.mark(this.chosen);
    return unit === 1 || this.heads > WRITTEN ? "" : `figures × 10^${power}`;
  }

  /** Show which head is chosen, -1 for none. @param {number} at */
  mark(at) {
    this.chosen = at;
    if (at >= 0) this.current = at;
    this.cells.forEach((cell, i) => {
      cell.tabIndex = i === this.current ? 0 : -1;
      cell.setAttribute("aria-selected", String(i === at));
    });
  }

  /** @param {number} at */
  take(at) {
    this.mark(at);
    this.cells[at].focus();
    this.choose(Math.floor(at / this.heads), at % this.heads);
  }

  /** @param {KeyboardEvent} event */
  keydown(event) {
    if (isOfTheHost(event)) return;
    const at = this.cells.indexOf(/** @type {HTMLElement} */ (event.target));
    if (at < 0) return;
    if (event.key === "Enter" || event.key === " ") this.take(at);
    else {
      const column = at % this.heads;
      const to = {
        ArrowRight: column + 1 < this.heads ? at + 1 : at,
        ArrowLeft: column ? at - 1 : at,
        ArrowDown: at + this.heads,
        ArrowUp: at - this.heads,
        Home: at - column,
        End: at - column + this.heads - 1,
      }[event.key];
      if (to === undefined) return;
      if (to >= 0 && to < this.cells.length) this.focus(to);
    }
    event.preventDefault();
  }

  /** @param {number} at */
  focus(at) {
    this.cells[this.current].tabIndex = -1;
    this.current = at;
    this.cells[at].tabIndex = 0;
    this.cells[at].focus();
  }
}

/** Two figures, that fit a cell; nothing of what is next to nothing. @param {number} value */
function figure(value) {
  const size = Math.abs(value);
  if (size < 0.005) return "";
  const text = size >= 10 ? size.toFixed(0) : size >= 1 ? size.toFixed(1) : size.toFixed(2).replace(/^0/, "");
  return value < 0 ? `−${text}` : text;
}
