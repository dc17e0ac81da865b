/**
 * Attention heads on a text: a grid of all of them, the pattern of one, who wrote a latent, and the way back.
 * @typedef {import("../types.js").Answer} Answer
 * @typedef {import("../types.js").View} View
 * @typedef {import("../shared/head_tree.js").Step} Step
 */
import { cardPlace } from "../shared/cards.js";
import { SampleCodes } from "../shared/codes.js";
import { h } from "../shared/dom.js";
import { HeadExamples } from "../shared/head_examples.js";
import { HeadFacts } from "../shared/head_facts.js";
import { HeadGrid } from "../shared/head_grid.js";
import { HeadPattern } from "../shared/head_pattern.js";
import { HeadRuns } from "../shared/head_runs.js";
import { HeadText } from "../shared/head_text.js";
import { edgeList, largest, latentLists, restTold } from "../shared/head_told.js";
import { HeadTree } from "../shared/head_tree.js";
import { chip } from "../shared/latents.js";
import { OneValue } from "../shared/paints.js";
import { redraw } from "../shared/redraw.js";
import { short, signed } from "../shared/scales.js";
import { rendering } from "../shared/view.js";

/** Edges and latents that are listed. */
const [LISTED, FIRING] = [8, 10];

export const render = rendering(async (view) => {
  const told = await view.ask("told");
  if (!told) return;
  const heads = new Heads(view, told);
  await heads.open();
});

/**
 * The view of another SAE's cards: its questions have names of their own.
 * @param {View} view @param {string} sae @returns {View}
 */
function otherSide(view, sae) {
  return {
    ...view,
    request: (question, args) => view.request(`other_${question}`, { ...args, sae }),
    holds: (question) => view.live && view.holds(`other_${question}`),
    edited: () => undefined,
    choose: () => {},
  };
}

class Heads {
  /** @param {View} view @param {Answer} told */
  constructor(view, told) {
    this.view = view;
    this.text = new HeadText(told.fields.names, (at) => view.remember({ dest: at }));
    this.facts = new HeadFacts(view, told, (at) => this.text.called(at));
    /** @type {SampleCodes | null} */
    this.codes = null;
    /** @type {HeadTree | null} */
    /** of which latent and token the way back was asked for */
    this.treeOf = "";
    /** which latent and token are awaited: answers to older questions are dropped */
    this.asked = 0;
    /** @type {Set<string>} options that were set since they were looked at */
    this.news = new Set();
    const { header } = told;

    this.grid = new HeadGrid(header.layers, header.heads, (layer, head) => this.chooseHead(layer, head));
    this.pattern = new HeadPattern(this.facts.n, (at) => view.remember({ dest: at }));
    view.closing(() => this.pattern.leave());

    this.title = h("div", { class: "sl-heads-title" });
    this.said = h("p", { class: "sl-hint" }, header.said);
    this.firing = h("div", { class: "sl-firing" });
    this.legend = h("div", { class: "sl-legend" });
    this.sourceLegend = h("div", { class: "sl-legend" });
    this.runs = new HeadRuns(view, this.facts, () => this.draw());
    this.examples = new HeadExamples(view, this.facts);
    this.edges = h("div", {});
    this.tops = h("div", { class: "sl-tops" });
    this.way = h("div", {});
    this.place = h("div", { class: "sl-place" });
    this.headTitle = h("h2", {});
    this.colours = h("div", { class: "sl-fields" });
    this.sources = h("div", { class: "sl-fields" });
    this.cards = header.cards ? cardPlace(view, this.place) : null;
    view.body.append(this.layout());
    view.follow("latent", () => this.loadLatent(false));
    for (const option of ["layer", "head", "dest", "colour"])
      view.changed(option, () => this.optionSet(option));
    view.relabelled(() => this.draw());
  }

  layout() {
    const { view } = this;
    const { told } = this.facts;
    const number = /** @type {HTMLInputElement} */ (
      h("input", {
        ...{ type: "number", min: 0, step: 1, placeholder: "number", "aria-label": "number of a latent" },
        onchange: () => number.value !== "" && view.choose({ latent: Number(number.value) }),
      })
    );
    const chooser = told.kind && view.live ? [h("label", {}, "another latent ", number)] : [];
    const fold = this.fold("The way back", "sl-way", this.way, () => this.loadTree());
    const prefix = this.fold("How long a repeated prefix must be", "sl-prefix", this.runs.curves, () =>
      this.runs.loadCurves(),
    );
    const over = this.fold("Over a corpus: its strongest sequences", "sl-over", this.examples.element, () =>
      this.examples.load(),
    );
    const left = h("div", {}, this.colours, this.legend, this.grid.element, this.runs.control);
    const right = h(
      "div",
      { class: "sl-head-panel" },
      this.headTitle,
      this.pattern.element,
      this.tops,
      h("div", { class: "sl-apart-part" }, prefix),
    );
    return h(
      "div",
      { class: "sl-heads" },
      this.title,
      this.said,
      this.sources,
      this.sourceLegend,
      this.text.element,
      h("div", { class: "sl-fields" }, ...chooser),
      this.firing,
      this.edges,
      this.runs.status,
      h("div", { class: "sl-heads-columns" }, left, right),
      over,
      told.kind ? fold : "",
      this.place,
    );
  }

  /** @param {string} name @param {string} kind @param {HTMLElement} within @param {() => void} opened */
  fold(name, kind, within, opened) {
    const element = /** @type {HTMLDetailsElement} */ (
      h("details", { class: `sl-fold ${kind}` }, h("summary", {}, name), within)
    );
    element.addEventListener("toggle", () => element.open && opened());
    return element;
  }

  async open() {
    if (this.facts.told.codes) {
      const answer = await this.view.ask("codes");
      if (answer) this.codes = new SampleCodes(answer);
    }
    await this.loadLatent(true);
    await this.loadHead();
  }

  // ---- what is chosen

  /** @param {boolean} first whether the view has just been opened */
  async loadLatent(first) {
    const { view } = this;
    const { latent, told } = this.facts;
    const mine = ++this.asked;
    this.runs.stop();
    const { pattern, top } = this.facts.known;
    this.facts.known = { pattern, top };
    this.forgetTree();
    if (latent === null || !told.kind) {
      this.draw();
      return;
    }
    if (!first) this.keepDest(latent);
    this.draw(); // what is known: who wrote it may take a while
    const of = { latent };
    const where = await view.ask("where", of);
    if (mine !== this.asked) return;
    this.facts.known.where = where;
    this.draw();
    const [dfa, shares] = where
      ? await Promise.all([view.ask("dfa", { latent, dest: this.facts.dest }), view.ask("shares", of)])
      : [null, null];
    if (mine !== this.asked) return;
    Object.assign(this.facts.known, { dfa, shares });
    this.runs.held();
    if (!first && this.facts.colour === "attention") this.view.remember({ colour: "dfa" });
    this.loadColour();
    this.cards?.show(latent);
    if (this.isOpen(".sl-way")) this.loadTree();
  }

  /** A token that was chosen stays where the latent fires there too. @param {number} latent */
  keepDest(latent) {
    const dest = this.view.option("dest") ?? -1;
    const fires = dest >= 0 && this.codes?.along(latent)?.[dest];
    if (dest >= 0 && !fires) this.view.remember({ dest: -1 });
  }

  async loadDest() {
    const { view } = this;
    const { latent, told } = this.facts;
    const mine = ++this.asked;
    this.runs.stop();
    this.facts.known.dfa = this.facts.known.gradient = null;
    this.forgetTree();
    if (latent !== null && told.kind) {
      const dfa = await view.ask("dfa", { latent, dest: this.facts.dest });
      if (mine !== this.asked) return;
      this.facts.known.dfa = dfa;
      this.runs.held();
      if (this.isOpen(".sl-way")) this.loadTree();
    }
    this.loadColour();
  }

  /** @param {number} layer @param {number} head */
  chooseHead(layer, head) {
    if (this.facts.by === "all") this.facts.by = this.facts.known.dfa ? "head" : "pattern";
    this.view.remember({ layer, head });
  }

  async loadHead() {
    const [layer, head, at] = [this.view.option("layer"), this.view.option("head"), this.facts.at];
    this.facts.known.pattern = this.facts.known.top = null;
    this.draw();
    if (this.isOpen(".sl-over")) this.examples.load();
    if (at < 0) return;
    const [pattern, top] = await Promise.all([
      this.view.ask("pattern", { layer, head }),
      this.view.ask("top", { layer, head }),
    ]);
    if (at !== this.facts.at) return;
    Object.assign(this.facts.known, { pattern, top });
    this.draw();
    if (this.isOpen(".sl-prefix")) this.runs.drawCurves();
  }

  /** An option was set, here or in Python; a layer and its head come in turn. @param {string} option */
  optionSet(option) {
    if (!this.news.size)
      queueMicrotask(() => {
        const { news } = this;
        this.news = new Set();
        if (news.has("dest")) this.loadDest();
        if (news.has("layer") || news.has("head")) this.loadHead();
        if (news.has("colour")) this.loadColour();
      });
    this.news.add(option);
  }

  /** What heads are worth is asked for where they are coloured by it. */
  async loadColour() {
    const { latent, dest, known, told, colour } = this.facts;
    this.draw();
    if (colour !== "gradient" || known.gradient || latent === null || !told.kind) return;
    const mine = this.asked;
    const answer = await this.view.ask("gradient", { latent, dest });
    if (mine !== this.asked) return;
    this.facts.known.gradient = answer;
    this.draw();
  }

  /** @param {string} selector */
  isOpen(selector) {
    return Boolean(/** @type {HTMLDetailsElement | null} */ (this.view.body.querySelector(selector))?.open);
  }

  // ---- drawing

  draw() {
    this.drawTitle();
    this.drawColours();
    this.drawGrid();
    this.drawText();
    this.drawFiring();
    this.drawEdges();
    this.runs.draw();
    this.drawHead();
  }

  drawTitle() {
    const { known, latent, told } = this.facts;
    const { where, dfa } = known;
    const name = latent === null ? "" : (this.view.edited(latent)?.name ?? where?.header.name ?? "");
    /** @type {(Node | string)[]} */
    let shown = ["No latent is chosen: the grid shows where heads look."];
    if (!told.kind) shown = ["The grid shows where heads look."];
    else if (latent !== null) {
      shown = [h("b", {}, `#${latent}`), " ", h("bdi", {}, name)];
      const at = `${this.facts.dest} «${this.facts.dest < 0 ? "" : this.facts.token(this.facts.dest)}»`;
      if (where && !where.header.fires)
        shown.push(` does not fire on this text. What holds it back, at ${at}: `);
      else if (where) shown.push(` at ${at}: `);
      if (dfa) shown.push(`pre-activation ${short(dfa.header.pre)}, code ${short(dfa.header.code)}`);
      else if (where) shown.push("asking who wrote it…");
    }
    this.title.replaceChildren(...shown);
  }

  drawColours() {
    const all = this.facts.colourings();
    const own = all.find(([name]) => name === this.facts.colour) ?? all[all.length - 2];
    const options = all.map(([name, title]) =>
      h("option", { value: name, selected: name === own[0] }, title),
    );
    const colour = h(
      "select",
      {
        "data-set": "colour",
        onchange: (/** @type {any} */ event) => {
          this.facts.which = "";
          this.view.remember({ colour: event.target.value });
        },
      },
      ...options,
    );
    const kinds = own[2];
    if (!kinds.some(([name]) => name === this.facts.which)) this.facts.which = kinds[0]?.[0] ?? "";
    const which = h(
      "select",
      {
        ...{ "data-set": "which", "aria-label": "which" },
        onchange: (/** @type {any} */ event) => {
          this.facts.which = event.target.value;
          this.draw();
        },
      },
      ...kinds.map(([name, title]) =>
        h("option", { value: name, selected: name === this.facts.which }, title),
      ),
    );
    redraw(this.colours, [h("label", {}, "heads by ", colour), ...(kinds.length > 1 ? [which] : [])]);
  }

  drawGrid() {
    const { values, what, note } = this.facts.shown();
    const paint = new OneValue(values, { what, note });
    const unit = this.grid.draw({ values, max: paint.max, spoken: (at) => paint.spoken(at) });
    this.grid.mark(this.facts.at);
    const legend = /** @type {Node[]} */ (paint.legend().filter((part) => part !== null));
    this.legend.replaceChildren(...legend, ...(unit ? [h("span", {}, unit)] : []));
  }

  drawText() {
    const { values, what } = this.facts.fromEach();
    const paint = new OneValue(values, { what });
    this.text.draw(this.facts.dest, values, paint.max, (at) => paint.spoken(at));
    const hint = h("span", {}, "Choose a token to see where what is written there came from.");
    const legend = what ? paint.legend().filter((part) => part !== null) : [hint];
    this.sourceLegend.replaceChildren(.../** @type {Node[]} */ (legend));
    const choices = /** @type {[string, string, boolean][]} */ ([
      ["all", "all heads' parts", Boolean(this.facts.parts)],
      ["head", "the head's parts", Boolean(this.facts.parts) && this.facts.at >= 0],
      ["pattern", "the head's attention", this.facts.at >= 0],
    ]);
    const by = choices.filter(([, , has]) => has);
    const select = h(
      "select",
      {
        "data-set": "by",
        onchange: (/** @type {any} */ event) => {
          this.facts.by = event.target.value;
          this.drawText();
        },
      },
      ...by.map(([value, title]) => h("option", { value, selected: value === this.facts.by }, title)),
    );
    const box = /** @type {HTMLInputElement} */ (
      h("input", {
        ...{ type: "checkbox", checked: this.facts.mask, "data-set": "mask" },
        onchange: () => {
          this.facts.mask = box.checked;
          this.draw();
        },
      })
    );
    const tokens = by.length ? [h("label", {}, "tokens by ", select)] : [];
    redraw(this.sources, [...tokens, h("label", {}, box, " leave out the first position")]);
  }

  /** The latents that fire at the token that is looked at. */
  drawFiring() {
    const { codes, view } = this;
    const { dest } = this.facts;
    const found = codes && dest >= 0 ? (codes.strongest(dest) ?? []).slice(0, FIRING) : [];
    const scale = found.length ? Math.abs(found[0][1]) : 1;
    const items = found.map(([latent, value]) => {
      const label = view.edited(latent)?.label ?? codes?.labelled[latent] ?? "";
      return h("li", {}, chip(view, latent, value, scale, label));
    });
    const list = h("ul", { class: "sl-latents", "aria-label": "latents that fire here" }, ...items);
    redraw(this.firing, items.length ? [h("small", {}, `fire at ${dest}`), list] : []);
  }

  drawEdges() {
    const { parts } = this.facts;
    if (!parts) {
      this.edges.replaceChildren();
      return;
    }
    const { header, fields } = parts;
    const found = largest(fields.parts, header.layers, this.facts.told.heads, this.facts.n, LISTED);
    const list = edgeList(
      found,
      (at) => this.facts.token(at),
      ({ layer, head }) => {
        this.facts.by = "head";
        this.chooseHead(layer, head);
      },
    );
    const moved = fields.parts.reduce((/** @type {number} */ a, /** @type {number} */ b) => a + b, 0);
    const rest = restTold(header.rest ?? []);
    const worth =
      "what each edge is worth through all that comes after it: these do not sum to the pre-activation";
    const together = `together ${short(header.total)} of ${short(header.pre)}`;
    const sum = `heads ${signed(moved)}; ${rest.join("; ")}; ${together}`;
    redraw(this.edges, [list, h("p", { class: "sl-hint" }, header.rest ? sum : worth)]);
  }

  drawHead() {
    const { view } = this;
    const { known, told } = this.facts;
    const has = this.facts.at >= 0;
    this.headTitle.textContent = has ? `Head ${this.facts.headName}` : "Choose a head in the grid.";
    this.pattern.draw(
      known.pattern?.fields.weights ?? null,
      this.facts.headName,
      this.facts.masked,
      this.facts.dest,
    );
    const lists = known.top?.header.lists ?? [];
    const can = (/** @type {string} */ sae) => !sae || (view.live && view.holds("choose"));
    const choose = (/** @type {string} */ sae, /** @type {number} */ latent) =>
      this.chooseLatent(sae, latent);
    const none = "No SAE of this Lab says which latents belong to it.";
    const hint = known.top && !lists.length ? [h("p", { class: "sl-hint" }, none)] : [];
    redraw(this.tops, [...latentLists(lists, told.kind ? this.facts.latent : null, choose, can), ...hint]);
  }

  // ---- the way back

  get treeKey() {
    return `${this.facts.latent} ${this.facts.dest}`;
  }

  /** The way back that is shown stays where it is of what is chosen. */
  forgetTree() {
    if (this.treeOf === this.treeKey) return;
    this.treeOf = "";
    this.way.removeAttribute("aria-busy");
  }

  async loadTree() {
    const { view } = this;
    const { latent, dest } = this.facts;
    const key = this.treeKey;
    if (latent === null || dest < 0 || this.treeOf === key) return;
    this.treeOf = key;
    this.way.setAttribute("aria-busy", "true");
    const answer = await view.ask("tree", { latent, dest, ...this.facts.told.way });
    if (this.treeOf !== key) return;
    this.way.removeAttribute("aria-busy");
    if (!answer) {
      this.treeOf = "";
      this.way.replaceChildren();
      return;
    }
    const { sums, errors, pre } = answer.header;
    const tree = new HeadTree(answer, {
      token: (at) => this.facts.token(at),
      act: (step) => this.act(step, answer.header.dest),
      can: (step) => this.acts(step, answer.header.dest),
    });
    const depths = sums.map((/** @type {number} */ sum, /** @type {number} */ i) => `${i}: ${short(sum)}`);
    const said =
      `pre-activation ${short(pre)}; cut at each depth the parts sum to ${depths.join(", ")}; of them ` +
      `errors of SAEs ${signed(errors[errors.length - 1])}. Patterns, norms and who fires are frozen.`;
    this.way.replaceChildren(h("p", { class: "sl-hint" }, said), tree.element);
  }

  /** Whether a step of the tree leads somewhere. @param {Step} step @param {number} dest */
  acts(step, dest) {
    if (step.kind === "edge") return true;
    if (step.kind !== "latent" || (step.hook === this.facts.told.hook && step.position === dest))
      return false;
    return step.hook === this.facts.told.hook || (this.view.live && Boolean(step.sae));
  }

  /** @param {Step} step @param {number} dest */
  act(step, dest) {
    if (!this.acts(step, dest)) return;
    if (step.kind === "edge") {
      this.facts.by = "head";
      this.chooseHead(step.layer, step.head);
    } else if (step.hook === this.facts.told.hook) {
      this.view.choose({ latent: step.latent });
      this.view.remember({ dest: step.position });
    } else this.chooseLatent(step.sae, step.latent);
  }

  /**
   * Choose a latent, of this SAE or another of the Lab, and show its card.
   * @param {string} sae @param {number} latent
   */
  async chooseLatent(sae, latent) {
    if (!sae) {
      this.view.choose({ latent });
      return;
    }
    if (!(await this.view.ask("choose", { sae, latent }))) return;
    const place = h("div", {});
    this.place.replaceChildren(h("p", { class: "sl-hint" }, `a latent of ${sae}`), place);
    cardPlace(otherSide(this.view, sae), place).show(latent);
  }
}
