/**
 * A browser over all latents: a virtual list beside the card of the chosen one.
 * @typedef {import("../types.js").View} View
 */
import { cardPlace } from "../shared/cards.js";
import { freshId, h } from "../shared/dom.js";
import { isOfTheHost } from "../shared/keys.js";
import { Lines } from "../shared/lines.js";
import { columnsFold, filterBar, knownColumns, marksFold, saveFold, setChoice } from "../shared/panels.js";
import { ScrollingList } from "../shared/scrolling.js";
import { drawHeads, rowElement, widths } from "../shared/sheet.js";
import { isWritten, stepButtons } from "../shared/steps.js";
import { rendering } from "../shared/view.js";

const ROW = 28;
const OWN = ["density", "mean", "max", "min", "count"];
/** What a search goes by: its name in Python, what it is called, and what is written in the box for it. */
const WAYS = {
  text: ["name or text", "number, name, or a text and Enter"],
  token: ["token", "a token, as ␣cat with its space"],
  example: ["words of examples", "words, and Enter"],
  label: ["words of labels", "words, and Enter"],
  latent: ["like latent", "a latent's number, and Enter"],
};
const NO_MODEL =
  "No name holds that. A page finds latents by number or name; which of them a text fires only a notebook " +
  "can say, which has the model.";
const NUMBER = /^#?\d+$/;

export const render = rendering(async (view) => {
  const browser = new Browser(view);
  const table = await view.ask("table");
  if (!table) return;
  await browser.open(new Lines(table));
  const names = await view.ask("names");
  if (names) browser.name(names.fields.names);
  if (browser.can("where")) browser.known(); // from here on filters are answered at once
});

class Browser {
  /** @param {View} view */
  constructor(view) {
    this.view = view;
    /** @type {Lines | null} */
    this.table = null;
    /** @type {Map<number, number> | null} what a search found: latent -> score or value */
    this.found = null;
    /** @type {Uint8Array | null} a bit a latent: of which the filter is true */
    this.bits = null;
    /** @type {string[]} as they came */
    this.names = [];
    /** @type {number[]} latents in the list's order */
    this.shown = [];
    /** whether a latent was chosen or let go of: until then the card of a telling one is shown */
    this.touched = false;
    /** whether what is set in Python is what was set here */
    this.setting = false;
    this.state = this.options();
    this.prefix = freshId();
    this.box = /** @type {HTMLInputElement} */ (
      h("input", { type: "search", class: "sl-box", "aria-label": "search latents" })
    );
    this.box.value = this.state.words;
    const ways = Object.entries(WAYS).map(([value, [title]]) => h("option", { value }, title));
    this.by = /** @type {HTMLSelectElement} */ (h("select", { "aria-label": "search by" }, ...ways));
    this.by.value = this.state.way || "text";
    this.hint();
    this.count = h("span", { class: "sl-count", "aria-live": "polite" });
    this.head = h("div", { class: "sl-heads", role: "group", "aria-label": "sort by" });
    this.spacer = h("div", { class: "sl-spacer" });
    this.list = h(
      "div",
      { class: "sl-list", role: "listbox", tabindex: 0, "aria-label": "latents" },
      this.spacer,
    );
    this.lines = new ScrollingList(this.list, this.spacer, ROW, 420);
    this.place = h("div", { class: "sl-place", "aria-live": "polite" });
    this.known = knownColumns(view);
    this.filter = filterBar(view, this.known, (where) => this.setWhere(where));
    this.marks = marksFold(view, () => ({ one: this.current(), all: this.shown }));
    this.lay();
    this.card = cardPlace(view, this.place);
    this.listen();
    this.showCard();
  }

  /** What was set in Python, or here before. */
  options() {
    const { view } = this;
    return {
      columns: /** @type {string[]} */ (view.option("columns") ?? ["density"]),
      where: /** @type {string} */ (view.option("where") ?? ""),
      sort: /** @type {string} */ (view.option("sort") ?? "density"),
      descending: /** @type {boolean} */ (view.option("descending") ?? true),
      words: /** @type {string} */ (view.option("words") ?? ""),
      way: /** @type {string} */ (view.option("way") ?? ""),
    };
  }

  /** @param {string} question whether it is answered here */
  can(question) {
    return this.view.live && (this.view.option("able") ?? []).includes(question);
  }

  /** Put its parts where they stand. */
  lay() {
    const { view } = this;
    const random = h(
      "button",
      {
        type: "button",
        class: "sl-random",
        title: "a random one of these (r)",
        "aria-label": "a random latent of these (r)",
        onclick: () => this.random(),
      },
      "⚂",
    );
    const columns = columnsFold(
      this.known,
      OWN,
      this.can("column"),
      () => this.state.columns,
      (names) => this.setColumns(names),
    );
    const side = h(
      "div",
      { class: "sl-side" },
      h("div", { class: "sl-tools" }, this.box, this.can("find") ? this.by : null),
      this.can("where") ? this.filter.element : null,
      h("div", { class: "sl-tools" }, setChoice(view), stepButtons(view), random),
      h(
        "div",
        { class: "sl-folds" },
        columns,
        this.can("notes") ? this.marks.element : null,
        view.live ? saveFold(view) : null,
      ),
      h("div", { class: "sl-tools" }, this.count),
      h("div", { class: "sl-sheet" }, this.head, this.list),
    );
    view.body.append(h("div", { class: "sl-browser" }, side, this.place));
  }

  listen() {
    const { view } = this;
    this.box.addEventListener("input", () => {
      view.say("");
      if (this.by.value === "text") this.forget();
    });
    this.box.addEventListener("keydown", (event) => this.boxKey(event));
    this.by.addEventListener("change", () => this.hint());
    this.list.addEventListener("scroll", () => this.draw());
    this.list.addEventListener("keydown", (event) => this.listKey(event));
    view.body.addEventListener("keydown", (event) => this.key(event));
    view.follow("latents", () => {
      this.list.scrollTop = 0;
      this.arrange();
    });
    view.relabelled(() => this.rename());
    view.follow("latent", () => {
      this.touched = true;
      this.draw();
      this.showCard();
    });
    for (const name of Object.keys(this.state)) view.changed(name, () => this.adopt());
  }

  /** What is to be written in the box. */
  hint() {
    this.box.placeholder = this.view.live
      ? WAYS[/** @type {keyof typeof WAYS} */ (this.by.value)][1]
      : "number or name";
  }

  /** @param {Lines} table */
  async open(table) {
    this.table = table;
    this.arrange();
    const { columns, where, sort, way } = this.state;
    try {
      await this.fetch([...columns, sort]);
    } catch (error) {
      this.view.say(String(/** @type {Error} */ (error).message));
    }
    if (where) await this.filter.run();
    if (way && this.view.live) await this.search();
    this.arrange();
  }

  /** @param {string[]} names */
  name(names) {
    this.names = names;
    this.rename();
  }

  rename() {
    if (!this.table || !this.names.length) return;
    this.table.name(this.names.map((name, j) => this.view.edited(j)?.name ?? name));
    this.arrange();
  }

  /** Set what the list shows, here and in Python. @param {Partial<Browser["state"]>} state */
  set(state) {
    this.state = { ...this.state, ...state };
    // one after the other is told, while the others are as they were
    this.setting = true;
    this.view.remember(state);
    this.setting = false;
  }

  /** Show what was set in Python. */
  async adopt() {
    if (this.setting) return;
    const now = this.options();
    const before = this.state;
    if (JSON.stringify(now) === JSON.stringify(before)) return;
    this.state = now;
    this.box.value = now.words;
    if (now.way) this.by.value = now.way;
    this.filter.input.value = now.where;
    if (now.where !== before.where) await this.filter.run();
    if (now.words !== before.words || now.way !== before.way) this.found = null;
    if (this.table) await this.open(this.table);
  }

  /** Have these columns. @param {string[]} names */
  async fetch(names) {
    for (const name of names) {
      if (!this.table || this.table.columns.has(name) || name === "score" || name === "name") continue;
      const { fields } = await this.view.request("column", { sql: name });
      this.table.add(name, fields.values);
    }
  }

  /** @param {string[]} columns */
  async setColumns(columns) {
    await this.fetch(columns);
    this.set({ columns });
    this.arrange();
  }

  /** @param {string} where */
  async setWhere(where) {
    const bits = where ? (await this.view.request("where", { sql: where })).fields.bits : null;
    this.bits = bits;
    this.set({ where });
    this.list.scrollTop = 0;
    this.arrange();
  }

  /** @param {string} sort */
  sortBy(sort) {
    const descending =
      sort === this.state.sort ? !this.state.descending : sort !== "latent" && sort !== "name";
    this.set({ sort, descending });
    this.list.scrollTop = 0;
    this.arrange();
  }

  /** Forget what a search found, and go by what stands in the box. */
  forget() {
    this.found = null;
    const sort = this.state.sort === "score" ? "density" : this.state.sort;
    this.set({ words: this.box.value, way: "", sort });
    this.list.scrollTop = 0;
    this.arrange();
  }

  /** Find out which latents the list holds, in which order. */
  arrange() {
    const { table, found, state, view } = this;
    if (!table) return;
    const words = state.way ? "" : state.words.trim().toLowerCase();
    const listed = view.chosen("latents");
    const order = found ? [...found.keys()] : null;
    this.shown = table.shown({ ...state, words, listed, where: this.bits, found: order });
    const clear = h("button", { type: "button", class: "sl-clear", onclick: () => this.clear() }, "clear");
    const some = found || words || listed || this.bits;
    this.count.replaceChildren(this.summary(table), ...(some ? [" ", clear] : []));
    this.spacer.style.height = `${this.shown.length * ROW}px`;
    this.drawHead();
    this.draw();
  }

  /** @param {Lines} table */
  summary(table) {
    const n = this.shown.length.toLocaleString("en");
    if (this.found && this.state.way === "text")
      return `${n} latents fire on this text, the most specific first`;
    if (this.found) return `${n} latents found, the best first`;
    let dead = 0;
    for (const j of this.shown) if (table.count[j] === 0) dead++;
    const list = this.view.chosen("list");
    const which = list !== null ? ` (of the list)` : this.view.chosen("latents") ? " (those chosen)" : "";
    const [all, never] = [table.n, dead].map((number) => number.toLocaleString("en"));
    const where = this.bits && !this.can("where") ? ` where ${this.state.where}` : "";
    return `${n} of ${all} latents${which}${where}, ${never} never fire`;
  }

  /** The columns that are shown beside number and name. */
  columns() {
    const own = this.state.columns.filter((name) => this.table?.columns.has(name) && name !== "latent");
    return this.found ? ["score", ...own] : own;
  }

  drawHead() {
    if (!this.table) return;
    const { sort, descending } = this.state;
    const columns = this.columns();
    this.view.body.style.setProperty("--sl-columns", widths(this.table, columns));
    this.view.body.style.setProperty("--sl-more", String(Math.max(0, columns.length - 1)));
    drawHeads(this.head, this.table, ["latent", "name", ...columns], sort, descending, (name) =>
      this.sortBy(name),
    );
  }

  /** Draw the rows in sight. */
  draw() {
    const { table } = this;
    if (!table) return;
    const [first, last] = this.lines.drawn(this.shown.length);
    const [columns, chosen] = [this.columns(), this.current()];
    const rows = [];
    for (let place = first; place < last; place++) rows.push(this.row(table, place, columns, chosen));
    if (!this.shown.length) rows.push(h("p", { class: "sl-hint sl-none" }, "no latent is like that"));
    this.lines.put(rows, chosen === null ? null : this.idOf(chosen));
  }

  /** @param {Lines} table @param {number} place @param {string[]} columns @param {number | null} current */
  row(table, place, columns, current) {
    const j = this.shown[place];
    const row = rowElement(table, j, columns, this.found?.get(j), j === current);
    row.id = this.idOf(j);
    row.style.top = `${place * ROW}px`;
    row.addEventListener("click", () => this.choose(place));
    return row;
  }

  /** @param {number} latent */
  idOf(latent) {
    return `${this.prefix}-${latent}`;
  }

  /** The latent whose card is shown. @returns {number | null} */
  current() {
    const chosen = this.view.chosen("latent");
    return chosen ?? (this.touched ? null : (this.view.option("begins") ?? null));
  }

  showCard() {
    this.card.show(this.current());
  }

  /** Choose the latent at a place of the list. @param {number} place */
  choose(place) {
    const { shown } = this;
    if (place < 0 || place >= shown.length) return;
    this.lines.reveal(place);
    this.touched = true;
    this.view.choose({ latent: shown[place] });
    this.card.ahead([shown[place + 1], shown[place - 1], shown[place + 2]]);
  }

  /** Choose one of the list that fires, by chance. */
  random() {
    const { shown, table } = this;
    const alive = shown.flatMap((j, place) => (table?.count[j] ? [place] : []));
    if (alive.length) this.choose(alive[Math.floor(Math.random() * alive.length)]);
  }

  clear() {
    this.box.value = "";
    this.filter.input.value = "";
    this.filter.run();
    this.forget();
    this.view.choose({ latents: null, list: null });
    this.list.focus();
  }

  /** Go to a number, or ask which latents the words find. */
  async search() {
    const { table, view } = this;
    const [words, way] = [this.box.value.trim(), this.by.value];
    if (!words || !table) return;
    if (NUMBER.test(words) && way === "text") {
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
    const text = way === "token" ? this.box.value.replaceAll("␣", " ") : this.box.value;
    const answer = await view.ask("search", way === "text" ? { text } : { text, way });
    if (!answer) return;
    view.say("");
    this.found = new Map(answer.header.found);
    this.set({ words: text, way, sort: "score", descending: true });
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
      if (!this.shown.includes(this.current() ?? -1)) this.choose(0);
    } else return;
    event.preventDefault();
  }

  /** Anywhere in the view but where letters are written. @param {KeyboardEvent} event */
  key(event) {
    if (isOfTheHost(event) || isWritten(event.target) || event.defaultPrevented) return;
    if (event.key === "/") this.box.focus();
    else if (event.key === "r") this.random();
    else if (event.key === "s" && this.can("where")) this.filter.input.focus();
    else if (event.key === "l" && this.can("notes")) this.marks.open("list");
    else if (event.key === "t" && this.can("notes")) this.marks.open("tag");
    else return;
    event.preventDefault();
  }

  /** @param {KeyboardEvent} event */
  listKey(event) {
    if (isOfTheHost(event)) return;
    const at = this.shown.indexOf(this.current() ?? -1);
    const to = this.lines.led(event.key, at, this.shown.length);
    if (to !== undefined) this.choose(to);
    else if (event.key === "Escape") this.view.choose({ latent: null });
    else if (event.key === "Enter") this.place.querySelector("h3")?.scrollIntoView({ block: "nearest" });
    else return;
    event.preventDefault();
  }
}
