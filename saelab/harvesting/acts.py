"""A subject's activations over a corpus, to a store."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saelab.config import boolean, integer, integer_or_none
from saelab.devices import dtype_name
from saelab.errors import fitting
from saelab.harvesting.batches import batches, check_hooks, check_subject, warn_of_losses
from saelab.harvesting.outliers import FIRST_ROWS, Limits, multiple_or_none
from saelab.harvesting.progress import progress_bar
from saelab.stores import ActivationStore, ActivationWriter
from saelab.stores.places import finished, job
from saelab.stores.shards import DTYPES, SHARD_ROWS
from saelab.subjects.packing import check_packing
from saelab.types import CorpusError, HookPoint

if TYPE_CHECKING:
    from saelab.types import Subject


@fitting("A batch", "Pass a lower batch_size.")
def harvest(
    subject: Subject,
    corpus: Iterable[Any],
    hooks: Iterable[HookPoint | str],
    out: str | Path,
    *,
    max_rows: int | None = None,
    batch_size: int = 16,
    dtype: str = "float32",
    shard_rows: int = SHARD_ROWS,
    packing: str = "document",
    long: str = "split",
    include_bos: bool = False,
    max_norm: float | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> ActivationStore:
    """Run the subject over the corpus and keep what flows through the hook points, all in one pass.

    Padding is no row. The pass stops after the last hook point that is read. Memory does not grow with the
    corpus: two shards and some documents. A thread writes while the model runs.

    Nothing is at `out` before it is whole. A job that was killed or interrupted goes on, when it is called
    with the same arguments again, after its last whole shard, and ends with the same bytes as one that was
    not (on the same machine); it waits in `.NAME-partial` beside `out`. Where `out` holds the result of this
    very call, that is opened.

    Args:
        subject: The model.
        corpus: Texts for language models, else samples that subject.prepare takes.
        hooks: Names of hook points.
        out: A folder, or an address that fsspec knows (`s3://bucket/acts`).
        max_rows: Stop there, exactly; a warning says where the corpus holds fewer.
        batch_size: Documents of a forward pass.
        dtype: float32, float16 or bfloat16 on disk. `store.manifest["rounding"]` says for the shorter ones
            how far the stored rows are from those of the model: |stored - x| / |x| of a row, "max" and "rms"
            over the rows of each hook point.
        shard_rows: Rows of a file.
        packing: "document", "dialogue", "blocks" or "blocks_masked". "document": each document runs alone,
            padded beside others of like length. "dialogue": the same of chat dialogues
            (`saelab.corpora.dialogues`), by the tokenizer's chat template. "blocks": documents one after
            another in blocks of the context, where tokens see the documents before. "blocks_masked":
            documents share blocks, but see only themselves, as if alone.
        long: Documents longer than the context are read in pieces, each after a BOS of its own ("split"),
            cut ("truncate") or refused ("error"). A warning and the manifest say what was cut.
        include_bos: Whether BOS is a row, wherever it stands.
        max_norm: Leave out rows whose norm is beyond this multiple of the median norm, at any of the hook
            points: attention sinks, massive activations. The median is that of the first 4,096 rows.
            `store.manifest["outliers"]` says the limits, and how many rows were left out.
        overwrite: Put the result in place of what is at `out`, or of a job with other arguments.
        progress: Show a bar.

    Returns:
        The store: float32 [n_rows width] of each hook point.

    Raises:
        DeviceMemoryError: A batch does not fit into memory.
        HookError: The subject has no such hook point.
        CorpusError: The subject refuses a document, or there are no rows.
        NonFiniteError: Activations are NaN or infinite, or more than float16 holds; it names hook point and
            document.
        ConfigError: An argument is out of range.
        StoreError: `out` cannot be written, holds something else, or is being written by another process.
    """
    texts = check_subject(subject).corpus(corpus)
    points = check_hooks(subject, hooks, texts)
    max_rows, overwrite = integer_or_none("max_rows", max_rows, 1), boolean("overwrite", overwrite)
    options: dict[str, Any] = {
        "batch_size": integer("batch_size", batch_size, 1),
        "packing": packing,
        "long": long,
        "include_bos": boolean("include_bos", include_bos),
    }
    check_packing(packing, long)
    max_norm = multiple_or_none("max_norm", max_norm)
    dtype = dtype_name(dtype, DTYPES)
    made_of = {"subject": subject.fingerprint(), "corpus": texts.fingerprint()}
    spec = {
        **made_of,
        "hooks": [asdict(point) for point in points],
        "max_rows": max_rows,
        "dtype": dtype,
        "shard_rows": integer("shard_rows", shard_rows, 1),
        **options,
    }
    if max_norm is not None:  # stores from before it was an option are of the same job without
        spec["max_norm"] = max_norm
    if not overwrite and finished(out, spec):
        return ActivationStore.open(out)
    widths = {str(p): subject.width(p) for p in points}
    with (
        job(out, spec, overwrite) as place,
        ActivationWriter(place, widths, dtype, shard_rows, max_rows) as writer,
    ):
        import torch

        # where the documents begin that were being read when the last whole shard was full
        state = writer.state or {"first": 0, "rows": 0, "special": 0, "cut": 0, "left_out": 0, "outliers": 0}
        limits = None
        if max_norm is not None:
            looked_at = batches(subject, texts, points, max_rows=FIRST_ROWS, **options)
            limits = options["limits"] = Limits.of_first(max_norm, (batch.acts for batch in looked_at))
        known = writer.n_rows - state["rows"]
        left = None if max_rows is None else max_rows - state["rows"]
        with progress_bar("harvest", texts, max_rows, progress, state["rows"], state["first"]) as bar:
            for batch in batches(subject, texts, points, max_rows=left, first=state["first"], **options):
                new = {name: x[known:] for name, x in batch.acts.items()}
                writer.add(new, torch.from_numpy(batch.rows.origin[known:, :2]), state)
                known = max(0, known - len(batch))
                state = {
                    "first": batch.first + len(batch.documents),
                    "rows": state["rows"] + len(batch),
                    "special": state["special"] + int(batch.rows.special.sum()),
                    "cut": state["cut"] + len(batch.cut),
                    "left_out": state["left_out"] + sum(batch.cut.values()),
                    "outliers": state.get("outliers", 0) + batch.outliers,
                }
                bar.add(batch)
        if not writer.n_rows:
            message = "A corpus must hold rows besides BOS. Got none. Pass longer texts, or include_bos=True."
            raise CorpusError(message)
        told = {"packing": packing, "special_rows": state["special"]}
        told |= {"documents_cut": state["cut"], "tokens_cut": state["left_out"]}
        if limits is not None:
            told["outliers"] = {**asdict(limits), "left_out": state["outliers"]}
        writer.finish({**made_of, **told, "job": spec})
    warn_of_losses(state["rows"], max_rows, (state["cut"], state["left_out"]))
    return ActivationStore.open(out)
