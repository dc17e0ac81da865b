/**
 * What is said of heads: scores beside their controls, the largest edges, latents of a head, curves.
 * @typedef {{value: number, interval: number[], control: number, control_interval: number[], n: number,
 *   what: string, apart: boolean}} Beside
 * @typedef {{layer: number, head: number, source: number, part: number}} Edge
 */
import { curvesChart } from "./curves.js";
import { h } from "./dom.js";
import { percent, short, signed } from "./scales.js";

/** Parts that no head moves, which are told apart. */
const NAMED = 6;

/** Kinds of shares -> what they are. @type {Record<string, string>} */
export const SHARES = {
  decoder: "share of the latent's decoder in the head",
  encoder: "share of its encoder",
  corrected: "share of its encoder, times the size of the head's z on this text",
  reads: "share of what the latent's encoder reads that the head can write",
};

/** @param {string} what @param {Beside} score */
export function besideLine(what, score) {
  const [low, high] = score.interval.map(short);
  const [from, to] = score.control_interval.map(short);
  const fails = score.apart ? "" : " Not apart from its control.";
  const value = h("b", {}, short(score.value));
  return h(
    "p",
    { class: "sl-beside-line" },
    `${what}: `,
    value,
    ` [${low}, ${high}], ${score.what} ${short(score.control)} [${from}, ${to}], n = ${score.n}.${fails}`,
  );
}

/**
 * The largest parts of a latent at a token.
 * @param {Float32Array} parts [layers heads n] @param {number[]} layers @param {number} heads
 * @param {number} n @param {number} most
 * @returns {Edge[]}
 */
export function largest(parts, layers, heads, n, most) {
  const order = Array.from(parts.keys()).filter((i) => parts[i]);
  order.sort((a, b) => Math.abs(parts[b]) - Math.abs(parts[a]));
  return order.slice(0, most).map((i) => ({
    layer: layers[Math.floor(i / (heads * n))],
    head: Math.floor(i / n) % heads,
    source: i % n,
    part: parts[i],
  }));
}

/**
 * What no head moves, in words: the largest, and the others together.
 * @param {[string, number][]} rest
 */
export function restTold(rest) {
  const order = [...rest].sort((a, b) => Math.abs(b[1]) - Math.abs(a[1]));
  const told = order.slice(0, NAMED).map(([what, part]) => `${what} ${signed(part)}`);
  const others = order.slice(NAMED);
  const sum = others.reduce((all, [, part]) => all + part, 0);
  return others.length ? [...told, `${others.length} smaller ${signed(sum)}`] : told;
}

/**
 * @param {Edge[]} edges @param {(at: number) => string} token @param {(edge: Edge) => void} choose
 */
export function edgeList(edges, token, choose) {
  const items = edges.map((edge) => {
    const name = `${edge.layer}.${edge.head}`;
    return h(
      "li",
      {},
      h(
        "button",
        { type: "button", class: "sl-edge", onclick: () => choose(edge) },
        h("span", { class: "sl-value" }, signed(edge.part)),
        h("span", { class: "sl-number" }, name),
        h("bdi", {}, `from ${edge.source} «${token(edge.source)}»`),
      ),
    );
  });
  return h("ol", { class: "sl-edges", "aria-label": "largest parts" }, ...items);
}

/**
 * Latents that belong to a head by their weights.
 * @param {{sae: string, kind: string, equal: number, latents: [number, number, string][]}[]} lists
 * @param {number | null} chosen of this SAE
 * @param {(sae: string, latent: number) => void} choose @param {(sae: string) => boolean} can
 */
export function latentLists(lists, chosen, choose, can) {
  return lists.map(({ sae, kind, equal, latents }) => {
    const items = latents.map(([latent, share, name]) => {
      const inner = [
        h("span", { class: "sl-number" }, `#${latent}`),
        name ? h("bdi", { class: "sl-label", title: name }, name) : null,
        h("span", { class: "sl-value" }, percent(share)),
      ];
      const is = !sae && latent === chosen;
      const onclick = () => choose(sae, latent);
      const attributes = {
        type: "button",
        class: is ? "sl-chip sl-chosen" : "sl-chip",
        "aria-pressed": is,
        onclick,
      };
      return h(
        "li",
        {},
        can(sae) ? h("button", attributes, ...inner) : h("span", { class: "sl-chip" }, ...inner),
      );
    });
    const whose = sae ? `, latents of ${sae}` : "";
    const title = `${SHARES[kind]}${whose} (of equal ones ${percent(equal)})`;
    return h("div", {}, h("h3", {}, title), h("ul", { class: "sl-latents" }, ...items));
  });
}

/**
 * How a head continues repeated prefixes, beside another position.
 * @param {string} name of the head @param {number} at its number among all
 * @param {Map<number, import("../types.js").Answer>} known by length
 */
export function prefixChart(name, at, known) {
  const lengths = [...known.keys()].sort((a, b) => a - b);
  /** @param {string} field */
  const of = (field) => lengths.map((length) => known.get(length)?.fields[field][at] ?? Number.NaN);
  const x = lengths;
  const [scores, low, high, control] = ["scores", "low", "high", "control"].map(of);
  const thin = { dash: "2 3" };
  const chart = curvesChart({
    label: `head ${name}: weight of what followed, by the length of a repeated prefix`,
    curves: [
      { name: "score", x, y: scores, colour: "var(--sl-accent)", marks: true },
      { name: "2.5 %", x, y: low, colour: "var(--sl-accent)", ...thin },
      { name: "97.5 %", x, y: high, colour: "var(--sl-accent)", ...thin },
      { name: "another position", x, y: control, colour: "var(--sl-soft)", dash: "5 4" },
    ],
    x: [1, 9],
    most: 1,
    xTicks: lengths.map((length) => [length, String(length)]),
  });
  const drop = of("drop");
  const worst = drop.reduce((best, value, i) => (value > drop[best] ? i : best), 0);
  const figures = lengths.map((length, i) => `${length}: ${short(scores[i])}`).join(", ");
  const [from, to] = [of("drop_low")[worst], of("drop_high")[worst]].map(short);
  const lost =
    lengths[worst] > 1
      ? ` Largest drop, where the token two before the source is another: ${short(drop[worst])} ` +
        `[${from}, ${to}].`
      : "";
  return [chart, h("p", { class: "sl-hint" }, `by length ${figures}; dashed grey: another position.${lost}`)];
}
