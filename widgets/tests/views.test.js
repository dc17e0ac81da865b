// @vitest-environment jsdom
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { renderCard } from "../card.js";
import { renderFeatures } from "../features.js";
import { DEAD_MS, SLOW_MS, kernelBridge } from "../shared/bridge.js";
import { tokenElement, visibleParts } from "../shared/dom.js";
import { MAX_ALPHA, PALETTE, blend, contrast, heat, short, signed, spoken } from "../shared/scales.js";
import { renderTokens } from "../tokens.js";
import { FakeModel, card, codes, names, poles, settle, signedCodes, table } from "./fake.js";

let el;
beforeEach(() => {
  el = document.createElement("div");
  document.body.replaceChildren(el);
});
afterEach(() => vi.useRealTimers());

const answers = (n = 100) => ({
  card: ({ latent }) => card(latent),
  codes,
  table: () => table(n),
  names: () => names(Array.from({ length: n }, (_, j) => `name ${j}`)),
  search: ({ text }) => ({ header: { found: [[text.length, 2], [1, 1]] } }),
});
const key = (target, name) => target.dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true, cancelable: true }));
const $ = (selector) => el.querySelector(selector);
const $$ = (selector) => [...el.querySelectorAll(selector)];

describe("text is inert", () => {
  test("characters that do not show are shown", () => {
    expect(visibleParts("a\nb")).toEqual([{ text: "a", sign: false }, { text: "↵", sign: true }, { text: "b", sign: false }]);
    expect(visibleParts("\u202e\u200b").map((p) => p.text)).toEqual(["U+202E", "U+200B"]);
    expect(visibleParts("שלום").every((p) => !p.sign)).toBe(true);
    expect(visibleParts("\ud800")[0].sign).toBe(true);
  });
  test("markup is text", () => {
    const element = tokenElement("<img src=x onerror=alert(1)>");
    expect(element.children.length).toBe(0);
    expect(element.textContent).toBe("<img src=x onerror=alert(1)>");
    expect(tokenElement("").textContent).toBe("∅");
  });
});

describe("scales", () => {
  test("text on any heat is readable", () => {
    for (const theme of ["light", "dark"]) {
      const { text, page, positive, negative } = PALETTE[theme];
      for (const colour of [positive, negative]) {
        for (let alpha = 0; alpha <= MAX_ALPHA; alpha += 0.05) expect(contrast(text, blend(colour, page, alpha))).toBeGreaterThanOrEqual(4.5);
      }
    }
  });
  test("heat grows with the value, in colour and in line", () => {
    const steps = [0, 0.1, 0.5, 0.9, 1].map((v) => heat(v, 1));
    expect(steps.map((s) => s.line)).toEqual([0, 1, 2, 3, 3]);
    expect(steps.every((s, i) => i === 0 || s.alpha > steps[i - 1].alpha)).toBe(true);
    expect(heat(-1, 1)).toMatchObject({ negative: true, line: 3 });
    expect(heat(NaN, 1).alpha).toBe(0);
    expect(heat(1, 0).alpha).toBe(0);
  });
  test("numbers are short", () => {
    expect([0, 0.12345, 1.2345, 12.345, 123.45, 1e7, 1e-5].map(short)).toEqual(["0", "0.123", "1.23", "12.3", "123", "1.0e+7", "1.0e-5"]);
  });
});

describe("signs", () => {
  test("numbers tell theirs, to the eye and to the ear", () => {
    expect([-1.2345, -1e-5, 0].map(short)).toEqual(["−1.23", "−1.0e-5", "0"]);
    expect([1.5, -1.5, 0].map(signed)).toEqual(["+1.50", "−1.50", "0"]);
    expect([1.5, -1.5, -1e-5, 0].map(spoken)).toEqual(["1.50", "minus 1.50", "minus 1.0e-5", "0"]);
  });
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
    expect(sections.map((s) => s.querySelector("h4").textContent)).toEqual(["+Strongest of the positive pole", "−Strongest of the negative pole", "From weak to strong"]);
    expect(sections.map((s) => s.querySelector("li .sl-value").textContent)).toEqual(["+1.50", "−2.00", "+0.500"]);
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
    const sides = [...$(".sl-lens").children].map((side) => [side.querySelector("h5").textContent, side.querySelector("li").textContent]);
    expect(sides).toEqual([["+positive pole", "up+1.00"], ["−negative pole", "down+2.00"]]);
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
    expect($(".sl-histogram").getAttribute("aria-label")).toBe("histogram of 4 values from minus 2.00 to 2.00, 1 of them negative");
    el.replaceChildren();
    renderCard({ model: new FakeModel({ latent: 3 }, answers()), el });
    await settle();
    expect($(".sl-zero")).toBe(null);
    expect($$(".sl-bar.sl-negative").length).toBe(0);
  });
  test("strongest is by either sign", async () => {
    const header = { n: 3 };
    const [density, max, min] = [[0.3, 0.2, 0.1], [1, 2, 0], [-0.5, 0, -5]].map((v) => Float32Array.from(v));
    const signedTable = () => ({ header, buffers: [Int32Array.from([5, 5, 5]), density, density, max, min] });
    renderFeatures({ model: new FakeModel({}, { ...answers(3), table: signedTable }), el });
    await settle();
    const order = $("select");
    order.value = "max";
    order.dispatchEvent(new Event("change"));
    expect($$(".sl-row").map((row) => row.dataset.latent)).toEqual(["2", "1", "0"]);
  });
});

describe("bridge", () => {
  test("answers find their questions, in any order", async () => {
    const model = new FakeModel({}, null);
    const bridge = kernelBridge(model, () => {});
    const [first, second] = [bridge.ask("card", { latent: 1 }), bridge.ask("card", { latent: 2 })];
    model.emit("msg:custom", { id: 1, ok: "two" }, []);
    model.emit("msg:custom", { id: 0, ok: "one" }, []);
    expect([(await first).header, (await second).header]).toEqual(["one", "two"]);
  });
  test("a kernel that does not answer is said, once it is late", async () => {
    vi.useFakeTimers();
    const said = [];
    const bridge = kernelBridge(new FakeModel({}, null), (m) => said.push(m));
    const asked = bridge.ask("card", {}).catch((e) => e.message);
    vi.advanceTimersByTime(SLOW_MS);
    expect(said.at(-1)).toMatch(/Waiting/);
    vi.advanceTimersByTime(DEAD_MS);
    expect(await asked).toMatch(/does not answer/);
    expect(said.at(-1)).toMatch(/does not answer/);
  });
  test("a kernel that runs other cells is waited for", async () => {
    vi.useFakeTimers();
    const said = [];
    const model = new FakeModel({}, null);
    model.widget_manager = { kernel: { status: "busy" } };
    const asked = kernelBridge(model, (m) => said.push(m)).ask("card", { latent: 1 });
    vi.advanceTimersByTime(10 * DEAD_MS);
    expect(said.at(-1)).toMatch(/busy/);
    model.emit("msg:custom", { id: 0, ok: "late" }, []);
    expect((await asked).header).toBe("late");
    expect(said.at(-1)).toBe("");
  });
  test("what came along with the view is not asked for", async () => {
    const buffers = [new DataView(Uint8Array.from([1, 2]).buffer)];
    const model = new FakeModel({ opening: { "card:7": { header: { latent: 7 }, buffers } } }, null);
    const bridge = kernelBridge(model, () => {});
    const card = await bridge.ask("card", { latent: 7 });
    expect([...card.buffers[0]]).toEqual([1, 2]);
    expect(model.sent).toEqual([]);
    bridge.ask("card", { latent: 8 });
    expect(model.sent.length).toBe(1);
    bridge.close();
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
    expect($$(".sl-detail .sl-chip").map((c) => c.querySelector(".sl-number").textContent)).toEqual(["#5", "#2"]);
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
    await show(100, { card: () => { throw new Error("latent must be in 0..9"); } });
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
    const send = (m) => model.emit("msg:custom", { id: m.id, ok: card(m.args.latent).header }, card(m.args.latent).buffers.map((b) => new DataView(b.buffer)));
    send(second);
    await settle();
    send(first);
    await settle();
    expect($(".sl-card").dataset.latent).toBe("4");
  });
  test("shows what it was given, as text", async () => {
    renderCard({ model: new FakeModel({ latent: 3 }, { card: ({ latent }) => card(latent, { label: "<b>bold</b>" }) }), el });
    await settle();
    expect($("h3").textContent).toBe("#3 <b>bold</b>");
    expect($$(".sl-window .sl-token").map((t) => t.textContent)).toEqual(["a", " b", "<img src=x onerror=alert(1)>", "U+202E"]);
    expect($$(".sl-window .sl-token")[3].classList.contains("sl-negative")).toBe(true);
    expect(el.querySelector("img")).toBe(null);
    expect($$(".sl-bar").length).toBe(3);
  });
  test("a latent that never fires has a card too", async () => {
    const stats = { count: 0, n_rows: 100, density: 0, mean: 0, min: 0, max: 0, low: 0, high: 1, histogram: [0, 0] };
    renderCard({ model: new FakeModel({ latent: 3 }, { card: () => ({ header: { ...card(3).header, stats, windows: [], label: "" }, buffers: [new Uint16Array(0), new Float32Array(0)] }) }), el });
    await settle();
    expect($(".sl-card").textContent).toContain("never fires");
  });
});
