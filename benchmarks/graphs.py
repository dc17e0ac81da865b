"""Is a latent that an attribution graph says matters one without which the logit changes?

python benchmarks/graphs.py [--texts 16] [--nodes 48] [--coders FOLDER] [--steps 600] [--record NAME]
    [--model SmolLM2-135M] [--layers 10 20 ...] [--rows 50000] [--d-sae 512] [--length 30] [--max-nodes 2048]

Of each text of the labelled world that training never saw: the graph of the embedded model's likeliest next
token, through the SAEs that ship, through transcoders of all MLPs that are trained here, and through both; of
SmolLM2 the same of paragraphs of WikiText that training never saw, through transcoders alone. Then
latents are taken out of the model one by one (code times decoder row, at their position) and the model
runs on freely: attention, norms and MLPs answer. Half of them are those of the most influence, half are drawn
at random. Beside influence stand the size of what a latent writes, which needs no graph, and graphs of
untrained SAEs. Intervals are over texts.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from generation import models
from promises.real_texts import paragraphs
from results import record
from scipy.stats import spearmanr

import saelab
from saelab.analysis import AttributionGraph, attribution_graph
from saelab.analysis.attention.frozen import decoder_of
from saelab.analysis.controls import untrained
from saelab.embedded import SAE_HOOKS
from saelab.sae import SAE


def main() -> None:
    parser = argparse.ArgumentParser(description="Influence in attribution graphs against ablation")
    parser.add_argument("--texts", type=int, default=16)
    parser.add_argument("--nodes", type=int, default=48)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--coders", help="a folder of the transcoders; they are trained where it has none")
    parser.add_argument("--model", choices=["embedded", "SmolLM2-135M"], default="embedded")
    parser.add_argument("--layers", type=int, nargs="*", help="that have transcoders; by default all")
    parser.add_argument("--rows", type=int, default=50_000, help="that transcoders are trained on")
    parser.add_argument("--d-sae", type=int, default=512, help="of transcoders")
    parser.add_argument("--length", type=int, default=30, help="of a text, in tokens")
    parser.add_argument("--max-nodes", type=int, default=2048)
    parser.add_argument("--record", help="keep the figures as benchmarks/results/NAME.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    subject = models()[options.model]()
    seen, held_out = corpora(options.model)
    coders = transcoders(subject, seen, Path(options.coders or tempfile.mkdtemp()), options)
    tokens = [subject.to_tokens(text, bos=False) for text in held_out]
    long = [ids[: options.length] for ids in tokens if len(ids) >= options.length]
    texts = [subject.tokenizer.decode(ids) for ids in long[: options.texts]]
    sets = {"transcoders": coders}
    if options.model == "embedded":
        ours = [saelab.load_sae(saelab.embedded.sae_folder(hook)) for hook in SAE_HOOKS]
        heads = [sae for sae in ours if str(sae.hook).endswith("hook_z")]
        sets = {"SAEs that ship": ours, **sets, "transcoders and SAEs of attention": coders + heads}
    rows = []
    for name, saes in sets.items():
        own, blank = [], []
        for text in texts:
            own.append(measured(subject, saes, text, options))
            blank.append(measured(subject, bare(subject, saes, text), text, options))
            print(f"{name}: {len(own)} of {len(texts)} texts", flush=True)
        row: dict[str, Any] = {"model": options.model, "through": name, "texts": len(texts)}
        row["positions"] = options.length
        for what in own[0]:
            row[what] = told([each[what] for each in own])
            row[f"{what}, untrained"] = told([each[what] for each in blank])
        rows.append(row)
        for key, value in row.items():
            print(f"{key}: {value}", flush=True)
    if options.record:
        kept = ("texts", "nodes", "steps", "d_sae", "max_nodes", "layers")
        asked = {name: getattr(options, name) for name in kept}
        record(options.record, rows, trained_on=options.rows, **asked)


def corpora(model: str) -> tuple[list[str], list[str]]:
    """Texts that transcoders are trained on, and others."""
    if model == "embedded":
        seen, held_out = (saelab.corpora.world(seed, n_documents=n) for seed, n in ((11, 800), (903, 200)))
        return [each.text for each in seen], [each.text for each in held_out]
    return paragraphs(held_out=False), paragraphs(held_out=True)


def transcoders(subject: Any, texts: list[str], folder: Path, options: Any) -> list[SAE]:
    """Transcoders of MLPs of a model; those that the folder has are as they are."""
    layers = options.layers or range(subject.n_layers)
    pairs = {layer: (f"blocks.{layer}.mlp.hook_in", f"blocks.{layer}.hook_mlp_out") for layer in layers}
    missing = [layer for layer in layers if not (folder / f"mlp{layer}").exists()]
    if missing:
        hooks = [hook for layer in missing for hook in pairs[layer]]
        rows = options.rows
        acts = saelab.harvest(subject, texts, hooks, folder / "acts", max_rows=rows, progress=False)
        d = subject.d_model
        for layer in missing:
            read, written = pairs[layer]
            config = saelab.recipe(
                "transcoder", d_in=d, d_out=d, d_sae=options.d_sae, k=16, hook=read, hook_out=written
            )  # fmt: skip
            run = saelab.train(config, acts, steps=options.steps, batch_size=1024, seed=0, progress=False)
            run.sae.save(folder / f"mlp{layer}")
            print(f"transcoder of layer {layer}", flush=True)
    return [saelab.load_sae(folder / f"mlp{layer}").eval() for layer in layers]


def bare(subject: Any, saes: Sequence[SAE], text: str) -> list[SAE]:
    """Untrained SAEs in their place."""
    inputs = subject.prepare([text])
    hooks = dict.fromkeys(str(hook) for sae in saes for hook in (sae.hook, sae.writes[-1]))
    acts = {name: x[0] for name, x in subject.run(inputs, list(hooks)).acts.items()}
    return [
        untrained(sae, acts[str(sae.hook)], acts[str(sae.writes[-1])] if sae.hook != sae.writes[-1] else None)
        for sae in saes
    ]


def measured(subject: Any, saes: Sequence[SAE], text: str, options: Any) -> dict[str, float]:
    """How influence, effects and sizes go with what is lost without a latent."""
    begin, n = time.thread_time(), options.nodes
    graph = attribution_graph(subject, saes, text, max_nodes=options.max_nodes, max_logits=1, control=False)
    seconds = time.thread_time() - begin
    influence, effects = graph.influence(), graph.effects()
    latents = np.flatnonzero(graph.of_kind("latent"))
    best = latents[np.argsort(-influence[latents], kind="stable")[: n // 2]]
    rng = np.random.default_rng(0)
    others = np.setdiff1d(latents, best)
    drawn = rng.choice(others, min(n // 2, len(others)), replace=False)
    chosen = np.concatenate([best, drawn])
    lost, sizes = changes(subject, saes, graph, text, chosen)
    first = np.arange(len(chosen)) < len(best)
    return {
        "influence and |change|": rank(influence[chosen], np.abs(lost)),
        "size of what it writes and |change|": rank(sizes, np.abs(lost)),
        "effects and change": rank(effects[chosen], lost),
        "among the most influential, effects and change": rank(effects[best], lost[first]),
        "mean |change|, most influential": float(np.abs(lost[first]).mean()),
        "mean |change|, random": float(np.abs(lost[~first]).mean()),
        "replacement": graph.replacement.value,
        "completeness": graph.completeness.value,
        "latents": float(len(latents)),
        "off": float(np.nanmax(np.abs(graph.off()))),
        "seconds": seconds,
    }


def changes(
    subject: Any, saes: Sequence[SAE], graph: AttributionGraph, text: str, chosen: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What the logit less the mean logit loses without each latent, and the length of what the latent writes;
    the model runs on freely."""
    by = {str(sae.writes[-1]): sae for sae in saes}
    inputs = subject.prepare([text])
    hooks = dict.fromkeys(str(hook) for sae in saes for hook in (sae.hook, sae.writes[-1]))
    acts = {name: x[0].double() for name, x in subject.run(inputs, list(hooks)).acts.items()}
    token = graph.logits[0].index

    def score(output: torch.Tensor) -> np.ndarray:
        last = output[:, -1].double()
        return (last[:, token] - last.mean(1)).numpy(force=True)

    clean = score(subject.run(inputs).output)[0]
    lost, sizes = np.zeros(len(chosen)), np.zeros(len(chosen))
    for start in range(0, len(chosen), 24):
        some = chosen[start : start + 24]
        taken: dict[str, list[tuple[int, int, torch.Tensor]]] = {}
        for i, node in enumerate(graph.nodes[j] for j in some):
            sae = by[node.hook]
            rows, _ = decoder_of(sae, acts[str(sae.hook)][node.position], torch.tensor([node.index]))
            taken.setdefault(node.hook, []).append((i, node.position, node.value * rows[0]))
            written = subject.to_residual(node.hook, rows.float())
            sizes[start + i] = float(abs(node.value) * written.norm())

        def without(x: torch.Tensor, of: list[tuple[int, int, torch.Tensor]]) -> torch.Tensor:
            x = x.clone()
            for i, position, row in of:
                x[i, position] -= row.to(x)
            return x

        edits = [(hook, lambda x, of=of: without(x, of)) for hook, of in taken.items()]
        many = subject.prepare([text] * len(some))
        lost[start : start + len(some)] = clean - score(subject.run(many, edits=edits).output)
    return lost, sizes


def rank(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's correlation."""
    return float(spearmanr(a, b).statistic) if np.ptp(a) > 0 and np.ptp(b) > 0 else 0.0


def told(values: Sequence[float]) -> str:
    """Mean over texts with its 95 % interval, by drawing texts again."""
    known = np.array(values, dtype=float)
    draws = known[np.random.default_rng(0).integers(0, len(known), (2000, len(known)))].mean(1)
    low, high = np.percentile(draws, [2.5, 97.5])
    return f"{statistics.fmean(known):.3g} [{low:.3g}, {high:.3g}]"


if __name__ == "__main__":
    main()
