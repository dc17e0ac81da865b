/**
 * The positions of a sample as elements: all of them, or of a long text those in sight.
 * @typedef {import("../types.js").Part} Part
 * @typedef {import("./codes.js").SampleCodes} SampleCodes
 */
import { boxed } from "./codes.js";
import { h, tokenElement } from "./dom.js";
import { addPicture, gridElement, patchElement } from "./pictures.js";

/** Tokens from which on a text scrolls in a place of its own. */
export const LONG = 1024;
/** Tokens of a block, at least and at most: it ends with a line where there is one. */
const BLOCK = { least: 48, most: 160 };
const [LINE, LETTER, HEIGHT, MARGIN] = [30, 8.2, 520, 400];

/** Every position of a call as an element. */
export class WholeSheet {
  /**
   * @param {SampleCodes} codes @param {HTMLElement} place
   * @param {() => void} drawn whenever elements were made
   */
  constructor(codes, place, drawn) {
    this.elements = codes.places.map((_, at) => positionElement(codes, at));
    let first = 0;
    const parts = codes.parts.map((part) => {
      const own = this.elements.slice(first, first + part.n);
      const element = partElement(codes, part, own, first);
      first += part.n;
      return element;
    });
    place.replaceChildren(...pictured(codes, parts));
    this.drawn = drawn;
  }

  begin() {
    this.drawn();
  }

  /** @param {number} i @returns {HTMLElement | undefined} */
  element(i) {
    return this.elements[i];
  }

  /** @returns {Iterable<[number, HTMLElement]>} */
  entries() {
    return this.elements.entries();
  }

  /** Make sure that a position is an element, in sight. @param {number} _ */
  reveal(_) {}
}

/** A long text: blocks of tokens, of which only those in sight are elements. */
export class ScrolledSheet {
  /** @param {SampleCodes} codes @param {HTMLElement} place @param {() => void} drawn */
  constructor(codes, place, drawn) {
    this.codes = codes;
    this.drawn = drawn;
    /** @type {Map<number, HTMLElement>} positions in sight */
    this.elements = new Map();
    /** @type {Map<number, HTMLElement>} blocks in sight */
    this.shown = new Map();
    this.blocks = blocksOf(codes);
    this.heights = Float64Array.from(this.blocks, () => 0);
    /** which of the heights were measured, not guessed */
    this.measured = new Uint8Array(this.blocks.length);
    this.before = h("div", { "aria-hidden": true });
    this.after = h("div", { "aria-hidden": true });
    this.box = h("div", {
      class: "sl-scrolled sl-text",
      tabindex: 0,
      role: "group",
      "aria-label": "long text",
    });
    this.box.append(this.before, this.after);
    place.replaceChildren(this.box);
    this.box.addEventListener("scroll", () => this.draw());
    this.width = 0;
    if (typeof ResizeObserver !== "undefined") new ResizeObserver(() => this.resized()).observe(this.box);
  }

  begin() {
    this.guess();
    this.draw();
  }

  /** @param {number} i */
  element(i) {
    return this.elements.get(i);
  }

  entries() {
    return this.elements.entries();
  }

  /** Scroll to a position. @param {number} i */
  reveal(i) {
    const block = this.blockOf(i);
    if (!this.elements.has(i)) {
      this.box.scrollTop = this.topOf(block) - LINE;
      this.draw();
    }
    const element = this.elements.get(i);
    if (!element) return;
    const [at, box] = [element.getBoundingClientRect(), this.box.getBoundingClientRect()];
    if (at.top < box.top + LINE) this.box.scrollTop -= box.top + 2 * LINE - at.top;
    else if (at.bottom > box.bottom - LINE) this.box.scrollTop += at.bottom - box.bottom + 2 * LINE;
    this.draw();
  }

  /** @param {number} i */
  blockOf(i) {
    let [low, high] = [0, this.blocks.length - 1];
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (this.blocks[middle] <= i) low = middle;
      else high = middle - 1;
    }
    return low;
  }

  /** Pixels above a block. @param {number} block */
  topOf(block) {
    let top = 0;
    for (let b = 0; b < block; b++) top += this.heights[b];
    return top;
  }

  /** Guess the heights that were not measured, by the letters of a line. */
  guess() {
    const letters = Math.max(20, (this.box.clientWidth || 800) / LETTER);
    this.blocks.forEach((first, b) => {
      if (this.measured[b]) return;
      let n = 0;
      for (let i = first; i < this.endOf(b); i++) n += (this.codes.names[i] ?? "").length;
      this.heights[b] = Math.ceil(n / letters) * LINE;
    });
  }

  /** @param {number} block */
  endOf(block) {
    return this.blocks[block + 1] ?? this.codes.length;
  }

  resized() {
    if (this.box.clientWidth === this.width) return;
    this.width = this.box.clientWidth;
    this.measured.fill(0);
    const top = this.inSight()[0];
    this.guess();
    this.box.scrollTop = this.topOf(top);
    this.draw();
  }

  /** First and last block that are drawn. @returns {[number, number]} */
  inSight() {
    const top = this.box.scrollTop;
    const bottom = top + (this.box.clientHeight || HEIGHT) + MARGIN;
    let [at, first, last] = [0, -1, 0];
    for (let b = 0; b < this.blocks.length && at < bottom; b++) {
      at += this.heights[b];
      if (first < 0 && at > top - MARGIN) first = b;
      last = b;
    }
    return [Math.max(0, first), last];
  }

  /** Draw the blocks in sight, and measure them. */
  draw() {
    const [first, last] = this.inSight();
    const fresh = [];
    for (const [b, element] of this.shown) {
      if (b >= first && b <= last) continue;
      element.remove();
      this.shown.delete(b);
      for (let i = this.blocks[b]; i < this.endOf(b); i++) this.elements.delete(i);
    }
    for (let b = first; b <= last; b++) {
      if (!this.shown.has(b)) fresh.push(b);
    }
    for (const b of fresh) {
      const element = this.blockElement(b);
      this.shown.set(b, element);
      // in order: before the next block that is shown
      let next = b + 1;
      while (next <= last && !this.shown.has(next)) next++;
      this.box.insertBefore(element, this.shown.get(next) ?? this.after);
    }
    if (fresh.length) this.measure();
    this.before.style.height = `${this.topOf(first)}px`;
    this.after.style.height = `${this.topOf(this.blocks.length) - this.topOf(last + 1)}px`;
    if (fresh.length) this.drawn();
  }

  /** What was guessed wrong above the top of what is seen must not move it. */
  measure() {
    const top = this.box.scrollTop;
    let moved = 0;
    for (const [b, element] of this.shown) {
      const height = element.offsetHeight;
      if (!height || height === this.heights[b]) continue;
      if (this.topOf(b) + this.heights[b] <= top) moved += height - this.heights[b];
      this.heights[b] = height;
      this.measured[b] = 1;
    }
    if (moved) {
      this.before.style.height = `${this.topOf(Math.min(...this.shown.keys()))}px`;
      this.box.scrollTop = top + moved;
    }
  }

  /** @param {number} block */
  blockElement(block) {
    const first = this.blocks[block];
    const own = [];
    for (let i = first; i < this.endOf(block); i++) {
      const element = positionElement(this.codes, i);
      this.elements.set(i, element);
      own.push(element);
    }
    const number = h("span", { class: "sl-gutter", "aria-hidden": true }, first.toLocaleString("en"));
    return h("div", { class: "sl-block" }, number, ...own);
  }
}

/** Where blocks begin. @param {SampleCodes} codes */
function blocksOf({ names, length }) {
  const first = [0];
  for (let i = 1; i < length; i++) {
    const n = i - first[first.length - 1];
    const line = n >= BLOCK.least && (names[i - 1] ?? "").endsWith("\n");
    const word = n >= BLOCK.most && (names[i] ?? "").startsWith(" ");
    if (line || word || n >= 2 * BLOCK.most) first.push(i);
  }
  return first;
}

/** @param {SampleCodes} codes @param {number} at of one call */
function positionElement(codes, at) {
  const { part, i } = codes.places[at];
  const attributes = {
    role: "button",
    tabindex: -1,
    "data-at": at,
    class: codes.counted[at] ? "" : "sl-uncounted",
  };
  if (part.kind === "grid") return patchElement(part, i, attributes);
  if (boxed(codes, at)) attributes.class += " sl-boxed";
  const cut = codes.starts.indexOf(at);
  if (cut < 0) return tokenElement(codes.names[at], attributes, !boxed(codes, at));
  const anew = { ...attributes, class: `${attributes.class} sl-anew`, "data-cut": `part ${cut + 2}` };
  return tokenElement(codes.names[at], anew, true);
}

/**
 * @param {SampleCodes} codes @param {Part} part
 * @param {HTMLElement[]} own its positions @param {number} first of them
 */
function partElement(codes, part, own, first) {
  if (part.kind === "grid") return gridElement(part, own);
  if (part.kind === "extra") return h("div", { class: "sl-extra" }, h("small", {}, "extra"), ...own);
  return h("div", { class: boxed(codes, first) ? "sl-text sl-items" : "sl-text" }, ...own);
}

/**
 * The parts with the picture, which lies grey under the grid too if there is one.
 * @param {SampleCodes} codes @param {HTMLElement[]} parts
 */
function pictured(codes, parts) {
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
