/** The tokens of a text: one of them is looked at, the others are shaded by what came from them. */
import { focusedIn, h, tokenElement, tokenName } from "./dom.js";
import { isOfTheHost } from "./keys.js";
import { paint } from "./scales.js";

const STEPS = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10 };

export class HeadText {
  /** @param {(string | null)[]} names @param {(at: number) => void} choose a click, Enter or Space */
  constructor(names, choose) {
    this.names = names;
    this.choose = choose;
    /** the token that Tab leads to */
    this.current = 0;
    this.tokens = names.map((name, at) => tokenElement(name, { role: "button", "data-at": at }, true));
    const line = h("div", { class: "sl-text", dir: "auto" }, ...this.tokens);
    this.element = h("div", { class: "sl-sample", role: "group", "aria-label": "tokens" }, line);
    this.element.addEventListener("click", (event) => {
      const token = /** @type {Element} */ (event.target).closest("[data-at]");
      if (token instanceof HTMLElement) this.take(Number(token.dataset.at));
    });
    this.element.addEventListener("keydown", (event) => this.keydown(event));
  }

  /** What a position is called. @param {number} at */
  called(at) {
    return tokenName(this.names[at]);
  }

  /**
   * @param {number} dest the token that is looked at, -1 for none
   * @param {ArrayLike<number>} values of all tokens @param {number} max
   * @param {(at: number) => string} spoken
   */
  draw(dest, values, max, spoken) {
    if (dest >= 0 && !focusedIn(this.element)) this.current = dest;
    this.tokens.forEach((token, at) => {
      paint(token, values[at] ?? 0, max);
      token.classList.toggle("sl-pinned", at === dest);
      token.setAttribute("aria-pressed", String(at === dest));
      token.setAttribute("aria-label", `${this.called(at)}, ${spoken(at)}`);
      token.title = `${at}: ${spoken(at)}`;
      token.tabIndex = at === this.current ? 0 : -1;
    });
  }

  /** @param {number} at */
  take(at) {
    this.focus(at);
    this.choose(at);
  }

  /** @param {number} at */
  focus(at) {
    this.tokens[this.current].tabIndex = -1;
    this.current = at;
    this.tokens[at].tabIndex = 0;
    this.tokens[at].focus();
  }

  /** @param {KeyboardEvent} event */
  keydown(event) {
    if (isOfTheHost(event)) return;
    const token = /** @type {Element} */ (event.target).closest("[data-at]");
    if (!(token instanceof HTMLElement)) return;
    const at = Number(token.dataset.at);
    const last = this.tokens.length - 1;
    const step = STEPS[/** @type {keyof typeof STEPS} */ (event.key)];
    if (step) this.focus(Math.max(0, Math.min(last, at + step)));
    else if (event.key === "Home") this.focus(0);
    else if (event.key === "End") this.focus(last);
    else if (event.key === "Enter" || event.key === " ") this.take(at);
    else return;
    event.preventDefault();
  }
}
