/**
 * The windows of a card: a line of tokens each, or a picture with the patches that fire.
 * @typedef {import("../types.js").Answer} Answer
 * @typedef {import("../types.js").Part} Part
 * @typedef {import("../types.js").Pictures} Pictures
 * @typedef {{kind: string, peak: number, value: number, row: number, document: number, n: number,
 *   parts?: [string, number, number, number, number][], call?: number}} Window
 * @typedef {{document: number, title: string, label: string, grids: number, bytes: number,
 *   asked: boolean}} Told
 * @typedef {(row: number) => Promise<HTMLElement>} Whole
 */
import { h, tokenElement, tokenName } from "./dom.js";
import { addPicture, gridElement, partsOf, patchElement, placeOf } from "./pictures.js";
import { paint } from "./scales.js";
import { reasonOf } from "./view.js";

/**
 * The windows of a card by kind, all on one scale.
 * @param {Answer} card @param {(value: number) => string} say @param {Pictures} pictures of documents that
 *   did not come along
 * @param {Whole} [whole] asks for the document of a row
 */
export function windowLists({ header, fields }, say, pictures, whole) {
  const { stats, windows, vocabulary, quantum, zero } = header;
  /** @type {Float32Array} */
  const values = quantum
    ? Float32Array.from(fields.values, (/** @type {number} */ v) => (v - zero) * quantum)
    : fields.values;
  const max = Math.max(Math.abs(stats.max), Math.abs(stats.min));
  const documents = documentsOf(header.documents ?? [], fields.pictures, pictures);
  const draw = { max, say, documents, whole };
  /** @type {(string | null)[]} */
  const noNames = [];
  /** @type {Record<string, HTMLElement[]>} */
  const lists = { top: [], bottom: [], quantile: [], random: [], silent: [], whole: [] };
  let [at, named] = [0, 0];
  for (const w of /** @type {Window[]} */ (windows)) {
    const parts = w.parts ? partsOf(w.parts) : [{ kind: "line", n: w.n, width: 0, at: 0, of: w.n }];
    let first = 0;
    const pieces = parts.map((part) => {
      const from = at + first;
      const piece = {
        part,
        values: values.subarray(from, from + part.n),
        peak: w.peak - first,
        names: noNames,
      };
      if (part.kind !== "grid") {
        const own = fields.names.subarray(named, named + part.n);
        piece.names = Array.from(own, (i) => vocabulary[i]);
        named += part.n;
      }
      first += part.n;
      return piece;
    });
    at += w.n;
    lists[w.kind].push(windowElement(w, pieces, draw));
  }
  return lists;
}

/**
 * What is known of documents, their pictures shown as soon as they are there.
 * @param {Told[]} told @param {Uint8Array} along their pictures, one after the other
 * @param {Pictures} pictures @returns {Map<number, Told & {show: (place: HTMLElement) => void}>}
 */
function documentsOf(told, along, pictures) {
  let at = 0;
  return new Map(
    told.map((each) => {
      const own = along.subarray(at, at + each.bytes);
      at += each.bytes;
      /** @param {HTMLElement} place */
      const show = (place) => {
        if (!each.asked) addPicture(place, own, each.title);
        else
          pictures(each.document).then(
            (bytes) => addPicture(place, bytes, each.title),
            () => {}, // the patches are shown without it
          );
      };
      return [each.document, { ...each, show }];
    }),
  );
}

/**
 * @typedef {{part: Part, values: Float32Array, peak: number, names: (string | null)[]}} Piece
 * @typedef {{max: number, say: (value: number) => string, documents: ReturnType<typeof documentsOf>,
 *   whole?: Whole}} Draw
 * @param {Window} w @param {Piece[]} pieces @param {Draw} draw
 */
function windowElement(w, pieces, draw) {
  const document = draw.documents.get(w.document);
  const call = w.call === undefined ? "" : `, call ${w.call}`;
  const where = `${document?.title ?? `document ${w.document}`}, row ${w.row}${call}`;
  const value = h("button", { type: "button", class: "sl-value", title: where }, draw.say(w.value));
  const item = { "data-row": w.row, "data-document": w.document };
  if (!document) {
    const line = lineElement(pieces[0], draw);
    return h("li", item, value, h("div", { class: "sl-line" }, line, unfolding(w, line, draw.whole)));
  }

  // with one grid the picture is what it covers, else it stands for itself
  const grids = pieces.filter(({ part }) => part.kind === "grid").map((piece) => gridOf(piece, draw));
  if (document.grids === 1 && grids.length) document.show(grids[0]);
  else {
    const apart = h("div", { class: "sl-apart" });
    document.show(apart);
    grids.unshift(apart);
  }
  const lines = pieces.filter(({ part }) => part.kind === "line" || part.kind === "list");
  const extra = pieces.filter(({ part }) => part.kind === "extra");
  const title = h("bdi", { class: "sl-title", title: where }, `${document.label || document.title}${call}`);
  return h(
    "li",
    { ...item, class: lines.length ? "sl-tile sl-wide" : "sl-tile" },
    h("div", { class: "sl-seen" }, ...grids, ...extra.map((piece) => extraElement(piece, draw))),
    ...lines.map((piece) => lineElement(piece, draw)),
    h("div", { class: "sl-caption" }, value, title),
  );
}

/**
 * A button that shows the whole document in place of the window, and back.
 * @param {Window} w @param {HTMLElement} line @param {Whole} [whole]
 */
function unfolding(w, line, whole) {
  if (!whole) return null;
  /** @type {HTMLElement | null} */
  let shown = null;
  const button = h("button", { type: "button", class: "sl-more", "aria-expanded": false }, "Document");
  const said = h("small", { class: "sl-hint", role: "status" });
  button.onclick = async (event) => {
    event.stopPropagation();
    if (shown) {
      shown.replaceWith(line);
      shown = null;
      button.setAttribute("aria-expanded", "false");
      return;
    }
    button.setAttribute("aria-busy", "true");
    try {
      const made = await whole(w.row);
      if (shown) return;
      shown = made;
      line.replaceWith(shown);
      button.setAttribute("aria-expanded", "true");
      said.textContent = "";
      const peak = shown.querySelector(".sl-peak");
      if (peak instanceof HTMLElement) shown.scrollTop = peak.offsetTop - shown.offsetTop - 40;
    } catch (error) {
      said.textContent = reasonOf(error);
    } finally {
      button.removeAttribute("aria-busy");
    }
  };
  return h("span", { class: "sl-unfold" }, button, said);
}

/** @param {Piece} piece @param {Draw} draw */
function lineElement({ names, values, peak }, { max, say }) {
  const before = h("span", { class: "sl-before" });
  const after = h("span", { class: "sl-after" });
  const text = h("span", { class: "sl-window", dir: "ltr" }, before, after);
  names.forEach((each, i) => {
    const name = tokenName(each);
    const element = tokenElement(each, {
      class: i === peak ? "sl-peak" : "",
      title: values[i] ? `${name}  ${say(values[i])}` : name,
    });
    if (values[i]) paint(element, values[i], max);
    (i < peak ? before : after).append(element);
  });
  return text;
}

/** The patches that fire. @param {Piece} piece @param {Draw} draw */
function gridOf({ part, values, peak }, { max, say }) {
  /** @type {HTMLElement[]} */
  const patches = [];
  values.forEach((value, i) => {
    if (!value) return;
    const { row, column } = placeOf(part, i);
    const title = `patch ${row},${column}  ${say(value)}`;
    const element = patchElement(part, i, { class: i === peak ? "sl-fires sl-peak" : "sl-fires", title });
    paint(element, value, max);
    patches.push(element);
  });
  const label = `${patches.length} of ${part.n} patches fire`;
  return gridElement(part, patches, { role: "img", "aria-label": label });
}

/** The extra positions that fire. @param {Piece} piece @param {Draw} draw */
function extraElement({ part, values, names, peak }, { max, say }) {
  const place = h("div", { class: "sl-extra" });
  values.forEach((value, i) => {
    if (!value) return;
    const element = tokenElement(names[i] === String(part.at + i) ? `extra ${names[i]}` : names[i], {
      class: i === peak ? "sl-boxed sl-peak" : "sl-boxed",
      title: `extra ${part.at + i}  ${say(value)}`,
    });
    paint(element, value, max);
    place.append(element);
  });
  return place.childElementCount ? place : null;
}
