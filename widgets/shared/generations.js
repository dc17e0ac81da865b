/**
 * Texts that are being written: pulled from the kernel a few tokens at a time, and shown side by side.
 * @typedef {import("../types.js").Args} Args
 * @typedef {import("../types.js").View} View
 * @typedef {{name: string, tokens: string[], changed: number[]}} Column
 * @typedef {{run?: number, stale?: boolean, done: boolean, columns: Column[]}} Told
 */
import { h, tokenElement } from "./dom.js";

const AT_ONCE = 4;

/**
 * Pulls what is written. A later start wins: what an earlier one asked for is dropped, and no more is asked.
 * @param {View} view
 * @param {(told: Told) => void} draw called with all that is written so far
 * @param {{begin?: string, atOnce?: number}} [how] begin: the question that begins; atOnce: of each "more"
 */
export function pulling(view, draw, { begin = "begin", atOnce = AT_ONCE } = {}) {
  let current = 0;
  /** @type {Promise<any> | null} */
  let beginning = null;

  /** Whether it was written to its end. @param {Args} args of `begin` @returns {Promise<boolean>} */
  async function start(args) {
    const mine = ++current;
    // of a slider that moves faster than the kernel answers only the last place is asked for
    while (beginning) await beginning;
    if (mine !== current) return false;
    beginning = view.ask(begin, args);
    let answer = await beginning;
    beginning = null;
    while (answer && mine === current) {
      const told = /** @type {Told} */ (answer.header);
      if (told.stale) return false;
      draw(told);
      if (told.done) return true;
      answer = await view.ask("more", { run: Number(told.run), n: atOnce });
    }
    return false;
  }

  function cancel() {
    current++;
    view.ask("stop");
  }
  return { start, cancel };
}

/**
 * Columns of texts, the first of which the others are compared with.
 * @param {Column[]} columns @param {string} prompt @param {string} [heading] the tag of their names
 */
export function sideBySide(columns, prompt, heading = "h4") {
  return columns.map(({ name, tokens, changed }) => {
    const shown = tokens.map((token, i) =>
      token ? tokenElement(token, { class: changed[i] ? "sl-changed" : "" }, true) : null,
    );
    const n = changed.reduce((a, b) => a + b, 0);
    const text = h("p", { class: "sl-written" }, h("span", { class: "sl-given" }, prompt), ...shown);
    const count = h("small", {}, n ? ` ${n} of ${tokens.length} tokens differ` : "");
    return h("section", { class: "sl-column", "data-column": name }, h(heading, {}, name, count), text);
  });
}
