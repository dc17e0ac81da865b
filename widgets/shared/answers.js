/**
 * Answers as they are sent, and as views read them: the one place that knows how fields lie in bytes.
 * @typedef {import("../types.js").Answer} Answer
 * @typedef {import("../types.js").Args} Args
 * @typedef {import("../types.js").Sent} Sent
 */

const ARRAYS = {
  int8: Int8Array,
  uint8: Uint8Array,
  int16: Int16Array,
  uint16: Uint16Array,
  int32: Int32Array,
  uint32: Uint32Array,
  float32: Float32Array,
  float64: Float64Array,
};

/**
 * One name for a question with its arguments, the same as in Python: `card?latent=7`.
 * @param {string} question @param {Args} [args]
 */
export function keyOf(question, args = {}) {
  const pairs = Object.keys(args)
    .sort()
    .map((name) => `${name}=${JSON.stringify(args[name])}`);
  return pairs.length ? `${question}?${pairs.join("&")}` : question;
}

/**
 * An answer of named fields. Fails where the buffers are not those that the header describes.
 * @param {Sent} sent @returns {Answer}
 */
export function decode({ header, buffers }) {
  const { fields: described = [], ...rest } = header;
  if (described.length !== buffers.length)
    throw new Error(
      `An answer must have a buffer for each field. Got ${buffers.length} for ${described.length}.`,
    );
  const fields = Object.fromEntries(
    described.map((/** @type {any} */ field, /** @type {number} */ i) => [
      field.name,
      fieldOf(field, bytesOf(buffers[i])),
    ]),
  );
  return { header: rest, fields };
}

/**
 * Several answers in one piece of an exported page: the length of their headers, the headers, all buffers.
 * @param {Uint8Array<ArrayBuffer>} bytes
 * @returns {Answer[]}
 */
export function decodeChunk(bytes) {
  const length = new DataView(bytes.buffer, bytes.byteOffset).getUint32(0, true);
  /** @type {any[]} */
  const headers = JSON.parse(new TextDecoder().decode(bytes.subarray(4, 4 + length)));
  let at = 4 + length;
  return headers.map((header) => {
    const buffers = header.fields.map((/** @type {any} */ field) => {
      const end = at + sizeOf(field);
      const buffer = bytes.subarray(at, end);
      at = end;
      return buffer;
    });
    return decode({ header, buffers });
  });
}

/** Bytes of a field. @param {{name: string, dtype: string, shape: number[]}} field */
function sizeOf({ name, dtype, shape }) {
  const count = shape.reduce((a, b) => a * b, 1);
  if (dtype === "json") return count;
  const Type = ARRAYS[/** @type {keyof typeof ARRAYS} */ (dtype)];
  if (!Type)
    throw new Error(
      `A field must be json or an array of ${Object.keys(ARRAYS).join(", ")}. Got ${name} of ${dtype}.`,
    );
  return count * Type.BYTES_PER_ELEMENT;
}

/** @param {{name: string, dtype: string, shape: number[]}} field @param {Uint8Array<ArrayBuffer>} bytes */
function fieldOf(field, bytes) {
  const size = sizeOf(field);
  if (bytes.length !== size)
    throw new Error(`Field ${field.name} must have ${size} bytes. Got ${bytes.length}.`);
  if (field.dtype === "json") return JSON.parse(new TextDecoder().decode(bytes));
  return new ARRAYS[/** @type {keyof typeof ARRAYS} */ (field.dtype)](bytes.buffer);
}

/**
 * A copy, so that any offset fits typed arrays.
 * @param {DataView | ArrayBuffer | Uint8Array} buffer
 * @returns {Uint8Array<ArrayBuffer>}
 */
function bytesOf(buffer) {
  if (buffer instanceof ArrayBuffer) return new Uint8Array(buffer.slice(0));
  const seen = new Uint8Array(
    /** @type {ArrayBuffer} */ (buffer.buffer),
    buffer.byteOffset,
    buffer.byteLength,
  );
  return new Uint8Array(seen);
}
