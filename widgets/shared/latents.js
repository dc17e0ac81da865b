/**
 * The latents of one position, strongest first: a button that chooses each, and one that colours by it too.
 * @typedef {import("../types.js").View} View
 */
import { h } from "./dom.js";
import { short } from "./scales.js";

/**
 * @param {View} view @param {[number, number][]} found latents and values, strongest first
 * @param {(latent: number) => string} labelOf
 */
export function latentChips(view, found, labelOf) {
  const scale = found.length ? Math.abs(found[0][1]) : 1;
  const several = view.chosen("latents") ?? [];
  const items = found.map(([latent, value]) => {
    const within = several.includes(latent);
    const latents = within ? several.filter((/** @type {number} */ j) => j !== latent) : [...several, latent];
    const too = h(
      "button",
      {
        type: "button",
        class: "sl-too",
        "aria-pressed": within,
        "aria-label": `colour by latent ${latent} too`,
        title: within ? "take it out of the several that colour" : "colour by it beside others",
        onclick: () => view.choose({ latents: latents.length ? latents : null }),
      },
      within ? "−" : "+",
    );
    return h("li", { class: "sl-one" }, chip(view, latent, value, scale, labelOf(latent)), too);
  });
  return h("ul", { class: "sl-latents" }, ...items);
}

/**
 * @param {View} view @param {number} latent @param {number} value
 * @param {number} scale the longest meter's value
 * @param {string} label "" for none
 */
export function chip(view, latent, value, scale, label) {
  const chosen = latent === view.chosen("latent");
  const meter = h("span", {
    class: value < 0 ? "sl-meter sl-negative" : "sl-meter",
    "aria-hidden": true,
    style: { "--sl-share": `${(100 * Math.abs(value)) / (scale || 1)}%` },
  });
  const attributes = {
    type: "button",
    class: chosen ? "sl-chip sl-chosen" : "sl-chip",
    "aria-pressed": chosen,
    onclick: () => view.choose({ latent }),
  };
  const number = h("span", { class: "sl-number" }, `#${latent}`);
  const name = label ? h("bdi", { class: "sl-label", title: label }, label) : null;
  return h("button", attributes, number, name, meter, h("span", { class: "sl-value" }, short(value)));
}
