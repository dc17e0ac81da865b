/**
 * What edits do, arm by arm: figures with their intervals, beside a control.
 * @typedef {[number | null, number | null, number | null]} Figure value, and the ends of its interval
 */
import { h, tokenElement } from "./dom.js";
import { percent, short } from "./scales.js";

/** What a figure is called, and whether it is a share. */
const MEASURES = /** @type {Record<string, [string, boolean]>} */ ({
  target: ["target", true],
  "target any": ["continuations with any", true],
  identical: ["left bit-identical", true],
  touched: ["positions edited", true],
  loss: ["loss, nats", false],
  perplexity: ["perplexity", false],
  "perplexity ratio": ["perplexity, × before", false],
  kl: ["KL from before, nats", false],
  output: ["output moved, of its length", true],
  norm: ["norm, × natural", false],
  mahalanobis: ["Mahalanobis, × natural", false],
  nearest: ["nearest natural, × usual", false],
  "distinct 2": ["distinct pairs of words", true],
  "repetition 4": ["repeated fours of words", true],
});
/** How far edited activations are from natural ones. */
const METER = ["norm", "mahalanobis", "nearest"];
const JUDGES = /** @type {Record<string, string>} */ ({
  words: "words of the target, of all",
  gate: "continuations in which the gate finds it",
  function: "target",
});
const KINDS = /** @type {Record<string, string>} */ ({
  erased: "is erased",
  kept: "should stay",
  clean: "should stay as they are",
});

/**
 * The figures of some samples.
 * @param {{title: string, kind: string, n: number, rows: {measure: string, arms: Record<string, Figure>}[],
 *   texts: string[][]}} group
 * @param {string[]} arms in their order
 * @param {string} [judge] of the target
 */
export function groupElement({ title, kind, n, rows, texts }, arms, judge) {
  const far = rows.filter((row) => METER.includes(row.measure) && row.arms.after?.[0] !== null);
  const own = rows.filter((row) => !METER.includes(row.measure));
  const parts = [figures(own, arms, judge)];
  if (far.length) parts.push(h("h3", {}, "how far from natural activations"), figures(far, arms));
  if (texts.length) parts.push(written(texts, arms));
  const heading = h("h2", {}, h("bdi", {}, title), h("small", {}, ` ${KINDS[kind]}, ${n} held-out samples`));
  return h("section", { class: "sl-group", "data-group": title, "data-kind": kind }, heading, ...parts);
}

/**
 * @param {{measure: string, arms: Record<string, Figure | null>}[]} rows @param {string[]} arms
 * @param {string} [judge]
 */
function figures(rows, arms, judge) {
  const lines = rows.map((row) => {
    const [name, share] = MEASURES[row.measure] ?? [row.measure, false];
    const write = share && !(row.measure === "target" && judge === "function") ? percent : short;
    const called = row.measure === "target" && judge ? JUDGES[judge] : name;
    const cells = arms.map((arm) => h("td", {}, ...figure(row.arms[arm], write)));
    return h("tr", { "data-measure": row.measure }, h("th", { scope: "row" }, called), ...cells);
  });
  return h("table", {}, h("tr", {}, h("td", {}), ...heads(arms)), ...lines);
}

/** @param {Figure | null | undefined} given @param {(v: number | null) => string} write */
function figure(given, write) {
  if (!given || given[0] === null) return ["–"];
  const [value, low, high] = given;
  const known = low !== null && high !== null && low !== high;
  return [write(value), known ? h("small", {}, ` [${write(low)}, ${write(high)}]`) : null].filter(
    (each) => each !== null,
  );
}

/** @param {string[]} arms */
function heads(arms) {
  return arms.map((arm) => h("th", { scope: "col" }, arm));
}

/** Continuations of the first samples. @param {string[][]} texts @param {string[]} arms */
function written(texts, arms) {
  const rows = texts.map(([title, ...each]) => {
    const cells = each.map((text) => h("td", {}, tokenElement(text, {}, true)));
    return h("tr", {}, h("th", { scope: "row" }, h("bdi", {}, title)), ...cells);
  });
  const head = h("tr", {}, h("th", { scope: "col" }, "sample"), ...heads(arms));
  const table = h("table", { class: "sl-continued" }, head, ...rows);
  return h("details", {}, h("summary", {}, `what is written after ${texts.length} of them`), table);
}

/**
 * What edits do to the output of one sample. @param {any} compared answer to "compared"
 */
export function comparedPanel({ rows, top }) {
  const arms = ["before", "after", "random latents"];
  const of = rows.map((/** @type {any} */ row) => ({
    measure: row.measure,
    arms: Object.fromEntries(arms.map((arm, i) => [arm, [row.arms[i], null, null]])),
  }));
  const shown = [
    h("section", { "data-compared": "figures" }, h("h3", {}, "This sample, read"), figures(of, arms)),
  ];
  if (top.length) {
    const lines = top.map((/** @type {any[]} */ [name, ...values]) =>
      h("tr", {}, h("td", {}, tokenElement(name)), ...values.map((v) => h("td", {}, short(v)))),
    );
    const head = h("tr", {}, h("th", { scope: "col" }, "output"), ...heads(arms));
    const section = h("section", { "data-compared": "top" }, h("h3", {}, "Outputs that change most"));
    section.append(h("table", {}, head, ...lines));
    shown.push(section);
  }
  return shown;
}
