/**
 * A cloud drawn by the graphics card. All clouds of a page have one context, whatever they are of: browsers
 * take the oldest ones away where there are more than some 16.
 * @typedef {import("./cloud_paint.js").Scene} Scene
 * @typedef {import("./cloud_paint.js").Frame} Frame
 */
import { DIM } from "./cloud_paint.js";

const KEY = Symbol.for("saelab.cloud.1");
const SOFTWARE = /swiftshader|llvmpipe|softpipe|software|basic render/i;

const VERTEX = `#version 300 es
in float x; in float y; in float tone; in float shape; in float size;
uniform vec4 view; uniform float radius; uniform float sized; uniform float dim; uniform sampler2D palette;
flat out vec4 colour; flat out float cross; flat out float far;
void main() {
  far = radius * (sized > 0. ? .6 + 1.6 * size / 7. : 1.);
  cross = shape;
  colour = texelFetch(palette, ivec2(int(tone), 0), 0);
  gl_PointSize = far < .8 ? 1. : 2. * far + 1.;
  gl_Position = vec4(vec2(x, y) * view.xy + view.zw, 0, 1);
  if (dim >= 0. && (tone == ${DIM}.) != (dim > 0.)) gl_Position = vec4(2, 2, 2, 1);
}`;
const FRAGMENT = `#version 300 es
precision mediump float;
flat in vec4 colour; flat in float cross; flat in float far;
uniform float opacity; out vec4 shown;
void main() {
  vec2 p = abs(gl_PointCoord * 2. - 1.) * (far + .5);
  float off = cross > 0. && far > .8 ? abs(p.x - p.y) - .2 : length(p) - far;
  float alpha = (far < .8 ? 1. : clamp(.5 - off, 0., 1.)) * opacity * colour.a;
  shown = vec4(colour.rgb * alpha, alpha);
}`;

/**
 * The page's context, null where there is none, or none that is faster than the processor: a software
 * renderer takes ten times as long as `Painter` does.
 * @param {boolean} [any] take a software renderer too
 */
export function sharedContext(any = false) {
  const page = /** @type {any} */ (globalThis);
  if (page[KEY] === undefined) page[KEY] = opened(any);
  return /** @type {ReturnType<typeof opened>} */ (page[KEY]);
}

/** @param {boolean} any */
function opened(any) {
  const canvas = document.createElement("canvas");
  const gl = canvas.getContext("webgl2", { antialias: false, failIfMajorPerformanceCaveat: !any });
  if (!gl) return null;
  const info = gl.getExtension("WEBGL_debug_renderer_info");
  const renderer = String(gl.getParameter(info ? info.UNMASKED_RENDERER_WEBGL : gl.RENDERER));
  if (!any && SOFTWARE.test(renderer)) {
    gl.getExtension("WEBGL_lose_context")?.loseContext();
    return null;
  }
  /** clouds that draw themselves anew when the context comes or goes @type {Set<() => void>} */
  const users = new Set();
  const made = { canvas, gl, renderer, users, lost: false, program: programOf(gl), generation: 0 };
  const tell = () => {
    for (const redraw of users) redraw();
  };
  canvas.addEventListener("webglcontextlost", (event) => {
    event.preventDefault(); // so that it is given back
    made.lost = true;
    tell();
  });
  canvas.addEventListener("webglcontextrestored", () => {
    made.program = programOf(gl);
    made.generation++;
    made.lost = false;
    tell();
  });
  return made;
}

/** @param {WebGL2RenderingContext} gl */
function programOf(gl) {
  const program = /** @type {WebGLProgram} */ (gl.createProgram());
  for (const [kind, source] of /** @type {const} */ ([
    [gl.VERTEX_SHADER, VERTEX],
    [gl.FRAGMENT_SHADER, FRAGMENT],
  ])) {
    const shader = /** @type {WebGLShader} */ (gl.createShader(kind));
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    gl.attachShader(program, shader);
  }
  gl.linkProgram(program);
  return program;
}

/** One cloud's arrays on the card; they are sent again where they changed. */
export class Card {
  /** @param {NonNullable<ReturnType<typeof sharedContext>>} shared @param {() => void} redraw */
  constructor(shared, redraw) {
    this.shared = shared;
    this.redraw = redraw;
    this.generation = -1;
    /** @type {Record<string, {data: ArrayBufferView, buffer: WebGLBuffer}>} */
    this.held = {};
    shared.users.add(redraw);
  }

  /**
   * Whether it was drawn.
   * @param {CanvasRenderingContext2D} context @param {Scene} scene @param {Frame} frame
   */
  draw(context, scene, frame) {
    const { gl, canvas, program } = this.shared;
    if (this.shared.lost) return false;
    if (this.generation !== this.shared.generation) this.held = {};
    this.generation = this.shared.generation;
    const { width, height, scale, left, top, radius, opacity } = frame;
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    gl.viewport(0, 0, width, height);
    gl.useProgram(program);
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
    const { index, tone, shape, size, palette, dimmed } = scene;
    const arrays = { x: index.x, y: index.y, tone, shape, size: size ?? shape };
    for (const [name, data] of Object.entries(arrays)) this.attribute(name, data);
    this.texture(palette);
    const set = (/** @type {string} */ name, /** @type {number[]} */ ...v) => {
      const at = gl.getUniformLocation(program, name);
      if (v.length === 4) gl.uniform4f(at, v[0], v[1], v[2], v[3]);
      else gl.uniform1f(at, v[0]);
    };
    set("view", (2 * scale) / width, (2 * scale) / height, (2 * left) / width - 1, 1 - (2 * top) / height);
    set("radius", radius);
    set("opacity", opacity);
    set("sized", size ? 1 : 0);
    gl.clearColor(0, 0, 0, 0);
    gl.clear(gl.COLOR_BUFFER_BIT);
    for (const dim of dimmed ? [1, 0] : [-1]) {
      set("dim", dim);
      gl.drawArrays(gl.POINTS, 0, index.x.length);
    }
    context.clearRect(0, 0, width, height);
    context.drawImage(canvas, 0, 0);
    return true;
  }

  /** @param {string} name @param {Uint8Array | Uint16Array} data */
  attribute(name, data) {
    const { gl, program } = this.shared;
    const at = gl.getAttribLocation(program, name);
    const kept = this.held[name];
    const buffer = kept?.buffer ?? /** @type {WebGLBuffer} */ (gl.createBuffer());
    gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
    if (kept?.data !== data) gl.bufferData(gl.ARRAY_BUFFER, data, gl.STATIC_DRAW);
    this.held[name] = { data, buffer };
    gl.enableVertexAttribArray(at);
    const kind = data instanceof Uint16Array ? gl.UNSIGNED_SHORT : gl.UNSIGNED_BYTE;
    gl.vertexAttribPointer(at, 1, kind, false, 0, 0);
  }

  /** @param {Uint8Array} palette */
  texture(palette) {
    const { gl } = this.shared;
    const texture = gl.createTexture();
    gl.bindTexture(gl.TEXTURE_2D, texture);
    for (const side of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER])
      gl.texParameteri(gl.TEXTURE_2D, side, gl.NEAREST);
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, 256, 1, 0, gl.RGBA, gl.UNSIGNED_BYTE, palette);
    this.colours?.delete();
    this.colours = { delete: () => gl.deleteTexture(texture) };
  }

  /** Let go of everything. */
  close() {
    const { gl, users } = this.shared;
    users.delete(this.redraw);
    for (const { buffer } of Object.values(this.held)) gl.deleteBuffer(buffer);
    this.colours?.delete();
    this.held = {};
  }
}
