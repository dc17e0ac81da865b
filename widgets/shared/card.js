/**
 * The card of one latent.
 * @typedef {import("../types.js").Answer} Answer
 * @typedef {import("../types.js").Pictures} Pictures
 */
import { h, svg, tokenElement } from "./dom.js";
import { fold, relativesElement, tryElement } from "./folds.js";
import { labelElement } from "./labelling.js";
import { shadingElement } from "./pictures.js";
import { percent, short, signed, spoken } from "./scales.js";
import { windowLists } from "./windows.js";

const BAR = 6;
const HEIGHT = 60;
const FEW = 5;

/**
 * What a card can do in its view; a card that is only shown has none of it.
 * @typedef {{
 *   ask: (question: string, args: import("../types.js").Args) => Promise<Answer>,
 *   can: (question: string) => boolean,
 *   choose: (latent: number) => void,
 *   save: ((text: string) => Promise<void>) | null,
 *   state: CardState,
 *   redraw: () => void,
 * }} Doing `can`: whether a question may be answered.
 * @typedef {{compact: boolean, aligned: string, open: Set<string>, refocus: boolean, text: string}} CardState
 */

/**
 * A latent that is ever negative has two poles: each has its examples and its tokens.
 * @param {Answer} card see docs/widgets.md
 * @param {Pictures} pictures of documents that did not come along
 * @param {Doing} [doing]
 * @returns {HTMLElement}
 */
export function cardElement(card, pictures, doing) {
  const { header } = card;
  const { latent, stats } = header;
  const dead = stats.count === 0;
  const poles = stats.negative > 0;
  const say = poles ? signed : short;
  const compact = doing?.state.compact ?? false;
  /** @param {number} row */
  const whole = async (row) => {
    const answer = await /** @type {Doing} */ (doing).ask("whole", { latent, row });
    if (answer.header.reason) throw new Error(answer.header.reason);
    const lists = windowLists({ ...answer, header: { ...answer.header, stats } }, say, pictures);
    const text = /** @type {HTMLElement} */ (lists.whole[0].querySelector(".sl-window, .sl-seen"));
    text.classList.add("sl-whole");
    text.setAttribute("tabindex", "0"); // it scrolls
    text.setAttribute("role", "group");
    text.setAttribute("aria-label", "the document");
    return text;
  };
  const lists = windowLists(card, say, pictures, doing?.can("whole") ? whole : undefined);
  /** @param {HTMLElement[]} items @param {(string | Node)[]} title */
  const section = (items, ...title) =>
    items.length
      ? h("section", {}, h("h4", {}, ...title), h("ol", { class: listClass(items) }, ...items))
      : null;
  /** @param {string} kind @param {(string | Node)[]} title */
  const windows = (kind, ...title) => section(compact ? lists[kind].slice(0, FEW) : lists[kind], ...title);
  const article = h(
    "article",
    {
      class: `sl-card${compact ? " sl-compact" : ""}${doing?.state.aligned === "firing" ? " sl-firing" : ""}`,
      "data-latent": latent,
      "aria-label": `latent ${latent}`,
    },
    headElement(header, dead, poles, doing),
    dead || !doing ? null : switchesElement(doing),
    dead ? null : columnsElement(header, poles, compact),
    poles ? windows("top", poleMark("+"), "Strongest of the positive pole") : windows("top", "Strongest"),
    windows("bottom", poleMark("−"), "Strongest of the negative pole"),
    compact ? null : windows("quantile", "From weak to strong"),
  );
  const first = article.querySelector(".sl-gallery .sl-grid")?.closest("section");
  first?.before(shadingElement(article));
  if (!doing || compact || dead) return article;
  /** @param {string} kind @param {string} title @param {string} none */
  const drawn = async (kind, title, none) => {
    const answer = await doing.ask("drawn", { latent, kind });
    if (answer.header.reason) return h("p", { class: "sl-hint" }, answer.header.reason);
    const asked = { ...answer, header: { ...answer.header, stats } };
    const found = windowLists(asked, say, pictures, doing.can("whole") ? whole : undefined);
    return section(found[kind], title) ?? h("p", { class: "sl-hint" }, none);
  };
  if (doing.can("drawn"))
    article.append(
      fold(
        "drawn",
        "Random and silent rows",
        "rows not chosen by their strength: of all where it fires, and of those that show what sets " +
          "it apart though it does not fire",
        async (place) => {
          place.replaceChildren(
            await drawn("random", "Random firings", "It never fires."),
            await drawn("silent", "Silent on its tokens", "It fires wherever these are shown."),
          );
        },
        doing.state.open,
      ),
    );
  if (doing.can("relatives"))
    article.append(
      fold(
        "relatives",
        "What is near it",
        "similar and co-firing latents, hints of splitting, neurons, explanations, each beside chance",
        async (place) => {
          const { header } = await doing.ask("relatives", { latent });
          place.replaceChildren(relativesElement(header, doing.choose));
        },
        doing.state.open,
      ),
    );
  if (doing.can("tried"))
    article.append(
      fold(
        "tried",
        "Try a text",
        "the latent on a text of yours, by the model: Enter asks",
        (place) => {
          const ask = (/** @type {string} */ text) => doing.ask("tried", { latent, text });
          place.replaceChildren(tryElement(ask, doing.state));
        },
        doing.state.open,
      ),
    );
  return article;
}

/** @param {any} header @param {boolean} poles @param {boolean} compact */
function columnsElement({ stats, lens, tokens, bottom_tokens }, poles, compact) {
  const few = compact ? FEW : Number.POSITIVE_INFINITY;
  const cut = lens && { ...lens, top: lens.top.slice(0, few), bottom: lens.bottom.slice(0, few) };
  return h(
    "div",
    { class: "sl-columns" },
    histogramSection(stats),
    lens && lensSection(cut, poles),
    tokens?.length ? tokensSection(tokens.slice(0, few), poles ? "+" : "") : null,
    bottom_tokens?.length ? tokensSection(bottom_tokens.slice(0, few), "−") : null,
  );
}

/** @param {Doing} doing */
function switchesElement({ state, redraw }) {
  /** @param {string} text @param {string} title @param {boolean} pressed @param {() => void} press */
  const button = (text, title, pressed, press) =>
    h(
      "button",
      {
        type: "button",
        title,
        "aria-pressed": pressed,
        "data-switch": text,
        onclick: () => {
          press();
          redraw();
        },
      },
      text,
    );
  return h(
    "div",
    { class: "sl-switches", role: "group", "aria-label": "How the card is shown" },
    button("Compact", "fewer lines of each part (key c)", state.compact, () => {
      state.compact = !state.compact;
    }),
    button("Aligned at the firing", "or else at the line's start (key a)", state.aligned === "firing", () => {
      state.aligned = state.aligned === "firing" ? "start" : "firing";
    }),
  );
}

/**
 * What sets the latent apart.
 * @param {[string, number, number, number][]} tokens name, rows, share of its rows, lift
 * @param {string} sign of the pole
 */
function tokensSection(tokens, sign) {
  const title = sign ? [poleMark(sign), "Set apart by"] : ["Set apart by"];
  const rows = tokens.map(([name, count, share, lift]) =>
    h(
      "tr",
      {},
      h("td", {}, tokenElement(name)),
      h("td", {}, `×${short(lift)}`),
      h("td", {}, count.toLocaleString("en")),
      h("td", {}, percent(share)),
    ),
  );
  const note = {
    lift: "how many times as often as on any row",
    rows: "rows that show it where the latent fires",
    "of its rows": "share of the rows that show it",
  };
  const head = Object.entries(note).map(([name, why]) => h("th", { scope: "col", title: why }, name));
  return h(
    "section",
    {},
    h("h4", {}, ...title),
    h(
      "table",
      { class: "sl-figures" },
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "shown"), ...head)),
      h("tbody", {}, ...rows),
    ),
  );
}

/** @param {HTMLElement[]} items */
function listClass(items) {
  return items.some((item) => item.classList.contains("sl-tile")) ? "sl-windows sl-gallery" : "sl-windows";
}

/**
 * Number, label and the figures.
 * @param {any} header @param {boolean} dead @param {boolean} poles @param {Doing} [doing]
 */
function headElement({ latent, label, stats }, dead, poles, doing) {
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
      labelElement(label, dead ? "never fires" : "", doing?.save ?? null, doing?.state ?? { refocus: false }),
    ),
    h("dl", { class: "sl-stats" }, ...facts),
    dead ? null : densityElement(stats),
  );
}

/** How often it fires, on a log axis from one row to all. @param {any} stats */
function densityElement({ density, n_rows }) {
  const [wide, left] = [300, 10];
  const least = Math.min(-1, Math.floor(Math.log10(1 / n_rows)));
  /** @param {number} power */
  const at = (power) => left + (1 - power / least) * (wide - 2 * left);
  const powers = Array.from({ length: 1 - least }, (_, i) => i + least);
  const ticks = powers.flatMap((power) => {
    const x = at(power);
    const text = svg("text", { x, y: 26, "text-anchor": "middle" });
    text.textContent = `${Number((100 * 10 ** power).toPrecision(1))} %`;
    return [svg("line", { x1: x, x2: x, y1: 10, y2: 15 }), text];
  });
  const x = at(Math.log10(density));
  const axis = svg(
    "svg",
    {
      viewBox: `0 0 ${wide} 30`,
      class: "sl-density",
      role: "img",
      "aria-label": `fires on ${percent(density)} of rows, on a logarithmic axis from 1 row to all`,
    },
    svg("line", { x1: left, x2: wide - left, y1: 12, y2: 12 }),
    ...ticks,
    svg("path", { d: `M${x} 13l-4 -9h8z`, class: "sl-pointer" }),
  );
  return h("figure", { class: "sl-how-often" }, axis, h("figcaption", {}, "share of rows, log scale"));
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
