"""The trained CIFAR-10 network of akamaster/pytorch_resnet_cifar10, and pictures of the ten classes."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import saelab

DATA = Path(__file__).parents[3] / "shared" / "data"
WEIGHTS = DATA / "models" / "resnet20_cifar10" / "resnet20-12fca82f.th"
PICTURES = DATA / "images" / "cifar10" / "cifar10_train_500_per_class.zip"
HOOK = "layer3"
ANIMALS = ("bird", "cat", "deer", "dog", "frog", "horse")
VEHICLES = ("airplane", "automobile", "ship", "truck")
TREE = {"thing": {"animal": list(ANIMALS), "vehicle": list(VEHICLES)}}


def missing() -> str:
    """Why there is no network, or ""."""
    absent = [path for path in (WEIGHTS, PICTURES) if not path.exists()]
    return f"needs the public test data, which is not at {absent[0]}" if absent else ""


class Block(nn.Module):
    """Two convolutions beside a shortcut without weights (option A)."""

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.stride, self.more = width // before, width - before
        self.conv1 = nn.Conv2d(before, width, 3, self.stride, 1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        short = x[:, :, :: self.stride, :: self.stride]
        if self.more:
            short = nn.functional.pad(short, (0, 0, 0, 0, self.more // 2, self.more // 2))
        return (out + short).relu()


class ResNet20(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        for i, (before, width) in enumerate(((16, 16), (16, 32), (32, 64)), 1):
            blocks = [Block(before if j == 0 else width, width) for j in range(3)]
            setattr(self, f"layer{i}", nn.Sequential(*blocks))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn1(self.conv1(x)).relu()
        for i in (1, 2, 3):
            x = getattr(self, f"layer{i}")(x)
        return self.linear(x.mean((2, 3)))


def subject() -> saelab.TorchModule:
    """On lists of uint8 images [32 32 3]; its output are logits of the ten classes, by name."""
    state = torch.load(WEIGHTS, weights_only=True, map_location="cpu")["state_dict"]
    net = ResNet20()
    net.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
    return saelab.TorchModule(net.eval(), prepare=prepare, example=[np.zeros((32, 32, 3), np.uint8)])


def prepare(images: Sequence[Any]) -> torch.Tensor:
    x = torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2) / 255
    mean, spread = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return (x - mean) / spread


def pictures(each: int = 500) -> tuple[np.ndarray, np.ndarray]:
    """(uint8 [n 32 32 3], class names [n]), as many of each class."""
    from PIL import Image

    found, names = [], []
    with zipfile.ZipFile(PICTURES) as file:
        for name in file.namelist():
            kind = name.split("/")[1]
            if name.endswith(".jpg") and names.count(kind) < each:
                found.append(np.asarray(Image.open(io.BytesIO(file.read(name))).convert("RGB")))
                names.append(kind)
    return np.stack(found), np.array(names)
