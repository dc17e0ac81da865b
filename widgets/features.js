/**
 * A browser over all latents: a virtual list beside the card of the chosen one.
 */
import { cardElement } from "./shared/card.js";
import { h } from "./shared/dom.js";
import { percent, short } from "./shared/scales.js";
import { cardPlace, rendering } from "./shared/view.js";

const ROW = 28;
const SORTS = { density: "how often", max: "strongest", mean: "mean", name: "name", latent: "number" };

export const renderFeatures = rendering((view) => {
  const box = /** @type {HTMLInputElement} */ (h("input", { type: "search", class: "sl-box", "aria-label": "search latents",
    placeholder: view.bridge.live ? "number, name, or a text and Enter" : "number or name" }));
  const order = /** @type {HTMLSelectElement} */ (h("select", { "aria-label": "sort by" }, ...Object.entries(SORTS).map(([key, label]) => h("option", { value: key }, label))));
  const direction = h("button", { type: "button", class: "sl-direction", "aria-label": "reverse the order", title: "reverse the order" }, "↓");
  const count = h("span", { class: "sl-count", "aria-live": "polite" });
  const spacer = h("div", { class: "sl-spacer" });
  const list = h("div", { class: "sl-list", role: "listbox", tabindex: 0, "aria-label": "latents" }, spacer);
  const place = h("div", { class: "sl-place", "aria-live": "polite" });
  view.body.append(h("div", { class: "sl-browser" },
    h("div", { class: "sl-side" }, h("div", { class: "sl-tools" }, box, order, direction), h("div", { class: "sl-tools" }, count), list), place));
  const card = cardPlace(view, place, cardElement);

  /** @type {any} */
  let table = null;
  /** @type {string[]} */
  let names = [];
  /** @type {Map<number, number> | null} */
  let fired = null;
  /** @type {Uint32Array} */
  let shown = new Uint32Array(0);
  let descending = true;
  let closed = false;

  function arrange() {
    if (!table) return;
    const words = box.value.trim().toLowerCase();
    const all = fired ? [...fired.keys()] : [...Array(table.n).keys()];
    const kept = !words || fired ? all : /^#?\d+$/.test(words) ? all.filter((j) => String(j).startsWith(words.replace("#", ""))) : all.filter((j) => names[j]?.toLowerCase().includes(words));
    if (!fired) {
      const key = order.value;
      const sign = descending ? -1 : 1;
      if (key === "name") kept.sort((a, b) => Number(!names[a]) - Number(!names[b]) || -sign * (names[a] ?? "").localeCompare(names[b] ?? "") || a - b);
      else if (key === "latent") kept.sort((a, b) => -sign * (a - b));
      else kept.sort((a, b) => sign * (table[key][a] - table[key][b]) || a - b);
    }
    shown = Uint32Array.from(kept);
    const dead = kept.filter((j) => table.count[j] === 0).length;
    const what = fired ? `${kept.length} latents fire on this text` : `${kept.length.toLocaleString("en")} of ${table.n.toLocaleString("en")} latents, ${dead.toLocaleString("en")} never fire`;
    count.replaceChildren(what, ...(fired || words ? [" ", h("button", { type: "button", class: "sl-clear", onclick: clear }, "clear")] : []));
    spacer.style.height = `${shown.length * ROW}px`;
    draw();
  }

  function draw() {
    const first = Math.max(0, Math.floor(list.scrollTop / ROW) - 4);
    const last = Math.min(shown.length, first + Math.ceil((list.clientHeight || 420) / ROW) + 8);
    const chosen = view.latent();
    const most = table ? table.most : 1;
    const rows = [];
    for (let i = first; i < last; i++) {
      const j = shown[i];
      const value = fired ? `${short(fired.get(j) ?? 0)}` : percent(table.density[j]);
      rows.push(h("div", { class: `sl-row${j === chosen ? " sl-chosen" : ""}${table.count[j] ? "" : " sl-dead"}`, role: "option", id: rowId(j), "aria-selected": j === chosen,
        style: { top: `${i * ROW}px` }, "data-latent": j, onclick: () => choose(i) },
        h("span", { class: "sl-number" }, `#${j}`), h("bdi", { class: "sl-name" }, names[j] || "—"),
        h("span", { class: "sl-meter", "aria-hidden": true, style: { "--sl-share": `${100 * Math.sqrt(table.density[j] / most)}%` } }), h("span", { class: "sl-value" }, value)));
    }
    spacer.replaceChildren(...rows);
    if (chosen !== null && chosen !== undefined) list.setAttribute("aria-activedescendant", rowId(chosen));
  }

  const prefix = `sl-${Math.random().toString(36).slice(2)}`;
  /** @param {number} latent */
  const rowId = (latent) => `${prefix}-${latent}`;

  /** @param {number} i */
  function choose(i) {
    if (i < 0 || i >= shown.length) return;
    const top = i * ROW;
    if (top < list.scrollTop) list.scrollTop = top;
    else if (top + ROW > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW - list.clientHeight;
    view.choose(shown[i]);
    card.ahead([shown[i + 1], shown[i - 1], shown[i + 2]]);
  }

  function clear() {
    box.value = "";
    fired = null;
    arrange();
    list.focus();
  }

  async function search() {
    const words = box.value.trim();
    if (!words) return;
    if (/^#?\d+$/.test(words)) {
      const latent = Number(words.replace("#", ""));
      if (latent < table.n) view.choose(latent);
      else view.say(`Latents go from 0 to ${table.n - 1}. Got ${latent}.`);
      return;
    }
    if (!view.bridge.live) {
      choose(0);
      return;
    }
    const answer = await view.ask("search", { text: box.value });
    if (!answer || closed) return;
    fired = new Map(answer.header.found);
    list.scrollTop = 0;
    arrange();
    if (shown.length) choose(0);
  }

  box.addEventListener("input", () => {
    fired = null;
    list.scrollTop = 0;
    arrange();
  });
  box.addEventListener("keydown", (event) => {
    event.stopPropagation();
    if (event.key === "Enter") search();
    else if (event.key === "Escape") clear();
    else if (event.key === "ArrowDown") {
      list.focus();
      if (!shown.includes(view.latent() ?? -1)) choose(0);
    } else return;
    event.preventDefault();
  });
  order.addEventListener("change", () => {
    descending = true;
    direction.textContent = "↓";
    list.scrollTop = 0;
    arrange();
  });
  direction.addEventListener("click", () => {
    descending = !descending;
    direction.textContent = descending ? "↓" : "↑";
    arrange();
  });
  list.addEventListener("scroll", draw);
  list.addEventListener("keydown", (event) => {
    const at = shown.indexOf(view.latent() ?? -1);
    const page = Math.max(1, Math.floor(list.clientHeight / ROW) - 1);
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, PageDown: at + page, PageUp: at - page, Home: 0, End: shown.length - 1 }[event.key];
    if (to !== undefined) choose(Math.max(0, Math.min(shown.length - 1, to)));
    else if (event.key === "/") box.focus();
    else if (event.key === "Escape") view.choose(null);
    else if (event.key === "Enter") place.querySelector("h3")?.scrollIntoView({ block: "nearest" });
    else return;
    event.preventDefault();
    event.stopPropagation();
  });

  view.onLatent((latent) => {
    if (table) draw();
    card.show(latent);
  });
  card.show(view.latent());
  view.ask("table").then((answer) => {
    if (!answer || closed) return;
    const [counts, density, mean, max, min] = answer.buffers;
    table = { n: answer.header.n, count: new Int32Array(counts.buffer), density: new Float32Array(density.buffer), mean: new Float32Array(mean.buffer), max: new Float32Array(max.buffer) };
    // the larger of the poles; of latents that are never negative there is no min
    if (min) new Float32Array(min.buffer).forEach((v, j) => (table.max[j] = Math.max(table.max[j], -v)));
    table.most = table.density.reduce((/** @type {number} */ m, /** @type {number} */ v) => Math.max(m, v), 1e-9);
    arrange();
    return view.ask("names").then((found) => {
      if (!found || closed) return;
      names = JSON.parse(new TextDecoder().decode(found.buffers[0]));
      arrange();
    });
  });
  return () => {
    closed = true;
  };
});
