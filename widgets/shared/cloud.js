/**
 * A cloud of points in a picture that is moved without asking anybody: shading, points, and over them names
 * and rings. What it looks like is here; what hands do with it is in hands.js.
 * @typedef {import("./cloud_labels.js").Label} Label
 */
import { Card, sharedContext } from "./cloud_gl.js";
import { CloudIndex } from "./cloud_index.js";
import { placed } from "./cloud_labels.js";
import { DIM, Painter } from "./cloud_paint.js";
import { h } from "./dom.js";

const UNITS = 65535;
/** Times that the whole is enlarged at most: coordinates are exact to a pixel of it. */
const MOST_ZOOM = 80;
/** Pixels of an image that the processor draws in a frame, at most. */
const MOST_PIXELS = 1.5e6;
const SHADE = 128;
/** Of fewer points the points alone show where there are many. */
const SHADED = 5000;

export class Cloud {
  /** @param {"auto" | "webgl" | "canvas"} engine by default WebGL2 where a graphics card draws it */
  constructor(engine = "auto") {
    const layer = (/** @type {string} */ name) =>
      /** @type {HTMLCanvasElement} */ (h("canvas", { class: `sl-cloud-${name}`, "aria-hidden": true }));
    this.shade = layer("shade");
    this.dots = layer("dots");
    this.over = layer("over");
    this.element = h("div", { class: "sl-cloud" }, this.shade, this.dots, this.over);
    this.index = new CloudIndex(new Uint16Array(0), new Uint16Array(0));
    /** @type {Uint8Array} */
    this.tone = new Uint8Array(0);
    /** @type {Uint8Array} */
    this.shape = new Uint8Array(0);
    /** @type {Uint8Array | null} */
    this.size = null;
    this.palette = new Uint8Array(1024);
    this.dimmed = false;
    /** @type {Label[]} in units, the most important first */
    this.labels = [];
    /** @type {{point: number, ring: "chosen" | "here" | "found"}[]} */
    this.rings = [];
    /** @type {[number, number][]} a line that is being drawn, in pixels */
    this.line = [];
    this.zoom = 1;
    /** what a rectangle about the middle of all takes to hold every point, in units */
    this.sides = [UNITS, UNITS];
    /** the middle, in units */
    this.middle = [UNITS / 2, UNITS / 2];
    /** called when another part is in sight */
    this.moved = () => {};
    this.painter = new Painter();
    this.waiting = { dots: false, frame: 0 };
    const shared = engine === "canvas" ? null : sharedContext(engine === "webgl");
    this.card = shared ? new Card(shared, () => this.redraw()) : null;
    this.watcher = new ResizeObserver(() => this.redraw());
    this.watcher.observe(this.element);
  }

  close() {
    this.watcher.disconnect();
    cancelAnimationFrame(this.waiting.frame);
    this.card?.close();
  }

  /** @param {Uint16Array} x @param {Uint16Array} y @param {Uint8Array} crossed which are drawn as crosses */
  points(x, y, crossed) {
    this.index = new CloudIndex(x, y);
    this.shape = this.index.sorted(crossed);
    this.tone = new Uint8Array(this.shape.length);
    this.size = null;
    this.rings = [];
    const wide = (/** @type {Uint16Array} */ values) =>
      values.reduce((most, v) => Math.max(most, Math.abs(2 * v - UNITS)), 1);
    this.sides = [wide(this.index.x), wide(this.index.y)];
    this.home();
  }

  /** By number: colours of the palette, DIM for those that do not stand out. @param {Uint8Array} tone */
  colour(tone) {
    this.tone = this.index.sorted(tone);
    this.dimmed = this.tone.includes(DIM);
    this.redraw();
  }

  // ---- what is in sight

  /** All of it. */
  home() {
    this.zoom = 1;
    this.middle = [UNITS / 2, UNITS / 2];
    this.redraw(true);
  }

  get scale() {
    const { clientWidth: width, clientHeight: height } = this.element;
    return this.zoom * Math.min((0.94 * width) / this.sides[0], (0.94 * height) / this.sides[1]);
  }

  /** Units to pixels of the element. @param {number} x @param {number} y @returns {[number, number]} */
  toPixels(x, y) {
    const { clientWidth: width, clientHeight: height } = this.element;
    return [width / 2 + (x - this.middle[0]) * this.scale, height / 2 - (y - this.middle[1]) * this.scale];
  }

  /** @param {number} px @param {number} py @returns {[number, number]} */
  toUnits(px, py) {
    const { clientWidth: width, clientHeight: height } = this.element;
    return [this.middle[0] + (px - width / 2) / this.scale, this.middle[1] - (py - height / 2) / this.scale];
  }

  /** Move by pixels. @param {number} dx @param {number} dy */
  pan(dx, dy) {
    if (!this.scale) return; // nothing is laid out yet, as of a view that opens with a latent chosen
    const inside = (/** @type {number} */ v) => Math.max(0, Math.min(UNITS, v));
    this.middle = [inside(this.middle[0] - dx / this.scale), inside(this.middle[1] + dy / this.scale)];
    this.redraw(true);
  }

  /** About a place, by default the middle. @param {number} by @param {[number, number]} [at] pixels */
  enlarge(by, at) {
    const { clientWidth: width, clientHeight: height } = this.element;
    const [px, py] = at ?? [width / 2, height / 2];
    const before = this.toUnits(px, py);
    this.zoom = Math.max(0.5, Math.min(MOST_ZOOM, this.zoom * by));
    const after = this.toPixels(...before);
    this.pan(px - after[0], py - after[1]);
  }

  /** Move to a point that is out of sight. @param {number} point */
  show(point) {
    const place = this.index.place(point);
    if (!place) return;
    const { clientWidth: width, clientHeight: height } = this.element;
    const [px, py] = this.toPixels(...place);
    if (px < 12 || py < 12 || px > width - 12 || py > height - 12) this.pan(width / 2 - px, height / 2 - py);
  }

  /** The point under a place in pixels, -1 for none. @param {number} px @param {number} py */
  under(px, py) {
    return this.index.nearest(...this.toUnits(px, py), 14 / this.scale);
  }

  // ---- drawing

  /** In the next frame, once. @param {boolean} [moved] */
  redraw(moved = false) {
    this.waiting.dots = true;
    this.overlay();
    if (moved) this.moved();
  }

  /** Names and rings alone. */
  overlay() {
    this.waiting.frame ||= requestAnimationFrame(() => {
      this.waiting.frame = 0;
      this.draw();
    });
  }

  draw() {
    const { clientWidth: width, clientHeight: height } = this.element;
    if (!width || !height) return;
    const most = Math.min(2, globalThis.devicePixelRatio || 1);
    const { waiting, dots, over } = this;
    if (waiting.dots) {
      const ratio = this.card ? most : Math.min(most, Math.sqrt(MOST_PIXELS / (width * height)));
      sized(dots, width, height, ratio);
      this.drawDots(ratio);
      waiting.dots = false;
    }
    sized(over, width, height, most);
    this.drawOver(most, width, height);
  }

  /** @param {number} ratio */
  drawDots(ratio) {
    const context = /** @type {CanvasRenderingContext2D} */ (this.dots.getContext("2d"));
    const { clientWidth, clientHeight } = this.element;
    const [left, top] = this.toPixels(0, 0).map((v) => v * ratio);
    const { width, height } = this.dots;
    const scale = this.scale * ratio;
    const [low, high] = [this.toUnits(0, clientHeight), this.toUnits(clientWidth, 0)];
    let seen = 1;
    this.index.stretches(...low, ...high, (from, to) => {
      seen += to - from;
    });
    // points are as large as leaves ground between them
    const radius = ratio * Math.max(0.5, Math.min(4, Math.sqrt((0.06 * clientWidth * clientHeight) / seen)));
    const opacity = Math.max(0.3, Math.min(0.8, 0.3 * Math.sqrt((clientWidth * clientHeight) / seen)));
    const frame = { width, height, scale, left, top, radius, opacity };
    if (!this.card?.draw(context, this, frame)) this.painter.draw(context, this, frame);
    this.shade.style.opacity = String(seen > SHADED ? Math.min(1, 1.6 / this.zoom) : 0);
    const size = (65536 * this.scale) / SHADE;
    const corner = this.toPixels(0, 65536);
    this.shade.style.transform = `matrix(${size},0,0,${size},${corner[0]},${corner[1]})`;
  }

  /** How dense the points are, blurred. @param {string} colour */
  drawShade(colour) {
    const { start, side } = this.index;
    let grid = new Float32Array(SHADE * SHADE);
    const by = side / SHADE;
    for (let row = 0; row < side; row++)
      for (let column = 0; column < side; column++)
        grid[(SHADE - 1 - Math.floor(row / by)) * SHADE + Math.floor(column / by)] +=
          start[row * side + column + 1] - start[row * side + column];
    for (const step of [1, SHADE, 1, SHADE, 1, SHADE])
      grid = grid.map((v, i) => (v * 2 + (grid[i - step] ?? 0) + (grid[i + step] ?? 0)) / 4);
    const most = Math.log1p(grid.reduce((a, b) => Math.max(a, b), 0)) || 1;
    sized(this.shade, SHADE, SHADE, 1);
    const context = /** @type {CanvasRenderingContext2D} */ (this.shade.getContext("2d"));
    context.fillStyle = colour;
    context.fillRect(0, 0, SHADE, SHADE);
    const image = context.getImageData(0, 0, SHADE, SHADE);
    grid.forEach((v, i) => {
      image.data[4 * i + 3] = 110 * (Math.log1p(v) / most) ** 1.5;
    });
    context.putImageData(image, 0, 0);
  }

  /** @param {number} ratio @param {number} width @param {number} height */
  drawOver(ratio, width, height) {
    const context = /** @type {CanvasRenderingContext2D} */ (this.over.getContext("2d"));
    const style = getComputedStyle(this.element);
    const colour = (/** @type {string} */ name) =>
      style.getPropertyValue(`--sl-${name}`).trim() || "currentColor";
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    context.font = `600 12px ${style.fontFamily}`;
    context.textBaseline = "middle";
    context.lineJoin = "round";
    const labels = this.labels.map(({ x, y, text }) => {
      const [px, py] = this.toPixels(x, y);
      return { x: px, y: py, text };
    });
    const measure = (/** @type {string} */ text) => context.measureText(text).width;
    for (const { left, top, height: line, text } of placed(labels, width, height, measure)) {
      context.strokeStyle = colour("bg");
      context.lineWidth = 4;
      context.strokeText(text, left, top + line / 2);
      context.fillStyle = colour("fg");
      context.fillText(text, left, top + line / 2);
    }
    for (const { point, ring } of this.rings) {
      const place = this.index.place(point);
      if (!place) continue;
      const [px, py] = this.toPixels(...place);
      const radius = { chosen: 9, here: 7, found: 5 }[ring];
      for (const [wide, name] of /** @type {const} */ ([
        [5, "bg"],
        [2.5, ring === "here" ? "fg" : "accent"],
      ])) {
        context.beginPath();
        context.arc(px, py, radius, 0, 7);
        context.lineWidth = wide;
        context.strokeStyle = colour(name);
        context.stroke();
      }
    }
    if (this.line.length < 2) return;
    context.beginPath();
    for (const [px, py] of this.line) context.lineTo(px, py);
    context.closePath();
    context.setLineDash([5, 4]);
    context.lineWidth = 1.5;
    context.strokeStyle = colour("accent");
    context.stroke();
    context.setLineDash([]);
  }
}

/** @param {HTMLCanvasElement} canvas @param {number} width @param {number} height @param {number} ratio */
function sized(canvas, width, height, ratio) {
  const [wide, high] = [Math.round(width * ratio), Math.round(height * ratio)];
  if (canvas.width !== wide || canvas.height !== high) Object.assign(canvas, { width: wide, height: high });
}
