/**
 * An exported page: its views share one selection and one copy of the cards.
 */
import { renderCard } from "./card.js";
import { renderFeatures } from "./features.js";
import { pageBridge } from "./shared/bridge.js";
import { renderTokens } from "./tokens.js";

const RENDERERS = { TokensView: renderTokens, CardView: renderCard, FeaturesView: renderFeatures };

/** @param {any} data {latent, views: [{kind, own, state}], chunks, per} @param {HTMLElement[]} places one a view */
export function renderPage(data, places) {
  /** @type {Set<() => void>} */
  const listeners = new Set();
  let latent = data.latent;
  data.views.forEach((/** @type {any} */ entry, /** @type {number} */ i) => {
    const model = {
      bridge: pageBridge({ own: entry.own, chunks: data.chunks, per: data.per }),
      get: (/** @type {string} */ name) => (name === "latent" ? latent : entry.state[name]),
      set: (/** @type {string} */ name, /** @type {any} */ value) => {
        if (name === "latent") latent = value;
      },
      save_changes: () => listeners.forEach((listener) => listener()),
      send: () => {},
      on: (/** @type {string} */ event, /** @type {() => void} */ listener) => event === "change:latent" && listeners.add(listener),
      off: (/** @type {string} */ event, /** @type {() => void} */ listener) => listeners.delete(listener),
    };
    RENDERERS[/** @type {keyof typeof RENDERERS} */ (entry.kind)]({ model, el: places[i] });
  });
}
