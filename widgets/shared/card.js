/**
 * The card of one latent.
 * @typedef {import("../types.js").Answer} Answer
 */
import { h, svg, tokenElement, tokenName } from "./dom.js";
import { paint, percent, short, signed, spoken } from "./scales.js";

/**
 * A latent that is ever negative has two poles: each has its examples and its tokens.
 * @param {Answer} answer header {latent, label, stats, windows, vocabulary, lens, quantum}; buffers: token numbers
 *   (uint16 or uint32), values (float32, or uint8 steps of `quantum`)
 * @returns {HTMLElement}
 */
export function cardElement(answer) {
  const { header, buffers } = answer;
  const { stats } = header;
  const ids = header.wide ? new Uint32Array(buffers[0].buffer) : new Uint16Array(buffers[0].buffer);
  const values = header.quantum ? Float32Array.from(buffers[1], (v) => (v - header.zero) * header.quantum) : new Float32Array(buffers[1].buffer);
  const dead = stats.count === 0;
  const poles = stats.negative > 0;
  const title = h("header", { class: "sl-card-head" },
    h("h3", {}, h("span", { class: "sl-number" }, `#${header.latent}`), " ", h("bdi", {}, header.label || (dead ? "never fires" : ""))),
    h("dl", { class: "sl-stats" },
      ...fact("fires on", dead ? "nothing" : percent(stats.density), `${stats.count.toLocaleString("en")} of ${stats.n_rows.toLocaleString("en")} tokens`),
      ...(poles
        ? [...fact("negative", percent(stats.negative / stats.count), "of these"), ...fact("mean |value|", short(stats.mean_abs), "where it fires"), ...fact("range", `${signed(stats.min)} to ${signed(stats.max)}`, "")]
        : [...fact("mean", short(stats.mean), "where it fires"), ...fact("max", short(stats.max), "")])));
  const max = Math.max(Math.abs(stats.max), Math.abs(stats.min));
  let at = 0;
  /** @type {Record<string, HTMLElement[]>} */
  const lists = { top: [], bottom: [], quantile: [] };
  const say = poles ? signed : short;
  for (const w of header.windows) {
    lists[w.kind].push(windowElement(w, ids.subarray(at, at + w.n), values.subarray(at, at + w.n), header.vocabulary, max, say));
    at += w.n;
  }
  /** @param {string} kind @param {(string | Node)[]} title */
  const windows = (kind, ...title) => lists[kind].length ? h("section", {}, h("h4", {}, ...title), h("ol", { class: "sl-windows" }, ...lists[kind])) : null;
  return h("article", { class: "sl-card", "data-latent": header.latent, "aria-label": `latent ${header.latent}` },
    title,
    dead ? null : h("div", { class: "sl-columns" },
      h("section", {}, h("h4", {}, "Values where it fires"), histogram(stats)),
      header.lens ? h("section", {}, h("h4", {}, poles ? "Next tokens that each pole argues for, and the other against" : "Next tokens it argues for and against"), lensElement(header.lens, poles)) : null),
    poles ? windows("top", poleMark("+"), "Strongest of the positive pole") : windows("top", "Strongest"),
    windows("bottom", poleMark("−"), "Strongest of the negative pole"),
    windows("quantile", "From weak to strong"));
}

/** @param {string} sign "+" or "−" */
function poleMark(sign) {
  return h("span", { class: `sl-pole${sign === "+" ? "" : " sl-negative"}`, "aria-hidden": true }, sign);
}

/** @param {string} name @param {string} value @param {string} note */
function fact(name, value, note) {
  return [h("div", {}, h("dt", {}, name), h("dd", {}, value, note ? h("small", {}, ` ${note}`) : null))];
}

/**
 * @param {any} w {peak, value, document, stratum} @param {ArrayLike<number>} ids @param {Float32Array} values
 * @param {string[]} vocabulary @param {number} max @param {(value: number) => string} say
 */
function windowElement(w, ids, values, vocabulary, max, say) {
  const text = h("span", { class: "sl-window", dir: "ltr" });
  for (let i = 0; i < ids.length; i++) {
    const name = vocabulary[ids[i]];
    const element = tokenElement(name, { class: i === w.peak ? "sl-peak" : "", title: values[i] ? `${tokenName(name)}  ${say(values[i])}` : tokenName(name) });
    if (values[i]) paint(element, values[i], max);
    text.append(element);
  }
  return h("li", {}, h("span", { class: "sl-value" }, say(w.value)), text);
}

/** @param {any} stats */
function histogram(stats) {
  const counts = /** @type {number[]} */ (stats.histogram);
  const most = Math.max(...counts, 1);
  const step = (stats.high - stats.low) / counts.length;
  // 0 is an edge of the bins where both signs are
  const zero = Math.round(-stats.low / step);
  const both = zero > 0 && zero < counts.length;
  const bars = counts.map((count, i) => {
    // square root, so that rare strong firings stay visible beside many weak ones
    const height = count ? Math.max(1, 60 * Math.sqrt(count / most)) : 0;
    return svg("rect", { x: i * 6, y: 60 - height, width: 5, height, class: i < zero ? "sl-bar sl-negative" : "sl-bar" });
  });
  if (both) bars.push(svg("line", { x1: zero * 6 - 0.5, x2: zero * 6 - 0.5, y1: 0, y2: 60, class: "sl-zero" }));
  const picture = svg("svg", { viewBox: `0 0 ${counts.length * 6} 60`, preserveAspectRatio: "none", class: "sl-histogram", role: "img",
    "aria-label": `histogram of ${stats.count} values from ${spoken(stats.low)} to ${spoken(stats.high)}${stats.negative ? `, ${stats.negative} of them negative` : ""}` }, ...bars);
  return h("figure", {}, picture, h("figcaption", {}, h("span", {}, short(stats.low)), h("span", {}, both ? "0 at the line (height: √ of tokens)" : "activation (bar height: √ of tokens)"), h("span", {}, short(stats.high))));
}

/** @param {any} lens {top: [[token, value]], bottom, spread} @param {boolean} poles */
function lensElement(lens, poles) {
  const most = Math.max(...[...lens.top, ...lens.bottom].map((p) => Math.abs(p[1])), 1e-9);
  /** @param {[string, number][]} pairs @param {string} sign */
  const side = (pairs, sign) => h("ol", { class: `sl-logits sl-${sign}` }, ...pairs.map(([token, value]) =>
    h("li", {}, tokenElement(token), h("span", { class: "sl-logit-bar", style: { "--sl-share": `${(100 * Math.abs(value)) / most}%` } }), h("span", { class: "sl-value" }, signed(value)))));
  if (!poles) return h("div", { class: "sl-lens" }, side(lens.top, "for"), side(lens.bottom, "against"));
  // of one unit of the negative pole: what a positive one lowers, it raises
  const negative = lens.bottom.map((/** @type {[string, number]} */ [token, value]) => [token, -value]);
  return h("div", { class: "sl-lens" },
    h("div", {}, h("h5", {}, poleMark("+"), "positive pole"), side(lens.top, "for")),
    h("div", {}, h("h5", {}, poleMark("−"), "negative pole"), side(negative, "against")));
}
