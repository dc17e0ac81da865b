"""Recovered ontology (2508.11277, 2505.15970): latents follow the animals and the vehicles of CIFAR-10."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from promises import cifar
from promises.outside import sae_on
from promises.report import Report
from saelab.analysis import document_codes, ontology

SEEDS = 3
missing = cifar.missing
LAYERS = ("layer3",)


def measure(seeds: Iterable[int]) -> Report:
    report = Report(
        "Latents follow the hierarchy of classes",
        "ResNet-20 and 2,000 pictures of CIFAR-10, of which 1,000 train a TopK SAE (512 latents, k 16) of "
        "layer3 and the others are read; the tree has animals and vehicles below one root, so that "
        "heights are 0 to 2. height: mean height of the lowest class that a latent's 10 top pictures share; "
        "one, half: share of latents whose top pictures are all of one class, and of one half of the tree. "
        "percentile: of 1,000 permutations of the labels, those whose mean height is no higher.",
    )
    x, y = cifar.pictures(200)
    below: dict[str, list[float]] = {name: [] for name in LAYERS}
    for seed in seeds:
        subject = cifar.subject()
        order = np.random.default_rng([seed, 1]).permutation(len(x))
        fit, judge = order[:1_000], order[1_000:]
        for layer in LAYERS:
            sae = sae_on(subject, layer, x[fit], 512, 16, seed)
            codes = document_codes(
                sae,
                subject,
                list(x[judge]),
                labels=y[judge].tolist(),
                batch_size=64,
                max_rows=10**7,
                seed=seed,
            )
            for arm in codes.arms:
                found = ontology(codes.arms[arm], cifar.TREE, y[judge].tolist(), seed=seed)
                height = found.figures["mean height"]
                report.add(f"{layer}: {arm}", {
                    "height": height.value, "permuted": height.control, "percentile": 100 * found.percentile,
                    "one": float((found.height == 0).mean()), "half": float((found.height == 1).mean()),
                    "coverage": found.figures["coverage"].value, "latents": len(found.latents),
                })  # fmt: skip
                if arm == "this SAE":
                    below[layer].append(100 * found.percentile)
    for layer, values in below.items():
        report.promise(f"{layer}: percentile of the mean height among permutations", values, high=5)
        for control in ("untrained SAE", "raw neurons"):
            less = report.of(f"{layer}: {control}", "height") - report.of(f"{layer}: this SAE", "height")
            report.promise(
                f"{layer}: mean height of {control} less that of the SAE", less, 0.0, on_average=True
            )
    return report
