/**
 * Keys belong to the view that has the focus, and not to the notebook around it, where b inserts a cell and
 * d d deletes one. Those with Ctrl, Alt or Meta, and Shift+Enter, go on: save, run, the browser's own.
 */

/** Lumino, the keyboard of JupyterLab, looks for it on the way up from where a key was pressed. */
const SUPPRESS = "data-lm-suppress-shortcuts";

/** @param {HTMLElement} root of the view @returns {() => void} undoes it */
export function keepKeys(root) {
  /** @param {KeyboardEvent} event */
  const before = (event) => {
    if (event.composedPath().includes(root)) root.toggleAttribute(SUPPRESS, !isOfTheHost(event));
  };
  /** @param {KeyboardEvent} event */
  const after = (event) => {
    if (!isOfTheHost(event)) event.stopPropagation();
  };
  // before anyone else: Lumino listens on the document, in some versions on the way down
  window.addEventListener("keydown", before, true);
  root.addEventListener("keydown", after);
  return () => {
    window.removeEventListener("keydown", before, true);
    root.removeEventListener("keydown", after);
  };
}

/** Whether a key is none of the view's. @param {KeyboardEvent} event */
export function isOfTheHost(event) {
  return event.ctrlKey || event.metaKey || event.altKey || (event.shiftKey && event.key === "Enter");
}
