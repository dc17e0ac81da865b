/**
 * How a view of an exported page asks: answers lie on shelves, in compressed chunks that are opened when one
 * of theirs is asked for. Views that would get the same answers share a shelf.
 * @typedef {import("../types.js").Answer} Answer
 * @typedef {import("../types.js").Args} Args
 * @typedef {import("../types.js").Bridge} Bridge
 */
import { decodeChunk, keyOf } from "./answers.js";

/** Opened chunks of a shelf that are kept: those that were asked for last. */
const OPEN = 8;

/** @typedef {{get: (key: string) => Promise<Answer | null>}} Shelf */

/**
 * @param {{index: string, per: number, chunks: string[]}} held the keys of all answers, and the answers,
 *   `per` a chunk
 * @returns {Shelf}
 */
export function openShelf({ index, per, chunks }) {
  /** @type {Promise<Map<string, number>> | null} */
  let places = null;
  /** @type {Map<number, Promise<Answer[]>>} */
  const open = new Map();

  async function placesOf() {
    /** @type {string[]} */
    const keys = JSON.parse(new TextDecoder().decode(await inflated(index)));
    return new Map(keys.map((key, place) => [key, place]));
  }

  /** @param {number} number */
  function chunk(number) {
    const answers = open.get(number) ?? inflated(chunks[number]).then(decodeChunk);
    open.delete(number);
    open.set(number, answers);
    if (open.size > OPEN) open.delete(/** @type {number} */ (open.keys().next().value));
    return answers;
  }

  return {
    async get(key) {
      places ??= placesOf();
      const place = (await places).get(key);
      if (place === undefined) return null;
      return (await chunk(Math.floor(place / per)))[place % per];
    },
  };
}

/**
 * @param {Shelf[]} shelves of the page
 * @param {Record<string, number>} held the shelf of each question that the page answers for the view
 * @param {(by: number) => void} step goes back or forward in what was chosen
 * @returns {Bridge}
 */
export function pageBridge(shelves, held, step) {
  return {
    live: false,
    holds: (question) => question in held,
    async ask(question, args = {}) {
      if (question === "step") {
        step(Number(args.by));
        return { header: {}, fields: {} };
      }
      const shelf = shelves[held[question]];
      const answer = await shelf?.get(keyOf(question, args));
      if (answer) return answer;
      const which = Object.entries(args).map(([name, value]) => `${name} ${value}`);
      const what = which.length ? `${question} of ${which.join(", ")}` : question;
      throw new Error(`This page holds no ${what}. A notebook with its kernel has all.`);
    },
    close() {},
  };
}

/** @param {string} text base64 of deflated bytes */
async function inflated(text) {
  const bytes = fromBase64(text);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** @param {string} text @returns {Uint8Array<ArrayBuffer>} */
function fromBase64(text) {
  const raw = atob(text);
  const out = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) out[i] = raw.charCodeAt(i);
  return out;
}
