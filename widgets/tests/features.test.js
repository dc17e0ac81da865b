// @vitest-environment jsdom
import { beforeEach, describe, expect, test } from "vitest";
import { Lines } from "../shared/lines.js";
import { modelOf, selectionOf } from "../shared/page.js";
import { render as renderCard } from "../views/card.js";
import { render } from "../views/features.js";
import { card, FakeModel, names, settle, table } from "./fake.js";

let el;
beforeEach(() => {
  el = document.createElement("div");
  document.body.replaceChildren(el);
});
const $ = (selector) => el.querySelector(selector);
const $$ = (selector) => [...el.querySelectorAll(selector)];
const rows = () => $$(".sl-row").map((row) => Number(row.dataset.latent));
const key = (target, name) => {
  const event = new KeyboardEvent("keydown", { key: name, bubbles: true, cancelable: true });
  target.dispatchEvent(event);
};
const write = (input, text) => {
  input.value = text;
  input.setSelectionRange(text.length, text.length);
  input.dispatchEvent(new Event("input"));
};
const HOSTILE = "<img src=x onerror=alert(1)>";
const ABLE = ["search", "find", "where", "column", "notes"];

/** A kernel with marks of which it remembers what was written. */
function kernel(n = 20) {
  const marks = { notes: { 3: "a note" }, tags: { [HOSTILE]: [3] }, lists: { few: [5, 3] } };
  const packed = () => ({
    header: Object.fromEntries(
      ["tags", "lists"].map((kind) => [
        kind,
        Object.entries(marks[kind]).map(([name, j]) => [name, j.length]),
      ]),
    ),
    fields: {
      notes: marks.notes,
      ...Object.fromEntries(
        ["tags", "lists"].map((kind) => [kind, Int32Array.from(Object.values(marks[kind]).flat())]),
      ),
    },
  });
  const bits = { "density > 0": 0xff, "max > 1": 0b1010 };
  return {
    card: ({ latent }) => card(latent),
    table: () => table(n),
    names: () => names(Array.from({ length: n }, (_, j) => `name ${j}`)),
    search: ({ way }) => ({
      header: {
        found:
          way === "token"
            ? [
                [9, 0.5],
                [4, 0.25],
              ]
            : [[1, 1]],
      },
    }),
    columns: () => ({
      header: {
        columns: [
          ["density", "DOUBLE"],
          ["label", "VARCHAR"],
          ["lists", "VARCHAR[]"],
        ],
      },
    }),
    column: ({ sql }) => {
      if (sql === "label")
        return { fields: { values: Array.from({ length: n }, (_, j) => (j % 2 ? HOSTILE : "")) } };
      if (sql === "odd")
        return { fields: { values: Float64Array.from({ length: n }, (_, j) => (j ? j : Number.NaN)) } };
      throw new Error(`A column must be one SQL expression. Got ${sql}.`);
    },
    where: ({ sql }) => {
      if (!bits[sql]) throw new Error(`A filter must be one SQL expression. Got ${sql}.`);
      return { header: { n: 2 }, fields: { bits: Uint8Array.from([bits[sql], 0, 0]) } };
    },
    marks: packed,
    mark: ({ kind, action, name, latents }) => {
      if (kind === "note") marks.notes[latents[0]] = name;
      else {
        const all = marks[`${kind}s`];
        const left = (all[name] ?? []).filter((j) => !latents.includes(j));
        all[name] = action === "add" ? [...left, ...latents] : left;
      }
      return {};
    },
  };
}

async function show(state = {}, answers = kernel()) {
  const model = new FakeModel({ able: ABLE, columns: ["density"], ...state }, answers);
  render({ model, el });
  await settle();
  return model;
}

describe("lines", () => {
  const made = (columns, n) => {
    const lines = new Lines({
      fields: {
        count: new Int32Array(n),
        density: new Float32Array(n),
        mean: new Float32Array(n),
        max: new Float32Array(n),
      },
    });
    for (const [name, values] of Object.entries(columns)) lines.add(name, values);
    return lines;
  };
  const plain = (values, descending) => {
    const isMissing = (v) => v === "" || Number.isNaN(v);
    const fold = (v) => (typeof v === "string" ? v.toLowerCase() : v);
    return [...values.keys()].sort((a, b) => {
      const [x, y] = [fold(values[a]), fold(values[b])];
      if (isMissing(x) || isMissing(y)) return isMissing(x) - isMissing(y) || a - b;
      return (x < y ? -1 : x > y ? 1 : 0) * (descending ? -1 : 1) || a - b;
    });
  };
  test("any column is sorted as a plain sort does, with gaps, ties and both signs", () => {
    let seed = 7;
    const random = () => {
      seed = (seed * 16807) % 2147483647;
      return seed / 2147483647;
    };
    const n = 3000;
    const of = (make) => Array.from({ length: n }, make);
    const letters = ["a", "B", "aa", "abcdefghij", "abcdefghik", "ABCDEFGHIJ", "日本", "𝒳", "\u0000", ""];
    const columns = {
      floats: Float32Array.from(
        of(() => (random() < 0.1 ? Number.NaN : (random() - 0.5) * 10 ** (8 * random() - 4))),
      ),
      ties: Float32Array.from(of(() => Math.round(random() * 3) - 1)),
      zeros: Float32Array.from(of(() => [0, -0, 1, -1, Infinity, -Infinity][Math.floor(random() * 6)])),
      close: Float64Array.from(of(() => (random() < 0.1 ? Number.NaN : 1e9 + Math.round(random() * 20)))),
      texts: of(() => letters[Math.floor(random() * 10)] + letters[Math.floor(random() * 10)]),
    };
    const lines = made(columns, n);
    const keep = new Uint8Array(n).fill(1);
    for (const [name, values] of Object.entries(columns))
      for (const descending of [true, false])
        expect(lines.sorted(keep, name, descending), `${name} ${descending}`).toEqual(
          plain(values, descending),
        );
  });
  test("a bit a latent, a list and words keep those that all three keep", () => {
    const lines = made({}, 20);
    lines.name(Array.from({ length: 20 }, (_, j) => (j % 2 ? "Odd" : "even")));
    const state = {
      words: "odd",
      listed: [1, 2, 3, 9, 99],
      where: Uint8Array.from([0b1010, 2, 0]),
      found: null,
    };
    expect(lines.shown({ ...state, sort: "latent", descending: false })).toEqual([1, 3, 9]);
    expect(lines.shown({ ...state, found: [9, 0, 1], sort: "score", descending: true })).toEqual([9, 1]);
    expect(
      lines.shown({ ...state, words: "1", listed: null, where: null, sort: "latent", descending: false })[1],
    ).toBe(10);
  });
});

describe("the browser", () => {
  test("begins with a telling card, and steals no choice", async () => {
    const model = await show({ begins: 4 });
    expect($(".sl-card").dataset.latent).toBe("4");
    expect($(".sl-row.sl-chosen").dataset.latent).toBe("4");
    expect([model.state.latent, model.saved]).toEqual([null, 0]);
    key($(".sl-list"), "ArrowDown");
    const first = model.state.latent;
    expect(first).toBe(rows()[rows().indexOf(4) + 1]);
    key($(".sl-list"), "Escape");
    await settle();
    expect(model.state.latent).toBe(null);
    expect($(".sl-place").textContent).toContain("Choose a latent");
    el.replaceChildren();
    await show({ begins: 4, latent: 7 });
    expect($(".sl-card").dataset.latent).toBe("7");
  });
  test("filters by SQL; what is wrong is said under it, and the list stays", async () => {
    const model = await show();
    const input = $(".sl-where");
    write(input, "max > 1");
    input.dispatchEvent(new Event("change"));
    await settle();
    expect(rows().sort()).toEqual([1, 3]);
    expect(model.state.where).toBe("max > 1");
    write(input, "nonsense");
    input.dispatchEvent(new Event("change"));
    await settle();
    expect($(".sl-wrong").textContent).toContain("A filter must be one SQL expression. Got nonsense.");
    expect(input.getAttribute("aria-invalid")).toBe("true");
    expect(document.getElementById(input.getAttribute("aria-describedby"))).toBe($(".sl-wrong"));
    expect($(".sl-banner").hidden).toBe(true);
    expect([rows().length, model.state.where]).toEqual([2, "max > 1"]);
    key(input, "Escape");
    await settle();
    expect([rows().length, model.state.where, $(".sl-wrong").textContent]).toEqual([20, "", ""]);
  });
  test("names of columns are completed by keyboard", async () => {
    await show();
    const input = $(".sl-where");
    write(input, "len(l");
    await settle();
    const options = () => $$(".sl-words [role=option]").map((o) => o.firstChild.textContent);
    expect(options()).toEqual(["label", "lists"]);
    expect(input.getAttribute("aria-expanded")).toBe("true");
    key(input, "ArrowDown");
    expect($(".sl-words [aria-selected=true]").id).toBe(input.getAttribute("aria-activedescendant"));
    key(input, "Enter");
    expect([input.value, options().length]).toEqual(["len(lists", 0]);
    write(input, "d");
    await settle();
    key(input, "Escape");
    expect([input.value, options().length]).toEqual(["d", 0]);
  });
  test("shows and sorts by columns of one's own; texts stay texts", async () => {
    const model = await show({ columns: ["density", "label", "odd"], sort: "odd", descending: true });
    expect($$(".sl-head > span").map((e) => e.textContent)).toEqual([
      "latent",
      "name",
      "density",
      "label",
      "odd",
    ]);
    expect(rows().slice(0, 2)).toEqual([19, 18]);
    expect(rows().at(-1)).toBe(0);
    expect($$(".sl-row .sl-cell")[0].textContent).toBe(HOSTILE);
    expect($("img")).toBe(null);
    $('[data-sort="label"]').click();
    expect(rows().slice(0, 2)).toEqual([1, 3]);
    expect([model.state.sort, model.state.descending]).toEqual(["label", true]);
    $$("summary")[0].parentElement.open = true;
    $(".sl-fold").dispatchEvent(new Event("toggle"));
    await settle();
    const boxes = $$(".sl-checks label");
    expect(boxes.map((b) => b.textContent)).toContain("lists");
    boxes
      .find((b) => b.textContent === "odd")
      .querySelector("input")
      .click();
    await settle();
    expect(model.state.columns).toEqual(["density", "label"]);
    const own = $(".sl-fold .sl-where");
    write(own, "drop table x");
    key(own, "Enter");
    await settle();
    expect($(".sl-fold .sl-wrong").textContent).toContain("Got drop table x");
    expect(model.state.columns).toEqual(["density", "label"]);
    // and what Python sets is shown
    model.set("columns", ["odd"]);
    await settle();
    expect($$(".sl-head > span").map((e) => e.textContent)).toEqual(["latent", "name", "odd"]);
  });
  test("searches by token, in the order of what was found", async () => {
    const model = await show();
    const by = $('[aria-label="search by"]');
    by.value = "token";
    by.dispatchEvent(new Event("change"));
    write($(".sl-box"), "␣cat");
    expect(rows().length).toBe(20);
    key($(".sl-box"), "Enter");
    await settle();
    expect(model.sent.find((m) => m.ask === "search").args).toEqual({ text: " cat", way: "token" });
    await settle();
    expect(model.sent.filter((m) => m.ask === "search").length).toBe(1);
    expect(rows()).toEqual([9, 4]);
    expect([model.state.way, model.state.sort, model.state.latent]).toEqual(["token", "score", 9]);
    expect($(".sl-row .sl-value").textContent).toBe("0.500");
    $('[data-sort="latent"]').click();
    expect(rows()).toEqual([4, 9]);
    key($(".sl-box"), "Escape");
    await settle();
    expect([rows().length, model.state.way, model.state.words, $(".sl-box").value]).toEqual([20, "", "", ""]);
  });
  test("a list is chosen with its latents, and a random one of these by a key", async () => {
    const model = await show();
    const set = $(".sl-set");
    expect([...set.options].map((o) => o.textContent)).toEqual(["all latents", "few (2)", `${HOSTILE} (1)`]);
    set.value = "list:few";
    set.dispatchEvent(new Event("change"));
    expect([model.state.list, model.state.latents]).toEqual(["few", [5, 3]]);
    expect(rows().sort()).toEqual([3, 5]);
    const drawn = new Set();
    for (let i = 0; i < 40; i++) {
      key($(".sl-list"), "r");
      drawn.add(model.state.latent);
    }
    expect([...drawn].sort()).toEqual([3, 5]);
    model.set("list", null);
    model.set("latents", [8]);
    expect([set.value, set.selectedOptions[0].textContent]).toEqual(["chosen", "those chosen (1)"]);
  });
  test("latents are put into lists and under tags, all that are shown or the chosen one", async () => {
    const answers = kernel();
    const model = await show({ latents: [1, 2] }, answers);
    key($(".sl-list"), "l");
    const box = () => $(".sl-fold[open] .sl-name-box");
    expect(document.activeElement).toBe(box());
    $('[aria-label="which latents are meant"]').value = "all";
    box().value = " new ";
    key(box(), "Enter");
    await settle();
    expect(model.sent.at(-2).args).toMatchObject({ kind: "list", action: "add", name: "new" });
    expect([...model.sent.at(-2).args.latents].sort()).toEqual([1, 2]);
    expect($(".sl-said").textContent).toBe("2 in the list new");
    expect([...$(".sl-set").options].map((o) => o.textContent)).toContain("new (2)");
  });
  test("back and forward are asked for by key and button, but not where letters are written", async () => {
    const model = await show();
    const steps = () => model.sent.filter((m) => m.ask === "step").map((m) => m.args.by);
    key($(".sl-list"), "b");
    key($(".sl-box"), "b");
    $(".sl-steps").lastChild.click();
    await settle();
    expect(steps()).toEqual([-1, 1]);
  });
});

describe("marks on a card", () => {
  test("are read and written in place", async () => {
    const answers = kernel();
    const model = new FakeModel({ latent: 3 }, answers);
    renderCard({ model, el });
    await settle();
    expect($(".sl-marks textarea").value).toBe("a note");
    expect($$(".sl-mark bdi").map((e) => e.textContent)).toEqual([HOSTILE, "few"]);
    expect($("img")).toBe(null);
    const note = $(".sl-marks textarea");
    note.value = "another";
    note.dispatchEvent(new Event("change"));
    await settle();
    expect(model.sent.find((m) => m.ask === "mark").args).toEqual({
      ...{ kind: "note", action: "add", name: "another", latents: [3] },
    });
    const tag = $('[aria-label="add a tag"]');
    tag.focus();
    tag.value = "new";
    key(tag, "Enter");
    await settle();
    expect($$(".sl-mark bdi").map((e) => e.textContent)).toEqual([HOSTILE, "new", "few"]);
    expect(document.activeElement.getAttribute("aria-label")).toBe("add a tag");
    $('[aria-label="take it out of the list few"]').click();
    await settle();
    expect($$(".sl-mark bdi").map((e) => e.textContent)).toEqual([HOSTILE, "new"]);
    // what another view wrote is shown
    answers.mark({ kind: "tag", action: "add", name: "theirs", latents: [3] });
    model.set("written", 1);
    await settle();
    expect($$(".sl-mark bdi").map((e) => e.textContent)).toContain("theirs");
  });
  test("where there are none, a card has no place for them", async () => {
    const { card: only } = kernel();
    renderCard({
      model: new FakeModel(
        { latent: 3 },
        {
          card: only,
          marks: () => {
            throw new Error("no");
          },
        },
      ),
      el,
    });
    await settle();
    expect($(".sl-card")).not.toBe(null);
    expect($(".sl-marks").children.length).toBe(0);
    expect($(".sl-banner").hidden).toBe(true);
  });
});

test("a page goes back and forward in what was chosen", () => {
  const selection = selectionOf({ latent: 1 });
  const model = modelOf({ follows: ["latent", "row", "latents", "list"], options: {} }, selection);
  const choose = (choices) => {
    for (const [name, value] of Object.entries(choices)) model.set(name, value);
    model.save_changes();
  };
  choose({ latent: 2 });
  choose({ row: 5 });
  choose({ latents: [2, 3], list: "few" });
  selection.step(-1);
  expect([model.get("latent"), model.get("row"), model.get("latents"), model.get("list")]).toEqual([
    2,
    5,
    null,
    null,
  ]);
  selection.step(-1);
  selection.step(-1);
  expect(model.get("latent")).toBe(1);
  selection.step(1);
  selection.step(1);
  expect([model.get("latent"), model.get("list")]).toEqual([2, "few"]);
  choose({ latents: [7] });
  expect(model.get("list")).toBe(null);
  selection.step(1);
  expect(model.get("latents")).toEqual([7]);
});
