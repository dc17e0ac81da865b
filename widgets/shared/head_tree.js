/**
 * The way back from a latent as a tree that unfolds: each step with its part, what an SAE leaves out, and
 * what its parts sum to. Arrow keys go through it, as in any tree.
 * @typedef {import("../types.js").Answer} Answer
 * @typedef {{kind: string, value: number, layer: number, head: number, position: number, latent: number,
 *   sae: string, hook: string, count: number, called: string, children: number[]}} Step
 */
import { h } from "./dom.js";
import { isOfTheHost } from "./keys.js";
import { short, signed } from "./scales.js";

/** @param {Answer} answer @returns {Step[]} */
export function stepsOf({ header, fields }) {
  /** @type {Step[]} */
  const steps = Array.from(fields.parent, (_, i) => ({
    kind: header.kinds[fields.kind[i]][0],
    value: fields.value[i],
    layer: fields.layer[i],
    head: fields.head[i],
    position: fields.position[i],
    latent: fields.latent[i],
    sae: header.saes[fields.sae[i]] ?? "",
    hook: header.hooks[fields.sae[i]] ?? "",
    count: fields.count[i],
    called: fields.called[i],
    children: [],
  }));
  fields.parent.forEach((/** @type {number} */ parent, /** @type {number} */ i) => {
    if (parent >= 0) steps[parent].children.push(i);
  });
  return steps;
}

/** @param {Step} step @param {(at: number) => string} token */
export function told(step, token) {
  const at = step.position < 0 ? "" : `at ${step.position} «${token(step.position)}»`;
  const words = {
    latent: `latent #${step.latent} of ${step.hook} ${at}`,
    edge: `head ${step.layer}.${step.head} from ${at.slice(3)}`,
    error: `error of ${step.hook} ${at}`,
    mlp: `MLP ${step.layer} ${at}`,
    rest: `${step.count.toLocaleString("en")} smaller parts`,
  }[step.kind];
  return (words ?? `${step.kind} ${at}`).trim();
}

export class HeadTree {
  /**
   * @param {Answer} answer
   * @param {{token: (at: number) => string, act: (step: Step) => void, can: (step: Step) => boolean}} how
   *   act: a step is clicked, where it can be
   */
  constructor(answer, { token, act, can }) {
    this.steps = stepsOf(answer);
    this.token = token;
    this.act = act;
    this.can = can;
    this.most = Math.max(1e-12, ...this.steps.slice(1).map((step) => Math.abs(step.value)));
    const root = this.item(0, 1);
    // its lines are siblings, each of a level, so that a line's name is its own alone
    this.element = h("ul", { role: "tree", class: "sl-tree", "aria-label": "the way back" }, root);
    this.element.addEventListener("click", (event) => this.click(event));
    this.element.addEventListener("keydown", (event) => this.keydown(event));
    root.tabIndex = 0;
    this.unfold(root, true);
  }

  /** @param {number} i @param {number} level */
  item(i, level) {
    const step = this.steps[i];
    const more = step.children.length > 0;
    const meter = h("span", {
      class: step.value < 0 ? "sl-meter sl-negative" : "sl-meter",
      "aria-hidden": true,
      style: { "--sl-share": `${Math.min(100, (100 * Math.abs(step.value)) / this.most)}%` },
    });
    const words = h("bdi", {}, told(step, this.token));
    words.classList.toggle("sl-link", this.can(step));
    const attributes = {
      ...{ role: "treeitem", class: "sl-tree-line", tabindex: -1, style: { "--sl-level": level } },
      ...{ "aria-level": level, "data-step": i, "data-kind": step.kind },
    };
    return h(
      "li",
      more ? { ...attributes, "aria-expanded": false } : attributes,
      h("span", { class: "sl-tree-fold", "aria-hidden": true }, more ? "▸" : ""),
      h("span", { class: "sl-value" }, signed(step.value)),
      meter,
      words,
      step.called ? h("bdi", { class: "sl-label" }, step.called) : null,
      h("small", { class: "sl-tree-sum" }),
    );
  }

  /** @param {HTMLElement} item */
  stepOf(item) {
    return this.steps[Number(item.dataset.step)];
  }

  /** @param {HTMLElement} item */
  levelOf(item) {
    return Number(item.getAttribute("aria-level"));
  }

  /** @param {HTMLElement} item @param {boolean} open */
  unfold(item, open) {
    const step = this.stepOf(item);
    if (!step.children.length) return;
    item.setAttribute("aria-expanded", String(open));
    const [fold, sum] = [".sl-tree-fold", ".sl-tree-sum"].map((name) => item.querySelector(name));
    if (!fold || !sum) return;
    fold.textContent = open ? "▾" : "▸";
    const level = this.levelOf(item);
    for (const each of this.shown().slice(this.shown().indexOf(item) + 1)) {
      if (this.levelOf(each) <= level) break;
      each.remove();
    }
    const total = step.children.reduce((all, i) => all + this.steps[i].value, 0);
    const n = step.children.reduce((all, i) => all + Math.max(1, this.steps[i].count), 0);
    const off = short(Math.abs(total - step.value));
    sum.textContent = open ? `= its ${n.toLocaleString("en")} parts, ${signed(total)}, off by ${off}` : "";
    if (open) item.after(...step.children.map((i) => this.item(i, level + 1)));
  }

  /** Those in sight, in their order. @returns {HTMLElement[]} */
  shown() {
    return [.../** @type {NodeListOf<HTMLElement>} */ (this.element.querySelectorAll("[role=treeitem]"))];
  }

  /** @param {HTMLElement} item */
  focus(item) {
    for (const each of this.shown()) each.tabIndex = each === item ? 0 : -1;
    item.focus();
  }

  /** @param {Event} event */
  click(event) {
    const target = /** @type {Element} */ (event.target);
    const item = target.closest("[role=treeitem]");
    if (!(item instanceof HTMLElement)) return;
    this.focus(item);
    if (target.closest(".sl-link")) this.act(this.stepOf(item));
    else this.unfold(item, item.getAttribute("aria-expanded") === "false");
  }

  /** @param {KeyboardEvent} event */
  keydown(event) {
    const item = /** @type {Element} */ (event.target).closest("[role=treeitem]");
    if (isOfTheHost(event) || !(item instanceof HTMLElement)) return;
    const all = this.shown();
    const at = all.indexOf(item);
    const expanded = item.getAttribute("aria-expanded");
    /** @type {HTMLElement | undefined} */
    let to;
    if (event.key === "ArrowDown") to = all[at + 1];
    else if (event.key === "ArrowUp") to = all[at - 1];
    else if (event.key === "Home") to = all[0];
    else if (event.key === "End") to = all[all.length - 1];
    else if (event.key === "ArrowRight") {
      if (expanded === "false") this.unfold(item, true);
      else if (expanded === "true") to = all[at + 1];
    } else if (event.key === "ArrowLeft") {
      if (expanded === "true") this.unfold(item, false);
      else to = all.slice(0, at).findLast((each) => this.levelOf(each) < this.levelOf(item));
    } else if (event.key === "Enter" || event.key === " ") {
      const step = this.stepOf(item);
      if (this.can(step)) this.act(step);
      else this.unfold(item, expanded === "false");
    } else return;
    event.preventDefault();
    if (to) this.focus(to);
  }
}
