// @vitest-environment jsdom
import { beforeEach, describe, expect, test } from "vitest";
import { occurrences } from "../shared/find.js";
import { GROUND } from "../shared/paints.js";
import { blend, contrast, PALETTE } from "../shared/scales.js";
import { render } from "../views/sample.js";
import { card, codes, FakeModel, settle } from "./fake.js";

const HOSTILE = "<img src=x onerror=alert(1)>";
let el;
beforeEach(() => {
  el = document.createElement("div");
  document.body.replaceChildren(el);
});
const $ = (selector) => el.querySelector(selector);
const $$ = (selector) => [...el.querySelectorAll(selector)];
const key = (target, name) =>
  target.dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true, cancelable: true }));
const labels = () => $$(".sl-sample [data-at]").map((e) => e.getAttribute("aria-label"));

const LAYERS = [
  ["loss", "loss"],
  ["sae_loss", "loss added by the SAE"],
];
const layered = () => ({ ...codes(), header: { ...codes().header, layers: LAYERS } });
const layer = ({ name, unit }) => ({
  header: { name, title: name, unit, note: `what ${name} is`, mean: 1.5, control: 2.5, beside: HOSTILE },
  fields: { values: Float32Array.from(name === "loss" ? [NaN, 2, 4, 0.5] : [NaN, -1, -2, 0]) },
});
const show = async (state = {}, more = {}) => {
  const answers = { card: ({ latent }) => card(latent), codes: layered, layer, ...more };
  const model = new FakeModel({ layer: "latent", unit: "nats", latents: null, ...state }, answers);
  const done = render({ model, el });
  await settle();
  return { model, done };
};

describe("layers", () => {
  test("a layer colours, says its unit, its scale and what stands beside it", async () => {
    const { model } = await show();
    const select = $("select[aria-label='colour by']");
    expect([...select.options].map((o) => o.value)).toEqual(["latent", "loss", "sae_loss"]);
    select.value = "loss";
    select.dispatchEvent(new Event("change"));
    await settle();
    expect(model.sent.at(-1)).toMatchObject({ ask: "layer", args: { name: "loss", unit: "nats" } });
    expect($(".sl-legend").textContent).toContain("0 to 4.00 nats");
    expect($(".sl-legend").textContent).toContain(`mean 1.50 nats; ${HOSTILE}: 2.50 nats`);
    expect(el.querySelector("img")).toBe(null);
    expect(labels()).toEqual(["<s>, – nats", "·one, 2.00 nats", "·two, 4.00 nats", "↵, 0.500 nats"]);
    $$(".sl-token")[2].dispatchEvent(new Event("pointerover", { bubbles: true }));
    expect($(".sl-detail-head").textContent).toContain("loss: 4.00 nats");
    const units = $("select[aria-label='unit']");
    units.value = "bits";
    units.dispatchEvent(new Event("change"));
    await settle();
    expect(model.sent.at(-1).args.unit).toBe("bits");
  });
  test("keys go through the layers, and to what has a colour", async () => {
    await show();
    const tokens = $$(".sl-sample [data-at]");
    tokens[0].focus();
    key(tokens[0], "l");
    await settle();
    expect($(".sl-legend").textContent).toContain("what loss is");
    key(document.activeElement, "n");
    expect(document.activeElement).toBe(tokens[1]);
    key(tokens[1], "l");
    await settle();
    expect($(".sl-ramp").className).toContain("sl-below");
    expect($(".sl-legend").textContent).toContain("−2.00 to 0 nats");
    key(document.activeElement, "L");
    key(document.activeElement, "L");
    expect($(".sl-legend").textContent).toContain("strongest latent");
  });
  test("a layer that fails is said, and the colours stay", async () => {
    const refuse = () => {
      throw new Error("no memory");
    };
    await show({}, { layer: refuse });
    const before = labels();
    $("select[aria-label='colour by']").value = "loss";
    $("select[aria-label='colour by']").dispatchEvent(new Event("change"));
    await settle();
    expect($(".sl-banner").textContent).toBe("no memory");
    expect(labels()).toEqual(before);
  });
  test("a call may name the layer", async () => {
    await show({ layer: "loss", unit: "bits" });
    expect(labels()[2]).toBe("·two, 4.00 bits");
  });
});

describe("several latents", () => {
  test("each has a letter and a lane; they are added and taken out", async () => {
    const { model } = await show({ latents: [2, 5] });
    expect($$(".sl-several-key li").map((li) => li.textContent)).toEqual([
      "A #2 up to 2.00",
      "B #5 up to 3.00",
    ]);
    expect(labels()).toEqual([
      "<s>, none of them",
      "·one, A 1.00, B 3.00",
      "·two, A 2.00",
      "↵, none of them",
    ]);
    const lanes = $$(".sl-sample [data-at]").map((e) => e.style.getPropertyValue("--sl-lanes"));
    expect(lanes[1]).toContain("bottom 0px");
    expect(lanes[1]).toContain("bottom 4px");
    expect(lanes[2]).not.toContain("bottom 4px");
    $$(".sl-token")[0].click();
    $(".sl-too").click();
    expect(model.state.latents).toEqual([2, 5, 9]);
    expect($$(".sl-several-key li").length).toBe(3);
    // one that is not among them is chosen: it colours alone, and the several stay at hand
    model.set("latent", 77);
    expect($(".sl-legend").textContent).toContain("latent #77");
    expect([...$("select[aria-label='colour by']").options].map((o) => o.value)).toContain("latents");
    model.set("latents", null);
    expect($(".sl-sample").classList.contains("sl-several")).toBe(false);
  });
  test("a list of very many does not take the colours over", async () => {
    const { model } = await show({ latent: 2 });
    model.set("latents", [1, 2, 3, 4, 5, 6, 7]);
    expect($(".sl-legend").textContent).toContain("latent #2");
    model.set("latents", [1, 2]);
    expect($(".sl-several-key")).not.toBe(null);
  });
  test("the text stays readable on every colour", () => {
    const colours = ["e69f00", "56b4e9", "009e73", "cc79a7", "d55e00", "0072b2"];
    for (const theme of ["light", "dark"])
      for (const hex of colours) {
        const colour = [0, 2, 4].map((i) => Number.parseInt(hex.slice(i, i + 2), 16));
        const { text, page } = PALETTE[theme];
        expect(contrast(text, blend(colour, page, GROUND / 100))).toBeGreaterThanOrEqual(4.5);
      }
  });
});

describe("long texts", () => {
  const N = 20_000;
  const PER = 4096;
  const chunk = (number) => {
    const n = Math.min(PER, N - number * PER);
    return {
      indptr: Int32Array.from({ length: n + 1 }, (_, i) => i),
      indices: new Int32Array(n).fill(number),
      values: new Float32Array(n).fill(number + 1),
    };
  };
  const long = () => ({
    header: {
      ...{ facets: ["token"], parts: [["line", N, 0, 0, N]], calls: 1, labels: [], per: PER },
      ...{ starts: [512], parted: "read in parts" },
    },
    fields: {
      names: Array.from({ length: N }, (_, i) => (i === 15_000 ? ` ${HOSTILE}` : ` w${i}`)),
      facets: new Uint8Array(N),
      counted: new Uint8Array(N).fill(1),
      strongest: Float32Array.from({ length: N }, (_, i) => 1 + Math.floor(i / PER)),
      picture: new Uint8Array(0),
      ...chunk(0),
    },
  });
  const answers = {
    codes: long,
    chunk: ({ number }) => ({ header: {}, fields: chunk(number) }),
    along: () => ({
      header: {},
      fields: { positions: Int32Array.from([15_000]), values: Float32Array.from([7]) },
    }),
  };
  test("only what is in sight is drawn; chunks are asked for; words are found", async () => {
    const { model } = await show({}, answers);
    expect($$("[data-at]").length).toBeLessThan(2_500);
    expect($$("[data-at]").filter((e) => e.tabIndex === 0).length).toBe(1);
    expect($("[data-at='512']").getAttribute("aria-label")).toContain("the model reads anew here");
    const box = $(".sl-find input");
    box.value = "<IMG src";
    box.dispatchEvent(new Event("input"));
    expect($(".sl-find .sl-count").textContent).toBe("1 of 1");
    const found = $("[data-at='15000']");
    expect(found.classList.contains("sl-found")).toBe(true);
    expect(found.textContent).toBe(` ${HOSTILE}`);
    expect($$("[data-at]").length).toBeLessThan(2_500);
    expect($("[data-at='0']")).toBe(null);
    await settle();
    expect(model.sent.filter((m) => m.ask === "chunk").map((m) => m.args.number)).toEqual([3]);
    expect($(".sl-detail .sl-number").textContent).toBe("#3");
    // a latent along the whole text; n goes where it fires
    model.set("latent", 42);
    await settle();
    expect(found.getAttribute("aria-label")).toContain(", 7.00");
    $("[data-at='15000']").focus();
    key(document.activeElement, "Home");
    expect(document.activeElement.dataset.at).toBe("0");
    key(document.activeElement, "n");
    expect(document.activeElement.dataset.at).toBe("15000");
    box.value = "nowhere";
    box.dispatchEvent(new Event("input"));
    expect($(".sl-find .sl-count").textContent).toBe("not found");
  });
  test("occurrences go across tokens", () => {
    expect(occurrences(["ab", "ca", null, "bc"], "ABC")).toEqual([
      [0, 2],
      [1, 3],
    ]);
    expect(occurrences(["a"], "")).toEqual([]);
  });
});
