/**
 * What every view has: a frame with a banner, what is chosen, questions, errors that are shown.
 * @typedef {import("../types.js").Bridge} Bridge
 * @typedef {import("../types.js").Model} Model
 * @typedef {import("../types.js").View} View
 */
import { kernelBridge } from "./bridge.js";
import { saidDark, watchTheme } from "./dark.js";
import { h } from "./dom.js";
import { isOfTheHost, keepKeys } from "./keys.js";
import { isWritten } from "./steps.js";

/**
 * Make a `render` as anywidget and exported pages call it.
 * @param {(view: View) => void | Promise<void>} build draws the view and listens
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
    const bridge = model.bridge ?? kernelBridge(model, say);
    const { view, close } = viewOf(model, bridge, body, say);
    const letGo = keepKeys(root);
    const colour = () => root.classList.toggle("sl-dark", saidDark());
    const leave = watchTheme(colour);
    colour();
    root.addEventListener("keydown", (event) => {
      const by = { b: -1, f: 1 }[event.key];
      if (by && !event.defaultPrevented && !isOfTheHost(event) && !isWritten(event.target)) view.step(by);
    });
    attempt(() => build(view), say);
    return () => {
      close();
      letGo();
      leave();
      bridge.close();
      root.remove();
    };
  };
}

/**
 * @param {Model} model @param {Bridge} bridge @param {HTMLElement} body
 * @param {(message: string) => void} say
 * @returns {{view: View, close: () => void}}
 */
function viewOf(model, bridge, body, say) {
  /** @type {(() => void)[]} */
  const undo = [];
  let closed = false;
  /** @param {string} trait @param {() => void} listener */
  const on = (trait, listener) => {
    const changed = () => attempt(listener, say);
    model.on(`change:${trait}`, changed);
    undo.push(() => model.off(`change:${trait}`, changed));
  };
  /** @type {View["chosen"]} */
  const chosen = (what) => model.get(what) ?? null;
  /** @type {View} */
  const view = {
    body,
    live: bridge.live,
    interrupt: bridge.interrupt,
    say,
    chosen,
    option: (name) => model.get(name),
    choose(choices) {
      const news = Object.entries(choices).filter(([what, value]) => model.get(what) !== value);
      for (const [what, value] of news) model.set(what, value);
      if (news.length) model.save_changes();
    },
    remember: (options) => view.choose(/** @type {any} */ (options)),
    step: (by) => {
      bridge.ask("step", { by }).catch((error) => say(reasonOf(error)));
    },
    follow: (what, listener) => on(what, () => listener(chosen(what))),
    edited: (latent) => model.get("labels")?.[latent],
    changed: on,
    relabelled: (listener) => on("labels", listener),
    closing: (listener) => undo.push(listener),
    async ask(question, args) {
      try {
        const answer = await bridge.ask(question, args);
        return closed ? null : answer;
      } catch (error) {
        say(reasonOf(error));
        return null;
      }
    },
    request: (question, args) => bridge.ask(question, args),
    holds: (question) => bridge.holds?.(question) ?? true,
  };
  const close = () => {
    closed = true;
    for (const f of undo) f();
  };
  return { view, close };
}

/**
 * Do it, and show what went wrong.
 * @param {() => void | Promise<void>} work @param {(message: string) => void} say
 */
async function attempt(work, say) {
  try {
    await work();
  } catch (error) {
    say(reasonOf(error));
    throw error;
  }
}

/** @param {unknown} error */
export function reasonOf(error) {
  return error instanceof Error ? error.message : String(error);
}
