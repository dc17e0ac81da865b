/** Names on a cloud that do not cover each other. */

/**
 * @typedef {{x: number, y: number, text: string}} Label where its middle should be, in pixels
 * @typedef {Label & {left: number, top: number, width: number, height: number}} Placed
 */

/**
 * As many labels as have room, the first ones first; each wholly in sight.
 * @param {Label[]} labels @param {number} width of the picture @param {number} height
 * @param {(text: string) => number} measure how wide a text is
 * @param {{line?: number, gap?: number, most?: number}} [how] height of a line, pixels between two, how many
 * @returns {Placed[]}
 */
export function placed(labels, width, height, measure, { line = 15, gap = 4, most = 40 } = {}) {
  /** @type {Placed[]} */
  const kept = [];
  for (const label of labels) {
    if (kept.length === most) break;
    if (label.x < 0 || label.y < 0 || label.x > width || label.y > height || !label.text) continue;
    const wide = measure(label.text);
    // at an edge it is moved in
    const left = Math.max(2, Math.min(width - wide - 2, label.x - wide / 2));
    const top = Math.max(2, Math.min(height - line - 2, label.y - line / 2));
    const box = { ...label, left, top, width: wide, height: line };
    if (wide + 4 <= width && !kept.some((other) => overlap(box, other, gap))) kept.push(box);
  }
  return kept;
}

/** @param {Placed} a @param {Placed} b @param {number} gap */
export function overlap(a, b, gap) {
  return (
    a.left < b.left + b.width + gap &&
    b.left < a.left + a.width + gap &&
    a.top < b.top + b.height + gap &&
    b.top < a.top + a.height + gap
  );
}
