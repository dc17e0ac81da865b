/**
 * A drawing of a result: points, lines with their intervals, steps and thin guides over two axes. What they
 * say stands in the table beside them, so that they are images.
 * @typedef {[string, string, (number | null)[], (number | null)[], (number | null)[], (number | null)[]]}
 *   Curve name, kind, x, y, and the ends of the intervals of y (none of them where there are none)
 * @typedef {{title: string, x: string, y: string, log: boolean}} Header
 */
import { counted, logTicks, ticksOf } from "./curves.js";
import { freshId, h, svg } from "./dom.js";
import { short } from "./scales.js";

const FRAME = { width: 460, height: 280, left: 56, right: 14, top: 10, bottom: 40 };
/** Colours that the colour-blind tell apart, each with a dash and a shape of its own. */
const LOOKS = [
  { colour: "var(--sl-accent)", dash: "none", mark: "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z" },
  { colour: "#d55e00", dash: "6 3", mark: "M-4 -4h8v8h-8z" },
  { colour: "#009e73", dash: "2 3", mark: "M0 -5l5 5l-5 5l-5 -5z" },
  { colour: "#b4578f", dash: "8 3 2 3", mark: "M0 -5l5 9h-10z" },
];
/** Lines that a legend has room for. */
const NAMED = 12;

/** @param {Header} header @param {Curve[]} curves */
export function drawingElement(header, curves) {
  const names = curves.map(([name]) => name);
  const legend = curves
    .slice(0, NAMED)
    .filter(([name], i) => names.indexOf(name) === i)
    .map(([name, kind]) => {
      const box = { viewBox: "-14 -7 28 14", width: 28, height: 14, "aria-hidden": "true" };
      return h("li", {}, svg("svg", box, ...sample(kind, names.indexOf(name))), h("bdi", {}, name));
    });
  return h(
    "figure",
    { class: "sl-drawing" },
    h("figcaption", {}, h("bdi", {}, header.title)),
    chart(header, curves),
    h("ul", {}, ...legend),
  );
}

/** @param {string} kind @param {number} i */
function sample(kind, i) {
  const { colour, dash, mark } = lookOf(kind, i);
  const line = { d: "M-13 0H13", stroke: colour, "stroke-dasharray": dash, "stroke-width": widthOf(kind) };
  if (kind === "points") return [svg("circle", { r: 3, fill: colour })];
  return [svg("path", line), ...(kind === "line" ? [svg("path", { d: mark, fill: colour })] : [])];
}

/** @param {string} kind @param {number} i */
function lookOf(kind, i) {
  if (kind === "guide") return { ...LOOKS[0], colour: "var(--sl-soft)", dash: i === 1 ? "5 3" : "1 3" };
  if (kind === "steps") return { ...LOOKS[0], colour: "var(--sl-edge)" };
  return LOOKS[i % LOOKS.length];
}

/** @param {string} kind */
const widthOf = (kind) => ({ guide: 1.2, steps: 6 })[kind] ?? 1.8;

/**
 * From where to where numbers go; some room about them where they don't begin at 0.
 * @param {(number | null)[]} values @param {boolean} log
 */
function spanOf(values, log) {
  const known = /** @type {number[]} */ (values.filter((v) => v !== null && (!log || v > 0)));
  if (!known.length) return log ? [1, 10] : [0, 1];
  const [low, high] = known.reduce(([a, b], v) => [Math.min(a, v), Math.max(b, v)], [known[0], known[0]]);
  if (log) return [low / 1.15, high * 1.15];
  const room = 0.06 * (high - low) || Math.abs(high) * 0.1 || 1;
  return [low >= 0 && low < room * 4 ? 0 : low - room, high + room];
}

/** @param {Header} header @param {Curve[]} curves */
function chart({ title, x: xTitle, y: yTitle, log }, curves) {
  const { width, height, left, right, top, bottom } = FRAME;
  const drawn = curves.filter(([, kind]) => kind !== "guide");
  const [from, to] = spanOf(
    drawn.flatMap(([, , x]) => x),
    log,
  );
  const [low, high] = spanOf(
    drawn.flatMap(([, , , ...ys]) => ys.flat()),
    false,
  );
  const base = height - bottom;
  const scale = log ? Math.log : (/** @type {number} */ v) => v;
  /** @param {number} v */
  const px = (v) => left + ((scale(v) - scale(from)) / (scale(to) - scale(from))) * (width - left - right);
  /** @param {number} v */
  const py = (v) => top + (1 - (v - low) / (high - low)) * (base - top);
  const text = { "font-size": 11, fill: "currentColor" };
  const xs = (log ? logTicks(from, to) : ticksOf(from, to, 5)).filter((v) => v >= from && v <= to);
  const ys = ticksOf(low, high, 5).filter((v) => v >= low && v <= high);
  const clip = freshId();
  /** A guide may leave the frame. */
  const box = svg("rect", { x: left, y: top, width: width - left - right, height: base - top });
  const shapes = order(curves).flatMap(([curve, i]) => curveShapes(curve, i, px, py, log));
  return svg(
    "svg",
    { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${title}: ${yTitle} over ${xTitle}` },
    svg("clipPath", { id: clip }, box),
    ...ys.flatMap((v) => [
      svg("path", { d: `M${left} ${py(v)}H${width - right}`, stroke: "var(--sl-edge)", opacity: 0.5 }),
      svg("text", { ...text, x: left - 5, y: py(v) + 4, "text-anchor": "end" }, new Text(short(v))),
    ]),
    ...xs.map((v) =>
      svg("text", { ...text, x: px(v), y: base + 14, "text-anchor": "middle" }, new Text(counted(v))),
    ),
    svg("path", { d: `M${left} ${top}V${base}H${width - right}`, fill: "none", stroke: "currentColor" }),
    svg("g", { "clip-path": `url(#${clip})` }, ...shapes),
    svg("text", { ...text, x: (left + width) / 2, y: height - 6, "text-anchor": "middle" }, new Text(xTitle)),
    svg(
      "text",
      { ...text, "text-anchor": "middle", transform: `translate(12 ${(top + base) / 2}) rotate(-90)` },
      new Text(yTitle),
    ),
  );
}

/**
 * Steps lie under all else, guides over the points, each with its place among the curves.
 * @param {Curve[]} curves @returns {[Curve, number][]}
 */
function order(curves) {
  const rank = (/** @type {string} */ kind) => ["steps", "points", "guide", "line"].indexOf(kind);
  const all = curves.map((curve, i) => /** @type {[Curve, number]} */ ([curve, i]));
  return all.sort(([a, i], [b, j]) => rank(a[1]) - rank(b[1]) || i - j);
}

/**
 * @param {Curve} curve @param {number} i @param {(v: number) => number} px
 * @param {(v: number) => number} py @param {boolean} log
 */
function curveShapes([name, kind, x, y, low, high], i, px, py, log) {
  const { colour, dash, mark } = lookOf(kind, i);
  const at = x.flatMap((v, k) => {
    const w = y[k];
    return v === null || w === null || (log && v <= 0) ? [] : [{ k, x: px(v), y: py(w) }];
  });
  if (kind === "points") {
    // one path for all: thousands of elements would be slow
    const d = at.map((p) => `M${p.x.toFixed(1)} ${p.y.toFixed(1)}h0`).join("");
    const dots = { stroke: colour, "stroke-width": 3.5, "stroke-linecap": "round", opacity: 0.45 };
    return [svg("path", { d, ...dots, "data-curve": name })];
  }
  const d = at
    .map((p, k) => {
      const to = `${p.x.toFixed(1)} ${p.y.toFixed(1)}`;
      if (!k) return `M${to}`;
      return kind === "steps" ? `H${p.x.toFixed(1)}V${p.y.toFixed(1)}` : `L${to}`;
    })
    .join("");
  const stroke = { fill: "none", stroke: colour, "stroke-width": widthOf(kind), "stroke-dasharray": dash };
  const shapes = [svg("path", { d, ...stroke, "data-curve": name })];
  if (kind !== "line") return shapes;
  for (const p of at) {
    const [from, to] = [low[p.k] ?? null, high[p.k] ?? null];
    if (from !== null && to !== null)
      shapes.push(svg("path", { d: `M${p.x} ${py(from)}V${py(to)}`, stroke: colour, "stroke-width": 1.5 }));
    shapes.push(svg("path", { d: mark, fill: colour, transform: `translate(${p.x} ${p.y})` }));
  }
  return shapes;
}
