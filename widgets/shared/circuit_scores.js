/**
 * Scores of a circuit beside their controls: in a line, as it grows, and as ROC curves.
 * @typedef {{value: number | null, why?: string, interval?: [number, number], control?: number,
 *   control_interval?: [number, number], n?: number, what?: string, apart?: boolean}} Score
 */
import { counted, curvesChart, logTicks } from "./curves.js";
import { h, svg } from "./dom.js";
import { note } from "./notes.js";
import { short, signed } from "./scales.js";

/** @type {Record<string, string>} */
const MEANING = {
  replacement:
    "The share of the influence on the logits that ends in embeddings rather than in errors: 1 where all " +
    "goes through latents.",
  completeness:
    "The share of what goes into nodes that comes from latents and embeddings rather than from errors.",
};
/** Of a circuit completeness is another thing. @type {Record<string, string>} */
const OF_TASK = {
  faithfulness:
    "(score with the circuit alone − corrupt) / (clean − corrupt), on pairs that had no part in its " +
    "choice; 1: the circuit does all of the task.",
  completeness: "The same where the circuit alone is corrupt; 0: nothing does the task without it.",
};
/** Colour and dash of the curves: no two are told by colour alone. */
const LINES = [
  ["var(--sl-accent)", "none"],
  ["var(--sl-soft)", "6 3"],
  ["var(--sl-fg)", "2 3"],
  ["var(--sl-down)", "9 3 2 3"],
  ["var(--sl-up)", "4 2"],
];

/** A value with its interval. @param {number | null} value @param {[number, number] | undefined} interval */
export function within(value, interval) {
  return interval ? `${short(value)} [${short(interval[0])}, ${short(interval[1])}]` : short(value);
}

/** @param {[string, Score][]} scores @param {boolean} [ofTask] */
export function scoreLine(scores, ofTask = false) {
  const each = scores.map(([name, score]) => {
    const beside = score.what
      ? h(
          "span",
          { class: "sl-hint" },
          ` ${score.what} ${within(score.control ?? null, score.control_interval)}`,
        )
      : h("span", { class: "sl-hint" }, ` no control: ${score.why}`);
    const short_ = score.apart === false ? h("b", {}, " not apart from its control") : null;
    const value = h("b", {}, within(score.value, score.interval));
    return h(
      "div",
      { "data-score": name },
      h("span", {}, `${name} `),
      value,
      beside,
      short_,
      " ",
      note(name, (ofTask ? OF_TASK : MEANING)[name]),
    );
  });
  return h("div", { class: "sl-circuit-scores" }, ...each);
}

/**
 * Faithfulness against the number of nodes, beside random sets.
 * @param {any} header of a circuit
 */
export function growthFigure({ growth, curve, n, of, target }) {
  if (!growth.length) return null;
  const x = growth.map((/** @type {any} */ [size]) => Math.log10(size));
  /** @type {Map<number, number>} the best of each size that was tried */
  const tried = new Map();
  for (const [size, value] of curve) tried.set(size, Math.max(value, tried.get(size) ?? value));
  const sizes = [...tried.keys()];
  const take = (/** @type {(score: Score) => any} */ get) => growth.map((/** @type {any} */ [, s]) => get(s));
  const what = growth[0][1].what;
  const line = (/** @type {number} */ k, /** @type {any} */ more) => ({
    colour: LINES[k][0],
    dash: LINES[k][1],
    ...more,
  });
  const thin = { colour: "var(--sl-edge-strong)", dash: "1 3" };
  const label =
    `faithfulness by the number of nodes: ` +
    growth
      .map((/** @type {any} */ [size, s]) => `${size}: ${short(s.value)}, ${what} ${short(s.control)}`)
      .join("; ");
  const chart = curvesChart({
    label,
    x: [0, Math.log10(of)],
    mark: Math.log10(n),
    xTicks: logTicks(1, of).map((v) => [Math.log10(v), counted(v)]),
    curves: [
      { name: "from", x, y: take((s) => s.interval?.[0]), ...thin },
      { name: "to", x, y: take((s) => s.interval?.[1]), ...thin },
      { name: "random from", x, y: take((s) => s.control_interval?.[0]), ...thin },
      { name: "random to", x, y: take((s) => s.control_interval?.[1]), ...thin },
      { name: "target", x: [0, Math.log10(of)], y: [target, target], ...thin },
      line(0, { name: "largest effects", x, y: take((s) => s.value), marks: true }),
      line(1, { name: what, x, y: take((s) => s.control), marks: true }),
      line(2, {
        name: "as it was chosen",
        x: sizes.map(Math.log10),
        y: sizes.map((size) => tried.get(size)),
      }),
    ],
  });
  const names = ["largest effects, on the other pairs", what, "as it was chosen, on the pairs of the choice"];
  const rows = growth.map((/** @type {any} */ [size, s]) =>
    h(
      "tr",
      {},
      h("th", { scope: "row" }, size),
      h("td", {}, within(s.value, s.interval)),
      h("td", {}, within(s.control, s.control_interval)),
    ),
  );
  const head = ["nodes", "faithfulness", what].map((text) => h("th", { scope: "col" }, text));
  return h(
    "figure",
    { class: "sl-circuit-figure" },
    h("figcaption", {}, `Faithfulness by the number of nodes; the line: ${n} were chosen`),
    chart,
    keyOf(names.map((name, k) => [name, k])),
    h(
      "details",
      {},
      h("summary", {}, "as numbers"),
      h("table", {}, h("thead", {}, h("tr", {}, ...head)), h("tbody", {}, ...rows)),
    ),
  );
}

/**
 * ROC curves of what tells heads.
 * @param {any} header @param {Record<string, Float32Array>} fields
 */
export function rocFigure({ arms, kind, heads, of }, fields) {
  const label = `ROC curves: ${arms.map((/** @type {any} */ a) => `${a.name} ${short(a.auc)}`).join(", ")}`;
  const chart = curvesChart({
    label,
    x: [0, 1],
    curves: [
      { name: "chance", x: [0, 1], y: [0, 1], colour: "var(--sl-edge-strong)", dash: "1 3" },
      ...arms.map((/** @type {any} */ { name }, /** @type {number} */ i) => ({
        name,
        x: fields[`x${i}`],
        y: fields[`y${i}`],
        colour: LINES[i % LINES.length][0],
        dash: LINES[i % LINES.length][1],
      })),
    ],
  });
  const head = [
    `${kind}s told by`,
    "AUC",
    "what the codes have over it",
    "asked for",
    "average precision",
  ].map((text) => h("th", { scope: "col" }, text));
  const rows = arms.map((/** @type {any} */ arm, /** @type {number} */ i) =>
    h(
      "tr",
      { "data-arm": arm.name },
      h("th", { scope: "row" }, swatch(i), " ", arm.name),
      h("td", {}, within(arm.auc, arm.interval)),
      h("td", {}, arm.gain ? `${signed(arm.gain[0])} to ${signed(arm.gain[1])}` : ""),
      h("td", {}, arm.bar ? `${signed(arm.bar)}, and from above 0` : ""),
      h("td", {}, short(arm.precision)),
    ),
  );
  return h(
    "figure",
    { class: "sl-circuit-figure" },
    h(
      "figcaption",
      {},
      `ROC: shares of the ${heads} ${kind}s of the circuit (up) and of the ${of - heads} others called`,
    ),
    chart,
    h("table", {}, h("thead", {}, h("tr", {}, ...head)), h("tbody", {}, ...rows)),
  );
}

/** @param {[string, number][]} names */
function keyOf(names) {
  return h(
    "div",
    { class: "sl-hint sl-graph-legend" },
    ...names.map(([name, k]) => h("span", {}, swatch(k), ` ${name}`)),
  );
}

/** A piece of a curve's line. @param {number} k */
function swatch(k) {
  const [stroke, dash] = LINES[k % LINES.length];
  const line = svg("path", { d: "M0 5H26", stroke, "stroke-dasharray": dash, "stroke-width": 2 });
  return svg("svg", { width: 26, height: 10, "aria-hidden": "true" }, line);
}
