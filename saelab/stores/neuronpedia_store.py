"""A feature store out of Neuronpedia's bulk export of an SAE, which needs neither the SAE nor its model."""

from __future__ import annotations

import contextlib
import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from saelab.config import boolean, integer
from saelab.files import path_of
from saelab.progress import new_bar
from saelab.stores import lenses
from saelab.stores import manifest as manifests
from saelab.stores.features import FeatureStore
from saelab.stores.labels import write_labels
from saelab.stores.neuronpedia import FOLDER, Scanner, batches, explanations, refusing
from saelab.stores.neuronpedia_parts import REMEDY, written
from saelab.stores.neuronpedia_tables import Assembly, Said
from saelab.types import FormatError, RangeError, short

KINDS = ("features", "activations")


def from_neuronpedia(
    folder: str | Path,
    out: str | Path | None = None,
    *,
    n_rows: int | None = None,
    skip: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> FeatureStore:
    """A store of the latents of an SAE out of what neuronpedia.org exports of it.

    It has statistics, histograms, example windows with values, logits, explanations as labels, and the
    decoder directions where the export has any. So a released SAE is browsed without its model. What an
    export does not say of a corpus (which rows there are and what fires on them, how often tokens come up,
    what fires together), the store lacks, and says so when it is asked. docs/stores.md says what is exact and
    what is rounded. Called again after an interruption it goes on after the last file that was read whole;
    called again when done it opens the store. Memory does not grow with the export.

    Args:
        folder: v1/MODEL/SOURCE of the bucket, with its folders features, activations and explanations.
        out: Where the store goes; None: into the folder, as `store`.
        n_rows: Tokens that the SAE was run over; None: as source.jsonl and the features say.
        skip: Leave out lines whose fields are not as they must be, and count them in the manifest.
        overwrite: Put it in place of another store.
        progress: Show a bar.

    Returns:
        The store.

    Raises:
        FormatError: The export is missing, broken or of several SAEs; it names the file and line.
        StoreError: The store cannot be written, or the export does not say over how many tokens it is.
        RangeError: n_rows is below 1.
        ConfigError: skip, overwrite or progress is neither True nor False.
    """
    skip, overwrite, progress = (
        boolean("skip", skip),
        boolean("overwrite", overwrite),
        boolean("progress", progress),
    )
    source = path_of(folder, "The folder of an export", FormatError)
    n_rows = None if n_rows is None else integer("n_rows", n_rows, 1, error=RangeError)
    skip, overwrite = boolean("skip", skip), boolean("overwrite", overwrite)
    files = {kind: _files(source, kind) for kind in KINDS}
    place = source / "store" if out is None else path_of(out, "A store's place")
    labels = sorted(p for p in source.iterdir() if p.is_dir() and FOLDER.fullmatch(p.name))
    every = [file for kind in KINDS for file in files[kind]]
    every += [file for each in labels for file in batches(each.iterdir())]
    sizes = {file.relative_to(source).as_posix(): file.stat().st_size for file in every}
    read = {"export": sizes, "skip": skip}
    job = {**read, "n_rows": n_rows}
    if not overwrite and manifests.finished(place, job):
        return FeatureStore.open(place)
    with manifests.resumable(place, read, overwrite) as unfinished:
        parts = unfinished / manifests.PARTS
        parts.mkdir(exist_ok=True)
        with _dropping(parts):
            said = _read(files, parts, skip, progress)
        said.source = _line(source / "source.jsonl")
        made = Assembly(unfinished, parts, said).write(n_rows, skip, {"job": manifests.through_json(job)})
        store = FeatureStore.open(unfinished)
        if len(made.latents):
            lenses.keep(store, made, shipped=True)
        if labels:
            found = explanations(store, source, "neuronpedia", said.of)
            write_labels(unfinished, store.n_latents, found)
    return FeatureStore.open(place)


def _files(source: Path, kind: str) -> list[Path]:
    """The batches of a kind. Raises FormatError where there are none."""
    try:
        found = batches((source / kind).iterdir())
        within = sorted(p.name for p in source.iterdir())
    except OSError as error:
        found, within = [], []
        got = f"{error}"
        if source.is_dir():
            among = sorted(p.name for p in source.iterdir() if (p / kind).is_dir())
            got = f"{source}, where that is in {short(among[:8])}" if among else f"none in {source}"
    else:
        got = f"none in {source / kind}, beside {short(within[:8])}"
    if not found:
        message = f"An export must hold {kind}/batch-N.jsonl.gz or .jsonl. Got {got}. {REMEDY}"
        raise FormatError(message)
    return found


def _read(files: dict[str, list[Path]], parts: Path, skip: bool, progress: bool) -> Said:
    """Every file as a table in `parts`, and what was met in them."""
    total = sum(file.stat().st_size for file in itertools.chain.from_iterable(files.values()))
    said = Said(files)
    options: dict[str, Any] = {"total": total, "unit": "B", "unit_scale": True, "disable": not progress}
    with new_bar(desc="read export", **options) as bar:
        for kind, own in files.items():
            for number, file in enumerate(own):
                out = parts / f"{kind}-{number:05d}.parquet"
                said.add(
                    kind, written(file, number, out, kind, of=said.of or None, skip=skip, told=bar.update)
                )
    if not said.lines["features"]:
        message = f"An export must hold features. Got none in {files['features'][0].parent}. {REMEDY}"
        raise FormatError(message)
    return said


@contextlib.contextmanager
def _dropping(parts: Path) -> Iterator[None]:
    """Leave nothing to go on with where the export is broken: another one is another job."""
    try:
        yield
    except FormatError:
        shutil.rmtree(parts, ignore_errors=True)
        raise


def _line(path: Path) -> dict[str, Any]:
    """The first object of a file, {} where there is none."""
    if not path.is_file():
        return {}
    scan = Scanner(path)
    with refusing(scan, "a line of JSON", REMEDY):
        return next(scan.objects(), {})


__all__ = ["from_neuronpedia"]
