/** A small chart of lines: plain text says the same, so that it is an image to screen readers. */
import { svg } from "./dom.js";
import { short } from "./scales.js";

const [WIDTH, HEIGHT, LEFT, RIGHT, BOTTOM, TOP] = [300, 130, 40, 16, 22, 8];

/**
 * Lines over one x, each in a dash of its own, with a mark at one x. y begins at 0.
 * @param {string} label @param {number[]} x @param {Record<string, number[]>} lines @param {number} [mark]
 */
export function linesChart(label, x, lines, mark) {
  const most = Math.max(1e-9, ...Object.values(lines).flat());
  const [low, high] = [Math.min(...x), Math.max(...x)];
  /** @param {number} v */
  const px = (v) => LEFT + ((v - low) / (high - low || 1)) * (WIDTH - LEFT - RIGHT);
  /** @param {number} v */
  const py = (v) => TOP + (1 - v / most) * (HEIGHT - BOTTOM - TOP);
  const text = { class: "sl-tick", "font-size": 10, fill: "currentColor" };
  const shown = [
    svg("path", { d: `M${LEFT} ${TOP}V${py(0)}H${WIDTH - RIGHT}`, fill: "none", stroke: "currentColor" }),
    svg("text", { ...text, x: LEFT - 4, y: TOP + 8, "text-anchor": "end" }, new Text(short(most))),
    svg("text", { ...text, x: LEFT - 4, y: py(0), "text-anchor": "end" }, new Text("0")),
    ...[low, high].map((v) =>
      svg("text", { ...text, x: px(v), y: HEIGHT - 6, "text-anchor": "middle" }, new Text(`×${short(v)}`)),
    ),
  ];
  if (mark !== undefined)
    shown.push(svg("path", { d: `M${px(mark)} ${TOP}V${py(0)}`, stroke: "currentColor", opacity: 0.3 }));
  Object.entries(lines).forEach(([name, values], i) => {
    const points = values.map((v, k) => `${px(x[k]).toFixed(1)},${py(v).toFixed(1)}`).join(" ");
    const dash = i ? "4 3" : "none";
    shown.push(
      svg("polyline", {
        points,
        fill: "none",
        stroke: i ? "var(--sl-soft)" : "var(--sl-accent)",
        "stroke-width": 2,
        "stroke-dasharray": dash,
        "data-line": name,
      }),
    );
  });
  return svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": label }, ...shown);
}
