"""One sample through a subject and an SAE."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from saelab.analysis.results import SampleCodes
from saelab.arguments import a_subject, an_sae, checked
from saelab.capabilities import HasTokens, lacking
from saelab.harvesting.batches import batches, check_hooks, side_by_side
from saelab.harvesting.pictures import picture
from saelab.stores.records import DocumentRecord

if TYPE_CHECKING:
    from saelab.sae import SAE
    from saelab.types import Subject

SHOWN = 256
"""Pixels of the longer side of a sample's picture, at most."""


@checked(subject=a_subject, sae=an_sae)
def sample_codes(subject: Subject, sae: SAE, sample: Any) -> SampleCodes:
    """The codes of every latent on each position of a sample.

    Args:
        subject: the model that the SAE reads.
        sae: with the hook points that it reads.
        sample: what the subject reads: a text, a dialogue, an image, a list of items, or a Document of one.

    Returns:
        Every position, those that are no rows (BOS) marked as not counted. A text longer than the context is
        read in parts, as it is when it is harvested; `starts` says where they begin.

    Raises:
        CorpusError: The sample is empty, or of another kind than the subject reads.
        HookError: The SAE has no hook point of this subject.
    """
    corpus = subject.corpus([sample])
    hooks = check_hooks(subject, sae.reads, corpus)
    (every,) = batches(subject, corpus, hooks, include_bos=True)
    found = every.rows
    (document,) = every.documents
    record = DocumentRecord.of(0, document, every.layouts[0])
    if record.grids:
        record = record._replace(media=picture(subject, document, SHOWN) or record.media)
    return SampleCodes(
        record,
        tuple(found.vocabulary[i] for i in found.shown.tolist()),
        sae.encode_sparse(side_by_side(every.acts, hooks)),
        found.counted,
        int(found.origin[:, 2].max(initial=0)) + 1,
        () if lacking(subject, HasTokens) else _starts(subject, len(found.ids), not found.counted[0]),
    )


def _starts(subject: Any, n: int, has_bos: bool) -> tuple[int, ...]:
    """Where the parts of n tokens begin, but the first. Each has the BOS of the first before it, which is no
    position of its own."""
    return tuple(range(subject.n_ctx, n, subject.n_ctx - has_bos)) if subject.n_ctx > has_bos else ()
