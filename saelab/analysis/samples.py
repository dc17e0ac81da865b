"""One sample through a subject and an SAE."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from saelab.analysis.results import SampleCodes
from saelab.arguments import a_subject, an_sae, checked
from saelab.capabilities import HasTokens, lacking
from saelab.harvesting.batches import calls_of, check_hooks, kept_rows, side_by_side
from saelab.harvesting.pictures import picture
from saelab.stores.records import DocumentRecord
from saelab.subjects.reading import How
from saelab.types import Codes, check_finite

if TYPE_CHECKING:
    from saelab.sae import SAE
    from saelab.types import Subject

SHOWN = 256
"""Pixels of the longer side of a sample's picture, at most."""


@checked(subject=a_subject, sae=an_sae)
def sample_codes(subject: Subject, sae: SAE, sample: Any, edits: Sequence[Any] | Any = ()) -> SampleCodes:
    """The codes of every latent on each position of a sample.

    Memory is that of one pass and of the codes, however long a text is.

    Args:
        subject: the model that the SAE reads.
        sae: with the hook points that it reads.
        sample: what the subject reads: a text, a dialogue, an image, a list of items, or a Document of one.
        edits: put in while it is read, as a subject's `run` takes them.

    Returns:
        Every position, those that are no rows (BOS) marked as not counted. A text longer than the context is
        read in parts, as it is when it is harvested; `starts` says where they begin.

    Raises:
        CorpusError: The sample is empty, or of another kind than the subject reads.
        HookError: The SAE has no hook point of this subject.
    """
    corpus = subject.corpus([sample])
    hooks = check_hooks(subject, sae.reads, corpus)
    (document,) = corpus
    reading = subject.read([(0, document)], How(include_bos=True))
    found: list[Codes | None] = [None] * reading.n_samples
    calls = 1
    for samples, inputs in reading.passes():
        run = subject.run(inputs, read=hooks, edits=edits, output=False)
        calls = calls_of(run.calls, hooks)
        for number, acts in kept_rows(reading, samples, inputs, run, calls):
            x = side_by_side(acts, hooks)
            check_finite(x, f"Activations at {' + '.join(map(str, hooks))}")
            found[number] = sae.encode_sparse(x)
    rows = reading.rows(calls)
    record = DocumentRecord.of(0, document, reading.layouts()[0])
    if record.grids:
        record = record._replace(media=picture(subject, document, SHOWN) or record.media)
    return SampleCodes(
        record,
        tuple(rows.vocabulary[i] for i in rows.shown.tolist()),
        _joined([codes for codes in found if codes is not None]),
        rows.counted,
        int(rows.origin[:, 2].max(initial=0)) + 1,
        () if lacking(subject, HasTokens) else _starts(subject, len(rows.ids), not rows.counted[0]),
    )


def _joined(parts: Sequence[Codes]) -> Codes:
    """Codes of rows that follow each other."""
    if len(parts) == 1:
        return parts[0]
    ends = np.cumsum([0, *(len(part.values) for part in parts)])
    shifted = [part.indptr[1:] + end for part, end in zip(parts, ends, strict=False)]
    return Codes(
        np.concatenate([[0], *shifted]).astype(np.int64),
        np.concatenate([part.indices for part in parts]),
        np.concatenate([part.values for part in parts]),
        parts[0].d_sae,
    )


def _starts(subject: Any, n: int, has_bos: bool) -> tuple[int, ...]:
    """Where the parts of n tokens begin, but the first. Each has the BOS of the first before it, which is no
    position of its own."""
    return tuple(range(subject.n_ctx, n, subject.n_ctx - has_bos)) if subject.n_ctx > has_bos else ()
