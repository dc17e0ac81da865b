"""Corpora written to files of every kind, and what reading them must say when they are wrong."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from saelab.types import CorpusError

END = "<|endoftext|>"
TEXTS = ["Once upon a time.", "Ünïcode 🙂 travels well.\nOn two lines.", "x" * 5_000, "The end."]
CHATS = [
    [{"role": "user", "content": "Who is there?"}, {"role": "assistant", "content": "Märy."}],
    [{"role": "user", "content": "Bye."}],
]


def write_text(folder, texts=TEXTS):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "train.txt"
    path.write_text(END.join(texts), encoding="utf-8")
    return path


def write_jsonl(folder, values=TEXTS, column="text"):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "train.jsonl"
    path.write_text("".join(json.dumps({"n": i, column: v}) + "\n" for i, v in enumerate(values)))
    return path


def write_parquet(folder, values=TEXTS, column="text", row_group_size=2):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "train.parquet"
    pq.write_table(pa.table({"n": range(len(values)), column: values}), path, row_group_size=row_group_size)
    return path


def saved(folder, values=TEXTS, column="text"):
    import datasets

    datasets.DatasetDict({"train": datasets.Dataset.from_dict({column: values})}).save_to_disk(str(folder))
    return folder


def refused(make, *patterns):
    """Making or reading the corpus raises CorpusError with all of these in its message."""
    with pytest.raises(CorpusError) as error:
        list(make())
    message = str(error.value)
    for pattern in patterns:
        assert pattern in message, message
