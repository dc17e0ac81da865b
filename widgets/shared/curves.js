/** Charts of several curves with axes. What they say stands beside them in words, so they are images. */
import { svg } from "./dom.js";
import { short } from "./scales.js";

/**
 * @typedef {{name: string, x: ArrayLike<number>, y: ArrayLike<number>, colour: string, dash?: string,
 *   marks?: boolean, steps?: boolean}} Curve
 * @typedef {{label: string, curves: Curve[], x: [number, number], log?: boolean, mark?: number,
 *   xTicks?: [number, string][], tick?: (value: number) => string, most?: number}} Chart
 *   most: how far y goes at least
 */

export const FRAME = { width: 340, height: 180, left: 48, right: 12, top: 10, bottom: 24 };

/** @param {number} v as 950, 12k, 1.5M */
export function counted(v) {
  for (const [size, sign] of /** @type {[number, string][]} */ ([
    [1e9, "G"],
    [1e6, "M"],
    [1e3, "k"],
  ]))
    if (Math.abs(v) >= size) return `${+(v / size).toPrecision(3)}${sign}`;
  return `${+v.toPrecision(3)}`;
}

/**
 * Round numbers from low to high, about n of them.
 * @param {number} low @param {number} high @param {number} n
 */
export function ticksOf(low, high, n) {
  const rough = (high - low) / n || 1;
  const size = 10 ** Math.floor(Math.log10(rough));
  const step = size * ([1, 2, 5].find((k) => k * size >= rough) ?? 10);
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9) || 0; k * step <= high + step * 1e-9; k++) found.push(k * step);
  return found;
}

/** Of a logarithmic axis: powers of ten, or where there are fewer than two, round numbers.
 * @param {number} low @param {number} high
 */
export function logTicks(low, high) {
  const powers = [];
  for (let k = Math.ceil(Math.log10(low) - 1e-9); 10 ** k <= high * (1 + 1e-9); k++) powers.push(10 ** k);
  if (powers.length < 2) return ticksOf(low, high, 5).filter((v) => v > 0);
  const every = Math.ceil(powers.length / 5);
  return powers.filter((_, i) => i % every === 0);
}

/**
 * From where to where the values go: from 0 on, or those above 0.
 * @param {Curve[]} curves @param {boolean} log
 */
function spanOf(curves, log) {
  let [low, high] = [Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY];
  for (const { y } of curves)
    for (let i = 0; i < y.length; i++) {
      if (!Number.isFinite(y[i]) || (log && y[i] <= 0)) continue;
      low = Math.min(low, y[i]);
      high = Math.max(high, y[i]);
    }
  if (low > high) return [log ? 0.1 : 0, 1];
  if (!log) return [Math.min(0, low), high > 0 ? high : 1];
  return low < high ? [low, high] : [low / 2, high * 2];
}

/** @param {Chart} chart */
export function curvesChart({
  label,
  curves,
  x: [from, to],
  log = false,
  mark,
  xTicks,
  tick = short,
  most = 0,
}) {
  const { width, height, left, right, top, bottom } = FRAME;
  const [low, highest] = spanOf(curves, log);
  const high = Math.max(highest, most);
  const scale = log ? Math.log : (/** @type {number} */ v) => v;
  /** @param {number} v */
  const px = (v) => left + ((v - from) / (to - from || 1)) * (width - left - right);
  /** @param {number} v */
  const py = (v) =>
    top + (1 - (scale(v) - scale(low)) / (scale(high) - scale(low) || 1)) * (height - top - bottom);
  const text = { "font-size": 11, fill: "currentColor" };
  const base = height - bottom;
  const xs = xTicks ?? ticksOf(from, to, 4).map((v) => /** @type {[number, string]} */ ([v, counted(v)]));
  const shown = [
    ...(log ? logTicks(low, high) : ticksOf(low, high, 4)).flatMap((v) => [
      svg("path", { d: `M${left} ${py(v)}H${width - right}`, stroke: "var(--sl-edge)" }),
      svg("text", { ...text, x: left - 5, y: py(v) + 4, "text-anchor": "end" }, new Text(tick(v))),
    ]),
    ...xs.map(([v, name]) => {
      const anchor = px(v) > width - right - 12 ? "end" : "middle";
      const x = anchor === "end" ? width - 2 : px(v);
      return svg("text", { ...text, x, y: height - 7, "text-anchor": anchor }, new Text(name));
    }),
    svg("path", { d: `M${left} ${top}V${base}H${width - right}`, fill: "none", stroke: "currentColor" }),
  ];
  if (mark !== undefined)
    shown.push(svg("path", { class: "sl-cursor", d: `M${px(mark)} ${top}V${base}`, stroke: "currentColor" }));
  for (const curve of curves)
    shown.push(...drawn(curve, px, py, (v) => Number.isFinite(v) && (!log || v > 0)));
  return svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label }, ...shown);
}

/**
 * @param {Curve} curve @param {(v: number) => number} px @param {(v: number) => number} py
 * @param {(v: number) => boolean} has
 */
function drawn({ name, x, y, colour, dash = "none", marks = false, steps = false }, px, py, has) {
  let d = "";
  let open = false;
  const points = [];
  for (let i = 0; i < x.length; i++) {
    if (!has(y[i])) {
      open = false;
      continue;
    }
    const [a, b] = [px(x[i]).toFixed(1), py(y[i]).toFixed(1)];
    d += open ? (steps ? `H${a}V${b}` : `L${a} ${b}`) : `M${a} ${b}`;
    open = true;
    if (marks || x.length === 1) points.push(svg("circle", { cx: a, cy: b, r: 2.5, fill: colour }));
  }
  const style = { fill: "none", stroke: colour, "stroke-width": 1.8, "stroke-dasharray": dash };
  return [svg("path", { d, ...style, "data-curve": name }), ...points];
}
