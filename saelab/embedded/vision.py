"""Training of the embedded vision transformer on drawn figures, resumable."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from saelab.corpora import SHAPE_ATTRIBUTES, Document, shapes
from saelab.embedded.optimizers import Optimizers
from saelab.files import new_file

SIZE, PATCH = 48, 6
VALUES = [value for values in SHAPE_ATTRIBUTES.values() for value in values]
"""What each logit stands for; those of one attribute lie together."""
PARTS = [len(values) for values in SHAPE_ATTRIBUTES.values()]
TARGETS = {
    "family": 0.95, "shape": 0.95, "variant": 0.95, "colour": 0.97, "texture": 0.90, "position": 0.97,
    "background": 0.97, "count": 0.97,
}  # fmt: skip
"""Least accuracy on held-out pictures of a model that is shipped."""
ROUND = 100
"""Steps between reports and checkpoints."""


class VisionPlan(NamedTuple):
    """How long and how to train.

    stop: the last step; the learning rates are those of a run of all `steps`, and the targets are reached
    earlier.
    """

    pictures: int = 50_000
    """drawn once"""
    steps: int = 3_000
    stop: int = 2_000
    batch_size: int = 128
    seed: int = 0
    warmup: int = 100
    decay_share: float = 0.6
    lr_matrices: float = 4e-3
    lr_others: float = 2e-3

    def lr(self, step: int) -> float:
        """Factor on both learning rates: warm up, stay, go down to 0 in a straight line."""
        left = (self.steps - step) / max(self.steps * self.decay_share, 1)
        return max(0.0, min(1.0, (step + 1) / self.warmup, left))


def new_vit(seed: int = 0) -> Any:
    """An untrained model of the embedded architecture: 4 layers, 4 heads, width 64, 8x8 patches; a logit for
    each value of each attribute of `saelab.corpora.shapes`."""
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=256,
        image_size=SIZE,
        patch_size=PATCH,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        id2label=dict(enumerate(VALUES)),
        label2id={value: i for i, value in enumerate(VALUES)},
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ViTForImageClassification(config)


def vit_processor() -> Any:
    """The image processor of the model: pixels in -1..1 at 48 x 48."""
    from transformers import ViTImageProcessorPil

    return ViTImageProcessorPil(
        size={"height": SIZE, "width": SIZE}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )


def train_vit(
    work: Path, plan: VisionPlan, *, device: str = "cpu", report: Callable[[str], None]
) -> tuple[Any, list[dict[str, float]]]:
    """Train the model, or go on from the checkpoint in `work`. Gives it and its history (step, loss)."""
    work.mkdir(parents=True, exist_ok=True)
    pixels, labels = _drawn(work / f"pictures-{plan.seed}-{plan.pictures}.npz", plan)
    model = new_vit(plan.seed).to(device).train()
    optimizers, checkpoint = Optimizers(model, plan, ".layers.", 0.05), work / "checkpoint.pt"
    step, history = optimizers.resumed(checkpoint, device, report)
    began, first, running = time.monotonic(), step, []
    while step < plan.stop:
        optimizers.rate(step)
        rows = _rows(plan, step)
        loss = loss_of(model(normalised(pixels[rows]).to(device)).logits, labels[rows].to(device))
        loss.backward()
        optimizers.step()
        running.append(loss.item())
        step += 1
        if step % ROUND == 0 or step == plan.stop:
            history.append({"step": step, "loss": float(np.mean(running))})
            running = []
            optimizers.save(checkpoint, step, history)
            rate = (step - first) / (time.monotonic() - began)
            report(f"{json.dumps(history[-1])} {rate:.2f} steps/s, {step}/{plan.stop}")
    return model.eval(), history


def loss_of(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean over attributes of the cross entropy, in nats.

    Args:
        logits: [n 65].
        labels: int64 [n 8]: of each attribute, the number of its value within the attribute.
    """
    parts = zip(logits.split(PARTS, -1), labels.unbind(-1), strict=True)
    return torch.stack([torch.nn.functional.cross_entropy(part, label) for part, label in parts]).mean()


def accuracies(model: Any, documents: Iterable[Document]) -> dict[str, float]:
    """Attribute -> share of the pictures whose value has the largest of its logits.

    Args:
        model: As `new_vit` gives it.
        documents: Of `saelab.corpora.shapes` with size=48.
    """
    every = list(documents)
    labels = torch.from_numpy(np.stack([_numbers(d) for d in every]).astype(np.int64))
    found = []
    with torch.no_grad():
        for first in range(0, len(every), 256):
            pixels = np.stack([d.sample for d in every[first : first + 256]])
            logits = model(normalised(torch.from_numpy(pixels))).logits.split(PARTS, -1)
            found.append(torch.stack([part.argmax(-1) for part in logits], -1))
    right = (torch.cat(found) == labels).double().mean(0)
    return dict(zip(SHAPE_ATTRIBUTES, right.tolist(), strict=True))


def reached(scores: dict[str, float]) -> bool:
    """Whether every target is reached."""
    return all(scores[name] >= target for name, target in TARGETS.items())


def _drawn(path: Path, plan: VisionPlan) -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 [n 48 48 3] and int64 [n 8], from a file that is written once."""
    if not path.exists():
        pixels = np.zeros((plan.pictures, SIZE, SIZE, 3), np.uint8)
        labels = np.zeros((plan.pictures, len(PARTS)), np.uint8)
        for i, document in enumerate(shapes(plan.seed, plan.pictures, size=SIZE)):
            pixels[i], labels[i] = document.sample, _numbers(document)
        with new_file(path) as temporary, temporary.open("wb") as file:
            np.savez(file, pixels=pixels, labels=labels)
    with np.load(path) as held:
        return torch.from_numpy(held["pixels"]), torch.from_numpy(held["labels"].astype(np.int64))


def _numbers(document: Document) -> np.ndarray:
    """uint8 [8]: of each attribute, the number of its value."""
    values = zip(SHAPE_ATTRIBUTES.values(), document.labels, strict=True)
    return np.array([known.index(value) for known, value in values], np.uint8)


def _rows(plan: VisionPlan, step: int) -> torch.Tensor:
    """Pictures of a step: each epoch in an order of its own."""
    per_epoch = plan.pictures // plan.batch_size
    epoch, at = divmod(step, per_epoch)
    order = torch.randperm(plan.pictures, generator=torch.Generator().manual_seed(plan.seed + epoch))
    return order[at * plan.batch_size : (at + 1) * plan.batch_size]


def normalised(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 [n h w 3] as the processor gives it: float32 [n 3 h w] in -1..1."""
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
