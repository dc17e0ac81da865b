/**
 * What stands beside a map: one latent, how far the picture can be trusted, and its clusters.
 * @typedef {import("../types.js").Answer} Answer
 */
import { h, tokenElement } from "./dom.js";
import { note } from "./notes.js";
import { percent, short } from "./scales.js";

/** @type {Record<string, string>} */
export const METHODS = { pca: "PCA", umap: "UMAP", tsne: "t-SNE" };
/** @type {Record<string, string>} */
export const BY = { decoder: "decoder direction", cofiring: "firing together", tokens: "what fires them" };
/** @type {Record<string, string>} */
const PICTURES = { ...METHODS, random: "random projection" };
/** @type {Record<string, string>} */
const MEASURES = { trustworthiness: "trust", continuity: "continuity", kept: "kept" };
const TRUST =
  "Near in the picture is not near in the space. Trust: 1 less what is near in the picture and not in the " +
  "space. Continuity: the reverse. Kept: the share of the 10 nearest latents of the whole space that are " +
  "the 10 nearest in the picture. In brackets: the 95 % bootstrap interval over latents. PCA and a random " +
  "projection are controls: a picture that keeps no more than they do shows little.";
const NEAR =
  "Cosine in the whole space that the map is of, where the picture is a shadow. Control: the mean of the " +
  "largest cosine that random directions have with any latent; nearness below it says nothing.";

/**
 * @param {{latent: number, name: string, cluster: string, place: boolean, dead: boolean,
 *   value: string}} known
 * @param {any} about header of the answer; null while it is asked for
 * @param {(latent: number) => void} choose
 */
export function aboutPanel({ latent, name, cluster, place, dead, value }, about, choose) {
  const facts = [cluster && fact("cluster", cluster), value && fact("colour", value)];
  if (about?.count !== undefined)
    facts.push(
      fact("fires on", percent(about.density)),
      fact("rows", short(about.count)),
      fact("max", short(about.max)),
    );
  if (!place) facts.push(fact("place", "none: it has no vector of this kind"));
  const head = h(
    "h3",
    {},
    h("span", { class: "sl-number" }, `#${latent}`),
    " ",
    h("bdi", {}, name || (dead ? "never fires" : "")),
  );
  const parts = [head, h("dl", { class: "sl-stats" }, ...facts.filter((f) => f instanceof Node))];
  if (!about) return [...parts, h("p", { class: "sl-hint" }, "…")];
  if (about.tokens.length) parts.push(tokenTable(about.tokens));
  if (about.neighbours) parts.push(neighbourList(about, choose));
  return parts;
}

/** @param {string} name @param {string} value */
function fact(name, value) {
  return h("div", {}, h("dt", {}, name), h("dd", {}, h("bdi", {}, value)));
}

/** @param {[string, number, number | null][]} tokens */
function tokenTable(tokens) {
  const head = ["fires on", "rows", "lift"].map((name) => h("th", { scope: "col" }, name));
  const lines = tokens.map(([token, count, lift]) =>
    h(
      "tr",
      {},
      h("td", {}, tokenElement(token)),
      h("td", {}, count.toLocaleString("en")),
      h("td", {}, `× ${short(lift)}`),
    ),
  );
  return h("table", {}, h("thead", {}, h("tr", {}, ...head)), h("tbody", {}, ...lines));
}

/** @param {any} about @param {(latent: number) => void} choose */
function neighbourList({ neighbours, control }, choose) {
  const items = neighbours.map((/** @type {[number, number, string]} */ [latent, cosine, name]) =>
    h(
      "li",
      {},
      h(
        "button",
        { type: "button", "data-near": latent, onclick: () => choose(latent) },
        h("span", {}, `#${latent}`),
        " ",
        h("bdi", {}, name),
      ),
      h("span", { class: "sl-value" }, short(cosine)),
    ),
  );
  const title = h("h4", {}, "Nearest in the whole space, cosine");
  const none = h("li", { class: "sl-hint" }, "none: it has no vector of this kind");
  return h(
    "section",
    {},
    h("div", { class: "sl-map-head" }, title, note("nearest", NEAR)),
    h("ol", { class: "sl-map-near" }, ...(items.length ? items : [none])),
    h("p", { class: "sl-hint" }, `control, random directions: ${short(control)}`),
  );
}

/** How far to trust the picture, beside its controls. @param {any} header of the points */
export function verdictPanel({ verdict, trusted, controls }) {
  /** @type {Map<string, string[]>} */
  const rows = new Map();
  for (const [picture, , value, low, high] of controls)
    rows.set(picture, [...(rows.get(picture) ?? []), `${short(value)} [${short(low)}, ${short(high)}]`]);
  const head = ["", ...Object.values(MEASURES)].map((name) =>
    name ? h("th", { scope: "col" }, name) : h("td", {}),
  );
  const lines = [...rows].map(([picture, cells]) =>
    h("tr", {}, h("th", { scope: "row" }, PICTURES[picture]), ...cells.map((cell) => h("td", {}, cell))),
  );
  const text = h("p", { class: trusted ? "" : "sl-doubt" }, verdict);
  return h(
    "section",
    { class: "sl-map-verdict", "aria-label": "how far to trust the picture" },
    h("div", { class: "sl-map-head" }, text, note("trust", TRUST)),
    h(
      "div",
      { class: "sl-map-wide" },
      h("table", {}, h("thead", {}, h("tr", {}, ...head)), h("tbody", {}, ...lines)),
    ),
  );
}

/**
 * The clusters as a list, each of which chooses its latents.
 * @param {any} header @param {(cluster: number) => void} choose
 */
export function clusterList({ clusters }, choose) {
  const items = clusters.map((/** @type {[string, number]} */ [name, count], /** @type {number} */ i) =>
    h(
      "li",
      {},
      h(
        "button",
        { type: "button", "data-cluster": i, onclick: () => choose(i) },
        h("bdi", {}, name || "–"),
        ` ${count.toLocaleString("en")}`,
      ),
    ),
  );
  const title = `${clusters.length} clusters: names, latents; a click chooses them`;
  return h("details", {}, h("summary", {}, title), h("ol", { class: "sl-map-clusters" }, ...items));
}

/** How far a map in the making is. @param {any} job @param {string} method @param {() => void} cancel */
export function jobPanel({ what, share, seconds }, method, cancel) {
  const percentage = share === null ? "" : ` ${Math.round(100 * share)} %`;
  const told = `${what}${percentage}, ${Math.round(seconds)} s; PCA until then`;
  const bar = h("progress", {
    max: 1,
    "aria-label": `${METHODS[method]}: ${what}`,
    ...(share === null ? {} : { value: share }),
  });
  return [
    bar,
    h("span", {}, `${METHODS[method]} is being made: ${told}`),
    h("button", { type: "button", onclick: cancel }, "cancel"),
  ];
}
