/**
 * An exported page: its views share one selection, and the answers that they have in common.
 * @typedef {import("../types.js").Choice} Choice
 * @typedef {import("../types.js").Model} Model
 * @typedef {import("../types.js").PageData} PageData
 * @typedef {import("../types.js").PageEntry} PageEntry
 */
import { openShelf, pageBridge } from "./shelves.js";

/**
 * @param {PageData} data @param {HTMLElement[]} places one a view
 * @param {Record<string, (context: {model: Model, el: HTMLElement}) => void>} renders by kind
 */
export function renderPage(data, places, renders) {
  const shelves = data.shelves.map(openShelf);
  const selections = data.selections.map(selectionOf);
  data.views.forEach((entry, i) => {
    const selection = selections[entry.selection];
    const bridge = pageBridge(shelves, entry.shelves, selection.step);
    renders[entry.kind]({ model: { ...modelOf(entry, selection), bridge }, el: places[i] });
  });
}

/** @type {Choice[]} what it is a step to choose another of */
const STEPS = ["sae", "latent", "latents", "list"];

/** What is chosen, and who wants to know of a change. @param {Partial<Record<Choice, any>>} opening */
export function selectionOf(opening) {
  const chosen = { ...opening };
  /** @type {Set<() => void>} */
  const listeners = new Set();
  let now = { ...chosen };
  /** @type {{past: typeof now[], future: typeof now[]}} */
  const steps = { past: [], future: [] };
  const tell = () => {
    for (const listener of [...listeners]) listener();
  };
  const changed = () => {
    tell();
    if (STEPS.some((name) => (now[name] ?? null) !== (chosen[name] ?? null))) {
      steps.past.push(now);
      steps.future = [];
    }
    now = { ...chosen };
  };
  /** Back or forward. @param {number} by */
  const step = (by) => {
    const [from, to] = by < 0 ? [steps.past, steps.future] : [steps.future, steps.past];
    const then = from.pop();
    if (!then) return;
    to.push(now);
    now = then;
    for (const name of /** @type {Choice[]} */ (Object.keys({ ...chosen, ...then })))
      chosen[name] = then[name];
    tell();
  };
  return { chosen, listeners, changed, step };
}

/**
 * The model of one view, as anywidget would give it.
 * @param {Pick<PageEntry, "follows" | "options">} entry
 * @param {Omit<ReturnType<typeof selectionOf>, "step">} selection
 * @param {Record<string, any>} told what the view only reads
 * @returns {Model}
 */
export function modelOf({ follows, options }, { chosen, listeners, changed }, told = {}) {
  /** @type {Map<() => void, () => void>} listener -> what calls it when its value is another */
  const watching = new Map();
  /** @param {string} name @returns {name is Choice} */
  const followed = (name) => follows.includes(/** @type {Choice} */ (name));
  /** @param {string} name */
  const get = (name) => (followed(name) ? (chosen[name] ?? null) : (told[name] ?? options[name]));
  return {
    get,
    set(name, value) {
      if (followed(name)) chosen[name] = value;
      else options[name] = value;
      if (name === "latents") chosen.list = null; // whoever chooses a list says so after it
    },
    save_changes: changed,
    send() {},
    on(event, listener) {
      if (!event.startsWith("change:")) return;
      const name = event.replace("change:", "");
      let last = get(name);
      const watcher = () => {
        const now = get(name);
        if (now === last) return;
        last = now;
        listener();
      };
      watching.set(listener, watcher);
      listeners.add(watcher);
    },
    off(_, listener) {
      const watcher = watching.get(listener);
      if (watcher) listeners.delete(watcher);
      watching.delete(listener);
    },
  };
}
