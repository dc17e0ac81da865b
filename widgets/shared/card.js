/**
 * The card of one latent.
 * @typedef {import("../types.js").Answer} Answer
 * @typedef {import("../types.js").Pictures} Pictures
 */
import { h, svg, tokenElement } from "./dom.js";
import { percent, short, signed, spoken } from "./scales.js";
import { windowLists } from "./windows.js";

const BAR = 6;
const HEIGHT = 60;

/**
 * A latent that is ever negative has two poles: each has its examples and its tokens.
 * @param {Answer} card see docs/widgets.md
 * @param {Pictures} pictures of documents that did not come along
 * @returns {HTMLElement}
 */
export function cardElement(card, pictures) {
  const { header } = card;
  const { latent, stats, lens } = header;
  const dead = stats.count === 0;
  const poles = stats.negative > 0;
  const lists = windowLists(card, poles ? signed : short, pictures);
  /** @param {string} kind @param {(string | Node)[]} title */
  const windows = (kind, ...title) =>
    lists[kind].length
      ? h("section", {}, h("h4", {}, ...title), h("ol", { class: listClass(lists[kind]) }, ...lists[kind]))
      : null;
  return h(
    "article",
    { class: "sl-card", "data-latent": latent, "aria-label": `latent ${latent}` },
    headElement(header, dead, poles),
    dead
      ? null
      : h("div", { class: "sl-columns" }, histogramSection(stats), lens && lensSection(lens, poles)),
    poles ? windows("top", poleMark("+"), "Strongest of the positive pole") : windows("top", "Strongest"),
    windows("bottom", poleMark("−"), "Strongest of the negative pole"),
    windows("quantile", "From weak to strong"),
  );
}

/** @param {HTMLElement[]} items */
function listClass(items) {
  return items.some((item) => item.classList.contains("sl-tile")) ? "sl-windows sl-gallery" : "sl-windows";
}

/** Number, label and the figures. @param {any} header @param {boolean} dead @param {boolean} poles */
function headElement({ latent, label, stats }, dead, poles) {
  const of = `${stats.count.toLocaleString("en")} of ${stats.n_rows.toLocaleString("en")} rows`;
  const facts = [fact("fires on", dead ? "nothing" : percent(stats.density), of)];
  if (poles) {
    facts.push(fact("negative", percent(stats.negative / stats.count), "of these"));
    facts.push(fact("mean |value|", short(stats.mean_abs), "where it fires"));
    facts.push(fact("range", `${signed(stats.min)} to ${signed(stats.max)}`));
  } else {
    facts.push(fact("mean", short(stats.mean), "where it fires"), fact("max", short(stats.max)));
  }
  return h(
    "header",
    { class: "sl-card-head" },
    h(
      "h3",
      {},
      h("span", { class: "sl-number" }, `#${latent}`),
      " ",
      h("bdi", {}, label || (dead ? "never fires" : "")),
    ),
    h("dl", { class: "sl-stats" }, ...facts),
  );
}

/** @param {string} name @param {string} value @param {string} [note] */
function fact(name, value, note) {
  return h("div", {}, h("dt", {}, name), h("dd", {}, value, note ? h("small", {}, ` ${note}`) : null));
}

/** @param {string} sign "+" or "−" */
function poleMark(sign) {
  return h("span", { class: `sl-pole${sign === "+" ? "" : " sl-negative"}`, "aria-hidden": true }, sign);
}

/** @param {any} stats */
function histogramSection(stats) {
  if (!stats.histogram.length) return null; // an export may say none
  return h("section", {}, h("h4", {}, "Values where it fires"), histogram(stats));
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
    const height = count ? Math.max(1, HEIGHT * Math.sqrt(count / most)) : 0;
    const className = i < zero ? "sl-bar sl-negative" : "sl-bar";
    return svg("rect", { x: i * BAR, y: HEIGHT - height, width: BAR - 1, height, class: className });
  });
  const at = zero * BAR - 0.5;
  if (both) bars.push(svg("line", { x1: at, x2: at, y1: 0, y2: HEIGHT, class: "sl-zero" }));
  const range = `${stats.count} values from ${spoken(stats.low)} to ${spoken(stats.high)}`;
  const negative = stats.negative ? `, ${stats.negative} of them negative` : "";
  const picture = svg(
    "svg",
    {
      viewBox: `0 0 ${counts.length * BAR} ${HEIGHT}`,
      preserveAspectRatio: "none",
      class: "sl-histogram",
      role: "img",
      "aria-label": `histogram of ${range}${negative}`,
    },
    ...bars,
  );
  const what = both ? "0 at the line (height: √ of rows)" : "activation (bar height: √ of rows)";
  const caption = [short(stats.low), what, short(stats.high)].map((text) => h("span", {}, text));
  return h("figure", {}, picture, h("figcaption", {}, ...caption));
}

/** @param {any} lens @param {boolean} poles */
function lensSection(lens, poles) {
  const title = poles
    ? "Next tokens that each pole argues for, and the other against"
    : "Next tokens it argues for and against";
  return h("section", {}, h("h4", {}, title), lensElement(lens, poles));
}

/** @param {any} lens {top: [[token, value]], bottom, spread} @param {boolean} poles */
function lensElement(lens, poles) {
  /** @typedef {[string, number][]} Pairs */
  const most = Math.max(...[...lens.top, ...lens.bottom].map((pair) => Math.abs(pair[1])), 1e-9);
  /** @param {Pairs} pairs @param {string} sign */
  const side = (pairs, sign) =>
    h("ol", { class: `sl-logits sl-${sign}` }, ...pairs.map((pair) => logitElement(pair, most)));
  if (!poles) return h("div", { class: "sl-lens" }, side(lens.top, "for"), side(lens.bottom, "against"));
  // of one unit of the negative pole: what a positive one lowers, it raises
  const negative = /** @type {Pairs} */ (lens.bottom).map(([token, value]) => [token, -value]);
  return h(
    "div",
    { class: "sl-lens" },
    h("div", {}, h("h5", {}, poleMark("+"), "positive pole"), side(lens.top, "for")),
    h(
      "div",
      {},
      h("h5", {}, poleMark("−"), "negative pole"),
      side(/** @type {Pairs} */ (negative), "against"),
    ),
  );
}

/** @param {[string, number]} pair @param {number} most */
function logitElement([token, value], most) {
  const share = `${(100 * Math.abs(value)) / most}%`;
  const bar = h("span", { class: "sl-logit-bar", style: { "--sl-share": share } });
  return h("li", {}, tokenElement(token), bar, h("span", { class: "sl-value" }, signed(value)));
}
