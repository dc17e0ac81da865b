/**
 * Edits as a file, and a file as edits: a box of text with what writes, downloads and loads it.
 * @typedef {import("../types.js").View} View
 */
import { h } from "./dom.js";

/**
 * Asks "recipe" of the settings for the text, and "load" of a text for settings.
 * @param {View} view
 * @param {() => string} settings as they are now
 * @param {(settings: string) => void} loaded called with those that a recipe holds
 */
export function recipePanel(view, settings, loaded) {
  const text = /** @type {HTMLTextAreaElement} */ (
    h("textarea", { rows: 6, "aria-label": "recipe, JSON", spellcheck: "false" })
  );
  const write = async () => {
    const answer = await view.ask("recipe", { settings: settings() });
    if (answer) text.value = answer.fields.text;
    return answer !== null;
  };
  const download = async () => {
    if (!(await write())) return;
    const href = URL.createObjectURL(new Blob([text.value], { type: "application/json" }));
    h("a", { href, download: "recipe.json" }).click();
    URL.revokeObjectURL(href);
  };
  const load = async () => {
    const answer = await view.ask("load", { text: text.value, settings: settings() });
    if (answer) loaded(answer.header.settings);
  };
  /** @param {string} name @param {() => void} onclick */
  const button = (name, onclick) => h("button", { type: "button", onclick }, name);
  const buttons = [button("write", write), button("download", download), button("load", load)];
  return h("details", {}, h("summary", {}, "recipe"), text, h("div", { class: "sl-fields" }, ...buttons));
}
