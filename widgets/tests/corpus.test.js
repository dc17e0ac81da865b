// @vitest-environment jsdom
import { beforeEach, expect, test } from "vitest";
import { render } from "../views/corpus.js";
import { codes, FakeModel, settle } from "./fake.js";

const HOSTILE = "<img src=x onerror=alert(1)>";
const N = 5_000;
let el;
beforeEach(() => {
  el = document.createElement("div");
  document.body.replaceChildren(el);
});
const $ = (selector) => el.querySelector(selector);
const $$ = (selector) => [...el.querySelectorAll(selector)];
const key = (target, name) =>
  target.dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true, cancelable: true }));
const show = async (state = {}, more = {}) => {
  const answers = {
    list: ({ words, sort }) => {
      if (words === "bad") throw new Error("A query must be one SELECT.");
      const documents = Int32Array.from({ length: words ? 3 : N }, (_, i) => (words ? 10 * i : i));
      const score = Float32Array.from(documents, (d) => (sort === "surprise" ? NaN : d / 2));
      return {
        header: { what: sort === "surprise" ? "mean loss" : "rows", all: N },
        fields: { documents, score },
      };
    },
    lines: ({ documents }) => ({
      fields: { lines: documents.split(",").map((d) => [Number(d), `text ${d}`, `${HOSTILE} ${d}`]) },
    }),
    codes,
    place: ({ row }) => ({ header: { document: row, at: 2 } }),
    surprise: () => ({ header: { seconds: 1.5 } }),
    ...more,
  };
  const model = new FakeModel({ document: null, row: null, latents: null, kept: "full", ...state }, answers);
  render({ model, el });
  await settle();
  return model;
};

test("few rows are elements; a click opens a document, and its text is text", async () => {
  const model = await show();
  expect($$(".sl-doc").length).toBeLessThan(40);
  expect($(".sl-count").textContent).toContain("5,000 of 5,000 documents");
  expect($(".sl-doc .sl-name").textContent).toBe(`${HOSTILE} 0`);
  expect(el.querySelector("img")).toBe(null);
  $$(".sl-doc")[3].click();
  await settle();
  expect(model.state.document).toBe(3);
  expect($(".sl-opened").textContent).toContain("from the store, without the model");
  expect($$(".sl-sample [data-at]").length).toBe(4);
  key($(".sl-docs"), "ArrowDown");
  await settle();
  expect(model.state.document).toBe(4);
  expect($(".sl-doc.sl-chosen").dataset.document).toBe("4");
  $(".sl-opened button").click();
  await settle();
  expect(model.sent.at(-1)).toMatchObject({ ask: "codes", args: { document: 4, model: 1 } });
  expect($(".sl-opened").textContent).toContain("read by the model");
});

test("searching and sorting ask the kernel; errors are said and the list stays", async () => {
  const model = await show({ latent: 7 });
  $(".sl-box").value = "fog";
  key($(".sl-box"), "Enter");
  await settle();
  expect($(".sl-count").textContent).toContain("3 of 5,000 documents");
  const order = $("select[aria-label='sort by']");
  order.value = "firings";
  order.dispatchEvent(new Event("change"));
  await settle();
  expect(model.sent.filter((m) => m.ask === "list").at(-1).args).toEqual({
    ...{ way: "text", words: "fog", sort: "firings", latent: 7, descending: 1 },
  });
  const asked = model.sent.filter((m) => m.ask === "list").length;
  model.set("latent", 8);
  await settle();
  expect(model.sent.filter((m) => m.ask === "list").length).toBe(asked + 1);
  $(".sl-box").value = "bad";
  key($(".sl-box"), "Enter");
  await settle();
  expect($(".sl-banner").textContent).toBe("A query must be one SELECT.");
  expect($$(".sl-doc").length).toBe(3);
});

test("the model is asked for surprise by a button that says of how many", async () => {
  const model = await show();
  expect($(".sl-docs-side button[hidden]")).not.toBe(null);
  const order = $("select[aria-label='sort by']");
  order.value = "surprise";
  order.dispatchEvent(new Event("change"));
  await settle();
  const button = $$(".sl-docs-side button").find((b) => b.textContent.includes("next 50"));
  button.click();
  await settle();
  expect(model.sent.find((m) => m.ask === "surprise").args.documents.split(",").length).toBe(50);
  expect($(".sl-count").textContent).toContain("50 read in 1.50 s");
});

test("what is chosen elsewhere opens here, down to the row", async () => {
  const model = await show();
  model.set("document", 4_000);
  await settle();
  expect($(".sl-doc.sl-chosen").dataset.document).toBe("4000");
  model.set("row", 12);
  await settle();
  await settle();
  await settle();
  expect(model.state.document).toBe(12);
  expect($(".sl-found").dataset.at).toBe("2");
  model.set("document", null);
  await settle();
  expect($(".sl-docs-open").textContent).toContain("Choose a document");
});
