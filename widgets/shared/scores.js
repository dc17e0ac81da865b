/**
 * Scores of two SAEs, each beside an untrained one, measured where they are asked for.
 * @typedef {import("../types.js").View} View
 */
import { h } from "./dom.js";
import { short } from "./scales.js";

/** @param {View} view */
export function scorePart(view) {
  const place = h("div", { "aria-live": "polite" });
  const show = async () => {
    place.replaceChildren(h("p", { class: "sl-hint" }, "measuring…"));
    place.setAttribute("aria-busy", "true");
    const answer = await view.ask("scores");
    place.removeAttribute("aria-busy");
    place.replaceChildren(
      ...(answer ? [scoreTable(answer.header), button("measure again")] : [button("measure")]),
    );
  };
  const button = (/** @type {string} */ text) =>
    h("button", { type: "button", "data-scores": true, onclick: show }, text);
  if (view.live) place.append(button("measure"));
  else
    view.request("scores").then(
      (answer) => place.replaceChildren(scoreTable(answer.header)),
      () => place.replaceChildren(h("p", { class: "sl-hint" }, "They were not measured for this page.")),
    );
  const note =
    "On the first documents of the first SAE's store, each beside an untrained SAE; 95 % intervals.";
  return h(
    "section",
    { "aria-label": "scores" },
    h("h4", {}, "Scores"),
    h("p", { class: "sl-hint" }, note),
    place,
  );
}

/**
 * @param {{rows: [string, string, number, number, number, number][],
 *   of: Record<string, [string, number]>}} told
 */
function scoreTable({ rows, of }) {
  const head = ["score", "SAE", "value", "95 % interval", "untrained"];
  const line = (
    /** @type {[string, string, number, number, number, number]} */ [score, sae, value, low, high, control],
  ) =>
    h(
      "tr",
      {},
      h("th", { scope: "row" }, score),
      h("td", {}, h("bdi", {}, sae)),
      h("td", { class: "sl-value" }, short(value)),
      h("td", { class: "sl-value" }, `${short(low)} to ${short(high)}`),
      h("td", { class: "sl-value" }, short(control)),
    );
  const said = Object.entries(of).map(
    ([name, [hook, n]]) => `${name}: ${hook}, ${n.toLocaleString("en")} rows`,
  );
  return h(
    "figure",
    {},
    h(
      "table",
      { class: "sl-compare-shares" },
      h("thead", {}, h("tr", {}, ...head.map((text) => h("th", { scope: "col" }, text)))),
      h("tbody", {}, ...rows.map(line)),
    ),
    h("figcaption", { class: "sl-hint" }, said.join("; ")),
  );
}
