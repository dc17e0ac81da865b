/**
 * What a generator shows too rarely or too often: latents by their relative difference with intervals, and
 * of the chosen one the real and the generated images that have most of it.
 * @typedef {import("../types.js").Answer} Answer
 * @typedef {import("../types.js").View} View
 * @typedef {{latent: number, flag: number, r: number, low: number, high: number, q: number,
 *   energy: [number, number], fired: [number, number], name: string}} Spot
 * @typedef {[string, number, number]} Told an image's id, the latent's energy in it, bytes of its picture
 */
import { freshId, h, svg } from "../shared/dom.js";
import { addPicture } from "../shared/pictures.js";
import { short, signed } from "../shared/scales.js";
import { reasonOf, rendering } from "../shared/view.js";

const [WIDTH, HEIGHT] = [120, 16];
/** Lines of the list. */
const MOST = 300;
/** @type {Record<string, [string, (spot: Spot) => boolean]>} */
const WAYS = {
  flagged: ["flagged", ({ flag }) => flag !== 0],
  lost: ["shown less", ({ flag }) => flag < 0],
  boosted: ["shown more", ({ flag }) => flag > 0],
  all: ["all", () => true],
};
const SIDES = ["real", "generated"];

export const render = rendering(async (view) => {
  const answer = await view.ask("spots");
  if (!answer) return;
  const shown = new Blindspots(view, answer);
  view.follow("latent", () => shown.choose());
  view.relabelled(() => shown.list());
  view.changed("way", () => shown.list());
  shown.list();
  shown.choose();
});

class Blindspots {
  /** @param {View} view @param {Answer} answer */
  constructor(view, { header, fields }) {
    this.view = view;
    this.header = header;
    /** @type {Spot[]} what is lost first */
    this.spots = Array.from(fields.latents, (/** @type {number} */ latent, /** @type {number} */ i) => ({
      latent,
      flag: fields.flags[i],
      r: fields.relative[i],
      low: fields.interval[2 * i],
      high: fields.interval[2 * i + 1],
      q: fields.q[i],
      energy: [fields.energy[2 * i], fields.energy[2 * i + 1]],
      fired: [fields.fired[2 * i], fields.fired[2 * i + 1]],
      name: fields.names[i],
    }));
    this.asked = 0;
    this.lines = h("ol", {
      class: "sl-spots",
      "aria-label": "latents, those shown least by the generator first",
    });
    this.lines.addEventListener("keydown", (event) => this.step(event));
    this.said = h("p", { class: "sl-hint", "aria-live": "polite" });
    this.beside = h("div", { class: "sl-spot-beside" });
    const id = freshId();
    this.words = /** @type {HTMLInputElement} */ (
      h("input", { id, type: "search", oninput: () => this.list() })
    );
    this.way = /** @type {HTMLSelectElement} */ (
      h(
        "select",
        { "aria-label": "which latents", onchange: () => view.remember({ way: this.way.value }) },
        ...Object.entries(WAYS).map(([value, [text]]) => h("option", { value }, text)),
      )
    );
    const fields_ = h(
      "p",
      { class: "sl-fields" },
      this.way,
      h("label", { for: id }, "called or numbered"),
      this.words,
    );
    const left = h("div", { class: "sl-spot-list" }, fields_, this.said, this.lines);
    view.body.append(
      h("p", {}, h("bdi", {}, header.head)),
      figures(header.figures),
      h("div", { class: "sl-spot-both" }, left, this.beside),
    );
  }

  /** @param {Spot} spot */
  nameOf({ latent, name }) {
    return this.view.edited(latent)?.name ?? name;
  }

  list() {
    const way = this.view.option("way");
    this.way.value = way;
    const wanted = this.words.value.trim().toLowerCase();
    const fits = (/** @type {Spot} */ spot) =>
      WAYS[way][1](spot) && `#${spot.latent} ${this.nameOf(spot)}`.toLowerCase().includes(wanted);
    const found = this.spots.filter(fits);
    // both ends where there are too many
    const some = found.length > MOST ? [...found.slice(0, MOST / 2), ...found.slice(-MOST / 2)] : found;
    const less = found.length > some.length ? `, ${some.length} of either end shown` : "";
    const none = way === "all" || wanted ? "" : " None is flagged: no difference is known from chance.";
    const count = found.length === 1 ? "1 latent" : `${found.length.toLocaleString("en")} latents`;
    this.said.textContent = `${count}${less}.${found.length ? "" : none}`;
    this.lines.replaceChildren(...some.map((spot) => h("li", {}, this.line(spot))));
  }

  /** @param {Spot} spot */
  line(spot) {
    const { latent, r, low, high, q, flag } = spot;
    const name = this.nameOf(spot);
    const chosen = latent === this.view.chosen("latent");
    const told = `relative difference ${signed(r)}, 95 % ${signed(low)} to ${signed(high)}, q ${short(q)}`;
    const attributes = {
      type: "button",
      class: chosen ? "sl-chip sl-chosen" : "sl-chip",
      "aria-pressed": chosen,
      "data-latent": latent,
      title: told,
      onclick: () => this.view.choose({ latent }),
    };
    return h(
      "button",
      attributes,
      h("span", { class: "sl-number" }, `#${latent}`),
      h("bdi", { class: "sl-label" }, name),
      bar(spot),
      h("span", { class: flag ? "sl-value sl-spot-flagged" : "sl-value" }, signed(r)),
    );
  }

  /** Arrows go along the list. @param {KeyboardEvent} event */
  step(event) {
    const by = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (!by) return;
    const buttons = /** @type {HTMLButtonElement[]} */ ([...this.lines.querySelectorAll("button")]);
    const next = buttons[buttons.indexOf(/** @type {any} */ (event.target)) + by];
    if (!next) return;
    event.preventDefault();
    next.focus();
    next.click();
  }

  async choose() {
    const latent = this.view.chosen("latent");
    for (const button of this.lines.querySelectorAll("button")) {
      const chosen = Number(button.dataset.latent) === latent;
      button.classList.toggle("sl-chosen", chosen);
      button.setAttribute("aria-pressed", String(chosen));
    }
    const spot = this.spots.find((each) => each.latent === latent);
    const turn = ++this.asked;
    if (!spot) {
      const text =
        latent === null ? "Choose a latent." : `#${latent} fires in too few images to be compared.`;
      this.beside.replaceChildren(h("p", { class: "sl-hint" }, text));
      return;
    }
    try {
      const answer = await this.view.request("pair", { latent });
      if (turn === this.asked) this.beside.replaceChildren(...this.pair(spot, answer));
    } catch (error) {
      if (turn === this.asked) this.beside.replaceChildren(...this.facts(spot), h("p", {}, reasonOf(error)));
    }
  }

  /** @param {Spot} spot */
  facts(spot) {
    const { latent, flag, r, low, high, q, energy, fired } = spot;
    const called =
      flag < 0
        ? "shown less than in real images"
        : flag > 0
          ? "shown more than in real images"
          : "not flagged";
    const counts = (/** @type {number} */ i) =>
      `${SIDES[i]}: mean energy ${short(energy[i])}, in ${fired[i].toLocaleString("en")} images`;
    return [
      h("h4", {}, h("span", { class: "sl-number" }, `#${latent} `), h("bdi", {}, this.nameOf(spot))),
      h(
        "p",
        {},
        h("strong", {}, called),
        ` at a false-discovery rate of ${short(this.header.fdr)} (q ${short(q)})`,
      ),
      h("p", {}, `relative difference ${signed(r)}, 95 % interval ${signed(low)} to ${signed(high)}`),
      h("p", { class: "sl-hint" }, `${counts(0)}; ${counts(1)}`),
    ];
  }

  /** @param {Spot} spot @param {Answer} answer */
  pair(spot, { header, fields }) {
    let at = 0;
    const columns = header.sides.map((/** @type {Told[]} */ side, /** @type {number} */ i) => {
      const items = side.map(([id, energy, size]) => {
        const place = h("span", { class: "sl-spot-picture" });
        addPicture(place, fields.pictures.subarray(at, at + size), id);
        at += size;
        const words = size ? short(energy) : `${id}: ${short(energy)}`;
        return h(
          "li",
          { title: `${id}: energy ${short(energy)}` },
          place,
          h("bdi", { class: "sl-hint" }, words),
        );
      });
      const title = `${SIDES[i]} images that show it most`;
      const found = items.length
        ? h("ul", { class: "sl-spot-images" }, ...items)
        : h("p", {}, "none shows it");
      return h("section", { "aria-label": title }, h("h5", {}, title), found);
    });
    const asks = "No pictures are at hand: lab.blindspots(result, real, generated) shows them.";
    const without = this.header.pictured ? [] : [h("p", { class: "sl-hint" }, asks)];
    return [...this.facts(spot), h("div", { class: "sl-spot-sides" }, ...columns), ...without];
  }
}

/** What is flagged beside what is flagged where nothing should be. @param {any[]} lines */
function figures(lines) {
  const shown = lines.map(([name, value, low, high, controls, apart]) =>
    h(
      "tr",
      {},
      h("th", { scope: "row" }, name),
      h("td", {}, short(value)),
      h("td", {}, low === null ? "" : `${short(low)} to ${short(high)}`),
      h(
        "td",
        {},
        controls.map((/** @type {any[]} */ [what, control]) => `${what} ${short(control)}`).join(", "),
        apart === false ? h("strong", { class: "sl-spot-fails" }, " not apart") : null,
      ),
    ),
  );
  const heads = ["of the alive latents", "this SAE", "95 % interval", "beside"];
  const head = h("thead", {}, h("tr", {}, ...heads.map((text) => h("th", { scope: "col" }, text))));
  return h("div", { class: "sl-spot-figures" }, h("table", {}, head, h("tbody", {}, ...shown)));
}

/** From -1 to 1 the difference, its interval, and 0. @param {Spot} spot */
function bar({ r, low, high, flag }) {
  /** @param {number} v */
  const px = (v) => 4 + ((v + 1) / 2) * (WIDTH - 8);
  const middle = HEIGHT / 2;
  const kind = flag < 0 ? " sl-spot-lost" : flag > 0 ? " sl-spot-boosted" : "";
  return svg(
    "svg",
    {
      viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
      width: WIDTH,
      height: HEIGHT,
      "aria-hidden": true,
      class: `sl-spot-bar${kind}`,
    },
    svg("path", { d: `M4 ${middle}H${WIDTH - 4}M${px(0)} 2V${HEIGHT - 2}`, stroke: "var(--sl-edge)" }),
    svg("path", { d: `M${px(low)} ${middle}H${px(high)}`, stroke: "currentColor", "stroke-width": 2 }),
    svg("circle", { cx: px(r), cy: middle, r: 3.5, fill: "currentColor" }),
  );
}
