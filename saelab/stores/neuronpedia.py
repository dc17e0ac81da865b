"""Labels of latents out of what neuronpedia.org exports, where they are called explanations.

What such files hold, by the code that writes them (repository hijohnnylin/neuronpedia at ebb8426fc550:
utils/neuronpedia-utils/neuronpedia_utils/export-data.py and batch-autointerp.py, apps/webapp/prisma/
schema.prisma, apps/webapp/lib/db/explanation.ts and neuron.ts):

- an explanation is an object with `modelId`, `layer` (the id of the source, as `20-gemmascope-res-16k`),
  `index` (the latent, a string there; copies by others have numbers), `description`, and, null or not,
  `explanationModelName` and `typeName`; and more that is not read here (`id`, `authorId`, `embedding`, ...);
- what judges gave it stands in a list `scores`, where the file has it: objects with `value`, a number,
  `explanationScoreTypeName` (such as `eleuther_recall`) and `explanationScoreModelName`, the judge;
- the bulk export has `v1/MODEL/SOURCE/explanations/batch-0.jsonl.gz`, ..., one explanation a line, ordered by
  `index` as a string; some sources have further folders `explanations-NAME/`;
- the older exports `MODEL_SOURCE.json`, which `/api/explanation/export` gave until April 2026, are one list;
- `/api/feature/MODEL/SOURCE/INDEX` gives a feature: an object with `modelId`, `layer`, `index` and a list
  `explanations`, the best by its scores first; `/api/explanation/search` an object with a list `results`.

A latent may have any number of explanations, by one explainer or several; a line may come twice.
"""

from __future__ import annotations

import codecs
import contextlib
import gzip
import json
import math
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saelab.config import is_integer, is_number
from saelab.types import ConfigError, FormatError, RangeError, short

if TYPE_CHECKING:
    from saelab.stores.attached import Label
    from saelab.stores.protocol import Latents

NEEDED = ("modelId", "layer", "index", "description")
EXPLAINER = ("explanationModelName", "typeName")
SCORER = ("explanationScoreTypeName", "explanationScoreModelName")
LISTS = ("explanations", "results")
BATCH = re.compile(r"batch-(\d+)\.jsonl(\.gz)?")
FOLDER = re.compile(r"explanations(-.+)?")
REMEDY = (
    "Pass a folder of batch-0.jsonl.gz, ..., or a file, from v1/MODEL/SOURCE/explanations of "
    "https://neuronpedia-datasets.s3.us-east-1.amazonaws.com/index.html?prefix=v1/."
)
CHUNK = 2**20
MAX_BYTES = 2**32
"""Bytes of a file, unpacked, at most."""
MAX_PACKING = 100
"""How many times its own size a gzip file may unpack to, at most, beyond its first 2^24 bytes."""
MAX_VALUE = 2**23
"""Characters of one JSON object, at most: what is decoded may take twenty times the memory."""
MAX_LABEL = 2**14
"""Characters of one description or name of an explainer, at most."""
MAX_KEPT = 2**31
"""Bytes that all that is kept of an export may take, at most, at ROW and its text each."""
ROW = 256

_SPACE = re.compile(r"[ \t\n\r]*")
_GZIP = b"\x1f\x8b"


def read_export(
    store: Latents, path: str | Path, source: str = "neuronpedia", of: str | None = None
) -> list[Label]:
    """Every explanation of an export, without those that are empty or come twice.

    See `FeatureStore.attach_labels`. One explainer after the other, as the files name them first.

    Args:
        store: Whose latents they are of.
        path: A file or folder.
        source: What stands before who explained.
        of: Which SAE of an export of several.

    Returns:
        latent, label, source and scores of each.

    Raises:
        FormatError: The export is missing, broken or of another kind.
        ConfigError: `of` is needed or not there.
        RangeError: It names a latent that the store has not.
    """
    rows = explanations(store, path, source, of)
    if not rows:
        message = f"An export must hold explanations. Got none in {path}. {REMEDY}"
        raise FormatError(message)
    return rows


def explanations(store: Latents, path: str | Path, source: str, of: str | None = None) -> list[Label]:
    """`read_export`, of none where the files hold none.

    Args:
        store: Whose latents they are of.
        path: A file or folder.
        source: What stands before who explained.
        of: Which SAE of an export of several.

    Raises:
        FormatError: The export is missing, broken or of another kind.
        ConfigError: `of` is needed or not there.
        RangeError: It names a latent that the store has not.
    """
    found = _Found(source, of)
    for file in _files(Path(path)):
        scan = Scanner(file)
        with refusing(scan):
            for value in scan.objects():
                for row in _rows(value):
                    found.add(row)
    if of is not None and found.origins and of not in found.origins:
        message = (
            f"of= must name a model and source of the export, as 'MODEL/SOURCE'. Got {of!r}; {path} has "
            f"{' and '.join(found.origins)}. Pass one of these."
        )
        raise ConfigError(message)
    if found.largest >= store.n_latents:
        message = (
            f"An export must be of this store's latents, 0..{store.n_latents - 1}. Got latent "
            f"{found.largest} of {of or found.origins[0]} in {path}; the store is of SAE "
            f"{store.manifest['sae']!r} at {store.manifest['hook']['name']}. "
            "Attach the export of the same SAE."
        )
        raise RangeError(message)
    every = ((name, each) for name, named in found.labels.items() for each in named.items())
    return [(latent, text, name, scores) for name, ((latent, text), scores) in every]


@dataclass
class _Found:
    """What was read so far: by source, the pairs of latent and label, each once, with their scores."""

    source: str
    of: str | None
    origins: list[str] = field(default_factory=list)
    labels: dict[str, dict[tuple[int, str], dict[str, float]]] = field(default_factory=dict)
    largest: int = -1
    kept: int = 0

    def add(self, row: dict[str, Any]) -> None:
        """Raises ValueError where it is no explanation, ConfigError where it is of another SAE than those
        before it."""
        origin = origin_of(row, NEEDED)
        if origin not in self.origins and (len(self.origins) < 8 or origin == self.of):
            self.origins.append(origin)
        if origin != (self.origins[0] if self.of is None else self.of):
            if self.of is None:
                message = (
                    f"Labels must be of one SAE. Got an export of {self.origins[0]} and {origin}. "
                    f"Pass of={self.origins[0]!r}, or the one that is meant."
                )
                raise ConfigError(message)
            return
        text = text_of(row, "description").strip()
        if not text:
            return
        latent = latent_of(row["index"])
        explainer = [name for key in EXPLAINER if (name := text_of(row, key).strip())]
        named = self.labels.setdefault(":".join([self.source, *explainer]), {})
        scores = _scores(row)
        self.kept += ROW * len(scores)
        if (latent, text) not in named:
            named[latent, text] = {}
            self.largest = max(self.largest, latent)
            self.kept += ROW + len(text)
        if self.kept > MAX_KEPT:
            message = f"explanations of more than {MAX_KEPT:,} bytes"
            raise ValueError(message)
        named[latent, text].update(scores)


def _scores(row: dict[str, Any]) -> dict[str, float]:
    """What judges gave an explanation, by kind of score and judge; of several by one the last. Raises
    ValueError where it is something else."""
    listed = row.get("scores") or []
    if not isinstance(listed, list):
        message = f"the scores {short(listed)}, which are no list"
        raise ValueError(message)
    found = {}
    for each in listed:
        value = each.get("value") if isinstance(each, dict) else None
        if not is_number(value) or not math.isfinite(value):
            message = f"the score {short(each)}, without a value"
            raise ValueError(message)
        scorer = [name for key in SCORER if (name := text_of(each, key).strip())]
        found[":".join(scorer) or "score"] = float(value)
    return found


def _rows(value: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The explanations that an object is or lists, those listed last first: the best is attached last."""
    listed = [value[key] for key in LISTS if isinstance(value.get(key), list)]
    if not listed:
        yield value
        return
    known = {key: value[key] for key in NEEDED if key in value}
    for row in reversed(listed[0]):
        if not isinstance(row, dict):
            message = f"{short(row)} in a list of explanations"
            raise TypeError(message)
        yield {**known, **row}


def origin_of(row: dict[str, Any], needed: tuple[str, ...] = ("modelId", "layer", "index")) -> str:
    """MODEL/SOURCE of a line.

    Args:
        row: The line.
        needed: Keys that it must have.

    Raises:
        ValueError: It lacks one, or does not say its origin.
    """
    if missing := [key for key in needed if key not in row]:
        message = f"an object without {', '.join(missing)}, of keys {short(list(row))}"
        raise ValueError(message)
    return f"{text_of(row, 'modelId')}/{text_of(row, 'layer')}"


def latent_of(index: Any) -> int:
    """The latent of an `index`, a number or its digits.

    Args:
        index: Of a line.

    Raises:
        ValueError: It is neither.
    """
    digits = isinstance(index, str) and index.isascii() and index.isdigit() and len(index) <= 18
    if not digits and (not is_integer(index) or index < 0):
        message = f"the index {short(index)}, which is no latent"
        raise ValueError(message)
    return int(index)


def text_of(row: dict[str, Any], key: str) -> str:
    """The text of a key, "" for null, which is what has none.

    Args:
        row: The line.
        key: Of it.

    Raises:
        ValueError: It is no text, or too long.
    """
    text = row.get(key)
    if text is None:
        return ""
    if not isinstance(text, str) or len(text) > MAX_LABEL:
        message = f"the {key} {short(text)}, which is no string of at most {MAX_LABEL:,} characters"
        raise ValueError(message)
    text.encode()  # a lone surrogate is JSON, but no text
    return text


def _files(path: Path) -> list[Path]:
    """The files of an export, in the order of their numbers: one, those of a folder, or of its folders of
    explanations."""
    try:
        if path.is_file():
            return [path]
        inside = list(path.iterdir())
        folders = sorted(p for p in inside if p.is_dir() and FOLDER.fullmatch(p.name))
        among = [file for folder in folders for file in folder.iterdir()] if folders else inside
    except (OSError, ValueError) as error:
        message = f"An export must be a file or folder. Got {str(path)!r}: {error}. {REMEDY}"
        raise FormatError(message) from error
    found = batches(among)
    if not found:
        there = short(sorted(p.name for p in inside)[:8])
        message = (
            f"A folder of explanations must hold batch-N.jsonl.gz or .jsonl. Got {there} in {path}. {REMEDY}"
        )
        raise FormatError(message)
    return found


def batches(among: Iterable[Path]) -> list[Path]:
    """The batches among some files, by folder and number.

    Args:
        among: Whatever lies there.
    """
    numbered = [(p.parent, int(m[1]), p) for p in among if (m := BATCH.fullmatch(p.name)) and p.is_file()]
    return [file for _, _, file in sorted(numbered)]


@contextlib.contextmanager
def refusing(scan: Scanner, what: str = "explanations", remedy: str = REMEDY) -> Iterator[None]:
    """Turn what is wrong with a file into a FormatError that says where.

    Args:
        scan: Of the file.
        what: It must hold.
        remedy: Where another is got.

    Raises:
        FormatError: Whatever is raised within.
    """
    try:
        yield
    except (OSError, EOFError, ValueError, TypeError, RecursionError, zlib.error) as error:
        ours = type(error) in (ValueError, TypeError)
        said = f"{error}" if ours else f"{type(error).__name__}: {getattr(error, 'msg', error)}"
        message = (
            f"An export must hold {what} as Neuronpedia writes them, whole. Got {said[:300]} at line "
            f"{scan.line} of {scan.path}. Get it again. {remedy}"
        )
        raise FormatError(message) from error


class Scanner:
    """The JSON objects of a file, one after the other or in one list, few of them in memory at a time.

    Args:
        path: The file.
        told: Called with the bytes that were read of it since, as they are on disk.
    """

    def __init__(self, path: Path, told: Callable[[int], object] | None = None) -> None:
        self.path = path
        self._chunks = _chunks(path, told)
        self._decode = json.JSONDecoder().raw_decode
        self._held, self._at, self._lines = "", 0, 1

    @property
    def line(self) -> int:
        """The line that was reached, from 1."""
        return self._lines + self._held.count("\n", 0, self._at)

    def objects(self) -> Iterator[dict[str, Any]]:
        """All of them, in order.

        Raises:
            ValueError: The file is no JSON, or holds something else than objects.
        """
        if self._next() != "[":
            while self._next():
                yield self._object()
            return
        between = "["
        while self._next() == between:
            self._at += 1
            if between == "[" and self._next() == "]":
                break
            yield self._object()
            between = ","
        self._expect("]")
        self._at += 1
        self._expect("")

    def _next(self) -> str:
        """The next character that is no white space, "" at the end."""
        while True:
            self._at = _SPACE.match(self._held, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._held):
                return self._held[self._at]
            if not self._more():
                return ""

    def _expect(self, char: str) -> None:
        if (got := self._next()) != char:
            message = f"{repr(got) if got else 'the end'} where {repr(char) if char else 'the end'} must be"
            raise ValueError(message)

    def _object(self) -> dict[str, Any]:
        self._expect("{")
        while True:
            try:
                value, self._at = self._decode(self._held, self._at)
            except ValueError:  # it may go on in what was not read yet
                if len(self._held) - self._at >= MAX_VALUE:
                    message = f"an object that is broken, or of more than {MAX_VALUE:,} characters"
                    raise ValueError(message) from None
                if not self._more():
                    raise
            else:
                return value

    def _more(self) -> bool:
        """Read as much again as is held, so that what is decoded anew costs no more than twice its size."""
        rest = self._held[self._at :]
        wanted = min(len(rest), MAX_VALUE - len(rest))
        self._lines = self.line
        pieces, n = [rest], 0
        for chunk in self._chunks:
            pieces.append(chunk)
            n += len(chunk)
            if n >= wanted:
                break
        self._held, self._at = "".join(pieces), 0
        return n > 0


def _chunks(path: Path, told: Callable[[int], object] | None) -> Iterator[str]:
    """The text of a file, gzip or not, in pieces. Raises OSError, EOFError, zlib.error, ValueError."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    with path.open("rb") as raw:
        packed = raw.read(2) == _GZIP
        size = raw.seek(0, 2)
        raw.seek(0)
        limit = min(MAX_BYTES, 2**24 + MAX_PACKING * size) if packed else MAX_BYTES
        n = at = 0
        with gzip.GzipFile(fileobj=raw) if packed else raw as file:
            while piece := file.read(CHUNK):
                n += len(piece)
                if told is not None:
                    at, before = raw.tell(), at
                    told(at - before)
                if n > limit:
                    message = f"more than {limit:,} bytes{' unpacked' if packed else ''}"
                    raise ValueError(message)
                yield decoder.decode(piece)
        yield decoder.decode(b"", True)
