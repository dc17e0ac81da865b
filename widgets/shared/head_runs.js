/**
 * What takes passes of the model, and is asked for: edges and heads taken out, random tokens. What comes of
 * it stands beside the colours; a page has what was asked for in the notebook.
 * @typedef {import("../types.js").Answer} Answer
 * @typedef {import("../types.js").Args} Args
 * @typedef {import("../types.js").View} View
 * @typedef {import("./head_facts.js").HeadFacts} HeadFacts
 */
import { h } from "./dom.js";
import { besideLine, prefixChart } from "./head_told.js";
import { redraw } from "./redraw.js";
import { short } from "./scales.js";

const LENGTHS = [1, 2, 3, 5, 9];

export class HeadRuns {
  /** @param {View} view @param {HeadFacts} facts @param {() => void} changed the colours are others */
  constructor(view, facts, changed) {
    this.view = view;
    this.facts = facts;
    this.changed = changed;
    /** which run is awaited: an older one ends */
    this.running = 0;
    this.status = h("p", { class: "sl-hint", role: "status" });
    this.control = h("div", { class: "sl-controls" });
    this.curves = h("div", {});
  }

  /** @param {string} said what is under way, "" for nothing */
  say(said) {
    const stop = h("button", { type: "button", onclick: () => this.stop() }, "stop");
    redraw(this.status, said ? [`${said} `, stop] : []);
  }

  /** Await nothing any more. */
  stop() {
    this.running++;
    this.say("");
  }

  /** What a page holds of the latent at the token: it is asked for nothing else. */
  async held() {
    const { view, facts } = this;
    if (view.live) return;
    const { latent, dest } = facts;
    const key = facts.key();
    /** @param {string} question @param {Args} [args] */
    const ask = async (question, args) => {
      if (!view.holds(question)) return null;
      return view.request(question, args).catch(() => null); // asked ahead of time: it may not be there
    };
    const of = { latent: Number(latent), dest };
    const [check, effects, induction, corpus] = await Promise.all([
      latent === null ? null : ask("check", of),
      latent === null ? null : ask("effects", of),
      facts.induction ?? ask("induction"),
      facts.corpus ?? ask("corpus"),
    ]);
    if (check) facts.checks.set(key, check);
    if (effects) facts.effects.set(key, this.whole(effects));
    facts.induction = induction;
    facts.corpus = corpus;
    if (check || effects || induction || corpus) this.changed();
  }

  /** Effects of the layers before a latent as of all layers. @param {Answer} answer @returns {Answer} */
  whole({ header, fields }) {
    const { heads } = this.facts.told;
    const effects = this.facts.none();
    header.layers.forEach((/** @type {number} */ layer, /** @type {number} */ i) => {
      effects.set(fields.effects.subarray(i * heads, (i + 1) * heads), layer * heads);
    });
    return { header, fields: { effects } };
  }

  /** What the colours stand beside. */
  draw() {
    const { facts, view } = this;
    /** @param {string} name @param {string} title @param {() => void} run */
    const button = (name, title, run) =>
      h("button", { type: "button", title, "data-run": name, onclick: run, disabled: !view.live }, name);
    const known = Boolean(facts.known.dfa);
    /** @type {(Node | string)[]} */
    let shown = [];
    if (["dfa", "gradient"].includes(facts.colour) && known) {
      const check = facts.checks.get(facts.key());
      shown = check
        ? [
            besideLine("Parts and what changes without their edges, Spearman", check.header.agreement),
            besideLine("Their sizes", check.header.sizes),
            besideLine("What edges are worth by gradient, and changes", check.header.foretold),
          ]
        : [
            button("take edges out", "whether parts are what happens, beside what the pattern tells", () =>
              this.check(),
            ),
          ];
    } else if (facts.colour === "ablation" && known) {
      const held = facts.effects.get(facts.key());
      shown = held?.header.agreement
        ? [
            h("p", {}, `A head drawn at random changes ${short(held.header.average)}.`),
            besideLine("DFA and what is lost, Spearman over heads", held.header.agreement),
            besideLine("Their sizes", held.header.sizes),
          ]
        : [button("take each head out", "a pass of the model for each", () => this.ablate())];
    } else if (facts.colour === "induction" && !facts.induction)
      shown = [button("try random tokens", "written twice", () => this.induce())];
    else if (facts.colour === "corpus" && !facts.corpus)
      shown = [button("read the corpus", "one pass over its documents", () => this.read())];
    redraw(this.control, shown);
  }

  async check() {
    const { facts } = this;
    const [mine, key] = [++this.running, facts.key()];
    this.say("taking edges out…");
    const answer = await this.view.ask("check", { latent: Number(facts.latent), dest: facts.dest });
    if (answer) facts.checks.set(key, answer);
    this.over(mine);
  }

  /** Layer by layer, so that what is known is shown. */
  async ablate() {
    const { facts, view } = this;
    const { heads, before } = facts.told;
    const [mine, key] = [++this.running, facts.key()];
    const of = { latent: Number(facts.latent), dest: facts.dest };
    const effects = facts.none();
    for (const [i, layer] of before.entries()) {
      this.say(`taking heads out, ${i} of ${before.length} layers done…`);
      const answer = await view.ask("without", { ...of, layer });
      if (!answer || mine !== this.running) return this.over(mine);
      effects.set(answer.fields.effects, layer * heads);
      facts.effects.set(key, { header: {}, fields: { effects } });
      this.changed();
    }
    const answer = await view.ask("effects", of);
    if (answer) facts.effects.set(key, this.whole(answer));
    this.over(mine);
  }

  async induce() {
    const mine = ++this.running;
    this.say("trying random tokens…");
    this.facts.induction = (await this.view.ask("induction")) ?? this.facts.induction;
    this.over(mine);
  }

  async read() {
    const mine = ++this.running;
    this.say("reading the corpus…");
    this.facts.corpus = (await this.view.ask("corpus")) ?? this.facts.corpus;
    this.over(mine);
  }

  /** A run is over. @param {number} mine */
  over(mine) {
    if (mine !== this.running) return;
    this.say("");
    this.changed();
  }

  /** The curve of the chosen head. */
  drawCurves() {
    const { at, headName, prefixes } = this.facts;
    const hint = at < 0 ? "Choose a head in the grid." : "";
    redraw(this.curves, at >= 0 && prefixes.size ? prefixChart(headName, at, prefixes) : [h("p", {}, hint)]);
  }

  /** Ask for what all heads do, length by length. */
  async loadCurves() {
    const { facts, view } = this;
    this.drawCurves();
    const mine = ++this.running;
    for (const length of LENGTHS) {
      if (facts.prefixes.has(length)) continue;
      this.say(`random tokens with a repeated prefix of ${length}…`);
      const answer = await view.ask("prefix", { length });
      if (!answer || mine !== this.running) break;
      facts.prefixes.set(length, answer);
      this.drawCurves();
    }
    if (mine === this.running) this.say("");
  }
}
