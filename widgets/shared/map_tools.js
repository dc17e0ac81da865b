/** The tools of a map, and where its parts stand. */
import { h } from "./dom.js";
import { isOfTheHost } from "./keys.js";
import { BY, METHODS } from "./map_panel.js";
import { note } from "./notes.js";

const MODES = { pan: "move", lasso: "lasso", box: "box" };
const EXPRESSION = "an expression…";
const KEYS =
  "Drag: move. Wheel, once the map was clicked, or + and −: larger, smaller; 0: all of it. Arrows: to the " +
  "nearest latent that way; Enter: choose it; Shift and arrows: move. Lasso or box, or Shift and drag: " +
  "choose what is within. Escape: let go.";

/**
 * @typedef {{live: boolean, columns: Record<string, string>, now: Record<string, string>,
 *   picture: HTMLElement, search: () => void, searchKey: (event: KeyboardEvent) => void, load: () => void,
 *   recolour: (role: string, sql: string) => void, mode: (mode: "pan" | "lasso" | "box") => void,
 *   enlarge: (by: number) => void, home: () => void}} Does
 * columns: name -> what it holds; now: the columns that colour and size go by
 * @param {Does} does
 */
export function layOut(does) {
  const { live } = does;
  const box = /** @type {HTMLInputElement} */ (
    h("input", {
      ...{ type: "search", class: "sl-box", "aria-label": "search the map" },
      placeholder: live ? "number, name or token" : "number or name",
      oninput: does.search,
      onkeydown: does.searchKey,
    })
  );
  const by = select("near by", BY, does.load, !live);
  const method = select("drawn by", METHODS, does.load, !live);
  const colour = choice("colour", { cluster: "cluster", ...does.columns }, does);
  const size = choice("size", { "": "one size", ...does.columns }, does);
  const said = h("span", { class: "sl-hint", role: "status" });
  const actions = h("span", {});
  const tip = h("div", { class: "sl-map-tip", hidden: true, "aria-hidden": true });
  const frame = h(
    "div",
    {
      class: "sl-map-frame",
      tabindex: 0,
      role: "application",
      "aria-label": "map of latents",
      "aria-busy": true,
    },
    does.picture,
    tip,
  );
  const job = h("div", { class: "sl-map-job", hidden: true });
  const panel = h("div", {
    class: "sl-map-about",
    role: "group",
    "aria-label": "latent on the map",
    tabindex: 0,
  });
  const legend = h("div", { class: "sl-map-legend sl-hint" });
  const verdict = h("div", {});
  const clusters = h("div", {});
  const rows = [
    tools(box, group(by, method), group(...colour), group(...size)),
    tools(modes(frame, does.mode), zooms(does), note("the map's keys", KEYS), said, actions),
    job,
    h("div", { class: "sl-map" }, h("div", {}, frame, legend), panel),
    verdict,
    clusters,
  ];
  return { rows, box, by, method, said, actions, tip, frame, job, panel, legend, verdict, clusters };
}

/** @param {...Node} nodes */
function tools(...nodes) {
  return h("div", { class: "sl-map-tools" }, ...nodes);
}

/** @param {...Node} nodes */
function group(...nodes) {
  return h("span", { class: "sl-map-group" }, ...nodes);
}

/** What dragging does. @param {HTMLElement} frame @param {Does["mode"]} choose */
function modes(frame, choose) {
  const buttons = Object.entries(MODES).map(([mode, name]) => {
    const onclick = () => {
      choose(/** @type {keyof typeof MODES} */ (mode));
      frame.classList.toggle("sl-drawing", mode !== "pan");
      for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
    };
    const button = h("button", { type: "button", "aria-pressed": mode === "pan", onclick }, name);
    return button;
  });
  return h("span", { class: "sl-map-group", role: "group", "aria-label": "what dragging does" }, ...buttons);
}

/** @param {Does} does */
function zooms({ enlarge, home }) {
  /** @param {string} text @param {string} label @param {() => void} onclick */
  const button = (text, label, onclick) =>
    h("button", { type: "button", "aria-label": label, title: label, onclick }, text);
  return group(
    button("+", "larger", () => enlarge(1.5)),
    button("−", "smaller", () => enlarge(1 / 1.5)),
    button("all", "show all of it", home),
  );
}

/**
 * @param {string} label @param {Record<string, string>} options @param {() => void} onchange
 * @param {boolean} disabled
 */
function select(label, options, onchange, disabled) {
  const all = Object.entries(options).map(([value, name]) => h("option", { value }, name));
  return /** @type {HTMLSelectElement} */ (
    h("select", { "aria-label": label, title: label, disabled, onchange }, ...all)
  );
}

/**
 * A list of columns, and a box for an expression.
 * @param {string} role @param {Record<string, string>} options @param {Does} does
 */
function choice(role, options, { live, now, recolour }) {
  const box = /** @type {HTMLInputElement} */ (
    h("input", {
      ...{ type: "text", "aria-label": `${role}: SQL over latents`, placeholder: "SQL, e.g. max / mean" },
      hidden: true,
      onkeydown: (/** @type {KeyboardEvent} */ event) => {
        if (event.key === "Enter" && !isOfTheHost(event)) recolour(role, box.value.trim());
      },
    })
  );
  const own = now[role] ?? "";
  /** @type {Record<string, string>} */
  const free = live || !(own in options) ? { [EXPRESSION]: EXPRESSION } : {};
  const onchange = () => {
    box.hidden = list.value !== EXPRESSION;
    if (box.hidden) recolour(role, list.value);
    else box.focus();
  };
  const list = select(role, { ...options, ...free }, onchange, false);
  list.value = own in options ? own : EXPRESSION;
  if (!(own in options)) [box.value, box.hidden] = [own, false];
  return [list, box];
}
