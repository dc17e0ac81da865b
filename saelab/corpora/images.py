"""Corpora of images: what a vision subject reads, with small pictures for people."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
import zipfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from saelab.arguments import checked, listed, maybe, one_of, sequence
from saelab.config import integer, integer_or_none
from saelab.corpora.documents import Corpus, Document
from saelab.corpora.files import find
from saelab.corpora.pictures import MAX_PIXELS, need_pillow, picture_of, thumbnail
from saelab.types import CorpusError, short

SUFFIXES = (
    ".png",
    ".jpg",
    ".jpeg",
    ".jpe",
    ".webp",
    ".gif",
    ".bmp",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
    ".avif",
)
"""What is an image in a folder or a zip, by the end of its name."""
MOST_ZIPPED = 1 << 28
"""Bytes of one unpacked image of a zip."""
NAMED = 3
"""Images that are named of those that were left out."""
PARQUET_ROWS = 16


class _Item(NamedTuple):
    """One image before it is opened."""

    id: str
    given: Any
    """what `picture_of` takes, or what the subject takes as it is"""
    labels: tuple[str, ...]


@checked(labels=maybe(sequence), ids=maybe(sequence), broken=one_of("error", "skip"))
def images(
    items: Any,
    labels: Sequence[Any] | None = None,
    ids: Sequence[str] | None = None,
    *,
    size: int = 96,
    name: str | None = None,
    broken: str = "error",
    column: str = "image",
    label: str = "label",
    max_pixels: int = MAX_PIXELS,
    workers: int | None = None,
) -> Corpus:
    """A corpus of images, each with a small picture of it that views and exports show.

    Files are opened in threads, a few ahead of the model and in order, so that memory does not grow with the
    corpus. Images of a file come as people see them (`saelab.corpora.pictures.picture_of`): turned as their
    EXIF says, the first of an animation, whatever their colours.

    Args:
        items: A folder, a zip or a Parquet file; a data set of Hugging Face `datasets`; or paths, PIL images,
            or arrays and tensors [H W], [H W C] or [C H W] with 1, 3 or 4 channels: uint8, or floats in 0..1.
            A sequence that loads an item when it is asked for is not read into memory. The subject's
            `prepare` gets arrays and PIL images as they are.
        labels: Of each, a string or several, for people and for scores. By default those of the data set's or
            the file's column; of a folder or zip the folders between it and the image.
        ids: Of each; by default the path from the folder, the row of a file, a path's name, or a number.
        size: Longer side of the small pictures, in pixels; none has more than 64 KiB.
        name: Of the corpus, for people.
        broken: What to do with images that cannot be read or are too large: "error", or "skip" them, with a
            warning that counts and names them.
        column: Of Parquet and data sets: where the images are, as bytes or as {"bytes", "path"}.
        label: Of Parquet and data sets: where the labels are, if it is there.
        max_pixels: More in one image is refused, before it is decoded.
        workers: Threads that decode; None for one a processor, at most 8.

    Raises:
        CorpusError: There is none, or another number of labels or ids; once it is read: an image that cannot
            be read, or none that can.
        ConfigError: A size outside of 8..512; once it is read, a label that is no string and no list of them.
        MissingDependency: Pillow is not installed.
    """
    need_pillow()
    size, max_pixels = integer("size", size, 8, 512), integer("max_pixels", max_pixels, 1)
    workers = integer_or_none("workers", workers, 1) or min(8, os.cpu_count() or 1)
    known, key, n, found = _source(items, column, label)
    for what, own in (("labels", labels), ("ids", ids)):
        if own is not None and len(own) != n:
            message = f"{what} must be one for each of {n} images. Got {len(own)}. Pass as many, or None."
            raise CorpusError(message)

    def document(item: _Item) -> Document | CorpusError:
        given = item.given
        try:
            held = isinstance(given, str | Path | bytes)
            sample = picture_of(given, max_pixels) if held else given
            text = ", ".join(item.labels) or f"image {item.id}"
            media = thumbnail(sample, size)
        except CorpusError as error:
            return error
        return Document(item.id, text, kind="image", sample=sample, labels=item.labels, media=media)

    def make() -> Iterator[Document]:
        left_out: list[str] = []
        read = 0
        for item, made in _ahead(_with(known(), labels, ids), document, workers):
            if isinstance(made, Document):
                read += 1
                yield made
            elif broken == "skip":
                left_out.append(f"{item.id}: {made}")
            else:
                raise made
        if left_out:
            shown = "; ".join(left_out[:NAMED]) + ("; ..." if len(left_out) > NAMED else "")
            told = f"{len(left_out):,} of {read + len(left_out):,} images were left out: {shown}"
            if not read:
                message = f"A corpus must hold at least one image that can be read. Got none: {told}"
                raise CorpusError(message)
            warnings.warn(told, stacklevel=2)

    return Corpus(make, name or found, key, n if broken == "error" else None)


def _with(items: Iterator[_Item], labels: Sequence[Any] | None, ids: Sequence[str] | None) -> Iterator[_Item]:
    for i, item in enumerate(items):
        own = item.labels if labels is None else _labels(labels[i])
        yield _Item(_named(item.id if ids is None else str(ids[i])), item.given, own)


def _ahead(items: Iterator[_Item], do: Callable[[_Item], Any], workers: int) -> Iterator[tuple[_Item, Any]]:
    """What threads make of items, in their order, at most twice as many ahead as there are threads."""
    with ThreadPoolExecutor(workers, thread_name_prefix="saelab-images") as pool:
        waiting: deque[tuple[_Item, Future[Any]]] = deque()
        try:
            for item in items:
                waiting.append((item, pool.submit(do, item)))
                if len(waiting) > 2 * workers:
                    first, made = waiting.popleft()
                    yield first, made.result()
            while waiting:
                first, made = waiting.popleft()
                yield first, made.result()
        finally:
            for _, made in waiting:
                made.cancel()


def _named(id: str) -> str:
    """An id that files and screens can hold: names of files may be any bytes."""
    return id.encode("utf-8", "replace").decode("utf-8")


def _labels(given: Any) -> tuple[str, ...]:
    """Of one image."""
    return (given,) if isinstance(given, str) else tuple(map(str, listed("Each of labels", given)))


Source = tuple[Callable[[], Iterator[_Item]], Callable[[], str], int | None, str]
"""(gives the items anew, gives what determines the content, how many, name)"""


def _source(items: Any, column: str, label: str) -> Source:
    if isinstance(items, str | Path):
        path = Path(items)
        if path.is_dir():
            return _folder(path)
        if zipfile.is_zipfile(path):
            return _zip(path)
        if path.suffix == ".parquet":
            return _parquet(path, column, label)
        message = (
            f"images() of a path needs a folder, a zip or a Parquet file. Got {str(items)!r}. Pass a list of "
            "paths for single files."
        )
        raise CorpusError(message)
    if hasattr(items, "cast_column") and hasattr(items, "features"):
        return _data_set(items, column, label)
    listed("items", items)
    known: Any = items if hasattr(items, "__getitem__") and hasattr(items, "__len__") else list(items)
    n = len(known)
    if not n:
        message = "A corpus must hold at least one image. Got none. Pass paths, arrays or PIL images."
        raise CorpusError(message)

    def make() -> Iterator[_Item]:
        for i in range(n):
            item = known[i]
            yield _Item(Path(item).name if isinstance(item, str | Path) else str(i), item, ())

    def key() -> str:
        digest = hashlib.sha256()
        for i in range(n):
            item = known[i]
            data = Path(item).read_bytes() if isinstance(item, str | Path) else np.asarray(item).tobytes()
            digest.update(data)
        return digest.hexdigest()

    return make, key, n, "images"


def _folder(path: Path) -> Source:
    files = [file for file in find(path, None) if file.path.suffix.lower() in SUFFIXES]
    if not files:
        message = (
            f"A folder of images must hold files such as {', '.join(SUFFIXES[:4])}. Got none in {path}. "
        )
        raise CorpusError(message + "Pass the folder above them.")

    def make() -> Iterator[_Item]:
        for file in files:
            file.check()
            yield _Item(file.name, file.path, tuple(Path(file.name).parts[:-1]))

    def key() -> str:
        return hashlib.sha256(
            "".join(f"{f.name}:{f.hash}\n" for f in files).encode("utf-8", "replace")
        ).hexdigest()

    return make, key, len(files), f"images of {path.name}"


def _zip(path: Path) -> Source:
    (file,) = find([path], None)
    with zipfile.ZipFile(path) as archive:
        names = sorted(
            i.filename
            for i in archive.infolist()
            if Path(i.filename).suffix.lower() in SUFFIXES and not i.is_dir()
        )
    if not names:
        message = f"A zip of images must hold files such as {', '.join(SUFFIXES[:4])}. Got none in {path}. "
        raise CorpusError(message + "Pass another.")

    def make() -> Iterator[_Item]:
        file.check()
        with zipfile.ZipFile(path) as archive:
            for name in names:
                # nothing is written anywhere: of a name only its parts are used, as labels
                parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".", "..")]
                yield _Item("/".join(parts), _unpacked(archive, name), tuple(parts[:-1]))

    return make, lambda: file.hash, len(names), f"images of {path.name}"


def _unpacked(archive: zipfile.ZipFile, name: str) -> bytes:
    """The bytes of a member; those of a broken or too large one are none, which no image is."""
    try:
        if archive.getinfo(name).file_size > MOST_ZIPPED:
            return b""
        with archive.open(name) as member:
            data = member.read(MOST_ZIPPED + 1)
    except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError, ValueError, EOFError):
        return b""
    return data if len(data) <= MOST_ZIPPED else b""


def _parquet(path: Path, column: str, label: str) -> Source:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (file,) = find([path], None)
    try:
        with pq.ParquetFile(path) as opened:
            schema, n = opened.schema_arrow, opened.metadata.num_rows
    except (pa.ArrowException, OSError) as error:
        message = f"A Parquet file must be readable. Got {path}: {error}. Get it again."
        raise CorpusError(message) from error
    if column not in schema.names or not n:
        message = (
            f"A Parquet file of images must hold rows with a column {column!r}. Got {n:,} rows of {path} "
            f"with {short(schema.names)}. Pass column=."
        )
        raise CorpusError(message)
    own = [column, *([label] if label in schema.names else [])]
    classes = _classes(schema.metadata, label)

    def make() -> Iterator[_Item]:
        file.check()
        row = 0
        with pq.ParquetFile(path) as opened:
            for batch in opened.iter_batches(PARQUET_ROWS, columns=own):
                for values in batch.to_pylist():
                    yield _cell(f"{path.name}:{row}", values[column], values.get(label), classes)
                    row += 1

    return make, lambda: f"{file.hash}:{column}:{label}", n, f"images of {path.name}"


def _classes(metadata: Any, label: str) -> list[str]:
    """Names of numbered labels, as `datasets` writes them into a file."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        names = features[label]["names"]
    except (KeyError, TypeError, ValueError):
        return []
    return list(map(str, names)) if isinstance(names, list) else []


def _data_set(items: Any, column: str, label: str) -> Source:
    features = items.features or {}
    if column not in features:
        message = (
            f"A data set of images must have a column {column!r}. Got {short(list(features))}. Pass column=."
        )
        raise CorpusError(message)
    classes = list(getattr(features.get(label), "names", None) or [])
    raw = items
    if type(features[column]).__name__ == "Image":  # its bytes, so that they are opened with the same guards
        raw = items.cast_column(column, type(features[column])(decode=False))
    n = len(items) if hasattr(items, "__len__") else None

    def make() -> Iterator[_Item]:
        for row, values in enumerate(raw):
            yield _cell(str(row), values[column], values.get(label), classes)

    def key() -> str:
        told = getattr(items, "_fingerprint", None)
        if told is not None:
            return f"{told}:{column}:{label}"
        digest = hashlib.sha256()
        for item in make():
            digest.update(item.given if isinstance(item.given, bytes) else repr(item.given).encode())
        return digest.hexdigest()

    return make, key, n, "images of a data set"


def _cell(id: str, value: Any, label: Any, classes: list[str]) -> _Item:
    """An image out of a table: bytes, a path, {"bytes", "path"} or what else is an image."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path") or b""
    if value is None:
        value = b""
    many = label if isinstance(label, list | tuple) else () if label is None else [label]
    named = [classes[v] if isinstance(v, int) and 0 <= v < len(classes) else str(v) for v in many]
    return _Item(id, value, tuple(named))
