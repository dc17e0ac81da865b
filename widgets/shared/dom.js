/**
 * Elements without HTML strings: text is only ever text.
 */

/**
 * @param {string} tag
 * @param {Record<string, any>} [attributes] `class`, `style` as an object, `on…` listeners, the rest as
 *   attributes: true is an empty one and false none, but words for `aria-…`
 * @param {...(Node | string | number | null | undefined)} children
 * @returns {HTMLElement}
 */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null) continue;
    if (name.startsWith("aria-")) element.setAttribute(name, String(value));
    else if (value === false) continue;
    else if (name === "style")
      for (const [key, v] of Object.entries(value)) element.style.setProperty(key, String(v));
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children)
    if (child !== null && child !== undefined)
      element.append(typeof child === "object" ? child : String(child));
  return element;
}

/**
 * What has the focus within an element, itself included; null for nothing. Of a view in a shadow root, as in
 * marimo, the document knows the host alone.
 * @param {Element} element @returns {Element | null}
 */
export function focusedIn(element) {
  const tree = /** @type {Document} */ (element.getRootNode());
  const active = tree.activeElement ?? null;
  return element.contains(active) ? active : null;
}

/** An id that no other element has. */
export function freshId() {
  return `sl-${Math.random().toString(36).slice(2)}`;
}

/**
 * @param {string} tag @param {Record<string, any>} attributes @param {...Node} children
 * @returns {SVGElement}
 */
export function svg(tag, attributes = {}, ...children) {
  const element = /** @type {SVGElement} */ (document.createElementNS("http://www.w3.org/2000/svg", tag));
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value));
  element.append(...children);
  return element;
}

/** @type {Record<string, string>} */
const SIGNS = { "\n": "↵", "\r": "␍", "\t": "⇥", "\u00a0": "⍽" };

/**
 * A token's text as parts: plain text, or the visible sign of a character that would not show (or would turn
 * the direction of the text around it).
 * @param {string} text
 * @returns {{text: string, sign: boolean}[]}
 */
export function visibleParts(text) {
  /** @type {{text: string, sign: boolean}[]} */
  const parts = [];
  for (const character of text) {
    const code = /** @type {number} */ (character.codePointAt(0));
    const hidden = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Cs}\p{Co}]/u.test(character) || character === "\u00a0";
    const shown =
      SIGNS[character] ?? (hidden ? `U+${code.toString(16).toUpperCase().padStart(4, "0")}` : character);
    const last = parts[parts.length - 1];
    if (last && !hidden && !last.sign) last.text += shown;
    else parts.push({ text: shown, sign: hidden });
  }
  return parts;
}

/**
 * A token as an isolated, inert element; an empty one shows as ∅. One that goes on with the character before
 * it has no text, and a narrow place of its own.
 * @param {string | null} text @param {Record<string, any>} [attributes]
 * @param {boolean} [runs] whether it is one of a text whose lines and tabs are kept
 */
export function tokenElement(text, attributes = {}, runs = false) {
  const more = `${text === null ? "sl-goes-on " : ""}${attributes.class ?? ""}`;
  const element = h("bdi", { ...attributes, class: `sl-token ${more}`.trim() });
  if (text === null) return element;
  const parts = visibleParts(text);
  if (!parts.length) element.append(h("span", { class: "sl-sign" }, "∅"));
  for (const part of parts) {
    element.append(part.sign ? h("span", { class: "sl-sign" }, part.text) : part.text);
    if (!runs || !part.sign) continue;
    if (part.text === SIGNS["\n"]) element.append(h("br"));
    if (part.text === SIGNS["\t"]) element.append("\t");
  }
  return element;
}

/** A token's text for labels and titles. @param {string | null} text null goes on with the one before */
export function tokenName(text) {
  if (text === null) return "part of the character before";
  return (
    visibleParts(text)
      .map((p) => p.text)
      .join("")
      .replace(/^ /, "·") || "∅"
  );
}
