"""What is said of files that are of no known format: what they hold, and what each near format would need."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

from saelab.formats.reading import TensorFile, refuse
from saelab.formats.source import Source
from saelab.types import FormatError, short


class _Needs(NamedTuple):
    files: tuple[str, ...]
    """by their names"""
    what: str
    """and what stands in them"""
    tensors: frozenset[str] = frozenset()
    """whose names speak for it"""


_LINEAR = frozenset({"encoder.weight", "encoder.bias", "decoder.weight"})
_SAME = frozenset({"W_enc", "b_enc", "W_dec", "b_dec"})
_NEAR = {
    "saelab": _Needs(("config.json", "sae.safetensors"), "format 'saelab' in config.json", _SAME),
    "saelens": _Needs(
        ("cfg.json", "sae_weights.safetensors"), "d_in and an architecture or hook_name in cfg.json", _SAME
    ),
    "dictionary_learning": _Needs(
        ("config.json", "ae.pt"), "trainer.dict_class in config.json", _LINEAR | {"bias", "b_dec", "k"}
    ),
    "sparsify": _Needs(
        ("cfg.json", "sae.safetensors"), "k and num_latents or expansion_factor in cfg.json",
        frozenset({"encoder.weight", "encoder.bias", "W_dec", "b_dec"}),
    ),
    "gemma_scope": _Needs(("params.npz",), "W_enc, W_dec, b_enc, b_dec and threshold", _SAME | {"threshold"}),
    "openmoss": _Needs(
        ("config.json", "sae_weights.safetensors"),
        "d_model, expansion_factor and hook_point_in in config.json",
        frozenset({"W_E", "W_D", "b_E", "b_D"}),
    ),
    "batchtopk": _Needs(("config.json", "sae.pt"), "act_size, dict_size and sae_type in config.json", _SAME),
    "unbox": _Needs(
        ("config.json", "state_dict.pth"), "n_dirs_local, d_model and k in config.json",
        frozenset({"encoder.weight", "latent_bias", "pre_bias", "decoder.weight"}),
    ),
    "openai": _Needs(
        (), "pre_bias and latent_bias beside activation",
        frozenset({"encoder.weight", "latent_bias", "pre_bias", "decoder.weight"}),
    ),
    "circuit_tracer": _Needs(("config.yaml", "layer_0.safetensors"), "W_enc, b_enc, W_dec and b_dec", _SAME),
    "overcomplete": _Needs((), "dictionary._weights", frozenset({"dictionary._weights"})),
}  # fmt: skip


def unknown(source: Source, format: str | None, formats: Sequence[str]) -> NoReturn:
    """Refuse a source of no known format, or not of the one that was asked for. Raises FormatError."""
    place = source.folder / (source.weights or source.name or "")
    file = None
    if source.weights is not None:
        file = source.tensors()  # whose own fault is said, if it has one
    several = source.candidates
    if file is not None:
        got = f"tensors\n{_tensors(file)}"
    elif len(several) > 1:
        got = f"{len(several)} files of tensors, {short(several)}"
    else:
        got = short(source.files) if source.files else "no files"
    wanted = "one of the formats " + ", ".join(formats) if format is None else f"the format {format}"
    near = _near(source, file, format)
    lines = [f"{name} needs {why}" for name, why in near]
    remedy = "Pass the one that you mean. " if file is None and len(several) > 1 else ""
    if lines:
        remedy += "\n  ".join(["Of what is near:", *lines])
    elif not remedy:
        remedy = "saelab.formats.names() lists them."
    refuse(f"{place} must be of {wanted}", got, remedy)


def _tensors(file: TensorFile) -> str:
    lines = [
        f"  {name} [{' '.join(map(str, info.shape))}] {info.dtype}"
        for name, info in sorted(file.info.items())
    ]
    return "\n".join(lines[:16] + ([f"  and {len(lines) - 16} more"] if len(lines) > 16 else []))


def _near(source: Source, file: TensorFile | None, format: str | None) -> list[tuple[str, str]]:
    """(format, what is missing of it), those first of which most is there."""
    own = {name.rpartition("state_dict.")[2] for name in file.info} if file is not None else set()
    found: list[tuple[int, str, str]] = []
    for name, needs in _NEAR.items():
        if format is not None and name != format:
            continue
        there = {n for n in needs.files if _has(source, n)}
        same = len(needs.tensors & own)
        # a file of any name may be the weights, which says nothing
        if format is None and not (same >= min(3, len(needs.tensors)) or there - {"config.json", "cfg.json"}):
            continue
        missing = [n for n in needs.files if n not in there]
        why = f"{' and '.join(missing)}, with {needs.what}" if missing else needs.what
        found.append((-same - 2 * len(there), name, why))
    return [(name, why) for _, name, why in sorted(found)]


def _has(source: Source, name: str) -> bool:
    with contextlib.suppress(FormatError):
        return source.has(name)
    return False
