"""Corpora out of files and data sets: read as they are iterated, a document at a time, never as a whole."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from saelab.corpora.documents import Corpus, Document, dialogue
from saelab.corpora.files import CHUNK, File, check_encoding, find, reading, unreadable
from saelab.errors import needing
from saelab.files import path_of
from saelab.types import CorpusError, nearest, short

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_ROWS = 64
"""Rows of a Parquet file that are in memory together."""

Paths = str | Path | Iterable[str | Path]


class _Column(NamedTuple):
    name: str
    dialogues: bool


class _Row(NamedTuple):
    id: str
    where: str
    """the place, for an error"""
    value: object


def text(paths: Paths, separator: str | None = None, encoding: str = "utf-8") -> Corpus:
    """Text files: each a document, or each split into documents at a separator such as "<|endoftext|>".

    A document's id is its file's name, or `name:i` for piece i, from 0; pieces that hold nothing but
    whitespace are left out. One document at a time is in memory.

    Args:
        paths: A file, a folder (its .txt files, at any depth), a glob, or a list of those; .gz, .bz2, .zst
            and .lz4 are unpacked. Line ends are read as a newline.
        separator: What stands between documents; None for a document a file.
        encoding: Text encoding of the files.

    Raises:
        CorpusError: No file matches, `separator` is empty or `encoding` unknown; on reading: a file is
            binary, not in the encoding, changed since, or none holds any text.
    """
    check_encoding(encoding)
    if separator is not None and (not isinstance(separator, str) or not separator):
        message = (
            f"separator must be a non-empty string. Got {separator!r}. Pass e.g. '<|endoftext|>', or None to "
            "read each file as one document."
        )
        raise CorpusError(message)
    files = find(paths, ".txt")
    rows = _over(files, lambda file: _text_rows(file, separator, encoding))
    return _corpus(rows, files, ("text", separator, encoding), None if separator else len(files))


def jsonl(paths: Paths, column: str = "text", messages: str | None = None, encoding: str = "utf-8") -> Corpus:
    """JSON Lines: each line an object whose `column` is a document's text.

    A document's id is `name:line`, from 1. Blank lines are left out, and documents that are null, empty or
    nothing but whitespace.

    Args:
        paths: Files as `text` takes them, of a folder its .jsonl files.
        column: The key of the text.
        messages: The key of chat dialogues, lists of {"role", "content"}, which are read instead of `column`.
        encoding: Text encoding of the files.

    Raises:
        CorpusError: As for `text`; on reading: a line is no JSON object, lacks the column, or has a value
            there that is no string or no dialogue.
    """
    check_encoding(encoding)
    files, wanted = find(paths, ".jsonl"), _column(column, messages)
    rows = _over(files, lambda file: _json_rows(file, wanted, encoding))
    return _corpus(rows, files, ("jsonl", *wanted, encoding), dialogues=wanted.dialogues)


def parquet(paths: Paths, column: str = "text", messages: str | None = None) -> Corpus:
    """Parquet files: each row of `column` is a document's text.

    A document's id is `name:row`, from 0. Columns that are not asked for are not read; a few rows are in
    memory at a time.

    Args:
        paths: Files as `text` takes them, of a folder its .parquet files.
        column: The column of the text.
        messages: The column of chat dialogues, as `jsonl` takes it.

    Raises:
        CorpusError: A file is no Parquet, its column is missing or of another type; on reading as of `jsonl`.
    """
    files, wanted = find(paths, ".parquet"), _column(column, messages)
    n_rows = sum(_parquet_length(file, wanted) for file in files)
    rows = _over(files, lambda file: _parquet_rows(file, wanted))
    return _corpus(rows, files, ("parquet", *wanted), n_rows, wanted.dialogues)


def hub(
    name_or_folder: str | Path,
    split: str = "train",
    column: str = "text",
    streaming: bool = True,
    *,
    messages: str | None = None,
    config: str | None = None,
    revision: str | None = None,
    data_files: Any = None,
) -> Corpus:
    """A data set that Hugging Face `datasets` reads.

    A document's id is `split:row`, from 0. The fingerprint is of the files' content for a folder, of the
    commit for a data set of the hub.

    Args:
        name_or_folder: Its name on the hub, or a local folder, also one that `save_to_disk` wrote.
        split: Which split of the data set.
        column: The column of the text.
        streaming: Read over the network or from the files as it is iterated; False downloads it, and makes a
            copy in the cache that is read from disk.
        messages: The column of chat dialogues, as `jsonl` takes it.
        config: As `datasets.load_dataset` takes it, there `name`.
        revision: As `datasets.load_dataset` takes it.
        data_files: As `datasets.load_dataset` takes it.

    Raises:
        MissingDependency: `datasets` is not installed.
        CorpusError: The data set, its split or its column is not there; on reading as of `jsonl`.
    """
    if not isinstance(split, str) or not split:
        message = f"split must name one split. Got {split!r}. Pass e.g. split='train'."
        raise CorpusError(message)
    wanted, folder = (
        _column(column, messages),
        path_of(name_or_folder, "A data set", CorpusError).expanduser(),
    )
    files = find(folder, None) if folder.is_dir() else []
    name = str(folder) if files else str(name_or_folder)
    table, commit = _table(name, split, streaming, config, revision, data_files)
    if table.column_names is not None:
        _check_column(wanted, table.column_names, f"{name}, split {split!r}")
        table = table.select_columns([wanted.name])
    read = ["hub", split, *wanted, config, repr(data_files)]

    def key() -> str:
        of = [(file.name, file.hash) for file in files] if files else [name, commit]
        return json.dumps([*read, of])

    return Corpus(
        _documents(lambda: _hub_rows(table, name, split, wanted), name, wanted.dialogues),
        f"{name} ({split})",
        key if files or commit else None,  # what has neither is told apart by its documents
        len(table) if hasattr(table, "__len__") else None,
    )


def _column(column: str, messages: str | None) -> _Column:
    return _Column(column, False) if messages is None else _Column(messages, True)


def _over(files: list[File], read: Callable[[File], Iterator[_Row]]) -> Callable[[], Iterator[_Row]]:
    return lambda: (row for file in files for row in read(file))


def _corpus(
    rows: Callable[[], Iterator[_Row]],
    files: list[File],
    read: tuple[str | bool | None, ...],
    n_documents: int | None = None,
    dialogues: bool = False,
) -> Corpus:
    name = str(files[0].path) if len(files) == 1 else f"{len(files)} files from {files[0].path} on"
    return Corpus(
        _documents(rows, name, dialogues),
        name,
        lambda: json.dumps([*read, [file.hash for file in files]]),
        n_documents,
    )


def _documents(
    rows: Callable[[], Iterator[_Row]], name: str, dialogues: bool
) -> Callable[[], Iterator[Document]]:
    """What the rows hold, without those that hold nothing; all of them must not be such."""

    def make() -> Iterator[Document]:
        n_rows, found = 0, False
        for row in rows():
            n_rows += 1
            document = _document(row, dialogues)
            if document is not None:
                found = True
                yield document
        if not found:
            message = (
                f"A corpus must hold some text. Got {name}, of which {n_rows:,} of {n_rows:,} documents are "
                "empty. Pass another file or column."
            )
            raise CorpusError(message)

    return make


def _document(row: _Row, dialogues: bool) -> Document | None:
    value = row.value
    if value is None or (isinstance(value, str | list) and not value):
        return None
    if dialogues:
        document = dialogue(row.id, value, row.where)
    elif isinstance(value, str):
        if value.isspace():
            return None
        document = Document(row.id, value)
    else:
        message = (
            f"A document must be a string. Got {type(value).__name__} {repr(value)[:60]} at {row.where}. "
            "Pass the column that holds the text, or messages= for dialogues."
        )
        raise CorpusError(message)
    if not document.text.isascii():
        _check_unicode(document.text, row.where)
    return document


def _check_unicode(text: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        message = (
            f"Text must be valid Unicode. Got half of a surrogate pair, {text[error.start]!a}, at {where}. "
            "Replace it in the file, which was cut or written wrongly: no tokenizer reads it."
        )
        raise CorpusError(message) from None


def _check_column(column: _Column, known: Iterable[str], where: str) -> None:
    names = list(known)
    if not isinstance(column.name, str) or column.name not in names:
        argument = "messages" if column.dialogues else "column"
        there = ", ".join(map(repr, names[:20])) or "none"
        message = (
            f"{argument} must be one that is there. Got {short(column.name)} for {where}. "
            f"{nearest(str(column.name), names)}Pass {argument}= one of: {there}."
        )
        raise CorpusError(message)


def _text_rows(file: File, separator: str | None, encoding: str) -> Iterator[_Row]:
    with reading(file, encoding) as opened:
        if separator is None:
            yield _Row(file.name, str(file.path), opened.read())
            return
        chunks = iter(lambda: opened.read(CHUNK), "")
        # line ends are "\n" in what is read, so they have to be in the separator
        for i, piece in enumerate(split_stream(chunks, separator.replace("\r\n", "\n").replace("\r", "\n"))):
            yield _Row(f"{file.name}:{i}", f"piece {i} of {file.path}", piece)


def split_stream(chunks: Iterable[str], separator: str) -> Iterator[str]:
    """`"".join(chunks).split(separator)`, one piece at a time."""
    held: list[str] = []
    tail = ""  # what may be the beginning of a separator, which the next chunk completes
    for chunk in chunks:
        *done, last = (tail + chunk).split(separator)
        for piece in done:
            yield "".join([*held, piece])
            held = []
        cut = max(0, len(last) - len(separator) + 1)
        held.append(last[:cut])
        tail = last[cut:]
    yield "".join([*held, tail])


def _json_rows(file: File, column: _Column, encoding: str) -> Iterator[_Row]:
    with reading(file, encoding) as opened:
        for number, line in enumerate(opened, 1):
            if line.isspace():
                continue
            where = f"line {number} of {file.path}"
            yield _Row(f"{file.name}:{number}", where, _json_value(line, where, column))


def _json_value(line: str, where: str, column: _Column) -> object:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        whole = line.endswith("\n")
        remedy = "Write one object a line." if whole else "The file ends there, cut short: get it again."
        message = f"Each line must be a JSON object. Got {line[:60]!r} at {where}: {error}. {remedy}"
        raise CorpusError(message) from None
    if not isinstance(row, dict):
        message = (
            f"Each line must be a JSON object. Got {type(row).__name__} {line[:60]!r} at {where}. "
            f"Write one {{{column.name!r}: ...}} a line; files of plain lines are for corpora.text."
        )
        raise CorpusError(message)
    _check_column(column, row, where)
    return row[column.name]


def _parquet_length(file: File, column: _Column) -> int:
    """How many rows it has. Raises CorpusError where they cannot be documents."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file.path) as opened:
            schema, n_rows = opened.schema_arrow, opened.metadata.num_rows
    except (OSError, ValueError, pa.ArrowException) as error:
        raise unreadable(file.path, error) from error
    _check_column(column, schema.names, str(file.path))
    kind = schema.field(schema.names.index(column.name)).type
    fits = _holds_dialogues if column.dialogues else _holds_text
    if not fits(kind):
        others = [f.name for f in schema if fits(f.type)]
        needed = "lists of role and content" if column.dialogues else "strings"
        message = (
            f"A column must hold {needed}. Got {kind} in "
            f"{column.name!r} of {file.path}. Columns that do: {', '.join(map(repr, others)) or 'none'}."
        )
        raise CorpusError(message)
    return n_rows


def _holds_text(kind: pa.DataType) -> bool:
    from pyarrow import types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def _holds_dialogues(kind: pa.DataType) -> bool:
    from pyarrow import types

    return types.is_list(kind) or types.is_large_list(kind)


def _parquet_rows(file: File, column: _Column) -> Iterator[_Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file.check()
    number = 0
    try:
        # pages are read as they are needed; by default, row groups are held until the end of the file
        with pq.ParquetFile(file.path, buffer_size=CHUNK, pre_buffer=False) as opened:
            for batch in opened.iter_batches(BATCH_ROWS, columns=[column.name], use_threads=False):
                for value in batch.column(batch.schema.names.index(column.name)).to_pylist():
                    yield _Row(f"{file.name}:{number}", f"row {number} of {file.path}", value)
                    number += 1
    except (OSError, ValueError, pa.ArrowException) as error:
        what = f"{file.path} from row {number} on"
        raise unreadable(what, error) from error


def _table(
    name: str, split: str, streaming: bool, config: str | None, revision: str | None, data_files: Any
) -> tuple[Any, str | None]:
    """(the `datasets` table, the commit that it is of on the hub)."""
    with needing("corpora.hub", "datasets", "'datasets>=3'"):
        import datasets
        from datasets.exceptions import DatasetsError
    try:
        if any((Path(name) / own).is_file() for own in ("dataset_dict.json", "state.json")):
            saved = datasets.load_from_disk(name)
            if isinstance(saved, datasets.DatasetDict):
                _check_split(split, list(map(str, saved)), name)
                saved = saved[split]
            return saved, None
        if Path(name).is_dir() and any(c in str(Path(name).absolute()) for c in "*?["):
            message = (
                f"The library datasets takes *, ? and [ in the path of a folder for patterns of others. Got "
                f"{name!r}. Rename the folder, or read its files by corpora.jsonl, corpora.parquet or "
                "corpora.text."
            )
            raise CorpusError(message)
        builder = datasets.load_dataset_builder(name, config, revision=revision, data_files=data_files)
        if streaming:
            table = builder.as_streaming_dataset(split=split)
        else:
            builder.download_and_prepare()
            table = builder.as_dataset(split=split)
    except (OSError, ValueError, TypeError, DatasetsError) as error:
        sliced = "; a slice of a split needs streaming=False" if "[" in split else ""
        message = (
            f"A data set must be one that datasets can read. Got {name!r}, split {split!r}: {error} "
            f"Pass another name, split= or config={sliced}."
        )
        raise CorpusError(message) from error
    commit = str(builder.hash or "")
    return table, commit if len(commit) == 40 else None


def _check_split(split: str, known: Iterable[str], name: str) -> None:
    if split not in known:
        message = (
            f"split must be one of the data set's. Got {split!r} for {name}. {nearest(split, known)}"
            f"Pass one of: {', '.join(map(repr, known))}."
        )
        raise CorpusError(message)


def _hub_rows(table: Any, name: str, split: str, column: _Column) -> Iterator[_Row]:
    import pyarrow as pa
    from datasets.exceptions import DatasetsError

    number = 0
    try:
        for row in table:
            where = f"row {number} of {name}, split {split!r}"
            _check_column(column, row, where)
            yield _Row(f"{split}:{number}", where, row[column.name])
            number += 1
    except (OSError, ValueError, pa.ArrowException, DatasetsError) as error:
        what = f"{name}, split {split!r}, from row {number} on"
        raise unreadable(what, error) from error
