import { expect, test } from "vitest";
import { CloudIndex, NOWHERE, within } from "../shared/cloud_index.js";
import { overlap, placed } from "../shared/cloud_labels.js";
import { DIM, Painter } from "../shared/cloud_paint.js";

/** Numbers in [0, 1), the same each time. @param {number} seed */
function random(seed) {
  let state = seed;
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 32;
  };
}

/** Clumps, a frame, points on each other, and points that lie nowhere. */
function points(n, seed) {
  const draw = random(seed);
  const x = new Uint16Array(n);
  const y = new Uint16Array(n);
  for (let i = 0; i < n; i++) {
    const clump = i % 3 ? 0 : 20000;
    x[i] = i % 3 ? Math.floor(draw() * 65535) : 30000 + Math.floor(draw() * 300);
    y[i] = i % 3 ? Math.floor(draw() * 65535) : clump + Math.floor(draw() * 300);
    if (i % 50 === 7) [x[i], y[i]] = [NOWHERE, NOWHERE];
    if (i % 40 === 3) [x[i], y[i]] = [x[i - 1], y[i - 1]];
    if (i % 97 === 5) x[i] = i % 2 ? 0 : 65535;
  }
  return { x, y };
}

/** What a nearest point is, without a grid. */
function nearest({ x, y }, px, py, most, fits = () => true) {
  let [best, found] = [most * most, -1];
  for (let i = 0; i < x.length; i++) {
    if (x[i] === NOWHERE && y[i] === NOWHERE) continue;
    const [dx, dy] = [x[i] - px, y[i] - py];
    if (dx * dx + dy * dy > best || !fits(i, dx, dy)) continue;
    if (dx * dx + dy * dy === best && found >= 0) continue;
    [best, found] = [dx * dx + dy * dy, i];
  }
  return found;
}

const SIZES = [5, 700, 21_000, 201_000];
/** As many tries as a search through all of them leaves time for. @param {number} n @param {number} most */
const tries = (n, most) => Math.max(1, Math.min(most, Math.floor(4e5 / n)));

test.each(SIZES)("the nearest of %i points is that of all of them", (n) => {
  const cloud = points(n, n);
  const index = new CloudIndex(cloud.x, cloud.y);
  const draw = random(1);
  for (let i = 0; i < tries(n, 60); i++) {
    // now and then outside of where points can be, in the clump, and exactly on a point
    const on = Math.floor(draw() * n);
    const [px, py] =
      i % 4 === 3
        ? [cloud.x[on], cloud.y[on]]
        : [(draw() * 1.4 - 0.2) * 65535, i % 4 ? (draw() * 1.4 - 0.2) * 65535 : 100];
    for (const most of [3, 900, 2e5]) expect(index.nearest(px, py, most)).toBe(nearest(cloud, px, py, most));
    const odd = (j) => j % 2 === 1;
    expect(index.nearest(px, py, 2e5, odd)).toBe(nearest(cloud, px, py, 2e5, odd));
  }
});

test.each(SIZES)("arrow keys go to the nearest of %i points in their direction", (n) => {
  const cloud = points(n, n + 1);
  const index = new CloudIndex(cloud.x, cloud.y);
  for (let i = 0; i < Math.min(n, tries(n, 30)); i++)
    for (const [dx, dy] of [
      [1, 0],
      [-1, 0],
      [0, 1],
      [0, -1],
    ]) {
      const there = index.towards(i, dx, dy);
      if (index.place(i) === null) {
        expect(there).toBe(-1);
        continue;
      }
      const same = (j) => cloud.x[j] === cloud.x[i] && cloud.y[j] === cloud.y[i];
      if (there >= 0 && same(there)) {
        expect(Math.sign(there - i)).toBe(dx + dy);
        expect(index.towards(there, -dx, -dy)).toBe(i);
        continue;
      }
      const fits = (j, x, y) =>
        !same(j) && x * dx + y * dy > 0 && x * dx + y * dy >= Math.abs(x * dy - y * dx);
      expect(there).toBe(nearest(cloud, cloud.x[i], cloud.y[i], 1e6, fits));
    }
});

test.each(SIZES)("a lasso and a box hold what is within them, of %i points", (n) => {
  const cloud = points(n, n + 2);
  const index = new CloudIndex(cloud.x, cloud.y);
  const draw = random(3);
  const star = Array.from({ length: 40 }, (_, i) => {
    const far = (i % 2 ? 9000 : 31000) * (0.6 + draw());
    return [33000 + far * Math.cos(i / 6.4), 30000 + far * Math.sin(i / 6.4)];
  });
  const box = [
    [-50, 10],
    [70000, 10],
    [70000, 30100],
    [-50, 30100],
  ];
  const crossed = [
    [1000, 1000],
    [60000, 60000],
    [60000, 1000],
    [1000, 60000],
  ];
  for (const line of [star, box, crossed].slice(0, tries(n, 3))) {
    const all = [...cloud.x.keys()].filter(
      (i) => !(cloud.x[i] === NOWHERE && cloud.y[i] === NOWHERE) && within(line, cloud.x[i], cloud.y[i]),
    );
    expect(index.inside(line)).toEqual(all);
  }
  expect(index.inside(box.slice(0, 2))).toEqual([]);
});

test("what is in sight is all of it and little else", () => {
  const cloud = points(21_000, 5);
  const index = new CloudIndex(cloud.x, cloud.y);
  const box = [20000, 15000, 34000, 21000];
  const seen = [];
  index.stretches(...box, (from, to) => {
    for (let at = from; at < to; at++) seen.push(index.order[at]);
  });
  const inBox = (i, by) =>
    cloud.x[i] >= box[0] - by &&
    cloud.x[i] <= box[2] + by &&
    cloud.y[i] >= box[1] - by &&
    cloud.y[i] <= box[3] + by;
  const all = [...cloud.x.keys()].filter((i) => inBox(i, 0));
  const held = new Set(seen);
  expect(all.filter((i) => !held.has(i))).toEqual([]);
  expect(held.size).toBe(seen.length);
  expect(seen.every((i) => inBox(i, 256))).toBe(true);
  const none = [];
  index.stretches(70000, 0, 80000, 100, (from, to) => none.push(from, to));
  expect(none).toEqual([]);
  index.stretches(-1e9, -1e9, 1e9, 1e9, (from, to) => none.push(from, to));
  expect(none).toEqual([0, index.order.length]);
});

test("labels do not cover each other, stay in sight, and those that come first are kept", () => {
  const draw = random(7);
  const measure = (text) => 7 * text.length;
  const labels = Array.from({ length: 300 }, (_, i) => {
    return { x: draw() * 900 - 50, y: draw() * 600 - 50, text: "x".repeat(3 + (i % 30)) };
  });
  const [width, height] = [800, 500];
  const kept = placed(labels, width, height, measure, { most: 1000 });
  expect(kept.length).toBeGreaterThan(20);
  kept.forEach((a, i) => {
    expect(a.left >= 0 && a.top >= 0 && a.left + a.width <= width && a.top + a.height <= height).toBe(true);
    for (const b of kept.slice(i + 1)) expect(overlap(a, b, 0)).toBe(false);
  });
  // who is left out is out of sight, or meets one that came before
  const names = new Set(kept.map((a) => `${a.x} ${a.y}`));
  for (const label of labels) {
    if (names.has(`${label.x} ${label.y}`)) continue;
    const outside = label.x < 0 || label.y < 0 || label.x > width || label.y > height;
    const [own] = placed([label], width, height, measure);
    const before = kept.filter((a) => labels.findIndex((l) => l.x === a.x) < labels.indexOf(label));
    expect(outside || before.some((a) => overlap(own, a, 4))).toBe(true);
  }
  expect(placed(labels, width, height, measure, { most: 5 })).toEqual(kept.slice(0, 5));
  const seen = (zoom) => {
    const moved = labels.map((l) => ({ ...l, x: 400 + (l.x - 400) * zoom, y: 250 + (l.y - 250) * zoom }));
    const far = placed(moved, 1e4, 1e4, measure, { most: 1000 });
    return far.length;
  };
  expect(seen(4)).toBeGreaterThan(seen(1));
});

/** What is painted: [red, green, blue, alpha] of a pixel. */
function painting(cloud, { tone, shape, size = null, dimmed = false }, frame) {
  const index = new CloudIndex(cloud.x, cloud.y);
  const palette = new Uint8Array(1024).map((_, i) => (i % 4 === 3 ? 255 : i >> 2));
  const scene = { index, tone: index.sorted(tone), shape: index.sorted(shape), size, palette, dimmed };
  let image;
  const context = {
    createImageData: (width, height) => ({ width, data: new Uint8ClampedArray(4 * width * height) }),
    putImageData: (given) => {
      image = given;
    },
  };
  const painter = new Painter();
  // what was drawn before leaves nothing behind
  painter.draw(context, { ...scene, tone: scene.tone.map(() => 9) }, { ...frame, left: frame.left + 3 });
  painter.draw(context, scene, frame);
  return (px, py) => [...image.data.slice(4 * (py * frame.width + px), 4 * (py * frame.width + px) + 4)];
}

test("every point is painted where it lies, and nothing else", () => {
  const cloud = points(700, 11);
  const tone = Uint8Array.from(cloud.x, (_, i) => i % 7);
  const shape = new Uint8Array(700);
  const frame = { width: 300, height: 200, scale: 0.004, left: 20, top: 190, radius: 0.5, opacity: 1 };
  const pixel = painting(cloud, { tone, shape }, frame);
  const lie = new Map();
  cloud.x.forEach((x, i) => {
    if (x === NOWHERE && cloud.y[i] === NOWHERE) return;
    const at = `${Math.floor(x * 0.004 + 20)} ${Math.floor(190 - cloud.y[i] * 0.004)}`;
    lie.set(at, [...(lie.get(at) ?? []), i % 7]);
  });
  const wrong = [];
  for (let py = 0; py < 200; py++)
    for (let px = 0; px < 300; px++) {
      const [red, green, , alpha] = pixel(px, py);
      const there = lie.get(`${px} ${py}`);
      const right = there ? alpha > 0 && red === green && there.includes(red) : alpha === 0;
      if (!right) wrong.push([px, py]);
    }
  expect(wrong).toEqual([]);
});

test("discs, crosses, and what stands out over what does not", () => {
  const cloud = { x: Uint16Array.from([100, 100, 200]), y: Uint16Array.from([100, 100, 100]) };
  const frame = { width: 60, height: 40, scale: 0.2, left: 0, top: 40, radius: 4, opacity: 1 };
  const tone = Uint8Array.from([5, DIM, 3]);
  const pixel = painting(cloud, { tone, shape: Uint8Array.from([0, 0, 1]), dimmed: true }, frame);
  expect(pixel(20, 20)[0]).toBe(5);
  expect(pixel(20, 17)[0]).toBe(5);
  const faint = { ...frame, opacity: 0.5 };
  const half = painting(cloud, { tone, shape: Uint8Array.from([0, 0, 1]), dimmed: true }, faint);
  expect(half(20, 20)[3]).toBe(127); // as if nothing lay below
  // a cross has arms aslant, and nothing above its middle
  expect([pixel(40, 20)[0], pixel(42, 22)[0], pixel(38, 22)[0]]).toEqual([3, 3, 3]);
  expect(pixel(40, 17)[3]).toBe(0);
  const dim = painting(
    cloud,
    { tone: new Uint8Array(3).fill(DIM), shape: new Uint8Array(3), dimmed: true },
    frame,
  );
  expect(dim(20, 20)[0]).toBe(DIM);
});
