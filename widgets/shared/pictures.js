/**
 * Patches in a grid, over the picture of their document where there is one.
 * @typedef {import("../types.js").Part} Part
 */
import { h } from "./dom.js";

/** Parts as they are sent. @param {[string, number, number, number, number][]} sent @returns {Part[]} */
export function partsOf(sent) {
  return sent.map(([kind, n, width, at, of]) => ({ kind, n, width, at, of }));
}

/** Row and column of a patch in its whole grid. @param {Part} part @param {number} i of the part's patches */
export function placeOf(part, i) {
  const at = part.at + i;
  return { row: Math.floor(at / part.width), column: at % part.width };
}

/**
 * A patch at its place.
 * @param {Part} part @param {number} i @param {Record<string, any>} [attributes]
 */
export function patchElement(part, i, attributes = {}) {
  const { row, column } = placeOf(part, i);
  const style = { "grid-row": row + 1, "grid-column": column + 1 };
  return h("span", { ...attributes, class: `sl-patch ${attributes.class ?? ""}`.trim(), style });
}

/**
 * The whole grid, with these of its patches.
 * @param {Part} part @param {HTMLElement[]} patches
 * @param {Record<string, any>} [attributes] @returns {HTMLElement}
 */
export function gridElement(part, patches, attributes = {}) {
  const rows = Math.ceil(part.of / part.width);
  const style = { "--sl-columns": part.width, "--sl-rows": rows, "--sl-ratio": part.width / rows };
  return h("div", { ...attributes, class: "sl-grid", style }, h("div", { class: "sl-patches" }, ...patches));
}

/**
 * Put a picture under a grid, which takes its shape; or a picture alone into any element.
 * @param {HTMLElement} place @param {Uint8Array} bytes @param {string} title
 */
export function addPicture(place, bytes, title) {
  if (!bytes.length) return;
  const picture = /** @type {HTMLImageElement} */ (h("img", { class: "sl-picture", alt: title, title }));
  picture.addEventListener("load", () => {
    const { naturalWidth, naturalHeight } = picture;
    place.style.setProperty("--sl-ratio", String(naturalWidth / naturalHeight));
    // few pixels are shown as they are
    picture.classList.toggle("sl-coarse", Math.max(naturalWidth, naturalHeight) <= 64);
  });
  picture.addEventListener("error", () => {
    picture.remove();
    place.classList.remove("sl-pictured");
  });
  place.classList.add("sl-pictured");
  picture.src = urlOf(bytes);
  place.prepend(picture);
}

/** How strongly pictures are shaded, as it was set last on this page. */
let shading = 1;

/**
 * A slider of how strongly patches shade the pictures in a place: 0 shows these alone.
 * @param {HTMLElement} place
 */
export function shadingElement(place) {
  const slider = /** @type {HTMLInputElement} */ (
    h("input", { type: "range", min: 0, max: 1, step: 0.05, value: shading, "aria-label": "shading" })
  );
  const shade = () => {
    shading = Number(slider.value);
    place.style.setProperty("--sl-shading", String(shading));
    slider.setAttribute("aria-valuetext", `${Math.round(100 * shading)} %`);
  };
  slider.addEventListener("input", shade);
  shade();
  return h("label", { class: "sl-shading" }, "Shading", slider);
}

/** @param {Uint8Array} bytes of a PNG, JPEG, GIF or WebP */
function urlOf(bytes) {
  const kind = { 137: "png", 255: "jpeg", 71: "gif", 82: "webp" }[bytes[0]];
  let text = "";
  for (const byte of bytes) text += String.fromCharCode(byte);
  return `data:image/${kind};base64,${btoa(text)}`;
}
