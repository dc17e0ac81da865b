"""What the installed libraries, gguf and transformers, can read."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from saelab.errors import needing
from saelab.subjects.gguf.header import Block


@lru_cache(maxsize=1)
def blocks() -> dict[int, Block]:
    """How each type of tensor that gguf knows is stored, by its number.

    Raises:
        MissingDependency: gguf, or what transformers needs beside it, is not installed.
    """
    with needing("A GGUF file", "gguf and accelerate", "'saelab[gguf]'"):
        import accelerate  # noqa: F401  transformers asks for it
        from gguf import GGML_QUANT_SIZES
    return {int(kind): Block(kind.name, items, size) for kind, (items, size) in GGML_QUANT_SIZES.items()}


def architectures() -> list[str]:
    """Names of the architectures that transformers turns into causal language models."""
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

    found = {name for name in GGUF_SUPPORTED_ARCHITECTURES if name in CAUSAL or f"{name}_text" in CAUSAL}
    return sorted(found | _of_the_new_reader())


def is_known(architecture: str) -> bool:
    """Whether transformers reads an architecture; llama.cpp and it do not agree on hyphens."""
    return _bare(architecture) in {_bare(name) for name in architectures()}


@lru_cache(maxsize=256)
def dequantises(architecture: str, kind: str) -> bool:
    """Whether the reader that transformers takes for an architecture unpacks a type of tensor."""
    number, block = next((n, block) for n, block in blocks().items() if block.name == kind)
    if architecture in _of_the_new_reader():
        from transformers.integrations.gguf.dequant import GGML_BLOCK

        return number in GGML_BLOCK or kind in ("F32", "F16", "BF16")
    from gguf import GGMLQuantizationType, dequantize

    dtype = {"F32": np.float32, "F16": np.float16}.get(kind)
    data = np.zeros(1, dtype) if dtype else np.zeros((1, block.size), np.uint8)
    try:
        dequantize(data, GGMLQuantizationType(number))
    except NotImplementedError:
        return False
    return True


def _of_the_new_reader() -> set[str]:
    """Recent versions of transformers have a second reader, for a few architectures."""
    try:
        from transformers.integrations.gguf.gguf_config_mapping import GGUF_CONFIG_ARCHS
        from transformers.integrations.gguf.gguf_conversion_mapping import GGUF_ARCHS
    except ImportError:
        return set()
    return set(GGUF_ARCHS) & set(GGUF_CONFIG_ARCHS)


def _bare(name: str) -> str:
    return name.replace("-", "").replace("_", "")


__all__ = ["architectures", "blocks", "dequantises", "is_known"]
