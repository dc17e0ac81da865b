/** The label of a latent, edited in place: Enter keeps it, Escape undoes. */
import { h } from "./dom.js";
import { reasonOf } from "./view.js";

/**
 * @param {string} label "" for none @param {string} otherwise shown where there is no label
 * @param {((text: string) => Promise<void>) | null} save null where labels can't be kept
 * @param {{refocus: boolean}} state after a label was kept the card is drawn anew, and the button has focus
 * @returns {HTMLElement}
 */
export function labelElement(label, otherwise, save, state) {
  const shown = h("bdi", { class: "sl-label" }, label || otherwise);
  const place = h("span", { class: "sl-labelled" }, shown);
  if (!save) return place;
  const edit = h(
    "button",
    {
      type: "button",
      class: "sl-edit",
      onclick: () => begin(),
      "aria-label": label ? "Edit the label" : null,
    },
    label ? "Edit" : "Name it",
  );
  const box = /** @type {HTMLInputElement} */ (
    h("input", { type: "text", class: "sl-label-box", maxlength: 500, "aria-label": "Label of the latent" })
  );
  const said = h("small", { class: "sl-hint", role: "status" });

  function begin() {
    box.value = label;
    said.textContent = "Enter keeps it, Escape undoes";
    place.replaceChildren(box, said);
    box.focus();
    box.select();
  }
  function end() {
    place.replaceChildren(shown, edit);
    edit.focus();
  }
  /** @param {KeyboardEvent} event */
  box.onkeydown = async (event) => {
    if (event.isComposing) return;
    if (event.key === "Escape") {
      event.stopPropagation();
      end();
    }
    if (event.key !== "Enter") return;
    event.preventDefault();
    if (box.value.trim() === label) {
      end();
      return;
    }
    box.disabled = true;
    said.textContent = "Keeping…";
    state.refocus = true;
    try {
      await save(box.value);
      if (place.isConnected) end();
    } catch (error) {
      state.refocus = false;
      box.disabled = false;
      box.focus();
      said.textContent = reasonOf(error);
    }
  };
  place.append(edit);
  if (state.refocus) {
    state.refocus = false;
    queueMicrotask(() => edit.focus());
  }
  return place;
}
