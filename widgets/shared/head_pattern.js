/** The pattern of a head as a picture: from each token (a row) to each (a column). */
import { isDark, watchTheme } from "./dark.js";
import { h } from "./dom.js";
import { PALETTE } from "./scales.js";

/** What a weight of 1 is sent as. */
export const WHOLE = 65535;
/** Pixels of the picture's side, at most, and of a token's, at least and at most. */
const [SIDE, LEAST, MOST] = [330, 1, 14];

export class HeadPattern {
  /** @param {number} n tokens @param {(at: number) => void} choose the row that is clicked */
  constructor(n, choose) {
    this.n = n;
    /** @type {Uint16Array | null} */
    this.weights = null;
    this.masked = 0;
    this.dest = -1;
    this.each = Math.max(LEAST, Math.min(MOST, Math.floor(SIDE / n)));
    const side = this.each * n;
    this.canvas = /** @type {HTMLCanvasElement} */ (
      h("canvas", { width: side, height: side, role: "img", class: "sl-head-pattern" })
    );
    this.canvas.addEventListener("click", (event) => {
      const box = this.canvas.getBoundingClientRect();
      const row = Math.floor((this.n * (event.clientY - box.top)) / (box.height || 1));
      choose(Math.max(0, Math.min(this.n - 1, row)));
    });
    this.element = h("div", { class: "sl-head-picture" }, this.canvas);
    this.leave = watchTheme(() => this.paint());
  }

  /**
   * @param {Uint16Array | null} weights [n n] @param {string} name of the head
   * @param {number} masked columns from the left that are left out
   * @param {number} dest the row that is marked
   */
  draw(weights, name, masked, dest) {
    this.weights = weights;
    this.masked = masked;
    this.dest = dest;
    const without = masked ? ", without the first position" : "";
    const what = weights ? `pattern of head ${name}${without}: rows look at columns` : "no head is chosen";
    this.canvas.setAttribute("aria-label", what);
    this.element.hidden = !weights;
    this.paint();
  }

  paint() {
    const { weights, n, each, masked } = this;
    const context = weights && this.canvas.getContext("2d");
    if (!context) return;
    const { positive, text } =
      PALETTE[isDark(this.canvas.closest(".sl-root") ?? this.canvas) ? "dark" : "light"];
    context.clearRect(0, 0, n * each, n * each);
    let most = 1;
    for (let i = 0; i < weights.length; i++) if (i % n >= masked) most = Math.max(most, weights[i]);
    for (let row = 0; row < n; row++)
      for (let column = masked; column <= row; column++) {
        const share = weights[row * n + column] / most;
        if (share < 0.01) continue;
        context.fillStyle = `rgb(${positive.join(" ")} / ${(0.1 + 0.9 * share).toFixed(3)})`;
        context.fillRect(column * each, row * each, each, each);
      }
    if (this.dest < 0) return;
    context.strokeStyle = `rgb(${text.join(" ")})`;
    context.strokeRect(0.5, this.dest * each + 0.5, (this.dest + 1) * each - 1, Math.max(1, each - 1));
  }
}
