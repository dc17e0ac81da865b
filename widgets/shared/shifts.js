/** What an edit does to the next token, beside its control: tables, a meter, and curves over strengths. */
import { h, tokenElement, tokenName } from "./dom.js";
import { linesChart } from "./plot.js";
import { percent, short } from "./scales.js";

/** Of what is usual of natural activations, but for the norm, which is of the same one before. */
const FAR = { norm: "norm", mahalanobis: "Mahalanobis distance", nearest: "distance to the nearest natural" };

/** @param {any} shifts answer to "shifts" */
export function shiftPanel({ rises, falls, kl, meter, moved, positions }) {
  if (!rises.length && !falls.length) return [h("p", { class: "sl-hint" }, "The next token is as without.")];
  const ratios = Object.entries(meter).flatMap(([hook, [own, control]]) =>
    Object.entries(FAR)
      .filter(([name]) => name in own)
      .map(([name, said]) =>
        h("li", {}, `${said} at ${hook}: × ${short(own[name])} (random direction × ${short(control[name])})`),
      ),
  );
  const far = h(
    "section",
    { class: "sl-meter-of" },
    h("h4", {}, "How far from natural"),
    h(
      "ul",
      {},
      h("li", {}, `moved: ${moved} of ${positions} positions of the prompt`),
      ...ratios,
      h("li", {}, `next token: KL ${short(kl[0])} nats (random direction ${short(kl[1])})`),
    ),
  );
  return [table("Likelier next tokens", rises), table("Less likely", falls), far];
}

/** @param {string} title @param {[string, number, number, number][]} rows */
function table(title, rows) {
  const head = ["token", "plain", "steered", "random"].map((name) => h("th", { scope: "col" }, name));
  const lines = rows.map(([token, ...chances]) =>
    h("tr", {}, h("td", {}, tokenElement(token)), ...chances.map((p) => h("td", {}, percent(p)))),
  );
  const body = h("table", {}, h("tr", {}, ...head), ...lines);
  return h("section", { "data-shifts": title }, h("h4", {}, title), body);
}

/** @param {any} dose answer to "dose" */
export function dosePanel({ factors, token, kl, chance }) {
  if (!factors.length) return [];
  return [
    curve("KL of the next token, nats", factors, kl, short),
    curve(`probability of ${tokenName(token)}`, factors, chance, percent),
  ];
}

/**
 * @param {string} what @param {number[]} factors @param {Record<string, number[]>} lines
 * @param {(v: number) => string} write
 */
function curve(what, factors, lines, write) {
  const said = Object.entries(lines).map(
    ([name, values]) => `${name} ${values.map((v, i) => `${write(v)} at ×${short(factors[i])}`).join(", ")}`,
  );
  const label = `${what} over multiples of the strengths: ${said.join("; ")}`;
  const legend = h("small", {}, "solid: steered; dashed: random direction of the same size");
  return h("figure", { class: "sl-dose" }, h("h4", {}, what), linesChart(label, factors, lines, 1), legend);
}
