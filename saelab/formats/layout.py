"""Tensors by name and shape: what formats have in common once they are recognised."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from saelab.config import is_integer
from saelab.formats.plain import Plain, build
from saelab.formats.reading import TensorFile, refuse
from saelab.formats.source import Found
from saelab.sae import SAE
from saelab.types import short

SAME = {"W_enc": "W_enc", "b_enc": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec"}
LINEAR = {
    "W_enc": "encoder.weight",
    "b_enc": "encoder.bias",
    "W_dec": "decoder.weight",
    "b_dec": "decoder.bias",
}


def take(
    found: Found,
    names: Mapping[str, str],
    *,
    file: TensorFile | None = None,
    transposed: Iterable[str] = (),
    transcodes: bool = False,
    optional: Iterable[str] = (),
    ignored: Iterable[str] = (),
) -> dict[str, Any]:
    """Our name -> tensor in our orientation, for names {ours: theirs} that must be there with b_enc [d_sae]
    and b_dec [d_out], which tell the shapes of the others, and nothing else but those that are ignored.

    transposed: which of ours lie the other way round in the file. Never guessed from shapes, which say
    nothing where d_in = d_sae. file: the tensors, by default the source's.
    """
    file = found.file if file is None else file
    extra = sorted(set(file.info) - set(names.values()) - set(ignored))
    missing = sorted({names[n] for n in set(names) - set(optional)} - set(file.info))
    if extra or missing:
        refuse(
            f"{file.path} must hold {', '.join(sorted(set(names.values())))} and no other tensors",
            f"{short(extra)} too" if extra else f"no {short(missing)}",
            "What is passed over may change the codes.",
        )
    d_sae, d_out = (length(file, names[bias]) for bias in ("b_enc", "b_dec"))
    shape = file.info[names["W_enc"]].shape
    d_in = shape["W_enc" in transposed] if len(shape) == 2 and transcodes else d_out
    shapes = {
        "W_enc": (d_in, d_sae),
        "W_dec": (d_sae, d_out),
        "W_skip": (d_in, d_out),
        "b_dec": (d_out,),
        "k": (),
        "scalar": (),
    }
    tensors: dict[str, Tensor] = {}
    for ours, theirs in names.items():
        if theirs not in file.info:
            continue
        wanted = shapes.get(ours, (d_sae,))
        if ours in transposed:
            wanted = wanted[::-1]
        info = file.info[theirs]
        if info.shape != wanted or "float" not in info.dtype:
            refuse(
                f"{theirs} in {file.path} must be of shape {wanted} and floating point, as the biases say",
                f"{info.shape}, {info.dtype}",
            )
        tensor = file.read(theirs, found.source.dtype)
        tensors[ours] = tensor.t() if ours in transposed else tensor
    return tensors


def length(file: TensorFile, name: str) -> int:
    """How long a vector is. Raises FormatError where the tensor is none."""
    info = file.info.get(name)
    if info is None or len(info.shape) != 1 or not 1 <= info.shape[0] < 2**31:
        refuse(f"{name} in {file.path} must be a vector", "nothing" if info is None else str(info.shape))
    return info.shape[0]


def done(plain: Plain, found: Found, weight: str) -> SAE:
    """The SAE, which knows in what dtype the file has the tensor `weight`."""
    sae = build(plain, found.path)
    sae.stored_dtype = found.file.info[weight].dtype
    return sae


def positive(value: Any, name: str, found: Found) -> int:
    """A positive integer of a config. Raises FormatError."""
    if not is_integer(value) or not 1 <= value < 2**31:
        refuse(f"{name} in {found.path} must be a positive integer", short(value))
    return value


def integer(file: TensorFile, name: str) -> int:
    """The value of a tensor that is one integer. Raises FormatError where it is not."""
    info = file.info[name]
    if info.shape != () or not info.dtype.startswith("int"):
        refuse(f"{name} in {file.path} must be one integer", str(info))
    return int(file.read(name))


def flag(value: Any, name: str, found: Found) -> bool:
    """A boolean of a config. Raises FormatError."""
    if not isinstance(value, bool):
        refuse(f"{name} in {found.path} must be true or false", short(value))
    return value
