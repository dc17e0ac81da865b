"""A small CNN that tells drawn figures, trained in seconds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

import saelab
from saelab.corpora import Document
from saelab.corpora.figures import ATTRIBUTES
from saelab.sae import SAE

HOOK = "maps.6"
TOLD = ("shape", "colour", "texture", "background")
SIZE = 32


class Small(nn.Module):
    """Four convolutions to 8 x 8 maps, and a linear head for each attribute on their mean."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        sizes = ((3, 32, 2), (32, width, 2), (width, width, 1), (width, width, 1))
        parts = [part for a, b, s in sizes for part in (nn.Conv2d(a, b, 3, s, 1), nn.ReLU())]
        self.maps = nn.Sequential(*parts[:-1])  # the last maps as they are, before the ReLU
        self.heads = nn.ModuleList([nn.Linear(width, len(ATTRIBUTES[name])) for name in TOLD])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = self.maps(x).relu().mean((2, 3))
        return torch.cat([head(pooled) for head in self.heads], 1)


def trained(seed: int, n: int = 4_000, epochs: int = 20) -> saelab.TorchModule:
    """The subject, on lists of uint8 images [32 32 3]."""
    torch.manual_seed(seed)
    model, documents = Small(), list(saelab.corpora.shapes(seed, n, size=SIZE))
    x, y = prepare([d.sample for d in documents]), _truth(documents)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, epochs * (n // 64))
    for _ in range(epochs):
        for some in torch.randperm(n)[: n // 64 * 64].split(64):
            parts = _parts(model(x[some]))
            losses = [nn.functional.cross_entropy(part, y[some, i]) for i, part in enumerate(parts)]
            optimizer.zero_grad()
            torch.stack(losses).sum().backward()
            optimizer.step()
            schedule.step()
    return saelab.TorchModule(model.eval(), prepare=prepare, example=[np.zeros((SIZE, SIZE, 3), np.uint8)])


def sae_of(subject: saelab.TorchModule, seed: int) -> SAE:
    """TopK on 1,000 pictures that the subject was not trained on."""
    pictures = [d.sample for d in saelab.corpora.shapes(seed + 1_000, 1_000, size=SIZE)]
    some = [subject.prepare(pictures[low : low + 100]) for low in range(0, len(pictures), 100)]
    rows = [subject.run(each, read=HOOK, output=False).acts[HOOK].flatten(0, 1) for each in some]
    config = saelab.recipe("topk", d_in=subject.width(HOOK), d_sae=512, k=16, hook=HOOK)
    how = {"steps": 1_500, "batch_size": 1_024, "seed": seed, "progress": False}
    return saelab.train(config, torch.cat(rows), **how).sae.eval()


def told(subject: saelab.TorchModule, seed: int) -> dict[str, float]:
    """Share of pictures that were not trained on of which each attribute is told."""
    documents = list(saelab.corpora.shapes(seed + 2_000, 500, size=SIZE))
    parts, y = _parts(subject.run(subject.prepare([d.sample for d in documents])).output), _truth(documents)
    right = [float((part.argmax(1) == y[:, i]).float().mean()) for i, part in enumerate(parts)]
    return dict(zip(TOLD, right, strict=True))


def prepare(images: Sequence[Any]) -> torch.Tensor:
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2) / 127.5 - 1


def _truth(documents: Sequence[Document]) -> torch.Tensor:
    at = [list(ATTRIBUTES).index(name) for name in TOLD]
    found = [
        [ATTRIBUTES[name].index(d.labels[i]) for name, i in zip(TOLD, at, strict=True)] for d in documents
    ]
    return torch.tensor(found)


def _parts(logits: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return logits.split([len(ATTRIBUTES[name]) for name in TOLD], 1)
