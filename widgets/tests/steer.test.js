// @vitest-environment jsdom
import { beforeEach, expect, test } from "vitest";
import { render } from "../views/steer.js";
import { FakeModel, settle } from "./fake.js";

let el;
beforeEach(() => {
  el = document.createElement("div");
  document.body.replaceChildren(el);
});
const $ = (selector) => el.querySelector(selector);
const $$ = (selector) => [...el.querySelectorAll(selector)];

const settings = (alpha, more = {}) =>
  JSON.stringify({
    ...{ prompt: "Once", knobs: [{ latent: 7, alpha, threshold: 0 }], scale: "max", gate: "constant" },
    ...{ positions: [], special: false, tokens: 3, temperature: 0, seed: 0, ...more },
  });
const columns = (words) =>
  ["plain", "steered", "random direction"].map((name, i) => ({
    ...{ name, tokens: i === 1 ? words : words.map(() => " a") },
    changed: words.map(() => Number(i === 1)),
  }));
const chance = { steered: [0.1, 0.4], "random direction": [0.1, 0.2] };
const shifts = {
  ...{ rises: [[" up", 0.1, 0.4, 0.2]], falls: [[" down", 0.4, 0.1, 0.3]], kl: [0.5, 0.25] },
  ...{
    meter: {
      "blocks.2": [
        { norm: 1.5, nearest: 3 },
        { norm: 1.25, nearest: 2 },
      ],
    },
  },
  ...{ moved: 2, positions: 3 },
};
const curve = {
  ...{ threshold: [2, 1, 0.5], clean: [0, 0, 0.5], target: [0, 0.75, 1], chosen: 1, met: false, n: [8, 8] },
  ...{ max_clean: 0.05, min_target: 0.9, auroc: [0.9, 0.8, 1] },
  held_out: { clean: [0, 0, 0.3, 8], target: [0.8, 0.5, 0.9, 8] },
};
/** A kernel that writes a word a question, three in all. */
const kernel = () => {
  const state = { run: 0, at: 0, alpha: 0, begun: [] };
  const told = () => ({
    header: {
      ...{ run: state.run, done: state.at === 3 },
      columns: columns(Array.from({ length: state.at }, (_, i) => ` w${state.alpha}-${i}`)),
    },
  });
  return {
    state,
    answers: {
      knob: ({ latent }) => ({
        header: { latent, name: `name ${latent}`, max: 2, edges: [0, 2], histogram: [3, 1] },
      }),
      written: ({ settings: s }) => ({
        header: { done: true, columns: columns([` whole ${JSON.parse(s).knobs[0]?.alpha}`]) },
      }),
      shifts: () => ({ header: shifts }),
      curve: ({ gate }) => ({ header: gate === "token" ? {} : curve }),
      load: () => ({
        header: { settings: settings(2, { positions: [0, -1], special: true, gate: "input" }) },
      }),
      dose: () => ({ header: { factors: [0, 1], token: " up", kl: chance, chance } }),
      begin: ({ settings: s }) => {
        state.begun.push(s);
        Object.assign(state, { run: state.run + 1, at: 1, alpha: JSON.parse(s).knobs[0]?.alpha });
        return told();
      },
      more: ({ run }) => {
        if (run !== state.run) return { header: { run, stale: true } };
        state.at++;
        return told();
      },
      stop: () => ({ header: {} }),
      names: () => ({ fields: { names: ["cats", "dogs", "<b>dots"] } }),
      search: () => ({ header: { found: [5] } }),
    },
  };
};
const show = async (state = {}) => {
  const { state: kernelState, answers } = kernel();
  const model = new FakeModel({ settings: settings(1), ...state }, answers);
  const done = render({ model, el });
  await settle();
  return { model, done, state: kernelState };
};
const slide = (alpha) => {
  const slider = $('[data-knob="7"] input[type=range]');
  slider.value = alpha;
  slider.dispatchEvent(new Event("input"));
};
const steered = () => $('[data-column="steered"] .sl-written').textContent;

test("texts side by side, what changed marked, and what that says of the next token", async () => {
  await show();
  expect($$(".sl-column").map((c) => c.dataset.column)).toEqual(["plain", "steered", "random direction"]);
  expect($$(".sl-changed").map((t) => t.textContent)).toEqual([" whole 1"]);
  expect($('[data-shifts="Likelier next tokens"]').textContent).toContain("40.0 %");
  const said = $(".sl-panels").textContent;
  expect(said).toContain("norm at blocks.2: × 1.50 (random direction × 1.25)");
  expect(said).toContain("nearest natural at blocks.2: × 3.00 (random direction × 2.00)");
  expect($$(".sl-dose svg").map((s) => s.querySelectorAll("polyline").length)).toEqual([2, 2]);
  $(".sl-steer label input[type=checkbox]");
  const control = $$("label")
    .find((l) => l.textContent.includes("control"))
    .querySelector("input");
  control.click();
  expect($$(".sl-column").length).toBe(2);
});
test("a slider writes anew, token by token, and of places that it passes only the last counts", async () => {
  const { model, state, done } = await show();
  slide(2);
  slide(2.5);
  slide(3);
  await settle();
  await settle();
  expect(state.begun.map((s) => JSON.parse(s).knobs[0].alpha)).toEqual([2, 3]);
  expect(steered()).toBe("Once w3-0 w3-1 w3-2");
  expect(model.sent.filter((m) => m.ask === "dose").length).toBe(2);
  expect($("[role=status]:not(.sl-banner)").textContent).toBe("3 tokens");
  done();
  expect(model.count()).toBe(0);
});
test("what is stopped asks for no more", async () => {
  const { model } = await show();
  slide(2);
  $$("button")
    .find((b) => b.textContent === "stop")
    .click();
  await settle();
  expect(model.sent.map((m) => m.ask).filter((a) => a === "more" || a === "stop")).toEqual(["stop"]);
  expect(steered()).toBe("Once whole 1");
});
test("latents are added by number, name, text and choice, and taken out", async () => {
  const { model, state } = await show({ latent: 4 });
  const offered = () => $$("[data-add]").map((b) => Number(b.dataset.add));
  expect(offered()).toEqual([4]);
  const box = $("input[type=search]");
  const type = async (words, enter = false) => {
    box.value = words;
    box.dispatchEvent(enter ? new KeyboardEvent("keydown", { key: "Enter" }) : new Event("input"));
    await settle();
  };
  await type("do");
  expect(offered()).toEqual([1, 2]);
  expect($$("b").length).toBe(0);
  await type("fires nothing by name", true);
  expect(offered()).toEqual([5]);
  $("[data-add]").click();
  await settle();
  await type("#9", true);
  expect(JSON.parse(state.begun.at(-1)).knobs.map((k) => k.latent)).toEqual([7, 5, 9]);
  model.set("latent", 11);
  expect(offered()).toEqual([11]);
  $('[aria-label="take latent 7 out"]').click();
  await settle();
  expect($$("[data-knob]").map((k) => k.dataset.knob)).toEqual(["5", "9"]);
});
test("a gate has a threshold over the histogram", async () => {
  const { state } = await show();
  expect($$(".sl-gate").length).toBe(0);
  const gate = $("[data-set=gate]");
  gate.value = "token";
  gate.dispatchEvent(new Event("change"));
  await settle();
  const box = $(".sl-gate input");
  expect($$(".sl-gate rect").length).toBe(2);
  box.value = "0.5";
  box.dispatchEvent(new Event("change"));
  await settle();
  expect($(".sl-gate path").getAttribute("d")).toBe("M50 0V40");
  const last = JSON.parse(state.begun.at(-1));
  expect([last.gate, last.knobs[0].threshold]).toEqual(["token", 0.5]);
});
test("a gate stands on its curve, and a calibrated threshold is a click away", async () => {
  const { state } = await show();
  const gate = $("[data-set=gate]");
  gate.value = "input";
  gate.dispatchEvent(new Event("change"));
  await settle();
  const slider = $(".sl-roc input[type=range]");
  slider.value = 2;
  slider.dispatchEvent(new Event("input"));
  await settle();
  await settle();
  const last = () => JSON.parse(state.begun.at(-1));
  expect([last().gate, last().knobs[0].threshold]).toEqual(["input", 0.5]);
  $$("button")
    .find((b) => b.textContent === "calibrated one")
    .click();
  await settle();
  expect(last().knobs[0].threshold).toBe(1);
  expect($(".sl-roc input[type=range]").value).toBe("1");
});
test("how long, how hot and where are fields, and a recipe that is loaded fills them", async () => {
  const { state } = await show();
  for (const [name, value] of Object.entries({ tokens: "5", temperature: "0.5", seed: "9" })) {
    const field = $(`[data-set=${name}]`);
    field.value = value;
    field.dispatchEvent(new Event("change"));
    await settle();
  }
  const last = JSON.parse(state.begun.at(-1));
  expect([last.tokens, last.temperature, last.seed]).toEqual([5, 0.5, 9]);
  $$("button")
    .find((b) => b.textContent === "load")
    .click();
  await settle();
  expect($("[data-set=positions]").value).toBe("0, -1");
  expect($("[data-set=special]").checked).toBe(true);
  expect($("[data-set=gate]").value).toBe("input");
});
test("a page moves among the settings that it holds", async () => {
  const { answers } = kernel();
  const kept = [settings(1), settings(3), settings(2, { gate: "token" })];
  const asked = [];
  const bridge = {
    live: false,
    close() {},
    ask: async (question, args) => {
      asked.push(question);
      if (question === "kept") return { header: {}, fields: { settings: kept } };
      return { fields: {}, ...answers[question](args) };
    },
  };
  render({ model: Object.assign(new FakeModel({ settings: kept[0] }), { bridge }), el });
  await settle();
  expect(steered()).toBe("Once whole 1");
  slide(2.6);
  await settle();
  expect(steered()).toBe("Once whole 3");
  expect($('[data-knob="7"] input[type=range]').value).toBe("3");
  expect(asked.includes("begin")).toBe(false);
  expect($$("textarea, [data-set]").every((e) => e.disabled)).toBe(true);
});
