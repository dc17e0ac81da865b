/** A model as anywidget gives it, answering questions from functions; for tests. */
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
    (this.listeners[event] ??= new Set()).add(listener);
  }
  off(event, listener) {
    this.listeners[event]?.delete(listener);
  }
  emit(event, ...values) {
    for (const listener of this.listeners[event] ?? []) listener(...values);
  }
  send(message) {
    this.sent.push(message);
    const answer = this.answers?.[message.ask];
    if (!answer) return;
    Promise.resolve().then(() => {
      try {
        const { header = {}, buffers = [] } = answer(message.args);
        this.emit("msg:custom", { id: message.id, ok: header }, buffers.map((b) => new DataView(b.buffer)));
      } catch (error) {
        this.emit("msg:custom", { id: message.id, error: error.message }, []);
      }
    });
  }
  count() {
    return Object.values(this.listeners).reduce((n, set) => n + set.size, 0);
  }
}

/** A card's answer. */
export function card(latent, options = {}) {
  const vocabulary = options.vocabulary ?? ["a", " b", "<img src=x onerror=alert(1)>", "\u202e"];
  const values = options.values ?? [0, 1.5, 0, -0.5];
  return {
    header: {
      latent, label: options.label ?? "a label", wide: false, lens: { top: [["up", 1]], bottom: [["down", -2]], spread: 0.5 }, vocabulary,
      stats: { count: 4, n_rows: 100, density: 0.04, mean: 0.5, min: 0.5, max: 1.5, negative: 0, mean_abs: 0.5, low: 0, high: 1.5, histogram: [1, 0, 3] },
      windows: [{ kind: "top", peak: 1, value: 1.5, document: 0, start: 0, n: 4 }],
      ...options.header,
    },
    buffers: [Uint16Array.from([0, 1, 2, 3]), Float32Array.from(values)],
  };
}

/** The card of a latent with two poles. */
export function poles(latent) {
  const stats = { count: 4, n_rows: 100, density: 0.04, mean: 0.25, min: -2, max: 1.5, negative: 1, mean_abs: 1.25, low: -2, high: 2, histogram: [1, 0, 1, 2] };
  const windows = ["top", "bottom", "quantile"].map((kind, i) => ({ kind, peak: 1, value: [1.5, -2, 0.5][i], document: 0, start: 0, n: 2 }));
  const made = card(latent, { header: { stats, windows, vocabulary: ["a", " b"] } });
  return { ...made, buffers: [Uint16Array.from([0, 1, 0, 1, 0, 1]), Float32Array.from([0, 1.5, 0.25, -2, 0, 0.5])] };
}

export function codes() {
  return {
    header: { tokens: ["<s>", " one", " two", "\n"], counted: [false, true, true, true] },
    buffers: [Int32Array.from([0, 1, 3, 4, 4]), Int32Array.from([9, 2, 5, 2]), Float32Array.from([9, 1, 3, 2])],
  };
}

/** Codes of both signs: latent 5 is -3 on the third token. */
export function signedCodes() {
  const { header, buffers } = codes();
  return { header, buffers: [...buffers.slice(0, 2), Float32Array.from([9, 1, -3, 2])] };
}

export function table(n) {
  const density = Float32Array.from({ length: n }, (_, j) => ((j * 7919) % n) / n);
  return { header: { n }, buffers: [Int32Array.from({ length: n }, (_, j) => (density[j] ? 5 : 0)), density, density, density] };
}

export const names = (list) => ({ header: {}, buffers: [new TextEncoder().encode(JSON.stringify(list))] });
export const settle = () => new Promise((resolve) => setTimeout(resolve, 20));
