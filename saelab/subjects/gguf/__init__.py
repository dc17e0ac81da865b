"""GGUF files, as llama.cpp and Ollama have them: found, checked, and converted once into a cache."""

from __future__ import annotations

from pathlib import Path

from saelab.subjects.gguf import cache, ollama
from saelab.subjects.gguf.header import is_gguf, read_header, refuse
from saelab.types import SubjectError


def find(name: str | Path) -> Path | ollama.Blob | None:
    """The GGUF file that a model's name means, or None where it means none.

    Args:
        name: A GGUF file; a folder that holds one and no config.json; or Ollama's name, `ollama:NAME[:TAG]`.

    Raises:
        SubjectError: There is no such file or model, or the folder holds several.
        FormatError: Ollama's manifest is damaged, or the file begins otherwise than GGUF files do.
    """
    if isinstance(name, str) and name.startswith(ollama.PREFIX):
        return ollama.blob(name)
    path = Path(name).expanduser()
    if path.is_dir():
        found = sorted(file for file in path.glob("*.gguf") if file.is_file())
        if (path / "config.json").is_file() or not found:
            return None
        if len(found) > 1:
            message = (
                f"A folder must hold one GGUF file to be loaded as a model. Got {len(found)} in {path}: "
                f"{', '.join(file.name for file in found[:20])}. Pass the path of one."
            )
            raise SubjectError(message)
        return found[0]
    if path.is_file():
        if not is_gguf(path):
            remedy = "Pass a GGUF file, or the folder of a Hugging Face model."
            refuse(path, "must begin with the letters GGUF", "another kind of file", remedy)
        return path
    if path.suffix == ".gguf":
        message = f"A GGUF file must exist. Got {str(name)!r}. Check the path."
        raise SubjectError(message)
    return None


def converted(found: Path | ollama.Blob, progress: bool = True) -> Path:
    """The Hugging Face folder of a GGUF file: converted at the first call, out of the cache after.

    Args:
        found: What `find` gave.
        progress: Whether to show what takes its time.

    Raises:
        MissingDependency: gguf is not installed.
        SubjectError: transformers cannot read such a file, or the cache cannot be written.
        FormatError: The file is damaged or hostile.
    """
    path = found.path if isinstance(found, ollama.Blob) else found
    known = cache.noted_digest(path)
    if known is not None and cache.sound(_place(known)):
        return _place(known)
    from saelab.subjects.gguf import convert, library

    header = read_header(path, library.blocks())
    convert.check(header)
    digest = cache.digest_of(path, progress)
    if isinstance(found, ollama.Blob) and digest != found.sha256:
        refuse(path, "must have the digest of its name", digest, "Fetch it again by `ollama pull`.")
    return cache.kept(_place(digest), lambda folder: convert.convert(header, folder, digest, progress))


def _place(digest: str) -> Path:
    return cache.user_folder("cache") / "gguf" / digest


__all__ = ["converted", "find"]
