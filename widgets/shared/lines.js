/**
 * All latents as lines of a table: columns, orders and filters over typed arrays, so that a million lines are
 * sorted and looked through at once.
 * @typedef {import("../types.js").Answer} Answer
 * @typedef {Int32Array | Float32Array | Float64Array | Uint32Array | string[]} Column
 */

/** Letters of a text that it is sorted by first, before those whose first letters are alike are compared. */
const LETTERS = 8;
const NUMBER = /^#?\d+$/;

export class Lines {
  /** @param {Answer} answer to "table" */
  constructor({ fields }) {
    this.n = fields.count.length;
    /** @type {Int32Array} */
    this.count = fields.count;
    /** @type {Map<string, Column>} */
    this.columns = new Map();
    /** @type {Map<string, Uint32Array>} */
    this.orders = new Map();
    /** @type {string[]} */
    this.names = [];
    /** @type {string[]} as they are searched for */
    this.folded = [];
    this.signed = Boolean(fields.min);
    for (const name of ["count", "density", "mean", "max"]) this.add(name, fields[name]);
    this.add("min", fields.min ?? new Float32Array(this.n));
    const stronger = (/** @type {number} */ v, /** @type {number} */ j) => Math.max(v, -fields.min[j]);
    this.add("strongest", this.signed ? fields.max.map(stronger) : fields.max);
    this.add("latent", counted(this.n));
    this.mostDense = fields.density.reduce(
      (/** @type {number} */ a, /** @type {number} */ b) => Math.max(a, b),
      1e-9,
    );
  }

  /** @param {string} name @param {Column} values */
  add(name, values) {
    this.columns.set(name, values);
    for (const descending of [true, false]) this.orders.delete(`${name} ${descending}`);
  }

  /** @param {string[]} names */
  name(names) {
    this.names = names;
    this.folded = names.map((name) => name.toLowerCase());
    this.add("name", names);
  }

  /** @param {string} name */
  isText(name) {
    return Array.isArray(this.columns.get(name));
  }

  /**
   * Which latents are in the list, in its order.
   * @param {{words: string, listed: number[] | null, where: Uint8Array | null, found: number[] | null,
   *   sort: string, descending: boolean}} state `where` has a bit a latent; `found` is what a search found,
   *   best first, and is kept in that order where `sort` is "score"
   * @returns {number[]}
   */
  shown({ words, listed, where, found, sort, descending }) {
    const keep = this.mask(listed, where);
    if (!found && words) this.keepNamed(keep, words);
    if (found && sort === "score") return found.filter((j) => keep[j]);
    const among = found ? this.onlyThese(keep, found) : keep;
    return this.sorted(among, this.columns.has(sort) ? sort : "density", descending);
  }

  /** @param {number[] | null} listed @param {Uint8Array | null} where */
  mask(listed, where) {
    const keep = new Uint8Array(this.n);
    if (listed) for (const j of listed) keep[j] = 1;
    else keep.fill(1);
    if (where) for (let j = 0; j < this.n; j++) keep[j] &= (where[j >> 3] >> (j & 7)) & 1;
    return keep;
  }

  /** Those whose number begins so, or whose name holds it. @param {Uint8Array} keep @param {string} words */
  keepNamed(keep, words) {
    const isNumber = NUMBER.test(words);
    const digits = words.replace("#", "");
    for (let j = 0; j < this.n; j++)
      if (keep[j])
        keep[j] = Number(isNumber ? String(j).startsWith(digits) : this.folded[j]?.includes(words));
  }

  /** @param {Uint8Array} keep @param {number[]} these */
  onlyThese(keep, these) {
    const out = new Uint8Array(this.n);
    for (const j of these) out[j] = keep[j];
    return out;
  }

  /**
   * Those that are kept, by a column; of equals the lower latent first, and what has no value last.
   * @param {Uint8Array} keep @param {string} name @param {boolean} descending
   */
  sorted(keep, name, descending) {
    const order = this.order(name, descending);
    const out = [];
    for (let i = 0; i < order.length; i++) if (keep[order[i]]) out.push(order[i]);
    return out;
  }

  /** All latents by a column; kept. @param {string} name @param {boolean} descending */
  order(name, descending) {
    const key = `${name} ${descending}`;
    let order = this.orders.get(key);
    if (!order) {
      const values = /** @type {Column} */ (this.columns.get(name));
      if (Array.isArray(values)) {
        const keys = name === "name" ? this.folded : values.map((text) => text.toLowerCase());
        order = placed(byText(keys), keys, (text) => !text, descending);
      } else {
        order = placed(byNumber(values), values, Number.isNaN, descending);
      }
      this.orders.set(key, order);
    }
    return order;
  }
}

/**
 * An order the one or the other way round, in which equals stay as they are and what is missing comes last.
 * @template T
 * @param {Uint32Array} order the smallest first @param {ArrayLike<T>} values
 * @param {(value: T) => boolean} isMissing @param {boolean} descending
 */
function placed(order, values, isMissing, descending) {
  const there = order.slice();
  const missing = order.slice();
  let [n, lost] = [0, 0];
  for (let i = 0; i < order.length; i++)
    if (isMissing(values[order[i]])) missing[lost++] = order[i];
    else there[n++] = order[i];
  if (descending) {
    there.subarray(0, n).reverse();
    const found = there.subarray(0, n);
    for (let start = 0; start < n; ) start = each(found, start, values, (run) => run.reverse());
  }
  there.set(missing.subarray(0, lost), n);
  return there;
}

/** 0, 1, 2, … @param {number} n */
function counted(n) {
  const out = new Uint32Array(n);
  for (let j = 0; j < n; j++) out[j] = j;
  return out;
}

/**
 * Do something with the run of equals that begins at a place; where the next one begins.
 * @template T
 * @param {Uint32Array} order @param {number} start @param {ArrayLike<T>} values
 * @param {(run: Uint32Array) => void} work
 */
function each(order, start, values, work) {
  let end = start + 1;
  while (end < order.length && values[order[end]] === values[order[start]]) end++;
  if (end - start > 1) work(order.subarray(start, end));
  return end;
}

/** @param {string[]} texts */
function byText(texts) {
  let order = counted(texts.length);
  const digits = new Uint16Array(texts.length);
  for (let at = LETTERS - 1; at >= 0; at--) {
    // NaN, after the end, is 0
    for (let j = 0; j < texts.length; j++) digits[j] = Math.max(texts[j].charCodeAt(at), 1);
    order = byDigit(order, digits);
  }
  const begins = texts.map((text) => text.slice(0, LETTERS).replaceAll("\0", "\u0001"));
  /** @param {number} a @param {number} b */
  const compare = (a, b) => (texts[a] < texts[b] ? -1 : texts[a] > texts[b] ? 1 : a - b);
  for (let start = 0; start < order.length; ) start = each(order, start, begins, (run) => run.sort(compare));
  return order;
}

/** By the bits of floats, which sort as whole numbers do. @param {Exclude<Column, string[]>} values */
function byNumber(values) {
  const floats = new Float32Array(values);
  for (let j = 0; j < floats.length; j++) floats[j] += 0; // −0 is 0
  const bits = new Uint32Array(floats.buffer);
  const [low, high] = [new Uint16Array(bits.length), new Uint16Array(bits.length)];
  for (let j = 0; j < bits.length; j++) {
    // a negative one has its bits the other way round
    const key = bits[j] >>> 31 ? ~bits[j] : bits[j] ^ 0x80000000;
    low[j] = key & 0xffff;
    high[j] = key >>> 16;
  }
  const order = byDigit(byDigit(counted(values.length), low), high);
  if (values instanceof Float32Array) return order;
  // several numbers may be one float
  for (let start = 0; start < order.length; )
    start = each(order, start, floats, (run) => run.sort((a, b) => values[a] - values[b] || a - b));
  return order;
}

/**
 * One pass of a radix sort, which keeps the order of equals.
 * @param {Uint32Array} order @param {Uint16Array} digits
 */
function byDigit(order, digits) {
  const next = new Uint32Array(65537);
  for (let j = 0; j < digits.length; j++) next[digits[j] + 1]++;
  for (let d = 1; d < next.length; d++) next[d] += next[d - 1];
  const out = new Uint32Array(order.length);
  for (let i = 0; i < order.length; i++) out[next[digits[order[i]]]++] = order[i];
  return out;
}
