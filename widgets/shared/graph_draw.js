/**
 * Nodes in rows and columns, as buttons, over edges on a canvas that covers only what is in sight.
 * @typedef {{row: number, column: number, kind: string, text: string, label: string, title: string,
 *   wide?: boolean, pinned?: boolean, chosen?: boolean, key: string}} Item
 * @typedef {{source: number, target: number, weight: number}} Line numbers of items
 * @typedef {{choose: (item: number) => void, hover: (item: number) => void,
 *   key: (event: KeyboardEvent, item: number) => boolean}} Does
 */
import { focusedIn, h, tokenElement } from "./dom.js";
import { isOfTheHost } from "./keys.js";

const [SIZE, WIDE, HIGH, GUTTER, FOOT, EDGE] = [18, 104, 24, 92, 26, 12];
/** Nodes beside each other in a cell; more stand above. */
const BESIDE = { narrow: 6, wide: 2 };
const LEAST_COLUMN = 30;
const GAP = 38;
/** Lines that are drawn, the strongest. */
export const MOST_DRAWN = 4000;

export class Drawing {
  /** @param {string} label @param {Does} does */
  constructor(label, does) {
    this.does = does;
    const layer = () =>
      /** @type {HTMLCanvasElement} */ (h("canvas", { class: "sl-graph-edges", "aria-hidden": true }));
    this.canvas = layer();
    /** of the item that is lit */
    this.over = layer();
    this.layers = h("div", { class: "sl-graph-layers" }, this.canvas, this.over);
    /** what part the canvas shows */
    this.drawn = "";
    this.paper = h("div", { class: "sl-graph-paper" });
    this.frame = h("div", { class: "sl-graph-frame", role: "group", "aria-label": label }, this.paper);
    /** @type {Item[]} */
    this.items = [];
    /** @type {Line[]} the weakest first */
    this.lines = [];
    /** @type {[number, number][]} the middle of each item */
    this.places = [];
    /** @type {HTMLElement[]} */
    this.buttons = [];
    this.lit = -1;
    /** the item that keys begin at */
    this.here = 0;
    this.waiting = 0;
    /** whether it was scrolled to where a reader begins: at the logits */
    this.begun = false;
    this.frame.addEventListener("scroll", () => this.later());
    this.frame.addEventListener("keydown", (event) => this.keydown(event));
    this.watcher = new ResizeObserver(() => this.resized());
    this.watcher.observe(this.frame);
  }

  close() {
    this.watcher.disconnect();
    cancelAnimationFrame(this.waiting);
  }

  /**
   * @param {Item[]} items @param {Line[]} lines
   * @param {string[]} rows names, from the bottom @param {(string | null)[]} columns tokens
   */
  show(items, lines, rows, columns) {
    const kept = this.items[this.here]?.key;
    const had = focusedIn(this.paper)?.getAttribute("data-node") ?? null;
    this.items = items;
    this.lines = lines.slice(0, MOST_DRAWN).sort((a, b) => Math.abs(a.weight) - Math.abs(b.weight));
    this.lit = -1;
    this.here = Math.max(
      0,
      items.findIndex(({ key }) => key === kept),
    );
    const { width, height, at, left, top } = layOut(items, rows.length, columns.length);
    this.places = at;
    this.buttons = items.map((item, i) => this.button(item, i));
    const names = rows.map((name, row) =>
      h("div", { class: "sl-graph-row", style: { top: `${top[row]}px` } }, h("span", {}, name)),
    );
    const tokens = columns.map((token, column) => {
      const style = { left: `${left[column]}px`, width: `${left[column + 1] - left[column] - 2}px` };
      return tokenElement(token, { class: "sl-graph-token", style, title: `position ${column}` });
    });
    const foot = h("div", { class: "sl-graph-foot" }, ...tokens);
    this.paper.style.width = `${width}px`;
    this.paper.style.height = `${height}px`;
    this.paper.replaceChildren(this.layers, ...names, foot, ...this.buttons);
    const again = items.findIndex(({ key }) => key === had);
    if (again >= 0) this.buttons[again].focus({ preventScroll: true });
    this.drawn = "";
    this.paint();
  }

  /** @param {Item} item @param {number} i */
  button(item, i) {
    const [x, y] = this.places[i];
    const [w, high] = item.wide ? [WIDE, HIGH] : [SIZE - 4, SIZE - 4];
    const classes = ["sl-node", `sl-node-${item.kind}`];
    if (item.wide) classes.push("sl-node-wide");
    if (item.pinned) classes.push("sl-node-pinned");
    const element = h(
      "button",
      {
        ...{ type: "button", class: classes.join(" "), "data-node": item.key, title: item.title },
        ...{ tabindex: i === this.here ? 0 : -1, "aria-label": item.label },
        "aria-current": item.chosen ? "true" : "false",
        style: { left: `${x - w / 2}px`, top: `${y - high / 2}px`, width: `${w}px`, height: `${high}px` },
        onclick: () => this.does.choose(i),
        onpointerenter: () => this.hover(i),
        onpointerleave: () => this.hover(-1),
        onfocus: () => this.focused(i),
      },
      item.wide ? h("bdi", {}, item.text) : null,
    );
    return element;
  }

  /** Light the edges of an item; -1 of none. @param {number} item */
  light(item) {
    if (item === this.lit) return;
    this.lit = item;
    this.later();
  }

  /** @param {number} item */
  hover(item) {
    this.light(item);
    this.does.hover(item);
  }

  /** @param {number} item */
  focused(item) {
    this.buttons[this.here]?.setAttribute("tabindex", "-1");
    this.here = item;
    this.buttons[item].setAttribute("tabindex", "0");
    this.hover(item);
  }

  /** @param {number} item */
  focus(item) {
    const button = this.buttons[item];
    button?.focus({ preventScroll: true });
    button?.scrollIntoView?.({ block: "nearest", inline: "nearest" });
  }

  /** Mark which item is told of. @param {number} item */
  mark(item) {
    this.buttons.forEach((button, i) => {
      button.setAttribute("aria-current", String(i === item));
    });
  }

  /** @param {KeyboardEvent} event */
  keydown(event) {
    if (isOfTheHost(event)) return;
    const from = this.buttons.indexOf(/** @type {HTMLElement} */ (event.target));
    if (from < 0) return;
    const to = this.towards(from, event.key);
    if (to === null) {
      if (!this.does.key(event, from)) return;
    } else if (to >= 0) this.focus(to);
    event.preventDefault();
    event.stopPropagation();
  }

  /**
   * The next item that way; -1 for none, null where a key leads nowhere.
   * @param {number} from @param {string} key
   */
  towards(from, key) {
    const { items, places } = this;
    const row = items[from].row;
    const own = [...items.keys()].filter((i) => items[i].row === row);
    own.sort((a, b) => places[a][0] - places[b][0] || places[b][1] - places[a][1]);
    if (key === "Home") return own[0];
    if (key === "End") return own[own.length - 1];
    const side = { ArrowLeft: -1, ArrowRight: 1 }[key];
    if (side) return own[own.indexOf(from) + side] ?? -1;
    const by = { ArrowUp: 1, ArrowDown: -1 }[key];
    if (!by) return null;
    const rows = [...new Set(items.map((item) => item.row))].filter((r) => (r - row) * by > 0);
    if (!rows.length) return -1;
    const next = by > 0 ? Math.min(...rows) : Math.max(...rows);
    let best = -1;
    items.forEach((item, i) => {
      if (item.row !== next) return;
      const far = (/** @type {number} */ j) => Math.abs(places[j][0] - places[from][0]);
      if (best < 0 || far(i) < far(best)) best = i;
    });
    return best;
  }

  /** A frame that is watched tells of its first size too, which is drawn already. */
  resized() {
    const { canvas, frame } = this;
    if (canvas.style.width !== `${frame.clientWidth}px` || canvas.style.height !== `${frame.clientHeight}px`)
      this.later();
  }

  /** Draw all in the colours of the page as it is now. */
  anew() {
    this.drawn = "";
    this.later();
  }

  later() {
    cancelAnimationFrame(this.waiting);
    this.waiting = requestAnimationFrame(() => this.paint());
  }

  /** Draw the edges in sight; those of the item that is lit above the others, which pale. */
  paint() {
    const { frame, lines, lit } = this;
    const [width, height] = [frame.clientWidth, frame.clientHeight];
    if (!width || !height) return;
    if (!this.begun) frame.scrollLeft = frame.scrollWidth;
    this.begun = true;
    const view = `${width} ${height} ${frame.scrollLeft} ${frame.scrollTop}`;
    if (view !== this.drawn) draw(this, this.canvas, lines);
    this.drawn = view;
    const own = lit < 0 ? [] : lines.filter(({ source, target }) => source === lit || target === lit);
    this.canvas.style.opacity = lit < 0 ? "1" : "0.15";
    this.over.hidden = lit < 0;
    if (lit >= 0) draw(this, this.over, own);
  }
}

/**
 * Draw some lines, as far as they are in sight.
 * @param {Drawing} drawing @param {HTMLCanvasElement} canvas @param {Line[]} some
 */
function draw({ frame, lines, places, lit }, canvas, some) {
  const context = canvas.getContext("2d");
  if (!context) return;
  const [width, height] = [frame.clientWidth, frame.clientHeight];
  const dense = globalThis.devicePixelRatio || 1;
  canvas.width = width * dense;
  canvas.height = height * dense;
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  context.setTransform(dense, 0, 0, dense, -frame.scrollLeft * dense, -frame.scrollTop * dense);
  const style = getComputedStyle(canvas);
  const colours = ["--sl-up", "--sl-down"].map((name) => style.getPropertyValue(name).trim() || "#888");
  const most = lines.length ? Math.abs(lines[lines.length - 1].weight) : 1;
  const [left, right] = [frame.scrollLeft, frame.scrollLeft + width];
  const [top, bottom] = [frame.scrollTop, frame.scrollTop + height];
  for (const { source, target, weight } of some) {
    const [[x, y], [u, v]] = [places[source], places[target]];
    if (Math.max(x, u) < left || Math.min(x, u) > right) continue;
    if (Math.max(y, v) < top || Math.min(y, v) > bottom) continue;
    const share = Math.abs(weight) / most;
    const own = source === lit || target === lit;
    context.globalAlpha = own ? 0.95 : 0.15 + 0.75 * share;
    context.lineWidth = (own ? 1.2 : 0.6) + 2.4 * share;
    context.strokeStyle = colours[weight < 0 ? 1 : 0];
    context.setLineDash(weight < 0 ? [5, 3] : []);
    context.beginPath();
    context.moveTo(x, y);
    const bend = (y - v) / 2;
    context.bezierCurveTo(x, y - bend, u, v + bend, u, v);
    context.stroke();
  }
}

/**
 * Where items lie: rows from the bottom, as high as they need, columns as wide.
 * @param {Item[]} items @param {number} rows @param {number} columns
 */
function layOut(items, rows, columns) {
  /** @type {Map<number, number[]>} cell -> items */
  const cells = new Map();
  items.forEach(({ row, column }, i) => {
    const cell = row * columns + column;
    const own = cells.get(cell);
    if (own) own.push(i);
    else cells.set(cell, [i]);
  });
  const widths = new Float64Array(columns).fill(LEAST_COLUMN);
  const heights = new Float64Array(rows).fill(SIZE);
  /** @type {[number, {across: number, high: number, wide: number, beside: number}][]} */
  const sizes = [...cells].map(([cell, own]) => {
    const large = own.some((i) => items[i].wide);
    const [wide, high] = large ? [WIDE + 6, HIGH + 4] : [SIZE, SIZE];
    const beside = Math.min(own.length, large ? BESIDE.wide : BESIDE.narrow);
    const column = cell % columns;
    const row = (cell - column) / columns;
    widths[column] = Math.max(widths[column], beside * wide + EDGE);
    heights[row] = Math.max(heights[row], Math.ceil(own.length / beside) * high);
    return [cell, { across: beside * wide, high, wide, beside }];
  });
  const left = [GUTTER];
  for (const width of widths) left.push(left[left.length - 1] + width);
  const all = heights.reduce((a, b) => a + b, 0) + GAP * rows;
  /** @type {number[]} the middle of each row */
  const top = [];
  let base = all;
  for (let row = 0; row < rows; row++) {
    top.push(base - heights[row] / 2 - GAP / 2);
    base -= heights[row] + GAP;
  }
  /** @type {[number, number][]} */
  const at = items.map(() => [0, 0]);
  for (const [cell, { across, high, wide, beside }] of sizes) {
    const own = /** @type {number[]} */ (cells.get(cell));
    const column = cell % columns;
    const row = (cell - column) / columns;
    const middle = (left[column] + left[column + 1]) / 2;
    const lines = Math.ceil(own.length / beside);
    own.forEach((item, k) => {
      const [across_, up] = [k % beside, Math.floor(k / beside)];
      at[item] = [middle - across / 2 + (across_ + 0.5) * wide, top[row] + ((lines - 1) / 2 - up) * high];
    });
  }
  return { width: left[columns] + EDGE, height: all + FOOT, at, left, top };
}
