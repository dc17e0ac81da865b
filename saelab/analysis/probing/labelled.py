"""What probes look for: labels of documents or of rows, from annotations or from a user's table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from saelab.analysis.probing.gathered import Gathered
from saelab.arguments import is_listed
from saelab.capabilities import HasTokens, lacking
from saelab.corpora import token_labels
from saelab.types import ConfigError, ShapeError, short

if TYPE_CHECKING:
    from saelab.corpora import Document
    from saelab.types import Subject


@dataclass(frozen=True)
class Task:
    """A question with the answers yes and no, asked of documents or of rows."""

    label: str
    of: str
    """"document" or "row\""""
    positive: np.ndarray
    """bool [documents or rows]"""


def annotated(gathered: Gathered, subject: Subject | None) -> list[Task]:
    """One task for each label that documents bear themselves, and for each that the spans of their texts give
    to tokens.

    Of two document labels that tell the same apart (positive, negative) the last by name is asked for.

    Args:
        gathered: The rows.
        subject: What read them; where it has no tokens, spans are left out.

    Raises:
        ConfigError: Nothing is labelled.
    """
    documents = gathered.documents
    named = names_of(documents)
    tasks = list(_distinct([Task(k, "document", np.array([k in own for own in named])) for k in _all(named)]))
    labels = labels_of_rows(gathered, subject)
    if labels is not None:
        tasks += [Task(k, "row", labels == k) for k in sorted(set(labels) - {""})]
    if not tasks:
        message = (
            f"Probing needs labels. Got {len(documents)} documents that bear none. Give Documents with "
            "labels, kind or spans, or a table: Probing(labels=[...])."
        )
        raise ConfigError(message)
    return tasks


def names_of(documents: Sequence[Document]) -> list[set[str]]:
    """The labels and the kind that each document bears itself."""
    return [{*document.labels, document.kind} - {""} for document in documents]


def labels_of_rows(gathered: Gathered, subject: Subject | None) -> np.ndarray | None:
    """[n] of str: the label that the spans of its document give to the token of each row, "" for none.

    Args:
        gathered: The rows.
        subject: What read them.

    Returns:
        None where the subject has no tokens, or no document has spans.
    """
    documents = gathered.documents
    if subject is None or lacking(subject, HasTokens) or not any(d.spans for d in documents):
        return None
    labels = np.full(len(gathered), "", dtype=object)
    starts = np.searchsorted(gathered.document, np.arange(len(documents) + 1))
    for number, document in enumerate(documents):
        at = slice(starts[number], starts[number + 1])
        if document.spans and at.start < at.stop:
            own = token_labels(document, subject.offsets(document.text))  # type: ignore[attr-defined]
            labels[at] = np.array(own, dtype=object)[gathered.position[at]]
    return labels


def borne(gathered: Gathered, subject: Subject | None) -> list[Task]:
    """One task of documents for each label that the spans of their texts have: whether any token bears it.

    Args:
        gathered: The rows.
        subject: What read them.
    """
    labels = labels_of_rows(gathered, subject)
    if labels is None:
        return []
    tasks = []
    for label in sorted(set(labels) - {""}):
        positive = np.zeros(len(gathered.documents), dtype=bool)
        positive[gathered.document[labels == label]] = True
        tasks.append(Task(label, "document", positive))
    return list(_distinct(tasks))


def tabled(gathered: Gathered, given: Any) -> list[Task]:
    """One task for each value of a user's table: a list with one value a document or a row, or a dict (or
    data frame) of several.

    True and False are one task. "" and None carry no label; they are among the negatives.

    Args:
        gathered: The rows.
        given: The table.

    Raises:
        ShapeError: A list has neither one value a document nor one a row.
        ConfigError: All its values are the same, or it is no list.
    """
    columns = dict(given.items()) if isinstance(given, Mapping) or hasattr(given, "columns") else {"": given}
    tasks: list[Task] = []
    for name, values in columns.items():
        tasks += _of_column(gathered, str(name), values)
    return tasks


def _of_column(gathered: Gathered, name: str, values: Any) -> list[Task]:
    if not is_listed(values) or isinstance(values, Mapping):
        message = (
            "labels must be a list with one value a document or a row, or a dict of such lists. Got "
            f"{short(values)}. Pass e.g. labels=['positive', 'negative', ...]."
        )
        raise ConfigError(message)
    own = np.array([_text(value) for value in values], dtype=object)
    n_documents = len(gathered.documents) or gathered.n_documents
    where = f" in {name!r}" if name else ""
    if len(own) not in (n_documents, len(gathered)):
        message = (
            f"labels must hold one value for each of the {n_documents} documents or {len(gathered)} rows "
            f"that were read. Got {len(own)}{where}. Label these, or raise max_rows."
        )
        raise ShapeError(message)
    if len(set(own)) < 2:
        message = (
            f"labels must tell documents or rows apart. Got {short(own[0])} for all {len(own)}{where}. "
            "Give those without the label too."
        )
        raise ConfigError(message)
    of = "document" if len(own) == n_documents else "row"
    if set(own) <= {"True", "False", ""}:
        return [Task(name or "True", of, own == "True")]
    named = [Task(f"{name}={k}" if name else k, of, own == k) for k in sorted(set(own) - {""})]
    return list(_distinct(named))


def _text(value: Any) -> str:
    missing = value is None or (isinstance(value, float) and np.isnan(value))
    return "" if missing else str(value)


def _all(named: Sequence[set[str]]) -> list[str]:
    return sorted(set().union(*named)) if named else []


def _distinct(tasks: list[Task]) -> Iterator[Task]:
    """Without those that another one decides, the last by name first of all; and without those that are the
    same for all."""
    known: set[bytes] = set()
    for task in reversed(tasks):
        key, other = (np.packbits(each).tobytes() for each in (task.positive, ~task.positive))
        if task.of == "document" and (key in known or other in known):
            continue
        known.add(key)
        if task.positive.any() and not task.positive.all():
            yield task


__all__ = ["Task", "annotated", "borne", "labels_of_rows", "tabled"]
