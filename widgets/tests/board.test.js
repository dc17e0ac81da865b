// @vitest-environment jsdom
import { beforeEach, expect, test } from "vitest";
import { h } from "../shared/dom.js";
import { rendering } from "../shared/view.js";
import { holding } from "../views/board.js";
import { FakeModel, sent, settle } from "./fake.js";

/** A view that shows what is chosen and what it is answered. */
const render = rendering(async (view) => {
  const said = h("p", { class: "said" });
  const button = h("button", {
    class: "next",
    onclick: () => view.choose({ latent: view.chosen("latent") + 1 }),
  });
  view.body.append(said, button);
  const draw = () => {
    said.textContent = `latent ${view.chosen("latent")} option ${view.option("settings")}`;
  };
  view.follow("latent", draw);
  view.changed("settings", draw);
  draw();
  const answer = await view.ask("echo", { b: 2, a: "x" });
  if (answer) view.body.append(h("em", {}, answer.header.said));
});
const entry = (selection, settings = "") => ({
  kind: "plain",
  follows: ["latent"],
  options: { settings, labels: {} },
  selection,
});
const place = (view) => ({ view, height: null, folded: false });
let model;
let el;
let close;

beforeEach(async () => {
  const places = {
    columns: [
      { width: 1, views: [place(0), place(2)] },
      { width: 1, views: [place(1)] },
    ],
  };
  const state = {
    entries: [entry(0), entry(0, "b"), entry(1)],
    selections: [{ latent: 1 }, { latent: 50 }],
    places: JSON.stringify(places),
  };
  const of = ({ view, question, args }) => ({ header: { said: `${view} ${question} ${args}` } });
  model = new FakeModel(state, { of });
  document.body.replaceChildren();
  el = h("div");
  document.body.append(el);
  close = holding({ plain: render })({ model, el });
  await settle();
});

const said = () => [...el.querySelectorAll(".said")].map((p) => p.textContent);
const columns = () =>
  [...el.querySelectorAll(".sl-board-column")].map((c) =>
    [...c.children].map((v) => v.getAttribute("aria-label")),
  );
const placed = () => JSON.parse(model.get("places"));
const press = (target, key) =>
  target.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));

test("views of one selection are linked here already, others are not", () => {
  expect(said()).toEqual(["latent 1 option ", "latent 50 option ", "latent 1 option b"]);
  el.querySelector(".next").click();
  expect(said()).toEqual(["latent 2 option ", "latent 50 option ", "latent 2 option b"]);
  expect(model.get("selections")).toEqual([{ latent: 2 }, { latent: 50 }]);
  const saved = model.saved;
  model.set("selections", [{ latent: 9 }, { latent: 51 }]);
  expect(said()).toEqual(["latent 9 option ", "latent 51 option ", "latent 9 option b"]);
  expect(model.saved, "what is told from Python is not told back").toBe(saved);
});

test("each view's questions are asked as its own, with sorted arguments", () => {
  expect([...el.querySelectorAll("em")].map((e) => e.textContent).sort()).toEqual([
    '0 echo {"a":"x","b":2}',
    '1 echo {"a":"x","b":2}',
    '2 echo {"a":"x","b":2}',
  ]);
});

test("an option that Python changes reaches its view alone", () => {
  model.set("entries", [entry(0, "new"), entry(0, "b"), entry(1)]);
  expect(said()).toEqual(["latent 1 option new", "latent 50 option ", "latent 1 option b"]);
});

test("views move, and keep what they show", async () => {
  expect(columns()).toEqual([["plain 1", "plain 3"], ["plain 2"]]);
  const move = (name, arrow) => el.querySelector(`[aria-label="${name}"] [data-move="${arrow}"]`).click();
  const shown = el.querySelector('[aria-label="plain 3"] .said');
  move("plain 3", "↑");
  expect(columns()).toEqual([["plain 3", "plain 1"], ["plain 2"]]);
  move("plain 3", "↑");
  move("plain 3", "→");
  expect(columns()).toEqual([["plain 1"], ["plain 3", "plain 2"]]);
  move("plain 3", "→");
  expect(columns()).toEqual([["plain 1"], ["plain 2"], ["plain 3"]]);
  move("plain 1", "→");
  expect(columns()).toEqual([["plain 1", "plain 2"], ["plain 3"]]);
  move("plain 3", "→");
  expect(columns()).toEqual([["plain 1", "plain 2"], ["plain 3"]]);
  expect(el.querySelector('[aria-label="plain 3"] .said')).toBe(shown);
  expect(placed().columns.map((c) => c.views.map((v) => v.view))).toEqual([[0, 1], [2]]);
});

test("widths and heights by keys, folding, and what is too much", async () => {
  const width = el.querySelector('[aria-label="width of column 1"]');
  press(width, "ArrowRight");
  press(width, "ArrowUp");
  expect(placed().columns.map((c) => c.width)).toEqual([1.1, 1]);
  const height = el.querySelector('[aria-label="height of plain 1"]');
  press(height, "ArrowDown");
  await settle();
  expect(placed().columns[0].views[0].height).toBe(120);
  expect(el.querySelector('[aria-label="plain 1"] .sl-board-held').style.height).toBe("120px");
  press(height, "Enter");
  await settle();
  expect(placed().columns[0].views[0].height).toBe(null);
  const fold = el.querySelector('[aria-label="plain 1"] .sl-board-fold');
  fold.click();
  await settle();
  expect(fold.getAttribute("aria-expanded")).toBe("false");
  expect(el.querySelector('[aria-label="plain 1"] .sl-board-held').hidden).toBe(true);
  for (let i = 0; i < 200; i++) press(width, "ArrowRight");
  expect(placed().columns[0].width).toBe(20);
});

test("a board that is taken away listens to nothing", () => {
  close();
  expect(model.count()).toBe(0);
  expect(el.children.length).toBe(0);
});

test("what a view is told reaches it, also of a page that is loaded anew, and it may interrupt", async () => {
  close();
  el.replaceChildren();
  const interrupts = [];
  const news = rendering(async (view) => {
    const p = h("p", { class: "news", onclick: () => view.interrupt?.() });
    view.body.append(p);
    const draw = () => {
      p.textContent = view.option("opening")?.runs?.header.at ?? "nothing";
    };
    view.changed("opening", draw);
    draw();
    const answer = await view.ask("runs");
    p.title = answer?.header.at ?? "";
  });
  const told = (at) => ({ 1: { runs: sent({ header: { at } }) } });
  const of = ({ view }) => ({ header: { at: `asked of ${view}` } });
  model = new FakeModel({ ...model.state, told: told("first") }, { of });
  model.widget_manager = { kernel: { interrupt: async () => interrupts.push(1) } };
  close = holding({ plain: news })({ model, el });
  await settle();
  const shown = () => [...el.querySelectorAll(".news")];
  const texts = () => shown().map((p) => p.textContent);
  expect(texts().sort()).toEqual(["first", "nothing", "nothing"]);
  expect(
    shown()
      .map((p) => p.title)
      .sort(),
  ).toEqual(["asked of 0", "asked of 2", "first"]);
  const saved = model.saved;
  model.set("told", told("second"));
  expect(texts().sort()).toEqual(["nothing", "nothing", "second"]);
  expect(model.saved, "what is told from Python is not told back").toBe(saved);
  shown()[0].click();
  expect(interrupts).toEqual([1]);
  close();
  expect(model.count()).toBe(0);
});
