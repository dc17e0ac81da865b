/**
 * What stands above a list of latents: a filter in SQL, which columns it shows, which of them it holds, what
 * is done with these.
 * @typedef {import("../types.js").View} View
 */
import { completing } from "./completing.js";
import { focusedIn, freshId, h } from "./dom.js";
import { marksOf, nameBox } from "./marks.js";
import { reasonOf } from "./view.js";

const HELP =
  "true for the latents that stay, such as: density < 0.01 and 'to check' in tags. Density is a share of " +
  "rows, values are activations. Other tables in brackets: latent in (select latent from tokens where " +
  "token = ' cat' and lift > 10). Nothing can be changed by it.";

/** Words that expressions are made of, asked for once. @param {View} view */
export function knownColumns(view) {
  /** @type {Promise<{name: string, type: string}[]> | null} */
  let known = null;
  return () => {
    known ??= view.request("columns").then(
      ({ header }) =>
        header.columns.map((/** @type {[string, string]} */ [name, type]) => ({
          name,
          type: type.toLowerCase(),
        })),
      () => [],
    );
    return known;
  };
}

/** A fold-out. @param {string} title @param {...(Node | null)} parts */
export function fold(title, ...parts) {
  return h(
    "details",
    { class: "sl-fold" },
    h("summary", {}, title),
    h("div", { class: "sl-folded" }, ...parts),
  );
}

/** Where it is said what is wrong, beside what it is wrong with. */
export function wrongPlace() {
  return h("p", { class: "sl-wrong", role: "alert", id: freshId() });
}

/**
 * A filter. What is wrong with one is said under it, and the list stays as it was.
 * @param {View} view @param {ReturnType<typeof knownColumns>} known
 * @param {(where: string) => Promise<void>} apply fails where it is none
 */
export function filterBar(view, known, apply) {
  const wrong = wrongPlace();
  const input = /** @type {HTMLInputElement} */ (
    h("input", {
      class: "sl-where",
      "aria-label": "filter by SQL",
      "aria-describedby": wrong.id,
      placeholder: "filter, e.g. density < 0.01",
    })
  );
  input.value = view.option("where") ?? "";
  async function run() {
    try {
      await apply(input.value.trim());
      wrong.textContent = "";
    } catch (error) {
      wrong.textContent = reasonOf(error);
    }
    input.setAttribute("aria-invalid", String(wrong.textContent !== ""));
  }
  const place = completing(input, known);
  input.addEventListener("change", run);
  input.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !input.value) return;
    input.value = "";
    run();
    event.preventDefault();
  });
  const help = h("p", { class: "sl-hint", hidden: true }, HELP);
  const ask = h(
    "button",
    {
      type: "button",
      "aria-label": "what a filter is",
      "aria-expanded": "false",
      onclick: () => {
        help.hidden = !help.hidden;
        ask.setAttribute("aria-expanded", String(!help.hidden));
      },
    },
    "?",
  );
  return { input, run, element: h("div", {}, h("div", { class: "sl-tools" }, place, ask), help, wrong) };
}

/**
 * Which columns are shown.
 * @param {ReturnType<typeof knownColumns>} known @param {string[]} own those that need no store
 * @param {boolean} asks whether a store answers
 * @param {() => string[]} shown @param {(columns: string[]) => Promise<void>} show fails for what is none
 */
export function columnsFold(known, own, asks, shown, show) {
  const boxes = h("div", { class: "sl-checks" });
  const wrong = wrongPlace();
  const input = /** @type {HTMLInputElement} */ (
    h("input", {
      class: "sl-where",
      "aria-label": "a column by SQL",
      "aria-describedby": wrong.id,
      placeholder: "any expression, e.g. max / mean",
    })
  );
  /** @param {string[]} columns */
  async function set(columns) {
    try {
      await show(columns);
      wrong.textContent = "";
      return true;
    } catch (error) {
      wrong.textContent = reasonOf(error);
      return false;
    } finally {
      await draw();
    }
  }
  async function draw() {
    const more = asks ? (await known()).map(({ name }) => name) : [];
    const all = new Set([...own, ...more, ...shown()]);
    for (const name of ["latent", "name"]) all.delete(name);
    boxes.replaceChildren(
      ...[...all].map((name) =>
        h(
          "label",
          {},
          h("input", {
            type: "checkbox",
            checked: shown().includes(name),
            onchange: (/** @type {Event} */ event) => {
              const on = /** @type {HTMLInputElement} */ (event.target).checked;
              set(on ? [...shown(), name] : shown().filter((other) => other !== name));
            },
          }),
          h("span", {}, name),
        ),
      ),
    );
  }
  const place = asks ? completing(input, known) : null;
  input.addEventListener("keydown", async (event) => {
    if (event.key !== "Enter" || event.shiftKey) return;
    event.preventDefault();
    const name = input.value.trim();
    if (name && !shown().includes(name) && (await set([...shown(), name]))) input.value = "";
  });
  const element = fold("Columns", boxes, place, wrong);
  element.addEventListener("toggle", () => {
    if (/** @type {HTMLDetailsElement} */ (element).open) draw();
  });
  return element;
}

/**
 * Which latents the list holds: all, those chosen, a list or a tag.
 * @param {View} view
 */
export function setChoice(view) {
  const marks = marksOf(view);
  const select = /** @type {HTMLSelectElement} */ (
    h("select", { "aria-label": "which latents", class: "sl-set" })
  );
  function draw() {
    const { held } = marks;
    const [latents, list] = [view.chosen("latents"), view.chosen("list")];
    const tag = /^tag:/.test(select.value) && same(held?.tags.get(select.value.slice(4)), latents);
    const value = list !== null ? `list:${list}` : latents ? (tag ? select.value : "chosen") : "all";
    /** @param {string} value @param {string} text */
    const option = (value, text) => h("option", { value }, text);
    /** @param {string} title @param {string} kind @param {Map<string, number[]> | undefined} named */
    const group = (title, kind, named) =>
      named?.size
        ? h(
            "optgroup",
            { label: title },
            ...[...named].map(([name, j]) => option(`${kind}:${name}`, `${name} (${j.length})`)),
          )
        : null;
    const parts = [
      option("all", "all latents"),
      latents && value === "chosen" ? option("chosen", `those chosen (${latents.length})`) : null,
      group("lists", "list", held?.lists),
      group("tags", "tag", held?.tags),
    ];
    select.replaceChildren(...parts.filter((part) => part !== null));
    select.value = value;
  }
  select.addEventListener("change", () => {
    const [kind, name] = [
      select.value.slice(0, select.value.indexOf(":")),
      select.value.replace(/^\w+:/, ""),
    ];
    const named = kind === "list" ? marks.held?.lists : marks.held?.tags;
    const latents = select.value.includes(":") ? (named?.get(name) ?? null) : null;
    if (select.value !== "chosen") view.choose({ latents, list: kind === "list" ? name : null });
  });
  marks.listen(draw);
  view.follow("latents", draw);
  view.follow("list", draw);
  draw();
  return select;
}

/** @param {number[] | undefined} a @param {number[] | null} b */
function same(a, b) {
  return Boolean(a && b && a.length === b.length && a.every((j, i) => j === b[i]));
}

/**
 * Put latents into a list or under a tag, or take them out.
 * @param {View} view
 * @param {() => {one: number | null, all: number[]}} latents the chosen one, and those shown
 */
export function marksFold(view, latents) {
  const marks = marksOf(view);
  const said = h("p", { class: "sl-said", role: "status" });
  const wrong = wrongPlace();
  /** @param {string} label @param {[string, string][]} options */
  const choice = (label, options) =>
    /** @type {HTMLSelectElement} */ (
      h("select", { "aria-label": label }, ...options.map(([value, text]) => h("option", { value }, text)))
    );
  const action = choice("what to do", [
    ["add", "add"],
    ["remove", "take out"],
  ]);
  const whose = choice("which latents are meant", [
    ["one", "the chosen one"],
    ["all", "all that are shown"],
  ]);
  const kind = choice("list or tag", [
    ["list", "list"],
    ["tag", "tag"],
  ]);
  const boxes = h("span", {});
  /** @param {string} name */
  async function take(name) {
    const { one, all } = latents();
    const some = whose.value === "all" ? all : one === null ? [] : [one];
    const adding = action.value === "add";
    said.textContent = wrong.textContent = "";
    try {
      await marks.write(/** @type {"list"} */ (kind.value), adding ? "add" : "remove", name, some);
      const count = some.length.toLocaleString("en");
      said.textContent = `${count} ${adding ? "in" : "taken out of"} the ${kind.value} ${name}`;
    } catch (error) {
      wrong.textContent = reasonOf(error);
    }
  }
  const draw = () => {
    const { held } = marks;
    const named = (kind.value === "tag" ? held?.tags : held?.lists) ?? new Map();
    const focused = focusedIn(boxes);
    boxes.replaceChildren(nameBox(kind.value, named, `name of the ${kind.value}`, take));
    if (focused) boxes.querySelector("input")?.focus();
  };
  kind.addEventListener("change", draw);
  marks.listen(draw);
  draw();
  const element = fold(
    "Lists and tags",
    h("div", { class: "sl-fields" }, action, whose, kind, boxes),
    said,
    wrong,
  );
  return {
    element,
    /** Open it for a list or a tag. @param {"list" | "tag"} which */
    open(which) {
      /** @type {HTMLDetailsElement} */ (element).open = true;
      kind.value = which;
      draw();
      boxes.querySelector("input")?.focus();
    },
  };
}

/** The latents that are shown, as a file. @param {View} view */
export function saveFold(view) {
  const wrong = wrongPlace();
  /** @param {string} format */
  const button = (format) =>
    h(
      "button",
      {
        type: "button",
        onclick: async () => {
          try {
            const { header, fields } = await view.request("file", { format });
            save(header.name, new Blob([fields.data], { type: header.type }));
            wrong.textContent = "";
          } catch (error) {
            wrong.textContent = reasonOf(error);
          }
        },
      },
      format.toUpperCase(),
    );
  const note = h("p", { class: "sl-hint" }, "The latents that are shown, with the columns that are.");
  const buttons = h("div", { class: "sl-fields" }, button("csv"), button("json"), button("parquet"));
  return fold("Save", buttons, note, wrong);
}

/** @param {string} name @param {Blob} blob */
function save(name, blob) {
  const url = URL.createObjectURL(blob);
  const link = /** @type {HTMLAnchorElement} */ (h("a", { href: url, download: name }));
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
