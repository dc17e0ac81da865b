"""Archetypal dictionaries (2502.12892): the same directions whatever the seed."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

import saelab
from promises.report import Report
from saelab.analysis import match
from saelab.sae import SAE, fvu

SEEDS, STEPS, BATCH, D_SAE, K, CENTRES, TRAIN = 4, 2000, 256, 128, 6, 256, 1_500
DELTAS = (1.0, 0.3, 0.0)


def measure(seeds: Iterable[int]) -> Report:
    report = Report(
        "The same directions whatever the seed",
        f"Pixels of scikit-learn's digits (width 64, {TRAIN:,} rows for training, 297 held out), {D_SAE} "
        f"latents, k {K}, {CENTRES} k-means centres, {STEPS:,} steps of {BATCH}; each seed has its own "
        "weights, order of rows and k-means. topk starts at the same centres. stability: mean cosine of "
        "the directions of two seeds, matched one to one; each seed against the others.",
    )
    x = _digits()
    train, test = x[:TRAIN], x[TRAIN:]
    configs = {"topk": saelab.recipe("topk", d_in=64, d_sae=D_SAE, k=K)}
    configs["topk, start at centres"] = configs["topk"]
    for delta in DELTAS:
        configs[f"archetypal, delta {delta:g}"] = saelab.recipe(
            "archetypal", d_in=64, d_sae=D_SAE, k=K, candidates=CENTRES, delta=delta
        )
    arms: dict[str, list[SAE]] = {}
    seeds, strayed = list(seeds), []
    for seed in seeds:
        for name, config in configs.items():
            start = (
                _at_centres(configs["archetypal, delta 0"], train, seed)
                if name.endswith("at centres")
                else None
            )
            run = saelab.train(
                config, train, steps=STEPS, batch_size=BATCH, seed=seed, progress=False,
                callbacks=[start] if start else [],
            )  # fmt: skip
            arms.setdefault(name, []).append(run.sae)
            if start is None:
                arms.setdefault(f"{name}, untrained", []).append(SAE.create(config, seed, train))
        strayed.append(max(_outside(arms[f"archetypal, delta {delta:g}"][-1]) for delta in DELTAS))
    for name, saes in arms.items():
        cosines = np.full((len(saes), len(saes)), np.nan)
        for i, j in itertools.permutations(range(len(saes)), 2):
            rows = [saes[n].W_dec.detach().numpy() for n in (i, j)]
            cosines[i, j] = match(*rows).cosines.mean()
        for i, sae in enumerate(saes):
            codes = sae.encode(test)
            r2 = 1 - fvu(test, sae(test).x_hat)
            report.add(name, {
                "stability": np.nanmean(cosines[i]), "R2": r2,
                "R2, training rows": 1 - fvu(train, sae(train).x_hat),
                "L0": float((codes != 0).sum(1).float().mean()),
                "dead": float((~(sae.encode(x) != 0).any(0)).float().mean()),
            })  # fmt: skip

    _judge(report, strayed)
    return report


def _judge(report: Report, strayed: list[float]) -> None:
    base = "topk, start at centres"
    for delta in DELTAS:
        arm = f"archetypal, delta {delta:g}"
        gain = report.of(arm, "stability") - report.of(base, "stability")
        text = f"delta {delta:g}: stability less that of topk from the same centres"
        report.promise(text, gain, 0.03, on_average=True)  # it is a mean over pairs of seeds
        report.promise(f"delta {delta:g}: R2 lost", report.of(base, "R2") - report.of(arm, "R2"), high=0.02)
    report.promise("furthest that any loaded dictionary is outside its constraints", strayed, high=1e-5)
    report.notes.append(
        "Untrained archetypes are the centres of k-means, which agree from seed to seed at "
        f"{report.of('archetypal, delta 0, untrained', 'stability').mean():.2f}: that is what a narrow "
        "hull keeps. delta counts in norms of the normalised input: 1 lets a direction go anywhere."
    )


def _digits() -> torch.Tensor:
    from sklearn.datasets import load_digits

    pixels = torch.tensor(load_digits().data, dtype=torch.float32) / 16
    return pixels[torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))]


def _at_centres(config: saelab.SAEConfig, rows: torch.Tensor, seed: int):
    """A callback that lets a free dictionary start where an archetypal one does, its encoder too."""

    def start(event) -> None:
        if event.name != "start":
            return
        with torch.no_grad():
            # the SAE has been given the seed's scales and the size of its encoder already
            other = SAE.create(config, seed, rows)
            directions = torch.nn.functional.normalize(other.W_dec, dim=1)
            size = event.sae.W_enc.norm(dim=0)
            event.sae.dictionary.set(directions)
            event.sae.W_enc.copy_(directions.t() * size)

    return start


def _outside(sae: SAE) -> float:
    """How far a loaded dictionary is from its constraints: W >= 0, rows that sum to 1, ||R|| <= delta."""
    with tempfile.TemporaryDirectory() as folder:
        part = SAE.load(sae.save(Path(folder))).dictionary
    with torch.no_grad():
        far = (part() / part.g.exp() - part.W @ part.C).norm(dim=1) - part.delta
        return float(max(far.max(), (part.W.sum(1) - 1).abs().max(), -part.W.min()))
