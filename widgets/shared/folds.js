/**
 * Parts of a card that are asked for when they are unfolded.
 * @typedef {import("../types.js").Answer} Answer
 * @typedef {import("../types.js").Args} Args
 */
import { h, tokenElement, tokenName } from "./dom.js";
import { paint, percent, short, signed } from "./scales.js";
import { reasonOf } from "./view.js";

/**
 * @param {string} name by which it is remembered that it is open @param {string} title
 * @param {string} note what it shows, with units
 * @param {(place: HTMLElement) => void | Promise<void>} fill called once
 * @param {Set<string>} open
 */
export function fold(name, title, note, fill, open) {
  const place = h("div", { class: "sl-fold-body" });
  let filled = false;
  const toggled = async () => {
    const isOpen = details.hasAttribute("open");
    if (isOpen) open.add(name);
    else open.delete(name);
    if (!isOpen || filled) return;
    filled = true;
    place.replaceChildren(h("p", { class: "sl-hint" }, "Asking…"));
    place.setAttribute("aria-busy", "true");
    try {
      await fill(place);
    } catch (error) {
      filled = false;
      place.replaceChildren(h("p", { class: "sl-hint", role: "alert" }, reasonOf(error)));
    } finally {
      place.removeAttribute("aria-busy");
    }
  };
  const details = h(
    "details",
    { class: "sl-fold", "data-fold": name, ontoggle: toggled, open: open.has(name) },
    h("summary", { title: note }, title),
    h("p", { class: "sl-hint" }, note),
    place,
  );
  return details;
}

/**
 * What is near a latent, each beside what chance gives.
 * @param {any} near the header of the answer @param {(latent: number) => void} choose
 */
export function relativesElement(near, choose) {
  /** @param {number} latent */
  const link = (latent) =>
    h("button", { type: "button", class: "sl-number", onclick: () => choose(latent) }, `#${latent}`);
  const chance = short(near.similar_chance);
  const uncontrolled = "; scores as judges gave them, without a control";
  const judged = near.labels.some((/** @type {[string, string, unknown[]]} */ each) => each[2].length);
  const parts = [
    near.similar.length
      ? listed(
          "Similar directions",
          `cosine of decoder rows; random directions reach ${chance} in 1 of 100 cases, ` +
            `the nearest of a latent of this SAE is usually at ${short(near.similar_usual)}`,
          ["latent", "cosine"],
          near.similar.map((/** @type {number[]} */ [j, cosine]) => [
            link(j),
            strong(signed(cosine), cosine > near.similar_chance),
          ]),
        )
      : null,
    near.together.length
      ? listed(
          "Fires with",
          "rows of the sample where both fire, and those expected of independent ones",
          ["latent", "rows", "expected", "Jaccard"],
          near.together.map((/** @type {number[]} */ [j, count, expected, jaccard]) => [
            link(j),
            count.toLocaleString("en"),
            short(expected),
            short(jaccard),
          ]),
        )
      : null,
    near.hints.length ? hintsElement(near, link) : null,
    near.neurons.length
      ? listed(
          "Neurons",
          `the largest has ${percent(near.aligned[0])} of the decoder row's squared norm, the ten largest ` +
            `${percent(near.aligned[1])}; random directions stay below ` +
            `${percent(near.aligned_chance[0])} and ` +
            `${percent(near.aligned_chance[1])} in 99 of 100 cases`,
          ["neuron", "weight"],
          near.neurons
            .slice(0, 5)
            .map((/** @type {number[]} */ [neuron, weight]) => [String(neuron), signed(weight)]),
        )
      : null,
    near.labels.length
      ? listed(
          "Explanations",
          `labels of the store, the newest last${judged ? uncontrolled : ""}`,
          ["label", "source", ...(judged ? ["scores"] : [])],
          near.labels.map((/** @type {[string, string, [string, number][]]} */ [label, source, scores]) => [
            h("bdi", {}, label),
            h("bdi", {}, source),
            ...(judged
              ? [h("bdi", {}, scores.map(([name, value]) => `${name} ${short(value)}`).join(", "))]
              : []),
          ]),
        )
      : null,
    ...near.reasons.map((/** @type {string} */ reason) => h("p", { class: "sl-hint" }, reason)),
  ];
  const shown = parts.filter((part) => part !== null);
  return h(
    "div",
    { class: "sl-near" },
    ...(shown.length ? shown : [h("p", { class: "sl-hint" }, "Nothing.")]),
  );
}

/** @param {any} near @param {(latent: number) => HTMLElement} link */
function hintsElement(near, link) {
  const said = /** @type {Record<string, string>} */ ({
    instead: "fires instead of it",
    together: "fires with it",
    alike: "as chance gives",
  });
  return listed(
    "Same tokens, near direction",
    `overlap of what both fire on (99 of 100 other latents stay below ` +
      `${short(near.overlap_chance)}); rows where ` +
      "both fire, and those that these tokens alone give: fewer is a hint of splitting or absorption",
    ["latent", "overlap", "rows", "expected", ""],
    near.hints.map((/** @type {any[]} */ [j, kind, , overlap, count, expected, spread]) => [
      link(j),
      short(overlap),
      count.toLocaleString("en"),
      `${short(expected)} ± ${short(spread)}`,
      strong(said[kind], kind === "instead"),
    ]),
  );
}

/** @param {string} text @param {boolean} beyond chance */
function strong(text, beyond) {
  return beyond ? h("strong", { title: "beyond chance" }, text) : text;
}

/**
 * @param {string} title @param {string} note @param {string[]} columns
 * @param {(string | Node)[][]} rows
 */
function listed(title, note, columns, rows) {
  return h(
    "section",
    {},
    h("h4", {}, title),
    h("p", { class: "sl-hint" }, note),
    h(
      "table",
      { class: "sl-figures" },
      h("thead", {}, h("tr", {}, ...columns.map((name) => h("th", { scope: "col" }, name)))),
      h("tbody", {}, ...rows.map((row) => h("tr", {}, ...row.map((cell) => h("td", {}, cell))))),
    ),
  );
}

/**
 * A text of one's own, and how strongly the latent fires on it.
 * @param {(text: string) => Promise<Answer>} ask
 * @param {{text: string}} state what was typed last
 */
export function tryElement(ask, state) {
  const box = /** @type {HTMLTextAreaElement} */ (
    h("textarea", {
      rows: 2,
      maxlength: 4000,
      "aria-label": "A text to try",
      placeholder: "Type a text, then Enter",
    })
  );
  box.value = state.text;
  const out = h("div", { class: "sl-tried", "aria-live": "polite" });
  let asked = 0;
  async function run() {
    const mine = ++asked;
    state.text = box.value;
    if (!box.value.trim()) {
      out.replaceChildren();
      return;
    }
    out.setAttribute("aria-busy", "true");
    const start = performance.now();
    try {
      const { fields } = await ask(box.value);
      if (mine === asked) out.replaceChildren(...triedElements(fields, performance.now() - start));
    } catch (error) {
      if (mine === asked) out.replaceChildren(h("p", { class: "sl-hint", role: "alert" }, reasonOf(error)));
    } finally {
      if (mine === asked) out.removeAttribute("aria-busy");
    }
  }
  box.onkeydown = (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    run();
  };
  const button = h("button", { type: "button", onclick: run }, "Try");
  return h("div", { class: "sl-try" }, box, button, out);
}

/** @param {Record<string, any>} fields @param {number} took ms */
function triedElements({ names, values, counted }, took) {
  const max = Math.max(0, ...Array.from(values, (/** @type {number} */ v) => Math.abs(v)));
  const text = h("div", { class: "sl-window", dir: "auto" });
  names.forEach((/** @type {string | null} */ name, /** @type {number} */ i) => {
    const title = values[i] ? `${tokenName(name)}  ${signed(values[i])}` : tokenName(name);
    const element = tokenElement(name, { class: counted[i] ? "" : "sl-aside", title }, true);
    if (values[i]) paint(element, values[i], max);
    text.append(element);
  });
  const fires = Array.from(values).filter((v) => v !== 0).length;
  const said = fires
    ? `fires on ${fires} of ${names.length} positions, strongest ${short(max)}`
    : "does not fire on this text";
  return [text, h("p", { class: "sl-hint" }, `${said}; answered in ${Math.round(took)} ms`)];
}
