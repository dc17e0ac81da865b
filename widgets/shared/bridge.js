/**
 * How a view asks for data: of the kernel by messages, or of an exported page's own data.
 * Both sides have `ask(name, args) -> Promise<Answer>`; a view does not know which one it has.
 * @typedef {import("../types.js").Answer} Answer
 * @typedef {import("../types.js").Bridge} Bridge
 * @typedef {import("../types.js").Model} Model
 */

export const SLOW_MS = 2500;
export const DEAD_MS = 12000;
const TICK_MS = 500;
const GONE = ["dead", "restarting", "autorestarting", "terminating"];

/**
 * Ask the kernel: `{id, ask, args}` goes out, `{id, ok}` with buffers or `{id, error}` comes back. What came along with
 * the view is not asked for. A kernel that runs other cells is waited for; one that is idle and silent is given up.
 * @param {Model} model
 * @param {(message: string) => void} say shows a banner; "" takes it away
 * @returns {Bridge}
 */
export function kernelBridge(model, say) {
  let next = 0;
  /** @type {Map<number, {resolve: (a: Answer) => void, reject: (e: Error) => void, clock: any}>} */
  const waiting = new Map();
  /** @param {any} message @param {DataView[]} buffers */
  const receive = (message, buffers) => {
    const asked = waiting.get(message.id);
    if (!asked) return;
    waiting.delete(message.id);
    clearInterval(asked.clock);
    say("");
    if (message.error) asked.reject(new Error(message.error));
    else asked.resolve({ header: message.ok, buffers: buffers.map(bytesOf) });
  };
  model.on("msg:custom", receive);

  const dead = "The kernel does not answer. Restart it and run the cell again; what is shown here stays readable.";
  const kernel = () => model.widget_manager?.kernel;
  /** @param {any} _ @param {string} status */
  const watch = (_, status) => {
    if (GONE.includes(status)) say(dead);
  };
  const watched = kernel();
  watched?.statusChanged?.connect(watch);
  const opening = model.get("opening") ?? {};

  return {
    live: true,
    ask(name, args = {}) {
      const along = opening[[name, ...Object.values(args)].join(":")];
      if (along) return Promise.resolve({ header: along.header, buffers: along.buffers.map(bytesOf) });
      return new Promise((resolve, reject) => {
        const id = next++;
        let [total, silent] = [0, 0];
        const clock = setInterval(() => {
          const busy = kernel()?.status === "busy";
          total += TICK_MS;
          silent = busy ? 0 : silent + TICK_MS;
          if (silent >= DEAD_MS) {
            clearInterval(clock);
            waiting.delete(id);
            say(dead);
            reject(new Error(dead));
          } else if (total >= SLOW_MS) say(busy ? "The kernel is busy with another cell; this goes on when it is free." : "Waiting for the kernel…");
        }, TICK_MS);
        waiting.set(id, { resolve, reject, clock });
        model.send({ id, ask: name, args });
      });
    },
    close() {
      model.off("msg:custom", receive);
      watched?.statusChanged?.disconnect(watch);
      for (const { clock } of waiting.values()) clearInterval(clock);
      waiting.clear();
    },
  };
}

/**
 * Answers out of an exported page. Cards lie in compressed chunks that are opened when one of theirs is asked for.
 * @param {any} data {own: {name: answer}, chunks: [base64], per: latents in a chunk}
 * @returns {Bridge}
 */
export function pageBridge(data) {
  /** @type {Map<number, Promise<any>>} */
  const open = new Map();
  return {
    live: false,
    async ask(name, args = {}) {
      if (name === "search") throw new Error("Search by text needs the kernel: open the notebook. Names and numbers work here.");
      if (name !== "card") {
        if (!data.own[name]) throw new Error(`This page holds no ${name}.`);
        return unpack(data.own[name]);
      }
      const number = Math.floor(args.latent / data.per);
      const held = data.chunks[number];
      if (!held) throw new Error(`This page holds no card of latent ${args.latent}.`);
      if (!open.has(number)) open.set(number, inflate(held));
      const cards = await open.get(number);
      const card = cards[args.latent];
      if (!card) throw new Error(`This page holds no card of latent ${args.latent}.`);
      return unpack(card);
    },
    close() {},
  };
}

/** @param {{header: any, buffers: string[]}} packed @returns {Answer} */
function unpack(packed) {
  return { header: packed.header, buffers: packed.buffers.map(fromBase64) };
}

/** @param {string} base64 of deflated JSON */
async function inflate(base64) {
  const stream = new Blob([fromBase64(base64)]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(stream).text());
}

/** @param {string} text @returns {Uint8Array<ArrayBuffer>} */
export function fromBase64(text) {
  const raw = atob(text);
  const out = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) out[i] = raw.charCodeAt(i);
  return out;
}

/** @param {DataView | ArrayBuffer | Uint8Array} buffer @returns {Uint8Array<ArrayBuffer>} a copy, so that any offset fits typed arrays */
function bytesOf(buffer) {
  if (buffer instanceof ArrayBuffer) return new Uint8Array(buffer);
  return new Uint8Array(new Uint8Array(/** @type {ArrayBuffer} */ (buffer.buffer), buffer.byteOffset, buffer.byteLength));
}
