// @vitest-environment jsdom
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { legend, paletteOf, shareOf, tonesOf } from "../shared/map_colours.js";
import { blend, contrast } from "../shared/scales.js";
import { render } from "../views/map.js";
import { FakeModel, names, onCanvas, settle } from "./fake.js";

const HOSTILE = "<img src=x onerror=alert(1)>";
const NOWHERE = 65535;
let el;
/** What was drawn into a canvas, as calls. */
let drawn;
/** Ends those maps that a test opened: an open one goes on painting. @type {(() => void)[]} */
let open = [];
let ended;

afterEach(() => {
  for (const close of open) close();
  open = [];
  ended();
});
beforeEach(() => {
  drawn = [];
  ended = onCanvas((name, ...args) => {
    if (name === "createImageData" || name === "getImageData")
      return { data: new Uint8ClampedArray(4 * (args[2] ?? args[0]) * (args[3] ?? args[1])) };
    if (name === "measureText") return { width: 7 * args[0].length };
    return drawn.push([name, ...args]);
  });
  el = document.createElement("div");
  document.body.replaceChildren(el);
});
const $ = (selector) => el.querySelector(selector);
const $$ = (selector) => [...el.querySelectorAll(selector)];

/** Latents in a row from left to right; 5 never fires, 6 has no place. */
const points = (more = {}) => ({
  header: {
    ...{ by: "decoder", method: "pca", latents: 7, placed: 6, never: 1, verdict: "in words", trusted: true },
    clusters: [
      ["the", 2, 16000, 32768],
      [HOSTILE, 2, 40000, 32768],
    ],
    controls: ["pca", "random"].flatMap((p) => ["a", "b", "c"].map((m) => [p, m, 0.5, 0.4, 0.6])),
    ...{ job: null, ...more },
  },
  fields: {
    x: Uint16Array.from([0, 13107, 26214, 39321, 52428, 65534, NOWHERE]),
    y: Uint16Array.from([32767, 32767, 32767, 32767, 32767, 32767, NOWHERE]),
    cluster: Uint16Array.from([0, 0, 1, 1, NOWHERE, NOWHERE, NOWHERE]),
    dead: Uint8Array.from([0, 0, 0, 0, 0, 1, 1]),
  },
});
const about = ({ latent, by }) => ({
  header: {
    ...{ latent, name: "", tokens: [[HOSTILE, 3, 2]], count: 4, density: 0.04, max: 1.5, control: 0.2 },
    neighbours: [[(latent + 3) % 6, 0.75, `${by} ${HOSTILE}`]],
  },
});
const column = ({ sql }) => {
  if (sql === "bad") throw new Error("A query must be one SELECT. Got bad.");
  const values = Float32Array.from([1, 10, 100, 1000, 0, Number.NaN, 5]);
  return { header: { title: sql, categories: [], low: 1, high: 1000, log: true }, fields: { values } };
};
const opened = (model) => {
  const done = render({ model, el });
  open.push(done);
  return done;
};
const show = async (state = {}, answers = {}) => {
  const model = new FakeModel(
    {
      ...{ by: "decoder", method: "pca", colour: "cluster", size: "", engine: "auto", latents: null },
      columns: [["density", "how often"]],
      ...state,
    },
    {
      ...{ points: () => points(), about, column, names: () => names(["a", "b", "c", HOSTILE, "e", "", ""]) },
      find: ({ text }) => ({ fields: { latents: Int32Array.from(text === "x" ? [1, 4] : []) } }),
      ...answers,
    },
  );
  const done = opened(model);
  await settle();
  return { model, done };
};
const frame = () => $(".sl-map-frame");
const press = (key, more = {}) =>
  frame().dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, ...more }));
/** A pointer at latent j of the row, in pixels of the whole. */
const at = (type, px, py, more = {}) => {
  const event = new MouseEvent(type, { clientX: px, clientY: py, bubbles: true, button: 0, ...more });
  Object.defineProperty(event, "pointerId", { value: 1 });
  frame().dispatchEvent(event);
};
const xOf = (j) => 300 + ((j * 13107 - 32767.5) * 0.94 * 600) / 65535;

test("the verdict stands beside its controls, and hostile names stay text", async () => {
  await show({ latent: 3 });
  await new Promise((r) => setTimeout(r, 150));
  expect($(".sl-map-verdict").textContent).toContain("in words");
  expect($$(".sl-map-verdict tbody th").map((e) => e.textContent)).toEqual(["PCA", "random projection"]);
  expect($(".sl-map-about h3").textContent).toBe(`#3 ${HOSTILE}`);
  expect($(".sl-map-about").textContent).toContain(`decoder ${HOSTILE}`);
  expect($(".sl-map-about").textContent).toContain("control, random directions: 0.200");
  expect($$("[data-cluster]")[1].textContent).toContain(HOSTILE);
  expect(el.querySelector("img")).toBe(null);
  expect(frame().getAttribute("aria-label")).toBe("map of 6 of 7 latents, 1 never fire");
  expect(el.textContent).toContain("6 latents, 1 more have no place");
});

test("the pointer tells of a latent, a click chooses it, and a choice elsewhere is shown", async () => {
  const { model, done } = await show();
  at("pointermove", xOf(2) + 3, 203);
  await new Promise((r) => setTimeout(r, 150));
  expect($(".sl-map-about h3").textContent).toBe("#2 c");
  expect($(".sl-map-tip").textContent).toBe("#2 c");
  expect(model.state.latent).toBe(null);
  at("pointerdown", xOf(2) + 3, 203);
  at("pointerup", xOf(2) + 3, 203);
  expect(model.state.latent).toBe(2);
  at("pointerleave", 0, 0);
  model.set("latent", 4);
  expect($(".sl-map-about h3").textContent).toBe("#4 e");
  // who was asked about is not asked about again
  model.set("latent", 2);
  await new Promise((r) => setTimeout(r, 150));
  expect(model.sent.filter((m) => m.ask === "about" && m.args.latent === 2).length).toBe(1);
  done();
  open = [];
  expect(model.count()).toBe(0);
});

test("arrow keys go from latent to latent, Enter chooses, Escape lets go", async () => {
  const { model } = await show({ latent: 1 });
  press("ArrowRight");
  press("ArrowRight");
  expect($(".sl-map-about h3").textContent).toContain("#3");
  press("ArrowLeft");
  press("Enter");
  expect(model.state.latent).toBe(2);
  press("Escape");
  press("Escape");
  expect(model.state.latent).toBe(null);
  press("ArrowRight", { ctrlKey: true });
  expect($(".sl-map-about").textContent).toContain("Point at a latent");
});

test("a line or a box around latents chooses them, and the rest is drawn pale", async () => {
  const { model } = await show();
  $$("[aria-label='what dragging does'] button")[2].click();
  at("pointerdown", xOf(1) - 9, 100);
  at("pointermove", xOf(3) + 9, 300);
  at("pointerup", xOf(3) + 9, 300);
  expect(model.state.latents).toEqual([1, 2, 3]);
  expect($("[role=status].sl-hint").textContent).toBe("3 chosen");
  expect(el.textContent).toContain("pale ones are not chosen");
  // a lasso by Shift, whatever the mode
  $$("[aria-label='what dragging does'] button")[0].click();
  at("pointerdown", xOf(4) - 20, 180, { shiftKey: true });
  for (const [dx, py] of [
    [20, 180],
    [20, 220],
    [-20, 220],
  ])
    at("pointermove", xOf(4) + dx, py, { shiftKey: true });
  at("pointerup", xOf(4) - 20, 220);
  expect(model.state.latents).toEqual([4]);
  $(".sl-clear").click();
  expect(model.state.latents).toBe(null);
  $("[data-cluster='1']").click();
  expect(model.state.latents).toEqual([2, 3]);
});

test("a search shows what it finds, and Enter goes from one to the next", async () => {
  const { model } = await show();
  const box = $(".sl-box");
  box.value = "x";
  const enter = () => box.dispatchEvent(new KeyboardEvent("keydown", { key: "Enter", bubbles: true }));
  enter();
  await settle();
  expect([model.state.latent, $("[role=status].sl-hint").textContent]).toEqual([1, "2 found"]);
  enter();
  await settle();
  expect(model.state.latent).toBe(4);
  $$(".sl-clear")[0].click();
  expect([model.state.latents, box.value]).toEqual([[1, 4], ""]);
});

test("colours go by a column or an expression, and what is wrong with one is said", async () => {
  const { model } = await show({ colour: "density" });
  expect($(".sl-map-legend").textContent).toContain("Colour: density");
  expect($(".sl-map-legend").textContent).toContain("1.00 to 1000, log scale");
  const [, , list] = $$("select");
  list.value = [...list.options].at(-1).value;
  list.dispatchEvent(new Event("change"));
  const box = $("[aria-label='colour: SQL over latents']");
  expect(box.hidden).toBe(false);
  box.value = "bad";
  box.dispatchEvent(new KeyboardEvent("keydown", { key: "Enter", bubbles: true }));
  await settle();
  expect($(".sl-banner").textContent).toContain("Got bad.");
  expect($(".sl-map-legend").textContent).toContain("Colour: density");
  model.set("colour", "cluster");
  await settle();
  expect($(".sl-map-legend").textContent).toContain("Colour: cluster");
});

test("a slower method shows PCA and how far it is, can be cancelled, and takes its place", async () => {
  vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] });
  try {
    let job = { what: "umap", share: 0.25, seconds: 3, done: false, error: "" };
    const asked = [];
    const answers = {
      points: ({ method }) => {
        asked.push(method);
        return points({
          job: method === "umap" ? job : null,
          method: method === "umap" && !job ? "umap" : "pca",
        });
      },
      progress: () => ({ header: { job } }),
      cancel: () => {
        job = null;
        return {};
      },
    };
    const model = new FakeModel(
      {
        by: "decoder",
        method: "umap",
        colour: "cluster",
        size: "",
        engine: "auto",
        columns: [],
        latents: null,
      },
      { ...answers, about, names: () => names([]) },
    );
    opened(model);
    await vi.advanceTimersByTimeAsync(10);
    expect($(".sl-map-job").textContent).toContain("UMAP is being made: umap 25 %, 3 s; PCA until then");
    job = { ...job, share: 0.5 };
    await vi.advanceTimersByTimeAsync(750);
    expect($(".sl-map-job").textContent).toContain("50 %");
    job = null;
    await vi.advanceTimersByTimeAsync(1500);
    expect($(".sl-map-job").hidden).toBe(true);
    expect([asked, $$("select")[1].value]).toEqual([["umap", "umap"], "umap"]);
    job = { what: "tsne", share: null, seconds: 0, done: false, error: "" };
    model.set("method", "umap");
    $$("select")[1].dispatchEvent(new Event("change"));
    await vi.advanceTimersByTimeAsync(10);
    $(".sl-map-job button").click();
    await vi.advanceTimersByTimeAsync(10);
    expect(model.sent.at(-1)).toMatchObject({ ask: "cancel", args: { by: "decoder", method: "umap" } });
    const before = model.sent.length;
    await vi.advanceTimersByTimeAsync(3000);
    expect(model.sent.length).toBe(before);
  } finally {
    vi.useRealTimers();
  }
});

test("a scale runs from its low to its high end, and every colour can be told from the page", () => {
  const scale = { title: "", categories: [], low: 1, high: 1000, log: true };
  expect([0.1, 1, Math.sqrt(1000), 1000, 5000].map((v) => shareOf(v, scale))).toEqual([0, 0, 0.5, 1, 1]);
  expect(shareOf(5, { ...scale, low: 0, high: 10, log: false })).toBe(0.5);
  expect([...tonesOf({ scale, values: Float32Array.from([1, 1000, 0, Number.NaN]) })]).toEqual([
    0, 199, 0, 254,
  ]);
  const words = { ...scale, categories: ["a", "b"] };
  expect([...tonesOf({ scale: words, values: Float32Array.from([1, 0, 2]) })]).toEqual([1, 0, 254]);
  for (const [dark, page] of [
    [false, [255, 255, 255]],
    [true, [17, 17, 17]],
  ])
    for (const numbers of [false, true]) {
      const palette = paletteOf(numbers, dark);
      const colour = (tone) => [...palette.slice(4 * tone, 4 * tone + 3)];
      for (const tone of [...Array(200).keys(), 254]) {
        const shown = contrast(blend(colour(tone), page, 0.95), page);
        expect([tone, dark, numbers, shown > (numbers ? 1.6 : 2.5)]).toEqual([tone, dark, numbers, true]);
      }
    }
  expect(
    legend(null, null, false, true)
      .map((row) => row.textContent)
      .join(" "),
  ).toContain("pale");
});

test("a map that opens before it is laid out, with a latent chosen, is drawn when it is", async () => {
  let width = 0;
  Object.defineProperty(HTMLElement.prototype, "clientWidth", { configurable: true, get: () => width });
  let laidOut = () => {};
  globalThis.ResizeObserver = class {
    constructor(call) {
      laidOut = call;
    }
    observe() {}
    disconnect() {}
  };
  const { model } = await show();
  model.set("latent", 1);
  await new Promise((r) => setTimeout(r, 50));
  width = 600;
  laidOut();
  await new Promise((r) => setTimeout(r, 50));
  const rings = drawn.filter(([name]) => name === "arc");
  expect(rings.length).toBeGreaterThan(0);
  expect(rings.every(([, x, y]) => Number.isFinite(x) && Number.isFinite(y))).toBe(true);
});
