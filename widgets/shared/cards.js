/**
 * Cards of latents in a view, and pictures on them: asked for once, the neighbours' ahead of time.
 * @typedef {import("../types.js").Answer} Answer
 * @typedef {import("../types.js").View} View
 */
import { keyOf } from "./answers.js";
import { cardElement } from "./card.js";
import { h } from "./dom.js";
import { marksElement } from "./marks.js";
import { reasonOf } from "./view.js";

const KEPT = 400;

/**
 * A place that shows the card of one latent; a later call wins over an earlier one that is still under way.
 * Choosing a window of the card chooses its row and document.
 * @param {View} view @param {HTMLElement} place
 */
export function cardPlace(view, place) {
  const cards = cardCache(view);
  let asked = 0;
  /** @type {number | null} */
  let shown = null;

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

  view.relabelled(() => {
    if (shown !== null) show(shown);
  });

  /** @param {number | null} latent */
  async function show(latent) {
    const mine = ++asked;
    shown = latent;
    if (latent === null) {
      place.replaceChildren(h("p", { class: "sl-hint" }, "Choose a latent to read its card."));
      place.removeAttribute("aria-busy");
      return;
    }
    place.setAttribute("aria-busy", "true");
    try {
      const card = await cards.get(latent);
      if (mine !== asked) return;
      const label = view.edited(latent)?.label ?? card.header.label;
      const element = cardElement({ ...card, header: { ...card.header, label } }, cards.picture);
      element.querySelector(".sl-card-head")?.after(marksElement(view, latent));
      place.replaceChildren(element);
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
  /** @type {Map<string, Promise<Answer>>} */
  const held = new Map();

  /** @param {string} question "card" or "picture" @param {import("../types.js").Args} args */
  function ask(question, args) {
    const key = keyOf(question, args);
    let answer = held.get(key);
    if (!answer) {
      answer = view.request(question, args);
      answer.catch(() => held.delete(key));
      held.set(key, answer);
      if (held.size > KEPT) held.delete(/** @type {string} */ (held.keys().next().value));
    }
    return answer;
  }
  /** @param {number} latent */
  const get = (latent) => ask("card", { latent });
  /** @type {import("../types.js").Pictures} */
  const picture = async (document) => (await ask("picture", { document })).fields.picture;

  /** @param {(number | undefined)[]} latents */
  function ahead(latents) {
    for (const latent of latents) if (latent !== undefined) get(latent).catch(() => {});
  }
  return { get, ahead, picture };
}
