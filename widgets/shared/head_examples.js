/**
 * What the chosen head does over a corpus: its strongest sequences beside drawn ones, the tokens that it
 * looks at and from, what its pattern is like, and how far back it goes; each beside even attention.
 * @typedef {import("../types.js").Answer} Answer
 * @typedef {import("../types.js").View} View
 * @typedef {import("./head_facts.js").HeadFacts} HeadFacts
 * @typedef {{document: number, interval: number, strongest: number, best: [number, number] | null,
 *   names: (string | null)[], pairs: Uint16Array, weights: Uint16Array}} Sequence
 */
import { curvesChart } from "./curves.js";
import { h, tokenElement, tokenName } from "./dom.js";
import { WHOLE } from "./head_pattern.js";
import { HeadText } from "./head_text.js";
import { percent, short } from "./scales.js";
import { reasonOf } from "./view.js";

/** Sequences of a kind that are shown at first, and tokens around the strongest edge. */
const [FIRST, AROUND] = [5, 12];

export class HeadExamples {
  /** @param {View} view @param {HeadFacts} facts */
  constructor(view, facts) {
    this.view = view;
    this.facts = facts;
    /** @type {Map<number, Answer>} by the number of the head */
    this.known = new Map();
    this.element = h("div", { class: "sl-examples" });
  }

  /** Show the chosen head; the first that is asked for has the corpus read. */
  async load() {
    const { at } = this.facts;
    if (at < 0) {
      this.element.replaceChildren(h("p", { class: "sl-hint" }, "Choose a head in the grid."));
      return;
    }
    const known = this.known.get(at);
    if (known) {
      this.draw(known);
      return;
    }
    const [layer, head] = [this.view.option("layer"), this.view.option("head")];
    this.element.setAttribute("aria-busy", "true");
    const waiting = h("p", { class: "sl-hint", role: "status" }, "Reading the corpus…");
    if (!this.element.firstChild) this.element.append(waiting);
    try {
      const answer = await this.view.request("examples", { layer, head });
      this.known.set(at, answer);
      if (at === this.facts.at) this.draw(answer);
    } catch (error) {
      if (at !== this.facts.at) return;
      this.element.replaceChildren(h("p", { class: "sl-hint", role: "alert" }, reasonOf(error)));
    } finally {
      if (at === this.facts.at) this.element.removeAttribute("aria-busy");
    }
  }

  /** @param {Answer} answer */
  draw(answer) {
    const { header } = answer;
    const { n, corpus, measures, intervals } = header;
    const said = `${n.toLocaleString("en")} sequences of ${corpus}.`;
    const figures = h(
      "div",
      { class: "sl-example-figures" },
      h("div", {}, ...tokenTable("looks at", header.keys), ...tokenTable("looks from", header.queries)),
      h("div", {}, measureTable(measures), awayChart(header), ...strongestChart(header)),
    );
    const sequences = sequencesOf(answer);
    const [high, low, drawn] = [
      sequences.filter((each) => each.interval === intervals),
      sequences.filter((each) => each.interval && each.interval < intervals),
      sequences.filter((each) => !each.interval),
    ];
    this.element.replaceChildren(
      h("p", { class: "sl-hint" }, `Head ${this.facts.headName} over ${said}`),
      figures,
      ...listed("Strongest sequences", high),
      ...listed("Sequences of lower intervals", low, intervals),
      ...listed("Drawn sequences, of all that were read", drawn),
    );
  }
}

/** @param {Answer} answer @returns {Sequence[]} */
function sequencesOf({ header, fields }) {
  let [token, edge] = [0, 0];
  return header.sequences.map((/** @type {any} */ each) => {
    const names = fields.names.slice(token, token + each.tokens);
    const pairs = fields.pairs.subarray(2 * edge, 2 * (edge + each.edges));
    const weights = fields.weights.subarray(edge, edge + each.edges);
    token += each.tokens;
    edge += each.edges;
    return { ...each, names, pairs, weights };
  });
}

/**
 * @param {string} title @param {Sequence[]} sequences
 * @param {number} [intervals] named where there are several
 * @returns {Node[]}
 */
function listed(title, sequences, intervals) {
  if (!sequences.length) return [];
  const list = h("ol", { class: "sl-example-list", "aria-label": title });
  const add = (/** @type {Sequence[]} */ some) =>
    list.append(...some.map((each) => h("li", {}, ...sequenceParts(each, intervals))));
  add(sequences.slice(0, FIRST));
  const left = sequences.slice(FIRST);
  /** @type {Node[]} */
  const parts = [h("h3", {}, title), list];
  if (left.length) {
    const more = h("button", { type: "button" }, `${left.length} more`);
    more.addEventListener("click", () => {
      add(left);
      more.remove();
    });
    parts.push(more);
  }
  return parts;
}

/** @param {Sequence} sequence @param {number} [intervals] @returns {Node[]} */
function sequenceParts(sequence, intervals) {
  const { document: number, interval, strongest, best, names } = sequence;
  const within = intervals ? `, interval ${interval} of ${intervals}` : "";
  const from = best ? ` from «${tokenName(names[best[0]])}» to «${tokenName(names[best[1]])}»` : "";
  const said = h(
    "span",
    {},
    h("b", {}, short(strongest)),
    h("bdi", {}, from),
    h("small", {}, ` document ${number}${within}`),
  );
  const place = h("div", {});
  const [start, end] = best ? [Math.max(0, best[1] - AROUND), best[0] + 1 + AROUND] : [0, 2 * AROUND];
  const cut = start > 0 || end < names.length;
  const show = (/** @type {number} */ from, /** @type {number} */ to) =>
    place.replaceChildren(sequenceText(sequence, from, Math.min(to, names.length)));
  show(start, end);
  const head = h("div", { class: "sl-example-head" }, said);
  if (cut) {
    const whole = h("button", { type: "button", "aria-pressed": false }, "whole");
    whole.addEventListener("click", () => {
      const now = whole.getAttribute("aria-pressed") !== "true";
      whole.setAttribute("aria-pressed", String(now));
      show(now ? 0 : start, now ? names.length : end);
    });
    head.append(whole);
  }
  return [head, place];
}

/**
 * Tokens of a sequence, shaded by where the chosen one looks.
 * @param {Sequence} sequence @param {number} start @param {number} end
 */
function sequenceText({ best, names, pairs, weights }, start, end) {
  const text = new HeadText(names.slice(start, end), (at) => look(start + at));
  const look = (/** @type {number} */ query) => {
    const values = new Float32Array(end - start);
    for (let i = 0; i < weights.length; i++) {
      const key = pairs[2 * i + 1] - start;
      if (pairs[2 * i] === query && key >= 0 && key < end - start) values[key] = weights[i] / WHOLE;
    }
    text.draw(query - start, values, 1, (at) => `${short(values[at])} of ${start + at}`);
  };
  look(best ? best[0] : -1);
  return text.element;
}

/**
 * @param {string} title @param {[string, number, number | null, number | null, number, boolean][]} tokens
 * @returns {Node[]}
 */
function tokenTable(title, tokens) {
  if (!tokens.length) return [h("h3", {}, title), h("p", {}, "No token above even attention.")];
  const rows = tokens.map(([token, share, low, high, even, apart]) =>
    h(
      "tr",
      apart ? {} : { class: "sl-not-apart" },
      h("th", { scope: "row" }, tokenElement(token)),
      h("td", {}, percent(share)),
      h("td", {}, low === null || high === null ? "" : `[${percent(low)}, ${percent(high)}]`),
      h("td", {}, percent(even)),
      h("td", {}, apart ? "" : "not above even"),
    ),
  );
  return [h("h3", {}, title), table(["token", "share", "95 %", "of even attention", ""], rows)];
}

/** @param {[string, number | null, number | null, number | null, number | null][]} measures */
function measureTable(measures) {
  const told = (/** @type {number | null} */ value) => (value === null ? "" : short(value));
  const rows = measures.map(([what, value, low, high, even]) =>
    h(
      "tr",
      {},
      h("th", { scope: "row" }, what),
      h("td", {}, told(value)),
      h("td", {}, low === null ? "" : `[${told(low)}, ${told(high)}]`),
      h("td", {}, told(even)),
    ),
  );
  return table(["measure", "mean", "95 %", "of even attention"], rows);
}

/** @param {string[]} names @param {Node[]} rows */
function table(names, rows) {
  const head = h("tr", {}, ...names.map((name) => (name ? h("th", { scope: "col" }, name) : h("td", {}))));
  return h("table", { class: "sl-example-table" }, h("thead", {}, head), h("tbody", {}, ...rows));
}

/** How far back a head looks. @param {Record<string, any>} header */
function awayChart({ away, even, edges }) {
  const last = Math.max(
    ...away.map((/** @type {number | null} */ v, /** @type {number} */ i) => (v ? i : 1)),
  );
  const x = Array.from({ length: last }, (_, i) => i + 1); // nothing goes back by none
  const y = (/** @type {(number | null)[]} */ all) => x.map((i) => all[i] ?? Number.NaN);
  return h(
    "div",
    {},
    h("h3", {}, "how far back its weight goes, in tokens"),
    curvesChart({
      label: "share of the weight by distance, beside even attention (dashed)",
      curves: [
        { name: "head", x, y: y(away), colour: "var(--sl-accent)", marks: true },
        { name: "even attention", x, y: y(even), colour: "var(--sl-soft)", dash: "5 4" },
      ],
      x: [1, Math.max(2, last)],
      xTicks: x.map((i) => [i, String(edges[i])]),
    }),
  );
}

/** Sequences by their strongest weight. @param {Record<string, any>} header @returns {Node[]} */
function strongestChart({ strongest, bins }) {
  if (!strongest.length) return [];
  const x = strongest.map((/** @type {number} */ _, /** @type {number} */ i) => (bins[i] + bins[i + 1]) / 2);
  const chart = curvesChart({
    label: "sequences by their strongest weight",
    curves: [{ name: "sequences", x, y: strongest, colour: "var(--sl-accent)", steps: true }],
    x: [bins[0], bins[bins.length - 1]],
  });
  return [h("h3", {}, "sequences by their strongest weight"), chart];
}
