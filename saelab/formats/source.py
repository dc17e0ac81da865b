"""Where an SAE is read from: a folder, or one file of it, with what the user says that the files do not."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from saelab.files import TENSOR_SUFFIXES
from saelab.formats.pickled import torch_file
from saelab.formats.reading import (
    INDEX,
    TensorFile,
    inside,
    json_file,
    npz_file,
    refuse,
    refusing,
    safetensors_file,
    yaml_file,
)
from saelab.types import short

READERS = {
    suffix: {".safetensors": safetensors_file, ".npz": npz_file}.get(suffix, torch_file)
    for suffix in TENSOR_SUFFIXES
}
"""Suffix of a file of tensors -> what reads it."""
# files of tensors that training leaves beside an SAE, and packed files of anything else
BESIDE = re.compile(
    r"((optimizer|lr_scheduler|scheduler|rank|activation)\w*|(trainer_)?state|trainer|training_args|rng_state\w*"
    r"|\w*sparsity|mean|std)\.\w+(\.gz)?"
    r"|.*(?<!\.pkl)(?<!\.pt)(?<!\.pth)\.gz"
)


@dataclass(frozen=True)
class Source:
    """A folder whose files are opened once, however many formats look at them.

    name: the file that was asked for, or None. given: what the user said, by option. dtype: of the tensors
    that are read. said: what SAELens' registry knows of the SAE beside its files. format: what the user says
    that it is.
    """

    folder: Path
    name: str | None = None
    given: Mapping[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    said: Mapping[str, Any] = field(default_factory=dict)
    format: str | None = None

    @classmethod
    def at(
        cls,
        path: Path,
        subfolder: str | None,
        given: Mapping[str, Any],
        dtype: torch.dtype,
        said: Mapping[str, Any] | None = None,
        format: str | None = None,
    ) -> Source:
        """The source at a folder, or at one file of tensors in it. Raises FormatError where it is neither."""
        place = inside(path, subfolder)
        with refusing(place):
            if place.is_dir():
                return cls(place, None, given, dtype, said or {}, format)
            if not place.is_file() or not (place.suffix in READERS or place.name.endswith(INDEX)):
                refuse(
                    "An SAE's path must be a folder or a file of tensors "
                    f"({', '.join(READERS)}, *{INDEX}), or the id of a repository on the Hugging Face hub",
                    f"{short(str(place))}, which is {'a file' if place.exists() else 'not there'}",
                    "Pass the folder that holds its configuration and weights.",
                )
        source = cls(place.parent, place.name, given, dtype, said or {}, format)
        for index in (name for name in source.files if name.endswith(INDEX)):
            listed = source.config(index) or {}
            if place.name in dict(listed.get("weight_map") or {}).values():
                refuse(
                    "An SAE's tensors must be read together",
                    f"{short(str(place))}, one of the files that {index} lists",
                    f"Pass {index}, or its folder.",
                )
        return source

    @cached_property
    def files(self) -> list[str]:
        """Names of the files in the folder, sorted."""
        with refusing(self.folder):
            return sorted(item.name for item in self.folder.iterdir() if not item.is_dir())

    def has(self, name: str) -> bool:
        """Whether there is such a file, and it is not another one that was asked for."""
        if Path(name).suffix in READERS and self.name not in (None, name):
            return False
        return (self.folder / name).exists()

    def config(self, name: str) -> dict[str, Any] | None:
        """A JSON file of the folder, or None where there is none."""
        return self._json(name) if (self.folder / name).is_file() else None

    def yaml(self, name: str) -> dict[str, Any] | None:
        """A YAML file of the folder, or None where there is none."""
        return self._once(name, yaml_file) if (self.folder / name).is_file() else None

    def open(self, name: str) -> TensorFile:
        """A file of tensors, by its suffix; of an index those of all the files that it lists."""
        return self._once(name, self._joined if name.endswith(INDEX) else READERS[Path(name).suffix])

    @cached_property
    def weights(self) -> str | None:
        """The file of tensors that was asked for, or the only one there is."""
        if self.name is not None:
            return self.name
        return self.candidates[0] if len(self.candidates) == 1 else None

    @cached_property
    def candidates(self) -> list[str]:
        """The files of tensors in the folder; those that an index lists are one, by its name."""
        found = [n for n in self.files if Path(n).suffix in READERS and not BESIDE.fullmatch(n)]
        indices = [n for n in self.files if n.endswith(INDEX)]
        parts = {part for index in indices for part in self._listed(index).values()}
        return [*indices, *(name for name in found if name not in parts)]

    @cached_property
    def alone(self) -> bool:
        """Whether `weights` is the only file of tensors here, so that a config beside it is its."""
        return self.weights is not None and set(self.candidates) <= {self.weights}

    def holds(self, name: str, *tensors: str) -> bool:
        """Whether the header of a file has these tensors, whatever their case."""
        return {tensor.lower() for tensor in tensors} <= {n.lower() for n in self.open(name).info}

    @property
    def where(self) -> str:
        """The last names of the path, with slashes: releases name hook point and width there."""
        names = [name for name in self.folder.absolute().parts if not name.startswith("snapshots")]
        return "/".join([*names[-6:], *([self.name] if self.name else [])])

    def tensors(self) -> TensorFile | None:
        """`weights`, opened."""
        return None if self.weights is None else self.open(self.weights)

    def _listed(self, index: str) -> dict[str, str]:
        """Tensor -> the file that holds it, as an index says."""
        said = self._json(index).get("weight_map")
        if not isinstance(said, dict) or not said:
            refuse(f"{self.folder / index} must list tensors in its weight_map", short(said))
        for part in said.values():
            named = isinstance(part, str) and Path(part).name == part and Path(part).suffix in READERS
            if not named or not (self.folder / part).is_file():
                refuse(
                    f"{self.folder / index} must list files of tensors that lie beside it",
                    short(part),
                    "Get all of its files.",
                )
        return said

    def _joined(self, path: Path) -> TensorFile:
        """The tensors of the files that an index lists, which must be all that these hold."""
        listed = self._listed(path.name)
        files = {part: self.open(part) for part in dict.fromkeys(listed.values())}
        held = {name: part for part, file in files.items() for name in file.info}
        if held != listed or sum(len(file.info) for file in files.values()) != len(held):
            other = sorted(name for name in {**held, **listed} if held.get(name) != listed.get(name))
            refuse(f"{path} must list the tensors of its files, each once", f"others: {short(other)}")
        info = {name: files[part].info[name] for name, part in listed.items()}
        return TensorFile(path, info, lambda name: files[listed[name]].read(name))

    def _json(self, name: str) -> dict[str, Any]:
        return self._once(name, json_file)

    @cached_property
    def _opened(self) -> dict[tuple[str, str], Any]:
        return {}

    def _once(self, name: str, read: Any) -> Any:
        key = name, read.__name__  # an index is read as what it says, and as what it lists
        if key not in self._opened:
            self._opened[key] = read(self.folder / name)
        return self._opened[key]


@dataclass(frozen=True)
class Found:
    """A source that a format recognised as its own; no tensors were read yet."""

    source: Source
    evidence: str
    """What speaks for that format."""
    config: Mapping[str, Any]
    """The configuration as the file has it, {} where there is none."""
    weights: str
    """Name of the file of tensors."""
    config_file: str | None = None

    @property
    def file(self) -> TensorFile:
        """The header of the tensors."""
        return self.source.open(self.weights)

    @property
    def path(self) -> Path:
        """Where the configuration is, else the weights: for messages."""
        return self.source.folder / (self.config_file or self.weights)

    def asked(self, option: str, why: str) -> Any:
        """What the user gave for an option that the files do not tell. Raises FormatError without it."""
        if option not in self.source.given:
            refuse(
                f"{self.path} leaves open what its codes are: {why}",
                f"no {option}",
                f"Pass load_sae(..., {option}=...).",
            )
        return self.source.given[option]
