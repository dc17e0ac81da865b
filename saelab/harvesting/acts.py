"""A subject's activations over a corpus, to a store."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saelab.harvesting.batches import batches, check_hooks, corpus_of
from saelab.harvesting.progress import progress_bar
from saelab.stores import ActivationStore, ActivationWriter
from saelab.stores.manifest import building
from saelab.types import CorpusError, HookPoint

if TYPE_CHECKING:
    from saelab.types import Subject


def harvest(
    subject: Subject,
    corpus: Iterable[Any],
    hooks: Iterable[HookPoint | str],
    out: str | Path,
    *,
    max_rows: int | None = None,
    batch_size: int = 16,
    dtype: str = "float32",
    shard_rows: int = 262_144,
    packing: str = "document",
    long: str = "truncate",
    include_bos: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> ActivationStore:
    """Run the subject over the corpus and keep what flows through the hook points, all in one pass.

    Padding is no row, BOS only with include_bos=True. The pass stops after the last hook point that is read.
    Memory does not grow with the corpus. Nothing is left at `out` if it is interrupted.

    corpus: texts for language models, else samples that subject.prepare takes. max_rows: stop there, exactly.
    packing: "document": each document runs alone, padded beside others of like length; "dialogue": the same
    of chat dialogues (`saelab.corpora.dialogues`), by the tokenizer's chat template; "blocks": documents one
    after another in blocks of the context, where tokens see the documents before; "blocks_masked": documents
    share blocks, but see only themselves, as if alone. long: documents longer than the context are cut
    ("truncate"), read in pieces ("split") or refused ("error").
    dtype: float32, float16 or bfloat16 on disk.
    Raises HookError, CorpusError, NonFiniteError (naming hook point and document), ConfigError, StoreError.
    """
    texts = corpus_of(subject, corpus)
    points = check_hooks(subject, hooks, texts)
    widths = {str(p): subject.width(p) for p in points}
    with (
        building(out, overwrite) as folder,
        progress_bar("harvest", texts, max_rows, progress) as bar,
    ):
        import torch

        writer = ActivationWriter(folder, widths, dtype, shard_rows)
        options: dict[str, Any] = {
            "batch_size": batch_size,
            "max_rows": max_rows,
            "packing": packing,
            "long": long,
            "include_bos": include_bos,
        }
        special = cut = 0
        for batch in batches(subject, texts, points, **options):
            writer.add(batch.acts, torch.from_numpy(batch.rows))
            special, cut = special + int(batch.special.sum()), cut + batch.cut
            bar.add(batch)
        if not writer.n_rows:
            message = "A corpus must hold rows besides BOS. Got none. Pass longer texts, or include_bos=True."
            raise CorpusError(message)
        told = {"packing": packing, "special_rows": special, "documents_cut": cut}
        writer.finish({"subject": subject.fingerprint(), "corpus": _fingerprint(texts), **told})
    return ActivationStore.open(out)


def _fingerprint(texts: Any) -> str | None:
    return texts.fingerprint() if hasattr(texts, "fingerprint") else None
