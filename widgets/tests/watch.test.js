// @vitest-environment jsdom
import { beforeEach, expect, test, vi } from "vitest";
import { counted, curvesChart, logTicks, ticksOf } from "../shared/curves.js";
import { PATIENCE_MS, render } from "../views/watch.js";
import { FakeModel, sent, settle } from "./fake.js";

let el;
beforeEach(() => {
  el = document.createElement("div");
  document.body.replaceChildren(el);
});
const $ = (selector) => el.querySelector(selector);
const $$ = (selector) => [...el.querySelectorAll(selector)];
const HOSTILE = "<img src=x onerror=alert(1)>";

/** Two runs: one that trains here, 3 of 6 steps of 100 rows; one that has finished. */
function runs(change = {}) {
  const density = { low: -2, per_decade: 1, counts: [4, 2], below: 1 };
  const common = { name: "topk", steps: 6, seconds: 3, thinned: 1, density };
  const one = { label: HOSTILE, state: "training", step: 3, rows: 300, speed: 1500, left: 0.2 };
  const two = { label: "b", state: "finished", step: 6, rows: 600, speed: 100, left: null };
  const x = [100, 200, 300];
  return {
    header: {
      runs: [
        { ...common, ...one, stoppable: true, here: true, ...change },
        { ...common, ...two, stoppable: false, here: false },
      ],
    },
    fields: {
      "0.loss": Float32Array.from([...x, 1, 0.5, 0.25]),
      "0.fvu": Float32Array.from([...x, 1, Number.POSITIVE_INFINITY, 0.25]),
      "0.held_out_fvu": Float32Array.from([300, 0.3]),
      "0.dead": Float32Array.from([...x, 0, 0, 0.125]),
      "1.loss": Float32Array.from([100, 600, 2, 0.125]),
    },
  };
}
const show = async (answers = {}, state = {}) => {
  const model = new FakeModel({ opening: {}, ...state }, { runs: () => runs(), ...answers });
  const done = render({ model, el });
  await settle();
  return { model, done };
};
const cells = (run) => [...$$("tr[data-run]")[run].children].map((cell) => cell.textContent.trim());

test("a line for each run, its figures at the cursor", async () => {
  const { model, done } = await show();
  expect(cells(0)).toEqual([
    HOSTILE,
    "training 50.0 %",
    "stop",
    "300",
    "1.5k",
    "1 s",
    "0.250",
    "0.250",
    "–",
    "12.5 %",
  ]);
  expect(cells(1).slice(1, 7)).toEqual(["finished", "stop", "600", "100", "–", "0.125"]);
  expect($("img")).toBe(null);
  expect($$("tr[data-run] button").map((button) => button.hidden)).toEqual([false, true]);
  const slider = $("input[type=range]");
  slider.value = "400"; // of 1000, that is at row 240
  slider.dispatchEvent(new Event("input"));
  expect(cells(0)[6]).toBe("0.500");
  expect(slider.getAttribute("aria-valuetext")).toBe("240 rows");
  expect($$(".sl-cursor").length).toBe(5);
  done();
  expect(model.count()).toBe(0);
});

test("curves of all, or of those that are ticked, on either scale", async () => {
  await show();
  const drawn = () => $$("figure")[0].querySelectorAll("path[data-curve]");
  expect([...drawn()].map((path) => path.dataset.curve)).toEqual([HOSTILE, "b"]);
  const held = $$("figure")[1].querySelectorAll("path[data-curve]");
  expect([...held].map((path) => path.dataset.curve)).toEqual([HOSTILE, `${HOSTILE}, held-out`]);
  expect(held[0].getAttribute("d").match(/M/g).length).toBe(2); // a gap where FVU is infinite
  expect($$("figure")[1].querySelectorAll("circle").length).toBe(1);
  const before = drawn()[0].getAttribute("d");
  const boxes = $$(".sl-watch-bar input[type=checkbox]");
  boxes[0].click();
  expect(drawn()[0].getAttribute("d")).not.toBe(before);
  $$("tr input")[0].click();
  expect([...drawn()].map((path) => path.dataset.curve)).toEqual(["b"]);
  expect($$("figure summary").map((each) => each.textContent)).toEqual(Array(6).fill("?"));
});

test("what is told later is drawn, and keeps the focus", async () => {
  const { model } = await show();
  $("tr[data-run] button").focus();
  model.set("opening", { runs: sent(runs({ state: "stopped", rows: 500, stoppable: false })) });
  await settle();
  expect(cells(0).slice(1, 4)).toEqual(["stopped, SAE kept", "stop", "500"]);
  model.set("opening", { runs: sent(runs({ step: 4 })) });
  await settle();
  $("tr[data-run] button").focus();
  const focused = document.activeElement;
  model.set("opening", { runs: sent(runs({ step: 5 })) });
  await settle();
  expect(document.activeElement).toBe(focused);
  model.answers.runs = () => ({ header: { runs: [] } });
  model.set("opening", {});
  await settle();
  expect($(".sl-watch").textContent).toContain("No run yet");
});

test("a run is stopped, by an interrupt where a kernel hears nothing", async () => {
  const asked = [];
  const first = await show({ stop: (args) => asked.push(args) && { header: {} } });
  $("tr[data-run] button").click();
  expect(cells(0)[1]).toContain("stopping");
  expect($("tr[data-run] button").disabled).toBe(true);
  await settle();
  expect(asked).toEqual([{ run: 0 }]);
  first.done();
  el.replaceChildren();
  vi.useFakeTimers();
  for (const [here, may, wanted] of [
    [true, true, 1],
    [false, true, 0],
    [true, false, 0],
  ]) {
    el.replaceChildren();
    const interrupt = vi.fn(() => Promise.resolve());
    const model = new FakeModel({ opening: { runs: sent(runs({ here })) } }, {});
    if (may) model.widget_manager = { kernel: { status: "busy", interrupt } };
    const done = render({ model, el });
    await vi.advanceTimersByTimeAsync(1);
    $("tr[data-run] button").click();
    await vi.advanceTimersByTimeAsync(PATIENCE_MS + 1);
    expect(interrupt).toHaveBeenCalledTimes(wanted);
    expect($("[role=status].sl-hint").textContent.includes("Interrupt the kernel")).toBe(!wanted);
    done();
  }
  vi.useRealTimers();
});

test("axes have round numbers", () => {
  expect(ticksOf(0, 1, 4)).toEqual([0, 0.5, 1]);
  expect(ticksOf(0, 83200, 4)).toEqual([0, 50000]);
  expect(logTicks(0.01, 2)).toEqual([0.01, 0.1, 1]);
  expect(logTicks(0.3, 0.6).every((v) => v > 0.299 && v < 0.601)).toBe(true);
  expect([0, 950, 12000, 1.5e6, 2e9].map(counted)).toEqual(["0", "950", "12k", "1.5M", "2G"]);
  const empty = curvesChart({ label: "a", curves: [], x: [0, 1], log: true });
  expect(empty.querySelectorAll("path[data-curve]").length).toBe(0);
});
