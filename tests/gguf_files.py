"""GGUF files for tests: small models as llama.cpp's converter writes them, and headers byte by byte."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, trainers

MODEL_KEYS = {  # key of the file: name in the config
    "context_length": ("max_position_embeddings", "n_positions"),
    "block_count": ("num_hidden_layers", "n_layer"),
    "embedding_length": ("hidden_size", "n_embd"),
    "feed_forward_length": ("intermediate_size", "n_inner"),
    "attention.head_count": ("num_attention_heads", "n_head"),
    "attention.head_count_kv": ("num_key_value_heads",),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps",),
    "attention.layer_norm_epsilon": ("layer_norm_epsilon",),
    "attention.sliding_window": ("sliding_window",),
    "attention.key_length": ("head_dim",),
    "vocab_size": ("vocab_size",),
}


def write_model(
    path: Path,
    model: Any,
    tokenizer: transformers.PreTrainedTokenizerFast,
    architecture: str,
    kind: str = "F32",
    pairs: dict[str, Any] | None = None,
    extra: dict[str, np.ndarray] | None = None,
    without: str | None = None,
) -> Path:
    """A model and its byte-level tokenizer as a GGUF file.

    kind: how matrices are stored; vectors are float32. pairs: more keys, or others. extra: more tensors.
    without: a tensor to leave out.
    """
    import gguf

    writer = gguf.GGUFWriter(path, architecture)
    config, sizes = model.config, {}
    for key, names in MODEL_KEYS.items():
        value = next(
            (getattr(config, name) for name in names if getattr(config, name, None) is not None), None
        )
        if value is not None:
            sizes[f"{architecture}.{key}"] = value
    if getattr(config, "rope_parameters", None):
        rope = config.rope_parameters.get("full_attention", config.rope_parameters)
        sizes[f"{architecture}.rope.freq_base"] = float(rope["rope_theta"])
        sizes[f"{architecture}.rope.dimension_count"] = getattr(config, "head_dim", None) or (
            config.hidden_size // config.num_attention_heads
        )
    for key, value in {**sizes, **(pairs or {})}.items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        else:
            writer.add_uint32(key, value)
    _write_tokenizer(writer, tokenizer)
    names = gguf.get_tensor_name_map(
        next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture),
        sizes[f"{architecture}.block_count"],
    )
    stored = getattr(gguf.GGMLQuantizationType, kind)
    tied = getattr(model.config, "tie_word_embeddings", False)
    for name, tensor in model.state_dict().items():
        if tied and name == "lm_head.weight":
            continue
        suffixes = (".weight", ".bias")
        its = names.get_name(name, suffixes) or names.get_name(name.removeprefix("transformer."), suffixes)
        assert its is not None, name
        if its != without:
            data = as_llama_cpp(architecture, name, tensor, model.config)
            raw = np.ascontiguousarray(data.float().numpy())
            if raw.ndim > 1 and stored != gguf.GGMLQuantizationType.F32:
                writer.add_tensor(its, gguf.quantize(raw, stored), raw_dtype=stored)
            else:
                writer.add_tensor(its, raw)
    for name, data in (extra or {}).items():
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def as_llama_cpp(architecture: str, name: str, tensor: torch.Tensor, config: Any) -> torch.Tensor:
    """What convert_hf_to_gguf.py makes of a tensor."""
    if architecture == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
        heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
        halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
        return halves.swapaxes(1, 2).reshape(tensor.shape)
    if architecture in ("gemma2", "gemma3", "nemotron") and name.endswith("norm.weight"):
        return tensor + 1
    if architecture == "gpt2" and tensor.ndim == 2 and ".h." in name:
        return tensor.T
    return tensor


def llama3_factors(theta: float, d_head: int, factor: float, original: int = 8192) -> np.ndarray:
    """What convert_hf_to_gguf.py stores as rope_freqs.weight, rope_scaling of Llama 3."""
    factors = []
    for i in range(0, d_head, 2):
        wavelength = 2 * math.pi * theta ** (i / d_head)
        if wavelength < original / 4:
            factors.append(1.0)
        elif wavelength > original:
            factors.append(factor)
        else:
            smooth = (original / wavelength - 1) / 3
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, np.float32)


def sentencepiece_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """A vocabulary as Gemma's: ▁ for spaces, bytes for what no piece holds, no space put first."""
    texts = [
        "Once upon a time, there was a dog.",
        "Tim ran",
        "The sun is warm and the sky is very blue today!",
    ]
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    named = special + [f"<0x{i:02X}>" for i in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=340, special_tokens=named, show_progress=False)
    backend.train_from_iterator(texts, trainer)
    model = json.loads(backend.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    # made again: its bytes are no special tokens, which would be found in the text
    fresh = Tokenizer(
        models.BPE(model["vocab"], merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    )
    fresh.normalizer = normalizers.Replace(" ", "▁")
    fresh.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=fresh, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", unk_token="<unk>"
    )


def _write_tokenizer(writer: Any, tokenizer: transformers.PreTrainedTokenizerFast) -> None:
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    words = [word for word, _ in sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1])]
    merges = [m if isinstance(m, str) else " ".join(m) for m in parts["model"]["merges"]]
    special = set(tokenizer.all_special_tokens)
    kinds = [3 if word in special else 1 for word in words]
    writer.add_token_list(words)
    if parts["model"]["byte_fallback"]:  # sentencepiece: no merges, but the score of each token
        ranks = {merge.replace(" ", ""): -float(i) for i, merge in enumerate(merges)}
        writer.add_tokenizer_model("llama")
        writer.add_token_scores([ranks.get(word, 0.0) for word in words])
        kinds = [6 if word.startswith("<0x") else kind for word, kind in zip(words, kinds, strict=True)]
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_merges(merges)
    writer.add_token_types(kinds)
    for name, add in (("bos", writer.add_bos_token_id), ("eos", writer.add_eos_token_id),
                      ("unk", writer.add_unk_token_id)):  # fmt: skip
        number = getattr(tokenizer, f"{name}_token_id")
        if number is not None:
            add(number)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


# --- byte by byte


def text(value: str | bytes) -> bytes:
    """A string of the format."""
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def pair(key: str | bytes, kind: int, data: bytes) -> bytes:
    """A key-value pair of a type of the format."""
    return text(key) + struct.pack("<I", kind) + data


def array(kind: int, n: int, data: bytes) -> bytes:
    """The value of an array."""
    return struct.pack("<IQ", kind, n) + data


def tensor(name: str, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    """What a header says of a tensor; shape as the file orders it."""
    axes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + axes + struct.pack("<IQ", kind, offset)


NAMED = pair("general.architecture", 8, text("llama"))


def header(
    *pairs: bytes,
    tensors: tuple[bytes, ...] = (),
    magic: bytes = b"GGUF",
    version: int = 3,
    n_pairs: int | None = None,
    n_tensors: int | None = None,
    data: bytes = b"",
) -> bytes:
    """A file, with counts that need not be true."""
    counts = (
        len(tensors) if n_tensors is None else n_tensors,
        len(pairs) if n_pairs is None else n_pairs,
    )
    start = magic + struct.pack("<IQQ", version, *counts) + b"".join(pairs) + b"".join(tensors)
    return start + b"\0" * (-len(start) % 32) + data
