/**
 * Where the points of a cloud lie: what is near a place, within a line around them, in sight. Answers come
 * from a grid, so that no move of a mouse goes through a million points.
 */

/** Coordinates are 16 bits; of a point that lies nowhere both are this. */
export const NOWHERE = 65535;

export class CloudIndex {
  /** @param {Uint16Array} x @param {Uint16Array} y */
  constructor(x, y) {
    const n = x.length;
    /** bits of a coordinate within its cell: some points a cell */
    this.shift = n > 200_000 ? 7 : n > 20_000 ? 8 : 10;
    this.side = 65536 >> this.shift;
    const { shift, side } = this;
    /** where each cell begins in `order` */
    this.start = new Uint32Array(side * side + 1);
    for (let i = 0; i < n; i++)
      if (x[i] !== NOWHERE || y[i] !== NOWHERE) this.start[(y[i] >> shift) * side + (x[i] >> shift) + 1]++;
    for (let cell = 0; cell < side * side; cell++) this.start[cell + 1] += this.start[cell];
    /** the points, row by row of cells; within a cell by number */
    this.order = new Uint32Array(this.start[side * side]);
    const next = this.start.slice(0, -1);
    for (let i = 0; i < n; i++)
      if (x[i] !== NOWHERE || y[i] !== NOWHERE)
        this.order[next[(y[i] >> shift) * side + (x[i] >> shift)]++] = i;
    this.x = /** @type {Uint16Array} */ (this.sorted(x));
    this.y = /** @type {Uint16Array} */ (this.sorted(y));
    /** where each point is in the order; 0xffffffff of those that lie nowhere */
    this.at = new Uint32Array(n).fill(0xffffffff);
    this.order.forEach((point, place) => {
      this.at[point] = place;
    });
  }

  /**
   * What is given by number, in the order.
   * @template {Uint8Array | Uint16Array} A
   * @param {A} values @returns {A}
   */
  sorted(values) {
    const { order } = this;
    const out = new /** @type {any} */ (values.constructor)(order.length);
    for (let place = 0; place < order.length; place++) out[place] = values[order[place]];
    return out;
  }

  /** A point's place, null of none. @param {number} point @returns {[number, number] | null} */
  place(point) {
    const at = this.at[point];
    return at === undefined || at === 0xffffffff ? null : [this.x[at], this.y[at]];
  }

  /** The cell of a coordinate, the nearest one of what is outside. @param {number} v */
  cell(v) {
    return Math.max(0, Math.min(this.side - 1, Math.floor(v) >> this.shift));
  }

  /**
   * Stretches of the order that hold all points within a rectangle, and few others.
   * @param {number} left @param {number} low @param {number} right @param {number} high
   * @param {(from: number, to: number) => void} call
   */
  stretches(left, low, right, high, call) {
    if (right < 0 || high < 0 || left > 65535 || low > 65535) return;
    const [first, last] = [this.cell(left), this.cell(right)];
    let [from, to] = [0, 0];
    for (let row = this.cell(low); row <= this.cell(high); row++) {
      const begin = this.start[row * this.side + first];
      const end = this.start[row * this.side + last + 1];
      if (begin !== to) {
        if (to > from) call(from, to);
        from = begin;
      }
      to = end;
    }
    if (to > from) call(from, to);
  }

  /**
   * The nearest point to a place that is not further than `most`; of equals the lower number. -1 for none.
   * @param {number} px @param {number} py @param {number} most
   * @param {(point: number, dx: number, dy: number) => boolean} [fits] which are looked for
   */
  nearest(px, py, most, fits) {
    const { side, shift, start, order, x, y } = this;
    const [column, row] = [this.cell(px), this.cell(py)];
    let [best, found] = [most * most, -1];
    /** @param {number} r @param {number} c */
    const look = (r, c) => {
      const cell = r * side + c;
      for (let at = start[cell]; at < start[cell + 1]; at++) {
        const [dx, dy] = [x[at] - px, y[at] - py];
        const far = dx * dx + dy * dy;
        if (far > best || (far === best && found >= 0 && order[at] > found)) continue;
        if (fits && !fits(order[at], dx, dy)) continue;
        [best, found] = [far, order[at]];
      }
    };
    for (let ring = 0; ring < side; ring++) {
      // what lies in this ring of cells is at least a ring less one away
      const least = (ring - 1) << shift;
      if (least > 0 && least * least > best) break;
      const [top, bottom, left, right] = [row - ring, row + ring, column - ring, column + ring];
      for (let c = Math.max(0, left); c <= Math.min(side - 1, right); c++) {
        if (top >= 0) look(top, c);
        if (ring && bottom < side) look(bottom, c);
      }
      for (let r = Math.max(0, top + 1); r <= Math.min(side - 1, bottom - 1); r++) {
        if (left >= 0) look(r, left);
        if (ring && right < side) look(r, right);
      }
    }
    return found;
  }

  /**
   * The nearest point from another one within 45° of a direction; of those that lie on it, the next number to
   * the right or upwards, the one before to the left or downwards. -1 for none.
   * @param {number} point @param {number} dx @param {number} dy one of them 0, the other 1 or -1
   */
  towards(point, dx, dy) {
    const place = this.place(point);
    if (!place) return -1;
    const next = this.besides(point, dx + dy);
    return this.nearest(place[0], place[1], 1e6, (other, x, y) => {
      if (!x && !y) return other === next;
      return x * dx + y * dy > 0 && x * dx + y * dy >= Math.abs(x * dy - y * dx);
    });
  }

  /**
   * The next point, or the one before, that lies on the same place; -1 for none.
   * @param {number} point @param {number} step 1 or -1
   */
  besides(point, step) {
    const at = this.at[point];
    const cell = this.cell(this.y[at]) * this.side + this.cell(this.x[at]);
    for (let i = at + step; i >= this.start[cell] && i < this.start[cell + 1]; i += step)
      if (this.x[i] === this.x[at] && this.y[i] === this.y[at]) return this.order[i];
    return -1;
  }

  /**
   * The points within a closed line, by number.
   * @param {[number, number][]} line @returns {number[]}
   */
  inside(line) {
    const { side, shift, start, order, x, y } = this;
    if (line.length < 3) return [];
    const edge = new Uint8Array(side * side);
    let [left, right, low, high] = [side, -1, side, -1];
    line.forEach(([ax, ay], i) => {
      const [bx, by] = line[(i + 1) % line.length];
      const columns = [this.cell(Math.min(ax, bx)), this.cell(Math.max(ax, bx))];
      const rows = [this.cell(Math.min(ay, by)), this.cell(Math.max(ay, by))];
      for (let r = rows[0]; r <= rows[1]; r++) edge.fill(1, r * side + columns[0], r * side + columns[1] + 1);
      [left, right] = [Math.min(left, columns[0]), Math.max(right, columns[1])];
      [low, high] = [Math.min(low, rows[0]), Math.max(high, rows[1])];
    });
    /** @type {number[]} */
    const found = [];
    for (let r = low; r <= high; r++)
      for (let c = left; c <= right; c++) {
        const cell = r * side + c;
        if (start[cell] === start[cell + 1]) continue;
        // no line goes through the cell: all of it is on one side
        const whole = !edge[cell];
        if (whole && !within(line, (c + 0.5) * (1 << shift), (r + 0.5) * (1 << shift))) continue;
        for (let at = start[cell]; at < start[cell + 1]; at++)
          if (whole || within(line, x[at], y[at])) found.push(order[at]);
      }
    return found.sort((a, b) => a - b);
  }
}

/** Whether a place is within a closed line, by the even-odd rule. */
export function within(
  /** @type {[number, number][]} */ line,
  /** @type {number} */ px,
  /** @type {number} */ py,
) {
  let odd = false;
  for (let i = 0, j = line.length - 1; i < line.length; j = i++) {
    const [a, b] = [line[i][1], line[j][1]];
    if (a > py !== b > py && px < ((line[j][0] - line[i][0]) * (py - a)) / (b - a) + line[i][0]) odd = !odd;
  }
  return odd;
}
