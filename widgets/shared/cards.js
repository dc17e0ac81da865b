/**
 * Cards of latents in a view, and pictures on them: asked for once, the neighbours' ahead of time.
 * @typedef {import("../types.js").Answer} Answer
 * @typedef {import("../types.js").View} View
 */
import { keyOf } from "./answers.js";
import { cardElement } from "./card.js";
import { focusedIn, h } from "./dom.js";
import { isOfTheHost } from "./keys.js";
import { marksElement } from "./marks.js";
import { recall, remember } from "./remembered.js";
import { isWritten } from "./steps.js";
import { reasonOf } from "./view.js";

const KEPT = 400;

/**
 * A place that shows the card of one latent; a later call wins over an earlier one that is still under way.
 * Choosing a window of the card chooses its row and document. Keys: c and a turn its switches.
 * @param {View} view @param {HTMLElement} place
 */
export function cardPlace(view, place) {
  const cards = cardCache(view);
  const state = {
    compact: Boolean(view.option("compact")),
    aligned: recall("aligned", "start"),
    open: new Set(/** @type {string[]} */ ([])),
    refocus: false,
    text: "",
  };
  let asked = 0;
  /** @type {number | null} */
  let shown = null;
  let leave = () => {};

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

  place.addEventListener("keydown", (event) => {
    if (isWritten(event.target) || isOfTheHost(event)) return;
    const name = { c: "Compact", a: "Aligned at the firing" }[event.key];
    const button = name && place.querySelector(`[data-switch="${name}"]`);
    if (!(button instanceof HTMLElement)) return;
    event.stopPropagation();
    button.click();
  });

  /** What the card of a latent can do. @param {number} latent @param {Answer} card */
  const doing = (latent, card) => {
    /** @type {string[]} */
    const asks = card.header.asks ?? [];
    const held = asks.filter((question) => view.holds(question));
    /** @type {import("./card.js").Doing} */
    const made = {
      ask: (question, args) =>
        question === "tried" ? view.request(question, args) : cards.ask(question, args),
      can: (question) => held.includes(question),
      choose: (other) => view.choose({ latent: other }),
      save: held.includes("relabel")
        ? async (text) => void (await view.request("relabel", { latent, text }))
        : null,
      state,
      redraw: () => {
        remember("aligned", state.aligned);
        const had = focusedIn(place)?.getAttribute("data-switch");
        show(latent).then(() => {
          const again = had && place.querySelector(`[data-switch="${had}"]`);
          if (again instanceof HTMLElement) again.focus();
        });
      },
    };
    return made;
  };

  view.relabelled(() => {
    if (shown !== null) show(shown);
  });

  /** @param {number | null} latent */
  async function show(latent) {
    const mine = ++asked;
    shown = latent;
    if (latent === null) {
      leave();
      place.replaceChildren(h("p", { class: "sl-hint" }, "Choose a latent to read its card."));
      place.removeAttribute("aria-busy");
      return;
    }
    place.setAttribute("aria-busy", "true");
    try {
      const card = await cards.get(latent);
      if (mine !== asked) return;
      const label = view.edited(latent)?.label ?? card.header.label;
      const named = { ...card, header: { ...card.header, label } };
      const element = cardElement(named, cards.picture, doing(latent, card));
      leave();
      const marks = marksElement(view, latent);
      leave = marks.leave;
      element.querySelector(".sl-card-head")?.after(marks.element);
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
  return { ask, get, ahead, picture };
}
