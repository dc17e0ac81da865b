/** What Python sends of an answer of `{header, fields}`: for tests. */
export function sent({ header = {}, fields = {} }) {
  const described = [];
  const buffers = [];
  for (const [name, value] of Object.entries(fields)) {
    const array = ArrayBuffer.isView(value);
    const bytes = array ? new Uint8Array(value.buffer) : new TextEncoder().encode(JSON.stringify(value));
    const dtype = array ? value.constructor.name.replace("Array", "").toLowerCase() : "json";
    described.push({ name, dtype, shape: [array ? value.length : bytes.length] });
    // at an odd offset, as in a message of several buffers
    const moved = new Uint8Array(bytes.length + 1);
    moved.set(bytes, 1);
    buffers.push(new DataView(moved.buffer, 1));
  }
  return { header: { ...header, fields: described }, buffers };
}

/** A model as anywidget gives it, answering questions from functions. */
export class FakeModel {
  constructor(state, answers) {
    this.state = { latent: null, ...state };
    this.answers = answers;
    this.listeners = {};
    this.sent = [];
    this.saved = 0;
  }
  get(name) {
    return this.state[name];
  }
  set(name, value) {
    this.state[name] = value;
    this.emit(`change:${name}`);
  }
  save_changes() {
    this.saved++;
  }
  on(event, listener) {
    this.listeners[event] ??= new Set();
    this.listeners[event].add(listener);
  }
  off(event, listener) {
    this.listeners[event]?.delete(listener);
  }
  emit(event, ...values) {
    for (const listener of this.listeners[event] ?? []) listener(...values);
  }
  /** Answer a question as the kernel does. */
  answer(id, made) {
    const { header, buffers } = sent(made);
    this.emit("msg:custom", { id, ok: header }, buffers);
  }
  send({ ask, many, ...one }) {
    const asked = many ?? [one];
    this.sent.push(...asked.map(({ id, args }) => ({ id, ask, args })));
    const answer = this.answers?.[ask];
    if (!answer) return;
    Promise.resolve().then(() => {
      const made = asked.map(({ id, args }) => {
        try {
          const { header, buffers } = sent(answer(args));
          return { id, ok: header, buffers };
        } catch (error) {
          return { id, error: error.message, buffers: [] };
        }
      });
      const told = made.map(({ buffers, ...rest }) => rest);
      const content = many ? { answers: told } : told[0];
      this.emit(
        "msg:custom",
        content,
        made.flatMap(({ buffers }) => buffers),
      );
    });
  }
  count() {
    return Object.values(this.listeners).reduce((n, set) => n + set.size, 0);
  }
}

/** A card's answer. */
export function card(latent, options = {}) {
  const values = options.values ?? [0, 1.5, 0, -0.5];
  return {
    header: {
      latent,
      label: options.label ?? "a label",
      lens: { top: [["up", 1]], bottom: [["down", -2]], spread: 0.5 },
      vocabulary: options.vocabulary ?? ["a", " b", "<img src=x onerror=alert(1)>", "\u202e"],
      stats: {
        ...{ count: 4, n_rows: 100, density: 0.04, mean: 0.5, min: 0.5, max: 1.5 },
        ...{ negative: 0, mean_abs: 0.5, low: 0, high: 1.5, histogram: [1, 0, 3] },
      },
      windows: [{ kind: "top", peak: 1, value: 1.5, row: 12, document: 3, n: 4 }],
      ...options.header,
    },
    fields: options.fields ?? { names: Uint16Array.from([0, 1, 2, 3]), values: Float32Array.from(values) },
  };
}

/** The card of a latent with two poles. */
export function poles(latent) {
  const stats = {
    ...{ count: 4, n_rows: 100, density: 0.04, mean: 0.25, min: -2, max: 1.5 },
    ...{ negative: 1, mean_abs: 1.25, low: -2, high: 2, histogram: [1, 0, 1, 2] },
  };
  const windows = ["top", "bottom", "quantile"].map((kind, i) => {
    return { kind, peak: 1, value: [1.5, -2, 0.5][i], row: 20 + i, document: 0, n: 2 };
  });
  const fields = {
    names: Uint16Array.from([0, 1, 0, 1, 0, 1]),
    values: Float32Array.from([0, 1.5, 0.25, -2, 0, 0.5]),
  };
  return { ...card(latent, { header: { stats, windows, vocabulary: ["a", " b"] } }), fields };
}

export function codes() {
  return {
    header: { facets: ["token"], parts: [["line", 4, 0, 0, 4]], calls: 1, labels: [] },
    fields: {
      names: ["<s>", " one", " two", "\n"],
      facets: Uint8Array.from([0, 0, 0, 0]),
      counted: Uint8Array.from([0, 1, 1, 1]),
      indptr: Int32Array.from([0, 1, 3, 4, 4]),
      indices: Int32Array.from([9, 2, 5, 2]),
      values: Float32Array.from([9, 1, 3, 2]),
      picture: new Uint8Array(0),
    },
  };
}

/** Bytes that begin as those of a PNG. */
export const PICTURE = Uint8Array.from([0x89, 0x50, 0x4e, 0x47]);

/**
 * A sample of one position for each name, on which latent 7 is 1, 2, 3, ...
 * @param {[string, number, number, number, number][]} parts @param {string[]} facets of each position
 * @param {string[]} names
 */
export function laidOut(parts, facets, names, { calls = 1, picture = PICTURE, labels = [] } = {}) {
  const kinds = [...new Set(facets)];
  const n = names.length;
  return {
    header: { facets: kinds, parts, calls, labels },
    fields: {
      names,
      facets: Uint8Array.from(facets, (facet) => kinds.indexOf(facet)),
      counted: new Uint8Array(n).fill(1),
      indptr: Int32Array.from({ length: n + 1 }, (_, i) => i),
      indices: new Int32Array(n).fill(7),
      values: Float32Array.from({ length: n }, (_, i) => i + 1),
      picture,
    },
  };
}

/** A card whose three windows are of three documents: pictures along and asked for, a text with an image. */
export function pictured(latent) {
  const grid = ["grid", 4, 2, 0, 4];
  const window = (document, n, peak, parts, more = {}) => {
    return { kind: "top", peak, value: 1.5, row: 40 + document, document, n, parts, ...more };
  };
  const told = (document, title, more) => ({
    document,
    title,
    label: "",
    grids: 1,
    bytes: 0,
    asked: false,
    ...more,
  });
  return card(latent, {
    header: {
      vocabulary: ["0", "a", "b"],
      windows: [
        window(9, 5, 3, [["extra", 1, 0, 0, 1], grid], { call: 2 }),
        window(4, 4, 0, [grid]),
        window(5, 6, 1, [["line", 2, 0, 0, 2], grid]),
      ],
      documents: [
        told(9, "image 9", { bytes: 4, label: "cat" }),
        told(4, "image 4", { asked: true }),
        told(5, "page", { bytes: 4 }),
      ],
    },
    fields: {
      names: Uint16Array.from([0, 1, 2]),
      values: Float32Array.from([0.5, 0, 0, 1.5, 0, 1.5, 0, 0, 0.75, 0, 1.5, 0, 0, 0, -0.5]),
      pictures: Uint8Array.from([...PICTURE, 0xff, 0xd8, 0xff, 0]),
    },
  });
}

/** Codes of both signs: latent 5 is -3 on the second token. */
export function signedCodes() {
  return { ...codes(), fields: { ...codes().fields, values: Float32Array.from([9, 1, -3, 2]) } };
}

export function table(n) {
  const density = Float32Array.from({ length: n }, (_, j) => ((j * 7919) % n) / n);
  const count = Int32Array.from(density, (d) => (d ? 5 : 0));
  return { fields: { count, density, mean: density, max: density } };
}

export const names = (list) => ({ fields: { names: list } });
export const settle = () => new Promise((resolve) => setTimeout(resolve, 20));

/**
 * From here on elements have a size, and every call of a canvas's context is `answer(name, ...args)`.
 * @returns {() => void} which ends that: other files run in the same process, where nothing is laid out
 */
export function onCanvas(answer) {
  const { getContext } = HTMLCanvasElement.prototype;
  const { ResizeObserver } = globalThis;
  const context = new Proxy(
    {},
    {
      get:
        (_, name) =>
        (...args) =>
          answer(name, ...args),
      set: () => true,
    },
  );
  HTMLCanvasElement.prototype.getContext = (kind) => (kind === "2d" ? context : null);
  Object.defineProperty(HTMLElement.prototype, "clientWidth", { configurable: true, get: () => 600 });
  Object.defineProperty(HTMLElement.prototype, "clientHeight", { configurable: true, get: () => 400 });
  globalThis.ResizeObserver = class {
    observe() {}
    disconnect() {}
  };
  return () => {
    HTMLCanvasElement.prototype.getContext = getContext;
    for (const size of ["clientWidth", "clientHeight"]) Reflect.deleteProperty(HTMLElement.prototype, size);
    globalThis.ResizeObserver = ResizeObserver;
  };
}
