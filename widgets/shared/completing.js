/**
 * Words that complete what is written in a box, for expressions of SQL: a list under it, by keyboard.
 */
import { freshId, h } from "./dom.js";

const MOST = 8;

/**
 * @param {HTMLInputElement} input
 * @param {() => Promise<{name: string, type: string}[]>} known what may be written; asked for once
 * @returns {HTMLElement} the box with its list
 */
export function completing(input, known) {
  const id = freshId();
  const list = h("div", { class: "sl-words", role: "listbox", id, "aria-label": "columns", hidden: true });
  /** @type {{name: string, type: string}[]} */
  let found = [];
  let at = 0;
  for (const [name, value] of Object.entries({
    role: "combobox",
    autocomplete: "off",
    spellcheck: "false",
    "aria-autocomplete": "list",
    "aria-controls": id,
    "aria-expanded": "false",
  }))
    input.setAttribute(name, value);

  const word = () => /[A-Za-z_]\w*$/.exec(input.value.slice(0, input.selectionStart ?? 0))?.[0] ?? "";
  const close = () => {
    found = [];
    draw();
  };
  function draw() {
    list.hidden = !found.length;
    input.setAttribute("aria-expanded", String(!list.hidden));
    list.replaceChildren(
      ...found.map(({ name, type }, i) =>
        h(
          "div",
          {
            role: "option",
            id: `${id}-${i}`,
            "aria-selected": i === at,
            onmousedown: (/** @type {Event} */ event) => {
              event.preventDefault(); // the box keeps the focus
              take(i);
            },
          },
          h("span", {}, name),
          h("small", {}, type),
        ),
      ),
    );
    if (list.hidden) input.removeAttribute("aria-activedescendant");
    else input.setAttribute("aria-activedescendant", `${id}-${at}`);
  }
  async function look() {
    const begun = word().toLowerCase();
    if (!begun) return close();
    const all = await known();
    if (word().toLowerCase() !== begun) return;
    found = all.filter(({ name }) => name.toLowerCase().startsWith(begun) && name !== begun).slice(0, MOST);
    at = 0;
    draw();
  }
  /** @param {number} i */
  function take(i) {
    const end = input.selectionStart ?? 0;
    input.setRangeText(found[i].name, end - word().length, end, "end");
    close();
  }
  input.addEventListener("input", look);
  input.addEventListener("blur", close);
  input.addEventListener("keydown", (event) => {
    if (list.hidden) return;
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      at = (at + (event.key === "ArrowDown" ? 1 : -1) + found.length) % found.length;
      draw();
    } else if (event.key === "Tab" || event.key === "Enter") take(at);
    else if (event.key === "Escape") close();
    else return;
    event.preventDefault();
    event.stopImmediatePropagation(); // whoever listens to the box takes none of these
  });
  return h("span", { class: "sl-completing" }, input, list);
}
