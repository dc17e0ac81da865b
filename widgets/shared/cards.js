/**
 * Cards of latents in a view: asked for once, the neighbours ahead of time.
 * @typedef {import("../types.js").Answer} Answer
 * @typedef {import("../types.js").View} View
 */
import { cardElement } from "./card.js";
import { h } from "./dom.js";
import { reasonOf } from "./view.js";

const KEPT = 200;

/**
 * A place that shows the card of one latent; a later call wins over an earlier one that is still under way.
 * Choosing a window of the card chooses its row and document.
 * @param {View} view @param {HTMLElement} place
 */
export function cardPlace(view, place) {
  const cards = cardCache(view);
  let asked = 0;

  const mark = () => {
    const row = view.chosen("row");
    for (const item of place.querySelectorAll("[data-row]"))
      item.setAttribute("aria-current", String(item.getAttribute("data-row") === String(row)));
  };
  view.follow("row", mark);
  place.addEventListener("click", (event) => {
    const item = /** @type {Element} */ (event.target).closest("[data-row]");
    if (item instanceof HTMLElement)
      view.choose({ row: Number(item.dataset.row), document: Number(item.dataset.document) });
  });

  /** @param {number | null} latent */
  async function show(latent) {
    const mine = ++asked;
    if (latent === null) {
      place.replaceChildren(h("p", { class: "sl-hint" }, "Choose a latent to read its card."));
      place.removeAttribute("aria-busy");
      return;
    }
    place.setAttribute("aria-busy", "true");
    try {
      const card = await cards.get(latent);
      if (mine !== asked) return;
      place.replaceChildren(cardElement(card));
      mark();
      view.say("");
    } catch (error) {
      if (mine === asked) view.say(reasonOf(error));
    } finally {
      if (mine === asked) place.removeAttribute("aria-busy");
    }
  }
  return { show, ahead: cards.ahead };
}

/** @param {View} view */
function cardCache(view) {
  /** @type {Map<number, Promise<Answer>>} */
  const held = new Map();

  /** @param {number} latent */
  function get(latent) {
    let card = held.get(latent);
    if (!card) {
      card = view.request("card", { latent });
      card.catch(() => held.delete(latent));
      held.set(latent, card);
      if (held.size > KEPT) held.delete(/** @type {number} */ (held.keys().next().value));
    }
    return card;
  }

  /** @param {(number | undefined)[]} latents */
  function ahead(latents) {
    for (const latent of latents) if (latent !== undefined) get(latent).catch(() => {});
  }
  return { get, ahead };
}
