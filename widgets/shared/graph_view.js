/**
 * An attribution graph: pruned by sliders, drawn by layer and position, a node told of, nodes pinned.
 * @typedef {import("../types.js").Answer} Answer
 * @typedef {import("../types.js").View} View
 */
import { SideCards } from "./circuit_cards.js";
import { scoreLine } from "./circuit_scores.js";
import { watchTheme } from "./dark.js";
import { h, tokenName } from "./dom.js";
import { EMBEDDING, ERROR, Graph, LATENT, LOGIT } from "./graph.js";
import { Drawing, MOST_DRAWN } from "./graph_draw.js";
import { nodePanel, pinPanel } from "./graph_panel.js";
import { note } from "./notes.js";
import { percent, spoken } from "./scales.js";

const KINDS = ["latent", "error", "embedding", "logit"];
const KEYS =
  "Arrows: to the next node that way; Home and End: the first and last of its row. Enter: tell of it. " +
  "[ and ]: to the node that its largest edge comes from, or goes to. p: pin it. g: name a group of what " +
  "is ticked. Escape: let go.";
const PRUNING =
  "The fewest nodes whose influence on the logits makes up this share of all, and the fewest edges between " +
  "them. Influence: the share of what goes into the logits that comes through a node, over all ways, by " +
  "the size of the edges. Embeddings and logits always stay.";

export class GraphView {
  /** @param {View} view @param {Answer} answer */
  constructor(view, answer) {
    this.view = view;
    this.graph = new Graph(answer);
    this.rows = rowsOf(this.graph);
    /** @type {import("./graph.js").Kept} */
    this.kept = { nodes: new Uint8Array(this.graph.n), edges: new Uint8Array(this.graph.weight.length) };
    /** @type {number[]} nodes that are drawn, by item */
    this.shown = [];
    /** @type {import("./graph.js").Unit[]} */
    this.units = [];
    this.ticked = new Set(/** @type {string[]} */ ([]));
    this.told = -1;
    this.frame = 0;
    const { header } = answer;
    this.drawing = new Drawing("attribution graph", {
      choose: (item) => this.chooseItem(item),
      hover: () => {},
      key: (event, item) => this.key(event, item),
    });
    this.status = h("span", { class: "sl-hint", role: "status" });
    this.sliders = /** @type {const} */ (["node", "edge"]).map((name) => this.slider(name));
    this.alone = h("input", {
      type: "checkbox",
      onchange: (/** @type {any} */ event) => view.remember({ alone: event.target.checked }),
    });
    this.panel = h("div", { class: "sl-graph-about", role: "group", "aria-label": "node", tabindex: 0 });
    this.pins = h("div", { class: "sl-graph-pins" });
    this.cards = new SideCards(view);
    view.body.append(
      h(
        "div",
        { class: "sl-graph" },
        scoreLine(header.scores),
        ...[...header.notes, held(header)].filter(Boolean).map((text) => h("p", { class: "sl-doubt" }, text)),
        h(
          "div",
          { class: "sl-fields" },
          ...this.sliders.map(({ element }) => element),
          note("pruning", PRUNING),
          h("label", {}, this.alone, " pinned alone"),
          this.download(),
          note("the graph's keys", KEYS),
          this.status,
        ),
        h("div", { class: "sl-graph-beside" }, h("div", {}, this.drawing.frame, legend()), this.panel),
        this.pins,
        this.cards.element,
      ),
    );
    view.closing(() => this.drawing.close());
    view.closing(watchTheme(() => this.drawing.anew()));
    view.closing(() => cancelAnimationFrame(this.frame));
    for (const name of ["node", "edge"]) view.changed(name, () => this.prune());
    for (const name of ["pinned", "groups", "alone"]) view.changed(name, () => this.draw());
    view.changed("told", () => this.tell(this.graph.at.get(view.option("told")) ?? -1));
    view.follow("latent", (latent) => this.chosenElsewhere(latent));
    this.prune();
    this.tell(this.graph.at.get(view.option("told")) ?? this.first());
  }

  /** The node of the most influence that is no embedding, of those of the chosen latent if there are any. */
  first() {
    const chosen = this.nodesOf(this.view.chosen("latent"));
    const some = chosen.length
      ? chosen
      : [...this.graph.kind.keys()].filter((i) => this.graph.kind[i] === LATENT);
    return strongest(this.graph, some);
  }

  /** Nodes of a latent of the SAE that is followed. @param {number | null} latent */
  nodesOf(latent) {
    const { kind, index, hook, header } = this.graph;
    if (latent === null) return [];
    return [...kind.keys()].filter(
      (i) => kind[i] === LATENT && index[i] === latent && header.saes[hook[i]] === 0,
    );
  }

  // ---- pruning

  /** @param {"node" | "edge"} name */
  slider(name) {
    const range = /** @type {HTMLInputElement} */ (
      h("input", {
        ...{ type: "range", min: 0, max: 1, step: 0.01, value: this.view.option(name), "data-set": name },
        "aria-label": `share of influence that ${name}s keep`,
        oninput: () => this.soon(),
        onchange: () => this.view.remember({ [name]: Number(range.value) }),
      })
    );
    const said = h("span", { class: "sl-value" });
    return { name, range, said, element: h("label", {}, `${name}s keep `, range, " ", said) };
  }

  /** Prune by the sliders in the next frame, whatever of them moved until then. */
  soon() {
    cancelAnimationFrame(this.frame);
    this.frame = requestAnimationFrame(() =>
      this.pruneTo(this.sliders.map(({ range }) => Number(range.value))),
    );
  }

  prune() {
    for (const { name, range } of this.sliders) range.value = String(this.view.option(name));
    this.pruneTo(this.sliders.map(({ name }) => this.view.option(name)));
  }

  /** @param {number[]} shares */
  pruneTo([node, edge]) {
    this.kept = this.graph.prune(node, edge);
    this.sliders.forEach(({ said, range }, i) => {
      said.textContent = percent([node, edge][i]);
      range.setAttribute("aria-valuetext", percent([node, edge][i]));
    });
    this.draw();
    this.drawPanel();
  }

  // ---- drawing

  draw() {
    const { graph, kept, view } = this;
    const [pinned, groups] = [view.option("pinned") ?? [], view.option("groups") ?? []];
    const alone = view.option("alone") && (pinned.length || groups.length);
    /** @type {any} */ (this.alone).checked = Boolean(alone);
    /** @type {any} */ (this.alone).disabled = !pinned.length && !groups.length;
    this.units = graph.units(pinned, groups);
    if (alone) this.drawUnits();
    else {
      const fixed = new Set(this.units.flatMap(({ nodes }) => nodes));
      this.shown = [...graph.kind.keys()].filter((i) => kept.nodes[i] || fixed.has(i));
      const item = new Map(this.shown.map((node, k) => [node, k]));
      const items = this.shown.map((i) => this.item(i, fixed.has(i)));
      const lines = [];
      for (let e = 0; e < kept.edges.length; e++) {
        const [source, target] = [item.get(graph.source[e]), item.get(graph.target[e])];
        if (kept.edges[e] && source !== undefined && target !== undefined)
          lines.push({ source, target, weight: graph.weight[e] });
      }
      lines.sort((a, b) => Math.abs(b.weight) - Math.abs(a.weight));
      this.drawing.show(items, lines, this.rows.names, graph.tokens);
      const drawn = lines.length > MOST_DRAWN ? `, the ${MOST_DRAWN.toLocaleString("en")} largest drawn` : "";
      const n = (/** @type {number} */ v) => v.toLocaleString("en");
      this.status.textContent =
        `${n(items.length)} of ${n(graph.header.nodes)} nodes, ${n(lines.length)} of ` +
        `${n(graph.header.edges)} edges${drawn}`;
    }
    this.markTold();
    this.drawPins();
  }

  /** What is pinned alone, each group as one. */
  drawUnits() {
    const { graph, rows, units } = this;
    this.shown = units.map(({ nodes }) => strongest(graph, nodes));
    const items = units.map(({ name, nodes, group }) => {
      const [row, column] = [rows.of, graph.position].map((of) =>
        Math.round(nodes.reduce((sum, i) => sum + of[i], 0) / nodes.length),
      );
      const label = group ? `group ${name} of ${nodes.length} nodes` : this.labelOf(nodes[0]);
      const kind = group ? "group" : KINDS[graph.kind[nodes[0]]];
      const key = group ? `group ${name}` : graph.ids[nodes[0]];
      return { row, column, kind, text: name, label, title: label, wide: true, pinned: true, key };
    });
    const lines = graph.between(units);
    this.drawing.show(items, lines, rows.names, graph.tokens);
    this.status.textContent = `${units.length} pinned, ${lines.length} edges between them`;
  }

  /** @param {number} i @param {boolean} pinned @returns {import("./graph_draw.js").Item} */
  item(i, pinned) {
    const { graph } = this;
    const label = this.labelOf(i);
    return {
      ...{ row: this.rows.of[i], column: graph.position[i], kind: KINDS[graph.kind[i]] },
      ...{ text: graph.called(i), label: pinned ? `${label}, pinned` : label, title: label },
      ...{ wide: graph.kind[i] === LOGIT, pinned, key: graph.ids[i] },
    };
  }

  /** A node in words. @param {number} i */
  labelOf(i) {
    const { graph } = this;
    const at = `at ${graph.position[i]} ${tokenName(graph.tokens[graph.position[i]] ?? "")}`;
    const label = this.nameOf(i);
    if (graph.kind[i] === LOGIT) return `logit ${tokenName(label)}, probability ${spoken(graph.value[i])}`;
    if (graph.kind[i] === EMBEDDING) return `embedding ${at}`;
    if (graph.kind[i] === ERROR) return `${label || "error"} ${at}`;
    const named = label ? ` ${label}` : "";
    const where = `${graph.index[i]} of ${this.rows.names[this.rows.of[i]]}`;
    return `latent ${where} ${at}, ${spoken(graph.value[i])}${named}`;
  }

  /** What a latent is called, as it was relabelled last. @param {number} i */
  nameOf(i) {
    const { graph, view } = this;
    const own = graph.kind[i] === LATENT && graph.header.saes[graph.hook[i]] === 0;
    return (own && view.edited(graph.index[i])?.name) || graph.labels[i];
  }

  // ---- one node

  /** @param {number} item */
  chooseItem(item) {
    const node = this.shown[item];
    if (node === undefined) return;
    this.choose(node);
  }

  /** Tell of a node, and choose its latent in all views. @param {number} node */
  choose(node) {
    const { graph, view } = this;
    this.tell(node);
    view.remember({ told: graph.ids[node] });
    const sae = graph.header.saes[graph.hook[node]];
    if (graph.kind[node] !== LATENT || sae < 0) return;
    if (sae === 0) view.choose({ latent: graph.index[node] });
    else if (view.live) view.ask("choose", { sae, latent: graph.index[node] });
  }

  /** @param {number | null} latent */
  chosenElsewhere(latent) {
    const nodes = this.nodesOf(latent);
    if (!nodes.length || nodes.includes(this.told)) return;
    const drawn = nodes.filter((i) => this.kept.nodes[i]);
    this.tell(strongest(this.graph, drawn.length ? drawn : nodes));
  }

  /** @param {number} node -1 for none */
  tell(node) {
    if (node === this.told) return;
    this.told = node;
    this.markTold();
    this.drawPanel();
    this.showCard();
  }

  markTold() {
    const item = this.shown.indexOf(this.told);
    this.drawing.mark(item);
  }

  drawPanel() {
    const { graph, told } = this;
    this.panel.replaceChildren(
      ...(told < 0
        ? [h("p", { class: "sl-hint" }, "Choose a node to read of it.")]
        : nodePanel(graph, told, this.kept, {
            label: this.labelOf(told),
            name: (node) => this.labelOf(node),
            choose: (node) => this.choose(node),
            light: (node) => this.drawing.light(this.shown.indexOf(node)),
            pinned: this.pinned().includes(graph.ids[told]),
            pin: () => this.pin(told),
          })),
    );
  }

  showCard() {
    const { graph, told } = this;
    const sae = told >= 0 && graph.kind[told] === LATENT ? graph.header.saes[graph.hook[told]] : -1;
    this.cards.show(sae, graph.index[told]);
  }

  // ---- pins

  /** @returns {string[]} */
  pinned() {
    return this.view.option("pinned") ?? [];
  }

  /** @returns {[string, string[]][]} */
  groups() {
    return this.view.option("groups") ?? [];
  }

  /** Pin a node, or let go of it. @param {number} node */
  pin(node) {
    const id = this.graph.ids[node];
    const own = this.pinned();
    const without = own.filter((each) => each !== id);
    if (without.length === own.length) return this.keep([...own, id], this.groups());
    this.ticked.delete(id);
    const groups = this.groups().map(([name, ids]) => [name, ids.filter((each) => each !== id)]);
    return this.keep(without, /** @type {[string, string[]][]} */ (groups));
  }

  /** @param {string[]} pinned @param {[string, string[]][]} groups */
  keep(pinned, groups) {
    this.view.remember({ pinned, groups: groups.filter(([, ids]) => ids.length) });
    this.drawPanel();
  }

  drawPins() {
    const { graph } = this;
    const had = this.pins.querySelector("[data-group-name]");
    const name = had instanceof HTMLInputElement ? had.value : "";
    const parts = pinPanel(graph, this.units, this.groups(), {
      ...{ name, ticked: this.ticked, label: (node) => this.labelOf(node) },
      choose: (node) => this.choose(node),
      unpin: (node) => this.pin(node),
      group: (called) => this.group(called),
      ungroup: (called) =>
        this.keep(
          this.pinned(),
          this.groups().filter(([each]) => each !== called),
        ),
    });
    this.pins.replaceChildren(...parts);
  }

  /** Put what is ticked under a name, beside what has it already. @param {string} name */
  group(name) {
    const ids = [...this.ticked].filter((id) => this.pinned().includes(id));
    if (!name.trim() || !ids.length) return;
    const others = this.groups().filter(([each]) => each !== name.trim());
    const before = this.groups().find(([each]) => each === name.trim())?.[1] ?? [];
    this.ticked.clear();
    this.keep(this.pinned(), [...others, [name.trim(), [...before, ...ids]]]);
  }

  /** @param {KeyboardEvent} event @param {number} item @returns {boolean} whether the key is one of these */
  key(event, item) {
    const { graph, kept } = this;
    const node = this.shown[item];
    if (event.key === "p") this.pin(node);
    else if (event.key === "[" || event.key === "]") {
      const edges = event.key === "[" ? graph.incoming(node, kept.edges) : graph.outgoing(node, kept.edges);
      const ends = event.key === "[" ? graph.source : graph.target;
      const to = edges.map((e) => this.shown.indexOf(ends[e])).find((i) => i >= 0);
      if (to !== undefined) this.drawing.focus(to);
    } else if (event.key === "g") {
      const box = this.pins.querySelector("[data-group-name]");
      if (box instanceof HTMLElement) box.focus();
    } else if (event.key === "Escape") {
      this.view.remember({ told: "" });
      this.tell(-1);
    } else return false;
    return true;
  }

  // ---- its file

  download() {
    const { view } = this;
    const onclick = async () => {
      const answer = await view.ask("file");
      if (!answer) return;
      const made = JSON.parse(new TextDecoder().decode(answer.fields.data));
      const told = view.option("told") ?? "";
      const supernodes = this.groups().map(([name, ids]) => [name, ...ids]);
      made.qParams = { ...made.qParams, pinnedIds: this.pinned(), supernodes, clickedId: told };
      const href = URL.createObjectURL(new Blob([JSON.stringify(made)], { type: "application/json" }));
      h("a", { href, download: answer.header.name }).click();
      setTimeout(() => URL.revokeObjectURL(href), 1000);
    };
    const title = "as circuit-tracer reads it, with what is pinned";
    return h(
      "button",
      { type: "button", onclick, title, disabled: !view.holds("file") },
      "circuit-tracer JSON",
    );
  }
}

/** What of the graph is not here. @param {any} header */
function held({ holds, left_out, pruned }) {
  const said = [];
  if (pruned)
    said.push(
      `Pruned before it came here, to ${percent(pruned[0])} of nodes and ${percent(pruned[1])} of edges.`,
    );
  if (holds) said.push(`Too large to be drawn whole: of the most influence here are ${holds}.`);
  if (left_out) said.push(`${percent(left_out)} of the influence ends in latents that were left out.`);
  return said.join(" ");
}

/**
 * The row of each node, and what rows are called: embeddings at the bottom, logits at the top.
 * @param {Graph} graph
 */
function rowsOf({ n, kind, layer, hook, rank, header }) {
  /** @type {Map<string, {sort: number[], name: string, nodes: number[]}>} */
  const rows = new Map();
  for (let i = 0; i < n; i++) {
    const between = kind[i] === LATENT || kind[i] === ERROR;
    const key = between ? `${layer[i]} ${header.hooks[hook[i]]}` : KINDS[kind[i]];
    const place = header.hooks[hook[i]].replace(/^blocks\.\d+\./, "").replace(/^hook_/, "");
    const name = between ? `${layer[i]} ${place}`.trim() : { 2: "embedding", 3: "logits" }[kind[i]];
    const row = rows.get(key) ?? {
      sort: [kind[i] === EMBEDDING ? -2 : kind[i] === LOGIT ? 1e9 : layer[i], 0],
      name: name ?? "",
      nodes: [],
    };
    row.nodes.push(i);
    rows.set(key, row);
  }
  for (const row of rows.values())
    row.sort[1] = row.nodes.reduce((a, i) => a + rank[i], 0) / row.nodes.length;
  const sorted = [...rows.values()].sort((a, b) => a.sort[0] - b.sort[0] || a.sort[1] - b.sort[1]);
  const of = new Int32Array(n);
  sorted.forEach(({ nodes }, r) => {
    for (const i of nodes) of[i] = r;
  });
  return { of, names: sorted.map(({ name }) => name) };
}

/** The node of the most influence; -1 of none. @param {Graph} graph @param {number[]} nodes */
function strongest({ influence }, nodes) {
  return nodes.reduce((best, i) => (best < 0 || influence[i] > influence[best] ? i : best), -1);
}

function legend() {
  const each = KINDS.map((kind) =>
    h("span", {}, h("span", { class: `sl-node-sign sl-node-${kind}`, "aria-hidden": true }), ` ${kind}`),
  );
  const lines = [
    ["up", "raises"],
    ["down", "lowers"],
  ].map(([way, word]) =>
    h("span", {}, h("span", { class: `sl-graph-line sl-graph-${way}`, "aria-hidden": true }), ` ${word}`),
  );
  return h(
    "div",
    { class: "sl-hint sl-graph-legend" },
    ...each,
    ...lines,
    h("span", {}, "wide: a large weight"),
  );
}
