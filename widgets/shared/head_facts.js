/**
 * What is known of heads on a text, and what the grid and the tokens show of it.
 * @typedef {import("../types.js").Answer} Answer
 * @typedef {import("../types.js").View} View
 */
import { WHOLE } from "./head_pattern.js";
import { SHARES } from "./head_told.js";
import { short } from "./scales.js";

const INDUCTION = {
  scores: "attention to what followed the same token before, on random tokens written twice",
  duplicate: "attention to the same token before, on random tokens written twice",
  previous: "attention to the position before, on random tokens written twice",
};

/** What parts are, and how they are summed. @type {Record<string, [string, string]>} */
const PARTS = {
  dfa: ["who wrote", "parts of its pre-activation, over all sources"],
  gradient: [
    "what heads are worth to",
    "through all that comes after them, to first order, over all sources",
  ],
};

export class HeadFacts {
  /** @param {View} view @param {Answer} told @param {(at: number) => string} token what a token is called */
  constructor(view, { header, fields }, token) {
    this.view = view;
    this.told = header;
    this.token = token;
    /** @type {Record<string, Float32Array>} what heads' patterns are like on the text */
    this.measures = fields;
    /** @type {number} tokens */
    this.n = fields.names.length;
    /** @type {Record<string, any>} "where", "dfa", "gradient", "shares" of the chosen latent, "pattern"
     * and "top" of the chosen head; none or null while not known */
    this.known = {};
    /** @type {Map<string, Answer>} what heads are worth that were taken out, by latent and token */
    this.effects = new Map();
    /** @type {Map<string, Answer>} whether parts are what happens, the same way */
    this.checks = new Map();
    /** @type {Answer | null} */
    this.induction = null;
    /** @type {Answer | null} what heads do over a corpus */
    this.corpus = null;
    /** @type {Map<number, Answer>} by the length of a prefix */
    this.prefixes = new Map();
    this.mask = false;
    /** what tokens show: "all", "head" or "pattern" */
    this.by = "all";
    /** which of its kinds a colouring shows */
    this.which = "";
  }

  get latent() {
    return /** @type {number | null} */ (this.view.chosen("latent"));
  }
  get colour() {
    return this.view.option("colour") || "attention";
  }
  /** The chosen head among all, -1 for none. */
  get at() {
    const [layer, head] = [this.view.option("layer"), this.view.option("head")];
    const has = layer >= 0 && layer < this.told.layers && head >= 0 && head < this.told.heads;
    return has ? layer * this.told.heads + head : -1;
  }
  get headName() {
    return `${this.view.option("layer")}.${this.view.option("head")}`;
  }
  /** The token that is looked at, -1 for none. */
  get dest() {
    const given = this.view.option("dest") ?? -1;
    return given >= 0 && given < this.n ? given : (this.known.where?.header.dest ?? -1);
  }
  /** What heads and tokens show: parts, or what edges are worth where heads are coloured by that. */
  get parts() {
    return /** @type {Answer | null} */ (
      (this.colour === "gradient" ? this.known.gradient : this.known.dfa) ?? null
    );
  }

  /**
   * Colourings of the grid: title, and the kinds that it has.
   * @returns {[string, string, [string, string][]][]}
   */
  colourings() {
    const { known, told } = this;
    /** @type {[string, string, [string, string][]][]} */
    const found = [];
    if (told.kind && this.latent !== null) {
      found.push(["dfa", "who wrote it (DFA)", []]);
      found.push(["gradient", "what its edges are worth (gradient)", []]);
      const kinds = known.shares?.header.names ?? [];
      found.push(["weights", "its weights", kinds.map((/** @type {string} */ k) => [k, SHARES[k]])]);
      found.push(["ablation", "what is lost without the head", []]);
    }
    found.push([
      "attention",
      "where it looks",
      told.measures.map((/** @type {string[]} */ m) => [m[0], m[1]]),
    ]);
    /** @type {[string, string][]} */
    const over = (this.corpus?.header.measures ?? []).map((/** @type {string[]} */ m) => [m[0], m[1]]);
    found.push(["corpus", "where it looks over a corpus", over]);
    found.push(["induction", "whether it repeats", Object.entries(INDUCTION)]);
    return found;
  }

  /** What the grid shows of heads: values, what they are, and what they stand beside. */
  shown() {
    const { known, told } = this;
    const none = this.none();
    const colour = this.colourings().some(([name]) => name === this.colour) ? this.colour : "attention";
    if (colour === "dfa" || colour === "gradient") {
      const [what, note] = PARTS[colour];
      const { parts } = this;
      return { values: parts ? this.byHead(parts) : none, what: `${what} #${this.latent}`, note };
    }
    if (colour === "weights") {
      const values = known.shares?.fields[this.which] ?? none;
      const writers = values.reduce(
        (/** @type {number} */ k, /** @type {number} */ v) => k + +!Number.isNaN(v),
        0,
      );
      return {
        values,
        what: SHARES[this.which] ?? "",
        note: `of equal ones each is ${short(1 / writers)}; ${told.weighed}`,
      };
    }
    if (colour === "ablation") {
      const held = this.effects.get(this.key());
      const note = "pre-activation of the untouched model less that without the head";
      return {
        values: held?.fields.effects ?? none,
        what: `what #${this.latent} loses without the head`,
        note,
      };
    }
    if (colour === "corpus") {
      const own = this.corpus?.header.measures.find((/** @type {any[]} */ m) => m[0] === this.which);
      if (!this.corpus || !own) return { values: none, what: "", note: "" };
      const { n, corpus } = this.corpus.header;
      const even = own[2] === null ? "" : `of even attention ${short(own[2])}; `;
      const note = `${even}over ${n.toLocaleString("en")} sequences of ${corpus}`;
      return { values: this.corpus.fields[own[0]], what: own[1], note };
    }
    if (colour === "induction") {
      const values = this.induction?.fields[this.which] ?? none;
      const most = this.induction ? Math.max(...this.induction.fields.control) : Number.NaN;
      const note = this.induction ? `a position at random: at most ${short(most)}` : "";
      return { values, what: INDUCTION[/** @type {keyof typeof INDUCTION} */ (this.which)] ?? "", note };
    }
    const own = told.measures.find((/** @type {any[]} */ m) => m[0] === this.which) ?? told.measures[0];
    return { values: this.measures[own[0]], what: own[1], note: `of even attention ${short(own[2])}` };
  }

  /** One value a head, none of them known. */
  none() {
    return new Float32Array(this.told.layers * this.told.heads).fill(Number.NaN);
  }

  /** Of a latent at a token. */
  key() {
    return `${this.latent} ${this.dest}`;
  }

  /** Parts of each head, over the sources that are not left out. @param {Answer} dfa */
  byHead({ header, fields }) {
    const { heads } = this.told;
    const values = this.none();
    header.layers.forEach((/** @type {number} */ layer, /** @type {number} */ i) => {
      for (let head = 0; head < heads; head++) {
        let sum = 0;
        const first = (i * heads + head) * this.n;
        for (let s = this.masked; s < this.n; s++) sum += fields.parts[first + s];
        values[layer * heads + head] = sum;
      }
    });
    return values;
  }

  /** Positions from the left that are left out. */
  get masked() {
    return this.mask ? Math.max(1, this.told.first) : 0;
  }

  /** What came from each token to the one that is looked at. */
  fromEach() {
    const { at, by, known, n } = this;
    const values = new Float32Array(n);
    const { dfa } = known;
    const { parts } = this;
    const heads = this.told.heads;
    if (by === "pattern" || !parts) {
      if (at < 0 || this.dest < 0) return { values, what: "" };
      const row = dfa ? dfa.fields.weights.subarray(at * n, at * n + n) : this.patternRow();
      if (row) for (let s = this.masked; s < n; s++) values[s] = row[s] / WHOLE;
      return { values, what: `attention of head ${this.headName} from ${this.dest}` };
    }
    /** @type {number[]} */
    const layers = parts.header.layers;
    for (let i = 0; i < layers.length * heads; i++) {
      const number = layers[Math.floor(i / heads)] * heads + (i % heads);
      if (by === "head" && number !== at) continue;
      for (let s = this.masked; s < n; s++) values[s] += parts.fields.parts[i * n + s];
    }
    const whose = by === "head" ? `head ${this.headName}` : "all heads";
    const verb = this.colour === "gradient" ? "are worth at" : "moved to";
    return { values, what: `what ${whose} ${verb} ${this.dest}, by source` };
  }

  patternRow() {
    const weights = this.known.pattern?.fields.weights;
    return weights?.subarray(this.dest * this.n, (this.dest + 1) * this.n);
  }
}
