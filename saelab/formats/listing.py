"""What SAEs a repository or a tree of folders has, by their configurations alone."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from saelab.config import is_number
from saelab.files import path_of
from saelab.formats import gemma_scope
from saelab.formats.hub import is_repository, listed
from saelab.formats.reading import TensorFile, refusing
from saelab.formats.registry import find
from saelab.formats.releases import release
from saelab.formats.source import BESIDE, READERS, Source
from saelab.types import FormatError


@dataclass(frozen=True)
class Listed:
    """An SAE of a repository or folder. What its configuration and path do not say is None."""

    subfolder: str
    """What to pass to `load_sae` with the repository or folder."""
    format: str | None
    """None where only the tensors would tell."""
    hook: str | None
    d_in: int | None
    d_sae: int | None
    l0: float | None
    """Codes of a row: k, or the mean that the path declares."""


@dataclass(frozen=True)
class _Unopened(Source):
    """A folder of which only names and configurations are there."""

    listed: tuple[str, ...] = ()

    @property
    def files(self) -> list[str]:  # type: ignore[override]
        return sorted(name for name in self.listed if "/" not in name)

    def has(self, name: str) -> bool:
        return name in self.listed and (Path(name).suffix not in READERS or self.name in (None, name))

    def holds(self, name: str, *tensors: str) -> bool:
        return True

    def tensors(self) -> TensorFile | None:
        return None


def list_saes(repository_or_folder: str | Path, revision: str | None = None) -> list[Listed]:
    """Every SAE in a repository of the hub or a tree of folders, with what is said of it.

    That is what its configuration and its path say; no weights are read. A release of SAELens' registry,
    where that is installed, is listed by the names and L0 that it has there.

    Args:
        repository_or_folder: The id, the folder or the release's name.
        revision: A repository's branch, tag or commit; None for its main branch.

    Returns:
        Ordered by name.

    Raises:
        StoreError: A repository cannot be reached.
        FormatError: A path is no folder.
    """
    named = release(repository_or_folder)
    if named is not None:
        there = {entry.subfolder: entry for entry in list_saes(named.repository, revision)}
        return [_registered(name, entry, there) for name, entry in named.saes.items()]
    if is_repository(repository_or_folder):
        root, names = listed(str(repository_or_folder), revision)
    else:
        root = path_of(repository_or_folder, "What is listed", FormatError)
        if not root.is_dir():
            msg = (
                f"What is listed must be a folder or a repository's id. Got {str(root)!r}. Pass one of them."
            )
            raise FormatError(msg)
        names = [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]
    folders: dict[str, list[str]] = {}
    for name in names:
        file = PurePosixPath(name)
        folders.setdefault(str(file.parent), []).append(file.name)
        if file.parent.name == "checkpoints":  # where Llama Scope has its weights
            folders.setdefault(str(file.parent.parent), []).append(f"checkpoints/{file.name}")
    found = [entry for folder in folders for entry in _in(root, folder, tuple(folders[folder]))]
    roots = {entry.subfolder for entry in found if entry.format == "openmoss"}
    found = [entry for entry in found if str(PurePosixPath(entry.subfolder).parent.parent) not in roots]
    return sorted(found, key=lambda entry: [_natural(piece) for piece in re.split(r"(\d+)", entry.subfolder)])


def _registered(name: str, entry: Mapping[str, Any], there: Mapping[str, Listed]) -> Listed:
    """An SAE as the registry names it, with what the repository's listing has of it."""
    nothing = Listed(name, None, None, None, None, None)
    path = PurePosixPath(entry["path"])
    folder = "" if str(path.parent) == "." else str(path.parent)
    # a file that is alone in its folder is listed by the folder
    seen = there.get(str(path)) or (there.get(folder) if path.suffix in READERS else None) or nothing
    hook = re.match(r"blocks\.\d+\.[a-z_.]*[a-z]", name)
    l0 = seen.l0 if seen.l0 is not None else entry.get("l0")
    return replace(seen, subfolder=name, hook=seen.hook or (hook[0] if hook else None), l0=l0)


def _natural(piece: str) -> tuple[int, str]:
    return (int(piece), "") if piece.isdecimal() and len(piece) < 18 else (0, piece)


def _in(root: Path, folder: str, names: tuple[str, ...]) -> list[Listed]:
    """The SAEs of one folder: that of all its files, else one for each file of tensors."""
    entry = _listed(_Unopened(root / folder, listed=names), "" if folder == "." else folder)
    if entry is not None and entry.format is not None:
        return [entry]
    files = [name for name in names if Path(name).suffix in READERS and not BESIDE.fullmatch(name)]
    found = []
    for name in files:
        subfolder = name if folder == "." else f"{folder}/{name}"
        one = _listed(_Unopened(root / folder, name, listed=names), subfolder)
        found += [] if one is None else [one]
    return found


def _listed(source: _Unopened, subfolder: str) -> Listed | None:
    config: Mapping[str, Any] = {}
    format = None
    with refusing(source.folder):
        try:
            format, seen = find(source, None)
            config = seen.config
        except FormatError:
            if source.name is None or "/" in source.name:
                return None
    said = {**config, **_dict(config.get("trainer")), **_dict(config.get("metadata"))}
    said |= _dict(config.get("config"))
    said |= _dict(said.get("options"))
    where = source.where
    d_in = _first(said, "d_in activation_dim act_size d_model", int)
    d_sae = (
        _first(said, "d_sae dict_size num_latents n_dirs_local", int) or _times(d_in, said) or _width(where)
    )
    hook = _first(said, "hook_name hook_point hook_point_in act_name submodule_name hf_hook_point_in", str)
    hook = hook or _first(_dict(said.get("hook")), "name", str)
    if hook is None and format == gemma_scope.NAME:
        points = gemma_scope.hooks(where)
        hook = points["hook"].name if points else None
    kind = _first(said, "act_fn sae_type activation_fn_str architecture recipe", str) or "topk"
    declared = re.search(r"(?:average_)?l0_(\d+)", where, re.IGNORECASE)
    l0 = (_first(said, "k top_k", int) if "topk" in kind else None) or (
        int(declared[1]) if declared else None
    )
    return Listed(subfolder, format, hook, d_in, d_sae, l0)


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _first(said: Mapping[str, Any], names: str, kind: type) -> Any:
    for name in names.split():
        value = said.get(name)
        if isinstance(value, kind) and not isinstance(value, bool) and value:
            return value
    return None


def _times(d_in: int | None, said: Mapping[str, Any]) -> int | None:
    factor = said.get("expansion_factor")
    return int(d_in * factor) if d_in and is_number(factor) and factor > 0 else None


def _width(where: str) -> int | None:
    """How many latents a name such as `width_16k` (16 * 1,024) stands for."""
    said = re.search(r"width_(\d{1,4})(k|m)", where)
    return (
        1 << round(math.log2(int(said[1]) * (1000 if said[2] == "k" else 10**6)))
        if said and int(said[1])
        else None
    )
