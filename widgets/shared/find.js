/**
 * Finding a string in a long text, across the tokens that it is cut into.
 * @typedef {import("./codes.js").SampleCodes} SampleCodes
 */
import { h } from "./dom.js";
import { isOfTheHost } from "./keys.js";

const MOST = 10_000;

/**
 * Where a string stands in a text, whatever the case of its letters: first token and how many, in order.
 * @param {(string | null)[]} names @param {string} words @returns {[number, number][]}
 */
export function occurrences(names, words) {
  if (!words) return [];
  const starts = new Int32Array(names.length + 1);
  const parts = names.map((name) => (name ?? "").toLowerCase());
  parts.forEach((name, i) => {
    starts[i + 1] = starts[i] + name.length;
  });
  const whole = parts.join("");
  const wanted = words.toLowerCase();
  /** @type {[number, number][]} */
  const found = [];
  let token = 0;
  for (let at = whole.indexOf(wanted); at >= 0 && found.length < MOST; at = whole.indexOf(wanted, at + 1)) {
    while (starts[token + 1] <= at) token++;
    let last = token;
    while (starts[last + 1] < at + wanted.length) last++;
    found.push([token, last - token + 1]);
  }
  return found;
}

/**
 * A box, the number of occurrences, and buttons to the next and the one before.
 * @param {SampleCodes} codes @param {(at: number, n: number) => void} show one of them; -1 for none
 */
export function findBar(codes, show) {
  const box = /** @type {HTMLInputElement} */ (
    h("input", {
      type: "search",
      class: "sl-box",
      "aria-label": "find in the text",
      placeholder: "find in the text",
    })
  );
  const said = h(
    "span",
    { class: "sl-count", role: "status" },
    `${codes.length.toLocaleString("en")} tokens`,
  );
  /** @type {[number, number][]} */
  let found = [];
  let at = -1;
  const go = (/** @type {number} */ to) => {
    if (!found.length) return;
    at = (to + found.length) % found.length;
    said.textContent = `${(at + 1).toLocaleString("en")} of ${found.length.toLocaleString("en")}`;
    show(...found[at]);
  };
  const look = () => {
    found = occurrences(codes.names, box.value);
    at = -1;
    if (found.length) go(0);
    else {
      said.textContent = box.value ? "not found" : `${codes.length.toLocaleString("en")} tokens`;
      show(-1, 0);
    }
  };
  box.addEventListener("input", look);
  box.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && event.shiftKey) go(at - 1);
    else if (isOfTheHost(event)) return;
    else if (event.key === "Enter" || event.key === "ArrowDown") go(at + 1);
    else if (event.key === "ArrowUp") go(at - 1);
    else if (event.key === "Escape") {
      box.value = "";
      look();
    } else return;
    event.preventDefault();
  });
  const button = (/** @type {string} */ sign, /** @type {string} */ label, /** @type {number} */ by) =>
    h("button", { type: "button", "aria-label": label, title: label, onclick: () => go(at + by) }, sign);
  return [box, button("↑", "the one before", -1), button("↓", "the next", 1), said];
}
