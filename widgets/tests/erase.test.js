// @vitest-environment jsdom
import { beforeEach, expect, test } from "vitest";
import { render } from "../views/erase.js";
import { FakeModel, settle } from "./fake.js";

let el;
beforeEach(() => {
  el = document.createElement("div");
  document.body.replaceChildren(el);
});
const $ = (selector) => el.querySelector(selector);
const $$ = (selector) => [...el.querySelectorAll(selector)];

const HOSTILE = "<img src=x onerror=alert(1)>";
const concept = (name, latents, more = {}) => ({ name, on: true, latents, threshold: null, ...more });
const settings = (more = {}) =>
  JSON.stringify({
    concepts: [concept("cooking", [3, 5]), concept("law", [8], { on: false })],
    ...{ mode: "scale", tau: -2, gate: "input", sample: 0, tokens: 3, ...more },
  });
const latent = (number, name) => ({
  ...{ latent: number, pole: 1, name, score: 1, input_score: 1.5, output_score: null, held_out: 0.875 },
  ...{ mean_positive: 1, mean_negative: 0, share_positive: 0.75, share_negative: 0.125 },
});
const about = (name, latents, more = {}) => ({
  ...{ name, method: "difference", latents, auroc: [0.9, 0.8, 1], controls: { "random latents": 0.55 } },
  ...{ parts: { choose: [6, 7], calibrate: [3, 4], measure: [2, 2] }, judge: "words", notes: [], ...more },
});
const told = {
  concepts: [
    about("cooking", [latent(3, "soups"), latent(5, HOSTILE)], { notes: [`${HOSTILE} never fires`] }),
    about("law", [latent(8, "judges")], { judge: "gate" }),
  ],
  samples: [
    { concept: "cooking", title: "A soup." },
    { concept: "cooking", title: HOSTILE },
    { concept: "law", title: "A judge." },
  ],
  ...{ generates: true, cards: true },
};
const curve = {
  ...{ threshold: [4, 2, 1], clean: [0, 0, 0.5], target: [0, 1, 1], chosen: 2, met: true, n: [4, 4] },
  ...{ max_clean: 0.05, min_target: 0.9, auroc: [1, 1, 1] },
  held_out: { clean: [0, 0, 0.5, 4], target: [1, 0.5, 1, 4] },
};
const ARMS = ["before", "after", "random latents"];
const row = (measure, ...values) => ({
  measure,
  arms: Object.fromEntries(ARMS.map((arm, i) => [arm, values[i]])),
});
const groups = [
  {
    ...{ title: "cooking", kind: "erased", n: 2, texts: [["A soup.", " soup", HOSTILE, " pan"]] },
    rows: [
      row("target", [0.25, 0.2, 0.3], [0.05, 0, 0.1], [0.2, 0.1, 0.3]),
      row("norm", [null, null, null], [0.9, 0.8, 1], [1.1, 1, 1.2]),
    ],
  },
  { title: "law", kind: "kept", n: 1, rows: [row("identical", [1, 1, 1], [1, 1, 1], null)], texts: [] },
];
/** A kernel that writes a token a question and measures in two steps. */
const kernel = (more = {}) => {
  const state = { run: 0, at: 0, kind: "", begun: [], gates: [] };
  const columns = (n) =>
    ARMS.map((name, i) => ({
      ...{ name, tokens: Array.from({ length: n }, () => (i === 1 ? HOSTILE : " a")) },
      changed: Array.from({ length: n }, () => Number(i === 1)),
    }));
  const step = () => {
    const { run, at, kind } = state;
    if (kind === "written") return { header: { run, done: at === 3, columns: columns(at) } };
    const done = at === 2;
    const all = done ? { groups, arms: ARMS, left_out: [`${HOSTILE}: why`] } : {};
    return { header: { run, done, share: at / 2, ...all } };
  };
  const begin =
    (kind) =>
    ({ settings: given }) => {
      state.begun.push([kind, JSON.parse(given)]);
      Object.assign(state, { run: state.run + 1, at: 1, kind });
      return step();
    };
  const top = [[HOSTILE, 0.5, 0.25, null]];
  return {
    state,
    answers: {
      told: () => ({ fields: { told: { ...told, ...more } } }),
      gate: (args) => {
        state.gates.push(args);
        return { header: curve };
      },
      written: () => ({ header: { done: true, columns: columns(1) } }),
      compared: () => ({ header: { rows: [{ measure: "kl", arms: [0, 0.5, null] }], top } }),
      measured: () => ({ header: { done: true, groups, arms: ARMS, left_out: [] } }),
      input: ({ sample }) => ({
        header: { title: `image ${sample}`, labels: HOSTILE },
        fields: { picture: new Uint8Array(0) },
      }),
      begin: begin("written"),
      measure: begin("measured"),
      more: ({ run }) => {
        if (run !== state.run) return { header: { run, stale: true } };
        state.at++;
        return step();
      },
      stop: () => ({ header: {} }),
      recipe: ({ settings: given }) => ({ fields: { text: `recipe of ${given}` } }),
      load: () => ({ header: { settings: settings({ mode: "ablate" }) } }),
    },
  };
};
const show = async (more = {}, state = {}) => {
  const { state: own, answers } = kernel(more);
  const model = new FakeModel({ settings: settings(), ...state }, answers);
  const done = render({ model, el });
  await settle();
  await settle();
  return { model, done, state: own };
};
const after = async (work) => {
  work();
  await settle();
  await settle();
};
const last = (state) => state.begun.at(-1)[1];
const change = (input, value) => {
  if (value === undefined) input.click();
  else {
    input.value = value;
    input.dispatchEvent(new Event("input"));
    input.dispatchEvent(new Event("change"));
  }
};

test("why latents were chosen, texts side by side, and figures beside the control", async () => {
  const { state } = await show();
  expect($$("[data-concept]").map((c) => c.dataset.concept)).toEqual(["cooking", "law"]);
  expect($$("[data-toggle]").map((t) => t.checked)).toEqual([true, false]);
  expect($('[data-concept="cooking"] tr:nth-child(2)').textContent).toContain("1.50–75 | 13 %0.875");
  expect($('[data-concept="cooking"]').textContent).toContain(
    "AUROC 0.900 [0.800, 1.00]; random latents 0.550",
  );
  expect($$("[data-roc]").length).toBe(1);
  expect($$(".sl-column").map((c) => c.dataset.column)).toEqual(ARMS);
  expect($$(".sl-changed").length).toBe(1);
  expect(state.begun.map(([kind]) => kind)).toEqual(["measured"]);
  const target = $('[data-group="cooking"] [data-measure="target"]').textContent;
  expect(target).toBe(
    "words of the target, of all25.0 % [20.0 %, 30.0 %]5.0 % [0 %, 10.0 %]20.0 % [10.0 %, 30.0 %]",
  );
  expect($('[data-kind="kept"]').textContent).toContain("left bit-identical100.0 %100.0 %–");
  expect($("[data-group] h3").textContent).toBe("how far from natural activations");
  expect($(".sl-hint[role=status]").textContent).toBe("measured");
  expect($$("img").length).toBe(0);
});
test("what is set is written and measured anew, and a later setting wins", async () => {
  const { model, state, done } = await show();
  await after(() => change($('[data-toggle="law"]')));
  expect(last(state).concepts.map((c) => c.on)).toEqual([true, true]);
  expect($$("[data-roc]").length).toBe(2);
  expect(state.begun.slice(-2).map(([kind]) => kind)).toEqual(["written", "measured"]);
  await after(() => change($('[data-latent="3"]')));
  expect(last(state).concepts[0].latents).toEqual([5]);
  expect(state.gates.at(-1)).toEqual({ concept: "cooking", gate: "input" });
  await after(() => change($('[data-latent="3"]')));
  expect(last(state).concepts[0].latents).toEqual([3, 5]);
  const threshold = $('[data-roc="the gate of cooking"] input');
  await after(() => change(threshold, "2"));
  expect(last(state).concepts[0].threshold).toBe(1);
  await after(() => change($("[data-set=gate]"), "token"));
  expect([last(state).gate, last(state).concepts[0].threshold]).toEqual(["token", null]);
  const before = state.begun.length;
  const slider = $(".sl-tau input[type=range]");
  await after(() => {
    for (const tau of ["-1", "-3", "0.5"]) {
      slider.value = tau;
      slider.dispatchEvent(new Event("input"));
    }
  });
  const taus = state.begun.slice(before).map(([kind, s]) => `${kind} ${s.tau}`);
  expect(taus).toEqual(["written -1", "written 0.5", "measured 0.5"]);
  await after(() => change($("[data-set=mode]"), "ablate"));
  expect($$("[data-roc], .sl-tau, [data-set=gate]").length).toBe(0);
  await after(() => $('[aria-label="next sample"]').click());
  expect(last(state).sample).toBe(1);
  await after(() => change($("[data-set=sample]"), "2"));
  expect(last(state).sample).toBe(2);
  done();
  expect(model.count()).toBe(0);
});
test("what is stopped asks for no more", async () => {
  const { model, state } = await show();
  change($('[data-toggle="law"]'));
  $$("button")
    .find((b) => b.textContent === "stop")
    .click();
  await after(() => {});
  expect(state.begun.map(([kind]) => kind)).toEqual(["measured", "written"]);
  expect(model.sent.at(-1).ask).toBe("stop");
  expect($(".sl-hint[role=status]").textContent).toBe("stopped");
  expect($$("[aria-busy=true]").length).toBe(0);
});
test("a concept that is added in Python comes in, and the others stay as they are set", async () => {
  const { model, state } = await show({}, { settings: settings({ concepts: [concept("cooking", [3, 5])] }) });
  await after(() => change($('[data-latent="5"]')));
  await after(() => model.set("settings", settings()));
  expect(last(state).concepts).toEqual([concept("cooking", [3]), concept("law", [8], { on: false })]);
  expect($$("[data-concept]").length).toBe(2);
});
test("a recipe is written and loaded, and a latent shows its examples", async () => {
  const { model, state } = await show();
  const click = (name) =>
    after(() =>
      $$("button")
        .find((b) => b.textContent === name)
        .click(),
    );
  await click("write");
  expect($("details textarea").value).toContain('recipe of {"concepts":[{"name":"cooking"');
  await click("load");
  expect(last(state).mode).toBe("ablate");
  expect($("[data-set=mode]").value).toBe("ablate");
  await after(() => $('[aria-label="examples of latent 5"]').click());
  expect(model.state.latent).toBe(5);
  expect(model.sent.at(-1)).toMatchObject({ ask: "card", args: { latent: 5 } });
});
test("a subject that writes nothing shows its sample and what its output does", async () => {
  const { state } = await show({ generates: false, cards: false });
  expect($(".sl-apart").textContent).toBe(`image 0 (${HOSTILE})`);
  expect($$(".sl-column, button.sl-number").length).toBe(0);
  expect($("[data-compared=top]").textContent).toContain(`${HOSTILE}0.5000.250–`);
  await after(() => change($('[data-toggle="law"]')));
  expect(state.begun.map(([kind]) => kind)).toEqual(["measured", "measured"]);
});
test("a page moves among the settings that it holds", async () => {
  const { answers } = kernel();
  const kept = [settings(), settings({ mode: "ablate", sample: 1 })];
  const asked = [];
  const bridge = {
    live: false,
    close() {},
    ask: async (question, args) => {
      asked.push([question, args?.settings]);
      if (question === "kept") return { header: {}, fields: { settings: kept } };
      return { header: {}, fields: {}, ...answers[question](args) };
    },
  };
  render({ model: Object.assign(new FakeModel({ settings: kept[0] }), { bridge }), el });
  await settle();
  expect($$("[data-group]").length).toBe(2);
  await after(() => change($("[data-set=kept]"), "1"));
  for (const question of ["written", "compared", "measured"])
    expect(asked).toContainEqual([question, kept[1]]);
  expect($("[data-set=sample]").value).toBe("1");
  expect($$("input, select:not([data-set=kept])").every((e) => e.disabled)).toBe(true);
  expect(asked.some(([question]) => ["begin", "measure", "more"].includes(question))).toBe(false);
});
