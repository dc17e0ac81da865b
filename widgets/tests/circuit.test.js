// @vitest-environment jsdom
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { EMBEDDING, ERROR, Graph, LATENT, LOGIT, thresholdOf } from "../shared/graph.js";
import { render } from "../views/circuit.js";
import { card, FakeModel, onCanvas, settle } from "./fake.js";

const HOSTILE = "<img src=x onerror=alert(1)>";
let el;
let strokes;

let ended;
beforeEach(() => {
  strokes = 0;
  ended = onCanvas((name) => {
    if (name === "stroke") strokes++;
  });
  el = document.createElement("div");
  document.body.replaceChildren(el);
});
afterEach(() => ended());
const $ = (selector) => el.querySelector(selector);
const $$ = (selector) => [...el.querySelectorAll(selector)];

/**
 * Two embeddings, latents 7 and 8 of layer 0 and 9 of layer 1, an error of layer 0, one logit.
 * a -> 7 (3), b -> 7 (-1), b -> 8 (1), 7 -> 9 (2), error -> 9 (-2), 9 -> logit (3), 8 -> logit (-1)
 */
function graph(more = {}) {
  const edges = [
    [0, 2, 3],
    [1, 2, -1],
    [1, 3, 1],
    [2, 5, 2],
    [4, 5, -2],
    [5, 6, 3],
    [3, 6, -1],
  ];
  // 9: 3/4, 8: 1/4, 7 and the error: 3/8 each, a: 9/32, b: 3/32 + 8/32
  const influence = Float64Array.from([9 / 32, 11 / 32, 3 / 8, 1 / 4, 3 / 8, 3 / 4, 0]);
  const hooks = ["", "blocks.0.hook_mlp_out", "blocks.1.hook_mlp_out"];
  const score = { value: 0.6, interval: [0.5, 0.7], control: 0.3, control_interval: [0.2, 0.4], n: 9 };
  return {
    header: {
      ...{ what: "graph", title: "a text", layers: 2, hooks, saes: [-1, -1, 0], notes: [], nodes: 7 },
      scores: [
        ["replacement", { ...score, what: "untrained SAEs", apart: true }],
        ["completeness", { value: 0.7, why: "one text" }],
      ],
      ...{
        total: influence.reduce((a, b) => a + b),
        edges: 7,
        holds: "",
        left_out: 0,
        pruned: null,
        ...more,
      },
    },
    fields: {
      ids: ["E_a", "E_b", "0_7", "0_8", "err", "1_9", "logit"],
      tokens: ["a", HOSTILE],
      labels: ["a", "b", "", "", "error of layer 0", HOSTILE, " x"],
      kind: Uint8Array.from([EMBEDDING, EMBEDDING, LATENT, LATENT, ERROR, LATENT, LOGIT]),
      hook: Uint16Array.from([0, 0, 1, 1, 1, 2, 0]),
      layer: Int16Array.from([-1, -1, 0, 0, 0, 1, 2]),
      index: Int32Array.from([0, 1, 7, 8, -1, 9, 4]),
      position: Int32Array.from([0, 1, 0, 1, 1, 1, 1]),
      value: Float32Array.from([Number.NaN, Number.NaN, 1, 2, Number.NaN, 3, 0.5]),
      influence,
      weights: Float64Array.from([0, 0, 0, 0, 0, 0, 1]),
      source: Uint16Array.from(edges.map(([s]) => s)),
      target: Uint16Array.from(edges.map(([, t]) => t)),
      weight: Float32Array.from(edges.map(([, , w]) => w)),
    },
  };
}

/** @param {any} options */
async function shown(options = {}, answers = {}) {
  const state = { node: 1, edge: 1, pinned: [], groups: [], alone: false, told: "", labels: {}, ...options };
  const file = () => ({
    header: { name: "graph.json" },
    fields: { data: new TextEncoder().encode('{"qParams": {"linkType": "both"}, "nodes": []}') },
  });
  const model = new FakeModel(state, {
    circuit: () => graph(),
    card: ({ latent }) => card(latent),
    file,
    ...answers,
  });
  render({ model, el });
  await settle();
  await settle();
  return model;
}
const node = (id) => $(`.sl-node[data-node="${id}"]`);
const press = (element, key) =>
  element.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));

test("influence goes down all ways, and the fewest that make up a share are kept", () => {
  const made = new Graph(graph());
  const every = new Uint8Array(7).fill(1);
  const scores = made.scores(every);
  expect([...scores].map((s) => s * 32)).toEqual([9, 3, 8, 12, 12, 24, 8]);
  const sums = new Float64Array(7);
  made.source.forEach((s, e) => {
    sums[s] += scores[e];
  });
  expect(sums).toEqual(made.influence);
  expect(thresholdOf(Float64Array.from([1, 4, 3, 2]), 0.7)).toBe(3);
  expect(thresholdOf(Float64Array.from([1, 4, 3, 2]), 0.71)).toBe(2);
  expect(thresholdOf(new Float64Array(2), 0.5)).toBe(0);
  // 9 has more than a quarter of all: of latents and errors it stays alone, and then nothing leads to it
  expect([...made.prune(0.25, 1).nodes]).toEqual([1, 1, 0, 0, 0, 0, 1]);
  // 9, 7 and the error: 8 goes, and with it its edges
  const { nodes, edges } = made.prune(0.55, 1);
  expect([...nodes]).toEqual([1, 1, 1, 0, 1, 1, 1]);
  expect([...edges]).toEqual([1, 1, 0, 1, 1, 1, 0]);
  expect([...made.prune(1, 1).nodes]).toEqual([1, 1, 1, 1, 1, 1, 1]);
  // the largest edge alone leads from a latent that nothing leads to
  expect([...made.prune(1, 0.3).edges].some(Boolean)).toBe(false);
});

test("scores of a node with many ways out are the sums over all ways", () => {
  const n = 14;
  const weight = (t, s) => ((t * 7 + s * 13) % 11) - 5; // some are 0, of either sign
  const edges = [];
  for (let t = 0; t < n; t++) for (let s = 0; s < t; s++) if (weight(t, s)) edges.push([s, t, weight(t, s)]);
  const answer = graph();
  for (const name of ["kind", "hook", "layer", "index", "position", "value", "influence", "weights"])
    answer.fields[name] = new answer.fields[name].constructor(n);
  answer.fields.ids = answer.fields.labels = Array.from({ length: n }, (_, i) => `${i}`);
  answer.fields.weights[n - 1] = 1;
  [answer.fields.source, answer.fields.target] = [0, 1].map((k) => Uint16Array.from(edges, (e) => e[k]));
  answer.fields.weight = Float32Array.from(edges, (e) => e[2]);
  const made = new Graph(answer);
  const found = new Float64Array(n);
  made.scores(new Uint8Array(edges.length).fill(1)).forEach((score, e) => {
    found[made.source[e]] += score;
  });
  // weights (A + A^2 + ...)
  const whole = Float64Array.from({ length: n }, (_, t) =>
    edges.reduce((sum, e) => sum + (e[1] === t ? Math.abs(e[2]) : 0), 0),
  );
  let now = Float64Array.from(answer.fields.weights);
  const sums = new Float64Array(n);
  for (let step = 0; step < n; step++) {
    const next = new Float64Array(n);
    for (const [s, t, w] of edges) next[s] += (now[t] * Math.abs(w)) / whole[t];
    now = next;
    now.forEach((value, i) => {
      sums[i] += value;
    });
  }
  sums.forEach((value, i) => {
    expect(found[i]).toBeCloseTo(value, 10);
  });
});

test("edges of one layer come in their order too", () => {
  const answer = graph();
  answer.fields.layer.fill(0);
  const made = new Graph(answer);
  expect([...made.rank]).toEqual([0, 0, 1, 1, 0, 2, 3]);
  expect([...made.scores(new Uint8Array(7).fill(1))].map((s) => s * 32)).toEqual([9, 3, 8, 12, 12, 24, 8]);
});

test("a group is one, and its edges the sums of its nodes'", () => {
  const made = new Graph(graph());
  const units = made.units(["E_b", "0_7", "0_8", "logit", "nobody"], [["both", ["0_7", "0_8"]]]);
  expect(units.map(({ name, nodes }) => [name, nodes])).toEqual([
    ["both", [2, 3]],
    ["embedding", [1]],
    [" x", [6]],
  ]);
  const found = made.between(units);
  expect(found).toContainEqual({ source: 1, target: 0, weight: 0, n: 2 });
  expect(found).toContainEqual({ source: 0, target: 2, weight: -1, n: 1 });
  expect(found).toHaveLength(2);
});

test("nodes are buttons over their edges, in words; sliders prune", async () => {
  const model = await shown();
  expect($$(".sl-node")).toHaveLength(7);
  expect($("[role=status].sl-hint").textContent).toBe("7 of 7 nodes, 7 of 7 edges");
  expect(strokes).toBe(7);
  node("1_9").dispatchEvent(new Event("pointerenter"));
  await new Promise(requestAnimationFrame);
  expect(strokes).toBe(7 + 3); // its own, above the others
  expect(node("1_9").getAttribute("aria-label")).toBe(
    `latent 9 of 1 mlp_out at 1 ${HOSTILE}, 3.00 ${HOSTILE}`,
  );
  expect(el.querySelector("img")).toBeNull();
  expect($("[data-score=replacement]").textContent).toContain("0.600 [0.500, 0.700] untrained SAEs 0.300");
  expect($("[data-score=completeness]").textContent).toContain("no control: one text");
  const range = $("input[data-set=node]");
  range.value = "0.55";
  range.dispatchEvent(new Event("input"));
  await settle();
  expect($$(".sl-node")).toHaveLength(6);
  expect(model.state.node).toBe(1);
  range.dispatchEvent(new Event("change"));
  expect(model.state.node).toBe(0.55);
  expect(range.getAttribute("aria-valuetext")).toBe("55.0 %");
  model.set("node", 1); // in Python
  expect($$(".sl-node")).toHaveLength(7);
});

test("a node that is chosen is told of with its edges, and its latent chosen in all views", async () => {
  const model = await shown();
  node("1_9").click();
  await settle();
  expect([model.state.latent, model.state.told]).toEqual([9, "1_9"]);
  expect(node("1_9").getAttribute("aria-current")).toBe("true");
  const lists = $$(".sl-graph-about .sl-graph-list");
  expect([...lists[0].querySelectorAll("[data-to]")].map((b) => b.dataset.to)).toEqual(["0_7", "err"]);
  expect(lists[0].textContent).toContain("−2.00");
  expect($(".sl-card").dataset.latent).toBe("9");
  lists[0].querySelector("[data-to=err]").click();
  expect($(".sl-graph-about h2").textContent).toContain("error of layer 0");
  expect($(".sl-place").hidden).toBe(true);
  expect(model.state.latent).toBe(9);
  model.set("latent", 8); // elsewhere: there is none of it in that SAE here
  expect($(".sl-graph-about h2").textContent).toContain("error of layer 0");
  model.set("latent", 9);
  expect($(".sl-graph-about h2").textContent).toContain("latent 9");
});

test("keys go from node to node, along the largest edge, and pin", async () => {
  const model = await shown();
  const at = () => document.activeElement.dataset.node;
  node("E_a").focus();
  press(document.activeElement, "ArrowRight");
  expect(at()).toBe("E_b");
  press(document.activeElement, "ArrowUp");
  expect(["0_8", "err"]).toContain(at());
  press(document.activeElement, "Home");
  expect(at()).toBe("0_7");
  press(document.activeElement, "]");
  expect(at()).toBe("1_9");
  press(document.activeElement, "[");
  expect(at()).toBe("0_7");
  press(document.activeElement, "p");
  expect(model.state.pinned).toEqual(["0_7"]);
  expect(at()).toBe("0_7"); // the focus stays where it was
  expect(node("0_7").getAttribute("aria-label")).toContain("pinned");
  press(document.activeElement, "g");
  expect(document.activeElement.dataset.groupName).toBe("");
  node("0_7").focus();
  press(node("0_7"), "p");
  expect(model.state.pinned).toEqual([]);
  expect($$(".sl-node").filter((b) => b.tabIndex === 0)).toHaveLength(1);
  press(node("0_7"), "Escape");
  expect(model.state.told).toBe("");
});

test("pinned nodes are grouped under a name, and drawn alone", async () => {
  const model = await shown({ pinned: ["E_b", "0_7", "0_8", "logit"] });
  for (const id of ["0_7", "0_8"]) {
    const box = $(`[data-pinned="${id}"]`).parentElement.querySelector("input");
    box.checked = true;
    box.dispatchEvent(new Event("change"));
  }
  const name = $("[data-group-name]");
  name.value = `both ${HOSTILE}`;
  press(name, "Enter");
  expect(model.state.groups).toEqual([[`both ${HOSTILE}`, ["0_7", "0_8"]]]);
  expect($(`[data-group]`).textContent).toContain("latent 7 of 0 mlp_out");
  expect($$("[data-between]")).toHaveLength(2);
  model.set("alone", true);
  expect($$(".sl-node").map((b) => b.textContent)).toEqual(
    [`both ${HOSTILE}`, "embedding", " x"].map((t) => t),
  );
  expect($(".sl-node-group").getAttribute("aria-label")).toContain("of 2 nodes");
  $("[data-group] [aria-label^=dissolve]").click();
  expect(model.state.groups).toEqual([]);
  expect(el.querySelector("img")).toBeNull();
});

test("what is pruned stays where it is pinned", async () => {
  await shown({ node: 0.55, pinned: ["0_8"] });
  expect(node("0_8")).not.toBeNull();
  expect($(".sl-graph-about")).not.toBeNull();
});

test("its file has what is pinned and grouped", async () => {
  const model = await shown({ pinned: ["0_7"], groups: [["one", ["0_7"]]], told: "0_7" });
  let blob;
  URL.createObjectURL = vi.fn((made) => {
    blob = made;
    return "blob:x";
  });
  URL.revokeObjectURL = vi.fn();
  const click = vi.spyOn(HTMLAnchorElement.prototype, "click").mockImplementation(() => {});
  $$("button")
    .find((b) => b.textContent === "circuit-tracer JSON")
    .click();
  await settle();
  const text = await new Promise((resolve) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.readAsText(blob);
  });
  const made = JSON.parse(text);
  expect(made.qParams).toEqual({
    ...{ linkType: "both", pinnedIds: ["0_7"], supernodes: [["one", "0_7"]], clickedId: "0_7" },
  });
  expect(click).toHaveBeenCalledOnce();
  click.mockRestore();
  expect(model.sent.map(({ ask }) => ask)).toContain("file");
});

test("a latent of another SAE has that one's card", async () => {
  const asked = [];
  const answers = {
    circuit: () => graph({ saes: [-1, 2, 0] }),
    "2_card": ({ latent }) => card(latent),
    choose: (args) => {
      asked.push(args);
      return {};
    },
  };
  const model = await shown({}, answers);
  node("0_8").click();
  await settle();
  expect(
    $$(".sl-place")
      .filter((p) => !p.hidden)
      .map((p) => p.querySelector(".sl-card").dataset.latent),
  ).toEqual(["8"]);
  expect(asked).toEqual([{ sae: 2, latent: 8 }]);
  expect(model.state.latent).toBe(null);
});

const beside = (value, control) => ({
  ...{ value, interval: [value - 0.1, value + 0.1], control, control_interval: [0, control + 0.1] },
  ...{ n: 32, what: "20 random sets", apart: true },
});

test("a circuit: its nodes by layer, what each does, and random sets beside it as it grows", async () => {
  const answer = {
    header: {
      ...{ what: "circuit", title: `Circuit of ${HOSTILE}`, n: 2, of: 5, target: 0.8, met: false, notes: [] },
      ...{
        method: "integrated gradients",
        hooks: ["blocks.0.attn.hook_z", "blocks.1.attn.hook_z"],
        saes: [-1, -1],
      },
      scores: [
        ["faithfulness", beside(0.7, 0.1)],
        ["completeness", beside(0.1, 0.9)],
      ],
      growth: [
        [1, beside(0.4, 0.05)],
        [3, beside(0.9, 0.2)],
      ],
      curve: [
        [1, 0.3],
        [2, 0.1],
        [2, 0.9],
      ],
    },
    fields: {
      kind: Uint8Array.from([4, 4, 4]),
      hook: Uint16Array.from([0, 0, 1]),
      layer: Int16Array.from([0, 0, 1]),
      index: Int32Array.from([0, 1, 0]),
      inside: Uint8Array.from([0, 1, 1]),
      share: Float32Array.from([-0.1, 0.5, 0.25]),
      low: Float32Array.from([-0.2, 0.4, 0.2]),
      high: Float32Array.from([0, 0.6, 0.3]),
      called: ["0.0", "0.1", "1.0"],
      names: ["", "", ""],
    },
  };
  await shown({}, { circuit: () => answer });
  expect($$(".sl-circuit-row").map((row) => row.querySelector("small").textContent)).toEqual([
    "layer 1",
    "layer 0",
  ]);
  expect(
    $$(".sl-part-in")
      .map((b) => b.textContent)
      .sort(),
  ).toEqual(["0.1", "1.0"]);
  expect($(".sl-doubt").textContent).toContain("2 of 5 nodes, short of the faithfulness of 0.8");
  expect($(".sl-circuit-about").textContent).toContain(
    "head 0.1  is in the circuit: 50.0 % of the task [40.0 %, 60.0 %]",
  );
  $('[data-circuit="0.0"]').click();
  expect($(".sl-circuit-about").textContent).toContain("is not in the circuit: −10.0 % of the task");
  $('[data-circuit="0.0"]').focus();
  press(document.activeElement, "ArrowUp");
  expect(document.activeElement.dataset.circuit).toBe("1.0");
  const figure = $(".sl-circuit-figure");
  expect(figure.querySelector("svg").getAttribute("aria-label")).toContain("3: 0.900, 20 random sets 0.200");
  expect(figure.querySelector("tbody").textContent).toContain("0.900 [0.800, 1.00]");
  // of what was tried at two nodes the best is drawn
  expect(
    figure.querySelector('[data-curve="as it was chosen"]').getAttribute("d").match(/[ML]/g),
  ).toHaveLength(2);
  expect(el.querySelector("img")).toBeNull();
});

test("a test of codes that fails is titled so, beside what it is held against", async () => {
  const arm = (name, auc, more) => ({ name, auc, interval: [auc - 0.1, auc + 0.1], precision: 0.2, ...more });
  const answer = {
    header: {
      ...{ what: "codes", title: "diversity score", kind: "node", heads: 2, of: 6 },
      said: "Diversity score of 'x': it does not beat its controls\n  AUC of 2 nodes",
      arms: [
        arm("codes", 0.6, { gain: null, bar: null }),
        arm("shuffled labels", 0.5, { gain: [-0.1, 0.3], bar: 0.1 }),
      ],
    },
    fields: Object.fromEntries(
      ["x0", "y0", "x1", "y1"].map((name) => [name, Float32Array.from([0, 0.5, 1])]),
    ),
  };
  await shown({}, { circuit: () => answer });
  expect($("h2").textContent).toContain("Diversity score");
  expect($(".sl-doubt")).not.toBeNull();
  expect($('[data-arm="shuffled labels"]').textContent).toContain(
    "0.500 [0.400, 0.600]−0.100 to +0.300+0.100, and from above 0",
  );
  expect($$("[data-curve]").map((p) => p.dataset.curve)).toEqual(["chance", "codes", "shuffled labels"]);
});
