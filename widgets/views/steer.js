/**
 * Steering: a slider for each latent, what the model writes then, and what that says beside a control.
 * @typedef {import("../types.js").View} View
 * @typedef {{latent: number, alpha: number, threshold: number}} Knob
 * @typedef {{prompt: string, knobs: Knob[], scale: string, gate: string, positions: number[],
 *   special: boolean, tokens: number, temperature: number, seed: number}} Settings
 */
import { h } from "../shared/dom.js";
import { pulling, sideBySide } from "../shared/generations.js";
import { knobElement } from "../shared/knobs.js";
import { recipePanel } from "../shared/recipe.js";
import { dosePanel, shiftPanel } from "../shared/shifts.js";
import { rendering } from "../shared/view.js";

const SCALES = { max: "× its largest activation", norm: "× the norm of the activation", unit: "raw units" };
const GATES = { constant: "everywhere", input: "in inputs that fire it", token: "on tokens that fire it" };
const MOST_FOUND = 8;
const CONTROL = "random direction";

export const render = rendering(async (view) => {
  const steering = new Steering(view);
  if (!view.live) await steering.openPage();
  await steering.drawKnobs();
  await steering.opening();
});

class Steering {
  /** @param {View} view */
  constructor(view) {
    this.view = view;
    /** @type {Settings} */
    this.settings = JSON.parse(view.option("settings"));
    /** @type {string[]} what a page holds */
    this.kept = [];
    /** @type {string[] | null} */
    this.names = null;
    /** @type {any} */
    this.told = null;
    this.asked = 0;

    this.knobs = h("div", { class: "sl-knobs" });
    this.columns = h("div", { class: "sl-beside" });
    this.status = h("p", { class: "sl-hint", role: "status" });
    this.panels = h("div", { class: "sl-panels" });
    this.found = h("div", { class: "sl-fields", role: "group", "aria-label": "latents found" });
    this.pull = pulling(view, (told) => this.draw(told));
    this.stopper = h("button", { type: "button", hidden: true, onclick: () => this.cancel() }, "stop");
    this.control = /** @type {HTMLInputElement} */ (
      h("input", { type: "checkbox", checked: true, onchange: () => this.told && this.draw(this.told) })
    );
    const side = h("div", {}, ...this.form(), this.knobs, ...this.recipe());
    const tools = h(
      "div",
      { class: "sl-fields" },
      this.status,
      this.stopper,
      h("label", {}, this.control, " control beside it"),
    );
    view.body.append(h("div", { class: "sl-steer" }, side, h("div", {}, tools, this.columns, this.panels)));
    view.follow("latent", () => this.offer());
    this.offer();
  }

  /** The controls that all latents share. */
  form() {
    const { settings, view } = this;
    const off = !view.live;
    /** @param {Partial<Settings>} news */
    const set = (news) => {
      Object.assign(this.settings, news);
      this.drawKnobs();
      this.apply();
    };
    /** @param {string} name @param {Record<string, string>} options @param {"scale" | "gate"} key */
    const choice = (name, options, key) => {
      const each = Object.entries(options).map(([value, label]) =>
        h("option", { value, selected: value === settings[key] }, label),
      );
      const onchange = (/** @type {any} */ event) => set({ [key]: event.target.value });
      return h("label", {}, `${name} `, h("select", { onchange, disabled: off, "data-set": key }, ...each));
    };
    const prompt = h(
      "textarea",
      {
        rows: 2,
        "aria-label": "prompt",
        disabled: off,
        "data-set": "prompt",
        onchange: (/** @type {any} */ event) => set({ prompt: event.target.value }),
      },
      settings.prompt,
    );
    /** @param {string} name @param {"tokens" | "temperature" | "seed"} key @param {object} limits */
    const number = (name, key, limits) => {
      const onchange = (/** @type {any} */ event) => set({ [key]: Number(event.target.value) });
      const own = { type: "number", value: settings[key], disabled: off, onchange, "data-set": key };
      return h("label", {}, `${name} `, h("input", { ...own, ...limits }));
    };
    const positions = h("input", {
      size: 8,
      placeholder: "all",
      disabled: off,
      "data-set": "positions",
      value: settings.positions.join(", "),
      title: "numbers of positions, below 0 from the end of the prompt: 0, -1",
      onchange: (/** @type {any} */ event) => {
        const numbers = event.target.value.split(/[\s,]+/).filter(Boolean);
        if (numbers.every((/** @type {string} */ n) => /^-?\d+$/.test(n)))
          set({ positions: numbers.map(Number) });
        else view.say(`Positions must be whole numbers. Got ${event.target.value}. Write e.g. 0, -1.`);
      },
    });
    const special = h("input", {
      type: "checkbox",
      "data-set": "special",
      checked: settings.special,
      disabled: off,
      onchange: (/** @type {any} */ event) => set({ special: event.target.checked }),
    });
    this.box = /** @type {HTMLInputElement} */ (
      h("input", {
        type: "search",
        "aria-label": "add a latent",
        placeholder: "add a latent: number, name, or a text and Enter",
        disabled: off,
        oninput: () => this.search(false),
        onkeydown: (/** @type {KeyboardEvent} */ event) => event.key === "Enter" && this.search(true),
      })
    );
    return [
      prompt,
      h("div", { class: "sl-fields" }, choice("strength in", SCALES, "scale"), choice("acts", GATES, "gate")),
      h(
        "div",
        { class: "sl-fields" },
        h("label", {}, "positions ", positions),
        h("label", {}, special, " special tokens only"),
      ),
      h(
        "div",
        { class: "sl-fields" },
        number("tokens", "tokens", { min: 1, max: 200, step: 1 }),
        number("temperature", "temperature", { min: 0, max: 5, step: 0.1 }),
        number("seed", "seed", { min: 0, step: 1 }),
      ),
      h("div", { class: "sl-fields" }, this.box),
      this.found,
    ];
  }

  /** The edits as a file, and a file as edits; nothing on a page without a kernel. */
  recipe() {
    const loaded = (/** @type {string} */ settings) => this.show(settings, true);
    return this.view.live ? [recipePanel(this.view, () => this.json(), loaded)] : [];
  }

  json() {
    const { prompt, knobs, scale, gate, positions, special, tokens, temperature, seed } = this.settings;
    return JSON.stringify({ prompt, knobs, scale, gate, positions, special, tokens, temperature, seed });
  }

  /** Show other settings. @param {string} text @param {boolean} [written] whether they are to be computed */
  async show(text, written = false) {
    this.settings = JSON.parse(text);
    for (const field of this.view.body.querySelectorAll("[data-set]")) {
      const value = this.settings[/** @type {keyof Settings} */ (field.getAttribute("data-set"))];
      if (field instanceof HTMLInputElement && typeof value === "boolean") field.checked = value;
      /** @type {any} */ else
        Object.assign(field, { value: Array.isArray(value) ? value.join(", ") : String(value) });
    }
    await this.drawKnobs();
    if (written) await this.apply();
    else await this.answerOf(text);
  }

  /** What came along with the view. */
  async opening() {
    await this.answerOf(this.view.option("settings"));
  }

  /** What is computed of settings, whole. @param {string} settings */
  async answerOf(settings) {
    const mine = ++this.asked;
    const answer = await this.view.ask("written", { settings });
    if (!answer || mine !== this.asked) return;
    this.draw(answer.header);
    await this.measure(mine, settings);
  }

  /** Ask for what a steered text says of the next token. @param {number} mine @param {string} settings */
  async measure(mine, settings) {
    const [shifts, dose] = [
      await this.view.ask("shifts", { settings }),
      mine === this.asked ? await this.view.ask("dose", { settings }) : null,
    ];
    if (mine !== this.asked || !shifts) return;
    this.panels.replaceChildren(...shiftPanel(shifts.header), ...(dose ? dosePanel(dose.header) : []));
  }

  /** Write anew, since something was set. */
  async apply() {
    if (!this.view.live) return this.nearest();
    const [mine, settings] = [++this.asked, this.json()];
    this.stopper.hidden = false;
    this.columns.setAttribute("aria-busy", "true");
    const whole = await this.pull.start({ settings });
    if (mine !== this.asked) return;
    this.stopper.hidden = true;
    this.columns.removeAttribute("aria-busy");
    if (whole) await this.measure(mine, settings);
  }

  cancel() {
    this.asked++;
    this.pull.cancel();
    this.stopper.hidden = true;
    this.columns.removeAttribute("aria-busy");
    this.status.textContent = "stopped";
  }

  /** @param {any} told */
  draw(told) {
    this.told = told;
    const shown = told.columns.filter((/** @type {any} */ c) => this.control.checked || c.name !== CONTROL);
    this.columns.replaceChildren(...sideBySide(shown, this.settings.prompt));
    const n = Math.max(...told.columns.map((/** @type {any} */ c) => c.tokens.length));
    this.status.textContent = told.done ? `${n} tokens` : `writing… ${n} of ${this.settings.tokens} tokens`;
  }

  // ---- latents

  async drawKnobs() {
    const { settings, view } = this;
    const mine = settings.knobs;
    const { gate } = settings;
    const gated = gate !== "constant";
    const facts = await Promise.all(mine.map(({ latent }) => view.ask("knob", { latent })));
    const curves = gated
      ? await Promise.all(mine.map(({ latent }) => view.ask("curve", { latent, gate })))
      : [];
    if (mine !== this.settings.knobs || gate !== this.settings.gate) return;
    const shown = mine.flatMap((knob, i) => {
      const answer = facts[i];
      if (!answer) return [];
      const change = () => this.apply();
      const remove = () => this.setKnobs(this.settings.knobs.filter((each) => each !== knob));
      const name = view.edited(knob.latent)?.name ?? answer.header.name;
      const scale = /** @type {"max" | "norm" | "unit"} */ (settings.scale);
      const curve = curves[i]?.header;
      const how = { scale, gated, curve, live: view.live, name, change, remove };
      return [knobElement(knob, answer.header, how)];
    });
    const hint = h("p", { class: "sl-hint" }, "No latent yet: add one to steer by.");
    this.knobs.replaceChildren(...(shown.length ? shown : [hint]));
  }

  /** @param {Knob[]} knobs */
  async setKnobs(knobs) {
    this.settings.knobs = knobs;
    await this.drawKnobs();
    await this.apply();
  }

  /** @param {number} latent */
  async add(latent) {
    this.view.say("");
    if (this.settings.knobs.some((knob) => knob.latent === latent)) return;
    await this.setKnobs([...this.settings.knobs, { latent, alpha: 1, threshold: 0 }]);
    /** @type {HTMLElement | null} */ (this.knobs.querySelector(`[data-knob="${latent}"] input`))?.focus();
  }

  /** Offer latents that were found, or the one that is chosen elsewhere. @param {number[]} [found] */
  offer(found) {
    if (!this.view.live) return;
    const chosen = this.view.chosen("latent");
    const latents = found ?? (chosen === null ? [] : [chosen]);
    const words = found ? "" : "chosen";
    this.found.replaceChildren(
      ...latents.slice(0, MOST_FOUND).map((latent) => {
        const name = this.names?.[latent] ?? words;
        const onclick = () => this.add(latent);
        return h(
          "button",
          { type: "button", onclick, "data-add": latent },
          `+ #${latent} `,
          h("bdi", {}, name),
        );
      }),
    );
  }

  /** Find latents by number or name, and at last by a text that fires them. @param {boolean} entered */
  async search(entered) {
    const words = this.box?.value.trim() ?? "";
    if (!words) return this.offer();
    if (/^#?\d+$/.test(words)) {
      const latent = Number(words.replace("#", ""));
      if (entered) await this.add(latent);
      else this.offer([latent]);
      return;
    }
    if (!this.names) this.names = (await this.view.ask("names"))?.fields.names ?? [];
    const low = words.toLowerCase();
    const named = (this.names ?? []).flatMap((name, j) => (name.toLowerCase().includes(low) ? [j] : []));
    if (named.length || !entered) return this.offer(named);
    const answer = await this.view.ask("search", { text: words });
    if (answer) this.offer(answer.header.found);
  }

  // ---- a page without a kernel

  async openPage() {
    this.kept = (await this.view.ask("kept"))?.fields.settings ?? [];
    const names = this.kept.map((text) => {
      const { knobs, gate, prompt } = JSON.parse(text);
      const told = knobs.map((/** @type {Knob} */ k) => `#${k.latent} at ${k.alpha}`).join(", ");
      return `${told || "no latent"}, ${gate}: ${prompt.slice(0, 40)}`;
    });
    const options = names.map((name, i) => h("option", { value: i }, name));
    const onchange = (/** @type {any} */ event) => this.show(this.kept[Number(event.target.value)]);
    this.list = /** @type {HTMLSelectElement} */ (h("select", { onchange }, ...options));
    this.list.value = String(Math.max(0, this.kept.indexOf(this.view.option("settings"))));
    this.found.replaceChildren(h("label", {}, "computed: ", this.list));
  }

  /** Of what a page holds, the settings of the same latents nearest to those of the sliders. */
  async nearest() {
    const now = this.settings;
    const alike = this.kept.filter((text) => {
      const other = JSON.parse(text);
      const bare = (/** @type {Settings} */ s) =>
        JSON.stringify({ ...s, knobs: s.knobs.map((k) => k.latent) });
      return bare(other) === bare(now);
    });
    const far = (/** @type {string} */ text) =>
      JSON.parse(text).knobs.reduce(
        (/** @type {number} */ sum, /** @type {Knob} */ k, /** @type {number} */ i) =>
          sum + Math.abs(k.alpha - now.knobs[i].alpha),
        0,
      );
    const best = alike.sort((a, b) => far(a) - far(b))[0];
    if (!best) return;
    if (this.list) this.list.value = String(this.kept.indexOf(best));
    await this.show(best);
  }
}
