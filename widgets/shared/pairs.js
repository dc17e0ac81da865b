/**
 * The list of a comparison: pairs of latents, or those of one SAE alone, filtered and sorted.
 * @typedef {import("../types.js").Answer} Answer
 * @typedef {import("../types.js").View} View
 * @typedef {{ours: number | null, theirs: number | null, kind: number, at: number}} Row kind is 2 where a
 *   pair is matched and 1 where it is shared; at is its number, -1 of a latent alone
 */
import { focusedIn, h } from "./dom.js";
import { isOfTheHost } from "./keys.js";
import { short } from "./scales.js";

const SHOWN = 100;
export const TITLES = { cosine: "decoder cosine", phi: "co-firing φ" };
const NOTES = {
  cosine: "Cosine of the two decoder rows, from -1 to 1.",
  phi: "Correlation of the two latents' firing over the rows of the corpus, from -1 to 1.",
};

/** @param {HTMLElement} within @param {string} selector */
function focus(within, selector) {
  const found = within.querySelector(selector);
  if (found instanceof HTMLElement) found.focus();
}

export class PairList {
  /**
   * @param {View} view @param {Answer} pairs @param {Answer} names
   * @param {() => [number | null, number | null]} chosen
   * @param {(ours: number | null, theirs: number | null) => void} choose
   */
  constructor(view, pairs, names, chosen, choose) {
    this.view = view;
    this.chosen = chosen;
    this.choose = choose;
    this.header = pairs.header;
    this.fields = pairs.fields;
    /** @type {[string[], string[]]} */
    this.names = [names.fields.ours, names.fields.theirs];
    /** @type {string[]} */
    this.measures = this.header.measures;
    /** by which measure latents are paired */
    this.by = this.measures[0];
    this.listed = "pairs";
    this.sorted = { by: "", down: true };
    this.filter = "";
    this.most = SHOWN;
    this.choices = h("div", {
      class: "sl-compare-lists",
      role: "group",
      "aria-label": "what is listed",
    });
    this.box = /** @type {HTMLInputElement} */ (
      h("input", {
        type: "search",
        class: "sl-box",
        placeholder: "filter by number or name",
        "aria-label": "filter by number or name",
        oninput: () => this.filtered(),
      })
    );
    this.count = h("span", { class: "sl-hint", role: "status" });
    this.table = h("div", {
      class: "sl-compare-table",
      onkeydown: (/** @type {any} */ event) => this.keydown(event),
    });
    this.fieldset = h(
      "div",
      { class: "sl-fields" },
      this.measureChooser(),
      this.choices,
      this.box,
      this.count,
    );
    view.relabelled(() => this.list());
    this.list();
  }

  /** By which measure latents are paired, where there are several. */
  measureChooser() {
    if (this.measures.length < 2) return null;
    const options = this.measures.map((name) =>
      h("option", { value: name }, TITLES[/** @type {"phi"} */ (name)]),
    );
    const select = /** @type {HTMLSelectElement} */ (h("select", { "data-by": true }, ...options));
    select.addEventListener("change", () => {
      this.by = select.value;
      this.listed = "pairs";
      this.most = SHOWN;
      this.list();
    });
    return h("label", {}, "by ", select);
  }

  filtered() {
    this.filter = this.box.value.trim().toLowerCase();
    this.most = SHOWN;
    this.list();
  }

  /** What is listed, in the order of the answer. @returns {Row[]} */
  rows() {
    const { fields } = this;
    const kinds = /** @type {Uint8Array} */ (fields[`${this.by}_kind`]);
    if (this.listed === "pairs")
      return Array.from(fields.ours, (ours, at) => ({
        ours,
        theirs: fields.theirs[at],
        kind: kinds[at],
        at,
      })).filter((row) => row.kind);
    const latents = /** @type {Int32Array} */ (fields[`${this.by}_${this.listed}`]);
    const mine = this.listed.endsWith("ours");
    return Array.from(latents, (latent) => ({
      ours: mine ? latent : null,
      theirs: mine ? null : latent,
      kind: 0,
      at: -1,
    }));
  }

  /** @param {0 | 1} side @param {number | null} latent */
  nameOf(side, latent) {
    if (latent === null) return "";
    return (side === 0 ? this.view.edited(latent)?.name : undefined) ?? this.names[side][latent] ?? "";
  }

  list() {
    const [ours, theirs] = this.header.names;
    const lists = [
      ["pairs", "pairs"],
      ["own_ours", `only ${ours}`],
      ["own_theirs", `only ${theirs}`],
      ["left_ours", `not compared, ${ours}`],
      ["left_theirs", `not compared, ${theirs}`],
    ];
    const sizes = (/** @type {string} */ name) =>
      name === "pairs"
        ? this.fields[`${this.by}_kind`].filter(Boolean).length
        : this.fields[`${this.by}_${name}`].length;
    this.choices.replaceChildren(
      ...lists
        .filter(([name]) => name === "pairs" || sizes(name))
        .map(([name, title]) =>
          h(
            "button",
            {
              type: "button",
              "data-list": name,
              "aria-pressed": this.listed === name,
              class: this.listed === name ? "sl-chosen" : "",
              onclick: () => {
                this.listed = name;
                this.most = SHOWN;
                this.list();
                focus(this.choices, `[data-list="${name}"]`);
              },
            },
            `${title} (${sizes(name).toLocaleString("en")})`,
          ),
        ),
    );
    const found = this.rows().filter((row) => this.matches(row));
    this.order(found);
    const some = found.slice(0, this.most);
    this.count.textContent = `${found.length.toLocaleString("en")} shown`;
    const more = h(
      "button",
      {
        type: "button",
        onclick: () => {
          this.most += SHOWN;
          this.list();
        },
      },
      `${Math.min(SHOWN, found.length - some.length)} more`,
    );
    const empty = h("p", { class: "sl-hint" }, this.filter ? "No latent is called so." : "There are none.");
    this.table.replaceChildren(
      some.length ? h("table", {}, this.head(), h("tbody", {}, ...some.map((row) => this.line(row)))) : empty,
      ...(found.length > some.length ? [more] : []),
    );
    this.mark();
  }

  /** @param {Row} row */
  matches({ ours, theirs }) {
    const wanted = this.filter;
    if (!wanted) return true;
    const number = wanted.replace(/^#/, "");
    return /** @type {[0 | 1, number | null][]} */ ([
      [0, ours],
      [1, theirs],
    ]).some(
      ([side, latent]) =>
        latent !== null &&
        (String(latent) === number || this.nameOf(side, latent).toLowerCase().includes(wanted)),
    );
  }

  /** @param {Row[]} rows sorted in place */
  order(rows) {
    const { by, down } = this.sorted;
    if (!by) return;
    const missing = down ? -2 : 2; // at the end in either order, beyond all correlations
    const key = (/** @type {Row} */ row) => {
      if (by === "ours" || by === "theirs") return row[by] ?? -1;
      if (by === "kind") return row.kind;
      const value = row.at < 0 ? Number.NaN : this.fields[by][row.at];
      return Number.isNaN(value) ? missing : value;
    };
    rows.sort((a, b) => (down ? key(b) - key(a) : key(a) - key(b)));
  }

  head() {
    const [ours, theirs] = this.header.names;
    const columns = [
      ["ours", ours, "Latent of the first SAE."],
      ["theirs", theirs, "Latent of the second SAE."],
      ["kind", "kind", "Matched: each is the other's partner. Shared: one is."],
      ...this.measures.map((name) => [
        name,
        TITLES[/** @type {"phi"} */ (name)],
        NOTES[/** @type {"phi"} */ (name)],
      ]),
    ].filter(
      ([name]) => this.listed === "pairs" || name === (this.listed.endsWith("ours") ? "ours" : "theirs"),
    );
    const cells = columns.map(([name, title, note]) => {
      const own = this.sorted.by === name;
      const sort = own ? (this.sorted.down ? "descending" : "ascending") : "none";
      const onclick = () => {
        this.sorted = { by: name, down: own ? !this.sorted.down : name !== "ours" && name !== "theirs" };
        this.list();
        focus(this.table, `[data-sort="${name}"]`);
      };
      const arrow = own ? (this.sorted.down ? " ↓" : " ↑") : "";
      const button = h(
        "button",
        { type: "button", "data-sort": name, title: note, onclick },
        `${title}${arrow}`,
      );
      return h("th", { scope: "col", "aria-sort": sort }, button);
    });
    return h("thead", {}, h("tr", {}, ...cells));
  }

  /** @param {Row} row */
  line(row) {
    const { ours, theirs, kind, at } = row;
    const data = { "data-ours": ours ?? "", "data-theirs": theirs ?? "" };
    const cell = (
      /** @type {0 | 1} */ side,
      /** @type {number | null} */ latent,
      /** @type {boolean} */ first,
    ) => {
      const name = h("bdi", { class: "sl-name" }, this.nameOf(side, latent));
      const number = h("span", { class: "sl-number" }, `#${latent}`);
      if (!first) return h("td", {}, number, " ", name);
      const onclick = () => this.choose(ours, theirs);
      return h("td", {}, h("button", { type: "button", class: "sl-pair", onclick }, number, " ", name));
    };
    const cells =
      this.listed === "pairs"
        ? [
            cell(0, ours, true),
            cell(1, theirs, false),
            h("td", {}, kind === 2 ? "matched" : "shared"),
            ...this.measures.map((name) => h("td", { class: "sl-value" }, short(this.fields[name][at]))),
          ]
        : [cell(ours === null ? 1 : 0, ours ?? theirs, true)];
    return h("tr", data, ...cells);
  }

  /** Which line is chosen. */
  mark() {
    const [ours, theirs] = this.chosen().map((latent) => String(latent ?? ""));
    for (const line of this.table.querySelectorAll("tr[data-ours]")) {
      const own = line.getAttribute("data-ours") === ours && line.getAttribute("data-theirs") === theirs;
      line.classList.toggle("sl-chosen", own);
      line.querySelector(".sl-pair")?.setAttribute("aria-pressed", String(own));
    }
  }

  /** @param {KeyboardEvent} event */
  keydown(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const buttons = [...this.table.querySelectorAll(".sl-pair")];
    const at = buttons.indexOf(/** @type {Element} */ (focusedIn(this.table)));
    if (!step || at < 0 || isOfTheHost(event)) return;
    event.preventDefault();
    const next = /** @type {HTMLElement | undefined} */ (buttons[at + step]);
    next?.focus();
    next?.click();
  }
}
