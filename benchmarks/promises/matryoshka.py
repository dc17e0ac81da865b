"""Matryoshka (2503.17547, 2507.12950): parents that children do not absorb."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

import saelab
from promises.report import Report, held_out, score, train
from saelab.analysis import match
from saelab.corpora import Synthetic, synthetic
from saelab.sae import SAE, fvu

SEEDS, STEPS, D_IN, D_SAE, K, PARENTS = 5, 8000, 40, 25, 2, 5
PREFIXES = {"[5, 20]": (5, 20), "[8, 17]": (8, 17), "[20, 5], wrong": (20, 5)}
T_95 = {5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""Student's t, two-sided 95 %, by the number of seeds."""
LR = 3e-3
"""The library's own, 7.5e-4 sqrt(2^14 / d_sae), is a law of wide SAEs: it gives 0.019 for 25 latents."""


def measure(seeds: Iterable[int]) -> Report:
    report = Report(
        "Parents that children do not absorb",
        f"{PARENTS} parents with 4 children each, orthonormal in width {D_IN}, a child on at half of its "
        f"parent's rows, 2 features on in a row on average, {D_SAE} latents, k {K}, {STEPS:,} steps of "
        "512, lr 3e-3. All coefficients are 1: then nothing is lost where a child's latent takes its "
        "parent in. The latent of a parent is that of the one-to-one match of directions, chosen without "
        "any row. with child: of the rows with the parent and a child, those where that latent is on.",
    )

    def config(name, **options):
        return saelab.recipe(name, d_in=D_IN, d_sae=D_SAE, k=K, **options)

    configs = {"batchtopk": config("batchtopk")}
    configs |= {
        f"matryoshka {name}": config("matryoshka", groups=groups) for name, groups in PREFIXES.items()
    }
    falling: dict[str, list[float]] = {name: [] for name in configs}
    for seed in seeds:
        truth = synthetic(
            D_IN, D_SAE, active=K, coherence="orthonormal", branching=(D_SAE // PARENTS - 1,),
            coefficients=(1.0, 1.0), seed=seed,
        )  # fmt: skip
        test = held_out(truth)
        for name, sae in train(configs, truth.rows(200_000).acts, STEPS, seed, lr=LR).items():
            more = _recall(sae, truth, test) | {"L0 in training": _batch_l0(sae, test.acts)}
            score(report, name, sae, truth, seed, **more)
            steps = np.diff(_prefixes(sae, test.acts, sae.config.options.get("groups") or (5, 20)))
            falling[name].append(float(steps.max()))

    _judge(report, falling)
    return report


def _judge(report: Report, falling: dict[str, list[float]]) -> None:
    base, n = "batchtopk", len(report.table["batchtopk"])
    for name in list(PREFIXES)[:2]:
        arm = f"matryoshka {name}"
        gain = report.of(arm, "with child") - report.of(base, "with child")
        half = T_95[n] * gain.std(ddof=1) / n**0.5 if n in T_95 else np.nan
        report.promise(f"{name}: recall with child, gain over batchtopk", gain, 0.1, on_average=True)
        report.promise(f"{name}: lower end of its 95 % interval", [gain.mean() - half], 0.0)
        ratio = report.of(arm, "L0") / report.of(base, "L0")
        report.promise(f"{name}: L0 / that of batchtopk", ratio, 0.95, 1.05)
        report.promise(
            f"{name}: FVU / that of batchtopk", report.of(arm, "FVU") / report.of(base, "FVU"), high=2.5
        )
        report.promise(f"{name}: FVU of a prefix less that of the one before", falling[arm], high=0)
        ratio = report.of(arm, "L0") / report.of(arm, "L0 in training")
        report.promise(f"{name}: L0 / L0 in training", ratio, 0.9, 1.1)


def _recall(sae: SAE, truth: Synthetic, test) -> dict[str, float]:
    latents = match(sae.W_dec.detach().numpy(), truth.directions).latents
    on, true = (sae.encode(test.acts) != 0).numpy(), test.codes.dense() != 0
    found = {"with child": [], "without": []}
    for parent in range(PARENTS):
        child = true[:, truth.children(parent)].any(1)
        for key, rows in (("with child", true[:, parent] & child), ("without", true[:, parent] & ~child)):
            found[key].append(on[rows, latents[parent]].mean())
    return {key: float(np.mean(values)) for key, values in found.items()}


def _batch_l0(sae: SAE, x: torch.Tensor) -> float:
    """L0 by the rule of training, on batches of its size."""
    sae.train()
    with torch.no_grad():
        total = sum(int((sae.encode(batch) != 0).sum()) for batch in x.split(512))
    sae.eval()
    return total / len(x)


def _prefixes(sae: SAE, x: torch.Tensor, groups) -> list[float]:
    codes = sae.encode(x).detach()
    lengths = np.cumsum([0, *groups])
    return [fvu(x, sae.decode(codes * (torch.arange(D_SAE) < m))) for m in lengths]
