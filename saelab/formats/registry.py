"""Which formats there are, which of them a folder is, and loading and saving through them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from saelab.config import is_integer
from saelab.devices import FLOATS, dtype_name, torch_device
from saelab.files import path_of
from saelab.formats import (
    attention_output,
    batchtopk,
    circuit_tracer,
    crosscoders,
    dictionary_learning,
    gemma_scope,
    general,
    goodfire,
    linear,
    native,
    openai,
    openmoss,
    overcomplete,
    qwen_scope,
    saelens,
    sparsify,
    temporal,
    unbox,
    vision,
)
from saelab.formats.hub import fetch, is_repository
from saelab.formats.near import unknown
from saelab.formats.reading import TensorInfo, refusing
from saelab.formats.releases import release
from saelab.formats.source import Found, Source
from saelab.sae import SAE
from saelab.types import ConfigError, FormatError, HookPoint, nearest, short


@dataclass(frozen=True)
class Format:
    """A file format: a module with NAME, `find` (what speaks for it in a source, or None), `load` (an SAE of
    that), and, where it has them, `save` and OPTIONS (name -> line: what files leave open and users say)."""

    find: Callable[[Source], Found | None]
    load: Callable[[Found], SAE]
    save: Callable[[SAE, Path], None] | None
    options: Mapping[str, str]

    @classmethod
    def of(cls, module: ModuleType) -> Format:
        return cls(module.find, module.load, getattr(module, "save", None), getattr(module, "OPTIONS", {}))


# told apart by their configuration
_CONFIGURED: tuple[ModuleType, ...] = (
    native,
    saelens,
    dictionary_learning,
    sparsify,
    gemma_scope,
    openmoss,
    batchtopk,
    attention_output,
    unbox,
    circuit_tracer,
    temporal,
)
# told apart by names and shapes of tensors, asked where no configuration is known
_BARE: tuple[ModuleType, ...] = (openai, goodfire, qwen_scope, crosscoders, overcomplete, vision, linear)
# of no library: asked last
_GENERAL: tuple[ModuleType, ...] = (general,)
_ROUNDS = (_CONFIGURED, _BARE, _GENERAL)
_FORMATS = {module.NAME: Format.of(module) for modules in _ROUNDS for module in modules}

OPTIONS = {
    "hook": "The hook point that the SAE reads, for files that do not name it.",
    "n_heads": "How many heads are side by side in its input, where that is attn.hook_z.",
    "ignore": "Settings of its configuration of which you know that they change no codes: their names.",
}
"""What a user may say of any file."""


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


def names(*, writing: bool = False) -> list[str]:
    """The formats that can be read or, writing, written."""
    return [name for name, entry in _FORMATS.items() if entry.save is not None or not writing]


def options() -> dict[str, str]:
    """What some files leave open, and what one may say of any: option of `load_sae` -> what it is."""
    found = dict(OPTIONS)
    for entry in reversed(_FORMATS.values()):  # the words of the general reader first
        for option, line in entry.options.items():
            found.setdefault(option, line)
    return found


def sniff(
    path: str | Path, subfolder: str | None = None, format: str | None = None, revision: str | None = None
) -> Sniffed:
    """Which format files are of, with their configuration and the shapes of their tensors.

    No weights are loaded.

    Args:
        path: As `load_sae` takes it.
        subfolder: A folder within path, or a file in it.
        format: One of `names()`, to skip the question.
        revision: A repository's branch, tag or commit; None for its main branch.

    Raises:
        FormatError: They are of none that is known, or of several.
    """
    name, found = find(_source(path, subfolder, revision, {}, torch.float32, format), format)
    with refusing(found.path):
        return Sniffed(name, found.evidence, found.config, dict(found.file.info))


def load_sae(
    path: str | Path,
    subfolder: str | None = None,
    format: str | None = None,
    revision: str | None = None,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype | None = None,
    **given: Any,
) -> SAE:
    """An SAE that saelab or another library wrote, its format told by what is in it.

    Codes and reconstructions are those of the original library; what cannot be represented exactly is refused
    with the reason, never approximated. Nothing in the files is executed. The SAE comes in eval mode.

    Weights that need no conversion stay mapped, so that a file is read once and takes no second copy in
    memory; writing it anew in place, which no library here does while it is in use, would change them.

    Args:
        path: A folder, a file, a repository of the Hugging Face hub, or a release by its name in the registry
            of SAELens, where that is installed.
        subfolder: A folder within path, or a file in it.
        format: One of `saelab.formats.names()`, to skip the question.
        revision: A repository's branch, tag or commit; None for its main branch.
        device: Where the SAE goes.
        dtype: What the weights are read as, directly: "bfloat16", "bf16" or torch.bfloat16, None for
            float32; "auto" for the file's own, which `stored_dtype` tells.
        given: What files of that format leave open (the error names it), and hook= and n_heads= of any
            format.

    Raises:
        FormatError: Files are unknown, damaged, inconsistent or not exactly representable.
        ConfigError: An unknown dtype, format or option, or a device that is not there.
        StoreError: A repository cannot be reached and is not in the cache.
    """
    kind = dtype_name("float32" if dtype is None else dtype, (*FLOATS, "auto"))
    place = torch_device(device)
    # float64 holds whatever a file has
    through = torch.float64 if kind == "auto" else getattr(torch, kind)
    source = _source(path, subfolder, revision, given, through, format)
    name, found = find(source, format)
    known = {**_FORMATS[name].options, **OPTIONS}
    for option in source.given:
        if option not in known:
            msg = (
                f"The format {name!r} has no option {option!r}. {nearest(option, known)}"
                f"Its options are {', '.join(known)}."
            )
            raise ConfigError(msg)
    with refusing(found.path):
        sae = _FORMATS[name].load(found)
    if given.keys() & OPTIONS.keys():
        sae.config = dataclasses.replace(sae.config, hook=_hook(sae, given))
    return sae.to(device=place, dtype=getattr(torch, sae.stored_dtype if kind == "auto" else kind))


def load_layers(
    path: str | Path, subfolder: str | None = None, format: str | None = None, **options: Any
) -> list[SAE]:
    """Every SAE of a file or folder that holds one for each of several layers.

    Args:
        path: A file whose tensors are stacked, or a folder of files of single layers.
        subfolder: As `load_sae` takes it.
        format: As `load_sae` takes it.
        options: The others of `load_sae`, the same for all layers.

    Returns:
        In the order of the layers.

    Raises:
        FormatError: There is one SAE alone, or none, or any of them is refused by `load_sae`.
    """
    given = {name: value for name, value in options.items() if name not in ("revision", "device", "dtype")}
    source = _source(path, subfolder, options.get("revision"), given, torch.float32, format)
    numbers = circuit_tracer.layers(source) if source.name is None else []
    if not numbers:
        name, found = find(source, format)
        with refusing(found.path):
            numbers = general.layers(found) if name == general.NAME else []
    if not numbers:
        msg = (
            f"{source.folder} must hold SAEs of several layers. Got one alone. "
            "Load it by saelab.load_sae, or pass the file whose tensors are stacked."
        )
        raise FormatError(msg)
    return [load_sae(path, subfolder, format, **options, layer=i) for i in numbers]


def save_sae(sae: SAE, folder: str | Path, format: str = "saelab") -> Path:
    """Write an SAE so that another library loads it with the same codes and reconstructions.

    Scales are folded into the weights.

    Args:
        sae: An SAE of any architecture.
        folder: Made where it is not there.
        format: "saelab", "saelens", "dictionary_learning" or "sparsify".

    Returns:
        The folder.

    Raises:
        FormatError: That format cannot hold this SAE exactly; it names what stands in the way.
        ConfigError: There is no such format to write.
        NonFiniteError: Weights are not finite.
        StoreError: The folder cannot be written.
    """
    save = _known(format).save
    if save is None:
        written = ", ".join(names(writing=True))
        msg = f"A format to save in must be one of {written}. Got {format!r}. Use 'saelab'."
        raise ConfigError(msg)
    if not isinstance(sae, SAE):
        msg = f"sae must be an SAE. Got {type(sae).__name__}. Pass what saelab.load_sae gives."
        raise ConfigError(msg)
    place = path_of(folder, "An SAE's folder")
    sae.check_parameters()
    save(sae, place)
    return place


def _source(
    path: str | Path,
    subfolder: str | None,
    revision: str | None,
    given: Mapping[str, Any],
    dtype: torch.dtype,
    format: str | None,
) -> Source:
    said: dict[str, Any] = {}
    named = release(path)
    if named is not None:
        path = named.repository
        subfolder, said = named.sae(subfolder)
    if is_repository(path):
        return Source.at(fetch(str(path), subfolder, revision), None, given, dtype, said, format)
    if revision is not None:
        msg = f"A revision is of a repository on the hub. Got {revision!r} and the path {short(str(path))}."
        raise ConfigError(msg + " Leave it out.")
    place = path_of(path, "The path of an SAE", FormatError)
    return Source.at(place, subfolder, given, dtype, None, format)


def _hook(sae: SAE, given: Mapping[str, Any]) -> HookPoint | None:
    hook = HookPoint.of(given["hook"]) if "hook" in given else sae.config.hook
    if "n_heads" not in given:
        return hook
    n = given["n_heads"]
    divides = is_integer(n) and n >= 1 and sae.d_in % n == 0
    if hook is None or not hook.name.endswith("hook_z") or not divides:
        msg = (
            f"n_heads must divide d_in={sae.d_in} of an SAE on a hook_z. Got {n!r} at {hook}. "
            "Pass hook='blocks.3.attn.hook_z' too, or leave it out."
        )
        raise ConfigError(msg)
    return dataclasses.replace(hook, n_heads=int(n))


def _known(format: str) -> Format:
    if not isinstance(format, str) or format not in _FORMATS:
        hint = nearest(str(format), _FORMATS)
        msg = f"The format must be one of {', '.join(_FORMATS)}. Got {format!r}. {hint}Leave it out to sniff."
        raise ConfigError(msg)
    return _FORMATS[format]


def find(source: Source, format: str | None) -> tuple[str, Found]:
    """The one format that recognises the source. Raises FormatError where none or several do."""
    found: dict[str, Found] = {}
    if format is not None:
        asked = [(format, _known(format))]
        rounds = [asked]
    else:
        rounds = [[(m.NAME, _FORMATS[m.NAME]) for m in modules] for modules in _ROUNDS]
    for entries in rounds:
        for name, entry in entries:
            with refusing(source.folder):
                seen = entry.find(source)
            if seen is not None:
                found[name] = seen
        if found:
            break
    if not found:
        unknown(source, format, list(_FORMATS))
    if len(found) > 1:
        msg = (
            f"{source.folder} must be of one of the formats {', '.join(_FORMATS)}. Got {list(found)}. "
            "Say which: format=..."
        )
        raise FormatError(msg)
    return next(iter(found.items()))
