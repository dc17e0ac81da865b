/**
 * Erasing concepts: toggles with their latents and gates, what the model gives then, and what that breaks.
 * @typedef {import("../types.js").View} View
 * @typedef {{name: string, on: boolean, latents: number[], threshold: number | null}} Erased
 * @typedef {{concepts: Erased[], mode: string, tau: number, gate: string, sample: number, tokens: number}}
 *   Settings
 */
import { cardPlace } from "../shared/cards.js";
import { conceptElement } from "../shared/concepts.js";
import { h } from "../shared/dom.js";
import { comparedPanel, groupElement } from "../shared/effects.js";
import { pulling, sideBySide } from "../shared/generations.js";
import { addPicture } from "../shared/pictures.js";
import { recipePanel } from "../shared/recipe.js";
import { percent, short, spoken } from "../shared/scales.js";
import { rendering } from "../shared/view.js";

const MODES = {
  scale: "scale their codes by τ",
  ablate: "ablate them everywhere",
  replace: "detect and replace",
};
const GATES = {
  input: "in inputs that hold it",
  token: "at tokens that hold it",
  constant: "everywhere",
};
/** Where the slider of τ ends. */
const [LEAST, MOST] = [-8, 1];

export const render = rendering(async (view) => {
  const erasing = new Erasing(view);
  await erasing.open();
});

class Erasing {
  /** @param {View} view */
  constructor(view) {
    this.view = view;
    /** @type {Settings} */
    this.settings = JSON.parse(view.option("settings"));
    /** @type {any} */
    this.told = null;
    /** @type {any} the texts, while they are shown */
    this.texts = null;
    /** @type {string[]} what a page holds */
    this.kept = [];
    this.asked = 0;

    this.concepts = h("div", { class: "sl-concepts" });
    this.how = h("div", {});
    this.chooser = h("div", { class: "sl-fields" });
    this.status = h("p", { class: "sl-hint", role: "status" });
    this.stopper = h("button", { type: "button", hidden: true, onclick: () => this.cancel() }, "stop");
    this.input = h("div", { class: "sl-apart" });
    this.columns = h("div", { class: "sl-beside" });
    this.panels = h("div", { class: "sl-panels" });
    this.groups = h("div", { class: "sl-groups" });
    this.place = h("div", { class: "sl-place" });
    this.card = cardPlace(view, this.place);
    this.pull = pulling(view, (told) => this.draw(told));
    /** of which settings figures are pulled: those of others are not drawn any more */
    this.measuring = 0;
    const figures = (/** @type {any} */ told) => this.measuring === this.asked && this.drawFigures(told);
    this.figures = pulling(view, figures, { begin: "measure", atOnce: 1 });

    const load = (/** @type {string} */ text) => this.show(text, true);
    const recipe = view.live ? [recipePanel(view, () => this.json(), load)] : [];
    const tools = h("div", { class: "sl-fields" }, this.status, this.stopper);
    view.body.append(
      h(
        "div",
        { class: "sl-erase" },
        h("div", {}, this.how, this.concepts, ...recipe),
        h("div", {}, this.chooser, tools, this.input, this.columns, this.panels, this.groups, this.place),
      ),
    );
    view.changed("settings", () => this.added());
  }

  async open() {
    if (!(await this.learn(this.settings.concepts.length))) return;
    if (!this.view.live) await this.openPage();
    const mine = this.asked + 1;
    await this.show(this.view.option("settings"), false);
    // figures do not come along: they take longer than a view should wait to be shown
    if (this.view.live) await this.measure(mine);
  }

  /** What is known of the concepts. @param {number} concepts how many there are */
  async learn(concepts) {
    const answer = await this.view.ask("told", { concepts });
    if (answer) this.told = answer.fields.told;
    return answer !== null;
  }

  /** A concept was added in Python: take it in, and leave the others as they are set. */
  async added() {
    const known = this.settings.concepts.map(({ name }) => name);
    const all = /** @type {Settings} */ (JSON.parse(this.view.option("settings")));
    const news = all.concepts.filter(({ name }) => !known.includes(name));
    if (!news.length || !(await this.learn(all.concepts.length))) return;
    this.settings.concepts.push(...news);
    this.drawControls();
    await this.apply();
  }

  json() {
    const { concepts, mode, tau, gate, sample, tokens } = this.settings;
    const each = concepts.map(({ name, on, latents, threshold }) => ({ name, on, latents, threshold }));
    return JSON.stringify({ concepts: each, mode, tau, gate, sample, tokens });
  }

  /** @param {Partial<Settings>} news */
  set(news) {
    Object.assign(this.settings, news);
    this.apply();
  }

  // ---- controls

  drawControls() {
    this.drawHow();
    this.drawConcepts();
    this.drawChooser();
  }

  /** How all concepts are erased. */
  drawHow() {
    const { settings, view } = this;
    const disabled = !view.live;
    /** @param {string} name @param {Record<string, string>} options @param {"mode" | "gate"} key */
    const choice = (name, options, key) => {
      const each = Object.entries(options).map(([value, label]) =>
        h("option", { value, selected: value === settings[key] }, label),
      );
      const onchange = (/** @type {any} */ event) => {
        // thresholds are those of another signal
        if (key === "gate") for (const concept of settings.concepts) concept.threshold = null;
        settings[key] = event.target.value;
        this.drawControls();
        this.focus(`[data-set=${key}]`);
        this.apply();
      };
      return h("label", {}, `${name} `, h("select", { onchange, disabled, "data-set": key }, ...each));
    };
    const box = /** @type {HTMLInputElement} */ (
      h("input", {
        ...{ type: "number", step: "any", value: settings.tau, disabled, "aria-label": "τ as a number" },
        onchange: () => box.value !== "" && tau(Number(box.value)),
      })
    );
    const range = /** @type {HTMLInputElement} */ (
      h("input", {
        ...{ type: "range", min: Math.min(LEAST, settings.tau), max: Math.max(MOST, settings.tau) },
        ...{ step: 0.25, value: settings.tau, disabled, "aria-valuetext": spoken(settings.tau) },
        "aria-label": "τ, what codes are multiplied by",
        oninput: () => tau(Number(range.value)),
      })
    );
    const tau = (/** @type {number} */ value) => {
      range.value = box.value = String(value);
      range.setAttribute("aria-valuetext", spoken(value));
      this.set({ tau: value });
    };
    const scaled = [h("div", { class: "sl-fields sl-tau" }, h("span", {}, "τ"), range, box)];
    this.how.replaceChildren(
      h("div", { class: "sl-fields" }, choice("mode", MODES, "mode")),
      ...(settings.mode === "scale" ? scaled : []),
      ...(settings.mode === "ablate"
        ? [h("p", { class: "sl-hint" }, "Ablation has no gate: it acts on every input.")]
        : [h("div", { class: "sl-fields" }, choice("acts", GATES, "gate"))]),
    );
  }

  drawConcepts() {
    const { settings, told, view } = this;
    this.concepts.replaceChildren(
      ...settings.concepts.map((concept, i) =>
        conceptElement(view, concept, told.concepts[i], {
          cards: told.cards,
          gate: settings.mode === "ablate" ? "constant" : settings.gate,
          change: () => this.apply(),
          card: (latent) => this.showCard(latent),
        }),
      ),
    );
  }

  /** @param {number} latent */
  showCard(latent) {
    this.view.choose({ latent });
    this.card.show(latent);
    this.place.scrollIntoView?.({ block: "nearest" });
  }

  /** Which held-out sample is shown. */
  drawChooser() {
    const { settings, told, view } = this;
    const samples = /** @type {{concept: string, title: string}[]} */ (told.samples);
    const groups = settings.concepts.map(({ name }) =>
      h(
        "optgroup",
        { label: name },
        ...samples.flatMap(({ concept, title }, value) =>
          concept === name ? [h("option", { value, selected: value === settings.sample }, title)] : [],
        ),
      ),
    );
    const to = (/** @type {number} */ sample) => {
      select.value = String(sample);
      this.set({ sample });
    };
    const onchange = () => to(Number(select.value));
    const select = /** @type {HTMLSelectElement} */ (
      h("select", { onchange, disabled: !view.live, "data-set": "sample" }, ...groups)
    );
    const step = (/** @type {number} */ by, /** @type {string} */ sign, /** @type {string} */ name) => {
      const onclick = () => to((this.settings.sample + by + samples.length) % samples.length);
      return h("button", { type: "button", onclick, disabled: !view.live, "aria-label": name }, sign);
    };
    const label = h("label", { class: "sl-held" }, "held out ", select);
    this.chooser.replaceChildren(label, step(-1, "‹", "sample before"), step(1, "›", "next sample"));
    if (this.list) this.chooser.prepend(this.list);
  }

  /** @param {string} selector */
  focus(selector) {
    /** @type {HTMLElement | null} */ (this.view.body.querySelector(selector))?.focus();
  }

  // ---- answers

  /** Show other settings. @param {string} text @param {boolean} anew whether they are to be computed */
  async show(text, anew) {
    this.settings = JSON.parse(text);
    this.drawControls();
    if (anew) return this.apply();
    const mine = ++this.asked;
    if (this.told.generates) {
      const answer = await this.view.ask("written", { settings: text });
      if (!answer || mine !== this.asked) return;
      this.draw(answer.header);
    } else await this.drawInput(mine);
    await this.compare(mine, text);
    if (this.view.live || mine !== this.asked) return;
    const answer = await this.view.ask("measured", { settings: text });
    if (answer && mine === this.asked) this.drawFigures(answer.header);
  }

  /** Write and measure anew, since something was set. */
  async apply() {
    if (!this.view.live) return;
    this.view.say("");
    const [mine, settings] = [++this.asked, this.json()];
    this.busy(true);
    if (this.told.generates) {
      const whole = await this.pull.start({ settings });
      if (mine !== this.asked || !whole) return this.idle(mine);
    } else await this.drawInput(mine);
    await this.compare(mine, settings);
    await this.measure(mine);
  }

  /** What the edits do to the output of the sample. @param {number} mine @param {string} settings */
  async compare(mine, settings) {
    if (mine !== this.asked) return;
    const answer = await this.view.ask("compared", { settings });
    if (answer && mine === this.asked) this.panels.replaceChildren(...comparedPanel(answer.header));
  }

  /** Figures of all held-out samples. @param {number} mine */
  async measure(mine) {
    if (mine !== this.asked) return;
    this.measuring = mine;
    this.busy(true);
    await this.figures.start({ settings: this.json() });
    this.idle(mine);
  }

  /** A sample that is no prompt. @param {number} mine */
  async drawInput(mine) {
    const answer = await this.view.ask("input", { sample: this.settings.sample });
    if (!answer || mine !== this.asked) return;
    const { title, labels } = answer.header;
    this.input.replaceChildren(h("p", {}, h("bdi", {}, title), labels ? ` (${labels})` : ""));
    addPicture(this.input, answer.fields.picture, title);
  }

  /** @param {boolean} busy */
  busy(busy) {
    this.stopper.hidden = !busy;
    for (const place of [this.columns, this.groups]) {
      if (busy) place.setAttribute("aria-busy", "true");
      else place.removeAttribute("aria-busy");
    }
  }

  /** @param {number} mine */
  idle(mine) {
    if (mine === this.asked) this.busy(false);
  }

  cancel() {
    this.asked++;
    this.pull.cancel();
    this.figures.cancel();
    this.busy(false);
    this.status.textContent = "stopped";
  }

  /** @param {any} told */
  draw(told) {
    const title = this.told.samples[this.settings.sample]?.title ?? "";
    this.columns.replaceChildren(...sideBySide(told.columns, title, "h3"));
    const n = Math.max(...told.columns.map((/** @type {any} */ c) => c.tokens.length));
    this.status.textContent = told.done ? `${n} tokens` : `writing… ${n} of ${this.settings.tokens} tokens`;
  }

  /** @param {any} told */
  drawFigures(told) {
    if (!told.done) {
      this.status.textContent = `measuring… ${percent(told.share)}`;
      return;
    }
    const judges = Object.fromEntries(this.told.concepts.map((/** @type {any} */ c) => [c.name, c.judge]));
    const notes = told.left_out.map((/** @type {string} */ why) => h("p", { class: "sl-hint" }, why));
    const hint = h("p", { class: "sl-hint" }, "Nothing is erased: switch a concept on, with a latent.");
    this.groups.replaceChildren(
      ...told.groups.map((/** @type {any} */ group) => groupElement(group, told.arms, judges[group.title])),
      ...(told.groups.length ? notes : [hint]),
    );
    this.status.textContent = "measured";
  }

  // ---- a page without a kernel

  async openPage() {
    this.kept = (await this.view.ask("kept"))?.fields.settings ?? [];
    const names = this.kept.map((text) => {
      const { concepts, mode, tau, gate, sample } = /** @type {Settings} */ (JSON.parse(text));
      const on = concepts.filter((c) => c.on).map((c) => c.name);
      const how = mode === "scale" ? `scale by ${short(tau)}` : mode;
      return `${on.join(", ") || "nothing"}: ${how}, gate ${gate}, sample ${sample}`;
    });
    const options = names.map((name, i) => h("option", { value: i }, name));
    const onchange = (/** @type {any} */ event) => this.show(this.kept[Number(event.target.value)], false);
    const list = /** @type {HTMLSelectElement} */ (h("select", { onchange, "data-set": "kept" }, ...options));
    list.value = String(Math.max(0, this.kept.indexOf(this.view.option("settings"))));
    this.list = h("label", {}, "computed: ", list);
  }
}
