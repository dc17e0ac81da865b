/**
 * What an analysis found: figures beside their controls with bars of their intervals, tables to sort,
 * drawings.
 * @typedef {import("../types.js").View} View
 * @typedef {[string, number | null, number | null, number | null]} Control what, value, from, to
 * @typedef {[string, string, number | null, number | null, number | null, Control[], boolean | null, string]}
 *   Line score, SAE, value, from, to, controls, whether apart of them, why it has none
 */
import { freshId, h, svg } from "../shared/dom.js";
import { drawingElement } from "../shared/drawing.js";
import { short } from "../shared/scales.js";
import { rendering } from "../shared/view.js";

const [WIDTH, HEIGHT, EDGE] = [150, 18, 8];

/** @type {Record<string, (header: any, lines: any) => Element[]>} */
const PANELS = { figures, table: plainTable, drawing: (header, curves) => [drawingElement(header, curves)] };

export const render = rendering(async (view) => {
  const answer = await view.ask("result");
  if (!answer) return;
  const { header, fields } = answer;
  /** @type {{kind: string}[]} */
  const panels = header.panels;
  view.body.append(...panels.flatMap((panel, i) => PANELS[panel.kind](panel, fields[`panel${i}`])));
});

/**
 * @param {{heads: string[], left_out: [string, string, string][], several: boolean,
 *   same_rows: boolean}} header
 * @param {Line[]} lines
 */
function figures(header, lines) {
  const body = h("tbody");
  const names = header.several ? ["score", "SAE"] : ["score"];
  const head = [...names, "value", "95 % interval", "", "beside"];
  const columns = head.map((text) => (text ? h("th", { scope: "col" }, text) : h("td")));
  const table = h(
    "table",
    { class: "sl-report sl-report-figures" },
    h("thead", {}, h("tr", {}, ...columns)),
    body,
  );
  const spans = spansOf(lines);
  const said = h("p", { class: "sl-hint", "aria-live": "polite" });
  const draw = (/** @type {string} */ words) => {
    const wanted = words.trim().toLowerCase();
    const shown = lines.filter(([score, sae]) => `${score} ${sae}`.toLowerCase().includes(wanted));
    body.replaceChildren(...shown.map((line) => lineOf(line, header.several, spans.get(line[0]))));
    said.textContent = wanted ? `${shown.length} of ${lines.length} figures` : "";
  };
  draw("");
  const id = freshId();
  const oninput = (/** @type {any} */ event) => draw(event.target.value);
  const filter = h("input", { id, type: "search", oninput });
  const warning = "Not of the same rows: their differences are not those of the SAEs alone.";
  return [
    ...header.heads.map((text) => h("p", { class: "sl-hint" }, h("bdi", {}, text))),
    ...(header.same_rows ? [] : [h("p", { role: "note" }, warning)]),
    h("p", {}, h("label", { for: id }, "figures that are called "), filter),
    said,
    h("div", { class: "sl-report-place", tabindex: 0, role: "group", "aria-label": "figures" }, table),
    h("p", { class: "sl-hint" }, "Dot and line: value and its 95 % interval; crosses: controls."),
    ...leftOut(header.left_out),
  ];
}

/** @param {[string, string, string][]} left SAE, figure, why */
function leftOut(left) {
  if (!left.length) return [];
  const items = left.map(([sae, figure, why]) =>
    h("li", {}, h("bdi", {}, `${sae ? `${sae}, ` : ""}${figure}: ${why}`)),
  );
  return [h("details", {}, h("summary", {}, `${left.length} not measured`), h("ul", {}, ...items))];
}

/**
 * From where to where the values of each score go, controls among them.
 * @param {Line[]} lines @returns {Map<string, [number, number]>}
 */
function spansOf(lines) {
  const spans = new Map();
  for (const [score, , value, low, high, controls] of lines) {
    const all = [value, low, high, ...controls.flatMap(([, ...each]) => each)];
    const known = /** @type {number[]} */ (all.filter((each) => each !== null));
    const [from, to] = spans.get(score) ?? [Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY];
    spans.set(score, [Math.min(from, ...known), Math.max(to, ...known)]);
  }
  return spans;
}

/** @param {Line} line @param {boolean} several @param {[number, number]} [span] */
function lineOf(line, several, span) {
  const [score, sae, value, low, high, controls, apart, why] = line;
  const beside = controls.length
    ? controls.map(([what, control]) => `${what} ${short(control)}`).join(", ")
    : `no control: ${why}`;
  return h(
    "tr",
    {},
    h("th", { scope: "row" }, h("bdi", {}, score)),
    several ? h("td", {}, h("bdi", {}, sae)) : null,
    h("td", { class: "sl-value" }, short(value)),
    h("td", { class: "sl-value" }, low === null ? "" : `${short(low)} to ${short(high)}`),
    h("td", {}, span ? bar(line, span) : null),
    h(
      "td",
      {},
      h("bdi", {}, beside),
      apart === false ? h("strong", { class: "sl-report-fails" }, " not apart") : null,
    ),
  );
}

/** @param {Line} line @param {[number, number]} span */
function bar([, , value, low, high, controls], [from, to]) {
  /** @param {number} v */
  const px = (v) => EDGE + ((v - from) / (to - from || 1)) * (WIDTH - 2 * EDGE);
  const middle = HEIGHT / 2;
  const shown = [svg("path", { d: `M${EDGE} ${middle}H${WIDTH - EDGE}`, stroke: "var(--sl-edge)" })];
  for (const [, control, from_, to_] of controls) {
    if (control === null) continue;
    const x = px(control);
    const cross = `M${x - 3} ${middle - 3}l6 6m0 -6l-6 6`;
    const wide = from_ === null || to_ === null ? "" : `M${px(from_)} ${middle}H${px(to_)}`;
    shown.push(svg("path", { d: cross + wide, stroke: "var(--sl-soft)", "stroke-width": 1.5, fill: "none" }));
  }
  if (low !== null && high !== null)
    shown.push(
      svg("path", { d: `M${px(low)} ${middle}H${px(high)}`, stroke: "var(--sl-accent)", "stroke-width": 3 }),
    );
  if (value !== null)
    shown.push(svg("circle", { cx: px(value), cy: middle, r: 4, fill: "var(--sl-accent)" }));
  const box = { width: WIDTH, height: HEIGHT, viewBox: `0 0 ${WIDTH} ${HEIGHT}`, "aria-hidden": "true" };
  return svg("svg", box, ...shown);
}

/**
 * A table whose columns are sorted by a click on their heads.
 * @param {{title: string, columns: string[]}} header @param {(string | number | null)[][]} lines
 */
function plainTable({ title, columns }, lines) {
  const body = h("tbody");
  let by = -1;
  let up = true;
  const draw = () => {
    const sign = up ? 1 : -1;
    const shown = by < 0 ? lines : [...lines].sort((a, b) => sign * compare(a[by], b[by]));
    body.replaceChildren(
      ...shown.map((line) =>
        h(
          "tr",
          {},
          ...line.map((cell) =>
            typeof cell === "string"
              ? h("td", {}, h("bdi", {}, cell))
              : h("td", { class: "sl-value" }, Number.isInteger(cell) ? String(cell) : short(cell)),
          ),
        ),
      ),
    );
    heads.forEach((head, i) => {
      head.setAttribute("aria-sort", i !== by ? "none" : up ? "ascending" : "descending");
    });
  };
  const heads = columns.map((name, i) => {
    const onclick = () => {
      up = by === i ? !up : true;
      by = i;
      draw();
    };
    return h("th", { scope: "col" }, h("button", { type: "button", onclick }, name || "–"));
  });
  draw();
  const table = h("table", { class: "sl-report" }, h("thead", {}, h("tr", {}, ...heads)), body);
  return [h("div", { class: "sl-report-place", tabindex: 0, role: "group", "aria-label": title }, table)];
}

/** Numbers before words, what is missing last. @param {any} a @param {any} b */
function compare(a, b) {
  if (a === null || b === null) return Number(a === null) - Number(b === null);
  if (typeof a === "number" && typeof b === "number") return a - b;
  return String(a).localeCompare(String(b));
}
