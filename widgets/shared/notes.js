/** What is meant by something that is shown: a "?" that opens by a click or a key. */
import { h } from "./dom.js";

/** @param {string} about what it explains, for those who do not see where it stands @param {string} text */
export function note(about, text) {
  const mark = h("summary", { "aria-label": `what ${about} means`, title: "what this means" }, "?");
  return h("details", { class: "sl-help" }, mark, h("p", {}, text));
}
