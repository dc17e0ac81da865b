"""Repositories of the Hugging Face hub. huggingface_hub does the transfer: cache, revisions, tokens,
resuming."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from saelab.formats.reading import INDEX, MAX_JSON, inside, json_file, refuse
from saelab.formats.source import BESIDE, READERS
from saelab.types import StoreError, short

_ID = re.compile(r"(?!.*\.\.)\w[\w.-]{0,95}/\w[\w.-]{0,95}")
_CONFIGS = (".json", ".yaml")


def is_repository(path: Any) -> bool:
    """Whether a path is none of this machine, but may be the id of a repository: owner/name."""
    return isinstance(path, str) and _ID.fullmatch(path) is not None and not Path(path).exists()


def fetch(repository: str, subfolder: str | None, revision: str | None) -> Path:
    """The local copy of one SAE's folder, or of the file that `subfolder` names, in the cache.

    Without a connection, what the cache holds is taken. Raises StoreError where neither is to be had,
    FormatError where the folder holds several SAEs.
    """
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    place = PurePosixPath(inside(Path(), subfolder).as_posix())
    with _reaching(repository, subfolder, revision) as offline:
        if not offline:
            folder, name = place, None
            named = place.suffix in READERS or place.name.endswith(INDEX)
            files = _files(HfApi(), repository, place.parent, revision) if named else {}
            if place.name in files:  # folders may be named so too
                folder, name = place.parent, place.name
            else:
                files = _files(HfApi(), repository, folder, revision)
            at, indices = None, [n for n in files if n.endswith(INDEX) and name in (None, n)]
            listed = {
                index: _listed(Path(hf_hub_download(repository, str(folder / index), revision=revision)))
                for index in indices
                if files[index] <= MAX_JSON
            }
            # by the revision's name, not its commit, so that the cache knows it without a connection
            for file in _needed(files, listed, name, f"{repository}/{folder}"):
                at = Path(hf_hub_download(repository, str(folder / file), revision=revision))
                for _ in PurePosixPath(file).parts[1:]:
                    at = at.parent
            assert at is not None
            return at.parent / name if name else at.parent
    try:
        root = Path(snapshot_download(repository, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, OSError):
        root = None
    if root is None or not (root / place).exists():
        _unreachable(repository, subfolder, "no connection, and nothing of it in the cache")
    return root / place


def _files(api: Any, repository: str, folder: PurePosixPath, revision: str | None) -> dict[str, int]:
    """The files of a folder, name -> bytes, those of its `checkpoints` too, which Llama Scope has."""
    from huggingface_hub import RepoFile

    sha = api.model_info(repository, revision=revision).sha
    sizes: dict[str, int] = {}
    inner = None if str(folder) == "." else str(folder)
    entries = list(api.list_repo_tree(repository, inner, revision=sha))
    if any(entry.path.endswith("/hyperparams.json") or entry.path == "hyperparams.json" for entry in entries):
        entries += api.list_repo_tree(repository, str(folder / "checkpoints"), revision=sha)
    for entry in entries:
        if isinstance(entry, RepoFile):
            inside(Path(), entry.path)
            sizes[str(PurePosixPath(entry.path).relative_to(folder))] = entry.size
    return sizes


def _listed(index: Path) -> list[str]:
    """The files whose tensors an index lists."""
    said = json_file(index).get("weight_map")
    return [str(part) for part in dict.fromkeys(said.values())] if isinstance(said, dict) else []


def _needed(files: dict[str, int], listed: dict[str, list[str]], name: str | None, where: str) -> list[str]:
    """The configurations and the one file of tensors, or all that an index lists."""
    configs = [n for n, size in files.items() if n.endswith(_CONFIGS) and size <= MAX_JSON]
    tensors = [n for n in files if PurePosixPath(n).suffix in READERS and not BESIDE.fullmatch(n)]
    parts = {part for each in listed.values() for part in each}
    tensors = [*listed, *(n for n in tensors if name in (None, n) and n not in parts)]
    if len(tensors) != 1:
        refuse(
            f"{where} must hold one SAE, or subfolder name its file",
            short(sorted(tensors)) if tensors else f"only {short(sorted(files))}",
            "saelab.formats.list_saes lists what a repository has.",
        )
    (chosen,) = tensors
    # one that is missing is said where they are read
    return [*configs, *(part for part in listed.get(chosen, [chosen]) if part in files)]


@contextlib.contextmanager
def _reaching(repository: str, subfolder: str | None, revision: str | None) -> Iterator[bool]:
    """Yields whether the library is told to stay offline; turns what it raises into one sentence."""
    from huggingface_hub import errors, is_offline_mode

    try:
        yield is_offline_mode()
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.EntryNotFoundError) as error:
        lost = isinstance(error, errors.RevisionNotFoundError)
        what = f"no revision {revision!r}" if lost else "none there"
        _unreachable(repository, subfolder, f"{what}, or it is private", error)
    except (errors.HfHubHTTPError, OSError) as error:
        _unreachable(repository, subfolder, short(str(error).splitlines()[0]), error)
    except Exception as error:
        # the transfer's own library is no dependency: its errors are known by where they come from
        if not type(error).__module__.startswith(("httpx", "httpcore", "requests", "urllib3")):
            raise
        _unreachable(repository, subfolder, f"{type(error).__name__}: {short(str(error))}", error)


def _unreachable(
    repository: str, subfolder: str | None, got: str, error: BaseException | None = None
) -> NoReturn:
    what = repository if subfolder is None else f"{repository}, {subfolder}"
    msg = (
        f"{what} must be on the Hugging Face hub or in its cache. Got: {got}. Connect or log in "
        "(hf auth login), run `hf download` where there is a network, or pass a folder."
    )
    raise StoreError(msg) from error


def listed(repository: str, revision: str | None) -> tuple[Path, list[str]]:
    """(a local folder with the repository's configurations, the names of all its files). Raises
    StoreError."""
    from huggingface_hub import HfApi, snapshot_download

    with _reaching(repository, None, revision) as offline:
        if not offline:
            names = HfApi().list_repo_files(repository, revision=revision)
            for name in names:
                inside(Path(), name)
            patterns = [f"*{suffix}" for suffix in _CONFIGS]
            root = snapshot_download(repository, revision=revision, allow_patterns=patterns)
            return Path(root), names
    root = fetch(repository, None, revision)
    return root, [path.relative_to(root).as_posix() for path in sorted(root.rglob("*")) if path.is_file()]
