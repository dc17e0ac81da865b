/**
 * A text as a heatmap. Everything that hovering shows comes with the text, so it never waits for the kernel.
 */
import { cardElement } from "./shared/card.js";
import { h, tokenElement, tokenName } from "./shared/dom.js";
import { paint, short, spoken } from "./shared/scales.js";
import { cardPlace, rendering } from "./shared/view.js";

const SHOWN = 12;

export const renderTokens = rendering((view) => {
  const legend = h("div", { class: "sl-legend" });
  const text = h("div", { class: "sl-text", role: "group", "aria-label": "tokens", dir: "ltr" });
  const detail = h("div", { class: "sl-detail", "aria-live": "polite" });
  const place = h("div", { class: "sl-place" });
  view.body.append(legend, text, detail, place);
  const card = cardPlace(view, place, cardElement);
  /** @type {HTMLElement[]} */
  let elements = [];
  /** @type {any} */
  let codes = null;
  let pinned = -1;
  let closed = false;

  /** Strongest latents of a token. @param {number} at @returns {[number, number][]} */
  function strongest(at) {
    /** @type {[number, number][]} */
    const found = [];
    for (let i = codes.indptr[at]; i < codes.indptr[at + 1]; i++) found.push([codes.indices[i], codes.values[i]]);
    return found.sort((a, b) => Math.abs(b[1]) - Math.abs(a[1]));
  }

  /** Value of each token: of the chosen latent, or without one the strongest of any. @param {number | null} latent */
  function valuesOf(latent) {
    const out = new Float32Array(elements.length);
    for (let at = 0; at < out.length; at++) {
      for (let i = codes.indptr[at]; i < codes.indptr[at + 1]; i++) {
        if (latent === null ? codes.counted[at] && Math.abs(codes.values[i]) > Math.abs(out[at]) : codes.indices[i] === latent) out[at] = codes.values[i];
      }
    }
    return out;
  }

  function colour() {
    if (!codes) return;
    const latent = view.latent() ?? null;
    const values = valuesOf(latent);
    const max = values.reduce((m, v) => Math.max(m, Math.abs(v)), 0);
    elements.forEach((element, at) => {
      paint(element, values[at], max);
      element.setAttribute("aria-label", `${tokenName(codes.tokens[at])}, ${spoken(values[at])}`);
    });
    const what = latent === null ? "strongest latent of each token" : `latent #${latent}`;
    const both = values.some((v) => v < 0);
    legend.replaceChildren(h("span", {}, what), h("span", { class: both ? "sl-ramp sl-both" : "sl-ramp", "aria-hidden": true }), h("span", {}, `${both ? short(-max) : "0"} to ${short(max)}`),
      ...(both ? [h("span", {}, tokenElement("dashed", { class: "sl-negative sl-key" }), " is negative")] : []),
      latent === null ? h("span", { class: "sl-hint" }, "hover a token, click to pin its latents") : h("button", { class: "sl-clear", type: "button", onclick: () => view.choose(null) }, "clear"));
    elements.forEach((element, at) => element.classList.toggle("sl-pinned", at === pinned));
  }

  /** @param {number} at @param {boolean} full */
  function describe(at, full) {
    if (at < 0 || !codes) {
      detail.replaceChildren();
      return;
    }
    const found = strongest(at).slice(0, full ? SHOWN : 5);
    const most = found.length ? Math.abs(found[0][1]) : 1;
    const chosen = view.latent();
    const own = chosen === null || chosen === undefined ? null : (strongest(at).find((p) => p[0] === chosen)?.[1] ?? 0);
    detail.replaceChildren(
      h("div", { class: "sl-detail-head" }, h("span", {}, `token ${at}`), tokenElement(codes.tokens[at], { class: "sl-quoted" }),
        own === null ? null : h("span", {}, `#${chosen}: ${short(own)}`), codes.counted[at] ? null : h("span", { class: "sl-hint" }, "not counted in statistics")),
      h("ul", { class: "sl-latents" }, ...found.map(([latent, value]) =>
        h("li", {}, h("button", { type: "button", class: latent === chosen ? "sl-chip sl-chosen" : "sl-chip", "aria-pressed": latent === chosen, onclick: () => view.choose(latent) },
          h("span", { class: "sl-number" }, `#${latent}`), h("span", { class: value < 0 ? "sl-meter sl-negative" : "sl-meter", "aria-hidden": true, style: { "--sl-share": `${(100 * Math.abs(value)) / most}%` } }), h("span", { class: "sl-value" }, short(value))))),
        found.length ? null : h("li", { class: "sl-hint" }, "no latent fires here")));
  }

  /** @param {number} at */
  function pin(at) {
    pinned = at === pinned ? -1 : at;
    describe(pinned, true);
    elements.forEach((element, i) => {
      element.classList.toggle("sl-pinned", i === pinned);
      element.setAttribute("aria-pressed", String(i === pinned));
    });
    if (pinned >= 0) card.ahead(strongest(pinned).slice(0, 3).map((p) => p[0]));
  }

  /** @param {number} at */
  function focus(at) {
    const to = Math.max(0, Math.min(elements.length - 1, at));
    elements.forEach((element, i) => (element.tabIndex = i === to ? 0 : -1));
    elements[to]?.focus();
    if (pinned < 0) describe(to, false);
  }

  /** @param {Event} event */
  const indexOf = (event) => elements.indexOf(/** @type {HTMLElement} */ (/** @type {Element} */ (event.target).closest(".sl-token")));
  text.addEventListener("pointerover", (event) => {
    const at = indexOf(event);
    if (at >= 0 && pinned < 0) describe(at, false);
  });
  text.addEventListener("pointerleave", () => pinned < 0 && describe(-1, false));
  text.addEventListener("click", (event) => {
    const at = indexOf(event);
    if (at >= 0) {
      focus(at);
      pin(at);
    }
  });
  text.addEventListener("keydown", (event) => {
    const at = indexOf(event);
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10 }[event.key];
    if (step) focus(at + step);
    else if (event.key === "Home") focus(0);
    else if (event.key === "End") focus(elements.length - 1);
    else if (event.key === "Enter" || event.key === " ") pin(at);
    else if (event.key === "Escape") {
      if (pinned >= 0) pin(pinned);
      else view.choose(null);
    } else return;
    event.preventDefault();
    event.stopPropagation();
  });

  view.onLatent((latent) => {
    colour();
    if (pinned >= 0) describe(pinned, true);
    if (view.model.get("with_card")) card.show(latent);
  });
  view.ask("codes").then((answer) => {
    if (!answer || closed) return;
    const [indptr, indices, values] = answer.buffers;
    codes = { tokens: answer.header.tokens, counted: answer.header.counted, indptr: new Int32Array(indptr.buffer), indices: new Int32Array(indices.buffer), values: new Float32Array(values.buffer) };
    elements = codes.tokens.map((/** @type {string} */ token, /** @type {number} */ at) => tokenElement(token, { role: "button", tabindex: at ? -1 : 0, class: codes.counted[at] ? "" : "sl-uncounted" }));
    text.replaceChildren();
    elements.forEach((element, at) => {
      text.append(element);
      if (codes.tokens[at].includes("\n")) text.append(h("br"));
    });
    colour();
    const latent = view.latent() ?? null;
    if (view.model.get("with_card") && latent !== null) card.show(latent);
  });
  return () => {
    closed = true;
  };
});
