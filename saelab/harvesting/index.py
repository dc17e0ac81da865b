"""A subject's activations through an SAE, to a feature store: one forward pass for all latents."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saelab.config import boolean, integer, integer_or_none, shard_of
from saelab.errors import fitting
from saelab.files import path_of
from saelab.harvesting.batches import (
    Batch,
    batches,
    check_hooks,
    check_subject,
    side_by_side,
    warn_of_losses,
)
from saelab.harvesting.lenses import keep_lenses
from saelab.harvesting.pictures import pictured
from saelab.harvesting.progress import progress_bar
from saelab.stores import FeatureStore
from saelab.stores import manifest as manifests
from saelab.stores.directions import write_directions
from saelab.stores.feature_fields import kept_share
from saelab.stores.feature_writer import FeatureWriter, StoredRows
from saelab.stores.merging import check_alike, merge_into
from saelab.stores.naming import keep_names
from saelab.stores.records import DocumentRecord
from saelab.subjects.packing import check_packing
from saelab.types import ConfigError, SaelabError, ShapeError, StoreError

if TYPE_CHECKING:
    from saelab.sae import SAE
    from saelab.types import HookPoint, Subject

# a part is sorted and summarised before the next begins; what it takes on disk and in memory follows from it
PART_CODES = 1 << 25
PART_ROWS = 1 << 22


@fitting("A batch", "Pass a lower batch_size, or an SAE of less latents.")
def index(
    subject: Subject,
    sae: SAE,
    corpus: Iterable[Any],
    out: str | Path,
    *,
    max_rows: int | None = None,
    batch_size: int = 16,
    n_examples: int = 20,
    n_quantile: int = 20,
    window: tuple[int, int] = (10, 10),
    codes: str = "full",
    packing: str = "document",
    long: str = "split",
    seed: int = 0,
    shard: tuple[int, int] | None = None,
    append: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> FeatureStore:
    """Run the corpus through subject and SAE once, and write down where every latent fires.

    Rows are those of `saelab.harvest`: every token but BOS and padding. Every 2^25 codes are sorted (on disk
    where memory does not suffice) and summarised as a part, and the parts are merged at the end, so memory
    does not grow with the corpus: see docs/stores.md. The same call after an interruption, even a killed
    process, goes on after the last whole part; after the end it does nothing. `out` appears when it is
    complete.

    Args:
        subject: The model.
        sae: Its `reads` says at which hook points.
        corpus: Texts for language models, else samples that subject.prepare takes.
        out: A folder.
        max_rows: Stop there, exactly.
        batch_size: Documents of a forward pass; it does not change what is found.
        n_examples: Strongest windows kept of each latent, and as many of its negative values where it has
            any.
        n_quantile: Windows spread over the range of a latent's |value|s, a fifth of them from each of 5 to 8
            equal parts, chosen by `seed`.
        window: Tokens shown before and after the firing, within its document.
        codes: Keep those of all rows ("full"), of a share drawn by `seed` ("sampled=0.1") or none ("none");
            everything else is of all rows.
        packing: "document", "dialogue", "blocks" or "blocks_masked", see `saelab.harvest`.
        long: Documents longer than the context are read in pieces, each after a BOS of its own ("split"),
            cut ("truncate") or refused ("error"). A warning says what was cut.
        seed: Seed of what is drawn.
        shard: (i, n) takes the i-th of n parts of the corpus; `saelab.stores.merge` of all n gives what one
            call would. A part is of whole stretches (docs/stores.md), so that of a small corpus some hold no
            row: such a store can be opened and merged like any other.
        append: Add the documents to the store at `out`, which is there in full, with or without them, at
            every moment. The same call again, after its end or after an interruption, adds nothing twice.
        overwrite: Put the result in place of what is at `out`.
        progress: Show a bar.

    Returns:
        The store.

    Raises:
        DeviceMemoryError: A batch does not fit into memory.
        HookError: The subject has no such hook point.
        ShapeError: The SAE does not fit the hook point.
        CorpusError: The subject refuses a document, or there are no rows.
        NonFiniteError: Activations are NaN or infinite.
        ConfigError: An argument is out of range, or append= comes with overwrite= or shard=.
        StoreError: `out` cannot be written, holds something else, or cannot be appended to.
    """
    if not isinstance(window, tuple | list) or len(window) != 2:
        message = f"window must be (tokens before, tokens after). Got {window!r}. Pass window=(10, 10)."
        raise ConfigError(message)
    append, overwrite = boolean("append", append), boolean("overwrite", overwrite)
    if append and (overwrite or shard is not None):
        message = "append=True adds to a store. Got overwrite= or shard= as well. Pass one of them."
        raise ConfigError(message)
    kept_share(codes)
    batch_size, max_rows = integer("batch_size", batch_size, 1), integer_or_none("max_rows", max_rows, 1)
    shard = None if shard is None else shard_of(shard)
    options: dict[str, Any] = {
        "window": [integer("window", window[0], 0), integer("window", window[1], 0)],
        "n_examples": integer("n_examples", n_examples, 0),
        "n_quantile": integer("n_quantile", n_quantile, 0),
        "seed": integer("seed", seed, 0),
        "codes": codes,
    }
    if not (hasattr(sae, "reads") and hasattr(sae, "encode_sparse")):
        message = f"sae must be an SAE. Got {type(sae).__name__}. Pass what saelab.load_sae gives."
        raise ConfigError(message)
    check_packing(packing, long)
    texts = check_subject(subject).corpus(corpus)
    points = check_hooks(subject, sae.reads, texts)
    width = sum(subject.width(point) for point in points)
    if width != sae.config.d_in:
        message = (
            f"The SAE's d_in must be the width of {' + '.join(map(str, points))}, {width}. "
            f"Got d_in={sae.config.d_in}. "
            "Pass the SAE of this hook point, or the subject that it was trained on."
        )
        raise ShapeError(message)
    reading = {"batch_size": batch_size, "packing": packing, "long": long, "shard": shard}
    fields: dict[str, Any] = {
        "hook": asdict(points[0]),
        "sae": sae.fingerprint(),
        "subject": subject.fingerprint(),
        "corpus": texts.fingerprint(),
        "packing": packing,
        **({"shard": list(shard)} if shard else {}),
    }
    job = {**fields, **options, **reading, "max_rows": max_rows, "n_latents": sae.config.d_sae}

    def written(place: Path, overwrite: bool) -> FeatureStore:
        if not overwrite and manifests.finished(place, job):
            return FeatureStore.open(place)
        with manifests.resumable(place, job, overwrite) as folder:
            parts = _Parts(folder, sae, options, {**fields, "job": manifests.through_json(job)})
            left = None if max_rows is None else max_rows - parts.n_rows
            with progress_bar("index", texts, max_rows, progress, parts.n_rows, parts.first) as bar:
                if left is None or left > 0 or not parts.done:
                    found = batches(subject, texts, points, max_rows=left, first=parts.first, **reading)
                    for batch in parts.written(pictured(subject, found), points):
                        bar.add(batch)
            parts.assemble()
        store = FeatureStore.open(place)
        cut = (store.manifest["documents_cut"], store.manifest["tokens_cut"])
        warn_of_losses(store.n_rows, max_rows, cut)
        return store

    started = time.perf_counter()
    place = path_of(out, "A store's place")
    store = _appended(place.resolve(), job, written) if append else written(place, overwrite)
    if shard is None:
        keep_names(store.folder, store.manifest)  # kept beside it, so that nobody waits for them
        with contextlib.suppress(SaelabError):  # a store without them is whole
            keep_lenses(store, sae, subject, seconds=max(2.0, 0.1 * (time.perf_counter() - started)))
    return store


def _appended(out: Path, job: dict[str, Any], written: Callable[[Path, bool], FeatureStore]) -> FeatureStore:
    """The store at `out` with the rows of a job, which are in it once, however often this is called."""
    with manifests.alone(out):
        if not out.exists():
            return written(out, False)
        old = FeatureStore.open(out)
        check_alike([(str(out), old.manifest), ("what is to be appended", job)])
        known = old.manifest.get("jobs", [_key(old.manifest.get("job"))])
        beside = out.with_name(f".{out.name}-append")
        if _key(job) not in known:
            new = written(beside, not manifests.finished(beside, job))
            with manifests.building(out, overwrite=True) as folder:
                merge_into(folder, [old, new], {"jobs": [*known, _key(job)]})
        shutil.rmtree(beside, ignore_errors=True)
        return FeatureStore.open(out)


def _key(job: Any) -> str:
    """A job, in short."""
    return hashlib.sha256(
        json.dumps(manifests.through_json({"job": job}), sort_keys=True).encode()
    ).hexdigest()


class _Parts:
    """The parts of a store that is being made, each a whole store in a folder of its own."""

    def __init__(self, folder: Path, sae: SAE, options: dict[str, Any], fields: dict[str, Any]) -> None:
        self.folder, self.sae, self.options, self.fields = folder, sae, options, fields
        self.parts = folder / manifests.PARTS
        self.done: list[FeatureStore] = []
        self._cut: dict[int, int] = {}
        self.parts.mkdir(exist_ok=True)
        while self._place().exists():
            try:
                self.done.append(FeatureStore.open(self._place()))
            except StoreError:  # its files were being moved when the process died
                shutil.rmtree(self._place())

    @property
    def n_rows(self) -> int:
        return sum(store.n_rows for store in self.done)

    @property
    def first(self) -> int:
        """Number of the first document that no part holds."""
        if not self.n_rows:
            return 0
        return int(self.done[-1].query("select max(document) as n from documents")["n"][0]) + 1

    def written(self, found: Iterable[Batch], points: Sequence[HookPoint]) -> Iterator[Batch]:
        """Encodes batches, writes them into parts, and passes them on."""
        writer: FeatureWriter | None = None
        self._cut = {}
        try:
            for batch in found:
                writer = writer or self._begin()
                documents = [
                    DocumentRecord.of(batch.first + i, document, layout)
                    for i, (document, layout) in enumerate(zip(batch.documents, batch.layouts, strict=True))
                ]
                codes = self.sae.encode_sparse(side_by_side(batch.acts, points))
                rows = batch.rows
                stored = StoredRows(rows.origin, rows.shown, rows.vocabulary, rows.ids)
                writer.add(codes, stored, documents)
                self._cut |= batch.cut
                yield batch
                if writer.n_codes >= PART_CODES or writer.n_rows >= PART_ROWS:
                    self._finish(writer, partners=False)
                    writer = None
            if writer is not None or not self.done:
                self._finish(writer or self._begin(), partners=not self.done)
                writer = None
        finally:
            if writer is not None:
                writer.close()
                shutil.rmtree(writer.folder, ignore_errors=True)

    def assemble(self) -> None:
        """The store itself, out of its parts. The manifest comes last: with it the store is complete."""
        source = self.done[0].folder
        if len(self.done) > 1 or not self.done[0].manifest.get("partners", True):
            source = self._empty("whole")
            merge_into(source, self.done, {k: v for k, v in self.fields.items() if k in ("shard", "job")})
        for file in sorted(source.iterdir(), key=lambda f: f.name == manifests.NAME):
            file.replace(self.folder / file.name)

    def _begin(self) -> FeatureWriter:
        folder = self._empty("next")
        if not self.done:
            write_directions(folder, self.sae.W_dec)
        return FeatureWriter(folder, self.sae.config.d_sae, **self.options)

    def _finish(self, writer: FeatureWriter, partners: bool) -> None:
        cut = {"documents_cut": len(self._cut), "tokens_cut": sum(self._cut.values())}
        writer.finish({**self.fields, **cut}, partners=partners)
        self._cut = {}
        place = self._place()
        writer.folder.replace(place)
        self.done.append(FeatureStore.open(place))

    def _place(self) -> Path:
        return self.parts / f"{len(self.done):05}"

    def _empty(self, name: str) -> Path:
        folder = self.parts / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return folder
