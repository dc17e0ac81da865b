/**
 * A browser over all latents: a virtual list beside the card of the chosen one.
 * @typedef {import("../types.js").Answer} Answer
 * @typedef {import("../types.js").View} View
 */
import { cardPlace } from "../shared/cards.js";
import { h } from "../shared/dom.js";
import { isOfTheHost } from "../shared/keys.js";
import { percent, short } from "../shared/scales.js";
import { rendering } from "../shared/view.js";

const ROW = 28;
const MARGIN = 4;
const SORTS = {
  density: "how often",
  max: "strongest",
  mean: "mean",
  name: "name",
  latent: "number",
};
const NO_MODEL =
  "No name holds that. A page finds latents by number or name; which of them a text fires only a notebook " +
  "can say, which has the model.";
const NUMBER = /^#?\d+$/;

export const render = rendering(async (view) => {
  const browser = new Browser(view);
  const table = await view.ask("table");
  if (table) browser.show(new Table(table));
  const names = table && (await view.ask("names"));
  if (names) browser.name(names.fields.names);
});

/** One line a latent, and the orders that lines can have. */
class Table {
  /** @param {Answer} answer */
  constructor({ fields }) {
    /** @type {Int32Array} */
    this.count = fields.count;
    /** @type {Float32Array} */
    this.density = fields.density;
    /** @type {Float32Array} */
    this.mean = fields.mean;
    /** @type {Float32Array} the larger of the poles; of latents that are never negative there is no min */
    this.max = fields.min
      ? fields.max.map((/** @type {number} */ v, /** @type {number} */ j) => Math.max(v, -fields.min[j]))
      : fields.max;
    /** @type {string[]} */
    this.names = [];
    this.n = this.count.length;
    this.mostDense = this.density.reduce((a, b) => Math.max(a, b), 1e-9);
  }

  /**
   * Latents that a number or a part of a name fits, of those that are listed or of all.
   * @param {string} words @param {number[] | null} listed
   */
  matching(words, listed) {
    const all = listed ? listed.filter((j) => j < this.n) : [...Array(this.n).keys()];
    if (!words) return all;
    if (NUMBER.test(words)) return all.filter((j) => String(j).startsWith(words.replace("#", "")));
    return all.filter((j) => this.names[j]?.toLowerCase().includes(words));
  }

  /** @param {number[]} latents @param {string} key of SORTS @param {boolean} descending */
  sort(latents, key, descending) {
    const sign = descending ? -1 : 1;
    if (key === "latent") return latents.sort((a, b) => -sign * (a - b));
    if (key === "name") return latents.sort((a, b) => this.byName(a, b, -sign));
    const values = this[/** @type {"density" | "max" | "mean"} */ (key)];
    return latents.sort((a, b) => sign * (values[a] - values[b]) || a - b);
  }

  /**
   * Those without a name come last in either order.
   * @param {number} a @param {number} b @param {number} sign
   */
  byName(a, b, sign) {
    const [x, y] = [this.names[a] ?? "", this.names[b] ?? ""];
    return Number(!x) - Number(!y) || sign * x.localeCompare(y) || a - b;
  }
}

class Browser {
  /** @param {View} view */
  constructor(view) {
    this.view = view;
    /** @type {Table | null} */
    this.table = null;
    /** @type {Map<number, number> | null} what a text fired: latent -> strongest value */
    this.fired = null;
    /** @type {string[]} as they came */
    this.names = [];
    /** @type {number[]} latents in the list's order */
    this.shown = [];
    this.descending = true;
    this.prefix = `sl-${Math.random().toString(36).slice(2)}`;

    this.box = /** @type {HTMLInputElement} */ (
      h("input", {
        type: "search",
        class: "sl-box",
        "aria-label": "search latents",
        placeholder: view.live ? "number, name, or a text and Enter" : "number or name",
      })
    );
    const options = Object.entries(SORTS).map(([value, label]) => h("option", { value }, label));
    this.order = /** @type {HTMLSelectElement} */ (h("select", { "aria-label": "sort by" }, ...options));
    this.direction = h("button", {
      type: "button",
      class: "sl-direction",
      "aria-label": "reverse the order",
      title: "reverse the order",
    });
    this.count = h("span", { class: "sl-count", "aria-live": "polite" });
    this.spacer = h("div", { class: "sl-spacer" });
    this.list = h(
      "div",
      { class: "sl-list", role: "listbox", tabindex: 0, "aria-label": "latents" },
      this.spacer,
    );
    this.place = h("div", { class: "sl-place", "aria-live": "polite" });
    const tools = h("div", { class: "sl-tools" }, this.box, this.order, this.direction);
    const side = h(
      "div",
      { class: "sl-side" },
      tools,
      h("div", { class: "sl-tools" }, this.count),
      this.list,
    );
    view.body.append(h("div", { class: "sl-browser" }, side, this.place));

    this.card = cardPlace(view, this.place);
    this.point(true);
    this.listen();
    this.card.show(view.chosen("latent"));
  }

  listen() {
    this.box.addEventListener("input", () => {
      this.view.say("");
      this.rearrange();
    });
    this.box.addEventListener("keydown", (event) => this.boxKey(event));
    this.order.addEventListener("change", () => {
      this.point(true);
      this.list.scrollTop = 0;
      this.arrange();
    });
    this.direction.addEventListener("click", () => {
      this.point(!this.descending);
      this.arrange();
    });
    this.list.addEventListener("scroll", () => this.draw());
    this.list.addEventListener("keydown", (event) => this.listKey(event));
    this.view.follow("latents", () => this.rearrange());
    this.view.relabelled(() => this.arrange());
    this.view.follow("latent", (latent) => {
      this.draw();
      this.card.show(latent);
    });
  }

  /** @param {Table} table */
  show(table) {
    this.table = table;
    this.arrange();
  }

  /** @param {string[]} names */
  name(names) {
    if (!this.table) return;
    this.names = names;
    this.arrange();
  }

  /** @param {boolean} descending */
  point(descending) {
    this.descending = descending;
    this.direction.textContent = descending ? "↓" : "↑";
  }

  /** Forget what a text fired, and go by what stands in the box. */
  rearrange() {
    this.fired = null;
    this.list.scrollTop = 0;
    this.arrange();
  }

  /** Find out which latents the list holds, in which order. */
  arrange() {
    const { table, fired } = this;
    if (!table) return;
    table.names = this.names.map((name, j) => this.view.edited(j)?.name ?? name);
    const words = this.box.value.trim().toLowerCase();
    const listed = this.view.chosen("latents");
    this.shown = fired
      ? [...fired.keys()]
      : table.sort(table.matching(words, listed), this.order.value, this.descending);
    const clear = h("button", { type: "button", class: "sl-clear", onclick: () => this.clear() }, "clear");
    this.count.replaceChildren(this.summary(table), ...(fired || words || listed ? [" ", clear] : []));
    this.spacer.style.height = `${this.shown.length * ROW}px`;
    this.draw();
  }

  /** @param {Table} table */
  summary(table) {
    if (this.fired) return `${this.shown.length} latents fire on this text, the most specific first`;
    const dead = this.shown.filter((j) => table.count[j] === 0).length;
    const [shown, all, never] = [this.shown.length, table.n, dead].map((n) => n.toLocaleString("en"));
    const which = this.view.chosen("latents") ? " (those chosen)" : "";
    return `${shown} of ${all} latents${which}, ${never} never fire`;
  }

  /** Draw the rows in sight. */
  draw() {
    const { table, list } = this;
    if (!table) return;
    const first = Math.max(0, Math.floor(list.scrollTop / ROW) - MARGIN);
    const height = Math.ceil((list.clientHeight || 420) / ROW);
    const last = Math.min(this.shown.length, first + height + 2 * MARGIN);
    const rows = [];
    for (let place = first; place < last; place++) rows.push(this.row(table, place));
    this.spacer.replaceChildren(...rows);
    const chosen = this.view.chosen("latent");
    if (chosen !== null) list.setAttribute("aria-activedescendant", this.idOf(chosen));
  }

  /** @param {Table} table @param {number} place */
  row(table, place) {
    const j = this.shown[place];
    const chosen = j === this.view.chosen("latent");
    const value = this.fired ? short(this.fired.get(j) ?? 0) : percent(table.density[j]);
    const share = `${100 * Math.sqrt(table.density[j] / table.mostDense)}%`;
    return h(
      "div",
      {
        class: `sl-row${chosen ? " sl-chosen" : ""}${table.count[j] ? "" : " sl-dead"}`,
        role: "option",
        id: this.idOf(j),
        "aria-selected": chosen,
        "data-latent": j,
        style: { top: `${place * ROW}px` },
        onclick: () => this.choose(place),
      },
      h("span", { class: "sl-number" }, `#${j}`),
      h("bdi", { class: "sl-name" }, table.names[j] || "—"),
      h("span", { class: "sl-meter", "aria-hidden": true, style: { "--sl-share": share } }),
      h("span", { class: "sl-value" }, value),
    );
  }

  /** @param {number} latent */
  idOf(latent) {
    return `${this.prefix}-${latent}`;
  }

  /** Choose the latent at a place of the list. @param {number} place */
  choose(place) {
    const { list, shown } = this;
    if (place < 0 || place >= shown.length) return;
    const top = place * ROW;
    if (top < list.scrollTop) list.scrollTop = top;
    else if (top + ROW > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW - list.clientHeight;
    this.view.choose({ latent: shown[place] });
    this.card.ahead([shown[place + 1], shown[place - 1], shown[place + 2]]);
  }

  clear() {
    this.box.value = "";
    this.fired = null;
    this.view.choose({ latents: null });
    this.arrange();
    this.list.focus();
  }

  /** Go to a number, or ask which latents a text fires. */
  async search() {
    const { table, view } = this;
    const words = this.box.value.trim();
    if (!words || !table) return;
    if (NUMBER.test(words)) {
      const latent = Number(words.replace("#", ""));
      if (latent < table.n) view.choose({ latent });
      else view.say(`Latents go from 0 to ${table.n - 1}. Got ${latent}.`);
      return;
    }
    if (!view.live) {
      if (this.shown.length) this.choose(0);
      else view.say(NO_MODEL);
      return;
    }
    const answer = await view.ask("search", { text: this.box.value });
    if (!answer) return;
    this.fired = new Map(answer.header.found);
    this.list.scrollTop = 0;
    this.arrange();
    if (this.shown.length) this.choose(0);
  }

  /** @param {KeyboardEvent} event */
  boxKey(event) {
    if (isOfTheHost(event)) return;
    if (event.key === "Enter") this.search();
    else if (event.key === "Escape") this.clear();
    else if (event.key === "ArrowDown") {
      this.list.focus();
      if (!this.shown.includes(this.view.chosen("latent") ?? -1)) this.choose(0);
    } else return;
    event.preventDefault();
  }

  /** @param {KeyboardEvent} event */
  listKey(event) {
    if (isOfTheHost(event)) return;
    const at = this.shown.indexOf(this.view.chosen("latent") ?? -1);
    const last = this.shown.length - 1;
    const page = Math.max(1, Math.floor(this.list.clientHeight / ROW) - 1);
    const to = {
      ArrowDown: at + 1,
      ArrowUp: at - 1,
      PageDown: at + page,
      PageUp: at - page,
      Home: 0,
      End: last,
    }[event.key];
    if (to !== undefined) this.choose(Math.max(0, Math.min(last, to)));
    else if (event.key === "/") this.box.focus();
    else if (event.key === "Escape") this.view.choose({ latent: null });
    else if (event.key === "Enter") this.place.querySelector("h3")?.scrollIntoView({ block: "nearest" });
    else return;
    event.preventDefault();
  }
}
