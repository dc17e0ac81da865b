/**
 * Runs of training while they go on: a table of what each is at, and curves of all over the rows seen.
 * @typedef {import("../types.js").Answer} Answer
 * @typedef {import("../types.js").View} View
 * @typedef {{label: string, name: string, state: string, step: number, steps: number, rows: number,
 *   stoppable: boolean, here: boolean, seconds: number, speed: number | null, left: number | null,
 *   thinned: number,
 *   density: {low: number, per_decade: number, counts: number[], below: number} | null}} Run
 * @typedef {{x: Float32Array, y: Float32Array}} Points
 * @typedef {{runs: Run[], curve: (run: number, name: string) => Points | null}} Told
 */
import { decode } from "../shared/answers.js";
import { counted, curvesChart, FRAME } from "../shared/curves.js";
import { h, svg } from "../shared/dom.js";
import { note } from "../shared/notes.js";
import { percent, short } from "../shared/scales.js";
import { reasonOf, rendering } from "../shared/view.js";

/** Colours that stand out on both themes, by run; the dash tells them apart without. */
const COLOURS = "#0b7bc4 #d55e00 #0a8f66 #b4569b #8a7000 #d1394f #6b7280 #5b5bd6".split(" ");
const DASHES = ["none", "6 3", "2 2", "8 3 2 3"];
export const PATIENCE_MS = 1000;
const DEAF =
  "No answer yet: this notebook tells a busy kernel nothing. Interrupt the kernel (■ in its toolbar): " +
  "the run ends after its step just the same, and its SAE is kept.";
const PLACES = 1000;
/**
 * @typedef {{title: string, unit: string, note: string, log?: boolean, tick?: (v: number) => string}} Chart
 */
/** @type {Record<string, Chart>} */
const CHARTS = {
  loss: {
    title: "loss",
    unit: "no unit",
    note: "All losses of a step added up, on its batch before the update.",
    log: true,
  },
  fvu: {
    title: "FVU",
    unit: "share",
    note:
      "Fraction of variance unexplained on the batch: 0 is perfect, 1 no better than the mean row. Dots: " +
      "on held-out rows, in eval mode.",
    log: true,
  },
  l0: {
    title: "L0",
    unit: "latents a row",
    note: "Mean number of latents that are not 0 in a row. Dots: on held-out rows.",
  },
  dead: {
    title: "dead latents",
    unit: "share of all",
    note: "Latents that have not fired for as many rows as the recipe's dead_after says.",
    tick: (v) => `${+(100 * v).toPrecision(3)} %`,
  },
  speed: {
    title: "speed",
    unit: "rows / s",
    note: "Rows a second between two points, evaluation and checkpoints included.",
    tick: counted,
  },
};
const STATES = /** @type {Record<string, string>} */ ({
  waiting: "nothing there yet",
  stopping: "stopping after this step…",
  stopped: "stopped, SAE kept",
  interrupted: "interrupted, SAE kept",
  lost: "its process has ended",
});

export const render = rendering(async (view) => {
  /** @type {Told} */
  let told = toldBy(await view.ask("runs"));
  /** Labels of runs that are left out. @type {Set<string>} */
  const hidden = new Set();
  /** Labels of runs that were asked to stop. @type {Set<string>} */
  const asked = new Set();
  /** How far along the rows the cursor is; at the end it stays there. */
  let place = PLACES;
  let log = true;

  const said = h("p", { class: "sl-hint", role: "status" });
  const table = h("div", { class: "sl-watch-runs", tabindex: 0, role: "region", "aria-label": "runs" });
  const slider = /** @type {HTMLInputElement} */ (
    h("input", {
      type: "range",
      min: 0,
      max: PLACES,
      value: PLACES,
      "aria-label": "rows at which the figures are read",
      oninput: () => moved(+slider.value),
    })
  );
  const where = h("output", { class: "sl-hint" });
  const scale = h("input", { type: "checkbox", checked: true, onchange: rescaled });
  const bar = h(
    "div",
    { class: "sl-watch-bar" },
    h("label", {}, "read at ", slider, " ", where),
    h("label", {}, scale, " loss and FVU logarithmic"),
  );
  const charts = h("div", { class: "sl-watch-charts" });
  view.body.append(h("div", { class: "sl-watch" }, said, table, bar, charts));
  /** @type {Record<string, HTMLElement>} */
  const places = Object.fromEntries(
    Object.entries(CHARTS).map(([name, { title, unit, note }]) => [name, panel(charts, title, unit, note)]),
  );
  places.density = panel(
    charts,
    "how often latents fire",
    "latents",
    "Latents by the share of rows on which they fire, of late (a moving average); four bins a factor of " +
      "ten. The first step: on fewer than 1 in 10 million rows, or never.",
  );
  /** @type {ReturnType<typeof rowOf>[]} */
  let rows = [];

  /** @param {number} to */
  function moved(to) {
    place = Math.max(0, Math.min(PLACES, Math.round(to)));
    slider.value = String(place);
    draw();
  }

  /**
   * Ask for it; a kernel that trains itself may hear nothing meanwhile, and is interrupted: that is the same.
   * @param {number} number
   */
  async function stop(number) {
    const { label } = told.runs[number];
    asked.add(label);
    draw();
    const late = setTimeout(() => {
      const run = told.runs[number];
      if (run?.state !== "training") return;
      if (run.here && view.interrupt) view.interrupt().catch(() => said.replaceChildren(DEAF));
      else said.replaceChildren(DEAF);
    }, PATIENCE_MS);
    try {
      await view.request("stop", { run: number });
      said.replaceChildren();
    } catch (error) {
      asked.delete(label);
      view.say(reasonOf(error));
      draw();
    } finally {
      clearTimeout(late);
    }
  }

  function rescaled() {
    log = !log;
    draw();
  }

  function draw() {
    const { runs } = told;
    if (rows.map((row) => row.label).join("\0") !== runs.map((run) => run.label).join("\0")) {
      rows = runs.map((run, i) =>
        rowOf(run.label, i, view.live ? () => stop(i) : null, (shown) => {
          if (shown) hidden.delete(run.label);
          else hidden.add(run.label);
          draw();
        }),
      );
      table.replaceChildren(...(rows.length ? [tableOf(rows)] : []));
    }
    for (const hide of [table, bar, charts]) hide.hidden = !runs.length;
    if (!runs.length) {
      said.textContent = "No run yet. Pass this view to saelab.train: callbacks=[view].";
      return;
    }
    const most = Math.max(1, ...runs.map((run) => run.rows));
    const at = (most * place) / PLACES;
    where.textContent = place === PLACES ? "the last rows" : `${counted(at)} rows`;
    slider.setAttribute("aria-valuetext", where.textContent);
    for (const run of runs) if (run.state !== "training") asked.delete(run.label);
    rows.forEach((row, i) => {
      row.update(runs[i], asked.has(runs[i].label), (name) => valueAt(told, i, name, at));
    });
    const shown = runs.map((_, i) => i).filter((i) => !hidden.has(runs[i].label));
    for (const [name, chart] of Object.entries(CHARTS)) {
      const curves = shown.flatMap((i) => curvesOf(told, i, name));
      const label = `${chart.title} over the rows seen: ${shown
        .map((i) => `${runs[i].label} ${short(valueAt(told, i, name, at))}`)
        .join(", ")}`;
      const mark = place === PLACES ? undefined : at;
      const drawing = {
        label,
        curves,
        x: /** @type {[number, number]} */ ([0, most]),
        mark,
        tick: chart.tick,
      };
      places[name].replaceChildren(curvesChart({ ...drawing, log: log && chart.log }));
    }
    places.density.replaceChildren(densityChart(shown.map((i) => [runs[i], i])));
    const thin = Math.max(...runs.map((run) => run.thinned));
    if (!said.textContent && thin > 1) said.textContent = `Of the records every ${thin}th is drawn.`;
  }

  charts.addEventListener("pointerdown", (event) => {
    const drawing = /** @type {Element} */ (event.target).closest("svg");
    if (!drawing || drawing.parentElement === places.density) return;
    const { left, width } = drawing.getBoundingClientRect();
    const x = ((event.clientX - left) / width) * FRAME.width;
    moved((PLACES * (x - FRAME.left)) / (FRAME.width - FRAME.left - FRAME.right));
  });
  view.changed("opening", async () => {
    const sent = view.option("opening")?.runs;
    told = toldBy(sent ? decode(sent) : await view.ask("runs"));
    draw();
  });
  draw();
});

/** @param {Answer | null} answer @returns {Told} */
function toldBy(answer) {
  if (!answer) return { runs: [], curve: () => null };
  return {
    runs: answer.header.runs,
    curve(run, name) {
      const both = answer.fields[`${run}.${name}`];
      return both ? { x: both.subarray(0, both.length / 2), y: both.subarray(both.length / 2) } : null;
    },
  };
}

/**
 * The last value up to so many rows.
 * @param {Told} told @param {number} run @param {string} name @param {number} at
 */
function valueAt(told, run, name, at) {
  const curve = told.curve(run, name);
  if (!curve) return null;
  let found = null;
  // half a row of room, since rows are rounded on the way
  for (let i = 0; i < curve.x.length && curve.x[i] <= at * (1 + 1e-6) + 0.5; i++) found = curve.y[i];
  return found;
}

/** @param {Told} told @param {number} run @param {string} name */
function curvesOf(told, run, name) {
  const look = { colour: COLOURS[run % COLOURS.length], name: told.runs[run].label };
  const found = [];
  const own = told.curve(run, name);
  if (own) found.push({ ...look, ...own, dash: DASHES[run % DASHES.length] });
  const held = told.curve(run, `held_out_${name}`);
  if (held) found.push({ ...look, ...held, name: `${look.name}, held-out`, dash: "1 4", marks: true });
  return found;
}

/** @param {[Run, number][]} runs */
function densityChart(runs) {
  const known = runs.filter(([run]) => run.density);
  if (!known.length) return h("p", { class: "sl-hint" }, "not told");
  const { low, per_decade: per } = /** @type {NonNullable<Run["density"]>} */ (known[0][0].density);
  const curves = known.map(([run, i]) => {
    const { counts, below } = /** @type {NonNullable<Run["density"]>} */ (run.density);
    const y = [0, below, ...counts, 0];
    const x = y.map((_, k) => low + (k - 2) / per);
    return { name: run.label, x, y: [...y.slice(1), 0], colour: COLOURS[i % COLOURS.length], steps: true };
  });
  const ticks = [-6, -4, -2, 0].map(
    (k) => /** @type {[number, string]} */ ([k, k ? percent(10 ** k) : "100 %"]),
  );
  const label = known
    .map(([run]) => `${run.label}: ${run.density?.below} latents hardly ever fire`)
    .join(", ");
  const x = /** @type {[number, number]} */ ([low - 2 / per, 0]);
  return curvesChart({ label: `how often latents fire; ${label}`, curves, x, xTicks: ticks, tick: counted });
}

/** @param {Element} charts @param {string} title @param {string} unit @param {string} text */
function panel(charts, title, unit, text) {
  const place = h("div", {});
  charts.append(
    h("figure", {}, h("figcaption", {}, h("b", {}, title), ` (${unit})`, note(title, text)), place),
  );
  return place;
}

/** @param {ReturnType<typeof rowOf>[]} rows */
function tableOf(rows) {
  const names = ["run", "state", "", "rows", "rows / s", "left", "loss", "FVU", "L0", "dead"];
  const head = names.map((name) => (name ? h("th", { scope: "col" }, name) : h("td", {})));
  return h(
    "table",
    {},
    h("thead", {}, h("tr", {}, ...head)),
    h("tbody", {}, ...rows.map((row) => row.element)),
  );
}

/**
 * @param {string} label @param {number} number
 * @param {(() => void) | null} stop null where nothing can be told
 * @param {(shown: boolean) => void} show
 */
function rowOf(label, number, stop, show) {
  const line = svg("path", {
    d: "M0 5H22",
    stroke: COLOURS[number % COLOURS.length],
    "stroke-width": 3,
    "stroke-dasharray": DASHES[number % DASHES.length],
  });
  const swatch = svg("svg", { width: 22, height: 10, "aria-hidden": "true" }, line);
  const box = h("input", {
    type: "checkbox",
    checked: true,
    onchange: () => show(/** @type {HTMLInputElement} */ (box).checked),
  });
  const button = /** @type {HTMLButtonElement} */ (
    h("button", { type: "button", "aria-label": `stop ${label}`, onclick: stop ?? (() => {}) }, "stop")
  );
  const cells = Array.from({ length: 8 }, () => h("td", {}));
  const name = h("bdi", {}, label);
  const element = h(
    "tr",
    { "data-run": label },
    h("th", { scope: "row" }, h("label", {}, box, " ", swatch, " ", name)),
    cells[0],
    h("td", {}, button),
    ...cells.slice(1),
  );
  /** @param {Run} run @param {boolean} stopping @param {(name: string) => number | null} value */
  function update(run, stopping, value) {
    name.title = run.name;
    const state = stopping ? "stopping" : run.state;
    const far = run.steps ? ` ${percent(run.step / run.steps)}` : "";
    const texts = [
      state === "training" ? `training${far}` : (STATES[state] ?? state),
      counted(run.rows),
      run.speed === null ? "–" : counted(run.speed),
      run.left === null ? "–" : lasting(run.left),
      ...["loss", "fvu", "l0"].map((each) => short(value(each))),
      percent(value("dead")),
    ];
    texts.forEach((text, i) => {
      if (cells[i].textContent !== text) cells[i].textContent = text;
    });
    element.dataset.state = run.state;
    button.hidden = !stop || !run.stoppable;
    button.disabled = stopping;
  }
  return { label, element, update };
}

/** @param {number} seconds */
function lasting(seconds) {
  if (seconds < 90) return `${Math.ceil(seconds)} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toPrecision(2)} h`;
}
