"""Revival (Gao et al. 2024; Bricken et al. 2023): latents that a bad start leaves dead come back."""

from __future__ import annotations

from collections.abc import Iterable

import torch

import saelab
from promises.report import Report, score, train
from saelab.corpora import synthetic

SEEDS, STEPS, D_IN, N, D_SAE, K = 3, 800, 32, 64, 64, 4


def measure(seeds: Iterable[int]) -> Report:
    report = Report(
        "Latents that a bad start leaves dead",
        f"Width {D_IN}, {N} features, {K} active in a row on average, {D_SAE} latents, topk with k {K}, "
        f"{STEPS} steps of 512. Three in four encoder columns start at a fiftieth of their length, so "
        "that their latents are never among the k largest; dead: on held-out rows.",
    )
    off = {"aux_coefficient": 0.0}
    arms = {"nothing": off, "auxk": {}, "resampling": {**off, "resample_every": 40}}

    def spoil(event) -> None:
        if event.name == "start":
            with torch.no_grad():
                event.sae.W_enc[:, D_SAE // 4 :] *= 0.02

    configs = {
        name: saelab.recipe("topk", d_in=D_IN, d_sae=D_SAE, k=K, dead_after=4_000, **options)
        for name, options in arms.items()
    }
    for seed in seeds:
        truth = synthetic(D_IN, N, active=K, seed=seed)
        acts = truth.rows(50_000).acts
        for name, sae in train(configs, acts, STEPS, seed, callbacks=[spoil]).items():
            score(report, name, sae, truth, seed)
    report.promise("dead without revival", report.of("nothing", "dead"), 0.5)
    report.promise("dead with auxk", report.of("auxk", "dead"), high=0.05)
    report.promise("dead with resampling instead", report.of("resampling", "dead"), high=0.05)
    report.notes.append(
        "Resampling draws mixtures of directions, some of which lose again after the half of the run in "
        "which it draws. The untrained control starts well."
    )
    return report
