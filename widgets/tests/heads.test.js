// @vitest-environment jsdom
import { afterAll, beforeEach, expect, test } from "vitest";
import { render } from "../views/heads.js";
import { card, FakeModel, settle } from "./fake.js";

let el;
const { getContext } = HTMLCanvasElement.prototype;
afterAll(() => {
  HTMLCanvasElement.prototype.getContext = getContext;
});
beforeEach(() => {
  HTMLCanvasElement.prototype.getContext = () => null; // jsdom paints nothing
  el = document.createElement("div");
  document.body.replaceChildren(el);
});
const $ = (selector) => el.querySelector(selector);
const $$ = (selector) => [...el.querySelectorAll(selector)];

const HOSTILE = "<img src=x onerror=alert(1)>";
const NAMES = ["<s>", " one", HOSTILE];
const [LAYERS, HEADS, N] = [2, 2, 3];
const told = (more = {}) => ({
  header: {
    ...{ sae: "z", hook: "blocks.1.attn.hook_z", kind: "z", why: "", said: "what parts are worth" },
    weighed: "what weights are worth",
    ...{ layers: LAYERS, heads: HEADS, first: 1, before: [0, 1], codes: true, cards: true },
    way: { depth: 2, width: 2 },
    measures: [["self", "attention to itself", 0.4]],
    ...more,
  },
  fields: { names: NAMES, self: Float32Array.from([0.1, 0.2, 0.3, 0.4]) },
});
const codes = () => ({
  header: { facets: ["token"], parts: [["line", N, 0, 0, N]], calls: 1, labels: [], named: { 7: HOSTILE } },
  fields: {
    names: NAMES,
    ...{ facets: new Uint8Array(N), counted: Uint8Array.from([0, 1, 1]), picture: new Uint8Array(0) },
    indptr: Int32Array.from([0, 0, 1, 3]),
    indices: Int32Array.from([7, 7, 9]),
    values: Float32Array.from([1, 2, 0.5]),
  },
});
const beside = (more = {}) => ({
  ...{ value: 0.6, interval: [0.5, 0.7], control: 0.1, control_interval: [0, 0.2], n: 4 },
  ...{ what: "pattern alone", apart: true, ...more },
});
/** Of the second layer alone: head 0 moves 1 from the first token, head 1 -2 from the second and 4 there. */
const PARTS = [1, 0, 0, 0, -2, 4];
const dfa = ({ latent, dest }) => ({
  header: { latent, dest, pre: 3.5, code: 3.5, total: 3.5, layers: [1], rest: [["constants", 0.5]] },
  fields: {
    parts: Float32Array.from(PARTS),
    weights: Uint16Array.from([...new Array(6).fill(0), 65535, 0, 0, 13107, 52428, 0]),
  },
});
const STEPS = [
  // parent, kind, value, layer, head, position, latent, sae, count
  [-1, 0, 3.5, 1, -1, 2, 7, 0, 1],
  [0, 1, 4, 1, 1, 2, -1, -1, 1],
  [0, 2, -1, -1, -1, -1, -1, -1, 3],
  [0, 3, 0.5, 0, -1, 1, -1, 1, 1],
  [1, 0, 3, 0, -1, 1, 5, 1, 1],
  [1, 3, 1, 0, -1, 1, -1, 1, 1],
];
const tree = () => {
  const column = (i, Kind) => Kind.from(STEPS, (step) => step[i]);
  const names = ["parent", "kind", "value", "layer", "head", "position", "latent", "sae", "count"];
  const kinds = [Int32Array, Uint8Array, Float32Array, ...new Array(6).fill(Int32Array)];
  const fields = Object.fromEntries(names.map((name, i) => [name, column(i, kinds[i])]));
  return {
    header: {
      ...{ pre: 3.5, dest: 2, depth: 2, sums: [3.5, 3.5, 3.5], errors: [0, 0.5, 1.5] },
      kinds: ["latent", "edge", "rest", "error"].map((name) => [name, name]),
      ...{ hooks: ["blocks.1.attn.hook_z", "blocks.0.attn.hook_z"], saes: ["z", "other"] },
    },
    fields: { ...fields, code: new Float32Array(STEPS.length), called: STEPS.map(() => "") },
  };
};
const answers = (more = {}) => ({
  told: () => told(),
  codes,
  where: ({ latent }) => ({
    header: latent === 3 ? { dest: 1, fires: false, name: "" } : { dest: 2, fires: true, name: HOSTILE },
    fields: { pre: Float32Array.from([0, 1, 3.5]), codes: Float32Array.from([0, 1, 3.5]) },
  }),
  dfa,
  shares: () => ({
    header: { names: ["decoder"] },
    fields: { decoder: Float32Array.from([Number.NaN, Number.NaN, 0.25, 0.75]) },
  }),
  pattern: () => ({ fields: { weights: new Uint16Array(N * N) } }),
  top: ({ layer }) => ({
    header: {
      lists: [
        { sae: "", kind: "decoder", equal: 0.5, latents: [[9, 0.5, HOSTILE]] },
        ...(layer ? [] : [{ sae: "other", kind: "decoder", equal: 0.5, latents: [[5, 0.75, ""]] }]),
      ],
    },
  }),
  check: () => ({
    header: { n: 4, edges: [], agreement: beside(), sizes: beside({ apart: false }), foretold: beside() },
  }),
  gradient: () => ({
    header: { layers: [0, 1], total: 3 },
    fields: { parts: Float32Array.from([1, 1, 0, 0, 0, 0, 0, 0, -3, 0, 0, 4]) },
  }),
  without: ({ layer }) => ({ fields: { effects: Float32Array.from([layer, -1]) } }),
  effects: () => ({
    header: { layers: [0, 1], average: 0.75, agreement: beside(), sizes: beside() },
    fields: { effects: Float32Array.from([0, -1, 1, -1]), parts: new Float32Array(4) },
  }),
  tree,
  prefix: ({ length }) => ({
    header: { n: 24, length: 96 },
    fields: Object.fromEntries(
      ["scores", "low", "high", "control", "drop", "drop_low", "drop_high"].map((name, i) => [
        name,
        Float32Array.from([0, 0, 0, length / 10 + i / 100]),
      ]),
    ),
  }),
  induction: () => ({
    header: {},
    fields: Object.fromEntries(
      ["scores", "low", "high", "control", "duplicate", "previous"].map((name, i) => [
        name,
        Float32Array.from([0.9, 0.1, 0.2, 0.3]).map((v) => v / (i + 1)),
      ]),
    ),
  }),
  corpus: () => ({
    header: { n: 12, corpus: HOSTILE, model: "m", measures: [["self", "attention to itself", 0.2]] },
    fields: { self: Float32Array.from([0.1, 0.2, Number.NaN, 0.4]) },
  }),
  examples: () => ({
    header: {
      ...{ n: 12, corpus: HOSTILE, intervals: 1, measures: [["attention to itself", 0.5, null, null, null]] },
      keys: [
        [HOSTILE, 0.5, 0.4, 0.6, 0.1, true],
        ["a", 0.3, 0.1, 0.6, 0.2, false],
      ],
      ...{ queries: [], away: [0, 0.75, 0.25], even: [0, 0.5, 0.5], edges: [0, 1, 2, 4] },
      ...{ strongest: [3, 9], bins: [0, 0.5, 1] },
      sequences: [
        { document: 4, interval: 1, strongest: 0.8, best: [2, 1], tokens: 3, edges: 3 },
        { document: 9, interval: 0, strongest: 0.001, best: null, tokens: 2, edges: 1 },
      ],
    },
    fields: {
      names: [...NAMES, "<s>", " two"],
      pairs: Uint16Array.from([1, 0, 2, 0, 2, 1, 1, 0]),
      weights: Uint16Array.from([65535, 13107, 52428, 65535]),
    },
  }),
  choose: () => ({ header: {} }),
  card: ({ latent }) => card(latent),
  other_card: ({ latent }) => card(latent),
  ...more,
});
const show = async (state = {}, more = {}) => {
  const first = { latent: 7, layer: -1, head: -1, dest: -1, colour: "dfa" };
  const model = new FakeModel({ ...first, ...state }, answers(more));
  const done = render({ model, el });
  await quiet();
  return { model, done };
};
const quiet = async () => {
  for (let i = 0; i < 12; i++) await settle();
};
const cells = () => $$(".sl-head-cell").map((cell) => cell.getAttribute("aria-label"));
const tokens = () => $$(".sl-text [data-at]").map((token) => token.getAttribute("aria-label"));
const asked = (model, question) => model.sent.filter(({ ask }) => ask === question);
const press = async (element, key) => {
  element.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
  await quiet();
};

test("who wrote a latent, by head and by source", async () => {
  await show();
  expect($(".sl-heads-title").textContent).toBe(
    `#7 ${HOSTILE} at 2 «${HOSTILE}»: pre-activation 3.50, code 3.50`,
  );
  expect(cells()).toEqual([
    "head 0.0: nothing known",
    "head 0.1: nothing known",
    "head 1.0: 1.00",
    "head 1.1: 2.00",
  ]);
  expect(tokens().map((name) => name.split(", ").pop())).toEqual(["1.00", "minus 2.00", "4.00"]);
  expect($$(".sl-edge").map((edge) => edge.textContent)[0]).toBe(`+4.001.1from 2 «${HOSTILE}»`);
  expect(el.textContent).toContain("heads +3.00; constants +0.500; together 3.50 of 3.50");
  expect(el.textContent).toContain("what parts are worth");
  expect($("img")).toBe(null);
});

test("a head's own parts light its sources, and the first position may be left out", async () => {
  const { model } = await show();
  $$(".sl-head-cell")[3].click();
  await quiet();
  expect([model.get("layer"), model.get("head")]).toEqual([1, 1]);
  expect(asked(model, "pattern").map(({ args }) => args)).toEqual([{ layer: 1, head: 1 }]);
  expect(tokens().map((name) => name.split(", ").pop())).toEqual(["0", "minus 2.00", "4.00"]);
  const by = $("[data-set=by]");
  by.value = "pattern";
  by.dispatchEvent(new Event("change"));
  expect(tokens().map((name) => name.split(", ").pop())).toEqual(["0.200", "0.800", "0"]);
  $("[data-set=mask]").click();
  expect(tokens().map((name) => name.split(", ").pop())).toEqual(["0", "0.800", "0"]);
  // what the first position gives is in no head then
  expect(cells().slice(2)).toEqual(["head 1.0: 0", "head 1.1: 2.00"]);
});

test("keys go through heads, tokens and the way back", async () => {
  const { model } = await show();
  $$(".sl-head-cell")[0].focus();
  await press($$(".sl-head-cell")[0], "ArrowRight");
  await press($$(".sl-head-cell")[1], "ArrowDown");
  expect($$(".sl-head-cell").map((cell) => cell.tabIndex)).toEqual([-1, -1, -1, 0]);
  await press($$(".sl-head-cell")[3], "Enter");
  expect($$(".sl-head-cell").map((cell) => cell.getAttribute("aria-selected"))[3]).toBe("true");
  const token = $$(".sl-text [data-at]")[2];
  await press(token, "ArrowLeft");
  await press($$(".sl-text [data-at]")[1], "Enter");
  expect(model.get("dest")).toBe(1);
  expect(asked(model, "dfa").at(-1).args).toEqual({ latent: 7, dest: 1 });
  $(".sl-way").open = true;
  $(".sl-way").dispatchEvent(new Event("toggle"));
  await quiet();
  const items = () => $$("[role=treeitem]");
  expect(items().map((item) => item.querySelector("bdi").textContent)).toEqual([
    `latent #7 of blocks.1.attn.hook_z at 2 «${HOSTILE}»`,
    `head 1.1 from 2 «${HOSTILE}»`,
    "3 smaller parts",
    "error of blocks.0.attn.hook_z at 1 «·one»",
  ]);
  // 4 - 1 + .5, of one part, of three, and of one
  expect(items()[0].textContent).toContain("= its 5 parts, +3.50, off by 0");
  expect(items()[3].dataset.kind).toBe("error");
  await press(items()[0], "ArrowDown");
  expect(document.activeElement).toBe(items()[1]);
  await press(items()[1], "ArrowRight");
  const unfolded = ["1", "2", "3", "3", "2", "2"];
  expect(items().map((item) => item.getAttribute("aria-level"))).toEqual(unfolded);
  // what is said again of the same token leaves it as it is, and the focus in it
  model.set("dest", 1);
  await quiet();
  expect(items().map((item) => item.getAttribute("aria-level"))).toEqual(unfolded);
  expect(document.activeElement).toBe(items()[1]);
  await press(items()[1], "ArrowRight");
  await press(items()[2], "Enter");
  expect(asked(model, "choose").map(({ args }) => args)).toEqual([{ sae: "other", latent: 5 }]);
  expect(asked(model, "other_card").map(({ args }) => args)).toEqual([{ latent: 5, sae: "other" }]);
  await press(items()[2], "ArrowLeft");
  expect(document.activeElement).toBe(items()[1]);
  await press(items()[1], "ArrowLeft");
  expect(items().length).toBe(4);
});

test("what is worth what stands beside its control, and says where it is not above it", async () => {
  const { model } = await show();
  $("[data-run]").click();
  await quiet();
  const [agreement, sizes] = $$(".sl-beside-line").map((line) => line.textContent);
  expect(agreement).toBe(
    "Parts and what changes without their edges, Spearman: 0.600 [0.500, 0.700], " +
      "pattern alone 0.100 [0, 0.200], n = 4.",
  );
  expect(sizes).toContain("Not apart from its control.");
  const colour = $("[data-set=colour]");
  colour.value = "ablation";
  colour.dispatchEvent(new Event("change"));
  await quiet();
  $("[data-run]").click();
  await quiet();
  expect(asked(model, "without").map(({ args }) => args.layer)).toEqual([0, 1]);
  expect(cells().map((name) => name.split(": ")[1])).toEqual(["0", "minus 1.00", "1.00", "minus 1.00"]);
  expect($(".sl-controls").textContent).toContain("A head drawn at random changes 0.750.");
  $("[data-set=colour]").value = "induction";
  $("[data-set=colour]").dispatchEvent(new Event("change"));
  await quiet();
  $("[data-run]").click();
  await quiet();
  expect(el.textContent).toContain("a position at random: at most 0.225");
});

test("what edges are worth by gradient is asked for where heads are coloured by it", async () => {
  const { model } = await show();
  expect(asked(model, "gradient")).toEqual([]);
  model.set("colour", "gradient");
  await quiet();
  expect(asked(model, "gradient").map(({ args }) => args)).toEqual([{ latent: 7, dest: 2 }]);
  expect(cells()).toEqual(["head 0.0: 2.00", "head 0.1: 0", "head 1.0: minus 3.00", "head 1.1: 4.00"]);
  expect(tokens().map((name) => name.split(", ").pop())).toEqual(["1.00", "1.00", "1.00"]);
  expect(el.textContent).toContain("these do not sum to the pre-activation");
  model.set("dest", 1);
  await quiet();
  expect(asked(model, "gradient").at(-1).args).toEqual({ latent: 7, dest: 1 });
});

test("shares of weights stand beside equal ones, and what they are worth is said", async () => {
  await show({ colour: "weights" });
  expect(cells().slice(2)).toEqual(["head 1.0: 0.250", "head 1.1: 0.750"]);
  expect(el.textContent).toContain("of equal ones each is 0.500; what weights are worth");
});

test("a run that is stopped asks for no more", async () => {
  const { model } = await show({ colour: "ablation" });
  $("[data-run]").click();
  $$("button")
    .find((b) => b.textContent === "stop")
    .click();
  await quiet();
  expect(asked(model, "without").length).toBe(1);
  expect(asked(model, "effects").length).toBe(0);
  expect($("[role=status].sl-hint").textContent).toBe("");
});

test("curves over prefixes are asked for when they are unfolded", async () => {
  const { model } = await show({ layer: 1, head: 1 });
  expect(asked(model, "prefix")).toEqual([]);
  $(".sl-prefix").open = true;
  $(".sl-prefix").dispatchEvent(new Event("toggle"));
  await quiet();
  expect(asked(model, "prefix").map(({ args }) => args.length)).toEqual([1, 2, 3, 5, 9]);
  expect($(".sl-prefix").textContent).toContain("1: 0.100, 2: 0.200, 3: 0.300, 5: 0.500, 9: 0.900");
});

test("what a head does over a corpus is asked for when it is unfolded", async () => {
  const { model } = await show({ layer: -1, head: -1 });
  const fold = $(".sl-over");
  fold.open = true;
  fold.dispatchEvent(new Event("toggle"));
  await quiet();
  expect(fold.textContent).toContain("Choose a head in the grid.");
  model.set("layer", 1);
  model.set("head", 1);
  await quiet();
  expect(asked(model, "examples").map(({ args }) => args)).toEqual([{ layer: 1, head: 1 }]);
  expect(fold.querySelector("img")).toBe(null);
  expect(fold.textContent).toContain("Head 1.1 over 12 sequences of <img");
  const rows = [...fold.querySelectorAll("tbody tr")].map((row) => row.textContent);
  expect(rows).toEqual([
    `${HOSTILE}50.0 %[40.0 %, 60.0 %]10.0 %`,
    "a30.0 %[10.0 %, 60.0 %]20.0 %not above even",
    "attention to itself0.500",
  ]);
  expect(fold.textContent).toContain("No token above even attention.");
  const [strongest, drawn] = fold.querySelectorAll("li");
  const tokens = [...strongest.querySelectorAll("[data-at]")];
  expect(strongest.textContent).toContain(`0.800 from «${HOSTILE}» to «·one» document 4`);
  expect(tokens.map((token) => token.getAttribute("aria-pressed"))).toEqual(["false", "false", "true"]);
  expect(tokens[1].title).toBe("1: 0.800 of 1");
  tokens[1].click();
  expect(tokens.map((token) => token.title)).toEqual(["0: 1.00 of 0", "1: 0 of 1", "2: 0 of 2"]);
  expect(drawn.textContent).toContain("document 9");
  // the same head again is not asked for
  model.set("head", 0);
  await quiet();
  model.set("head", 1);
  await quiet();
  expect(asked(model, "examples").length).toBe(2);
});

test("heads are coloured by what they do over a corpus once it was read", async () => {
  const { model } = await show({ colour: "corpus" });
  expect($$(".sl-head-cell.sl-none").length).toBe(4);
  $("[data-run]").click();
  await quiet();
  expect(asked(model, "corpus").length).toBe(1);
  expect(cells()).toEqual([
    "head 0.0: 0.100",
    "head 0.1: 0.200",
    "head 1.0: nothing known",
    "head 1.1: 0.400",
  ]);
  expect(el.textContent).toContain("of even attention 0.200; over 12 sequences of <img");
});

test("a latent that is silent, an SAE of another place, and what is chosen elsewhere", async () => {
  const { model, done } = await show({ latent: 3 });
  expect($(".sl-heads-title").textContent).toContain(
    "#3  does not fire on this text. What holds it back, at 1",
  );
  model.set("latent", 7);
  await quiet();
  expect($(".sl-heads-title").textContent).toContain("#7");
  expect(asked(model, "dfa").at(-1).args).toEqual({ latent: 7, dest: 2 });
  done();
  expect(model.count()).toBe(0);
  const other = {
    told: () => told({ kind: "", why: "needs an SAE on the stream", said: "needs an SAE on the stream" }),
  };
  await show({ latent: 7, colour: "attention" }, other);
  expect(el.textContent).toContain("needs an SAE on the stream");
  expect(cells()[3]).toBe("head 1.1: 0.400");
  expect(el.textContent).toContain("of even attention 0.400");
  expect($(".sl-way")).toBe(null);
});

test("a chip at a token chooses its latent, which stays at the token where it fires", async () => {
  const { model } = await show({ dest: 1 });
  expect($$(".sl-firing .sl-chip").map((chip) => chip.querySelector(".sl-number").textContent)).toEqual([
    "#7",
  ]);
  model.set("dest", 2);
  await quiet();
  $$(".sl-firing .sl-chip")[1].click();
  await quiet();
  expect([model.get("latent"), model.get("dest")]).toEqual([9, 2]);
  model.set("latent", 3);
  await quiet();
  expect(model.get("dest")).toBe(-1);
});
