/**
 * A cloud drawn by the processor into an image: every point adds to the weight of its pixels, and the last
 * one there gives the colour. A million points take some 10 ms; software WebGL needs ten times as long.
 * @typedef {{index: import("./cloud_index.js").CloudIndex, tone: Uint8Array, shape: Uint8Array,
 *   size: Uint8Array | null, palette: Uint8Array, dimmed: boolean}} Scene points in the index's order:
 *   colours as numbers of the palette, 1 for a cross, sizes from 0 to 7; dimmed: whether there are any of colour DIM
 * @typedef {{width: number, height: number, scale: number, left: number, top: number, radius: number,
 *   opacity: number}} Frame in pixels: x * scale + left, top - y * scale; the opacity of one point
 */

/** Colour of points that do not stand out: below the others. */
export const DIM = 255;
/** Weight of a pixel that a point covers. */
const WHOLE = 64;
const MOST = 24 * WHOLE;

/** How much larger or smaller than others a point of a size is. @param {number} size 0 to 7 */
export function factorOf(size) {
  return 0.6 + (1.6 * size) / 7;
}

/** What is in sight, in units of coordinates, and more of it on each side by a radius. */
export function inSight(/** @type {Frame} */ { width, height, scale, left, top, radius }) {
  const [x, y] = [2.3 * radius + 1, 2.3 * radius + 1];
  return [(-left - x) / scale, (top - height - y) / scale, (width - left + x) / scale, (top + y) / scale];
}

/**
 * Pixels about a point, and how much of each it covers.
 * @param {number} radius @param {boolean} cross @param {number} line pixels of a line of the image
 */
function stamp(radius, cross, line) {
  /** @type {number[]} */
  const offsets = [];
  /** @type {number[]} */
  const weights = [];
  const most = Math.ceil(radius);
  for (let dy = -most; dy <= most; dy++)
    for (let dx = -most; dx <= most; dx++) {
      const far = cross
        ? Math.max(Math.abs(dx), Math.abs(dy)) > radius
          ? 9
          : Math.abs(Math.abs(dx) - Math.abs(dy)) - 0.2
        : Math.hypot(dx, dy) - radius;
      const weight = Math.round(WHOLE * Math.max(0, Math.min(1, 0.5 - far)));
      if (!weight) continue;
      offsets.push(dy * line + dx);
      weights.push(weight);
    }
  return radius < 0.8 ? { offsets: [0], weights: [WHOLE] } : { offsets, weights };
}

export class Painter {
  constructor() {
    this.weight = new Uint16Array(0);
    this.tone = new Uint8Array(0);
  }

  /** @param {CanvasRenderingContext2D} context @param {Scene} scene @param {Frame} frame */
  draw(context, { index, tone, shape, size, palette, dimmed }, frame) {
    const { width, height, scale, left, top, radius, opacity } = frame;
    // a margin, so that no pixel of a point needs a look at the edges
    const margin = Math.ceil(2.3 * radius) + 1;
    const [line, lines] = [width + 2 * margin, height + 2 * margin];
    if (this.weight.length < line * lines) {
      this.weight = new Uint16Array(line * lines);
      this.tone = new Uint8Array(line * lines);
    } else this.weight.fill(0);
    const { weight: weights, tone: tones } = this;
    const stamps = [false, true].flatMap((cross) =>
      [...Array(8).keys()].map((s) => stamp(size ? radius * factorOf(s) : radius, cross, line)),
    );
    const { x, y } = index;
    const single = !size && radius < 0.8;
    /** @param {boolean} dim @param {number} from @param {number} to */
    const stretch = (dim, from, to) => {
      for (let at = from; at < to; at++) {
        const own = tone[at];
        if (dimmed && (own === DIM) !== dim) continue;
        const px = Math.floor(x[at] * scale + left) + margin;
        const py = Math.floor(top - y[at] * scale) + margin;
        if (px < margin / 2 || py < margin / 2 || px >= line - margin / 2 || py >= lines - margin / 2)
          continue;
        const middle = py * line + px;
        if (single) {
          if (dimmed && !dim && tones[middle] === DIM) weights[middle] = 0;
          if (weights[middle] < MOST) weights[middle] += WHOLE;
          tones[middle] = own;
          continue;
        }
        const mask = stamps[8 * shape[at] + (size ? size[at] : 0)];
        for (let i = 0; i < mask.offsets.length; i++) {
          const pixel = middle + mask.offsets[i];
          if (dimmed && !dim && tones[pixel] === DIM) weights[pixel] = 0;
          if (weights[pixel] < MOST) weights[pixel] += mask.weights[i];
          tones[pixel] = own;
        }
      }
    };
    const [a, b, c, d] = inSight(frame);
    if (dimmed) index.stretches(a, b, c, d, (from, to) => stretch(true, from, to));
    index.stretches(a, b, c, d, (from, to) => stretch(false, from, to));

    const colours = new Uint32Array(256);
    for (let i = 0; i < 256; i++)
      colours[i] = palette[4 * i] | (palette[4 * i + 1] << 8) | (palette[4 * i + 2] << 16);
    const alphas = Uint8Array.from({ length: MOST + WHOLE + 1 }, (_, w) =>
      Math.round(255 * (1 - (1 - opacity) ** (w / WHOLE))),
    );
    const image = context.createImageData(width, height);
    const pixels = new Uint32Array(image.data.buffer);
    for (let row = 0, to = 0; row < height; row++) {
      let from = (row + margin) * line + margin;
      for (const end = to + width; to < end; to++, from++) {
        const w = weights[from];
        if (!w) continue;
        const own = tones[from];
        pixels[to] = colours[own] | (((alphas[w] * palette[4 * own + 3]) >> 8) << 24);
      }
    }
    context.putImageData(image, 0, 0);
  }
}
