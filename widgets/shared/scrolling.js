/** A list that scrolls, of which only the lines in sight are elements: all of its lines are of one height. */

/** Lines that are drawn above and below those in sight. */
const MARGIN = 4;

export class ScrollingList {
  /**
   * @param {HTMLElement} box that scrolls, a listbox @param {HTMLElement} spacer in it, as high as all lines
   * @param {number} line pixels @param {number} height pixels of the box, where nothing is laid out
   */
  constructor(box, spacer, line, height) {
    this.box = box;
    this.spacer = spacer;
    this.line = line;
    this.otherwise = height;
  }

  get height() {
    return this.box.clientHeight || this.otherwise;
  }

  /**
   * First line that is drawn, and the one after the last.
   * @param {number} n of all @returns {[number, number]}
   */
  drawn(n) {
    const first = Math.max(0, Math.floor(this.box.scrollTop / this.line) - MARGIN);
    return [first, Math.min(n, first + Math.ceil(this.height / this.line) + 2 * MARGIN)];
  }

  /** Put these lines in sight. @param {HTMLElement[]} rows @param {string | null} chosen id of one of all */
  put(rows, chosen) {
    this.spacer.replaceChildren(...rows);
    if (chosen !== null && rows.some((row) => row.id === chosen))
      this.box.setAttribute("aria-activedescendant", chosen);
    else this.box.removeAttribute("aria-activedescendant");
  }

  /** Scroll as far as it takes to see a line. @param {number} place */
  reveal(place) {
    const { box, line, height } = this;
    const top = place * line;
    if (top < box.scrollTop) box.scrollTop = top;
    else if (top + line > box.scrollTop + height) box.scrollTop = top + line - height;
  }

  /**
   * Where a key leads from a line, undefined of other keys.
   * @param {string} key @param {number} at -1 for none @param {number} n of all
   * @returns {number | undefined}
   */
  led(key, at, n) {
    const page = Math.max(1, Math.floor(this.height / this.line) - 1);
    const to = {
      ArrowDown: at + 1,
      ArrowUp: at - 1,
      PageDown: at + page,
      PageUp: at - page,
      Home: 0,
      End: n - 1,
    }[key];
    return to === undefined ? to : Math.max(0, Math.min(n - 1, to));
  }
}
