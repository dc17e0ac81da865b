/**
 * What every view has: a frame with a banner, a selection that is shared through the model, errors that are shown.
 * @typedef {import("../types.js").Bridge} Bridge
 * @typedef {import("../types.js").Model} Model
 * @typedef {import("../types.js").View} View
 */
import { kernelBridge } from "./bridge.js";
import { h } from "./dom.js";

/**
 * Make an anywidget `render` of a view.
 * @param {(view: View) => (void | (() => void))} build
 */
export function rendering(build) {
  /** @param {{model: Model, el: HTMLElement}} context */
  return ({ model, el }) => {
    const banner = h("div", { class: "sl-banner", role: "status", hidden: true });
    const body = h("div", { class: "sl-body" });
    const root = h("div", { class: "sl-root" }, banner, body);
    el.append(root);
    /** @param {string} message */
    const say = (message) => {
      banner.textContent = message;
      banner.hidden = !message;
    };
    /** @type {Bridge} */
    const bridge = model.bridge ?? kernelBridge(model, say);
    /** @type {(() => void)[]} */
    const undo = [];
    /** @type {View} */
    const view = {
      model, body, bridge, say,
      latent: () => model.get("latent"),
      choose(latent) {
        if (latent === model.get("latent")) return;
        model.set("latent", latent);
        model.save_changes();
      },
      onLatent(listener) {
        const changed = () => listener(model.get("latent"));
        model.on("change:latent", changed);
        undo.push(() => model.off("change:latent", changed));
      },
      async ask(name, args) {
        try {
          return await bridge.ask(name, args);
        } catch (error) {
          say(error instanceof Error ? error.message : String(error));
          return null;
        }
      },
    };
    const done = build(view);
    return () => {
      undo.forEach((f) => f());
      if (typeof done === "function") done();
      bridge.close();
      root.remove();
    };
  };
}

/**
 * Cards by latent: asked for once, the neighbours ahead of time.
 * @param {View} view
 */
export function cardCache(view) {
  /** @type {Map<number, Promise<any>>} */
  const held = new Map();
  /** @param {number} latent */
  const get = (latent) => {
    let card = held.get(latent);
    if (!card) {
      card = view.bridge.ask("card", { latent });
      card.catch(() => held.delete(latent));
      held.set(latent, card);
      if (held.size > 200) held.delete(/** @type {number} */ (held.keys().next().value));
    }
    return card;
  };
  /** @param {(number | undefined)[]} latents */
  const ahead = (latents) => latents.forEach((latent) => latent !== undefined && get(latent).catch(() => {}));
  return { get, ahead };
}

/**
 * Show the card of a latent in an element; a later call wins over an earlier one that is still under way.
 * @param {View} view @param {HTMLElement} place @param {(card: any) => HTMLElement} element
 */
export function cardPlace(view, place, element) {
  const cards = cardCache(view);
  let asked = 0;
  return {
    ahead: cards.ahead,
    /** @param {number | null} latent */
    async show(latent) {
      const mine = ++asked;
      if (latent === null || latent === undefined) {
        place.replaceChildren(h("p", { class: "sl-hint" }, "Choose a latent to read its card."));
        return;
      }
      place.setAttribute("aria-busy", "true");
      try {
        const card = await cards.get(latent);
        if (mine === asked) {
          place.replaceChildren(element(card));
          view.say("");
        }
      } catch (error) {
        if (mine === asked) view.say(error instanceof Error ? error.message : String(error));
      } finally {
        if (mine === asked) place.removeAttribute("aria-busy");
      }
    },
  };
}
