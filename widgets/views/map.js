/**
 * A map of all latents: moved and encircled without asking the kernel, which is asked only who is near a
 * latent in the whole space.
 * @typedef {import("../types.js").Answer} Answer
 * @typedef {import("../types.js").View} View
 * @typedef {import("../shared/map_colours.js").Column} Column
 */
import { Cloud } from "../shared/cloud.js";
import { NOWHERE } from "../shared/cloud_index.js";
import { DIM } from "../shared/cloud_paint.js";
import { isDark, watchTheme } from "../shared/dark.js";
import { h } from "../shared/dom.js";
import { handle } from "../shared/hands.js";
import { isOfTheHost } from "../shared/keys.js";
import { legend, NONE, paletteOf, sizesOf, tonesOf, valueText } from "../shared/map_colours.js";
import { aboutPanel, clusterList, jobPanel, verdictPanel } from "../shared/map_panel.js";
import { layOut } from "../shared/map_tools.js";
import { reasonOf, rendering } from "../shared/view.js";

const HUES = 8;
/** Latents whose names are fetched, for the hint at the pointer. */
const NAMED = 262_144;
const POLL_MS = 700;
const ABOUT_MS = 80;
const FIND_MS = 200;
const KEPT = 500;
/** Rings about what a search found, at most. */
const RINGS = 200;

export const render = rendering(async (view) => {
  const map = new MapOfLatents(view);
  view.closing(() => map.close());
  const columns = ["colour", "size"].map((role) => map.recolour(role, view.option(role)));
  await map.load(view.option("by"), view.option("method"));
  await Promise.all(columns);
});

class MapOfLatents {
  /** @param {View} view */
  constructor(view) {
    this.view = view;
    this.cloud = new Cloud(view.option("engine"));
    /** @type {Answer | null} */
    this.points = null;
    /** @type {string[]} */
    this.names = [];
    /** @type {Record<string, Column | null>} */
    this.columns = { colour: null, size: null };
    this.hovered = -1;
    /** @type {Int32Array | null} what a search found */
    this.found = null;
    /** @type {Map<string, any>} headers of answers about latents */
    this.about = new Map();
    this.loads = 0;
    this.closed = false;
    /** @type {import("../shared/hands.js").Mode} */
    this.mode = "pan";
    /** @type {Record<string, any>} */
    this.clocks = {};
    this.at = layOut({
      live: view.live,
      columns: Object.fromEntries(view.option("columns") ?? []),
      now: { colour: view.option("colour"), size: view.option("size") },
      picture: this.cloud.element,
      search: () => this.later("find", FIND_MS, () => this.find()),
      searchKey: (event) => this.boxKey(event),
      load: () => this.load(this.at.by.value, this.at.method.value),
      recolour: (role, sql) => this.recolour(role, sql),
      mode: (mode) => {
        this.mode = mode;
      },
      enlarge: (by) => this.cloud.enlarge(by),
      home: () => this.cloud.home(),
    });
    view.body.append(...this.at.rows);
    handle(this.cloud, this.at.frame, {
      mode: () => this.mode,
      here: () => (this.hovered >= 0 ? this.hovered : (view.chosen("latent") ?? -1)),
      hover: (latent) => this.hover(latent),
      choose: (latent) => view.choose({ latent }),
      enclose: (latents) => view.choose({ latents: latents.length ? latents : null }),
      escape: () => this.letGo(),
    });
    this.tell();
    const undo = watchTheme(() => this.repaint());
    view.closing(undo);
    view.follow("latent", (latent) => this.chose(latent));
    view.follow("latents", () => this.repaint());
    view.relabelled(() => this.tell());
    for (const role of ["colour", "size"]) view.changed(role, () => this.recolour(role, view.option(role)));
    this.cloud.moved = () => this.hint();
  }

  close() {
    this.closed = true;
    this.cloud.close();
    for (const clock of Object.values(this.clocks)) clearTimeout(clock);
  }

  // ---- what is shown

  /** @param {string} by @param {string} method */
  async load(by, method) {
    const mine = ++this.loads;
    const { view } = this;
    const { frame } = this.at;
    [this.at.by.value, this.at.method.value] = [by, method];
    frame.setAttribute("aria-busy", "true");
    const answer = await view.ask("points", { by, method });
    if (mine !== this.loads) return;
    frame.setAttribute("aria-busy", "false");
    if (!answer) {
      // what is shown stays, and so do the lists that say what it is
      if (this.points)
        [this.at.by.value, this.at.method.value] = [this.points.header.by, this.points.header.method];
      this.at.job.hidden = true;
      return;
    }
    view.say("");
    this.show(answer);
    this.wait(by, method, answer.header.job, mine);
    if (!this.names.length && answer.header.latents <= NAMED)
      view.request("names").then(
        ({ fields }) => this.name(fields.names),
        () => {},
      );
  }

  /** @param {string[]} names */
  name(names) {
    this.names = names;
    this.tell();
  }

  /** @param {Answer} answer */
  show(answer) {
    const { header, fields } = answer;
    const same = this.points?.header.by === header.by && this.points?.header.method === header.method;
    this.points = answer;
    if (same) return;
    this.about.clear();
    this.cloud.points(fields.x, fields.y, fields.dead);
    this.cloud.labels = header.clusters.map((/** @type {any[]} */ [text, , x, y]) => ({ x, y, text }));
    this.at.verdict.replaceChildren(verdictPanel(header));
    this.at.clusters.replaceChildren(
      header.clusters.length ? clusterList(header, (cluster) => this.chooseCluster(cluster)) : "",
    );
    const there = `${header.placed.toLocaleString("en")} of ${header.latents.toLocaleString("en")} latents`;
    this.at.frame.setAttribute(
      "aria-label",
      `map of ${there}, ${header.never.toLocaleString("en")} never fire`,
    );
    this.repaint();
    this.chose(this.view.chosen("latent"));
  }

  /**
   * Show how far a slower method is, and then what it made.
   * @param {string} by @param {string} method @param {any} job @param {number} mine
   */
  wait(by, method, job, mine) {
    this.at.job.hidden = !job;
    if (!job) return;
    this.at.job.replaceChildren(...jobPanel(job, method, () => this.cancel(by, method)));
    this.later("job", POLL_MS, async () => {
      const answer = await this.view.request("progress", { by, method }).catch(() => null);
      if (mine !== this.loads || this.closed) return;
      if (answer?.header.job && !answer.header.job.done) this.wait(by, method, answer.header.job, mine);
      else if (answer) this.load(by, method);
      else this.at.job.hidden = true;
    });
  }

  /** @param {string} by @param {string} method */
  async cancel(by, method) {
    this.loads++;
    clearTimeout(this.clocks.job);
    this.at.job.hidden = true;
    await this.view.ask("cancel", { by, method });
    this.at.method.value = this.points?.header.method ?? "pca";
  }

  /** Colour or size by a column. @param {string} role @param {string} sql */
  async recolour(role, sql) {
    const { view } = this;
    if (!sql || sql === "cluster") this.columns[role] = null;
    else {
      const answer = await view.ask("column", { sql });
      if (!answer) return;
      view.say("");
      this.columns[role] = { scale: answer.header, values: answer.fields.values };
    }
    this.repaint();
  }

  /**
   * What stands out: what was found, else what is chosen; null for all.
   * @returns {ArrayLike<number> | null}
   */
  lit() {
    return this.found ?? this.view.chosen("latents");
  }

  repaint() {
    const { cloud, points, columns, view } = this;
    if (!points) return;
    const dark = isDark(/** @type {Element} */ (view.body.closest(".sl-root")));
    const { cluster, dead } = points.fields;
    const { colour, size } = columns;
    const tones = colour ? tonesOf(colour) : new Uint8Array(cluster.length);
    if (!colour)
      for (let i = 0; i < tones.length; i++) tones[i] = cluster[i] === NOWHERE ? NONE : cluster[i] % HUES;
    if (!colour || colour.scale.categories.length)
      for (let i = 0; i < tones.length; i++) if (dead[i]) tones[i] = NONE;
    const lit = this.lit();
    if (lit) {
      const own = new Uint8Array(tones.length);
      for (let i = 0; i < lit.length; i++) own[lit[i]] = 1;
      for (let i = 0; i < tones.length; i++) if (!own[i]) tones[i] = DIM;
    }
    cloud.palette = paletteOf(!!colour && !colour.scale.categories.length, dark);
    cloud.size = size && cloud.index.sorted(sizesOf(size));
    cloud.colour(tones);
    cloud.drawShade(dark ? "#c4cad6" : "#3b4252");
    this.at.legend.replaceChildren(...legend(colour, size, dark, !!lit));
    this.rings();
    this.summary();
    this.tell();
  }

  rings() {
    const chosen = this.view.chosen("latent");
    const found = this.found && this.found.length <= RINGS ? [...this.found] : [];
    this.cloud.rings = [
      ...found.map((point) => ({ point, ring: /** @type {const} */ ("found") })),
      ...(chosen === null ? [] : [{ point: chosen, ring: /** @type {const} */ ("chosen") }]),
      ...(this.hovered < 0 ? [] : [{ point: this.hovered, ring: /** @type {const} */ ("here") }]),
    ];
    this.cloud.overlay();
  }

  /** How many were found, are chosen, or are there. */
  summary() {
    const header = this.points?.header;
    if (!header) return;
    const latents = this.view.chosen("latents");
    const n = (/** @type {number} */ v) => v.toLocaleString("en");
    /** @param {string} text @param {() => void} onclick */
    const button = (text, onclick) => h("button", { type: "button", class: "sl-clear", onclick }, text);
    if (this.found) {
      const found = [...this.found];
      this.at.said.textContent = `${n(found.length)} found`;
      const choose = button("choose them", () => {
        this.clearSearch();
        this.view.choose({ latents: found });
      });
      this.at.actions.replaceChildren(
        ...(found.length ? [choose] : []),
        button("clear", () => this.clearSearch()),
      );
    } else if (latents) {
      this.at.said.textContent = `${n(latents.length)} chosen`;
      this.at.actions.replaceChildren(button("clear", () => this.view.choose({ latents: null })));
    } else {
      const left = header.latents - header.placed;
      const more = left ? `, ${n(left)} more have no place` : "";
      this.at.said.textContent = `${n(header.placed)} latents${more}`;
      this.at.actions.replaceChildren();
    }
  }

  // ---- one latent

  /** @param {number} latent -1 for none */
  hover(latent) {
    if (latent === this.hovered) return;
    this.hovered = latent;
    this.rings();
    this.hint();
    this.tell();
  }

  /** A latent was chosen, here or elsewhere. @param {number | null} latent */
  chose(latent) {
    if (latent !== null) this.cloud.show(latent);
    this.rings();
    this.tell();
  }

  /** The name at the pointer. */
  hint() {
    const place = this.hovered < 0 ? null : this.cloud.index.place(this.hovered);
    this.at.tip.hidden = !place;
    if (!place) return;
    const [px, py] = this.cloud.toPixels(...place);
    const right = px > this.at.frame.clientWidth / 2;
    this.at.tip.replaceChildren(`#${this.hovered} `, h("bdi", {}, this.nameOf(this.hovered)));
    const beside = right ? "calc(-100% - 12px)" : "12px";
    const [x, y] = [px, py].map((v) => `${Math.round(v)}px`);
    this.at.tip.style.transform = `translate(${x}, ${y}) translate(${beside}, -50%)`;
  }

  /** @param {number} latent */
  nameOf(latent) {
    return this.view.edited(latent)?.name ?? this.names[latent] ?? "";
  }

  /** Tell of the latent at the pointer, else of the chosen one. */
  tell() {
    const { points, view } = this;
    const { panel } = this.at;
    const latent = this.hovered >= 0 ? this.hovered : view.chosen("latent");
    if (latent === null || !points || latent >= points.header.latents) {
      panel.replaceChildren(
        h(
          "p",
          { class: "sl-hint" },
          points ? "Point at a latent, or go to one by the arrow keys." : "Reading the map…",
        ),
      );
      return;
    }
    const by = points.header.by;
    const key = `${by} ${latent}`;
    const about = this.about.get(key);
    const cluster = points.fields.cluster[latent];
    const { colour } = this.columns;
    const known = {
      latent,
      name: this.nameOf(latent) || about?.name || "",
      cluster: cluster === NOWHERE ? "" : points.header.clusters[cluster]?.[0] || `${cluster}`,
      place: this.cloud.index.place(latent) !== null,
      dead: !!points.fields.dead[latent],
      value: colour ? valueText(colour, latent) : "",
    };
    panel.replaceChildren(...aboutPanel(known, about ?? null, (other) => view.choose({ latent: other })));
    if (about === undefined) this.later("about", ABOUT_MS, () => this.ask(latent, by, key));
  }

  /** @param {number} latent @param {string} by @param {string} key */
  async ask(latent, by, key) {
    try {
      const answer = await this.view.request("about", { latent, by });
      this.about.set(key, answer.header);
      if (this.about.size > KEPT) this.about.delete(/** @type {string} */ (this.about.keys().next().value));
      this.tell();
    } catch (error) {
      this.at.panel.lastElementChild?.replaceWith(h("p", { class: "sl-hint" }, reasonOf(error)));
    }
  }

  // ---- many

  /** @param {number} cluster */
  chooseCluster(cluster) {
    const own = /** @type {Uint16Array} */ (this.points?.fields.cluster);
    /** @type {number[]} */
    const latents = [];
    own.forEach((c, latent) => {
      if (c === cluster) latents.push(latent);
    });
    this.clearSearch();
    this.view.choose({ latents });
  }

  async find() {
    const text = this.at.box.value.trim();
    if (!text) {
      this.clearSearch();
      return;
    }
    const { view, names, points } = this;
    const mine = text;
    /** @type {Int32Array} */
    let found;
    if (view.live) {
      const answer = await view.ask("find", { text });
      if (!answer) return;
      found = answer.fields.latents;
    } else {
      const number = /^#?(\d+)$/.exec(text)?.[1];
      const fits = (/** @type {number} */ j) =>
        number ? String(j).startsWith(number) : !!names[j]?.toLowerCase().includes(text.toLowerCase());
      found = Int32Array.from([...Array(points?.header.latents ?? 0).keys()].filter(fits));
    }
    if (this.at.box.value.trim() !== mine) return;
    this.found = found;
    this.repaint();
  }

  clearSearch() {
    this.at.box.value = "";
    if (!this.found) return;
    this.found = null;
    this.repaint();
  }

  /** What was begun last is let go of first. */
  letGo() {
    if (this.hovered >= 0) this.hover(-1);
    else if (this.found) this.clearSearch();
    else if (this.view.chosen("latents")) this.view.choose({ latents: null });
    else this.view.choose({ latent: null });
  }

  /** @param {KeyboardEvent} event */
  async boxKey(event) {
    if (isOfTheHost(event)) return;
    if (event.key === "Escape") this.clearSearch();
    else if (event.key === "Enter") {
      clearTimeout(this.clocks.find);
      if (!this.found) await this.find();
      if (!this.found?.length) return;
      // the next one that was found
      const at = this.found.indexOf(this.view.chosen("latent") ?? -1);
      this.view.choose({ latent: this.found[(at + 1) % this.found.length] });
    } else return;
    event.preventDefault();
  }

  /**
   * Do it once, after a while in which nothing else of the name is asked for.
   * @param {string} name @param {number} ms @param {() => void} work
   */
  later(name, ms, work) {
    clearTimeout(this.clocks[name]);
    this.clocks[name] = setTimeout(() => this.closed || work(), ms);
  }
}
