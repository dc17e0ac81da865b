"""Conceptual blindspots (2506.19708): what a generator shows too rarely or too often is found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

import saelab
from promises.figures import sae_of, told, trained
from promises.report import Report
from saelab.analysis import DocumentCodes, Spots, blindspots, document_codes
from saelab.analysis.steering.separation import auroc
from saelab.corpora.figures import ATTRIBUTES

SEEDS, N, LABELLED = 3, 1_500, 1_500
CUT, BOOST = 0.05, 4.0
ARMS = ("this SAE", "untrained SAE", "raw neurons")
TELLS = 0.8


def measure(seeds: Iterable[int]) -> Report:
    report = Report(
        "What a generator has lost is found, and nothing where it has lost nothing",
        "Drawn pictures of saelab.corpora.shapes, 32 pixels; a CNN trained on some to tell shape, colour, "
        "texture and background; a TopK SAE (512 latents, k 16) of its last maps, trained on others. "
        f"{N:,} real pictures against {N:,} of which one value is drawn at {CUT:g} of its weight and another "
        f"at {BOOST:g} times its own. Which attribute, of those that the CNN tells with {TELLS:.0%} or more, "
        "and which values: drawn by the seed. A latent is the value's where more than half of its energy "
        f"lies on it in {LABELLED:,} further pictures, were values equally frequent. AUROC of -r and r of "
        "the value's latents against all others.",
    )
    held = []
    for seed in seeds:
        subject = trained(seed)
        sae = sae_of(subject, seed)
        kind, lost, more = _planted(seed, told(subject, seed))
        sets = {
            "real": saelab.corpora.shapes(seed + 100, N, size=32),
            "generated": saelab.corpora.shapes(seed + 200, N, size=32, shares={lost: CUT, more: BOOST}),
            "other real": saelab.corpora.shapes(seed + 300, N, size=32),
            "labelled": saelab.corpora.shapes(seed + 400, LABELLED, size=32),
        }
        codes: dict[str, DocumentCodes] = {}
        for name, each in sets.items():
            codes[name] = document_codes(sae, subject, each, like=codes.get("real"), batch_size=64)
        labels = np.array([d[list(ATTRIBUTES).index(kind)] for d in codes["labelled"].labels])
        found = blindspots(codes["real"], codes["generated"], seed=seed)
        null = blindspots(codes["real"], codes["other real"], seed=seed)
        spots = {"this SAE": found.spots, **found.controls}
        nulls = {"this SAE": null.spots, **null.controls}
        for arm in ARMS:
            own = _mass(codes["labelled"].arms[arm], labels)
            low, n_low = _judged(spots[arm], own[lost], -1)
            high, n_high = _judged(spots[arm], own[more], 1)
            flagged = (nulls[arm].q <= found.fdr).mean()
            report.add(arm, {
                "suppressed, AUROC": low, "latents": n_low, "exaggerated, AUROC": high, "latents ": n_high,
                "flagged": float((spots[arm].q <= found.fdr).mean()),
                "flagged, nothing planted": float(flagged),
            })  # fmt: skip
        held.append(_memorised(codes["real"], codes["other real"]))
        planted = f"{kind}, {lost} cut, {more} boosted; {len(found.spots)} alive latents"
        by_chance = f"flagged of halves of the real: {found.figures['flagged share'].control:.4f}"
        report.notes.append(f"Seed {seed}: {planted}; {by_chance}.")
    _judge(report, held)
    return report


def _planted(seed: int, accuracy: Mapping[str, float]) -> tuple[str, str, str]:
    """(attribute, value that is cut, value that is boosted), drawn by the seed."""
    rng = np.random.default_rng([seed, 9506])
    kind = str(rng.choice([name for name, each in accuracy.items() if each >= TELLS]))
    lost, more = rng.permutation(list(ATTRIBUTES[kind]))[:2]
    return kind, str(lost), str(more)


def _mass(energies: Any, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Value -> float64 [width], the share of each latent's energy on it, were values equally frequent."""
    names = np.unique(labels)
    means = np.stack([np.asarray(energies[labels == name].mean(0)).ravel() for name in names])
    total = means.sum(0)
    return dict(zip(names.tolist(), means / np.where(total > 0, total, 1), strict=True))


def _judged(spots: Spots, mass: np.ndarray, sign: int) -> tuple[float, int]:
    own = mass[spots.latents] > 0.5
    r = np.nan_to_num(sign * spots.relative)
    return auroc(r[own], r[~own]), int(own.sum())


def _memorised(real: DocumentCodes, generated: DocumentCodes) -> float:
    """The worst rank, from 1, of three pictures that are given back unchanged, each by itself."""
    from scipy.sparse import vstack

    ranks = []
    for i in (10, 500, 1_000):
        arm = generated.arms["this SAE"]
        other = vstack([arm[:i], real.arms["this SAE"][i], arm[i + 1 :]]).tocsr()
        given = replace(generated, arms={**generated.arms, "this SAE": other})
        near = blindspots(real, given, splits=1, draws=100).neighbours
        ranks.append(1 + int((near.order == i).argmax()))
    return max(ranks)


def _judge(report: Report, held: list[float]) -> None:
    own = "this SAE"
    report.promise("suppressed: AUROC", report.of(own, "suppressed, AUROC"), 0.9)
    report.promise("exaggerated: AUROC", report.of(own, "exaggerated, AUROC"), 0.85)
    report.promise("nothing planted: share flagged", report.of(own, "flagged, nothing planted"), high=0.01)
    gap = report.of(own, "suppressed, AUROC") - report.of(ARMS[1], "suppressed, AUROC")
    report.promise(f"suppressed: AUROC less that of {ARMS[1]}", gap, 0.0, on_average=True)
    report.promise("a picture given back unchanged: rank among the nearest", held, high=5)
