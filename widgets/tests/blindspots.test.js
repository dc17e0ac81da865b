// @vitest-environment jsdom
import { beforeEach, expect, test } from "vitest";
import { render } from "../views/blindspots.js";
import { FakeModel, settle } from "./fake.js";

let el;
beforeEach(() => {
  el = document.createElement("div");
  document.body.replaceChildren(el);
});
const $$ = (selector) => [...el.querySelectorAll(selector)];

/** Latent 9 is lost, 4 is shown more, 2 is as it was. */
const spots = () => ({
  header: {
    head: "<b>3 alive</b>",
    pictured: true,
    fdr: 0.05,
    figures: [["flagged share", 0.5, 0.2, 0.8, [["null", 0.01, 0, 0.02]], true]],
  },
  fields: {
    latents: Int32Array.from([9, 2, 4]),
    flags: Int8Array.from([-1, 0, 1]),
    relative: Float32Array.from([-0.9, 0, 0.5]),
    interval: Float32Array.from([-1, -0.8, -0.1, 0.1, 0.4, 0.6]),
    q: Float32Array.from([0.001, 0.9, 0.01]),
    energy: Float32Array.from([2, 0.1, 1, 1, 1, 3]),
    fired: Int32Array.from([20, 1, 9, 9, 4, 12]),
    names: ["red <i>", "", "blue"],
  },
});
const PNG = [137, 80, 78, 71];
const pair = ({ latent }) => ({
  header: { sides: [[[`real ${latent}`, 2.5, 4]], latent === 9 ? [] : [["made", 1.5, 0]]] },
  fields: { pictures: Uint8Array.from(PNG) },
});
const show = async (state = {}) => {
  const model = new FakeModel({ way: "flagged", latent: null, ...state }, { spots, pair });
  const done = render({ model, el });
  await settle();
  return { model, done };
};
const listed = () => $$(".sl-spots button").map((b) => b.dataset.latent);

test("what is flagged, what is lost first; words and ways choose among them", async () => {
  const { model } = await show();
  expect(listed()).toEqual(["9", "4"]);
  expect(el.querySelector("b, i")).toBe(null); // names are words
  expect(el.textContent).toContain("red <i>");
  expect($$(".sl-spot-figures td").map((cell) => cell.textContent)).toContain("null 0.010");
  const select = el.querySelector("select");
  select.value = "all";
  select.dispatchEvent(new Event("change"));
  await settle();
  expect(model.state.way).toBe("all");
  expect(listed()).toEqual(["9", "2", "4"]);
  const words = el.querySelector("input");
  words.value = "BLUE";
  words.dispatchEvent(new Event("input"));
  expect(listed()).toEqual(["4"]);
});
test("a chosen latent has images of either side", async () => {
  const { model, done } = await show();
  $$(".sl-spots button")[1].click();
  await settle();
  expect(model.state.latent).toBe(4);
  const sides = $$(".sl-spot-sides section");
  expect(sides[0].querySelector("img").alt).toBe("real 4");
  expect(sides[0].querySelector("img").src).toContain("data:image/png");
  expect(sides[1].querySelector("img")).toBe(null);
  expect(sides[1].textContent).toContain("made: 1.5");
  expect(el.textContent).toContain("shown more than in real images");
  const down = new KeyboardEvent("keydown", { key: "ArrowUp", bubbles: true, cancelable: true });
  $$(".sl-spots button")[1].dispatchEvent(down);
  await settle();
  expect(model.state.latent).toBe(9);
  expect($$(".sl-spot-sides section")[1].textContent).toContain("none shows it");
  expect($$("[aria-pressed=true]").map((b) => b.dataset.latent)).toEqual(["9"]);
  done();
  expect(model.count()).toBe(0);
});
test("a latent that is not alive is said to be", async () => {
  await show({ latent: 77 });
  expect(el.textContent).toContain("#77 fires in too few images");
});
