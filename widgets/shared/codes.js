/**
 * What the positions of a sample show, and the codes of each, in CSR form. Where a module runs several times,
 * the positions of one call come after those of another; `at` is a position of all. Of a long text the codes
 * come in chunks.
 * @typedef {import("../types.js").Answer} Answer
 * @typedef {import("../types.js").Part} Part
 * @typedef {{indptr: Int32Array, indices: Int32Array, values: Float32Array}} Chunk
 */
import { tokenName } from "./dom.js";
import { partsOf, placeOf } from "./pictures.js";

export class SampleCodes {
  /** @param {Answer} answer */
  constructor({ header, fields }) {
    /** @type {(string | null)[]} null of a token that goes on with the character before it */
    this.names = fields.names;
    /** @type {string[]} what kind of thing each position shows: "token", ... */
    this.facets = Array.from(fields.facets, (i) => header.facets[i]);
    /** @type {string} a word for any of them */
    this.facet = header.facets.length === 1 ? header.facets[0] : "row";
    /** @type {Uint8Array} whether statistics count a position */
    this.counted = fields.counted;
    /** @type {number} positions of a chunk */
    this.per = header.per ?? this.names.length;
    /** @type {Map<number, Chunk>} those that are here, by number */
    this.chunks = new Map();
    this.add(0, fields);
    /** @type {Float32Array | null} the strongest code of each position, where there are several chunks */
    this.strongestOf = fields.strongest ?? null;
    /** @type {Map<number, Float32Array>} latents along a text of several chunks, those that were asked for */
    this.kept = new Map();
    /** @type {Uint8Array} */
    this.picture = fields.picture;
    /** @type {string[]} */
    this.labels = header.labels;
    /** @type {Record<string, string>} latent -> its label */
    this.labelled = header.named ?? {};
    /** @type {string} in how many parts it was read; "" where in one */
    this.parted = header.parted ?? "";
    /** @type {number[]} where parts begin, but the first */
    this.starts = header.starts ?? [];
    /** @type {[string, string][]} what else is known of each position: names of layers, and their titles */
    this.layers = header.layers ?? [];
    /** @type {number} */
    this.calls = header.calls;
    /** of one call */
    this.length = this.names.length / this.calls;
    /** of one call */
    this.parts = partsOf(header.parts);
    /** @type {{part: Part, i: number}[]} of each position of one call, where it lies */
    this.places = this.parts.flatMap((part) => Array.from({ length: part.n }, (_, i) => ({ part, i })));
  }

  /** Whether all codes are here. */
  get whole() {
    return this.chunks.size * this.per >= this.names.length;
  }

  /** @param {number} number @param {any} fields of the chunk's answer */
  add(number, { indptr, indices, values }) {
    this.chunks.set(number, { indptr, indices, values });
  }

  /** For people: "3,5" in a grid, else a number. @param {number} at */
  placeName(at) {
    const within = at % this.length;
    const { part, i } = this.places[within];
    if (part.kind === "grid") {
      const { row, column } = placeOf(part, i);
      return `${row},${column}`;
    }
    return String(part.kind === "line" ? within : part.at + i);
  }

  /** Whether a position shows more than where it lies. @param {number} at */
  named(at) {
    return this.facets[at] === "token" || this.names[at] !== this.placeName(at);
  }

  /** What a position shows: of one that goes on with a character, that character. @param {number} at */
  shown(at) {
    let first = at;
    while (first > 0 && this.names[first] === null) first--;
    return this.names[first];
  }

  /** What a position is called. @param {number} at */
  called(at) {
    const kind = this.facets[at];
    if (kind === "token") return tokenName(this.names[at]);
    const own = this.named(at) ? ` ${tokenName(this.names[at])}` : "";
    return `${kind} ${this.placeName(at)}${own}`;
  }

  /**
   * Latents of a position, strongest first; null where its chunk is not here.
   * @param {number} at @returns {[number, number][] | null}
   */
  strongest(at) {
    const chunk = this.chunks.get(Math.floor(at / this.per));
    if (!chunk) return null;
    const { indptr, indices, values } = chunk;
    const within = at % this.per;
    /** @type {[number, number][]} */
    const found = [];
    for (let i = indptr[within]; i < indptr[within + 1]; i++) found.push([indices[i], values[i]]);
    return found.sort((a, b) => Math.abs(b[1]) - Math.abs(a[1]));
  }

  /**
   * Value of each position: of a latent, or without one the strongest of any; null where that is not here.
   * @param {number | null} latent @returns {Float32Array | null}
   */
  along(latent) {
    if (!this.whole) return latent === null ? this.strongestOf : (this.kept.get(latent) ?? null);
    const out = new Float32Array(this.names.length);
    for (const [number, { indptr, indices, values }] of this.chunks) {
      const first = number * this.per;
      for (let k = 0; k + 1 < indptr.length; k++) {
        const at = first + k;
        for (let i = indptr[k]; i < indptr[k + 1]; i++) {
          const stronger = this.counted[at] && Math.abs(values[i]) > Math.abs(out[at]);
          if (latent === null ? stronger : indices[i] === latent) out[at] = values[i];
        }
      }
    }
    return out;
  }

  /** Keep a latent along the text, as it was asked for. @param {number} latent @param {Answer} answer */
  keep(latent, { fields }) {
    const out = new Float32Array(this.names.length);
    fields.positions.forEach((/** @type {number} */ at, /** @type {number} */ i) => {
      out[at] = fields.values[i];
    });
    this.kept.set(latent, out);
    return out;
  }
}

/**
 * Whether a position stands for itself: tokens run on as a text.
 * @param {SampleCodes} codes @param {number} at
 */
export function boxed(codes, at) {
  return codes.facets[at] !== "token";
}
