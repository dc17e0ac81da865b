/**
 * Values to what is seen: colour and the thickness of a line under the token, so that colour is never alone.
 */

/** Heat colours (red, green, blue) by theme and sign, and the text and page that they meet. */
export const PALETTE = {
  light: { positive: [245, 158, 11], negative: [96, 165, 250], text: [17, 24, 39], page: [255, 255, 255] },
  dark: { positive: [150, 72, 6], negative: [30, 86, 160], text: [243, 244, 246], page: [17, 17, 17] },
};
export const MAX_ALPHA = 0.85;

/**
 * @param {number} value @param {number} max largest |value| of the text, > 0
 * @returns {{alpha: number, line: number, negative: boolean}} line in pixels
 */
export function heat(value, max) {
  const share = max > 0 && Number.isFinite(value) ? Math.min(1, Math.abs(value) / max) : 0;
  if (share === 0) return { alpha: 0, line: 0, negative: false };
  return {
    alpha: (0.12 + 0.88 * share) * MAX_ALPHA,
    line: share > 0.66 ? 3 : share > 0.33 ? 2 : 1,
    negative: value < 0,
  };
}

/** Set an element's heat. @param {HTMLElement} element @param {number} value @param {number} max */
export function paint(element, value, max) {
  const { alpha, line, negative } = heat(value, max);
  element.style.setProperty("--sl-alpha", `${(alpha * 100).toFixed(1)}%`);
  element.style.setProperty("--sl-line", `${line}px`);
  element.classList.toggle("sl-negative", negative);
}

/** WCAG contrast of two colours. @param {number[]} a @param {number[]} b */
export function contrast(a, b) {
  const [x, y] = [luminance(a), luminance(b)].sort((p, q) => q - p);
  return (x + 0.05) / (y + 0.05);
}

/** Colour over a page. @param {number[]} colour @param {number[]} page @param {number} alpha */
export function blend(colour, page, alpha) {
  return colour.map((c, i) => c * alpha + page[i] * (1 - alpha));
}

/** @param {number[]} colour */
function luminance(colour) {
  const [r, g, b] = colour.map((c) =>
    c / 255 <= 0.03928 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4,
  );
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

/** Three significant digits; a dash for what is no number. @param {number | null} value @returns {string} */
export function short(value) {
  if (value === null || !Number.isFinite(value)) return "–";
  if (value === 0) return "0";
  // a minus sign, which screen readers say: of a hyphen they say nothing
  if (value < 0) return `−${short(-value)}`;
  const size = value;
  if (size >= 1e5 || size < 1e-3) return value.toExponential(1);
  return size >= 100 ? value.toFixed(0) : size >= 10 ? value.toFixed(1) : value.toFixed(size >= 1 ? 2 : 3);
}

/** With its sign whatever it is. @param {number} value */
export function signed(value) {
  return value > 0 ? `+${short(value)}` : short(value);
}

/** For labels, the sign as a word. @param {number} value */
export function spoken(value) {
  return short(value).replace("−", "minus ");
}

/** A dash for what is no number. @param {number | null} share */
export function percent(share) {
  if (share === null || !Number.isFinite(share)) return "–";
  if (share === 0) return "0 %";
  return share < 0.0001 ? "<0.01 %" : `${(share * 100).toFixed(share < 0.01 ? 2 : 1)} %`;
}
