// @vitest-environment jsdom
import { beforeEach, describe, expect, test } from "vitest";
import { MAX_ALPHA } from "../shared/scales.js";
import { render as renderCard } from "../views/card.js";
import { render as renderFeatures } from "../views/features.js";
import { render as renderTokens } from "../views/tokens.js";
import { card, codes, FakeModel, names, poles, sent, settle, signedCodes, table } from "./fake.js";

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

describe("signs", () => {
  test("a text shows both signs, and says so", async () => {
    renderTokens({ model: new FakeModel({}, { ...answers(), codes: signedCodes }), el });
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
    renderTokens({ model: new FakeModel({}, answers()), el });
    await settle();
    expect($(".sl-legend .sl-key")).toBe(null);
    expect($(".sl-legend").textContent).not.toContain("null");
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
    renderFeatures({ model: new FakeModel({}, { ...answers(3), table: signedTable }), el });
    await settle();
    const order = $("select");
    order.value = "max";
    order.dispatchEvent(new Event("change"));
    expect($$(".sl-row").map((row) => row.dataset.latent)).toEqual(["2", "1", "0"]);
  });
});

describe("tokens", () => {
  const show = async (state = {}) => {
    const model = new FakeModel(state, answers());
    const done = renderTokens({ model, el });
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
  test("what a position shows is called by its name", async () => {
    const mixed = () => {
      const { fields } = codes();
      return {
        header: { facets: ["token", "patch"] },
        fields: { ...fields, facets: Uint8Array.from([0, 0, 1, 1]) },
      };
    };
    renderTokens({ model: new FakeModel({}, { ...answers(), codes: mixed }), el });
    await settle();
    expect($(".sl-legend").textContent).toContain("strongest latent of each row");
    $$(".sl-text .sl-token")[2].dispatchEvent(new Event("pointerover", { bubbles: true }));
    expect($(".sl-detail").textContent).toContain("patch 2");
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
    const order = $("select");
    order.value = "latent";
    order.dispatchEvent(new Event("change"));
    expect($$(".sl-row")[0].dataset.latent).toBe("0");
    $(".sl-direction").click();
    expect($$(".sl-row")[0].dataset.latent).toBe("99");
  });
});

describe("card", () => {
  test("follows the selection; of two quick choices the last one stays", async () => {
    const model = new FakeModel({ latent: 3 }, null);
    renderCard({ model, el });
    model.set("latent", 4);
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
