/** Parts of a view that are drawn anew whenever something changes. */
import { focusedIn } from "./dom.js";

const FIELDS = "button, input, select, summary";

/**
 * Draw a part anew, and keep the focus where it was in it.
 * @param {HTMLElement} place @param {(Node | string)[]} parts
 */
export function redraw(place, parts) {
  const had = focusedIn(place);
  const at = had ? [...place.querySelectorAll(FIELDS)].indexOf(had) : -1;
  place.replaceChildren(...parts);
  const again = at < 0 ? null : place.querySelectorAll(FIELDS)[at];
  if (again instanceof HTMLElement) again.focus();
}
