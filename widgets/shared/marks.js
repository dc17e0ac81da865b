/**
 * Notes, tags and lists of latents: what a view knows of them, and where they are read and written on a card.
 * @typedef {import("../types.js").View} View
 * @typedef {{notes: Record<string, string>, tags: Map<string, number[]>, lists: Map<string, number[]>}} Held
 */
import { focusedIn, freshId, h } from "./dom.js";
import { reasonOf } from "./view.js";

/** @type {WeakMap<View, ReturnType<typeof made>>} */
const OF = new WeakMap();

/** What a view knows of marks; one for all its parts. @param {View} view */
export function marksOf(view) {
  let marks = OF.get(view);
  if (!marks) {
    marks = made(view);
    OF.set(view, marks);
  }
  return marks;
}

/** @param {View} view */
function made(view) {
  /** @type {Set<() => void>} */
  const listeners = new Set();
  const marks = {
    /** @type {Held | null} null until they came, and where a view has none */
    held: null,
    /** @param {() => void} listener called whenever they are others, until what this gives is called */
    listen(listener) {
      listeners.add(listener);
      return () => void listeners.delete(listener);
    },
    /**
     * Write; what is wrong with it is the caller's to show.
     * @param {"note" | "tag" | "list"} kind @param {"add" | "remove"} action
     * @param {string} name the tag or list, or the text of a note @param {number[]} latents
     */
    async write(kind, action, name, latents) {
      await view.request("mark", { kind, action, name, latents });
      await load();
    },
  };
  async function load() {
    try {
      const written = view.option("written") ?? 0;
      const { header, fields } = await view.request("marks", written ? { written } : {});
      marks.held = {
        notes: fields.notes,
        tags: named(header.tags, fields.tags),
        lists: named(header.lists, fields.lists),
      };
    } catch {
      return; // a page, or a Lab without a store: there are none
    }
    for (const listener of listeners) listener();
  }
  view.changed("written", load);
  load();
  return marks;
}

/** @param {[string, number][]} names @param {Int32Array} latents of all, one after the other */
function named(names, latents) {
  /** @type {Map<string, number[]>} */
  const out = new Map();
  let at = 0;
  for (const [name, n] of names) {
    out.set(name, [...latents.subarray(at, at + n)]);
    at += n;
  }
  return out;
}

/**
 * Note, tags and lists of one latent, which are edited where they stand; `leave` when that goes away.
 * @param {View} view @param {number} latent
 */
export function marksElement(view, latent) {
  const marks = marksOf(view);
  const place = h("div", { class: "sl-marks", role: "group", "aria-label": "notes, tags and lists" });
  const said = h("p", { class: "sl-wrong", role: "alert" });

  /** @param {"note" | "tag" | "list"} kind @param {"add" | "remove"} action @param {string} name */
  async function write(kind, action, name) {
    try {
      await marks.write(kind, action, name, [latent]);
      said.textContent = "";
    } catch (error) {
      said.textContent = reasonOf(error);
    }
  }

  /** @param {Held} held */
  function noteElement(held) {
    const text = held.notes[latent] ?? "";
    if (!view.live) return text ? h("p", { class: "sl-note" }, h("bdi", {}, text)) : null;
    const area = /** @type {HTMLTextAreaElement} */ (
      h("textarea", {
        rows: 1,
        "aria-label": `note of latent ${latent}`,
        placeholder: "a note; kept when you leave it",
        onchange: () => write("note", "add", area.value),
        onkeydown: (/** @type {KeyboardEvent} */ event) => {
          if (event.key !== "Escape") return;
          area.value = text;
          area.blur();
        },
      })
    );
    area.value = text;
    return area;
  }

  /** @param {"tag" | "list"} kind @param {Map<string, number[]>} all */
  function chips(kind, all) {
    const own = [...all].filter(([, latents]) => latents.includes(latent)).map(([name]) => name);
    if (!view.live && !own.length) return null;
    const title = kind === "tag" ? "tags" : "in lists";
    const shown = own.map((name) => {
      const away = kind === "tag" ? `take the tag ${name} away` : `take it out of the list ${name}`;
      const remove = h(
        "button",
        { type: "button", "aria-label": away, title: away, onclick: () => write(kind, "remove", name) },
        "×",
      );
      return h("li", { class: "sl-mark" }, h("bdi", {}, name), view.live ? remove : null);
    });
    if (view.live)
      shown.push(
        h(
          "li",
          {},
          nameBox(kind, all, kind === "tag" ? "add a tag" : "add to a list", (name) =>
            write(kind, "add", name),
          ),
        ),
      );
    return h("div", { class: "sl-marked" }, h("small", {}, title), h("ul", {}, ...shown));
  }

  function draw() {
    const { held } = marks;
    const active = focusedIn(place);
    // what is being written stays
    if (!held || active instanceof HTMLTextAreaElement) return;
    const focused = active?.getAttribute("aria-label");
    const parts = [noteElement(held), chips("tag", held.tags), chips("list", held.lists)];
    const there = parts.filter((part) => part !== null);
    place.replaceChildren(...there, ...(there.length ? [said] : []));
    if (focused) boxOf(place, focused)?.focus();
  }
  const leave = marks.listen(draw);
  draw();
  return { element: place, leave };
}

/** @param {HTMLElement} place @param {string} label */
function boxOf(place, label) {
  return [...place.querySelectorAll("input")].find((box) => box.getAttribute("aria-label") === label);
}

/**
 * A box for the name of a tag or list, with those that there are; Enter takes it.
 * @param {string} kind @param {Map<string, unknown>} all @param {string} label
 * @param {(name: string) => void} take
 */
export function nameBox(kind, all, label, take) {
  const id = freshId();
  const known = [...all.keys()].map((value) => h("option", { value }));
  const box = /** @type {HTMLInputElement} */ (
    h("input", {
      class: "sl-name-box",
      list: id,
      "aria-label": label,
      placeholder: label,
      maxlength: 200,
      "data-kind": kind,
      onkeydown: (/** @type {KeyboardEvent} */ event) => {
        if (event.key !== "Enter" || event.shiftKey) return;
        event.preventDefault();
        const name = box.value.trim();
        box.value = "";
        if (name) take(name);
      },
    })
  );
  return h("span", {}, box, h("datalist", { id }, ...known));
}
