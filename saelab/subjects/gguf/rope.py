"""How a model scales its positions: a GGUF file says it, transformers does not read it."""

from __future__ import annotations

from typing import Any

import numpy as np

from saelab.subjects.gguf.header import Header, refuse
from saelab.types import short

FACTORS = "rope_freqs.weight"
"""float32 [d_head / 2]: what Llama 3.1 and later divide the frequencies of their positions by."""

_LOW, _HIGH, _ORIGINAL = 1.0, 4.0, 8192
"""What every published model with such factors has; the file holds the factors alone."""
_RULE = "must scale positions in a known way"
_REMEDY = "Load another conversion of the model."


def scale_positions(config: Any, header: Header) -> None:
    """Set in a config what the file says of positions.

    Args:
        config: The model's config as transformers reads it; its `rope_parameters` are changed in place.
        header: The file's header.

    Raises:
        FormatError: The file scales positions in a way that is not known here.
    """
    place = getattr(config, "rope_parameters", None)
    if isinstance(place, dict) and "full_attention" in place:  # local layers are never scaled
        place = place["full_attention"]
    if not isinstance(place, dict) or place.get("rope_type", "default") != "default":
        return
    factors = next((tensor for tensor in header.tensors if tensor.name == FACTORS), None)
    if factors is not None:
        place.update(_llama3(header, float(place["rope_theta"])))
        return
    if any(tensor.name.startswith("rope_factors_") for tensor in header.tensors):
        refuse(header.path, _RULE, "LongRoPE", _REMEDY)
    key = f"{header.architecture}.rope.scaling."
    kind, factor = header.pairs.get(f"{key}type", "none"), header.pairs.get(f"{key}factor", 1.0)
    if kind == "none" or factor in (0, 1):
        return
    known = {f"{key}{name}" for name in ("type", "factor", "original_context_length", "finetuned")}
    more = sorted(name for name in header.pairs if name.startswith(key) and name not in known)
    original = header.number("rope.scaling.original_context_length")
    if kind == "linear" and isinstance(factor, float) and not more:
        place.update(rope_type="linear", factor=factor)
    elif kind == "yarn" and isinstance(factor, float) and original and not more:
        place.update(rope_type="yarn", factor=factor, original_max_position_embeddings=original)
    else:
        got = f"{short(kind)} by {short(factor)}" + (f" with {', '.join(more)}" if more else "")
        refuse(header.path, _RULE, got, _REMEDY)


def _llama3(header: Header, theta: float) -> dict[str, Any]:
    """The parameters of which the file's factors are made."""
    info = next(tensor for tensor in header.tensors if tensor.name == FACTORS)
    if info.block.name != "F32" or len(info.shape) != 1:
        refuse(header.path, f"must hold {FACTORS} as one row of F32", f"{info.shape} of {info.block.name}")
    factors = np.fromfile(header.path, np.dtype("<f4"), info.numel, offset=info.start).astype(np.float64)
    original = header.number("rope.scaling.original_context_length") or _ORIGINAL
    factor = float(factors.max(initial=1.0))
    wavelength = 2 * np.pi * theta ** (np.arange(len(factors)) / len(factors))
    smooth = np.clip((original / wavelength - _LOW) / (_HIGH - _LOW), 0, 1)
    if not np.allclose(factors, 1 / ((1 - smooth) / factor + smooth), rtol=1e-3):
        refuse(
            header.path,
            f"must scale positions as Llama 3 does where it holds {FACTORS}",
            f"other factors ({factors[0]:.4g} to {factors[-1]:.4g})",
            _REMEDY,
        )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": _LOW,
        "high_freq_factor": _HIGH,
        "original_max_position_embeddings": original,
    }


__all__ = ["FACTORS", "scale_positions"]
