"""Documents through a subject, batch by batch: the rows that count, in document order, whatever the batch
size.
"""

from __future__ import annotations

import itertools
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from saelab.config import integer, integer_or_none, shard_of
from saelab.corpora import Corpus, Document
from saelab.harvesting.outliers import Limits
from saelab.subjects.reading import How, Reading, Rows
from saelab.types import HookError, HookPoint, NonFiniteError, SubjectError, check_finite, nearest, short

if TYPE_CHECKING:
    from torch import Tensor

    from saelab.types import Inputs, Run, Subject


@dataclass(frozen=True)
class Batch:
    """Consecutive documents of a corpus with the activations of their rows."""

    documents: list[Document]
    first: int
    """number of the first document in the corpus"""
    acts: dict[str, Tensor]
    """hook name -> float [n d_in]"""
    rows: Rows
    """where each comes from and what it shows"""
    layouts: list[str]
    """of each document: how its positions lie"""
    cut: Mapping[int, int] = field(default_factory=dict)
    """number of each document that was cut at the context -> tokens left out"""
    outliers: int = 0
    """rows that were left out for their norm"""

    def __len__(self) -> int:
        return len(self.rows.origin)


def side_by_side(acts: Mapping[str, Tensor], hooks: Sequence[HookPoint]) -> Tensor:
    """The activations of several hooks as one input [.. sum of widths]."""
    import torch

    first = acts[str(hooks[0])]
    return first if len(hooks) == 1 else torch.cat([acts[str(hook)] for hook in hooks], dim=-1)


def check_subject(subject: Any) -> Subject:
    """What can be harvested. Raises SubjectError for anything else."""
    if not all(hasattr(subject, name) for name in ("corpus", "hooks", "width", "read", "run")):
        message = (
            f"A subject must be a model that saelab wraps. Got {type(subject).__name__}. Pass what "
            "saelab.load_subject gives, or saelab.TorchModule(model)."
        )
        raise SubjectError(message)
    return subject


def check_hooks(
    subject: Subject, hooks: Iterable[HookPoint | str], corpus: Iterable[Document]
) -> list[HookPoint]:
    """The hook points, each once, known to the subject and alive on the corpus's first sample; for a pattern
    (`blocks.*.hook_resid_post`) those that it matches. Raises HookError."""
    if isinstance(hooks, str | HookPoint):
        hooks = [hooks]
    if not isinstance(hooks, Iterable):
        message = f"hooks must name hook points. Got {short(hooks)}. Pass names out of subject.hooks()."
        raise HookError(message)
    for document in itertools.islice(corpus, 1):
        subject.prime(document)
    named = [HookPoint(name) if isinstance(h, str) else h for h in hooks for name in _named(subject, h)]
    points = list({str(h): HookPoint.of(h) for h in named}.values())
    if not points:
        message = "hooks must name at least one hook point. Got none. Pass names out of subject.hooks()."
        raise HookError(message)
    for point in points:
        subject.width(point)
    return points


def _named(subject: Subject, hook: HookPoint | str) -> list[str]:
    pattern = isinstance(hook, str) and set(hook) & {"*", "?"}
    return matching(str(hook), subject.hooks()) if pattern else [str(hook)]


def matching(pattern: str, known: Sequence[str]) -> list[str]:
    """The names that a pattern matches, in their order: * stands for any characters, ? for one.

    Raises:
        HookError: There are none.
    """
    found = [name for name in known if name == pattern or fnmatchcase(name, pattern.replace("[", "[[]"))]
    if not found:
        message = (
            f"A hook point's name or pattern must match one that there is. Got {pattern!r}. "
            f"{nearest(pattern, known)}Pass one of {short(list(known))}."
        )
        raise HookError(message)
    return found


def batches(
    subject: Subject,
    corpus: Corpus | Sequence[Document],
    hooks: Sequence[HookPoint],
    *,
    batch_size: int = 16,
    max_rows: int | None = None,
    packing: str = "document",
    long: str = "split",
    include_bos: bool = False,
    first: int = 0,
    shard: tuple[int, int] | None = None,
    limits: Limits | None = None,
) -> Iterator[Batch]:
    """Batches of documents until the corpus or `max_rows` (exactly) is used up; at most one forward pass
    runs rows beyond these.

    Args:
        subject: it says how a stretch of the corpus is read: `Subject.read`.
        corpus: of documents that it reads.
        hooks: whose activations are wanted.
        batch_size: samples of a forward pass.
        max_rows: stop there.
        packing: see `saelab.harvest`.
        long: documents longer than the context are read in pieces, each with its own BOS ("split"), cut
            ("truncate") or refused ("error").
        include_bos: whether BOS is a row.
        first: leave out the documents before this one, with which a stretch begins.
        shard: (i, n) takes every n-th stretch from the i-th on, so that what a document runs beside is as
            without.
        limits: leave out the rows beyond these norms; None for all rows.

    Raises:
        ConfigError: A size below 1, an unknown packing, a bad shard.
        CorpusError: A document that the subject refuses.
        NonFiniteError: Activations that are NaN or infinite, naming hook point and document.
    """
    how = How(integer("batch_size", batch_size, 1), packing, long, include_bos)
    left = integer_or_none("max_rows", max_rows, 1)
    i, n = shard_of(shard)
    size = subject.stretch(how)
    for number, stretch in enumerate(_stretches(corpus, size, first), first // size):
        if number % n != i:
            continue
        batch = _batch(subject, stretch, hooks, how, None if limits else left)
        if limits is not None:
            batch = _within(batch, limits, left)
        if left is not None and len(batch) >= left:
            yield _cut(batch, left)
            return
        if left is not None:
            left -= len(batch)
        yield batch


def count_rows(
    subject: Subject,
    corpus: Corpus | Sequence[Document],
    hooks: Sequence[HookPoint],
    how: How,
    limits: Limits | None = None,
) -> Iterator[tuple[int, int]]:
    """(rows, documents) of each batch that `batches` would give, without a forward pass where the subject
    knows them without; norms it does not."""
    for stretch in _stretches(corpus, subject.stretch(how), 0):
        known = None if limits is not None else subject.read(stretch, how).count()
        if known is None:
            batch = _batch(subject, stretch, hooks, how)
            known = len(batch) if limits is None else len(_within(batch, limits, None))
        yield known, len(stretch)


def _stretches(corpus: Iterable[Document], size: int, first: int) -> Iterator[list[tuple[int, Document]]]:
    numbered = itertools.islice(enumerate(corpus), first, None)
    while stretch := list(itertools.islice(numbered, size)):
        yield stretch


def _batch(
    subject: Subject,
    stretch: list[tuple[int, Document]],
    hooks: Sequence[HookPoint],
    how: How,
    most: int | None = None,
) -> Batch:
    """most: rows that are needed."""
    import torch

    reading: Reading = subject.read(stretch, how)
    if most is not None:
        reading.limit(most)
    found: list[dict[str, Tensor]] = [{} for _ in range(reading.n_samples)]
    calls, n, last = 1, 0, str(hooks[-1])
    for samples, inputs in reading.passes():
        run = subject.run(inputs, read=hooks, output=False)
        calls = calls_of(run.calls, hooks)
        for sample, acts in kept_rows(reading, samples, inputs, run, calls):
            found[sample] = acts
            n += len(acts[last])
        if most is not None and n >= most and reading.count() is None:  # these run in order
            reading.end(samples[-1] + 1)
            break
    found = found[: reading.n_samples]
    acts = {str(hook): torch.cat([each[str(hook)] for each in found]) for hook in hooks}
    rows = reading.rows(calls)
    _check(acts, rows, dict(stretch))
    return Batch([d for _, d in stretch], stretch[0][0], acts, rows, reading.layouts(), reading.cut)


def kept_rows(
    reading: Reading, samples: Sequence[int], inputs: Inputs, run: Run, calls: int
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Each sample of a pass, and what was read at its rows, call by call."""
    for at, sample in enumerate(samples):
        kept = reading.kept(sample, at, inputs, run)
        yield (
            sample,
            {
                name: x[at][kept] if calls == 1 else x[at].unflatten(0, (calls, -1))[:, kept].flatten(0, 1)
                for name, x in run.acts.items()
            },
        )


def calls_of(calls: Mapping[str, int], hooks: Sequence[HookPoint]) -> int:
    """Calls of the hook points in a pass, which must agree. Raises HookError."""
    found = {str(hook): calls.get(str(hook), 1) for hook in hooks}
    if len(set(found.values())) > 1:
        message = (
            f"Hook points that are harvested together must be called equally often. Got {found}. "
            "Harvest them one by one, or name one call of each."
        )
        raise HookError(message)
    return next(iter(found.values()))


def _check(acts: dict[str, Tensor], rows: Rows, documents: Mapping[int, Any]) -> None:
    for hook, x in acts.items():
        try:
            check_finite(x, f"Activations at {hook}")
        except NonFiniteError as error:
            bad = int((~x.isfinite().all(-1)).nonzero()[0])
            number, position, _ = rows.origin[bad]
            message = (
                f"{error} The first is in document {documents[int(number)].id!r} at position {position}."
            )
            raise NonFiniteError(message) from None


def _within(batch: Batch, limits: Limits, most: int | None) -> Batch:
    """The rows of a batch that are within the limits, and how many before the last of them are not.
    most: how many are needed."""
    kept = limits.kept(batch.acts)
    within = kept.nonzero()[:, 0]
    if most is not None and len(within) > most:
        kept[int(within[most]) :] = False
    counted = len(kept) if most is None or len(within) <= most else int(within[most - 1]) + 1
    acts = {name: x[kept] for name, x in batch.acts.items()}
    rows = batch.rows.only(kept.cpu().numpy())
    return replace(batch, acts=acts, rows=rows, outliers=counted - len(rows.origin))


def _cut(batch: Batch, n: int) -> Batch:
    """The first n rows, and the documents that they are of."""
    rows = batch.rows.only(slice(n))
    last = int(rows.origin[-1, 0]) - batch.first + 1
    acts = {name: x[:n] for name, x in batch.acts.items()}
    cut = {number: left_out for number, left_out in batch.cut.items() if number < batch.first + last}
    return Batch(batch.documents[:last], batch.first, acts, rows, batch.layouts[:last], cut, batch.outliers)


def warn_of_losses(n_rows: int, max_rows: int | None, cut: tuple[int, int]) -> None:
    """Say what is not there that a person may think is.

    Args:
        n_rows: What there is.
        max_rows: What was asked for.
        cut: (documents that were cut at the context, tokens left out).
    """
    documents, tokens = cut
    if documents:
        warnings.warn(
            f"Documents longer than the model's context were cut: {tokens:,} tokens of {documents:,} "
            "documents are no rows. Pass long='split' to read them in pieces.",
            stacklevel=_outside(),
        )
    if max_rows is not None and n_rows < max_rows:
        warnings.warn(
            f"The corpus holds fewer rows than max_rows={max_rows:,}. Got {n_rows:,}, all that there are. "
            "Pass more documents, or leave max_rows out.",
            stacklevel=_outside(),
        )


def _outside() -> int:
    """The stacklevel, for whoever asks for it, of the first caller that is not of this package."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] == "saelab":
        frame, level = frame.f_back, level + 1
    return level
