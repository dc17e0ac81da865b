"""Small subjects of every kind, made from seeds: language models, a CNN, a ViT, a text encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn

from saelab.subjects import LanguageModel, TorchModule, VisionModel, load_subject

STORIES = Path(__file__).parents[2] / "shared" / "data" / "language" / "stories260k" / "hf"
TEXTS = ["Once upon a time, there was a dog.", "Tim ran", "The sun is warm and the sky is very blue today!"]


def byte_tokenizer(bos: str | None = "<|bos|>", n: int = 300) -> transformers.PreTrainedTokenizerFast:
    """A byte-level BPE of about n tokens, trained on a few sentences."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=n,
        special_tokens=["<|bos|>", "<|user|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS, trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=bos, eos_token=bos, additional_special_tokens=["<|user|>"]
    )


SIZES = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
NO_SPECIAL = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}


def config(kind: str) -> transformers.PretrainedConfig:
    """A tiny config of an architecture."""
    t = transformers
    if kind == "gpt2":
        return t.GPT2Config(vocab_size=300, n_embd=32, n_layer=3, n_head=4, n_positions=64, **NO_SPECIAL)
    if kind == "opt":
        return t.OPTConfig(
            ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=64, **SIZES, **NO_SPECIAL
        )
    if kind == "gptj":
        return t.GPTJConfig(
            vocab_size=300, n_embd=32, n_layer=3, n_head=4, n_positions=64, rotary_dim=4, **NO_SPECIAL
        )
    if kind == "bloom":
        return t.BloomConfig(vocab_size=300, hidden_size=32, n_layer=3, n_head=4, seq_length=64, **NO_SPECIAL)
    rest = {"intermediate_size": 48, "max_position_embeddings": 64, **SIZES, **NO_SPECIAL}
    if kind == "neox":
        return t.GPTNeoXConfig(use_parallel_residual=True, **rest)
    if kind == "neox-sequential":
        return t.GPTNeoXConfig(use_parallel_residual=False, **rest)
    if kind == "phi":
        return t.PhiConfig(**rest)
    grouped = {"num_key_value_heads": 2, **rest}
    return {
        "llama": t.LlamaConfig,
        "mistral": t.MistralConfig,
        "qwen2": t.Qwen2Config,
        "qwen3": t.Qwen3Config,
        "gemma": t.GemmaConfig,
        "gemma2": t.Gemma2Config,
        "gemma3": t.Gemma3TextConfig,
        "olmo2": t.Olmo2Config,
        "glm4": t.Glm4Config,
        "granite": t.GraniteConfig,
    }[kind](**({**grouped, "head_dim": 8} if kind.startswith(("gemma", "qwen3", "glm4")) else grouped))


ARCHITECTURES = (
    "gpt2", "llama", "neox", "neox-sequential", "opt", "gptj", "bloom", "phi", "mistral", "qwen2", "qwen3",
    "gemma", "gemma2", "gemma3", "olmo2", "glm4",
)  # fmt: skip


def causal_lm(kind: str, seed: int = 0) -> nn.Module:
    """A random model, its norms and biases moved away from 1 and 0, so that mixing them up shows."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config(kind))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * (0.1 if p.ndim == 1 else 0.05))
    return model.eval()


def language_model(kind: str, seed: int = 0) -> LanguageModel:
    """A tiny random LanguageModel."""
    return LanguageModel(causal_lm(kind, seed), byte_tokenizer())


class Residual(nn.Module):
    """Conv, norm, an in-place ReLU, and a skip."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.relu(self.norm(self.conv(x)))


def cnn(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    blocks = nn.Sequential(Residual(8), Residual(8))
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    )


def samples(n: int = 3, *shape: int) -> list[torch.Tensor]:
    """n tensors of a shape, by default of 5 positions and 4 numbers."""
    return list(torch.randn(n, *(shape or (5, 4)), generator=torch.Generator().manual_seed(n)))


def images(n: int) -> list[torch.Tensor]:
    return list(torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(n)))


def cnn_subject(seed: int = 0) -> TorchModule:
    return TorchModule(cnn(seed), example=images(1))


class Denoiser(nn.Module):
    """Four steps of one small network, each from what the last one left: every module is called in each."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.mid, self.leave = nn.Conv2d(3, 8, 3, padding=1), Residual(8), nn.Conv2d(8, 3, 1)
        self.times = nn.Parameter(torch.randn(4, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for time in self.times:
            x = x - self.leave(self.mid(self.enter(x) + time[:, None, None]))
        return x


def denoiser_subject(seed: int = 0) -> TorchModule:
    torch.manual_seed(seed)
    return TorchModule(Denoiser(), example=images(1))


def vit_subject(seed: int = 0) -> TorchModule:
    torch.manual_seed(seed)
    c = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        image_size=8,
        patch_size=4,
    )
    model = transformers.ViTModel(c, add_pooling_layer=False)
    return TorchModule(model, prepare=lambda raw: {"pixel_values": torch.stack(list(raw))}, example=images(1))


VISION_SIZES = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8,
}  # fmt: skip
VISION = (
    "vit", "deit", "beit", "dinov2", "dinov2 registers", "dinov3", "clip", "siglip", "resnet", "convnext",
)  # fmt: skip


def vision_model(kind: str, seed: int = 0, head: bool = True) -> nn.Module:
    """A tiny image model; with a head its output is one vector a picture."""
    torch.manual_seed(seed)
    t, sizes = transformers, VISION_SIZES
    wide = {**sizes, "intermediate_size": 32}
    small = {"hidden_sizes": [8, 8], "depths": [1, 1], "num_stages": 2}
    make = {
        "vit": (t.ViTForImageClassification, t.ViTModel, lambda: t.ViTConfig(**wide)),
        "deit": (t.DeiTForImageClassification, t.DeiTModel, lambda: t.DeiTConfig(**wide)),
        "beit": (t.BeitForImageClassification, t.BeitModel, lambda: t.BeitConfig(**wide)),
        "dinov2": (t.Dinov2ForImageClassification, t.Dinov2Model, lambda: t.Dinov2Config(**sizes)),
        "dinov2 registers": (
            t.Dinov2WithRegistersForImageClassification,
            t.Dinov2WithRegistersModel,
            lambda: t.Dinov2WithRegistersConfig(**sizes, num_register_tokens=3),
        ),
        "dinov3": (
            t.DINOv3ViTModel,
            t.DINOv3ViTModel,
            lambda: t.DINOv3ViTConfig(**wide, num_register_tokens=3),
        ),
        "clip": (t.CLIPVisionModelWithProjection, t.CLIPVisionModel, lambda: t.CLIPVisionConfig(**wide)),
        "siglip": (
            t.SiglipForImageClassification,
            t.SiglipVisionModel,
            lambda: t.SiglipConfig(vision_config=wide) if head else t.SiglipVisionConfig(**wide),
        ),
        "resnet": (
            t.ResNetForImageClassification,
            t.ResNetModel,
            lambda: t.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic"),
        ),
        "convnext": (
            t.ConvNextForImageClassification,
            t.ConvNextModel,
            lambda: t.ConvNextConfig(**small, patch_size=4),
        ),
    }
    with_head, without, config = make[kind]
    model = (with_head if head else without)(config())
    with torch.no_grad():  # at their start some of these parts are zeros, at which nothing can be told apart
        for name, parameter in model.named_parameters():
            if any(part in name for part in ("token", "layer_scale", "lambda", "position", "bias", "gamma")):
                parameter.normal_(0.5, 0.3)
    return model


def vision_processor(size: int = 32) -> Any:
    return transformers.ViTImageProcessorPil(size={"height": size, "width": size})


def vision_subject(kind: str, seed: int = 0, rows: str = "all") -> VisionModel:
    return VisionModel(vision_model(kind, seed), vision_processor(), rows)


def pictures(n: int, height: int = 40, width: int = 50) -> list[Any]:
    rng = np.random.default_rng(0)
    return list(rng.integers(0, 255, (n, height, width, 3), dtype=np.uint8))


def bert_subject(seed: int = 0) -> TorchModule:
    torch.manual_seed(seed)
    c = transformers.BertConfig(intermediate_size=48, max_position_embeddings=64, **SIZES)
    tokenizer = byte_tokenizer()

    def prepare(texts: list[str]) -> dict[str, torch.Tensor]:
        tokenizer.pad_token = "<|bos|>"
        return dict(tokenizer(list(texts), padding=True, return_tensors="pt"))

    return TorchModule(transformers.BertModel(c, add_pooling_layer=False), prepare=prepare, example=TEXTS[:1])


def stories() -> LanguageModel:
    return load_subject(STORIES)


def hooks_of(model: nn.Module) -> int:
    """Those of saelab: transformers leaves some of its own where hidden states were asked for once."""
    hooks = [h for m in model.modules() for h in [*m._forward_hooks.values(), *m._forward_pre_hooks.values()]]
    return sum(not getattr(hook, "__module__", "").startswith("transformers") for hook in hooks)
