/**
 * One node of a graph with its edges, and what is pinned, in lists.
 * @typedef {import("./graph.js").Graph} Graph
 * @typedef {import("./graph.js").Unit} Unit
 */
import { freshId, h } from "./dom.js";
import { percent, short, signed } from "./scales.js";

/** Edges that a list begins with. */
const LISTED = 12;

/**
 * @param {Graph} graph @param {number} node @param {import("./graph.js").Kept} kept
 * @param {{label: string, name: (node: number) => string, choose: (node: number) => void,
 *   light: (node: number) => void, pinned: boolean, pin: () => void}} how
 * @returns {Node[]}
 */
export function nodePanel(graph, node, kept, { label, name, choose, light, pinned, pin }) {
  const facts = [["influence", percent(graph.influence[node])]];
  if (Number.isFinite(graph.value[node]))
    facts.unshift([graph.kind[node] === 3 ? "probability" : "code", short(graph.value[node])]);
  if (!kept.nodes[node]) facts.push(["pruned", "yes"]);
  const list = h(
    "dl",
    { class: "sl-stats" },
    ...facts.map(([key, value]) => h("div", {}, h("dt", {}, key), h("dd", {}, value))),
  );
  const button = h(
    "button",
    { type: "button", "aria-pressed": pinned, "data-pin": true, onclick: pin },
    pinned ? "unpin" : "pin",
  );
  const side = (
    /** @type {number[]} */ edges,
    /** @type {Uint16Array} */ ends,
    /** @type {string} */ title,
  ) => edgeList(graph, edges, kept, { ends, title, name, choose, light });
  return [
    h("h2", {}, h("bdi", {}, label)),
    h("div", { class: "sl-fields" }, button),
    list,
    side(graph.incoming(node), graph.source, "Comes from"),
    side(graph.outgoing(node), graph.target, "Leads to"),
  ];
}

/**
 * @param {Graph} graph @param {number[]} edges the largest first @param {import("./graph.js").Kept} kept
 * @param {{ends: Uint16Array, title: string, name: (node: number) => string, choose: (node: number) => void,
 *   light: (node: number) => void}} how
 */
function edgeList(graph, edges, kept, { ends, title, name, choose, light }) {
  const most = edges.length ? Math.abs(graph.weight[edges[0]]) : 1;
  const item = (/** @type {number} */ e) => {
    const [other, weight] = [ends[e], graph.weight[e]];
    return h(
      "li",
      { class: kept.edges[e] ? "" : "sl-pruned" },
      h("span", { class: "sl-value" }, signed(weight)),
      h("span", {
        class: weight < 0 ? "sl-meter sl-negative" : "sl-meter",
        "aria-hidden": true,
        style: { "--sl-share": `${(100 * Math.abs(weight)) / most}%` },
      }),
      h(
        "button",
        {
          ...{ type: "button", "data-to": graph.ids[other], title: kept.edges[e] ? "" : "pruned" },
          onclick: () => choose(other),
          onpointerenter: () => light(other),
          onpointerleave: () => light(-1),
        },
        h("bdi", {}, name(other)),
      ),
    );
  };
  const id = freshId();
  const ol = h("ol", { class: "sl-graph-list", "aria-labelledby": id }, ...edges.slice(0, LISTED).map(item));
  const heading = h("h3", { id }, `${title} (${edges.length.toLocaleString("en")})`);
  const section = h("section", {}, heading, edges.length ? ol : h("p", { class: "sl-hint" }, "nothing"));
  if (edges.length > LISTED) {
    const more = h(
      "button",
      {
        type: "button",
        onclick: () => {
          ol.append(...edges.slice(LISTED).map(item));
          more.remove();
        },
      },
      `${(edges.length - LISTED).toLocaleString("en")} more`,
    );
    section.append(more);
  }
  return section;
}

/**
 * @param {Graph} graph @param {Unit[]} units @param {[string, string[]][]} groups
 * @param {{name: string, ticked: Set<string>, label: (node: number) => string,
 *   choose: (node: number) => void, unpin: (node: number) => void, group: (name: string) => void,
 *   ungroup: (name: string) => void}} how
 * @returns {Node[]}
 */
export function pinPanel(graph, units, groups, { name, ticked, label, choose, unpin, group, ungroup }) {
  if (!units.length) return [];
  const node = (/** @type {number} */ i, /** @type {boolean} */ grouped) => {
    const id = graph.ids[i];
    const tick = h("input", {
      ...{ type: "checkbox", checked: ticked.has(id), "aria-label": `${label(i)}, to a group` },
      onchange: (/** @type {any} */ event) => (event.target.checked ? ticked.add(id) : ticked.delete(id)),
    });
    const called = h(
      "button",
      { type: "button", "data-pinned": id, onclick: () => choose(i) },
      h("bdi", {}, label(i)),
    );
    const away = h(
      "button",
      { type: "button", "aria-label": `unpin ${label(i)}`, onclick: () => unpin(i) },
      "×",
    );
    return h("li", {}, grouped ? null : tick, called, away);
  };
  const alone = units.filter((unit) => !unit.group);
  const box = /** @type {HTMLInputElement} */ (
    h("input", {
      ...{ "aria-label": "name of a group", placeholder: "name of a group", "data-group-name": true },
      ...{ value: name, class: "sl-name-box" },
      onkeydown: (/** @type {KeyboardEvent} */ event) => event.key === "Enter" && made(),
    })
  );
  const made = () => {
    const called = box.value;
    box.value = "";
    group(called);
  };
  const grouping = h(
    "div",
    { class: "sl-fields" },
    box,
    h("button", { type: "button", onclick: made }, "group what is ticked"),
  );
  const each = groups.map(([called]) => {
    const own = units.find((unit) => unit.group && unit.name === called);
    return h(
      "section",
      { "data-group": called },
      h(
        "h3",
        {},
        h("bdi", {}, called),
        " ",
        h(
          "button",
          { type: "button", "aria-label": `dissolve ${called}`, onclick: () => ungroup(called) },
          "dissolve",
        ),
      ),
      h("ul", { class: "sl-graph-list" }, ...(own?.nodes ?? []).map((i) => node(i, true))),
    );
  });
  return [
    h(
      "div",
      { class: "sl-graph-pinned" },
      h(
        "section",
        {},
        h("h2", {}, "Pinned"),
        h("ul", { class: "sl-graph-list" }, ...alone.map(({ nodes }) => node(nodes[0], false))),
        ...(alone.length ? [grouping] : []),
      ),
      ...(each.length ? [h("section", {}, h("h2", {}, "Groups"), ...each)] : []),
      h("section", {}, h("h2", {}, "Edges between them"), betweenTable(graph, units, label)),
    ),
  ];
}

/** @param {Graph} graph @param {Unit[]} units @param {(node: number) => string} label */
function betweenTable(graph, units, label) {
  const edges = graph.between(units);
  if (!edges.length) return h("p", { class: "sl-hint" }, "none");
  const called = (/** @type {number} */ u) => (units[u].group ? units[u].name : label(units[u].nodes[0]));
  const head = ["from", "to", "weight", "edges"].map((text) => h("th", { scope: "col" }, text));
  const rows = edges.map(({ source, target, weight, n }) =>
    h(
      "tr",
      { "data-between": `${units[source].name} ${units[target].name}` },
      ...[source, target].map((u) => h("td", {}, h("bdi", {}, called(u)))),
      h("td", { class: "sl-value" }, signed(weight)),
      h("td", { class: "sl-value" }, n),
    ),
  );
  return h("table", {}, h("thead", {}, h("tr", {}, ...head)), h("tbody", {}, ...rows));
}
