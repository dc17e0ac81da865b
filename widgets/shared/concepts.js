/**
 * A concept as a toggle, its latents as check boxes with why each was chosen, and the curve of its gate.
 * @typedef {import("../types.js").View} View
 * @typedef {{name: string, on: boolean, latents: number[], threshold: number | null}} Erased
 */
import { h } from "./dom.js";
import { rocElement } from "./roc.js";
import { short } from "./scales.js";

/** What is said of each latent: title of the column, what it means, and how it is written. */
const WHY = /** @type {[string, string, (latent: any) => string][]} */ ([
  [
    "in",
    "input score: mean code with the concept less without, in standard deviations",
    (l) => short(l.input_score),
  ],
  ["out", "output score: what steering by it makes likelier, in nats", (l) => short(l.output_score)],
  ["fires", "share of samples with the concept, and without, in which it fires", (l) => fires(l)],
  ["alone", "AUROC of the latent alone on samples held out of the choice", (l) => short(l.held_out)],
]);

/** @param {any} latent */
function fires({ share_positive: yes, share_negative: no }) {
  return `${Math.round(100 * yes)} | ${Math.round(100 * no)} %`;
}

/**
 * @param {View} view
 * @param {Erased} concept changed in place
 * @param {any} told of it, from the answer to "told"
 * @param {{cards: boolean, gate: string, change: () => void, card: (latent: number) => void}} how gate: which
 *   is set; change: something was set; card: show what a latent fires on
 */
export function conceptElement(view, concept, told, { cards, gate, change, card }) {
  const disabled = !view.live;
  const place = h("div", {});
  const state = h("small", {});
  const toggle = /** @type {HTMLInputElement} */ (
    h("input", {
      ...{ type: "checkbox", checked: concept.on, disabled, "data-toggle": concept.name },
      onchange: () => {
        concept.on = toggle.checked;
        draw();
        change();
      },
    })
  );
  let asked = 0;

  /** The gate goes by a probe, whatever latents are on; without any it opens for nothing. */
  async function drawGate() {
    const mine = ++asked;
    if (!concept.on || gate === "constant" || !concept.latents.length) {
      place.replaceChildren();
      return;
    }
    const answer = await view.ask("gate", { concept: concept.name, gate });
    if (!answer || mine !== asked) return;
    const own = (/** @type {number} */ threshold) => {
      concept.threshold = threshold;
      change();
    };
    const curve = answer.header;
    const how = { threshold: concept.threshold, live: view.live, name: `the gate of ${concept.name}` };
    place.replaceChildren(rocElement(curve, { ...how, change: own }));
  }
  function draw() {
    state.textContent = concept.on ? " erased" : " kept";
    drawGate();
  }

  const rows = told.latents.map((/** @type {any} */ latent) => {
    const box = /** @type {HTMLInputElement} */ (
      h("input", {
        ...{ type: "checkbox", disabled, checked: concept.latents.includes(latent.latent) },
        ...{ "aria-label": `edit latent ${latent.latent}`, "data-latent": latent.latent },
        onchange: () => {
          const on = new Set(concept.latents);
          if (box.checked) on.add(latent.latent);
          else on.delete(latent.latent);
          // in the order in which they were chosen
          const order = told.latents.map((/** @type {any} */ l) => l.latent);
          concept.latents = order.filter((/** @type {number} */ j) => on.has(j));
          drawGate();
          change();
        },
      })
    );
    const name = view.edited(latent.latent)?.name ?? latent.name;
    const number = cards
      ? h(
          "button",
          {
            ...{ type: "button", onclick: () => card(latent.latent), class: "sl-number" },
            "aria-label": `examples of latent ${latent.latent}`,
          },
          `#${latent.latent}`,
        )
      : h("span", { class: "sl-number" }, `#${latent.latent}`);
    const pole = latent.pole < 0 ? h("small", {}, " negative pole") : null;
    const cells = WHY.map(([, , write]) => h("td", {}, write(latent)));
    const head = h("th", { scope: "row" }, box, " ", number, " ", h("bdi", {}, name), pole);
    return h("tr", {}, head, ...cells);
  });
  const columns = WHY.map(([title, meaning]) => h("th", { scope: "col", title: meaning }, title));
  const [low, high] = told.auroc.slice(1).map(short);
  const controls = Object.entries(told.controls).map(([name, value]) => `${name} ${short(value)}`);
  const together = `all together, held out: AUROC ${short(told.auroc[0])} [${low}, ${high}]`;
  const { choose, calibrate, measure } = told.parts;
  const [chosen, gated, held] = [choose, calibrate, measure].map((n) => n.join(" + "));
  const parts = `chosen on ${chosen} samples, gate on ${gated}, measured on ${held}`;
  draw();
  return h(
    "section",
    { class: "sl-concept", "data-concept": concept.name, "aria-label": `concept ${concept.name}` },
    h("h2", {}, h("label", {}, toggle, " ", h("bdi", {}, concept.name)), state),
    h("table", {}, h("tr", {}, h("th", { scope: "col" }, "latent"), ...columns), ...rows),
    h("small", {}, [together, ...controls].join("; ")),
    h("small", {}, parts),
    ...told.notes.map((/** @type {string} */ note) => h("small", { class: "sl-note" }, note)),
    place,
  );
}
