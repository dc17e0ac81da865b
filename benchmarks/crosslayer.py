"""Does a cross-layer transcoder rebuild and replace more than a transcoder of each layer, at equal L0?

python benchmarks/crosslayer.py [--seeds 2] [--steps 600] [--texts 8] [--record NAME]

Of the embedded model: transcoders of all MLPs with k of 512 latents each; the same with so many latents that
they hold as many numbers; and one cross-layer transcoder with 512 latents a layer, of which k a layer are on
on average (TopK over all layers). All on the same rows for as many steps. FVU of the output of each MLP
on rows that training never saw, and what attribution graphs of held-out texts leave to errors (replacement,
completeness), beside untrained ones.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from graphs import corpora
from results import record

import saelab
from saelab.analysis import attribution_graph
from saelab.sae import SAE


def main() -> None:
    parser = argparse.ArgumentParser(description="A cross-layer transcoder beside transcoders of each layer")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--latents", type=int, default=512, help="of each layer")
    parser.add_argument("--k", type=int, default=16, help="of each layer")
    parser.add_argument("--texts", type=int, default=8)
    parser.add_argument("--length", type=int, default=30, help="of a text, in tokens")
    parser.add_argument("--record", help="keep the figures as benchmarks/results/NAME.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    subject: Any = saelab.Lab.embedded().subject
    seen, held_out = corpora("embedded")
    reads = [f"blocks.{layer}.mlp.hook_in" for layer in range(subject.n_layers)]
    writes = [f"blocks.{layer}.hook_mlp_out" for layer in range(subject.n_layers)]
    tokens = [subject.to_tokens(text, bos=False) for text in held_out]
    long = [ids[: options.length] for ids in tokens if len(ids) >= options.length]
    texts = [subject.tokenizer.decode(ids) for ids in long[: options.texts]]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        acts, unseen = (
            saelab.harvest(subject, of, [*reads, *writes], Path(folder) / name, max_rows=n, progress=False)
            for name, of, n in (("seen", seen, options.rows), ("unseen", held_out, 5_000))
        )
        for seed in range(options.seeds):
            for name, saes, seconds in trained(subject, acts, reads, writes, seed, options):
                told = {"arm": name, "seed": seed, "s of CPU": round(seconds, 1)}
                told["numbers"] = sum(p.numel() for sae in saes for p in sae.parameters())
                told |= rebuilt(saes, unseen, reads, writes)
                told |= replaced(subject, saes, texts)
                rows.append(told)
                print(told, flush=True)
    if options.record:
        kept = ("steps", "latents", "k", "texts", "length")
        record(
            options.record,
            rows,
            threads=1,
            trained_on=options.rows,
            **{each: getattr(options, each) for each in kept},
        )


def trained(
    subject: Any, acts: Any, reads: list[str], writes: list[str], seed: int, options: Any
) -> list[tuple[str, list[SAE], float]]:
    """(name, SAEs, seconds of CPU) of each."""
    d, n = subject.d_model, len(reads)
    asked: dict[str, Any] = {"steps": options.steps, "batch_size": 1024, "seed": seed, "progress": False}
    each, more = (
        [
            saelab.recipe("transcoder", d_in=d, d_out=d, d_sae=latents, k=options.k, hook=a, hook_out=b)
            for a, b in zip(reads, writes, strict=True)
        ]
        for latents in (options.latents, options.latents * (n + 3) // 4)
    )
    whole = saelab.recipe(
        "clt", d_in=n * d, d_out=n * d, d_sae=n * options.latents, k=n * options.k, layers=n, hooks=reads,
        hooks_out=writes, sparsity="topk",
    )  # fmt: skip
    found = []
    arms = {"a transcoder a layer": each, "the same, as many numbers": more, "cross-layer": [whole]}
    for name, configs in arms.items():
        began = time.process_time()
        runs = saelab.train(configs, acts, **asked)
        found.append((name, [run.sae.eval() for run in runs], time.process_time() - began))
    return found


@torch.no_grad()
def rebuilt(saes: list[SAE], unseen: Any, reads: list[str], writes: list[str]) -> dict[str, float]:
    """FVU of each layer, its mean, and L0 of all layers together."""
    x, y = (
        torch.cat([unseen.rows(range(unseen.n_rows), hook).acts for hook in hooks], 1)
        for hooks in (reads, writes)
    )
    n, width = len(reads), y.shape[1] // len(reads)
    parts = [(x, y)] if len(saes) == 1 else list(zip(x.chunk(n, 1), y.chunk(n, 1), strict=True))
    pairs = list(zip(saes, parts, strict=True))
    x_hat = torch.cat([sae(a, b).x_hat for sae, (a, b) in pairs], 1)
    l0 = sum(float((sae.encode(a) != 0).sum(1).float().mean()) for sae, (a, _) in pairs)
    off, spread = ((y - at).square().sum(0).view(n, width).sum(1) for at in (x_hat, y.mean(0)))
    fvu = (off / spread).tolist()
    each = {f"FVU of layer {i}": round(value, 4) for i, value in enumerate(fvu)}
    return each | {"mean FVU": round(float(np.mean(fvu)), 4), "L0": round(l0, 2)}


def replaced(subject: Any, saes: list[SAE], texts: list[str]) -> dict[str, Any]:
    """Means over texts with 95 % of means of texts drawn again; of untrained ones the mean."""
    scores: dict[str, list[float]] = {}
    for text in texts:
        graph = attribution_graph(subject, saes, text, max_nodes=2048, max_logits=1)
        for name in ("replacement", "completeness"):
            score = getattr(graph, name)
            scores.setdefault(name, []).append(score.value)
            scores.setdefault(f"{name}, untrained", []).append(score.control)
    rng = np.random.default_rng(0)
    found: dict[str, Any] = {}
    for name, values in scores.items():
        draws = rng.choice(values, (2000, len(values))).mean(1)
        low, high = np.quantile(draws, (0.025, 0.975))
        found[name] = f"{np.mean(values):.3f} [{low:.3f}, {high:.3f}]"
    return found


if __name__ == "__main__":
    main()
