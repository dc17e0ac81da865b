"""Which formats there are, which of them a folder is, and loading and saving through them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from saelab.formats import dictionary_learning, native, saelens
from saelab.formats.reading import TensorFile, TensorInfo, inside, refuse, refusing, short
from saelab.sae import SAE
from saelab.types import ConfigError, FormatError, nearest


@dataclass(frozen=True)
class Format:
    """A file format. recognise: what in a folder speaks for it, or None. read: its config and its tensors'
    header. load: an SAE of these. save: None where it can only be read."""

    recognise: Callable[[Path], str | None]
    read: Callable[[Path], tuple[dict[str, Any], TensorFile]]
    load: Callable[[Path, dict[str, Any], TensorFile], SAE]
    save: Callable[[SAE, Path], None] | None


_FORMATS = {
    module.NAME: Format(module.recognise, module.read, module.load, module.save)
    for module in (native, saelens, dictionary_learning)
}


@dataclass(frozen=True)
class Sniffed:
    """What a folder holds, as read without its weights."""

    format: str
    """A name out of `names()`."""
    evidence: str
    """What speaks for that format."""
    config: Mapping[str, Any]
    """The configuration as the file has it."""
    tensors: Mapping[str, TensorInfo]
    """name -> (shape, dtype), as the file has them."""


def names() -> list[str]:
    """The formats that can be read."""
    return list(_FORMATS)


def sniff(path: str | Path, subfolder: str | None = None, format: str | None = None) -> Sniffed:
    """Which format the folder `path` is of, with its configuration and the shapes of its tensors; no weights
    are loaded. format: skip the question. Raises FormatError where it is none that is known, or several."""
    name, evidence, config, file = _open(path, subfolder, format)
    return Sniffed(name, evidence, config, dict(file.info))


def load_sae(
    path: str | Path,
    subfolder: str | None = None,
    format: str | None = None,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype | None = None,
) -> SAE:
    """The SAE in a folder that saelab, SAELens (version 6) or dictionary_learning wrote, told apart by what
    the folder holds.

    Codes and reconstructions are those of the original library; what cannot be represented exactly is refused
    with the reason, never approximated. Nothing in the files is executed. The SAE comes in eval mode.

    subfolder: of path, relative. format: one of `saelab.formats.names()`, to skip the question. dtype: of the
    weights, None for float32; `stored_dtype` tells what the file has. Raises FormatError for files that are
    unknown, damaged, inconsistent or not exactly representable, ConfigError for an unknown dtype or format.
    """
    name = dtype.removeprefix("torch.") if isinstance(dtype, str) else ""
    kind: Any = getattr(torch, name, None) if name else dtype
    if dtype is not None and not (isinstance(kind, torch.dtype) and kind.is_floating_point):
        msg = f"dtype must be a floating point dtype of torch or None. Got {dtype!r}. Pass 'float32'."
        raise ConfigError(msg)
    name, _, config, file = _open(path, subfolder, format)
    with refusing(file.path):
        sae = _FORMATS[name].load(file.path.parent, config, file)
    return sae.to(device=device, dtype=kind)


def save_sae(sae: SAE, folder: str | Path, format: str = "saelab") -> Path:
    """Write an SAE so that saelab, SAELens ("saelens") or dictionary_learning loads it, with the same codes
    and reconstructions. Scales are folded into the weights. Returns the folder.

    Raises FormatError where that format cannot hold this SAE exactly, naming what stands in the way,
    ConfigError for an unknown format, NonFiniteError for weights that are not finite, StoreError where the
    folder cannot be written.
    """
    save = _known(format).save
    if save is None:
        msg = f"A format to save in must be one that saelab writes. Got {format!r}. Use 'saelab'."
        raise ConfigError(msg)
    sae.check_parameters()
    save(sae, Path(folder))
    return Path(folder)


def _known(format: str) -> Format:
    if format not in _FORMATS:
        hint = nearest(str(format), _FORMATS)
        msg = f"The format must be one of {', '.join(_FORMATS)}. Got {format!r}. {hint}Leave it out to sniff."
        raise ConfigError(msg)
    return _FORMATS[format]


def _open(
    path: str | Path, subfolder: str | None, format: str | None
) -> tuple[str, str, dict[str, Any], TensorFile]:
    if format is not None:
        _known(format)
    root = Path(path)
    folder = inside(root, subfolder)
    with refusing(folder):
        if not folder.is_dir():
            refuse(
                "An SAE's path must be a folder",
                f"{short(str(folder))}, which is {'a file' if folder.exists() else 'not there'}",
                "Pass the folder that holds its configuration and weights.",
            )
    found = {
        name: evidence
        for name, entry in _FORMATS.items()
        if format in (None, name) and (evidence := entry.recognise(folder)) is not None
    }
    if len(found) != 1:
        with refusing(folder):
            files = sorted(item.name for item in folder.iterdir())
        remedy = "Say which: format=..." if found else "saelab.formats.names() lists them."
        known = ", ".join(_FORMATS) if format is None else format
        msg = f"{folder} must be of one of the formats {known}. Got {list(found) or short(files)}. {remedy}"
        raise FormatError(msg)
    name, evidence = next(iter(found.items()))
    with refusing(folder):
        config, file = _FORMATS[name].read(folder)
    return name, evidence, config, file
