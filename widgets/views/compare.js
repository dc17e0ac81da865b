/**
 * Two SAEs side by side: a list of pairs of latents, the cards of the chosen pair, a text under both, scores.
 * @typedef {import("../types.js").Answer} Answer
 * @typedef {import("../types.js").View} View
 * @typedef {{ours: number | null, theirs: number | null, kind: number, at: number}} Row kind is 2 where a
 *   pair is matched and 1 where it is shared; at is its number, -1 of a latent alone
 */
import { cardPlace } from "../shared/cards.js";
import { focusedIn, h, tokenElement } from "../shared/dom.js";
import { isOfTheHost } from "../shared/keys.js";
import { note } from "../shared/notes.js";
import { paint, short, spoken } from "../shared/scales.js";
import { rendering } from "../shared/view.js";

const SHOWN = 100;
const TITLES = { cosine: "decoder cosine", phi: "co-firing φ" };
const NOTES = {
  cosine: "Cosine of the two decoder rows, from -1 to 1.",
  phi: "Correlation of the two latents' firing over the rows of the corpus, from -1 to 1.",
};
const SHARED =
  "A partner is the most similar latent of the other SAE. Above chance: more similar than 99 % of " +
  "best partners among random directions, or with the rows of one SAE shifted against the other's. " +
  "In brackets 95 % intervals; the share by chance is measured on latents that set no threshold. " +
  "Matched: each is the other's partner. Shared: one is.";

export const render = rendering(async (view) => {
  const [pairs, names] = await Promise.all([view.ask("pairs"), view.ask("names")]);
  if (pairs && names) new Comparison(view, pairs, names);
});

/**
 * The view of the other SAE's cards: its questions have names of their own.
 * @param {View} view @returns {View}
 */
function otherSide(view) {
  return {
    ...view,
    request: (question, args) => view.request(`other_${question}`, args),
    edited: () => undefined,
    choose: () => {},
  };
}

/** @param {HTMLElement} within @param {string} selector */
function focus(within, selector) {
  const found = within.querySelector(selector);
  if (found instanceof HTMLElement) found.focus();
}

class Comparison {
  /** @param {View} view @param {Answer} pairs @param {Answer} names */
  constructor(view, pairs, names) {
    this.view = view;
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
    /** @type {(number | null | undefined)[]} the latents whose cards are shown */
    this.shown = [];
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
    this.heat = h("div", { class: "sl-compare-heat", "aria-live": "polite" });
    this.input = /** @type {HTMLInputElement} */ (
      h("input", {
        class: "sl-box",
        "aria-label": "a text",
        placeholder: "a text to read under both SAEs",
      })
    );
    this.cards = this.build();
    const chosen = () => {
      this.mark();
      this.showCards();
      this.readText();
    };
    view.follow("latent", chosen);
    view.changed("other", chosen);
    view.relabelled(() => this.list());
    this.list();
    this.showCards();
  }

  /** @returns {[number | null, number | null]} */
  get chosen() {
    return [this.view.chosen("latent"), this.view.option("other") ?? null];
  }

  /** @param {number | null} latent @param {number | null} other */
  choose(latent, other) {
    this.view.choose(/** @type {any} */ ({ latent, other }));
    // a page tells nobody of an option
    this.mark();
    this.showCards();
  }

  build() {
    const { view } = this;
    const [ours, theirs] = this.header.names;
    const left = h("section", { class: "sl-compare-side", "aria-label": `latents of ${ours}` });
    const right = h("section", { class: "sl-compare-side", "aria-label": `latents of ${theirs}` });
    const places = [left, right].map((side, i) => {
      const place = h("div", { class: "sl-place" });
      side.append(h("h3", { class: "sl-compare-name" }, h("bdi", {}, this.header.names[i])), place);
      return place;
    });
    view.body.append(
      this.summary(),
      h("div", { class: "sl-fields" }, this.measureChooser(), this.choices, this.box, this.count),
      this.table,
      h("div", { class: "sl-compare-cards" }, left, right),
      this.textPart(),
      this.scorePart(),
    );
    return [cardPlace(view, places[0]), cardPlace(otherSide(view), places[1])];
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

  /** What is shared, beside chance. */
  summary() {
    const { names, shares, reasons } = this.header;
    const row = (/** @type {[string, string, string, number | null]} */ [measure, name, share, threshold]) =>
      h(
        "tr",
        {},
        h("th", { scope: "row" }, TITLES[/** @type {"phi"} */ (measure)] ?? measure),
        h("td", {}, h("bdi", {}, name)),
        h("td", {}, share),
        h("td", { class: "sl-value" }, short(threshold)),
      );
    const head = ["measure", "SAE", "latents with a partner above chance", "chance reaches"];
    return h(
      "div",
      { class: "sl-compare-summary" },
      h("h2", {}, h("bdi", {}, names[0]), " and ", h("bdi", {}, names[1])),
      h(
        "table",
        { class: "sl-compare-shares" },
        h("thead", {}, h("tr", {}, ...head.map((text) => h("th", { scope: "col" }, text)))),
        h("tbody", {}, ...shares.map(row)),
      ),
      ...reasons.map((/** @type {string} */ reason) => h("p", { class: "sl-hint" }, reason)),
      note("this table", SHARED),
    );
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
    const key = (/** @type {Row} */ row) => {
      if (by === "ours" || by === "theirs") return row[by] ?? -1;
      if (by === "kind") return row.kind;
      const value = row.at < 0 ? Number.NaN : this.fields[by][row.at];
      return Number.isNaN(value) ? -2 : value;
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
    const [ours, theirs] = this.chosen.map((latent) => String(latent ?? ""));
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

  showCards() {
    this.chosen.forEach((latent, i) => {
      if (this.shown[i] !== latent) this.cards[i].show(latent);
    });
    this.shown = this.chosen;
  }

  textPart() {
    if (!this.view.live) return h("div", {});
    const form = h("form", { class: "sl-fields" }, this.input, h("button", { type: "submit" }, "read"));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.readText();
    });
    return h(
      "section",
      { "aria-label": "a text under both" },
      h("h4", {}, "A text under both"),
      form,
      this.heat,
    );
  }

  async readText() {
    const text = this.input.value;
    if (!text) return;
    const [ours, theirs] = this.chosen;
    this.heat.setAttribute("aria-busy", "true");
    const answer = await this.view.ask("text", { text, latent: ours ?? -1, other: theirs ?? -1 });
    this.heat.removeAttribute("aria-busy");
    if (!answer) return;
    this.view.say("");
    const sides = ["ours", "theirs"].map((side, i) => {
      const values = /** @type {Float32Array} */ (answer.fields[`${side}_values`]);
      const max = values.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
      const tokens = answer.fields[`${side}_names`].map(
        (/** @type {string | null} */ name, /** @type {number} */ at) => {
          const token = tokenElement(name, { title: spoken(values[at]) }, true);
          paint(token, values[at], max);
          return token;
        },
      );
      const latent = this.chosen[i];
      const what = latent === null ? "strongest latent of each token" : `#${latent}`;
      const silent = max === 0 ? ", which does not fire here" : `, up to ${short(max)}`;
      return h(
        "figure",
        {},
        h("figcaption", { class: "sl-hint" }, h("bdi", {}, this.header.names[i]), ` ${what}${silent}`),
        h("div", { class: "sl-text sl-sample", dir: "ltr" }, ...tokens),
      );
    });
    this.heat.replaceChildren(...sides);
  }

  scorePart() {
    const place = h("div", { "aria-live": "polite" });
    const show = async () => {
      place.replaceChildren(h("p", { class: "sl-hint" }, "measuring…"));
      place.setAttribute("aria-busy", "true");
      const answer = await this.view.ask("scores");
      place.removeAttribute("aria-busy");
      place.replaceChildren(
        ...(answer ? [this.scoreTable(answer.header), button("measure again")] : [button("measure")]),
      );
    };
    const button = (/** @type {string} */ text) =>
      h("button", { type: "button", "data-scores": true, onclick: show }, text);
    if (this.view.live) place.append(button("measure"));
    else
      this.view.request("scores").then(
        (answer) => place.replaceChildren(this.scoreTable(answer.header)),
        () => place.replaceChildren(h("p", { class: "sl-hint" }, "They were not measured for this page.")),
      );
    const note =
      "On the first documents of the first SAE's store, each beside an untrained SAE; 95 % intervals.";
    return h(
      "section",
      { "aria-label": "scores" },
      h("h4", {}, "Scores"),
      h("p", { class: "sl-hint" }, note),
      place,
    );
  }

  /**
   * @param {{rows: [string, string, number, number, number, number][],
   *   of: Record<string, [string, number]>}} told
   */
  scoreTable({ rows, of }) {
    const head = ["score", "SAE", "value", "95 % interval", "untrained"];
    const line = (
      /** @type {[string, string, number, number, number, number]} */ [score, sae, value, low, high, control],
    ) =>
      h(
        "tr",
        {},
        h("th", { scope: "row" }, score),
        h("td", {}, h("bdi", {}, sae)),
        h("td", { class: "sl-value" }, short(value)),
        h("td", { class: "sl-value" }, `${short(low)} to ${short(high)}`),
        h("td", { class: "sl-value" }, short(control)),
      );
    const said = Object.entries(of).map(
      ([name, [hook, n]]) => `${name}: ${hook}, ${n.toLocaleString("en")} rows`,
    );
    return h(
      "figure",
      {},
      h(
        "table",
        { class: "sl-compare-shares" },
        h("thead", {}, h("tr", {}, ...head.map((text) => h("th", { scope: "col" }, text)))),
        h("tbody", {}, ...rows.map(line)),
      ),
      h("figcaption", { class: "sl-hint" }, said.join("; ")),
    );
  }
}
