/** Circuits: an attribution graph, the nodes that carry a task, or ROC curves of what tells them. */
import { CircuitGrid } from "../shared/circuit_grid.js";
import { rocFigure } from "../shared/circuit_scores.js";
import { h } from "../shared/dom.js";
import { GraphView } from "../shared/graph_view.js";
import { rendering } from "../shared/view.js";

export const render = rendering(async (view) => {
  const answer = await view.ask("circuit");
  if (!answer) return; // the reason is shown already
  const { header, fields } = answer;
  if (header.what === "graph") new GraphView(view, answer);
  else if (header.what === "circuit") new CircuitGrid(view, answer);
  else view.body.append(...codes(header, fields));
});

/** Whether codes of heads tell a circuit. @param {any} header @param {Record<string, Float32Array>} fields */
function codes(header, fields) {
  const [first, ...rest] = header.said.split("\n");
  const failed = header.title === "diversity score";
  return [
    h("h2", { class: "sl-circuit-title" }, h("bdi", {}, first)),
    h("p", { class: failed ? "sl-doubt" : "sl-hint" }, rest.join(" ")),
    rocFigure(header, fields),
  ];
}
