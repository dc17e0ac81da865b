"""Variational SAEs (2509.22994): what sampling and the divergence do to a TopK SAE. A negative result."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

import saelab
from promises.report import Report, held_out, score, train
from saelab.corpora import synthetic
from saelab.sae import SAE, fvu

SEEDS, STEPS, D_IN, N, D_SAE, K = 3, 1000, 48, 64, 192, 4
SIGMAS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32)
WEIGHTS = (1e-3, 1e-2, 1e-1, 1.0)


def measure(seeds: Iterable[int]) -> Report:
    report = Report(
        "What sampling does to codes: a negative result",
        f"Width {D_IN}, {N} features, {K} active in a row, {D_SAE} latents, k {K}, {STEPS} steps of 512, "
        "no auxiliary loss in any arm. FVU in eval mode, by means; FVE = 1 - FVU as in training, with "
        "the draws. alive: latents that fire on held-out rows. Jaccard: of the latents that two draws of "
        "a row select. sigma in units of the normalised input.",
    )

    def config(**options):
        return saelab.recipe("variational", d_in=D_IN, d_sae=D_SAE, k=K, aux_coefficient=0.0, **options)

    configs = {"topk": saelab.recipe("topk", d_in=D_IN, d_sae=D_SAE, k=K, aux_coefficient=0.0)}
    configs |= {f"not sampled, kl {w:g}": config(sampling=False, sigma=1.0, kl=w) for w in WEIGHTS}
    configs |= {f"sigma {s:g}, kl 0": config(sigma=s, kl=0.0) for s in SIGMAS}
    configs |= {"sigma 0.16, kl 0.001": config(sigma=0.16)}
    for seed in seeds:
        truth = synthetic(D_IN, N, active=K, exact=True, seed=seed)
        test = held_out(truth)
        for name, sae in train(configs, truth.rows(100_000).acts, STEPS, seed).items():
            score(report, name, sae, truth, seed, **sampled(sae, test.acts))
            scores = report.table[name][-1]
            scores["alive"] = 1 - scores["dead"]

    def fve(arm):
        return report.of(arm, "FVE")

    small, large = (f"sigma {s:g}, kl 0" for s in (SIGMAS[0], SIGMAS[-1]))
    report.promise("FVE of topk less that of the smallest sigma", fve("topk") - fve(small), 0)
    report.promise("FVE of the smallest sigma less that of the largest", fve(small) - fve(large), 0)
    both = [np.stack([report.of(f"sigma {s:g}, kl 0", c) for s in SIGMAS]) for c in ("FVE", "Jaccard")]
    report.promise(
        f"rank correlation of FVE and Jaccard over {len(SIGMAS)} sigmas",
        [_spearman(a, b) for a, b in zip(both[0].T, both[1].T, strict=True)],
        0.9,
    )
    alive = np.stack([report.of(f"not sampled, kl {w:g}", "alive") for w in WEIGHTS])
    report.promise(
        "not sampled: largest step of alive latents as kl grows", np.diff(alive, axis=0).max(0), high=-1e-9
    )
    drop = fve("topk") - fve("sigma 0.16, kl 0")
    report.promise(
        "sigma 0.16: share of the drop in FVE that sampling alone makes",
        drop / (fve("topk") - fve("sigma 0.16, kl 0.001")),
        0.8,
    )
    report.notes.append(
        "Of large sigmas eval mode is worse than the draws: the decoder's bias has learned to take off "
        "what the largest of the noise always adds. Without sampling there is little to prune: topk "
        f"itself keeps {report.of('topk', 'alive').mean():.3f} of the latents alive, and the features are "
        f"{N / D_SAE:.3f} of them."
    )
    return report


def sampled(sae: SAE, x: torch.Tensor) -> dict[str, float]:
    """Of two training passes over the same rows: how much is explained, and how far the supports agree. Of
    codes that are not drawn, what eval mode gives, and 1."""
    sae.train()
    with torch.no_grad():
        one, two = (sae(x[:4_096]) for _ in range(2))
    sae.eval()
    a, b = one.codes != 0, two.codes != 0
    agreement = float(((a & b).sum(1) / (a | b).sum(1).clamp_min(1)).mean())
    return {"FVE": 1 - fvu(x[:4_096], one.x_hat), "Jaccard": agreement}


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    ranks = [values.argsort().argsort() for values in (a, b)]
    return float(np.corrcoef(*ranks)[0, 1])
