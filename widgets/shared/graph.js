/**
 * An attribution graph as it is held: who leads where, and what pruning keeps. The same sums as in Python
 * (`saelab.analysis.circuits.graphs.AttributionGraph.prune`), so that a page prunes without a kernel.
 * @typedef {import("../types.js").Answer} Answer
 * @typedef {{nodes: Uint8Array, edges: Uint8Array}} Kept which nodes and which edges
 * @typedef {{name: string, nodes: number[], group: boolean}} Unit one node, or several under a name
 */

/** Kinds of nodes, by their number on the wire. */
export const LATENT = 0;
export const ERROR = 1;
export const EMBEDDING = 2;
export const LOGIT = 3;

export class Graph {
  /** @param {Answer} answer */
  constructor({ header, fields }) {
    this.header = header;
    /** @type {string[]} */
    this.ids = fields.ids;
    /** @type {string[]} */
    this.tokens = fields.tokens;
    /** @type {string[]} */
    this.labels = fields.labels;
    /** @type {Uint8Array} */
    this.kind = fields.kind;
    /** @type {Uint16Array} */
    this.hook = fields.hook;
    /** @type {Int16Array} */
    this.layer = fields.layer;
    /** @type {Int32Array} */
    this.index = fields.index;
    /** @type {Int32Array} */
    this.position = fields.position;
    /** @type {Float32Array} */
    this.value = fields.value;
    /** @type {Float64Array} */
    this.influence = fields.influence;
    /** @type {Float64Array} of the logits */
    this.weights = fields.weights;
    /** @type {Uint16Array} of each edge */
    this.source = fields.source;
    /** @type {Uint16Array} */
    this.target = fields.target;
    /** @type {Float32Array} */
    this.weight = fields.weight;
    this.n = this.ids.length;
    /** @type {Map<string, number>} */
    this.at = new Map(this.ids.map((id, i) => [id, i]));
    this.into = byNode(this.target, this.n);
    this.outOf = byNode(this.source, this.n);
    this.rank = this.ranks();
    // edges from the logits down, so that one walk sums all ways
    const from = (/** @type {number} */ e) => this.rank[this.target[e]];
    this.order = Uint32Array.from(this.weight.keys()).sort((a, b) => from(b) - from(a));
  }

  /** Of each node the length of the longest way to it: above that of all that lead to it. */
  ranks() {
    const rank = new Int32Array(this.n);
    const left = Int32Array.from(this.into, (edges) => edges.length);
    const ready = [...left.keys()].filter((i) => !left[i]);
    for (let i = ready.pop(); i !== undefined; i = ready.pop())
      for (const e of this.outOf[i]) {
        const to = this.target[e];
        rank[to] = Math.max(rank[to], rank[i] + 1);
        if (!--left[to]) ready.push(to);
      }
    return rank;
  }

  /** Edges that lead into a node, the largest first. @param {number} node @param {Uint8Array} [kept] */
  incoming(node, kept) {
    return this.sorted(this.into[node], kept);
  }

  /** Edges that lead on from it. @param {number} node @param {Uint8Array} [kept] */
  outgoing(node, kept) {
    return this.sorted(this.outOf[node], kept);
  }

  /** @param {number[]} edges @param {Uint8Array} [kept] */
  sorted(edges, kept) {
    const own = kept ? edges.filter((e) => kept[e]) : [...edges];
    return own.sort((a, b) => Math.abs(this.weight[b]) - Math.abs(this.weight[a]));
  }

  /**
   * The nodes and edges of the most influence.
   * @param {number} node the share of the influence that nodes keep @param {number} edge that edges keep
   * @returns {Kept}
   */
  prune(node, edge) {
    const { n, kind, influence, source, target, weight } = this;
    const least = thresholdOf(influence, node, this.header.total);
    const fixed = (/** @type {number} */ i) => kind[i] === EMBEDDING || kind[i] === LOGIT;
    const nodes = new Uint8Array(n);
    for (let i = 0; i < n; i++) nodes[i] = Number(fixed(i) || influence[i] >= least);
    const edges = new Uint8Array(weight.length);
    for (let e = 0; e < edges.length; e++) edges[e] = Number(nodes[source[e]] && nodes[target[e]]);
    const scores = this.scores(edges);
    const smallest = thresholdOf(scores, edge);
    for (let e = 0; e < edges.length; e++) if (scores[e] < smallest) edges[e] = 0;
    for (let changed = true; changed; ) {
      const [leads, led] = [new Uint8Array(n), new Uint8Array(n)];
      for (let e = 0; e < edges.length; e++) if (edges[e]) leads[source[e]] = led[target[e]] = 1;
      changed = false;
      for (let i = 0; i < n; i++) {
        if (!nodes[i] || ((fixed(i) || leads[i]) && (kind[i] !== LATENT || led[i]))) continue;
        nodes[i] = 0;
        changed = true;
      }
      for (let e = 0; e < edges.length; e++) if (!nodes[source[e]] || !nodes[target[e]]) edges[e] = 0;
    }
    return { nodes, edges };
  }

  /**
   * How much of what goes into the logits comes through each edge, of some edges alone.
   * @param {Uint8Array} edges
   */
  scores(edges) {
    const { n, source, target, weight } = this;
    const whole = new Float64Array(n);
    for (let e = 0; e < edges.length; e++) if (edges[e]) whole[target[e]] += Math.abs(weight[e]);
    const through = Float64Array.from(this.weights);
    const scores = new Float64Array(edges.length);
    for (const e of this.order) {
      if (!edges[e]) continue;
      scores[e] = (Math.abs(weight[e]) / whole[target[e]]) * through[target[e]];
      through[source[e]] += scores[e];
    }
    return scores;
  }

  /**
   * What is pinned, groups as one each.
   * @param {string[]} pinned ids @param {[string, string[]][]} groups @returns {Unit[]}
   */
  units(pinned, groups) {
    const held = (/** @type {string[]} */ ids) =>
      ids.flatMap((id) => (this.at.has(id) ? [/** @type {number} */ (this.at.get(id))] : []));
    const grouped = new Set(groups.flatMap(([, ids]) => ids));
    const alone = pinned.filter((id) => !grouped.has(id));
    return [
      ...groups.map(([name, ids]) => ({ name, nodes: held(ids), group: true })),
      ...held(alone).map((node) => ({ name: this.called(node), nodes: [node], group: false })),
    ].filter(({ nodes }) => nodes.length);
  }

  /**
   * Edges between units, the sums of those of their nodes, the largest first.
   * @param {Unit[]} units
   * @returns {{source: number, target: number, weight: number, n: number}[]} numbers of units
   */
  between(units) {
    /** @type {Map<number, number>} */
    const unit = new Map(units.flatMap(({ nodes }, u) => nodes.map((node) => [node, u])));
    /** @type {Map<number, {source: number, target: number, weight: number, n: number}>} */
    const sums = new Map();
    for (const [node, target] of unit)
      for (const e of this.into[node]) {
        const source = unit.get(this.source[e]);
        if (source === undefined || source === target) continue;
        const key = target * units.length + source;
        const sum = sums.get(key) ?? { source, target, weight: 0, n: 0 };
        sum.weight += this.weight[e];
        sum.n++;
        sums.set(key, sum);
      }
    return [...sums.values()].sort((a, b) => Math.abs(b.weight) - Math.abs(a.weight));
  }

  /** What a node is called where there is little room. @param {number} node */
  called(node) {
    const label = this.labels[node];
    if (this.kind[node] === LOGIT) return label;
    if (this.kind[node] === LATENT) return `#${this.index[node]}${label ? ` ${label}` : ""}`;
    return this.kind[node] === EMBEDDING ? "embedding" : label || "error";
  }
}

/** Edges of each node. @param {Uint16Array} ends @param {number} n */
function byNode(ends, n) {
  /** @type {number[][]} */
  const found = Array.from({ length: n }, () => []);
  ends.forEach((node, e) => {
    found[node].push(e);
  });
  return found;
}

/**
 * The least of the fewest scores that make up a share of their sum.
 * @param {Float64Array} scores @param {number} share @param {number} [sum] where there are others, smaller
 */
export function thresholdOf(scores, share, sum) {
  const ordered = Float64Array.from(scores).sort().reverse();
  const whole = sum ?? ordered.reduce((a, b) => a + b, 0);
  if (!(whole > 0)) return 0;
  let total = 0;
  for (const score of ordered) {
    total += score;
    if (total / whole >= share) return score;
  }
  return ordered[ordered.length - 1];
}
