"""Models by Ollama's own names, out of Ollama's own folder: `ollama:llama3.2:1b`.

    MODELS/manifests/HOST/NAMESPACE/NAME/TAG     JSON; a layer of type ...image.model gives a digest
    MODELS/blobs/sha256-DIGEST                   the GGUF file

MODELS is $OLLAMA_MODELS, else ~/.ollama/models. As with Ollama, the host is registry.ollama.ai, the namespace
`library` and the tag `latest` where a name leaves them out.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, NoReturn

from saelab.config import is_integer
from saelab.files import read_json
from saelab.types import FormatError, StoreError, SubjectError, nearest, short

PREFIX = "ollama:"
HOST, NAMESPACE, TAG = "registry.ollama.ai", "library", "latest"
MAX_MANIFEST = 2**20
"""Bytes."""

_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,350}")
_WORD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})")
_KIND = "application/vnd.ollama.image."
_SHOWN = 20
_AGAIN = "Fetch it again by `ollama pull`."


class Blob(NamedTuple):
    """A model's file in Ollama's folder."""

    path: Path
    sha256: str
    """Hex digest that its name promises."""


def models_folder() -> Path:
    """Where Ollama keeps models: $OLLAMA_MODELS, else ~/.ollama/models."""
    return Path(os.environ.get("OLLAMA_MODELS") or "~/.ollama/models").expanduser()


def blob(name: str) -> Blob:
    """The file of a model by Ollama's name.

    Args:
        name: `llama3.2:1b`, `someone/model`, `hf.co/someone/model:Q4_K_M`, ...; with or without `ollama:`.

    Raises:
        SubjectError: The name is none, or the model is not in Ollama's folder; the message lists what is.
        FormatError: Its manifest cannot be read, or leads to no GGUF file in the same folder.
    """
    models = models_folder()
    manifest = models.joinpath("manifests", *_words(name))
    if not manifest.is_file():
        there = sorted(itertools.islice(names(models), 1000))
        listed = ", ".join(there[:_SHOWN]) + (", ..." if len(there) > _SHOWN else "")
        message = (
            f"A model of Ollama's must be in its folder. Got {short(name)}, which is not in {models}. "
            f"{nearest(name.removeprefix(PREFIX), there)}"
            + (f"There are: {listed}." if there else "Fetch it by `ollama pull`, or set OLLAMA_MODELS.")
        )
        raise SubjectError(message)
    _check_inside(manifest, models)
    layers = _layers(manifest)
    if any(kind == "adapter" for kind, _, _ in layers):
        _refuse(manifest, "must be a model alone", "one with an adapter on it", "Load the model itself.")
    found = [(digest, size) for kind, digest, size in layers if kind == "model"]
    if len(found) != 1:
        kinds = ", ".join(sorted({kind for kind, _, _ in layers})) or "none"
        got = f"{len(found)} (its layers: {short(kinds)})"
        _refuse(manifest, "must have one layer that is a GGUF model", got, "Only such models are read.")
    digest, size = found[0]
    path = models / "blobs" / f"sha256-{digest}"
    if not path.is_file():
        _refuse(manifest, f"must lead to a file {path}", "none")
    _check_inside(path, models)
    if path.stat().st_size != size:
        got = f"one of {path.stat().st_size:,}"
        _refuse(manifest, f"must lead to a file of {size:,} bytes", got)
    return Blob(path, digest)


def names(models: Path) -> Iterator[str]:
    """The names of the models in a folder, as Ollama writes them."""
    root = models / "manifests"
    for path in root.glob("*/*/*/*"):
        host, namespace, name, tag = path.relative_to(root).parts
        if host != HOST:
            yield f"{host}/{namespace}/{name}:{tag}"
        else:
            yield f"{name}:{tag}" if namespace == NAMESPACE else f"{namespace}/{name}:{tag}"


def _words(name: str) -> list[str]:
    """host, namespace, name, tag"""
    *before, last = name.removeprefix(PREFIX).split("/")
    model, _, tag = last.partition(":")
    found = [*[HOST, NAMESPACE][: max(0, 2 - len(before))], *before, model, tag or TAG]
    host, *words = found
    if len(words) != 3 or not _HOST.fullmatch(host) or not all(map(_WORD.fullmatch, words)):
        message = (
            f"A model of Ollama's is named [[host/]namespace/]name[:tag]. Got {short(name)}. "
            "Pass e.g. 'ollama:llama3.2:1b'; `ollama list` shows the names."
        )
        raise SubjectError(message)
    return found


def _layers(manifest: Path) -> list[tuple[str, str, int]]:
    """(kind, digest, bytes) of each layer."""
    try:
        data = read_json(manifest, "manifest of Ollama's", most=MAX_MANIFEST, remedy=_AGAIN)
    except StoreError as error:
        raise FormatError(*error.args) from error
    listed = data.get("layers")
    if not isinstance(listed, list):
        _refuse(manifest, "must be a manifest of Ollama's, with its layers", short(data))
    layers = []
    for layer in listed:
        given = layer if isinstance(layer, dict) else {}
        kind, digest, size = (given.get(key) for key in ("mediaType", "digest", "size"))
        named = _DIGEST.fullmatch(digest) if isinstance(digest, str) else None
        if not isinstance(kind, str) or named is None or not is_integer(size):
            _refuse(manifest, "must give each layer its mediaType, sha256 digest and size", short(layer))
        layers.append((kind.removeprefix(_KIND), named[1], size))
    return layers


def _check_inside(path: Path, models: Path) -> None:
    if not path.resolve().is_relative_to(models.resolve()):
        message = (
            f"Files of Ollama's must lie in its folder {models}. Got {path}, a link to {path.resolve()}. "
            "Pass that file itself, if you trust it."
        )
        raise FormatError(message)


def _refuse(manifest: Path, rule: str, got: str, remedy: str = _AGAIN) -> NoReturn:
    message = f"{manifest} {rule}. Got {got}. {remedy}"
    raise FormatError(message)


__all__ = ["PREFIX", "Blob", "blob", "models_folder", "names"]
