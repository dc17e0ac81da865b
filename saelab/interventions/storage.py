"""Edits as JSON: one by one, in lists, and in a file that says which subject they were made for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from saelab.arguments import a_subject, an_sae, checked, either, listed, maybe, place
from saelab.files import Stamp, json_bytes, path_of, write_bytes
from saelab.interventions.registry import AnotherSAE, Edit, Reader
from saelab.sae import SAE
from saelab.types import ConfigError, FormatError, SaelabError, StoreError, Subject, short

STAMP = Stamp("saelab", 1, "edits", "Pass one that saelab.interventions.save wrote.", FormatError)
MAX_BYTES = 2**26
"""Bytes of a file, at most: its tensors are directions and masks, not data sets."""


@checked(path=place, subject=maybe(a_subject))
def save(edits: Edit | Sequence[Edit], path: str | Path, subject: Subject | None = None) -> Path:
    """Write edits into a JSON file, which appears whole or not at all.

    Args:
        edits: In the order in which they are applied.
        path: The file.
        subject: What they were made for: `load` then refuses another.

    Returns:
        The file's path.

    Raises:
        ConfigError: One of them is no registered edit.
        StoreError: They do not fit into a file, or it cannot be written.
    """
    write_bytes(path, _content_of(edits, subject))
    return Path(path)


def text_of(edits: Edit | Sequence[Edit], subject: Subject | None = None) -> str:
    """What `save` writes.

    Args:
        edits: In the order in which they are applied.
        subject: What they were made for.

    Raises:
        ConfigError: One of them is no registered edit.
        StoreError: They would not fit into a file.
    """
    return _content_of(edits, subject).decode()


def _content_of(edits: Edit | Sequence[Edit], subject: Subject | None) -> bytes:
    edits = [edits] if isinstance(edits, Edit) else list(listed("edits", edits))
    for edit in edits:
        if not isinstance(edit, Edit):
            message = (
                f"Only registered edits can be written. Got {short(edit)}. Make it one by "
                "@saelab.interventions.register."
            )
            raise ConfigError(message)
    made_for = (
        None if subject is None else {"fingerprint": subject.fingerprint(), "type": type(subject).__name__}
    )
    content = {**STAMP.fields(), "subject": made_for, "edits": [edit.to_dict() for edit in edits]}
    data = json_bytes(content)
    if len(data) > MAX_BYTES:
        message = (
            f"Edits in a file must have at most {MAX_BYTES:,} bytes. Got {len(data):,}. Apply large values "
            "by a function: edits=[(hook, lambda acts: values)]."
        )
        raise StoreError(message)
    return data


@checked(saes=either(an_sae, listed))
def load(
    source: Mapping[str, Any] | Sequence[Mapping[str, Any]] | str | Path,
    saes: SAE | Iterable[SAE] = (),
    subject: Subject | None = None,
) -> list[Edit]:
    """Edits of JSON data or of a file.

    Args:
        source: What `edit.to_dict()` gave, a list of that, or the path of a file that `save` wrote.
        saes: The SAEs that the edits may need, which are found by their fingerprints.
        subject: What they will be applied to. Checked where a file says what they were made for.

    Returns:
        The edits in their order, ready for `subject.run(..., edits=)`.

    Raises:
        ConfigError: An edit needs another SAE than those given, or they were made for another subject.
        FormatError: The data are no edits that saelab knows.
        StoreError: The file cannot be read.
    """
    where = "An edit"
    if isinstance(source, str | Path):
        where = f"An edit in {source}"
        path = path_of(source)
        source = _items(STAMP.read(path, "file of edits", most=MAX_BYTES), path, subject)
    if isinstance(source, bytes):
        path_of(source, "A file of edits")
    items = [source] if isinstance(source, Mapping) else source
    if not isinstance(items, Sequence):
        message = (
            f"{where} must be JSON data, a list of them or a path. Got {short(source)}. Pass edit.to_dict()."
        )
        raise FormatError(message)
    return _read(items, where, saes)


def of_text(text: str, saes: Iterable[SAE], subject: Subject | None = None) -> list[Edit]:
    """Edits of what `save` wrote.

    Args:
        text: The content of the file.
        saes: The SAEs that the edits may need.
        subject: What they will be applied to.

    Raises:
        ConfigError: An edit needs another SAE than those given, or they were made for another subject.
        FormatError: The text holds no edits that saelab knows.
        StoreError: It is larger than a file may be.
    """
    data, where = text.encode("utf-8", "surrogatepass"), "the recipe"
    if len(data) > MAX_BYTES:
        message = f"A recipe must have at most {MAX_BYTES:,} bytes. Got {len(data):,}. Do not trust it."
        raise StoreError(message)
    items = _items(STAMP.parse(data, where, "file of edits"), where, subject)
    return _read(items, "An edit in the recipe", saes)


def _read(items: Sequence[Any], where: str, saes: SAE | Iterable[SAE]) -> list[Edit]:
    reader = Reader([saes] if isinstance(saes, SAE) else saes)
    try:
        return [reader.edit(item, where) for item in items]
    except AnotherSAE:
        raise
    except (SaelabError, RecursionError, TypeError, ValueError, OverflowError) as error:
        message = f"{where} must be one that saelab can make. {error}"
        raise FormatError(message) from error


def _items(data: Mapping[str, Any], where: object, subject: Subject | None) -> list[Any]:
    made_for, items = data.get("subject"), data.get("edits")
    known = made_for is None or (isinstance(made_for, dict) and isinstance(made_for.get("fingerprint"), str))
    if not known or not isinstance(items, list):
        message = (
            f"{where} must say its subject and a list of edits. Got {short(made_for)}. Save the edits again."
        )
        raise FormatError(message)
    if subject is not None and made_for is not None and subject.fingerprint() != made_for["fingerprint"]:
        message = (
            f"Edits must be applied to the subject that they were made for, {made_for['fingerprint'][:12]}. "
            f"Got another, {subject.fingerprint()[:12]}. Load that one, or leave subject out to use them "
            "elsewhere."
        )
        raise ConfigError(message)
    return items


__all__ = ["load", "of_text", "save", "text_of"]
