/**
 * Views in one cell: columns whose widths, and views whose heights and places, are set by mouse and keys.
 * @typedef {import("../types.js").Model} Model
 * @typedef {import("../types.js").PageEntry} PageEntry
 * @typedef {import("../types.js").View} View
 * @typedef {{view: number, height: number | null, folded: boolean}} Place null: as high as it wants to be
 * @typedef {{width: number, views: Place[]}} Column
 * @typedef {(context: {model: Model, el: HTMLElement}) => (() => void) | void} Render
 */
import { decode, keyOf } from "../shared/answers.js";
import { freshId, h } from "../shared/dom.js";
import { note } from "../shared/notes.js";
import { modelOf, selectionOf } from "../shared/page.js";
import { rendering } from "../shared/view.js";

const STEP = 24;
const WIDER = 1.1;
const HEIGHTS = [120, 2000];
const WIDTHS = [0.1, 20];
const HELP =
  "The bars between columns and below views are dragged, or moved by the arrow keys once they have the " +
  "focus. A double click, or Enter, gives a view the height that it wants. Arrows beside a name move the " +
  "view. The board is found again as it was left.";

/** @param {Record<string, Render>} renders of the kinds of views, by kind */
export const holding = (renders) => {
  /** @param {{model: Model, el: HTMLElement}} context */
  return ({ model, el }) => {
    /** @type {Board | null} */
    let board = null;
    const close = rendering((view) => {
      board = new Board(model, view, renders);
    })({ model, el });
    return () => {
      board?.close();
      close();
    };
  };
};

export const render = holding({});

class Board {
  /** @param {Model} model @param {View} view @param {Record<string, Render>} renders */
  constructor(model, view, renders) {
    this.model = model;
    this.view = view;
    /** @type {PageEntry[]} */
    this.entries = structuredClone(view.option("entries"));
    this.selections = view
      .option("selections")
      .map((/** @type {Record<string, any>} */ each) => selectionOf(structuredClone(each)));
    /** @type {{columns: Column[]}} */
    this.places = JSON.parse(view.option("places"));
    this.prefix = freshId();
    /** whether what is heard now comes from outside */
    this.quiet = false;
    /** @type {(() => void)[]} */
    this.closing = [];
    this.cells = this.entries.map((entry, number) => this.cell(entry, number));
    this.grid = h("div", { class: "sl-board" });
    view.body.append(this.grid, note("this board", HELP));
    for (const selection of this.selections) {
      const out = () => this.chose();
      selection.listeners.add(out);
      this.closing.push(() => selection.listeners.delete(out));
    }
    view.changed("selections", () => this.chosen());
    view.changed("entries", () => this.optioned());
    view.changed("places", () => this.placed());
    this.arrange();
    this.entries.forEach((entry, number) => {
      this.fill(entry, number, renders[entry.kind]);
    });
  }

  close() {
    for (const f of this.closing) f();
  }

  // ---- views

  /** The frame of a view. @param {PageEntry} entry @param {number} number */
  cell(entry, number) {
    const alike = this.entries.filter((each) => each.kind === entry.kind);
    const name = alike.length > 1 ? `${entry.kind} ${alike.indexOf(entry) + 1}` : entry.kind;
    const place = h("div", { class: "sl-board-held", id: `${this.id(number)}-held` });
    const fold = h("button", {
      type: "button",
      class: "sl-board-fold",
      "aria-controls": place.id,
      onclick: () => this.change(number, (p) => ({ ...p, folded: !p.folded })),
    });
    const moves = /** @type {const} */ (["←", "→", "↑", "↓"]).map((arrow) =>
      h(
        "button",
        {
          type: "button",
          "aria-label": `move ${name} ${MOVES[arrow].said}`,
          title: MOVES[arrow].said,
          "data-move": arrow,
          onclick: () => this.move(number, arrow),
        },
        arrow,
      ),
    );
    const head = h("div", { class: "sl-board-head" }, fold, h("span", { class: "sl-board-moves" }, ...moves));
    const bar = this.bar(`height of ${name}`, "horizontal", (by) => this.taller(number, by * STEP));
    bar.addEventListener("dblclick", () => this.change(number, (p) => ({ ...p, height: null })));
    bar.addEventListener("keydown", (event) => {
      if (event.key === "Enter") this.change(number, (p) => ({ ...p, height: null }));
    });
    this.drag(bar, (_, down) => this.taller(number, down, true));
    const box = h("div", { class: "sl-board-cell", role: "group", "aria-label": name }, head, place, bar);
    return { box, place, fold, name, bar };
  }

  /** @param {number} number */
  id(number) {
    return `${this.prefix}-${number}`;
  }

  /** Draw a view into its frame. @param {PageEntry} entry @param {number} number @param {Render} render */
  fill(entry, number, render) {
    const selection = this.selections[entry.selection];
    /** @type {{opening?: Record<string, import("../types.js").Sent>}} */
    const told = {};
    const hear = () => {
      const news = this.view.option("told")?.[number];
      if (news === told.opening) return;
      told.opening = news;
      this.hearing(selection.changed);
    };
    hear();
    this.view.changed("told", hear);
    const model = modelOf(entry, selection, told);
    const bridge = {
      live: this.view.live,
      interrupt: this.view.interrupt,
      /** @param {string} question @param {import("../types.js").Args} [args] */
      ask: async (question, args = {}) => {
        const news = told.opening?.[keyOf(question, args)];
        return news ? decode(news) : this.view.request("of", { view: number, question, args: argsOf(args) });
      },
      close() {},
    };
    const close = render({ model: { ...model, bridge }, el: this.cells[number].place });
    if (close) this.closing.push(close);
  }

  /** Something was chosen, or an option set, in a view here. */
  chose() {
    if (this.quiet) return;
    this.model.set(
      "selections",
      this.selections.map((/** @type {ReturnType<typeof selectionOf>} */ each) => ({ ...each.chosen })),
    );
    const was = JSON.stringify(this.model.get("entries"));
    if (JSON.stringify(this.entries) !== was) this.model.set("entries", structuredClone(this.entries));
    this.model.save_changes();
  }

  /** Something was chosen in Python, or in another cell. */
  chosen() {
    this.hearing(() => {
      this.view.option("selections").forEach((/** @type {object} */ each, /** @type {number} */ i) => {
        if (JSON.stringify(this.selections[i].chosen) === JSON.stringify(each)) return;
        Object.assign(this.selections[i].chosen, each);
        this.selections[i].changed();
      });
    });
  }

  /** An option of a view was changed in Python. */
  optioned() {
    this.hearing(() => {
      this.view.option("entries").forEach((/** @type {PageEntry} */ entry, /** @type {number} */ i) => {
        if (JSON.stringify(entry.options) === JSON.stringify(this.entries[i].options)) return;
        Object.assign(this.entries[i].options, structuredClone(entry.options));
        this.selections[entry.selection].changed();
      });
    });
  }

  /** Do what is told from outside, without telling it back. @param {() => void} work */
  hearing(work) {
    const before = this.quiet;
    this.quiet = true;
    try {
      work();
    } finally {
      this.quiet = before;
    }
  }

  // ---- how it is arranged

  /** Another arrangement: show it and keep it. @param {Column[]} columns */
  put(columns) {
    this.places = { columns: columns.filter((column) => column.views.length) };
    this.arrange();
    this.keep();
  }

  keep() {
    this.model.set("places", JSON.stringify(this.places));
    this.model.save_changes();
  }

  placed() {
    const places = this.view.option("places");
    if (places === JSON.stringify(this.places)) return;
    this.places = JSON.parse(places);
    this.arrange();
  }

  /** Put the frames into their columns; a view that is moved keeps what it shows and its focus. */
  arrange() {
    const focused = /** @type {HTMLElement | null} */ (this.grid.querySelector(":focus"));
    const { columns } = this.places;
    this.grid.style.setProperty("--sl-tracks", tracksOf(columns));
    const parts = columns.flatMap((column, at) => {
      const shown = h("div", { class: "sl-board-column" });
      shown.append(...column.views.map((place) => this.dress(place, at)));
      return at ? [this.between(at), shown] : [shown];
    });
    this.grid.replaceChildren(...parts);
    focused?.focus();
  }

  /** A view's frame as its place wants it. @param {Place} place @param {number} column */
  dress(place, column) {
    const { box, place: held, fold, name, bar } = this.cells[place.view];
    held.hidden = bar.hidden = place.folded;
    held.style.height = place.height === null ? "" : `${place.height}px`;
    held.classList.toggle("sl-bounded", place.height !== null);
    fold.textContent = `${place.folded ? "▸" : "▾"} ${name}`;
    fold.setAttribute("aria-expanded", String(!place.folded));
    bar.setAttribute("aria-valuenow", String(place.height ?? HEIGHTS[1]));
    bar.setAttribute("aria-valuetext", place.height === null ? "as high as it wants" : `${place.height} px`);
    const { columns } = this.places;
    const row = columns[column].views.indexOf(place);
    const last = columns[column].views.length - 1;
    const cannot = {
      "←": column === 0 && last === 0,
      "→": column === columns.length - 1 && last === 0,
      "↑": row === 0,
      "↓": row === last,
    };
    for (const button of box.querySelectorAll(":scope > .sl-board-head [data-move]")) {
      const arrow = /** @type {keyof typeof MOVES} */ (button.getAttribute("data-move"));
      button.setAttribute("aria-disabled", String(cannot[arrow]));
    }
    return box;
  }

  /** The bar before a column. @param {number} at */
  between(at) {
    const bar = this.bar(`width of column ${at}`, "vertical", (by) => this.wider(at, WIDER ** by));
    const { columns } = this.places;
    const share = columns[at - 1].width / (columns[at - 1].width + columns[at].width);
    bar.setAttribute("aria-valuenow", String(Math.round(100 * share)));
    bar.setAttribute("aria-valuetext", `${Math.round(100 * share)} % of both columns`);
    this.drag(bar, (right) => {
      const [left, width] = [bar.previousElementSibling, bar.nextElementSibling].map(
        (each) => each?.getBoundingClientRect().width ?? 1,
      );
      const both = columns[at - 1].width + columns[at].width;
      const now = Math.min(0.95, Math.max(0.05, (left + right) / (left + width)));
      this.widths(at, both * now, both * (1 - now));
    });
    return bar;
  }

  /** @param {string} name @param {string} orientation @param {(by: number) => void} moved by steps */
  bar(name, orientation, moved) {
    const upright = orientation === "vertical";
    return h("div", {
      class: `sl-board-bar sl-${orientation}`,
      role: "separator",
      tabindex: 0,
      "aria-label": name,
      "aria-orientation": orientation,
      "aria-valuemin": upright ? 0 : HEIGHTS[0],
      "aria-valuemax": upright ? 100 : HEIGHTS[1],
      onkeydown: (/** @type {KeyboardEvent} */ event) => {
        const keys = upright ? ["ArrowLeft", "ArrowRight"] : ["ArrowUp", "ArrowDown"];
        const by = { [keys[0]]: -1, [keys[1]]: 1 }[event.key];
        if (!by) return;
        event.preventDefault();
        moved(by);
      },
    });
  }

  /**
   * Follow a pointer that is held down on a bar; where it was let go is kept.
   * @param {HTMLElement} bar @param {(right: number, down: number) => void} moved since the last call
   */
  drag(bar, moved) {
    bar.addEventListener("pointerdown", (start) => {
      let [x, y] = [start.clientX, start.clientY];
      bar.setPointerCapture(start.pointerId);
      const follow = (/** @type {PointerEvent} */ event) => {
        moved(event.clientX - x, event.clientY - y);
        [x, y] = [event.clientX, event.clientY];
      };
      const end = () => {
        bar.removeEventListener("pointermove", follow);
        this.keep();
      };
      bar.addEventListener("pointermove", follow);
      bar.addEventListener("lostpointercapture", end, { once: true });
    });
  }

  /** @param {number} number @param {number} by pixels @param {boolean} [dragged] its end is kept later */
  taller(number, by, dragged = false) {
    const { place } = this.cells[number];
    this.change(
      number,
      (p) => {
        const height = (p.height ?? place.getBoundingClientRect().height) + by;
        return { ...p, height: Math.round(Math.min(HEIGHTS[1], Math.max(HEIGHTS[0], height))) };
      },
      dragged,
    );
  }

  /** @param {number} at @param {number} factor of the column before */
  wider(at, factor) {
    const { columns } = this.places;
    this.widths(at, columns[at - 1].width * factor, columns[at].width);
    this.keep();
  }

  /**
   * Set the widths of two neighbours, without drawing anew.
   * @param {number} at @param {number} left @param {number} right
   */
  widths(at, left, right) {
    const { columns } = this.places;
    const bounded = (/** @type {number} */ width) => Math.min(WIDTHS[1], Math.max(WIDTHS[0], width));
    [columns[at - 1].width, columns[at].width] = [bounded(left), bounded(right)];
    this.grid.style.setProperty("--sl-tracks", tracksOf(columns));
  }

  /**
   * @param {number} number @param {(place: Place) => Place} how
   * @param {boolean} [later] it is not kept yet
   */
  change(number, how, later = false) {
    for (const [at, column] of this.places.columns.entries())
      column.views = column.views.map((place) => {
        if (place.view !== number) return place;
        const changed = how(place);
        queueMicrotask(() => this.dress(changed, at));
        return changed;
      });
    if (!later) this.keep();
  }

  /**
   * Move a view to a neighbouring place, or into a column of its own.
   * @param {number} number @param {keyof typeof MOVES} arrow
   */
  move(number, arrow) {
    const columns = this.places.columns.map((column) => ({ ...column, views: [...column.views] }));
    const from = columns.findIndex((column) => column.views.some((place) => place.view === number));
    const row = columns[from].views.findIndex((place) => place.view === number);
    const { across, down } = MOVES[arrow];
    if (down) {
      const other = row + down;
      if (other < 0 || other >= columns[from].views.length) return;
      const { views } = columns[from];
      [views[row], views[other]] = [views[other], views[row]];
    } else {
      const to = from + across;
      if (!columns[to] && columns[from].views.length === 1) return;
      const [moved] = columns[from].views.splice(row, 1);
      if (columns[to]) columns[to].views.splice(row, 0, moved);
      else columns.splice(across < 0 ? 0 : to, 0, { width: 1, views: [moved] });
    }
    this.put(columns);
  }
}

const MOVES = {
  "←": { across: -1, down: 0, said: "to the left" },
  "→": { across: 1, down: 0, said: "to the right" },
  "↑": { across: 0, down: -1, said: "up" },
  "↓": { across: 0, down: 1, said: "down" },
};

/** Arguments as Python writes them. @param {import("../types.js").Args} args */
function argsOf(args) {
  return JSON.stringify(
    Object.fromEntries(
      Object.keys(args)
        .sort()
        .map((name) => [name, args[name]]),
    ),
  );
}

/** Of a grid: columns, and the bars between them. @param {Column[]} columns */
function tracksOf(columns) {
  return columns.map(({ width }) => `minmax(0, ${width}fr)`).join(" 12px ");
}
