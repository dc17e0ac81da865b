// @vitest-environment jsdom
import { beforeEach, expect, test, vi } from "vitest";
import { remember } from "../shared/remembered.js";
import { render } from "../views/card.js";
import { card, FakeModel, settle } from "./fake.js";

const NASTY = "<img src=x onerror=alert(1)>";
let el;
const $ = (selector) => el.querySelector(selector);
const $$ = (selector) => [...el.querySelectorAll(selector)];
const press = (target, key) => target.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));

const near = {
  similar: [[4, 0.9]],
  ...{ similar_chance: 0.4, similar_usual: 0.3 },
  together: [[5, 12, 3, 0.5]],
  neurons: [[17, -0.6]],
  ...{ aligned: [0.36, 0.9], aligned_chance: [0.1, 0.5] },
  hints: [[6, "instead", 0.8, 0.7, 2, 40, 5]],
  overlap_chance: 0.2,
  labels: [
    [NASTY, "me", []],
    ["names", "other", [[NASTY, 0.8]]],
  ],
  reasons: ["why not"],
};
const windows = (kind) => ({
  header: {
    vocabulary: ["before", "peak", "after"],
    windows: [{ kind, peak: 1, value: 2, row: 9, document: 3, n: 3 }],
  },
  fields: { names: Uint16Array.from([0, 1, 2]), values: Float32Array.from([0, 2, 0]) },
});
const ASKS = ["drawn", "relabel", "relatives", "tried", "whole"];

/** A card that can be asked all; `answers` on top of that. */
function shown(state = {}, answers = {}, header = {}) {
  const tokens = [[NASTY, 62, 1, 17.4]];
  const model = new FakeModel(
    { latent: 3, ...state },
    {
      card: ({ latent }) => card(latent, { header: { asks: ASKS, tokens, ...header } }),
      relatives: () => ({ header: near }),
      drawn: ({ kind }) => windows(kind),
      whole: () => windows("whole"),
      ...answers,
    },
  );
  const close = render({ model, el });
  return { model, close };
}
const unfold = async (name) => {
  const details = $(`[data-fold="${name}"]`);
  details.open = true;
  details.dispatchEvent(new Event("toggle"));
  await settle();
  return details;
};

beforeEach(() => {
  remember("aligned", "start");
  document.body.replaceChildren();
  el = document.createElement("div");
  document.body.append(el);
});

test("what sets a latent apart, and how often it fires, stand on the card", async () => {
  shown();
  await settle();
  const cells = [...$(".sl-figures tbody tr").children].map((cell) => cell.textContent);
  expect(cells).toEqual([NASTY, "×17.4", "62", "100.0 %"]);
  expect($("img")).toBeNull();
  expect($(".sl-density").getAttribute("aria-label")).toContain("4.0 %");
});

test("relatives are asked for when they are unfolded, and stay so for the next latent", async () => {
  const { model } = shown();
  await settle();
  expect(model.sent.map((m) => m.ask)).not.toContain("relatives");
  const place = await unfold("relatives");
  const text = place.textContent;
  for (const each of [
    "+0.900",
    "0.400",
    "12",
    "#17".slice(1),
    "36.0 %",
    "40.0 ± 5.00",
    "instead of it",
    "0.800",
    "without a control",
    NASTY,
  ])
    expect(text).toContain(each);
  expect(text).toContain("why not");
  expect($("img")).toBeNull();
  place.querySelector("button.sl-number").click();
  await settle();
  expect(model.get("latent")).toBe(4);
  expect($('[data-fold="relatives"]').hasAttribute("open")).toBe(true);
});

test("what can't be asked is not offered, and an error is said where it happened", async () => {
  shown({}, {}, { asks: ["drawn"] });
  await settle();
  expect($$("[data-fold]").map((e) => e.dataset.fold)).toEqual(["drawn"]);
  expect($(".sl-more")).toBeNull();
  expect($(".sl-edit")).toBeNull();
  el.replaceChildren();
  const { model } = shown(
    {},
    {
      drawn: () => {
        throw new Error("no codes");
      },
    },
    {},
  );
  await settle();
  expect((await unfold("drawn")).querySelector("[role=alert]").textContent).toBe("no codes");
  model.answers.drawn = ({ kind }) => ({ ...windows(kind), header: { reason: "kept none", windows: [] } });
  $('[data-fold="drawn"]').open = false;
  $('[data-fold="drawn"]').dispatchEvent(new Event("toggle"));
  expect((await unfold("drawn")).textContent).toContain("kept none");
});

test("a window unfolds to its document and back", async () => {
  const { model } = shown();
  await settle();
  const button = $(".sl-more");
  button.click();
  await settle();
  expect(model.sent.at(-1).args).toEqual({ latent: 3, row: 12 });
  expect($(".sl-whole").textContent).toBe("beforepeakafter");
  expect(button.getAttribute("aria-expanded")).toBe("true");
  button.click();
  expect($(".sl-whole")).toBeNull();
  expect($(".sl-windows .sl-window").textContent).toContain("a b");
});

test("windows are aligned by a key, which is remembered; a compact card has fewer parts", async () => {
  const { close } = shown();
  await settle();
  expect($(".sl-firing")).toBeNull();
  press($(".sl-card"), "a");
  await settle();
  expect($(".sl-firing .sl-before").textContent).toBe("a");
  expect($(".sl-firing .sl-after").firstChild.classList.contains("sl-peak")).toBe(true);
  press($(".sl-card"), "c");
  await settle();
  expect($(".sl-compact")).not.toBeNull();
  expect($$("[data-fold]")).toEqual([]);
  close();
  shown({ compact: true });
  await settle();
  expect($(".sl-firing.sl-compact")).not.toBeNull();
  expect($('[data-switch="Compact"]').getAttribute("aria-pressed")).toBe("true");
});

test("a label is edited in place: Enter keeps it, Escape undoes, a refusal stays to be mended", async () => {
  const relabel = vi.fn(({ text }) => {
    if (text === "bad") throw new Error("not that");
    return { header: { label: text } };
  });
  const { model } = shown({}, { relabel });
  await settle();
  const type = async (text, key) => {
    $(".sl-edit").click();
    $(".sl-label-box").value = text;
    press($(".sl-label-box"), key);
    await settle();
  };
  await type("lost", "Escape");
  expect($(".sl-label").textContent).toBe("a label");
  expect(document.activeElement).toBe($(".sl-edit"));
  expect(relabel).not.toHaveBeenCalled();

  await type("bad", "Enter");
  expect($(".sl-labelled small").textContent).toBe("not that");
  press($(".sl-label-box"), "Escape");

  await type(NASTY, "Enter");
  expect(relabel.mock.calls.at(-1)[0]).toEqual({ latent: 3, text: NASTY });
  model.set("labels", { 3: { label: NASTY, name: NASTY } });
  await settle();
  expect($(".sl-label").textContent).toBe(NASTY);
  expect($("img")).toBeNull();
});

test("a typed text shows where the latent fires, and how long it took; the last one wins", async () => {
  const answer = (names, values) => ({
    fields: { names, values: Float32Array.from(values), counted: Uint8Array.from(values.map(() => 1)) },
  });
  const { model } = shown({}, { tried: ({ text }) => answer([text, NASTY], [0, 1.5]) });
  await settle();
  const place = await unfold("tried");
  const box = place.querySelector("textarea");
  box.value = "one";
  press(box, "Enter");
  await settle();
  expect(model.sent.at(-1).args).toEqual({ latent: 3, text: "one" });
  expect(place.querySelector(".sl-tried").textContent).toMatch(
    /fires on 1 of 2 positions, strongest 1.50.*\d+ ms/,
  );
  expect($("img")).toBeNull();
  // "a" in the box is a letter
  press(box, "a");
  expect($(".sl-firing")).toBeNull();
  model.answers.tried = () => answer(["x"], [0]);
  box.value = "two";
  press(box, "Enter");
  await settle();
  expect(place.querySelector(".sl-tried").textContent).toContain("does not fire");
});
