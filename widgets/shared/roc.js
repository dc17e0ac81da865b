/**
 * The curve of a gate: on what shares of clean and of target inputs it opens at each threshold, with a slider
 * that moves along it.
 * @typedef {[number, number, number, number]} Share value, the ends of its interval, inputs
 * @typedef {{threshold: number[], clean: number[], target: number[], chosen: number, met: boolean,
 *   n: number[], max_clean: number, min_target: number, auroc: [number, number, number],
 *   held_out: {clean: Share, target: Share}}} Curve `saelab.analysis.steering.gate.drawn`
 */
import { h, svg } from "./dom.js";
import { percent, short } from "./scales.js";

const [SIZE, LEFT, EDGE] = [200, 34, 8];

/**
 * @param {Curve} curve
 * @param {{threshold: number | null, live: boolean, name: string, change: (threshold: number) => void}} how
 *   threshold: null for the calibrated one; change: called when the slider lets another be chosen
 */
export function rocElement(curve, { threshold, live, name, change }) {
  const picture = h("div", {});
  const said = h("small", { class: "sl-roc-said" });
  const range = /** @type {HTMLInputElement} */ (
    h("input", {
      ...{ type: "range", min: 0, max: curve.threshold.length - 1, step: 1, disabled: !live },
      "aria-label": `threshold of ${name}`,
      oninput: () => {
        draw(Number(range.value));
        change(curve.threshold[Number(range.value)]);
      },
    })
  );
  /** @param {number} i */
  function draw(i) {
    const told = pointText(curve, i);
    picture.replaceChildren(chart(curve, i, name));
    said.textContent = told;
    range.setAttribute("aria-valuetext", told);
  }
  const at = nearest(curve.threshold, threshold ?? curve.chosen);
  range.value = String(at);
  draw(at);
  const { auroc, held_out: held, max_clean: most, min_target: least } = curve;
  const kept = `${percent(most)} of clean, ${percent(least)} of target inputs`;
  const verdict = curve.met ? `calibrated to ${kept}` : `no threshold keeps ${kept}: the best is set`;
  const judged = `AUROC ${short(auroc[0])} [${short(auroc[1])}, ${short(auroc[2])}]`;
  const ends = (/** @type {Share} */ s) => `${percent(s[0])} [${percent(s[1])}, ${percent(s[2])}] of ${s[3]}`;
  const calibrated = `at the calibrated threshold clean ${ends(held.clean)}, target ${ends(held.target)}`;
  return h(
    "figure",
    { class: "sl-roc", "data-roc": name },
    picture,
    range,
    said,
    h("small", {}, verdict),
    h("small", {}, `held out: ${judged}; ${calibrated}`),
  );
}

/** What a gate does at one of its thresholds. @param {Curve} curve @param {number} i */
function pointText({ threshold, clean, target, n }, i) {
  const of = `${percent(clean[i])} of ${n[0]} clean, ${percent(target[i])} of ${n[1]} target inputs`;
  return `threshold ${short(threshold[i])}: opens on ${of} of the calibration part`;
}

/** @param {number[]} thresholds @param {number} wanted */
function nearest(thresholds, wanted) {
  let best = 0;
  thresholds.forEach((value, i) => {
    if (Math.abs(value - wanted) < Math.abs(thresholds[best] - wanted)) best = i;
  });
  return best;
}

/** @param {Curve} curve @param {number} i the threshold that is marked @param {string} name */
function chart(curve, i, name) {
  const side = SIZE - LEFT - EDGE;
  /** @param {number} share */
  const px = (share) => LEFT + share * side;
  /** @param {number} share */
  const py = (share) => EDGE + (1 - share) * side;
  const { clean, target, held_out: held } = curve;
  // from the corner where it opens on nothing, by steps
  let path = `M${px(0)} ${py(0)}`;
  clean.forEach((share, k) => {
    path += `H${px(share).toFixed(1)}V${py(target[k]).toFixed(1)}`;
  });
  const dotted = { stroke: "var(--sl-soft)", "stroke-dasharray": "2 3", fill: "none" };
  const text = { class: "sl-tick", "font-size": 10, fill: "currentColor" };
  const [x, y] = [px(held.clean[0]), py(held.target[0])];
  const known = [held.clean[0], held.target[0]].every(Number.isFinite);
  const diamond = { d: `M${x - 5} ${y}l5 -5l5 5l-5 5z`, fill: "none", stroke: "currentColor" };
  const label = `ROC of ${name}: ${pointText(curve, i)}`;
  return svg(
    "svg",
    { viewBox: `0 0 ${SIZE} ${SIZE - EDGE}`, role: "img", "aria-label": label },
    svg("path", { d: `M${px(0)} ${py(1)}V${py(0)}H${px(1)}`, fill: "none", stroke: "currentColor" }),
    svg("path", { d: `M${px(curve.max_clean)} ${py(0)}V${py(1)}`, ...dotted }),
    svg("path", { d: `M${px(0)} ${py(curve.min_target)}H${px(1)}`, ...dotted }),
    svg("path", { d: path, fill: "none", stroke: "var(--sl-accent)", "stroke-width": 2, "data-line": "roc" }),
    ...(known ? [svg("path", diamond)] : []),
    svg("circle", {
      ...{ cx: px(clean[i]), cy: py(target[i]), r: 6, fill: "none", "stroke-width": 3 },
      stroke: "var(--sl-fg)",
    }),
    ...[0, 1].flatMap((share) => [
      svg("text", { ...text, x: px(share), y: py(0) + 12, "text-anchor": "middle" }, new Text(String(share))),
      svg("text", { ...text, x: LEFT - 5, y: py(share) + 4, "text-anchor": "end" }, new Text(String(share))),
    ]),
    svg(
      "text",
      { ...text, x: px(0.5), y: py(0) + 12, "text-anchor": "middle" },
      new Text("clean inputs, share"),
    ),
    svg(
      "text",
      { ...text, x: 10, y: py(0.5), "text-anchor": "middle", transform: `rotate(-90 10 ${py(0.5)})` },
      new Text("target inputs, share"),
    ),
  );
}
