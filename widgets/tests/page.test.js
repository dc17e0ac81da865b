import { deflateSync } from "node:zlib";
import { describe, expect, test } from "vitest";
import { modelOf, selectionOf } from "../shared/page.js";
import { openShelf, pageBridge } from "../shared/shelves.js";
import { sent } from "./fake.js";

const packed = (bytes) => deflateSync(bytes).toString("base64");

/** A chunk as Python writes it. */
function chunk(answers) {
  const all = answers.map(sent);
  const headers = Buffer.from(JSON.stringify(all.map((a) => a.header)));
  const length = Buffer.alloc(4);
  length.writeUInt32LE(headers.length);
  const buffers = all.flatMap((a) => a.buffers.map((b) => Buffer.from(b.buffer, b.byteOffset, b.byteLength)));
  return packed(Buffer.concat([length, headers, ...buffers]));
}

const answer = (latent) => ({ header: { latent }, fields: { values: Float32Array.from([latent, 0.5]) } });
const shelf = () => ({
  index: packed(JSON.stringify([1, 4, 9].map((latent) => `card?latent=${latent}`))),
  per: 2,
  chunks: [chunk([answer(1), answer(4)]), chunk([answer(9)])],
});

describe("shelves", () => {
  test("an answer is found in its chunk", async () => {
    const bridge = pageBridge([openShelf(shelf())], { card: 0 });
    for (const latent of [9, 1, 4])
      expect(await bridge.ask("card", { latent })).toEqual({
        header: { latent },
        fields: { values: Float32Array.from([latent, 0.5]) },
      });
    expect(bridge.live).toBe(false);
  });
  test("what is not there is said", async () => {
    const bridge = pageBridge([openShelf(shelf())], { card: 0 });
    await expect(bridge.ask("card", { latent: 2 })).rejects.toThrow("This page holds no card of latent 2.");
    await expect(bridge.ask("search", { text: "a" })).rejects.toThrow("This page holds no search of text a.");
  });
});

describe("a page's selection", () => {
  const entry = { follows: ["latent", "row"], options: { with_card: true } };
  const heard = (model, name) => {
    const values = [];
    model.on(`change:${name}`, () => values.push(model.get(name)));
    return values;
  };

  test("views share what they follow, and hear of changes alone", () => {
    const selection = selectionOf({ latent: 3 });
    const [first, second] = [
      modelOf(entry, selection),
      modelOf({ ...entry, follows: ["latent"] }, selection),
    ];
    const [latents, rows] = [heard(second, "latent"), heard(second, "row")];
    expect([first.get("latent"), first.get("row"), first.get("with_card")]).toEqual([3, null, true]);
    first.set("latent", 5);
    first.save_changes();
    first.set("row", 8);
    first.save_changes();
    expect([latents, rows]).toEqual([[5], []]);
    expect(second.get("row")).toBe(undefined);
  });
  test("who stops listening hears nothing", () => {
    const selection = selectionOf({});
    const model = modelOf(entry, selection);
    const listener = () => expect.unreachable();
    model.on("change:latent", listener);
    model.off("change:latent", listener);
    model.set("latent", 1);
    model.save_changes();
    expect(selection.listeners.size).toBe(0);
  });
});
