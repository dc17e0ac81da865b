// @vitest-environment jsdom
import { beforeEach, describe, expect, test } from "vitest";
import { MAX_ALPHA } from "../shared/scales.js";
import { render as renderCard } from "../views/card.js";
import { render as renderFeatures } from "../views/features.js";
import { render as renderSample } from "../views/sample.js";
import {
  card,
  codes,
  FakeModel,
  laidOut,
  names,
  PICTURE,
  pictured,
  poles,
  sent,
  settle,
  signedCodes,
  table,
} from "./fake.js";

let el;
beforeEach(() => {
  el = document.createElement("div");
  document.body.replaceChildren(el);
});

const answers = (n = 100) => ({
  card: ({ latent }) => card(latent),
  codes,
  table: () => table(n),
  names: () => names(Array.from({ length: n }, (_, j) => `name ${j}`)),
  search: ({ text }) => ({
    header: {
      found: [
        [text.length, 2],
        [1, 1],
      ],
    },
  }),
});
const key = (target, name) =>
  target.dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true, cancelable: true }));
const $ = (selector) => el.querySelector(selector);
const $$ = (selector) => [...el.querySelectorAll(selector)];

test("labels that are edited show at once, in every view", async () => {
  const edited = { 2: { label: "mine <b>", name: "mine <b>" }, 5: { label: "", name: "tokens" } };
  const named = () => ({ ...codes(), header: { ...codes().header, named: { 2: "old", 5: "five" } } });
  const model = new FakeModel({ latent: 2, with_card: true }, { ...answers(), codes: named });
  renderSample({ model, el });
  await settle();
  $$(".sl-text .sl-token")[1].click();
  const labels = () => $$(".sl-chip .sl-label").map((label) => label.textContent);
  expect(labels()).toEqual(["five", "old"]);
  expect($(".sl-legend").textContent).toContain("latent #2 «old»");
  expect($(".sl-card h3").textContent).toBe("#2 a label");
  model.set("labels", edited);
  await settle();
  expect(labels()).toEqual(["mine <b>"]);
  expect($(".sl-legend").textContent).toContain("latent #2 «mine <b>»");
  expect($(".sl-card h3").textContent).toBe("#2 mine <b>");

  el.replaceChildren();
  const browser = new FakeModel({ latent: 2 }, answers());
  renderFeatures({ model: browser, el });
  await settle();
  const named2 = () => $(".sl-row[data-latent='2'] .sl-name")?.textContent;
  $(".sl-box").value = "mine";
  $(".sl-box").dispatchEvent(new Event("input"));
  browser.set("labels", edited);
  await settle();
  expect(named2()).toBe("mine <b>");
  browser.set("labels", {});
  expect(named2()).toBe(undefined);
  $(".sl-box").value = "name 2";
  $(".sl-box").dispatchEvent(new Event("input"));
  browser.set("labels", {});
  expect(named2()).toBe("name 2");
});

describe("signs", () => {
  test("a text shows both signs, and says so", async () => {
    renderSample({ model: new FakeModel({}, { ...answers(), codes: signedCodes }), el });
    await settle();
    const tokens = $$(".sl-text .sl-token");
    expect(tokens.map((t) => t.classList.contains("sl-negative"))).toEqual([false, true, false, false]);
    expect(tokens[1].getAttribute("aria-label")).toBe("·one, minus 3.00");
    expect(tokens[2].getAttribute("aria-label")).toBe("·two, 2.00");
    expect($(".sl-legend").textContent).toContain("−3.00 to 3.00");
    expect($(".sl-legend .sl-key").classList.contains("sl-negative")).toBe(true);
    expect($(".sl-ramp").classList.contains("sl-both")).toBe(true);
    tokens[1].dispatchEvent(new Event("pointerover", { bubbles: true }));
    // the negative one is the stronger
    expect($$(".sl-detail .sl-value").map((v) => v.textContent)).toEqual(["−3.00", "1.00"]);
    expect($$(".sl-detail .sl-meter").map((m) => m.classList.contains("sl-negative"))).toEqual([true, false]);
    expect($$(".sl-detail .sl-meter")[0].style.getPropertyValue("--sl-share")).toBe("100%");
  });
  test("a text without negative codes says nothing of them", async () => {
    renderSample({ model: new FakeModel({}, answers()), el });
    await settle();
    expect($(".sl-legend .sl-key")).toBe(null);
    expect($(".sl-legend").textContent).not.toContain("null");
  });
  test("a text on which the chosen latent is silent says so, and shows the strongest", async () => {
    const model = new FakeModel({ latent: 2 }, answers());
    renderSample({ model, el });
    await settle();
    const shades = () => $$(".sl-text .sl-token").map((t) => t.style.getPropertyValue("--sl-alpha"));
    const own = shades();
    expect($(".sl-legend").textContent).not.toContain("does not fire");
    model.set("latent", null);
    const strongest = shades();
    expect(strongest).not.toEqual(own);
    model.set("latent", 77);
    expect($(".sl-legend").textContent).toContain(
      "latent #77 does not fire here; strongest latent of each token",
    );
    expect(shades()).toEqual(strongest);
  });
  test("a character that is split over tokens is shown once, and each token keeps its value", async () => {
    const whole = codes();
    const split = { ...whole, fields: { ...whole.fields, names: ["<s>", "日", null, "\n"] } };
    const model = new FakeModel({}, { ...answers(), codes: () => split });
    renderSample({ model, el });
    await settle();
    const tokens = $$(".sl-text .sl-token");
    expect(tokens.map((t) => t.textContent)).toEqual(["<s>", "日", "", "↵"]);
    expect(tokens.map((t) => t.classList.contains("sl-goes-on"))).toEqual([false, false, true, false]);
    expect(tokens[2].getAttribute("aria-label")).toBe("part of the character before, 2.00");
    expect(tokens[2].style.getPropertyValue("--sl-alpha")).not.toBe("0.0%");
    tokens[2].dispatchEvent(new Event("pointerover", { bubbles: true }));
    expect($(".sl-detail .sl-quoted").textContent).toBe("日");
  });
  test("a card shows both poles", async () => {
    renderCard({ model: new FakeModel({ latent: 3 }, { card: ({ latent }) => poles(latent) }), el });
    await settle();
    const sections = $$(".sl-card section").filter((s) => s.querySelector(".sl-windows"));
    expect(sections.map((s) => s.querySelector("h4").textContent)).toEqual([
      "+Strongest of the positive pole",
      "−Strongest of the negative pole",
      "From weak to strong",
    ]);
    expect(sections.map((s) => s.querySelector("li .sl-value").textContent)).toEqual([
      "+1.50",
      "−2.00",
      "+0.500",
    ]);
    const [weak, peak] = sections[1].querySelectorAll(".sl-token");
    expect([weak, peak].map((t) => t.classList.contains("sl-negative"))).toEqual([false, true]);
    expect([weak.title, peak.title]).toEqual(["a  +0.250", "·b  −2.00"]);
    // one scale for both poles: the strongest of either is the darkest
    const alpha = (t) => parseFloat(t.style.getPropertyValue("--sl-alpha"));
    expect(alpha(peak)).toBeCloseTo(100 * MAX_ALPHA, 1);
    expect(alpha(sections[0].querySelector(".sl-peak"))).toBeLessThan(alpha(peak));
    expect($(".sl-stats").textContent).toContain("25.0 %");
    expect($(".sl-stats").textContent).toContain("−2.00 to +1.50");
  });
  test("each pole has the tokens that it raises", async () => {
    renderCard({ model: new FakeModel({ latent: 3 }, { card: ({ latent }) => poles(latent) }), el });
    await settle();
    const sides = [...$(".sl-lens").children].map((side) => [
      side.querySelector("h5").textContent,
      side.querySelector("li").textContent,
    ]);
    expect(sides).toEqual([
      ["+positive pole", "up+1.00"],
      ["−negative pole", "down+2.00"],
    ]);
    el.replaceChildren();
    renderCard({ model: new FakeModel({ latent: 3 }, answers()), el });
    await settle();
    expect($$(".sl-lens li").map((li) => li.textContent)).toEqual(["up+1.00", "down−2.00"]);
    expect($(".sl-lens h5")).toBe(null);
  });
  test("a histogram has its signs on the two sides of 0", async () => {
    renderCard({ model: new FakeModel({ latent: 3 }, { card: ({ latent }) => poles(latent) }), el });
    await settle();
    expect($$(".sl-bar").map((b) => b.classList.contains("sl-negative"))).toEqual([true, true, false, false]);
    expect($(".sl-zero").getAttribute("x1")).toBe("11.5");
    expect($(".sl-histogram").getAttribute("aria-label")).toBe(
      "histogram of 4 values from minus 2.00 to 2.00, 1 of them negative",
    );
    el.replaceChildren();
    renderCard({ model: new FakeModel({ latent: 3 }, answers()), el });
    await settle();
    expect($(".sl-zero")).toBe(null);
    expect($$(".sl-bar.sl-negative").length).toBe(0);
  });
  test("strongest is by either sign", async () => {
    const [density, max, min] = [
      [0.3, 0.2, 0.1],
      [1, 2, 0],
      [-0.5, 0, -5],
    ].map((v) => Float32Array.from(v));
    const count = Int32Array.from([5, 5, 5]);
    const signedTable = () => ({ fields: { count, density, mean: density, max, min } });
    const model = new FakeModel({ columns: ["strongest"] }, { ...answers(3), table: signedTable });
    renderFeatures({ model, el });
    await settle();
    $('[data-sort="strongest"]').click();
    expect($$(".sl-row").map((row) => row.dataset.latent)).toEqual(["2", "1", "0"]);
    expect($(".sl-row .sl-value").textContent).toBe("5.00");
  });
});

describe("tokens", () => {
  const show = async (state = {}) => {
    const model = new FakeModel(state, answers());
    const done = renderSample({ model, el });
    await settle();
    return { model, done };
  };
  test("hovering asks nothing and shows the strongest latents", async () => {
    const { model } = await show();
    const before = model.sent.length;
    $$(".sl-text .sl-token")[1].dispatchEvent(new Event("pointerover", { bubbles: true }));
    expect($$(".sl-detail .sl-chip").map((c) => c.querySelector(".sl-number").textContent)).toEqual([
      "#5",
      "#2",
    ]);
    expect(model.sent.length).toBe(before);
  });
  test("a click pins, a latent colours, clear takes it back", async () => {
    const { model } = await show();
    $$(".sl-text .sl-token")[1].click();
    $$(".sl-detail .sl-chip")[1].click();
    expect(model.state.latent).toBe(2);
    expect(model.saved).toBe(1);
    const alphas = $$(".sl-text .sl-token").map((t) => parseFloat(t.style.getPropertyValue("--sl-alpha")));
    expect(alphas[0]).toBe(0);
    expect(alphas[2]).toBeGreaterThan(alphas[1]);
    $(".sl-clear").click();
    expect(model.state.latent).toBe(null);
  });
  test("without a latent BOS does not outshine the rest", async () => {
    await show();
    expect($$(".sl-text .sl-token")[0].style.getPropertyValue("--sl-alpha")).toBe("0.0%");
    expect($(".sl-legend").textContent).toContain("0 to 3.00");
  });
  test("the keyboard moves, pins and lets go", async () => {
    await show();
    const tokens = $$(".sl-text .sl-token");
    tokens[0].focus();
    key(tokens[0], "ArrowRight");
    expect(document.activeElement).toBe(tokens[1]);
    key(tokens[1], "Enter");
    expect(tokens[1].getAttribute("aria-pressed")).toBe("true");
    key(tokens[1], "Escape");
    expect(tokens[1].getAttribute("aria-pressed")).toBe("false");
    expect(tokens.filter((t) => t.tabIndex === 0).length).toBe(1);
    expect(tokens[1].getAttribute("aria-label")).toContain("one");
  });
  test("taking it away leaves nothing behind", async () => {
    const { model, done } = await show();
    done();
    expect(model.count()).toBe(0);
    expect(el.children.length).toBe(0);
  });
});

describe("samples", () => {
  const show = async (...made) => {
    const done = renderSample({
      model: new FakeModel({}, { ...answers(), codes: () => laidOut(...made) }),
      el,
    });
    await settle();
    return done;
  };
  const over = (element) => element.dispatchEvent(new Event("pointerover", { bubbles: true }));
  const alpha = (element) => parseFloat(element.style.getPropertyValue("--sl-alpha"));
  const label = (element) => element.getAttribute("aria-label");
  const EXTRA = ["extra", 1, 0, 0, 1];
  const GRID = ["grid", 6, 3, 0, 6];
  const PATCHES = ["0,0", "0,1", "0,2", "1,0", "1,1", "1,2"];

  test("a grid lies over its picture, extra positions beside it", async () => {
    const facets = ["extra", ...Array(6).fill("patch")];
    await show([EXTRA, GRID], facets, ["0", ...PATCHES], { labels: ["cat"] });
    const patches = $$(".sl-grid .sl-patch");
    const where = (p) => [p.style.gridRow, p.style.gridColumn].map(Number);
    expect(patches.map(where)).toEqual([
      [1, 1],
      [1, 2],
      [1, 3],
      [2, 1],
      [2, 2],
      [2, 3],
    ]);
    expect($(".sl-grid > img").src).toBe("data:image/png;base64,iVBORw==");
    expect([...$(".sl-sample").children].map((e) => e.className.split(" ")[0])).toEqual([
      ...["sl-labels", "sl-extra", "sl-grid", "sl-apart"],
    ]);
    expect($(".sl-grid").style.getPropertyValue("--sl-ratio")).toBe("1.5");
    expect(label($(".sl-extra .sl-token"))).toBe("extra 0, 1.00");
    expect(label(patches[5])).toBe("patch 1,2, 7.00");
    expect(alpha(patches[5])).toBeGreaterThan(alpha(patches[0]));
    expect($(".sl-labels").textContent).toBe("cat");
    expect($(".sl-legend").textContent).toContain("strongest latent of each row");
    over(patches[4]);
    expect($(".sl-detail-head").textContent).toBe("patch 1,1");
    expect($(".sl-detail .sl-value").textContent).toBe("6.00");
  });
  test("the arrows go through a grid by rows", async () => {
    await show([GRID], Array(6).fill("patch"), PATCHES);
    const patches = $$(".sl-patch");
    patches[1].focus();
    key(patches[1], "ArrowDown");
    expect(document.activeElement).toBe(patches[4]);
    key(patches[4], "ArrowRight");
    key(patches[5], "ArrowUp");
    expect(document.activeElement).toBe(patches[2]);
    patches[2].click();
    expect(patches[2].classList.contains("sl-pinned")).toBe(true);
  });
  test("a picture that is none leaves the patches", async () => {
    await show([GRID], Array(6).fill("patch"), PATCHES);
    $(".sl-grid > img").dispatchEvent(new Event("error"));
    expect($(".sl-grid > img")).toBe(null);
    expect($$(".sl-patch").length).toBe(6);
  });
  test("items are a list, a mixed sample its parts in order", async () => {
    await show([["list", 3, 0, 0, 3]], Array(3).fill("item"), ["Dune", "Solaris", "2"], { picture: PICTURE });
    expect($$(".sl-items .sl-boxed").map(label)).toEqual([
      "item 0 Dune, 1.00",
      "item 1 Solaris, 2.00",
      "item 2, 3.00",
    ]);
    // there is no grid to lie on
    expect($(".sl-apart > img").src).toContain("data:image/png");
    el.replaceChildren();
    const facets = ["token", "token", ...Array(6).fill("patch"), "token"];
    const line = (n, at) => ["line", n, 0, at, n];
    await show([line(2, 0), GRID, line(1, 0)], facets, ["a", " b", ...PATCHES, "c"]);
    const kinds = [...$(".sl-sample").children].map((e) => e.className);
    expect(kinds).toEqual(["sl-text", "sl-grid sl-pictured", "sl-apart sl-pictured", "sl-text"]);
    over($$(".sl-text .sl-token")[2]);
    expect($(".sl-detail-head").textContent).toBe("token 8c");
  });
  test("of several grids none is taken for the picture's", async () => {
    await show([GRID, GRID], Array(12).fill("patch"), [...PATCHES, ...PATCHES]);
    expect($(".sl-grid > img")).toBe(null);
    expect($(".sl-sample").firstChild.className).toBe("sl-apart sl-pictured");
  });
  test("one call of several is shown, on the scale of all", async () => {
    const names3 = [...PATCHES, ...PATCHES, ...PATCHES];
    await show([GRID], Array(18).fill("patch"), names3, { calls: 3 });
    const patches = $$(".sl-patch");
    expect(patches.length).toBe(6);
    expect($(".sl-calls output").textContent).toBe("call 0 of 0 to 2");
    const before = alpha(patches[5]);
    patches[5].click();
    const slider = $(".sl-calls input");
    slider.value = "2";
    slider.dispatchEvent(new Event("input"));
    expect($(".sl-calls output").textContent).toBe("call 2 of 0 to 2");
    expect(label(patches[5])).toBe("patch 1,2, 18.0");
    expect(alpha(patches[5])).toBeGreaterThan(before);
    expect(alpha(patches[5])).toBeCloseTo(100 * MAX_ALPHA, 1);
    // what is pinned stays, in this call
    expect($(".sl-detail .sl-value").textContent).toBe("18.0");
  });
});

describe("cards with pictures", () => {
  test("patches that fire are marked on their picture", async () => {
    const asked = [];
    const picture = ({ document }) => {
      asked.push(document);
      return { fields: { picture: PICTURE } };
    };
    const model = new FakeModel({ latent: 3 }, { card: ({ latent }) => pictured(latent), picture });
    renderCard({ model, el });
    await settle();
    const tiles = $$(".sl-gallery > li");
    expect(tiles.map((t) => t.dataset.document)).toEqual(["9", "4", "5"]);
    expect(tiles.map((t) => t.querySelectorAll(".sl-grid > img").length)).toEqual([1, 1, 1]);
    expect(tiles.map((t) => t.querySelector("img").src.split(";")[0])).toEqual([
      ...["data:image/png", "data:image/png", "data:image/jpeg"],
    ]);
    // those that came along are not asked for
    expect(asked).toEqual([4]);
    const titles = (tile) =>
      [...tile.querySelectorAll("[title]:not(img, button, .sl-title)")].map((e) => e.title);
    expect(titles(tiles[0])).toEqual(["patch 1,0  1.50", "extra 0  0.500"]);
    expect(titles(tiles[1])).toEqual(["patch 0,0  1.50", "patch 1,1  0.750"]);
    expect(titles(tiles[2])).toEqual(["patch 1,1  −0.500", "a", "b  1.50"]);
    expect(tiles[0].querySelector(".sl-patch").classList.contains("sl-peak")).toBe(true);
    expect(tiles[2].querySelector(".sl-window .sl-peak").textContent).toBe("b");
    expect(tiles[2].querySelector(".sl-patch").classList.contains("sl-negative")).toBe(true);
    expect(tiles[0].querySelector(".sl-caption").textContent).toBe("1.50cat, call 2");
    expect(tiles[1].querySelector(".sl-caption").textContent).toBe("1.50image 4");
    tiles[1].click();
    expect([model.state.row, model.state.document]).toEqual([44, 4]);
    expect(tiles[1].getAttribute("aria-current")).toBe("true");
  });
  test("a picture that does not come is done without", async () => {
    const picture = () => {
      throw new Error("the store is gone");
    };
    renderCard({
      model: new FakeModel({ latent: 3 }, { card: ({ latent }) => pictured(latent), picture }),
      el,
    });
    await settle();
    expect($$(".sl-gallery > li")[1].querySelectorAll(".sl-patch").length).toBe(2);
    expect($(".sl-banner").hidden).toBe(true);
  });
});

describe("features", () => {
  const show = async (n = 100, more = {}) => {
    const model = new FakeModel({}, { ...answers(n), ...more });
    const done = renderFeatures({ model, el });
    await settle();
    return { model, done };
  };
  test("only rows in sight are drawn, most frequent first", async () => {
    await show(65_536);
    expect($$(".sl-row").length).toBeLessThan(60);
    expect($(".sl-spacer").style.height).toBe(`${65_536 * 28}px`);
    expect($(".sl-count").textContent).toContain("65,536 of 65,536 latents, 1 never fire");
  });
  test("a row shows its card and asks for the neighbours ahead", async () => {
    const { model } = await show();
    $$(".sl-row")[2].click();
    await settle();
    expect($(".sl-card").dataset.latent).toBe($(".sl-row.sl-chosen").dataset.latent);
    const asked = model.sent.filter((m) => m.ask === "card").length;
    key($(".sl-list"), "ArrowDown");
    await settle();
    expect($(".sl-card").dataset.latent).toBe($(".sl-row.sl-chosen").dataset.latent);
    expect(asked).toBeGreaterThanOrEqual(3);
  });
  test("numbers, names and texts are found", async () => {
    const { model } = await show();
    const box = $(".sl-box");
    box.value = "name 7";
    box.dispatchEvent(new Event("input"));
    expect($$(".sl-row").length).toBe(11);
    box.value = "42";
    box.dispatchEvent(new Event("input"));
    key(box, "Enter");
    expect(model.state.latent).toBe(42);
    box.value = "some text";
    key(box, "Enter");
    await settle();
    expect($(".sl-count").textContent).toContain("2 latents fire");
    expect(model.state.latent).toBe(9);
    key(box, "Escape");
    expect($(".sl-count").textContent).toContain("100 of 100");
  });
  test("chosen latents are listed alone, until that is cleared", async () => {
    const { model } = await show();
    model.set("latents", [7, 300, 3]);
    $('[data-sort="latent"]').click();
    expect($$(".sl-row").map((row) => row.dataset.latent)).toEqual(["3", "7"]);
    expect($(".sl-count").textContent).toContain("2 of 100 latents (those chosen)");
    $(".sl-clear").click();
    expect(model.state.latents).toBe(null);
    expect($(".sl-count").textContent).toContain("100 of 100 latents, ");
  });
  test("an error of the kernel is shown", async () => {
    await show(100, {
      card: () => {
        throw new Error("latent must be in 0..9");
      },
    });
    $$(".sl-row")[0].click();
    await settle();
    expect($(".sl-banner").hidden).toBe(false);
    expect($(".sl-banner").textContent).toContain("latent must be in 0..9");
  });
  test("sorting by number, both ways", async () => {
    await show();
    const head = () => $('[data-sort="latent"]');
    head().focus();
    head().click();
    expect($$(".sl-row")[0].dataset.latent).toBe("0");
    expect(head().getAttribute("aria-label")).toBe("latent, the smallest first");
    expect(document.activeElement).toBe(head());
    head().click();
    expect($$(".sl-row")[0].dataset.latent).toBe("99");
  });
});

describe("card", () => {
  test("follows the selection; of two quick choices the last one stays", async () => {
    const model = new FakeModel({ latent: 3 }, null);
    renderCard({ model, el });
    model.set("latent", 4);
    await settle();
    const [first, second] = model.sent;
    const send = (m) => model.answer(m.id, card(m.args.latent));
    send(second);
    await settle();
    send(first);
    await settle();
    expect($(".sl-card").dataset.latent).toBe("4");
  });
  test("shows what it was given, as text", async () => {
    renderCard({
      model: new FakeModel({ latent: 3 }, { card: ({ latent }) => card(latent, { label: "<b>bold</b>" }) }),
      el,
    });
    await settle();
    expect($("h3").textContent).toBe("#3 <b>bold</b>");
    expect($$(".sl-window .sl-token").map((t) => t.textContent)).toEqual([
      "a",
      " b",
      "<img src=x onerror=alert(1)>",
      "U+202E",
    ]);
    expect($$(".sl-window .sl-token")[3].classList.contains("sl-negative")).toBe(true);
    expect(el.querySelector("img")).toBe(null);
    expect($$(".sl-bar").length).toBe(3);
  });
  test("a latent that never fires has a card too", async () => {
    const stats = {
      count: 0,
      n_rows: 100,
      density: 0,
      mean: 0,
      min: 0,
      max: 0,
      low: 0,
      high: 1,
      histogram: [0, 0],
    };
    renderCard({
      model: new FakeModel(
        { latent: 3 },
        {
          card: () => ({
            header: { ...card(3).header, stats, windows: [], label: "" },
            fields: { names: new Uint16Array(0), values: new Float32Array(0) },
          }),
        },
      ),
      el,
    });
    await settle();
    expect($(".sl-card").textContent).toContain("never fires");
  });
  test("choosing a window chooses its row and document", async () => {
    const model = new FakeModel({ latent: 3, row: null, document: null }, answers());
    renderCard({ model, el });
    await settle();
    $(".sl-windows button").click();
    expect([model.state.row, model.state.document, model.saved]).toEqual([12, 3, 1]);
    expect($(".sl-windows li").getAttribute("aria-current")).toBe("true");
    model.set("row", 4);
    expect($(".sl-windows li").getAttribute("aria-current")).toBe("false");
  });
  test("values in steps are those of the steps", async () => {
    const fields = { names: Uint16Array.from([0, 1, 2, 3]), values: Uint8Array.from([10, 40, 9, 10]) };
    const stepped = () => ({ ...card(3, { header: { quantum: 0.05, zero: 10 } }), fields });
    renderCard({ model: new FakeModel({ latent: 3 }, { card: stepped }), el });
    await settle();
    expect($$(".sl-window .sl-token").map((t) => t.title)).toEqual([
      "a",
      "·b  1.50",
      "<img src=x onerror=alert(1)>  −0.050",
      "U+202E",
    ]);
  });
  test("an answer that is not what it says is told", async () => {
    const model = new FakeModel({ latent: 3 }, null);
    renderCard({ model, el });
    const wrong = sent(card(3));
    wrong.header.fields[1].shape = [5];
    model.emit("msg:custom", { id: 0, ok: wrong.header }, wrong.buffers);
    await settle();
    expect($(".sl-banner").textContent).toBe("Field values must have 20 bytes. Got 16.");
  });
});
