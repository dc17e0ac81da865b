"""Out-of-distribution images by the codes of an SAE (2508.11277), beside max softmax."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

import saelab
from promises import cifar
from promises.report import Report
from saelab.analysis import OOD, ood
from saelab.analysis.steering.separation import auroc

SEEDS = 3
KINDS = ("held-out classes", "inverted", "shuffled", "noise")
missing = cifar.missing


def measure(seeds: Iterable[int]) -> Report:
    report = Report(
        "Images of other kinds are told by class profiles of codes",
        "AUROC against held-out images of the known classes; two classes, drawn by the seed, are held out. "
        "digits: a CNN trained on the eight others of scikit-learn's, TopK SAE (256 latents, k 8) of its "
        "last maps. cifar: ResNet-20, which was trained on all ten classes, TopK SAE (1,024 latents, k 16) "
        "of layer3 on images of the eight. inverted: 1 - pixel; shuffled: pixels of digits, 8 x 8 blocks of "
        "cifar; noise: uniform pixels. Kinds are the same for every seed and were written down before they "
        "were measured; the hash is of what was measured.",
    )
    gaps: dict[str, list[float]] = {}
    for seed in seeds:
        for name, ground in (("digits", _digits), ("cifar", _cifar)):
            found = ground(seed)
            for (by, score), sets in found.scores.items():
                judged = {kind: auroc(sets[kind], sets["inside"]) for kind in KINDS}
                arm = score if by in ("this SAE", score) else f"{score}, {by}"
                report.add(f"{name}: {arm}", judged | {"mean": float(np.mean(list(judged.values())))})
            for kind in KINDS:
                for other in ("max softmax", "reconstruction error"):
                    gap = found.margins[f"{kind}: profile distance less {other}"][0]
                    gaps.setdefault(f"{name}, {kind}: profile distance less {other}", []).append(gap)
            report.notes.append(f"Seed {seed}, {name}: sets {found.key[:16]}.")
    for text, values in gaps.items():
        report.promise(text, values, -0.02 if text.endswith("softmax") else 0.03)
    return report


def _digits(seed: int) -> OOD:
    from sklearn.datasets import load_digits

    given = load_digits()
    rng = np.random.default_rng([seed, 1])
    held = rng.permutation(10)[:2]
    x, y = (given.images / 16).astype(np.float32), given.target
    order = rng.permutation(len(x))
    known = order[~np.isin(y[order], held)]
    fit, inside, outside = known[:900], known[900:], order[np.isin(y[order], held)]
    subject = _classifier(x[fit], np.searchsorted(np.setdiff1d(range(10), held), y[fit]), seed)
    sae = sae_on(subject, "maps.2", x[fit], 256, 8, seed)
    n = len(inside)
    kinds = {
        "held-out classes": x[outside], "inverted": 1 - x[inside],
        "shuffled": np.stack([rng.permutation(each.ravel()).reshape(8, 8) for each in x[inside]]),
        "noise": rng.random((n, 8, 8)).astype(np.float32),
    }  # fmt: skip
    return _judged(subject, sae, x[fit], y[fit], x[inside], kinds, seed)


def _cifar(seed: int) -> OOD:
    x, y = cifar.pictures()
    rng = np.random.default_rng([seed, 1])
    held = rng.permutation(np.unique(y))[:2]
    order = rng.permutation(len(x))
    known = order[~np.isin(y[order], held)]
    fit, inside, outside = known[:1_600], known[1_600:2_100], order[np.isin(y[order], held)][:500]
    subject = cifar.subject()
    sae = sae_on(subject, cifar.HOOK, x[fit], 1_024, 16, seed)
    kinds = {
        "held-out classes": x[outside], "inverted": 255 - x[inside],
        "shuffled": np.stack([_blocks(each, rng) for each in x[inside]]),
        "noise": rng.integers(0, 256, x[inside].shape, dtype=np.uint8),
    }  # fmt: skip
    return _judged(subject, sae, x[fit], y[fit], x[inside], kinds, seed)


def _judged(
    subject: saelab.TorchModule, sae: Any, fit: np.ndarray, labels: np.ndarray, inside: np.ndarray,
    kinds: Mapping[str, np.ndarray], seed: int,
) -> OOD:  # fmt: skip
    sets = {name: list(each) for name, each in kinds.items()}
    how = {"labels": [str(each) for each in labels], "seed": seed, "batch_size": 64}
    return ood(list(fit), list(inside), sets, sae, subject, **how)


def sae_on(subject: saelab.TorchModule, hook: str, x: np.ndarray, d_sae: int, k: int, seed: int) -> Any:
    """TopK on images."""
    rows = [subject.run(subject.prepare(list(some)), read=hook, output=False).acts[hook].flatten(0, 1)
            for some in np.array_split(x, max(1, len(x) // 100))]  # fmt: skip
    config = saelab.recipe("topk", d_in=subject.width(hook), d_sae=d_sae, k=k, hook=hook)
    how = {"steps": 1_500, "batch_size": 1_024, "seed": seed, "progress": False}
    return saelab.train(config, torch.cat(rows), **how).sae.eval()


def _blocks(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Its sixteen blocks of 8 x 8 pixels in another order."""
    parts = image.reshape(4, 8, 4, 8, 3).swapaxes(1, 2).reshape(16, 8, 8, 3)
    return rng.permutation(parts).reshape(4, 4, 8, 8, 3).swapaxes(1, 2).reshape(32, 32, 3)


class Small(nn.Module):
    """Two convolutions on 8 x 8 pixels, and a linear head on their maps."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.Sequential(nn.Conv2d(1, 32, 3, 1, 1), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1))
        self.head = nn.Linear(64 * 16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.maps(x).relu().flatten(1))


def _classifier(x: np.ndarray, y: np.ndarray, seed: int) -> saelab.TorchModule:
    torch.manual_seed(seed)
    model, inputs, targets = Small(), torch.from_numpy(x)[:, None], torch.from_numpy(y)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    for _ in range(25):
        for some in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs[some]), targets[some]).backward()
            optimizer.step()

    def prepare(images: Any) -> torch.Tensor:
        return torch.from_numpy(np.stack(images))[:, None]

    return saelab.TorchModule(model.eval(), prepare=prepare, example=[x[0]])
