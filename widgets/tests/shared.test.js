// @vitest-environment jsdom
import { afterEach, describe, expect, test, vi } from "vitest";
import { decode, keyOf } from "../shared/answers.js";
import { GRACE_MS, kernelBridge, SILENT_MS, SLOW_MS } from "../shared/bridge.js";
import { focusedIn, h, tokenElement, visibleParts } from "../shared/dom.js";
import { blend, contrast, heat, MAX_ALPHA, PALETTE, short, signed, spoken } from "../shared/scales.js";
import { rendering } from "../shared/view.js";
import { FakeModel, sent, settle } from "./fake.js";

afterEach(() => vi.useRealTimers());

describe("text is inert", () => {
  test("characters that do not show are shown", () => {
    expect(visibleParts("a\nb")).toEqual([
      { text: "a", sign: false },
      { text: "↵", sign: true },
      { text: "b", sign: false },
    ]);
    expect(visibleParts("\u202e\u200b").map((p) => p.text)).toEqual(["U+202E", "U+200B"]);
    expect(visibleParts("שלום").every((p) => !p.sign)).toBe(true);
    expect(visibleParts("\ud800")[0].sign).toBe(true);
  });
  test("markup is text", () => {
    const element = tokenElement("<img src=x onerror=alert(1)>");
    expect(element.children.length).toBe(0);
    expect(element.textContent).toBe("<img src=x onerror=alert(1)>");
    expect(tokenElement("").textContent).toBe("∅");
  });
});

describe("scales", () => {
  test("text on any heat is readable", () => {
    for (const theme of ["light", "dark"]) {
      const { text, page, positive, negative } = PALETTE[theme];
      for (const colour of [positive, negative]) {
        for (let alpha = 0; alpha <= MAX_ALPHA; alpha += 0.05)
          expect(contrast(text, blend(colour, page, alpha))).toBeGreaterThanOrEqual(4.5);
      }
    }
  });
  test("heat grows with the value, in colour and in line", () => {
    const steps = [0, 0.1, 0.5, 0.9, 1].map((v) => heat(v, 1));
    expect(steps.map((s) => s.line)).toEqual([0, 1, 2, 3, 3]);
    expect(steps.every((s, i) => i === 0 || s.alpha > steps[i - 1].alpha)).toBe(true);
    expect(heat(-1, 1)).toMatchObject({ negative: true, line: 3 });
    expect(heat(NaN, 1).alpha).toBe(0);
    expect(heat(1, 0).alpha).toBe(0);
  });
  test("numbers are short", () => {
    expect([0, 0.12345, 1.2345, 12.345, 123.45, 1e7, 1e-5].map(short)).toEqual([
      "0",
      "0.123",
      "1.23",
      "12.3",
      "123",
      "1.0e+7",
      "1.0e-5",
    ]);
  });
  test("numbers tell theirs, to the eye and to the ear", () => {
    expect([-1.2345, -1e-5, 0].map(short)).toEqual(["−1.23", "−1.0e-5", "0"]);
    expect([1.5, -1.5, 0].map(signed)).toEqual(["+1.50", "−1.50", "0"]);
    expect([1.5, -1.5, -1e-5, 0].map(spoken)).toEqual(["1.50", "minus 1.50", "minus 1.0e-5", "0"]);
  });
  test("what is no number is a dash", () => {
    expect([null, Number.NaN, Number.POSITIVE_INFINITY].map(short)).toEqual(["–", "–", "–"]);
  });
});

describe("elements", () => {
  test("what is true or false of ARIA is a word, of the rest an attribute or none", () => {
    const made = h("button", { "aria-pressed": false, "aria-hidden": true, hidden: true, disabled: false });
    expect(made.outerHTML).toBe('<button aria-pressed="false" aria-hidden="true" hidden=""></button>');
  });
});

describe("answers", () => {
  const fields = {
    a: Int8Array.from([-1, 2]),
    b: Uint32Array.from([4e9]),
    c: Float64Array.from([0.1]),
    d: ["x", "שלום"],
    e: Uint16Array.from([]),
  };
  test("fields come by name, whatever their offset", () => {
    expect(decode(sent({ header: { n: 1 }, fields }))).toEqual({ header: { n: 1 }, fields });
  });
  test("buffers that do not fit the header are refused", () => {
    const { header, buffers } = sent({ fields });
    expect(() => decode({ header, buffers: buffers.slice(1) })).toThrow("Got 4 for 5");
    expect(() => decode({ header, buffers: buffers.toReversed() })).toThrow(
      "Field a must have 2 bytes. Got 0",
    );
    const strange = { fields: [{ name: "a", dtype: "int64", shape: [1] }] };
    expect(() => decode({ header: strange, buffers: [new ArrayBuffer(8)] })).toThrow("Got a of int64");
  });
  test("keys are those of Python", () => {
    expect(keyOf("codes")).toBe("codes");
    expect(keyOf("card", { latent: 7 })).toBe("card?latent=7");
    expect(keyOf("card", { sae: 'a"é&b=1', latent: 7 })).toBe('card?latent=7&sae="a\\"é&b=1"');
  });
});

describe("bridge", () => {
  test("answers find their questions, in any order", async () => {
    const model = new FakeModel({}, null);
    const bridge = kernelBridge(model, () => {});
    const [first, second] = [bridge.ask("card", { latent: 1 }), bridge.ask("card", { latent: 2 })];
    model.answer(1, { header: { at: "two" } });
    model.answer(0, { header: { at: "one" } });
    expect([(await first).header.at, (await second).header.at]).toEqual(["one", "two"]);
  });
  test("a host that tells nothing of its kernel: the answer is waited for, however late", async () => {
    vi.useFakeTimers();
    const said = [];
    const model = new FakeModel({}, null);
    const asked = kernelBridge(model, (m) => said.push(m)).ask("card", {});
    vi.advanceTimersByTime(SLOW_MS);
    expect(said.at(-1)).toMatch(/^Waiting/);
    vi.advanceTimersByTime(10 * SILENT_MS);
    expect(said.at(-1)).toMatch(/^Still waiting/);
    model.answer(0, { header: { at: "late" } });
    expect((await asked).header.at).toBe("late");
    expect(said.at(-1)).toBe("");
    expect(said.join()).not.toMatch(/does not answer/);
  });
  /** A kernel that says it is idle; `replies` are those to its own protocol. */
  const idle = () => {
    const replies = [];
    const requestKernelInfo = () => new Promise((resolve, reject) => replies.push({ resolve, reject }));
    return { status: "idle", requestKernelInfo, replies };
  };
  test("a kernel under load that tells it is idle is waited for", async () => {
    vi.useFakeTimers();
    const said = [];
    const model = new FakeModel({}, null);
    const kernel = idle();
    model.widget_manager = { kernel };
    const bridge = kernelBridge(model, (m) => said.push(m));
    const [first, second] = [bridge.ask("card", { latent: 1 }), bridge.ask("card", { latent: 2 })];
    await vi.advanceTimersByTimeAsync(3 * SILENT_MS);
    expect(said.at(-1)).toMatch(/^Still waiting/);
    // it comes back to life: the reply may overtake the answers
    kernel.replies[0].resolve();
    kernel.replies[1].reject(new Error("canceled"));
    await vi.advanceTimersByTimeAsync(GRACE_MS / 2);
    model.answer(0, { header: { at: 1 } });
    model.answer(1, { header: { at: 2 } });
    expect([(await first).header.at, (await second).header.at]).toEqual([1, 2]);
    await vi.advanceTimersByTimeAsync(GRACE_MS);
    expect(said.at(-1)).toBe("");
    expect(said.join()).not.toMatch(/does not answer/);
    expect(vi.getTimerCount()).toBe(0);
  });
  test("a kernel that replies, but not to the view, does not answer it", async () => {
    vi.useFakeTimers();
    const said = [];
    const model = new FakeModel({}, null);
    const kernel = idle();
    model.widget_manager = { kernel };
    const asked = kernelBridge(model, (m) => said.push(m))
      .ask("card", {})
      .catch((e) => e.message);
    await vi.advanceTimersByTimeAsync(SILENT_MS);
    kernel.replies[0].resolve();
    await vi.advanceTimersByTimeAsync(GRACE_MS);
    expect(await asked).toMatch(/does not answer/);
    expect(said.at(-1)).toMatch(/does not answer/);
    expect(vi.getTimerCount()).toBe(0);
  });
  test("a kernel whose host tells that it is gone is said to be, until the view is closed", () => {
    const said = [];
    const model = new FakeModel({}, null);
    const watching = new Set();
    const statusChanged = { connect: (f) => watching.add(f), disconnect: (f) => watching.delete(f) };
    model.widget_manager = { kernel: { status: "idle", statusChanged } };
    const bridge = kernelBridge(model, (m) => said.push(m));
    const tell = (status) => {
      said.length = 0;
      for (const watch of watching) watch(null, status);
      return said.join();
    };
    expect(["busy", "idle", "unknown"].map(tell).join("")).toBe("");
    for (const status of ["dead", "restarting", "autorestarting", "terminating"])
      expect(tell(status)).toMatch(/does not answer/);
    bridge.close();
    expect(watching.size).toBe(0);
  });
  test("a kernel that nothing can be sent to does not answer", async () => {
    vi.useFakeTimers();
    const model = new FakeModel({}, null);
    model.send = () => {
      throw new Error("Cannot send");
    };
    await expect(kernelBridge(model, () => {}).ask("card", {})).rejects.toThrow("The kernel does not answer");
    expect(vi.getTimerCount()).toBe(0);
  });
  test("a kernel that runs other cells is waited for", async () => {
    vi.useFakeTimers();
    const said = [];
    const model = new FakeModel({}, null);
    model.widget_manager = { kernel: { status: "busy" } };
    const asked = kernelBridge(model, (m) => said.push(m)).ask("card", { latent: 1 });
    vi.advanceTimersByTime(10 * SILENT_MS);
    expect(said.at(-1)).toMatch(/busy/);
    model.answer(0, { header: { at: "late" } });
    expect((await asked).header.at).toBe("late");
    expect(said.at(-1)).toBe("");
  });
  test("what came along with the view is not asked for", async () => {
    const opening = { "card?latent=7": sent({ fields: { tokens: Uint16Array.from([1, 2]) } }) };
    const model = new FakeModel({ opening }, null);
    const bridge = kernelBridge(model, () => {});
    const card = await bridge.ask("card", { latent: 7 });
    expect([...card.fields.tokens]).toEqual([1, 2]);
    expect(model.sent).toEqual([]);
    bridge.ask("card", { latent: 8 });
    await settle();
    expect(model.sent.length).toBe(1);
    bridge.close();
  });
  test("what is asked at once goes out as one message, kind by kind and in its order", async () => {
    const answers = {
      card({ latent }) {
        if (latent === 2) throw new Error("no such latent");
        return { header: { latent }, fields: { a: Uint16Array.from([latent]), b: Uint8Array.from([7]) } };
      },
      names: () => ({ fields: { names: ["x"] } }),
    };
    const model = new FakeModel({}, answers);
    const messages = [];
    const send = model.send.bind(model);
    model.send = (message) => {
      messages.push(message);
      send(message);
    };
    const bridge = kernelBridge(model, () => {});
    const cards = [1, 2, 3].map((latent) => bridge.ask("card", { latent }).catch((error) => error.message));
    const names = bridge.ask("names");
    const last = bridge.ask("card", { latent: 4 });
    const [one, two, three] = await Promise.all(cards);
    expect([one.header.latent, one.fields.a[0], one.fields.b[0]]).toEqual([1, 1, 7]);
    expect(two).toBe("no such latent");
    expect([three.header.latent, three.fields.a[0]]).toEqual([3, 3]);
    expect((await names).fields.names).toEqual(["x"]);
    expect((await last).fields.a[0]).toBe(4);
    expect(messages).toEqual([
      { ask: "card", many: [1, 2, 3].map((latent, id) => ({ id, args: { latent } })) },
      { id: 3, ask: "names", args: {} },
      { id: 4, ask: "card", args: { latent: 4 } },
    ]);
    bridge.close();
  });
});

describe("view", () => {
  const build = (make) => {
    const el = document.createElement("div");
    const model = new FakeModel({ latent: null }, null);
    let view;
    const close = rendering((v) => {
      view = v;
      return make?.(v);
    })({ model, el });
    return { el, model, view, close };
  };
  test("choices go out together, and only where they change", () => {
    const { model, view } = build();
    view.choose({ latent: null });
    expect(model.saved).toBe(0);
    view.choose({ latent: 3, row: 4 });
    expect([model.state.latent, model.state.row, model.saved]).toEqual([3, 4, 1]);
  });
  test("an answer that comes when the view is gone is none", async () => {
    const { model, view, close } = build();
    const asked = view.ask("codes");
    model.answer(0, {});
    close();
    expect(await asked).toBe(null);
    expect(model.count()).toBe(0);
  });
  test("what goes wrong while it is drawn is said", async () => {
    const errors = [];
    const note = (error) => errors.push(error.message);
    process.on("unhandledRejection", note);
    const { el } = build(() => {
      throw new Error("no such field");
    });
    await settle();
    process.off("unhandledRejection", note);
    expect(el.querySelector(".sl-banner").textContent).toBe("no such field");
  });
});

test("a view is dark where its host says so, from within a shadow root too", async () => {
  const host = document.createElement("div");
  document.body.append(host);
  const el = document.createElement("div");
  host.attachShadow({ mode: "open" }).append(el);
  const close = rendering(() => {})({ model: new FakeModel({}, {}), el });
  const dark = async () => {
    await new Promise((done) => setTimeout(done)); // what changes is heard a moment later
    return el.querySelector(".sl-root").classList.contains("sl-dark");
  };
  expect(await dark()).toBe(false);
  for (const [element, name, value] of [
    [document.body, "data-theme", "dark"],
    [document.body, "data-vscode-theme-kind", "vscode-dark"],
    [document.documentElement, "theme", "dark"],
  ]) {
    element.setAttribute(name, value);
    expect(await dark()).toBe(true);
    element.removeAttribute(name);
    expect(await dark()).toBe(false);
  }
  close();
  host.remove();
});

test("what has the focus is known within a shadow root", () => {
  const host = document.createElement("div");
  document.body.append(host);
  const [one, other] = [h("button"), h("button")];
  const place = h("div", {}, one);
  host.attachShadow({ mode: "open" }).append(place, other);
  one.focus();
  expect([focusedIn(place), focusedIn(one), focusedIn(other)]).toEqual([one, one, null]);
  host.remove();
});
