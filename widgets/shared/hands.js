/**
 * What hands do with a cloud: drag, wheel, two fingers, keys; a line around points, or a box.
 * @typedef {import("./cloud.js").Cloud} Cloud
 * @typedef {"pan" | "lasso" | "box"} Mode
 */
import { focusedIn } from "./dom.js";
import { isOfTheHost } from "./keys.js";

/** A press that moves less than so many pixels is a click. */
const CLICK = 4;
/** Pixels between two corners of a line that is drawn. */
const APART = 4;
const STEP = 60;
/** @type {Record<string, [number, number]>} */
const ARROWS = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };

/**
 * @param {Cloud} cloud @param {HTMLElement} element that has the focus
 * @param {{mode: () => Mode, here: () => number, hover: (point: number) => void,
 *   choose: (point: number) => void, enclose: (points: number[]) => void, escape: () => void}} does
 *   here: the point that keys go from, -1 for none; hover: -1 for none
 */
export function handle(cloud, element, does) {
  /** @type {Map<number, [number, number]>} fingers, or the mouse, that press */
  const pressed = new Map();
  let [travelled, drawing] = [0, /** @type {Mode | null} */ (null)];

  /** @param {{clientX: number, clientY: number}} event @returns {[number, number]} */
  const at = (event) => {
    const box = cloud.element.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };

  element.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    element.focus({ preventScroll: true });
    element.setPointerCapture?.(event.pointerId);
    pressed.set(event.pointerId, at(event));
    travelled = pressed.size > 1 ? CLICK : 0;
    const mode = event.shiftKey ? "lasso" : does.mode();
    drawing = mode === "pan" || pressed.size > 1 ? null : mode;
    cloud.line = drawing ? [at(event)] : [];
  });

  element.addEventListener("pointermove", (event) => {
    const now = at(event);
    const before = pressed.get(event.pointerId);
    if (!before) {
      does.hover(cloud.under(...now));
      return;
    }
    travelled += Math.hypot(now[0] - before[0], now[1] - before[1]);
    pressed.set(event.pointerId, now);
    if (drawing) {
      draw(now);
      return;
    }
    const other = [...pressed.entries()].find(([finger]) => finger !== event.pointerId)?.[1];
    if (other) {
      const [was, is] = [before, now].map(([px, py]) => Math.hypot(px - other[0], py - other[1]));
      cloud.enlarge(is / Math.max(1, was), other);
    } else if (travelled >= CLICK) cloud.pan(now[0] - before[0], now[1] - before[1]);
  });

  /** @param {[number, number]} now */
  function draw(now) {
    const { line } = cloud;
    const first = line[0];
    const last = line[line.length - 1];
    if (drawing === "box") cloud.line = [first, [now[0], first[1]], now, [first[0], now[1]]];
    else if (Math.hypot(now[0] - last[0], now[1] - last[1]) >= APART) line.push(now);
    cloud.overlay();
  }

  /** @param {PointerEvent} event */
  function released(event) {
    if (!pressed.delete(event.pointerId)) return;
    const { line } = cloud;
    cloud.line = [];
    cloud.overlay();
    if (event.type === "pointercancel") return;
    if (drawing && line.length > 2)
      does.enclose(cloud.index.inside(line.map(([px, py]) => cloud.toUnits(px, py))));
    else if (travelled < CLICK) {
      const point = cloud.under(...at(event));
      if (point >= 0) does.choose(point);
    }
    drawing = null;
  }
  element.addEventListener("pointerup", released);
  element.addEventListener("pointercancel", released);
  element.addEventListener("pointerleave", () => does.hover(-1));

  element.addEventListener(
    "wheel",
    (event) => {
      // a page that is scrolled stays so until the map is clicked; a pinch of a touchpad comes with ctrl
      if (!event.ctrlKey && !focusedIn(element)) return;
      event.preventDefault();
      const lines = event.deltaMode === 1 ? 18 : 1;
      cloud.enlarge(2 ** ((-event.deltaY * lines) / (event.ctrlKey ? 120 : 300)), at(event));
      does.hover(cloud.under(...at(event)));
    },
    { passive: false },
  );

  element.addEventListener("keydown", (event) => {
    if (isOfTheHost(event) || event.target !== element) return;
    const arrow = ARROWS[event.key];
    if (arrow && event.shiftKey) cloud.pan(-arrow[0] * STEP, arrow[1] * STEP);
    else if (arrow) go(arrow);
    else if (event.key === "+" || event.key === "=") cloud.enlarge(1.5);
    else if (event.key === "-") cloud.enlarge(1 / 1.5);
    else if (event.key === "0" || event.key === "Home") cloud.home();
    else if (event.key === "Escape") does.escape();
    else if ((event.key === "Enter" || event.key === " ") && does.here() >= 0) does.choose(does.here());
    else return;
    event.preventDefault();
  });

  /** @param {[number, number]} arrow */
  function go(arrow) {
    const { clientWidth, clientHeight } = cloud.element;
    const from = does.here();
    const to =
      from >= 0
        ? cloud.index.towards(from, ...arrow)
        : cloud.index.nearest(...cloud.toUnits(clientWidth / 2, clientHeight / 2), 1e6);
    if (to < 0) return;
    cloud.show(to);
    does.hover(to);
  }
}
