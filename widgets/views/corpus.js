/**
 * The documents of a store: a virtual list that is searched and sorted, beside the open one as a heatmap.
 * @typedef {import("../types.js").Answer} Answer
 * @typedef {import("../types.js").View} View
 */
import { freshId, h } from "../shared/dom.js";
import { Heatmap } from "../shared/heatmap.js";
import { isOfTheHost } from "../shared/keys.js";
import { short } from "../shared/scales.js";
import { ScrollingList } from "../shared/scrolling.js";
import { reasonOf, rendering } from "../shared/view.js";

const [ROW, PAGE] = [44, 50];
/** Documents whose surprise is asked for at once: the model reads each. */
const READ = 50;
const WAYS = { text: "text", token: "token", latent: "latent", sql: "SQL" };
const SORTS = {
  document: "number",
  rows: "length",
  strongest: "strongest value of the latent",
  firings: "firings of the latent",
  surprise: "surprise (loss)",
};
const HINTS = {
  text: "text, then Enter",
  token: "a token, then Enter",
  latent: "number of a latent, then Enter",
  sql: "e.g. n_rows > 50 and kind = 'text'",
};

export const render = rendering(async (view) => new Corpus(view).begin());

class Corpus {
  /** @param {View} view */
  constructor(view) {
    this.view = view;
    /** @type {number[]} in the list's order */
    this.documents = [];
    /** @type {ArrayLike<number>} */
    this.score = [];
    this.what = "";
    this.all = 0;
    this.descending = true;
    this.asked = 0;
    /** @type {Map<number, {title: string, begins: string}>} */
    this.lines = new Map();
    /** pages of lines that were asked for */
    this.pages = new Set();
    /** whether the open document was read by the model */
    this.model = 0;
    /** which document is shown as the store has it; -1 for none */
    this.opened = -1;
    this.prefix = freshId();
    const select = (/** @type {Record<string, string>} */ of, /** @type {string} */ label) =>
      /** @type {HTMLSelectElement} */ (
        h(
          "select",
          { "aria-label": label },
          ...Object.entries(of).map(([value, t]) => h("option", { value }, t)),
        )
      );
    this.way = select(view.live ? WAYS : { text: "text" }, "search by");
    this.order = select(view.live ? SORTS : { document: SORTS.document }, "sort by");
    this.box = /** @type {HTMLInputElement} */ (
      h("input", {
        type: "search",
        class: "sl-box",
        "aria-label": "search documents",
        placeholder: HINTS.text,
      })
    );
    this.direction = h("button", {
      type: "button",
      "aria-label": "reverse the order",
      title: "reverse the order",
    });
    this.direction.textContent = "↓";
    this.count = h("span", { class: "sl-count", role: "status" });
    this.spacer = h("div", { class: "sl-docs-spacer", role: "presentation" });
    this.list = h(
      "div",
      { class: "sl-docs", role: "listbox", tabindex: 0, "aria-label": "documents" },
      this.spacer,
    );
    this.scrolling = new ScrollingList(this.list, this.spacer, ROW, 480);
    this.surprise = h("button", { type: "button", hidden: true, onclick: () => this.read() });
    const tools = h("div", { class: "sl-fields" }, this.way, this.box, this.order, this.direction);
    const side = h(
      "div",
      { class: "sl-docs-side" },
      tools,
      h("div", {}, this.count, " ", this.surprise),
      this.list,
    );
    this.head = h("div", { class: "sl-fields sl-opened" });
    const sample = h("div", {});
    view.body.append(
      h("div", { class: "sl-corpus" }, side, h("div", { class: "sl-docs-open" }, this.head, sample)),
    );
    this.heatmap = new Heatmap(view, sample, {
      ask: (question, args = {}) => view.ask(question, this.of(args)),
    });
    this.listen();
  }

  /** Arguments of a question about the open document. @param {import("../types.js").Args} args */
  of(args) {
    const document = this.view.chosen("document");
    return this.model ? { ...args, document, model: 1 } : { ...args, document };
  }

  listen() {
    const { view, list, box } = this;
    this.way.addEventListener("change", () => {
      box.placeholder = HINTS[/** @type {keyof typeof HINTS} */ (this.way.value)];
    });
    this.order.addEventListener("change", () => this.ask());
    this.direction.addEventListener("click", () => {
      this.descending = !this.descending;
      this.direction.textContent = this.descending ? "↓" : "↑";
      this.ask();
    });
    box.addEventListener("keydown", (event) => {
      if (isOfTheHost(event)) return;
      if (event.key === "Escape") box.value = "";
      if (event.key === "Enter" || event.key === "Escape") this.ask();
      else if (event.key === "ArrowDown") list.focus();
      else return;
      event.preventDefault();
    });
    list.addEventListener("scroll", () => this.draw());
    list.addEventListener("keydown", (event) => this.listKey(event));
    view.follow("latent", () => {
      if (["strongest", "firings"].includes(this.order.value)) this.ask();
    });
    view.follow("document", () => {
      this.model = 0;
      this.reveal();
      this.open();
    });
    view.follow("row", () => this.toRow());
  }

  async begin() {
    await this.ask();
    this.reveal();
    await this.open();
    this.toRow();
  }

  /** Ask which documents the list holds, in which order. */
  async ask() {
    const mine = ++this.asked;
    const { view } = this;
    if (!view.live && this.all) {
      this.narrow();
      return;
    }
    view.say("");
    this.list.setAttribute("aria-busy", "true");
    const args = { way: this.way.value, words: this.box.value, sort: this.order.value };
    const sorted = args.sort === "strongest" || args.sort === "firings";
    const latent = sorted ? (view.chosen("latent") ?? -1) : -1;
    const answer = await view.ask("list", { ...args, latent, descending: this.descending ? 1 : 0 });
    if (mine !== this.asked) return;
    this.list.removeAttribute("aria-busy");
    if (!answer) return;
    this.documents = [...answer.fields.documents];
    this.score = answer.fields.score;
    this.what = answer.header.what;
    this.all = answer.header.all;
    this.pages.clear();
    this.list.scrollTop = 0;
    const [n, all] = [this.documents.length, this.all].map((v) => v.toLocaleString("en"));
    this.count.textContent = `${n} of ${all} documents; beside each: ${this.what}`;
    this.surprise.hidden = this.order.value !== "surprise";
    this.surprise.textContent = `have the model read the next ${READ} of them`;
    this.draw();
  }

  /** In a page: the documents whose beginnings hold what is looked for. */
  narrow() {
    const words = this.box.value.toLowerCase();
    this.documents = [...this.lines.keys()].filter((n) =>
      this.lines.get(n)?.begins.toLowerCase().includes(words),
    );
    if (!this.descending) this.documents.reverse();
    this.count.textContent = `${this.documents.length} documents begin so`;
    this.draw();
  }

  /** Have the model read the documents in sight whose loss is not known, and sort by it. */
  async read() {
    const unknown = this.documents.filter((_, i) => !Number.isFinite(this.score[i])).slice(0, READ);
    this.surprise.setAttribute("aria-busy", "true");
    this.surprise.textContent = "the model reads…";
    const answer = await this.view.ask("surprise", { documents: unknown.join(",") });
    this.surprise.removeAttribute("aria-busy");
    await this.ask();
    if (answer) this.count.textContent += ` (${unknown.length} read in ${short(answer.header.seconds)} s)`;
  }

  /** Draw the rows in sight, and ask for what they say. */
  draw() {
    const { documents, scrolling } = this;
    this.spacer.style.height = `${documents.length * ROW}px`;
    const [first, last] = scrolling.drawn(documents.length);
    const rows = [];
    for (let place = first; place < last; place++) rows.push(this.row(place));
    const chosen = this.view.chosen("document");
    scrolling.put(rows, chosen === null ? null : `${this.prefix}-${chosen}`);
    for (let page = Math.floor(first / PAGE); page * PAGE < last; page++) this.fetch(page);
  }

  /** @param {number} place */
  row(place) {
    const document = this.documents[place];
    const line = this.lines.get(document);
    const chosen = document === this.view.chosen("document");
    const attributes = {
      class: `sl-doc${chosen ? " sl-chosen" : ""}`,
      role: "option",
      id: `${this.prefix}-${document}`,
      "aria-selected": chosen,
      "data-document": document,
      style: { top: `${place * ROW}px` },
      onclick: () => this.choose(place),
    };
    return h(
      "div",
      attributes,
      h("span", { class: "sl-number" }, `#${document}`),
      h("bdi", { class: "sl-name" }, line ? line.begins : "…"),
      h("span", { class: "sl-value" }, this.view.live || this.score.length ? short(this.score[place]) : ""),
    );
  }

  /** Ask for the lines of a page of the list. @param {number} page */
  async fetch(page) {
    const some = this.documents.slice(page * PAGE, (page + 1) * PAGE);
    if (this.pages.has(page) || some.every((document) => this.lines.has(document))) return;
    this.pages.add(page);
    try {
      const { fields } = await this.view.request("lines", { documents: some.join(",") });
      for (const [document, title, begins] of fields.lines) this.lines.set(document, { title, begins });
      this.draw();
    } catch (error) {
      if (this.view.live) this.view.say(reasonOf(error));
    }
  }

  /** @param {number} place */
  choose(place) {
    if (!this.documents.length) return;
    this.view.choose({ document: this.documents[place], row: null });
  }

  /** Scroll the list to the chosen document. */
  reveal() {
    const place = this.documents.indexOf(this.view.chosen("document"));
    if (place >= 0) this.scrolling.reveal(place);
    this.draw();
  }

  /** Show the chosen document. */
  async open() {
    const { view, heatmap } = this;
    const document = view.chosen("document");
    const model = this.model;
    this.opened = -1;
    if (document === null) {
      this.head.replaceChildren();
      heatmap.clear(h("p", { class: "sl-hint" }, "Choose a document to read it."));
      return;
    }
    const answer = await view.ask("codes", this.of({}));
    if (document !== view.chosen("document") || model !== this.model) return;
    const title = h("h3", {}, `document ${document}`);
    if (!answer) {
      this.head.replaceChildren(title);
      heatmap.clear(h("p", { class: "sl-hint" }, "This document could not be shown."));
      return;
    }
    view.say("");
    const kept = view.option("kept");
    const codes = { full: "its codes", none: "no codes: the store kept none" }[/** @type {string} */ (kept)];
    const said = model
      ? "read by the model"
      : `from the store, without the model: ${codes ?? `codes of ${kept}`}`;
    const other = h(
      "button",
      {
        type: "button",
        onclick: () => {
          this.model = 1 - this.model;
          this.open();
        },
      },
      model ? "from the store" : "read with the model",
    );
    this.head.replaceChildren(title, h("span", { class: "sl-hint" }, said), ...(view.live ? [other] : []));
    heatmap.show(answer);
    this.opened = model ? -1 : document;
  }

  /** Go to the chosen row, in its document. */
  async toRow() {
    const row = this.view.chosen("row");
    if (row === null || !this.view.live) return;
    const answer = await this.view.ask("place", { row });
    if (!answer || row !== this.view.chosen("row")) return;
    const { document, at } = answer.header;
    if (document !== this.view.chosen("document")) this.view.choose({ document });
    const shown = () => this.opened === document;
    for (let i = 0; i < 40 && !shown(); i++) await new Promise((done) => setTimeout(done, 25));
    if (shown()) this.heatmap.found(at, 1);
  }

  /** @param {KeyboardEvent} event */
  listKey(event) {
    if (isOfTheHost(event)) return;
    const at = this.documents.indexOf(this.view.chosen("document") ?? -1);
    const to = this.scrolling.led(event.key, at, this.documents.length);
    if (to !== undefined) this.choose(to);
    else if (event.key === "/") this.box.focus();
    else if (event.key === "Escape") this.view.choose({ document: null });
    else return;
    event.preventDefault();
  }
}
