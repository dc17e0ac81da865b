/**
 * Back and forward in what was chosen: two buttons, and b and f in every view.
 * @typedef {import("../types.js").View} View
 */
import { h } from "./dom.js";

/** @param {View} view */
export function stepButtons(view) {
  /** @param {string} sign @param {string} title @param {number} by */
  const button = (sign, title, by) =>
    h(
      "button",
      { type: "button", class: "sl-step", title, "aria-label": title, onclick: () => view.step(by) },
      sign,
    );
  return h(
    "span",
    { class: "sl-steps", role: "group", "aria-label": "what was chosen before" },
    button("←", "back to what was chosen before (b)", -1),
    button("→", "forward again (f)", 1),
  );
}

/** Where a letter is written and not a key. @param {EventTarget | null} target */
export function isWritten(target) {
  return target instanceof Element && target.matches("input, textarea, select, [contenteditable]");
}
