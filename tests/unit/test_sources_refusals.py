"""What corpora out of files say of files, columns, bytes and options that are wrong."""

from __future__ import annotations

import sys

import pytest
from written import CHATS, TEXTS, refused, saved, write_jsonl, write_parquet, write_text

from saelab import corpora
from saelab.corpora import files
from saelab.types import MissingDependency


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """What `datasets` prepares goes into a folder of the test."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def test_columns_that_do_not_exist(tmp_path):
    a = write_jsonl(tmp_path / "j", TEXTS, "content").parent
    b = write_parquet(tmp_path / "p", TEXTS, "content").parent
    there = ("Did you mean 'content'?", "Pass column= one of: 'n', 'content'.")
    for make in (corpora.jsonl, corpora.parquet, corpora.hub):
        refused(lambda make=make: make(b if make is corpora.parquet else a, column="contents"), *there)
    refused(lambda: corpora.jsonl(a, column="contents"), "line 1 of", "train.jsonl")
    refused(lambda: corpora.jsonl(a, messages="mesages"), "messages must be one that is there")
    (tmp_path / "later.jsonl").write_text('{"text": "a"}\n{"txt": "b"}\n')
    refused(lambda: corpora.jsonl(tmp_path / "later.jsonl"), "line 2 of", "Did you mean 'txt'?")


def test_values_that_are_no_text(tmp_path):
    path = write_jsonl(tmp_path / "j", ["a", 3])
    refused(lambda: corpora.jsonl(path), "int 3", f"line 2 of {path}")
    for values, kind in (([1, 2], "int64"), ([b"a", b"b"], "binary"), ([["a"], ["b"]], "list")):
        refused(
            lambda v=values: corpora.parquet(write_parquet(tmp_path / "p", v)), kind, "'text' of", "none."
        )
    path = write_parquet(tmp_path / "p", TEXTS, "other")
    refused(lambda: corpora.parquet(path, "n"), "int64", "Columns that do: 'other'.")
    refused(lambda: corpora.parquet(path, messages="other"), "lists of role and content", "string in")
    refused(lambda: corpora.hub(saved(tmp_path / "h", [1, 2])), "int 1", "row 0 of", "split 'train'")
    for chat in ("hello", [{"role": "user"}], [{"from": "human", "value": "a"}], {"role": ["user"]}):
        path = write_jsonl(tmp_path / "c", [CHATS[0], chat], "messages")
        corpus = corpora.jsonl(path, messages="messages")
        refused(lambda c=corpus: c, "A dialogue must be", f"line 2 of {path}")
    path = tmp_path / "half.jsonl"
    path.write_text('{"text": "fine"}\n{"text": "\\ud83d cut"}\n')
    refused(lambda: corpora.jsonl(path), "surrogate", "'\\ud83d'", "line 2 of")


@pytest.mark.parametrize("at", [0, 5, files.CHUNK - 1, files.CHUNK, 3 * files.CHUNK + 7])
@pytest.mark.parametrize("make", [corpora.text, corpora.jsonl])
def test_bytes_that_are_not_utf8_are_found(make, at, tmp_path):
    path = tmp_path / "a"
    before = ("é" * at).encode()[: at - at % 2] + b"x" * (at % 2)
    path.write_bytes(before + "ü".encode("latin-1") + b"rich\n")
    refused(lambda: make(path), f"byte 0xfc at byte {at:,} of {path}", "encoding=")


def test_a_character_that_the_end_cuts(tmp_path):
    (tmp_path / "a.txt").write_bytes("naï".encode()[:-1])
    refused(lambda: corpora.text(tmp_path), "byte 0xc3 at byte 2 of")


def test_binary_files(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"GIF89a\x00\x01")
    refused(lambda: corpora.text(tmp_path), "NUL", "byte 6 of", "a.txt")
    refused(lambda: corpora.text(tmp_path, encoding="latin-1"), "NUL")
    refused(lambda: corpora.jsonl(tmp_path / "a.txt"), "NUL")
    (tmp_path / "a.txt").write_bytes("wide".encode("utf-16"))
    refused(lambda: corpora.text(tmp_path), "encoding='utf-16'")
    write_parquet(tmp_path)
    refused(lambda: corpora.text(tmp_path / "train.parquet"), "train.parquet")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"text": "b"', "cut short"),
        ('{"text": }\n', "Write one object a line"),
        ('["b"]\n', "Got list"),
        ('"b"\n', "Got str"),
        ("plain text\n", "Write one object a line"),
        ("[" * 100_000 + "\n", "Write one object a line"),
        ('{"text": ' + "9" * 5_000 + "}\n", "Write one object a line"),
    ],
)
def test_lines_that_are_no_objects(line, said, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n\n' + line)
    refused(lambda: corpora.jsonl(path), f"line 3 of {path}", said)


def test_parquet_that_is_damaged(tmp_path):
    path = write_parquet(tmp_path, [f"text {i} " * 50 for i in range(2_000)], row_group_size=500)
    whole = path.read_bytes()
    for damaged in (b"", b"PAR1", whole[: len(whole) // 2], b"{}"):
        path.write_bytes(damaged)
        refused(lambda: corpora.parquet(path), f"readable. Got {path}", "Get the file again")
    middle = len(whole) // 3
    path.write_bytes(whole[:middle] + b"\xff" * 4_000 + whole[middle + 4_000 :])
    refused(lambda: corpora.parquet(path), f"readable. Got {path} from row")


def test_files_that_are_not_there(tmp_path):
    write_text(tmp_path / "a"), write_jsonl(tmp_path / "a")
    refused(lambda: corpora.text(tmp_path / "a" / "tran.txt"), "matches none", "Did you mean 'train.txt'?")
    refused(lambda: corpora.text(tmp_path / "none" / "*.txt"), "matches none", "none is not")
    refused(lambda: corpora.text([tmp_path / "a", tmp_path / "*.txt"]), "*.txt, which matches none")
    refused(lambda: corpora.text([]), "at least one file")
    refused(lambda: corpora.parquet(tmp_path / "a"), ".parquet files", "holds .jsonl, .txt")
    refused(lambda: corpora.text(3), "Got 3")
    refused(lambda: corpora.text([3]), "Got 3")
    (tmp_path / "a" / ".ipynb_checkpoints").mkdir()
    (tmp_path / "a" / ".ipynb_checkpoints" / "old.txt").write_text("old")
    assert len(list(corpora.text(tmp_path / "a"))) == 1
    (tmp_path / "a" / "of[1].txt").write_text("brackets")
    assert [d.text for d in corpora.text(tmp_path / "a" / "of[1].txt")] == ["brackets"]


def test_files_that_hold_nothing(tmp_path):
    for kind, make in (("txt", corpora.text), ("jsonl", corpora.jsonl)):
        (tmp_path / f"empty.{kind}").write_text("")
        refused(lambda make=make: make(tmp_path), "must hold some text", f"empty.{kind}")
        refused(lambda make=make: make(tmp_path).take(3), "must hold some text")
    refused(lambda: corpora.jsonl(write_jsonl(tmp_path / "j", ["", None])), "2 of 2 documents are empty")
    refused(lambda: corpora.parquet(write_parquet(tmp_path / "p", ["", " "])), "2 of 2 documents are empty")
    refused(lambda: corpora.hub(saved(tmp_path / "h", ["", " "])), "2 of 2 documents are empty")


def test_options_that_do_not_exist(tmp_path):
    path = write_text(tmp_path)
    refused(lambda: corpora.text(path, separator=""), "separator must be")
    for encoding in ("utf-88", "hex", None):
        refused(lambda e=encoding: corpora.text(path, encoding=e), "encoding must be", repr(encoding))


def test_data_sets_that_cannot_be_read(tmp_path):
    folder = write_jsonl(tmp_path / "j").parent
    refused(lambda: corpora.hub(folder, split="tset"), "'tset'", "train", "split=")
    refused(lambda: corpora.hub(folder, split="train[:2]"), "streaming=False")
    assert [d.text for d in corpora.hub(folder, split="train[:2]", streaming=False)] == TEXTS[:2]
    refused(lambda: corpora.hub(folder, split=None), "split must name one split")
    refused(lambda: corpora.hub(folder, config="other"), "config=")
    refused(lambda: corpora.hub(saved(tmp_path / "s"), split="trian"), "Did you mean 'train'?")
    refused(lambda: corpora.hub("nobody/nothing"), "nobody/nothing")
    refused(lambda: corpora.hub(tmp_path / "none"), "none")
    (folder / "train.jsonl").write_text('{"text": "a"}\n{"te')
    refused(lambda: corpora.hub(folder), "from row", "split 'train'")


def test_without_datasets_the_command_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingDependency, match=r"pip install 'datasets>=3'"):
        corpora.hub(write_jsonl(tmp_path).parent)
