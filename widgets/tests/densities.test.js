// @vitest-environment jsdom
import { beforeEach, expect, test } from "vitest";
import { render } from "../views/densities.js";
import { FakeModel, settle } from "./fake.js";

let el;
beforeEach(() => {
  el = document.createElement("div");
  document.body.replaceChildren(el);
});
const $$ = (selector) => [...el.querySelectorAll(selector)];

/** Latents 5 and 2 never fire; from 1 % on: 7, none, 0 and 4, 1. */
const densities = (dead) => ({
  header: { dead, low: -1, per_decade: 4 },
  fields: {
    counts: Int32Array.from([1, 0, 2, 1]),
    latents: Int32Array.from([...[5, 2].slice(0, dead), 7, 0, 4, 1]),
  },
});
const show = async (state = {}, dead = 2) => {
  const model = new FakeModel(state, { densities: () => densities(dead) });
  const done = render({ model, el });
  await settle();
  return { model, done };
};
const pressed = () => $$("[data-low]").map((b) => b.getAttribute("aria-pressed"));
const shares = () => $$("[data-low] > span").map((bar) => bar.style.background.match(/([\d.]+)%/)[1]);

test("a bar for the dead and for each bin", async () => {
  await show();
  expect($$("[data-low]").map((b) => b.getAttribute("aria-label"))).toEqual([
    "2 never fire",
    "1 fire on 10.0 % to 17.8 % of rows",
    "0 fire on 17.8 % to 31.6 % of rows",
    "2 fire on 31.6 % to 56.2 % of rows",
    "1 fire on 56.2 % to 100.0 % of rows",
  ]);
  expect($$("[data-low]").map((b) => b.disabled)).toEqual([false, false, true, false, false]);
  const heights = $$("[data-low] > span").map((bar) => parseFloat(bar.style.height));
  expect(heights[1] / heights[0]).toBeCloseTo(Math.sqrt(0.5));
  expect(heights[2]).toBe(0);
  expect(el.textContent).toContain("6 latents, 2 never fire");
  el.replaceChildren();
  await show({}, 0);
  expect($$("[data-low]").length).toBe(4);
});
test("a bar chooses its latents, and lets go of them", async () => {
  const { model, done } = await show();
  $$("[data-low]")[3].click();
  expect(model.state.latents).toEqual([0, 4]);
  expect(pressed()).toEqual(["false", "false", "false", "true", "false"]);
  $$("[data-low]")[3].click();
  expect(model.state.latents).toBe(null);
  $$("[data-low]")[0].click();
  expect(model.state.latents).toEqual([5, 2]);
  el.querySelector(".sl-clear").click();
  expect(model.state.latents).toBe(null);
  done();
  expect(model.count()).toBe(0);
});
test("what is chosen elsewhere shows in its bins", async () => {
  const { model } = await show({ latent: 1 });
  model.set("latents", [4, 7, 99]);
  expect(shares()).toEqual(["0", "100", "0", "50", "0"]);
  // a part of what is chosen is no choice of the bar
  expect(pressed().includes("true")).toBe(false);
  expect(el.textContent).toContain("3 chosen");
  expect($$("[data-low]").map((b) => b.title.includes("#1"))).toEqual([false, false, false, false, true]);
});
