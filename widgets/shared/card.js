/**
 * The card of one latent.
 * @typedef {import("../types.js").Answer} Answer
 */
import { h, svg, tokenElement, tokenName } from "./dom.js";
import { paint, percent, short } from "./scales.js";

/**
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
  const title = h("header", { class: "sl-card-head" },
    h("h3", {}, h("span", { class: "sl-number" }, `#${header.latent}`), " ", h("bdi", {}, header.label || (dead ? "never fires" : ""))),
    h("dl", { class: "sl-stats" },
      ...fact("fires on", dead ? "nothing" : percent(stats.density), `${stats.count.toLocaleString("en")} of ${stats.n_rows.toLocaleString("en")} tokens`),
      ...fact("mean", short(stats.mean), "where it fires"),
      ...fact("max", short(stats.max), stats.min < 0 ? `min ${short(stats.min)}` : "")));
  const max = Math.max(Math.abs(stats.max), Math.abs(stats.min));
  let at = 0;
  /** @type {Record<string, HTMLElement[]>} */
  const lists = { top: [], quantile: [] };
  for (const w of header.windows) {
    lists[w.kind].push(windowElement(w, ids.subarray(at, at + w.n), values.subarray(at, at + w.n), header.vocabulary, max));
    at += w.n;
  }
  return h("article", { class: "sl-card", "data-latent": header.latent, "aria-label": `latent ${header.latent}` },
    title,
    dead ? null : h("div", { class: "sl-columns" },
      h("section", {}, h("h4", {}, "Values where it fires"), histogram(stats)),
      header.lens ? h("section", {}, h("h4", {}, "Next tokens it argues for and against"), lensElement(header.lens)) : null),
    lists.top.length ? h("section", {}, h("h4", {}, "Strongest"), h("ol", { class: "sl-windows" }, ...lists.top)) : null,
    lists.quantile.length ? h("section", {}, h("h4", {}, "From weak to strong"), h("ol", { class: "sl-windows" }, ...lists.quantile)) : null);
}

/** @param {string} name @param {string} value @param {string} note */
function fact(name, value, note) {
  return [h("div", {}, h("dt", {}, name), h("dd", {}, value, note ? h("small", {}, ` ${note}`) : null))];
}

/**
 * @param {any} w {peak, value, document, stratum} @param {ArrayLike<number>} ids @param {Float32Array} values
 * @param {string[]} vocabulary @param {number} max
 */
function windowElement(w, ids, values, vocabulary, max) {
  const text = h("span", { class: "sl-window", dir: "ltr" });
  for (let i = 0; i < ids.length; i++) {
    const name = vocabulary[ids[i]];
    const element = tokenElement(name, { class: i === w.peak ? "sl-peak" : "", title: values[i] ? `${tokenName(name)}  ${short(values[i])}` : tokenName(name) });
    if (values[i]) paint(element, values[i], max);
    text.append(element);
  }
  return h("li", {}, h("span", { class: "sl-value" }, short(w.value)), text);
}

/** @param {any} stats */
function histogram(stats) {
  const counts = /** @type {number[]} */ (stats.histogram);
  const most = Math.max(...counts, 1);
  const bars = counts.map((count, i) => {
    // square root, so that rare strong firings stay visible beside many weak ones
    const height = count ? Math.max(1, 60 * Math.sqrt(count / most)) : 0;
    return svg("rect", { x: i * 6, y: 60 - height, width: 5, height, class: "sl-bar" });
  });
  const picture = svg("svg", { viewBox: `0 0 ${counts.length * 6} 60`, preserveAspectRatio: "none", class: "sl-histogram", role: "img",
    "aria-label": `histogram of ${stats.count} values from ${short(stats.low)} to ${short(stats.high)}` }, ...bars);
  return h("figure", {}, picture, h("figcaption", {}, h("span", {}, short(stats.low)), h("span", {}, "activation (bar height: √ of tokens)"), h("span", {}, short(stats.high))));
}

/** @param {any} lens {top: [[token, value]], bottom, spread} */
function lensElement(lens) {
  const most = Math.max(...[...lens.top, ...lens.bottom].map((p) => Math.abs(p[1])), 1e-9);
  /** @param {[string, number][]} pairs @param {string} sign */
  const side = (pairs, sign) => h("ol", { class: `sl-logits sl-${sign}` }, ...pairs.map(([token, value]) =>
    h("li", {}, tokenElement(token), h("span", { class: "sl-logit-bar", style: { "--sl-share": `${(100 * Math.abs(value)) / most}%` } }), h("span", { class: "sl-value" }, `${value > 0 ? "+" : "−"}${short(Math.abs(value))}`))));
  return h("div", { class: "sl-lens" }, side(lens.top, "for"), side(lens.bottom, "against"));
}
