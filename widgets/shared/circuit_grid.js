/**
 * The nodes of a model by layer: which carry a task, and how much of it each does.
 * @typedef {import("../types.js").Answer} Answer
 * @typedef {import("../types.js").View} View
 */
import { SideCards } from "./circuit_cards.js";
import { growthFigure, scoreLine } from "./circuit_scores.js";
import { h } from "./dom.js";
import { isOfTheHost } from "./keys.js";
import { heat, percent, spoken } from "./scales.js";

const KINDS = ["latent", "error", "embedding", "logit", "head", "mlp"];
const [LATENT, HEAD] = [0, 4];

export class CircuitGrid {
  /** @param {View} view @param {Answer} answer */
  constructor(view, { header, fields }) {
    this.view = view;
    this.header = header;
    this.fields = fields;
    this.told = -1;
    /** @type {HTMLElement[]} */
    this.buttons = [];
    this.panel = h("div", { class: "sl-circuit-about", "aria-live": "polite" });
    this.cards = new SideCards(view);
    const short = header.met ? "" : `short of the faithfulness of ${header.target} that was asked for; `;
    const said = `${header.n} of ${header.of} nodes, ${short}in the order of ${header.method}`;
    this.grid = h("div", {
      class: "sl-circuit-grid",
      role: "group",
      "aria-label": "nodes by layer",
      onkeydown: (/** @type {KeyboardEvent} */ event) => this.keydown(event),
    });
    view.body.append(
      h("h2", { class: "sl-circuit-title" }, h("bdi", {}, header.title)),
      h("p", { class: header.met ? "sl-hint" : "sl-doubt" }, said),
      scoreLine(header.scores, true),
      ...header.notes.map((/** @type {string} */ text) => h("p", { class: "sl-doubt" }, text)),
      h("div", { class: "sl-circuit" }, h("div", {}, this.grid, this.panel), growthFigure(header)),
      this.cards.element,
    );
    this.draw();
    view.follow("latent", (latent) => {
      const at = this.latentAt(latent);
      if (at >= 0) this.tell(at);
    });
    const chosen = this.latentAt(view.chosen("latent"));
    this.tell(chosen >= 0 ? chosen : fields.inside.indexOf(1));
  }

  /** The node of a latent of the SAE that is followed; -1 of none. @param {number | null} latent */
  latentAt(latent) {
    const { kind, index, hook } = this.fields;
    if (latent === null) return -1;
    return index.findIndex(
      (/** @type {number} */ j, /** @type {number} */ i) =>
        kind[i] === LATENT && j === latent && this.header.saes[hook[i]] === 0,
    );
  }

  draw() {
    const { kind, layer, share, inside, called } = this.fields;
    const most = share.reduce(
      (/** @type {number} */ m, /** @type {number} */ v) => Math.max(m, Math.abs(v) || 0),
      0,
    );
    this.buttons = called.map((/** @type {string} */ name, /** @type {number} */ i) => {
      const { alpha, negative } = heat(share[i], most);
      return h(
        "button",
        {
          ...{ type: "button", tabindex: i ? -1 : 0, "data-circuit": name, "aria-pressed": false },
          class: `sl-part${inside[i] ? " sl-part-in" : ""}${negative ? " sl-negative" : ""}`,
          style: { "--sl-alpha": `${(alpha * 100).toFixed(1)}%` },
          "aria-label": this.labelOf(i),
          title: this.labelOf(i),
          onclick: () => this.choose(i),
        },
        kind[i] === HEAD ? name : this.shortOf(i),
      );
    });
    const layers = [...new Set(layer)].sort((a, b) => Number(b) - Number(a));
    this.grid.replaceChildren(
      ...layers.map((own) => {
        const here = this.buttons.filter((_, i) => layer[i] === own);
        const name = own === -1 ? "other" : `layer ${own}`;
        return h("div", { class: "sl-circuit-row" }, h("small", {}, name), h("div", {}, ...here));
      }),
    );
  }

  /** @param {number} i */
  shortOf(i) {
    const { kind, index } = this.fields;
    return kind[i] === LATENT ? `#${index[i]}` : KINDS[kind[i]];
  }

  /** @param {number} i */
  labelOf(i) {
    const { kind, called, names, share, inside } = this.fields;
    const effect = Number.isFinite(share[i]) ? `, ${spoken(100 * share[i])} % of the task` : "";
    const what = kind[i] === HEAD ? "head " : "";
    const named = names[i] ? ` ${names[i]}` : "";
    return `${what}${called[i]}${named}${effect}${inside[i] ? ", in the circuit" : ""}`;
  }

  /** @param {number} i */
  choose(i) {
    const { kind, index, hook } = this.fields;
    this.tell(i);
    const sae = this.header.saes[hook[i]];
    if (kind[i] !== LATENT || sae < 0) return;
    if (sae === 0) this.view.choose({ latent: index[i] });
    else if (this.view.live) this.view.ask("choose", { sae, latent: index[i] });
  }

  /** @param {number} i */
  tell(i) {
    if (i < 0 || i === this.told) return;
    this.told = i;
    const { kind, called, share, low, high, inside, names, index, hook } = this.fields;
    this.buttons.forEach((button, k) => {
      button.setAttribute("aria-pressed", String(k === i));
      button.setAttribute("tabindex", k === i ? "0" : "-1");
    });
    const known = Number.isFinite(share[i]);
    const within = `${percentOf(low[i])}, ${percentOf(high[i])}`;
    const effect = known
      ? `${percentOf(share[i])} of the task [${within}], by ${this.header.method}`
      : "its effect was not kept";
    this.panel.replaceChildren(
      h("b", {}, `${kind[i] === HEAD ? "head " : ""}${called[i]} `),
      h("bdi", {}, names[i]),
      h("span", {}, inside[i] ? " is in the circuit: " : " is not in the circuit: "),
      effect,
    );
    this.cards.show(kind[i] === LATENT ? this.header.saes[hook[i]] : -1, index[i]);
  }

  /** @param {KeyboardEvent} event */
  keydown(event) {
    if (isOfTheHost(event)) return;
    const from = this.buttons.indexOf(/** @type {HTMLElement} */ (event.target));
    const rows = [...this.grid.querySelectorAll(".sl-circuit-row")].map((row) => [
      ...row.querySelectorAll("button"),
    ]);
    const row = rows.findIndex((own) => own.includes(/** @type {any} */ (event.target)));
    if (from < 0 || row < 0) return;
    const column = rows[row].indexOf(/** @type {any} */ (event.target));
    const [by, side] = [
      { ArrowUp: -1, ArrowDown: 1 }[event.key] ?? 0,
      { ArrowLeft: -1, ArrowRight: 1 }[event.key] ?? 0,
    ];
    if (!by && !side) return;
    const next = rows[row + by];
    const to = next?.[Math.max(0, Math.min(next.length - 1, column + side))];
    if (to) {
      event.target instanceof HTMLElement && event.target.setAttribute("tabindex", "-1");
      to.setAttribute("tabindex", "0");
      to.focus();
    }
    event.preventDefault();
  }
}

/** @param {number} share of either sign */
function percentOf(share) {
  return share < 0 ? `−${percent(-share)}` : percent(share);
}
