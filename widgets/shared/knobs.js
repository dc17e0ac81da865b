/**
 * The controls of one latent: its strength, and the threshold of its gate over its histogram.
 * @typedef {{scale: "max" | "norm" | "unit", gated: boolean, curve: any, live: boolean, name: string,
 *   change: () => void, remove: () => void}} How
 */
import { h, svg } from "./dom.js";
import { rocElement } from "./roc.js";
import { short } from "./scales.js";

/** Where a slider ends, by the unit of strengths; it has 160 steps. */
const ENDS = { max: 4, norm: 1, unit: 10 };

/**
 * @param {{latent: number, alpha: number, threshold: number}} knob changed in place
 * @param {any} facts answer to "knob"
 * @param {How} how
 */
export function knobElement(knob, facts, { scale, gated, curve, live, name, change, remove }) {
  const called = `latent ${knob.latent}`;
  const most = Math.max(ENDS[scale], Math.abs(knob.alpha));
  const range = /** @type {HTMLInputElement} */ (
    h("input", {
      ...{ type: "range", min: -most, max: most, step: most / 80, value: knob.alpha },
      "aria-label": `strength of ${called}`,
      oninput: () => set(Number(range.value)),
    })
  );
  const box = /** @type {HTMLInputElement} */ (
    h("input", {
      ...{ type: "number", step: "any", value: knob.alpha, disabled: !live },
      "aria-label": `strength of ${called} as a number`,
      onchange: () => box.value !== "" && set(Number(box.value)),
    })
  );
  /** @param {number} alpha */
  function set(alpha) {
    knob.alpha = alpha;
    range.value = String(alpha);
    box.value = String(alpha);
    change();
  }
  const away = h(
    "button",
    { type: "button", onclick: remove, disabled: !live, "aria-label": `take ${called} out` },
    "×",
  );
  const title = h("span", {}, h("span", { class: "sl-number" }, `#${knob.latent} `), h("bdi", {}, name));
  const head = h("div", { class: "sl-fields" }, title, box, away);
  const gate = gated ? gateElement(knob, facts, { curve, live, change }) : null;
  const largest = facts.max === null ? null : h("small", {}, `largest activation ${short(facts.max)}`);
  return h("div", { class: "sl-knob", "data-knob": knob.latent }, head, range, gate, largest);
}

/**
 * The threshold, over the latent's histogram and, where texts were given, on its ROC curve.
 * @param {{latent: number, threshold: number}} knob @param {any} facts
 * @param {Pick<How, "curve" | "live" | "change">} how
 */
function gateElement(knob, facts, { curve, live, change }) {
  const picture = h("div", { class: "sl-bars", "aria-hidden": true });
  const draw = () => picture.replaceChildren(...(facts.histogram ? [histogram(facts, knob.threshold)] : []));
  const box = /** @type {HTMLInputElement} */ (
    h("input", {
      ...{ type: "number", min: 0, step: "any", value: knob.threshold, disabled: !live },
      onchange: () => {
        set(Number(box.value));
        drawRoc();
      },
    })
  );
  /** @param {number} threshold */
  function set(threshold) {
    knob.threshold = threshold;
    box.value = String(threshold);
    draw();
    change();
  }
  const label = h("label", {}, `threshold of latent ${knob.latent} `, box);
  const known = Boolean(curve?.threshold);
  const measured = known
    ? h(
        "button",
        {
          ...{ type: "button", disabled: !live },
          onclick: () => {
            set(curve.chosen);
            drawRoc();
          },
        },
        "calibrated one",
      )
    : null;
  const roc = h("div", {});
  function drawRoc() {
    const how = { threshold: knob.threshold, live, name: `latent ${knob.latent}`, change: set };
    if (known) roc.replaceChildren(rocElement(curve, how));
  }
  draw();
  drawRoc();
  return h("div", { class: "sl-gate" }, picture, h("div", { class: "sl-fields" }, label, measured), roc);
}

/** How strongly the latent fires in its store, and where the threshold lies. */
function histogram(/** @type {any} */ { histogram: counts, edges }, /** @type {number} */ threshold) {
  const most = Math.max(1, ...counts);
  const [width, height] = [200, 40];
  const bars = counts.map((/** @type {number} */ n, /** @type {number} */ i) => {
    const tall = height * Math.sqrt(n / most);
    const place = { x: (i * width) / counts.length, y: height - tall, height: tall };
    return svg("rect", { ...place, width: width / counts.length - 1, fill: "var(--sl-edge)" });
  });
  const share = (threshold - edges[0]) / (edges[1] - edges[0] || 1);
  const x = width * Math.min(1, Math.max(0, share));
  const line = svg("path", { d: `M${x} 0V${height}`, stroke: "var(--sl-accent)", "stroke-width": 2 });
  return svg("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none" }, ...bars, line);
}
