// @vitest-environment jsdom
import { beforeEach, expect, test, vi } from "vitest";
import { render } from "../views/compare.js";
import { card, FakeModel, settle } from "./fake.js";

const NASTY = "<img src=x onerror=alert(1)>";
let el;
beforeEach(() => {
  el = document.createElement("div");
  document.body.replaceChildren(el);
});
const $ = (selector) => el.querySelector(selector);
const $$ = (selector) => [...el.querySelectorAll(selector)];

/** Pairs 0-10, 1-11, 2-12 and 0-12, which co-firing knows nothing of; 3 and 13 are of one SAE alone. */
const pairs = () => ({
  header: {
    names: ["ours", NASTY],
    measures: ["cosine", "phi"],
    shares: [["cosine", "ours", "75.0 % [70, 80], by chance 1.0 %", 0.4]],
    reasons: ["a reason"],
  },
  fields: {
    ours: Int32Array.from([0, 1, 2, 0]),
    theirs: Int32Array.from([10, 11, 12, 12]),
    cosine: Float32Array.from([0.5, 0.75, 0.25, 0.1]),
    cosine_kind: Uint8Array.from([2, 2, 1, 0]),
    cosine_own_ours: Int32Array.from([3]),
    cosine_own_theirs: Int32Array.from([13]),
    cosine_left_ours: new Int32Array(0),
    cosine_left_theirs: new Int32Array(0),
    phi: Float32Array.from([0.9, Number.NaN, 0.3, 0.6]),
    phi_kind: Uint8Array.from([1, 0, 1, 2]),
    phi_own_ours: new Int32Array(0),
    phi_own_theirs: new Int32Array(0),
    phi_left_ours: Int32Array.from([1]),
    phi_left_theirs: new Int32Array(0),
  },
});
const called = {
  ours: ["zero", "one", "two", NASTY],
  theirs: Array.from({ length: 14 }, (_, j) => `their ${j}`),
};
const texts = ({ latent }) => ({
  fields: {
    ours_names: ["a", NASTY],
    ours_values: Float32Array.from([0, 2]),
    theirs_names: ["a", " b", " c"],
    theirs_values: latent === 1 ? new Float32Array(3) : Float32Array.from([1, 0, 0]),
  },
});
async function shown(state = {}, answers = {}) {
  const model = new FakeModel(
    { latent: 0, other: 10, ...state },
    {
      pairs,
      names: () => ({ fields: called }),
      card: ({ latent }) => card(latent),
      other_card: ({ latent }) => card(latent),
      text: texts,
      ...answers,
    },
  );
  const close = render({ model, el });
  await settle();
  return { model, close };
}
const lines = () =>
  $$("tr[data-ours]").map((row) => [row.dataset.ours, row.dataset.theirs].filter(Boolean).join("-"));
const chosen = () => $$("tr.sl-chosen").map((row) => `${row.dataset.ours}-${row.dataset.theirs}`);
const sort = (name) => $(`[data-sort="${name}"]`).click();

test("pairs of a measure, their kind and both measures", async () => {
  const { close, model } = await shown();
  expect(lines()).toEqual(["0-10", "1-11", "2-12"]);
  expect([...$("tr[data-ours='1']").cells].map((cell) => cell.textContent)).toEqual([
    "#1 one",
    "#11 their 11",
    "matched",
    "0.750",
    "–",
  ]);
  const select = $("[data-by]");
  select.value = "phi";
  select.dispatchEvent(new Event("change"));
  expect(lines()).toEqual(["0-10", "2-12", "0-12"]);
  expect($("[role=status].sl-hint").textContent).toBe("3 shown");
  expect($$("[data-list]").map((b) => b.textContent)).toEqual(["pairs (3)", "not compared, ours (1)"]);
  expect($("img")).toBeNull();
  expect(el.textContent).toContain("by chance 1.0 %");
  expect(el.textContent).toContain("a reason");
  close();
  expect(model.count()).toBe(0);
});

test("lines are sorted by a column, what has no number last", async () => {
  await shown();
  sort("cosine");
  expect(lines()).toEqual(["1-11", "0-10", "2-12"]);
  expect($("[data-sort='cosine']").closest("th").getAttribute("aria-sort")).toBe("descending");
  expect(document.activeElement.dataset.sort).toBe("cosine");
  sort("cosine");
  expect(lines()).toEqual(["2-12", "0-10", "1-11"]);
  sort("phi");
  expect(lines()).toEqual(["0-10", "2-12", "1-11"]);
  sort("phi");
  expect(lines()).toEqual(["2-12", "0-10", "1-11"]);
  sort("ours");
  expect(lines()).toEqual(["0-10", "1-11", "2-12"]);
});

test("a filter finds numbers and names of either side, and says where there are none", async () => {
  await shown();
  const type = (text) => {
    $("input[type=search]").value = text;
    $("input[type=search]").dispatchEvent(new Event("input"));
  };
  for (const [text, found] of [
    ["TWO", ["2-12"]],
    ["#11", ["1-11"]],
    ["their 1", ["0-10", "1-11", "2-12"]],
    ["1", ["0-10", "1-11", "2-12"]],
    ["no such", []],
  ]) {
    type(text);
    expect(lines(), text).toEqual(found);
  }
  expect($(".sl-compare-table").textContent).toBe("No latent is called so.");
  type("");
  $("[data-list='own_ours']").click();
  expect(lines()).toEqual(["3"]);
  expect($(".sl-pair").textContent).toBe(`#3 ${NASTY}`);
  expect($$("[data-sort]").map((b) => b.dataset.sort)).toEqual(["ours"]);
  $("[data-list='own_theirs']").click();
  expect([lines(), document.activeElement.dataset.list]).toEqual([["13"], "own_theirs"]);
});

test("a pair is chosen by a click, by arrows, and from elsewhere", async () => {
  const { model } = await shown();
  expect(chosen()).toEqual(["0-10"]);
  $$(".sl-pair")[1].click();
  expect([model.state.latent, model.state.other, chosen()]).toEqual([1, 11, ["1-11"]]);
  $$(".sl-pair")[1].focus();
  $(".sl-pair:focus").dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowDown", bubbles: true }));
  expect([model.state.latent, model.state.other]).toEqual([2, 12]);
  expect(document.activeElement).toBe($$(".sl-pair")[2]);
  model.set("other", 11);
  expect(chosen()).toEqual([]);
  model.set("latent", 1);
  await settle();
  expect(chosen()).toEqual(["1-11"]);
  expect(model.sent.filter((m) => m.ask === "other_card").map((m) => m.args.latent)).toContain(12);
});

test("a long list goes on by a hundred", async () => {
  const n = 150;
  const range = (from) => Int32Array.from({ length: n }, (_, i) => from + i);
  const { header, fields } = pairs();
  const many = { ours: range(0), theirs: range(0), cosine: new Float32Array(n), phi: new Float32Array(n) };
  const kinds = { cosine_kind: new Uint8Array(n).fill(1), phi_kind: new Uint8Array(n).fill(1) };
  await shown({}, { pairs: () => ({ header, fields: { ...fields, ...many, ...kinds } }) });
  expect(lines().length).toBe(100);
  const more = $(".sl-compare-table > button");
  expect(more.textContent).toBe("50 more");
  more.click();
  expect(lines().length).toBe(150);
  expect($(".sl-compare-table > button")).toBeNull();
});

test("one text under both, which may be cut differently", async () => {
  const { model } = await shown({ latent: 1 });
  const input = $("[aria-label='a text']");
  input.value = "some words";
  input.form.dispatchEvent(new Event("submit", { cancelable: true }));
  await settle();
  expect(model.sent.at(-1)).toMatchObject({
    ask: "text",
    args: { text: "some words", latent: 1, other: 10 },
  });
  const told = $$(".sl-compare-heat figcaption").map((caption) => caption.textContent);
  expect(told).toEqual(["ours #1, up to 2.00", `${NASTY} #10, which does not fire here`]);
  expect($$(".sl-compare-heat .sl-sample").map((side) => side.children.length)).toEqual([2, 3]);
  expect($("img")).toBeNull();
});

test("scores are measured where they are asked for, and again after a failure", async () => {
  const scores = vi.fn(() => {
    throw new Error("no model");
  });
  await shown({}, { scores });
  expect(scores).not.toHaveBeenCalled();
  $("[data-scores]").click();
  await settle();
  expect(el.textContent).toContain("no model");
  const rows = [["FVU", NASTY, 0.1, 0.05, 0.15, 0.9]];
  scores.mockImplementation(() => ({ header: { rows, of: { [NASTY]: ["blocks.1", 1000] } } }));
  $("[data-scores]").click();
  await settle();
  const table = $("section[aria-label='scores'] table");
  expect([...table.rows[1].cells].map((cell) => cell.textContent)).toEqual([
    "FVU",
    NASTY,
    "0.100",
    "0.050 to 0.150",
    "0.900",
  ]);
  expect($("section[aria-label='scores'] figcaption").textContent).toBe(`${NASTY}: blocks.1, 1,000 rows`);
});
