/** Choices of a person that last: in the browser where it keeps them, else as long as the page. */

/** @type {Map<string, string>} */
const held = new Map();

/** @param {string} name @param {string} otherwise */
export function recall(name, otherwise) {
  try {
    return localStorage.getItem(`saelab.${name}`) ?? held.get(name) ?? otherwise;
  } catch {
    return held.get(name) ?? otherwise; // a page in a sandbox keeps nothing
  }
}

/** @param {string} name @param {string} value */
export function remember(name, value) {
  held.set(name, value);
  try {
    localStorage.setItem(`saelab.${name}`, value);
  } catch {
    // it lasts as long as the page
  }
}
