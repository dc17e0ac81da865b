"""Corpora out of text, JSON Lines, Parquet and data sets: the same documents, in flat memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from written import CHATS, END, TEXTS, refused, saved, write_jsonl, write_parquet, write_text

import saelab
from saelab import corpora
from saelab.corpora import files
from saelab.corpora.sources import split_stream
from saelab.types import CorpusError

HOOK = "blocks.2.hook_resid_post"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """What `datasets` prepares goes into a folder of the test."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


SOURCES = {
    "text": lambda folder: corpora.text(write_text(folder), separator=END),
    "jsonl": lambda folder: corpora.jsonl(write_jsonl(folder)),
    "parquet": lambda folder: corpora.parquet(write_parquet(folder)),
    "hub": lambda folder: corpora.hub(write_jsonl(folder).parent),
    "hub of parquet": lambda folder: corpora.hub(write_parquet(folder).parent),
    "hub, prepared": lambda folder: corpora.hub(write_jsonl(folder).parent, streaming=False),
    "hub, saved": lambda folder: corpora.hub(saved(folder)),
}
CHAT_SOURCES = {
    "jsonl": lambda f: corpora.jsonl(write_jsonl(f, CHATS, "messages"), messages="messages"),
    "parquet": lambda f: corpora.parquet(write_parquet(f, CHATS, "messages"), messages="messages"),
    "hub": lambda f: corpora.hub(write_jsonl(f, CHATS, "messages").parent, messages="messages"),
    "hub, saved": lambda f: corpora.hub(saved(f, CHATS, "messages"), messages="messages"),
}


@pytest.mark.parametrize("source", SOURCES)
def test_the_documents_are_the_texts_again_and_again(source, tmp_path):
    corpus = SOURCES[source](tmp_path / "data")
    assert [d.text for d in corpus] == TEXTS
    assert list(corpus) == list(corpus)
    ids = [d.id for d in corpus]
    assert len(set(ids)) == len(TEXTS)
    assert [d.text for d in corpus.take(2)] == TEXTS[:2]
    shards = [[d.id for d in corpus.shard(i, 3)] for i in range(3)]
    assert shards == [ids[0::3], ids[1::3], ids[2::3]]
    assert corpus.n_documents in (None, len(TEXTS))


def test_ids_tell_file_and_line(tmp_path):
    for name in ("b", "a"):
        write_text(tmp_path / name), write_jsonl(tmp_path / name), write_parquet(tmp_path / name)
    assert [d.id for d in corpora.text(tmp_path)] == ["a/train.txt", "b/train.txt"]
    assert [d.id for d in corpora.text(tmp_path / "a", separator=END).take(2)] == [
        "train.txt:0",
        "train.txt:1",
    ]
    assert [d.id for d in corpora.jsonl(tmp_path / "*" / "*.jsonl").shard(0, 4)] == [
        "a/train.jsonl:1",
        "b/train.jsonl:1",
    ]
    listed = corpora.parquet(
        [tmp_path / "b", str(tmp_path / "a/train.parquet"), tmp_path / "b/train.parquet"]
    )
    assert [d.id for d in listed.shard(0, 4)] == ["b/train.parquet:0", "a/train.parquet:0"]
    assert listed.n_documents == 8
    assert [d.id for d in corpora.hub(saved(tmp_path / "s")).take(1)] == ["train:0"]


@pytest.mark.parametrize("source", CHAT_SOURCES)
def test_dialogues_are_those_of_a_list(source, tmp_path):
    found = list(CHAT_SOURCES[source](tmp_path / "data"))
    wanted = list(corpora.dialogues(CHATS))
    assert [(d.messages, d.text, d.kind) for d in found] == [(d.messages, d.text, d.kind) for d in wanted]


@pytest.mark.parametrize("source", SOURCES)
def test_a_harvest_is_that_of_a_list(source, subject, tmp_path):
    assert_same_rows(subject, SOURCES[source](tmp_path / "data"), TEXTS, tmp_path, packing="blocks")


@pytest.mark.parametrize("source", CHAT_SOURCES)
def test_a_harvest_of_dialogues_is_that_of_a_list(source, subject, tmp_path):
    corpus = CHAT_SOURCES[source](tmp_path / "data")
    assert_same_rows(subject, corpus, corpora.dialogues(CHATS), tmp_path, packing="dialogue")


def assert_same_rows(subject, corpus, wanted, folder, **options):
    """The two harvests are alike to the bit."""
    for name, documents in (("ours", corpus), ("listed", wanted)):
        saelab.harvest(subject, documents, [HOOK], folder / name, progress=False, **options)
    ours, listed = ({p.name: p.read_bytes() for p in (folder / n).glob("*.safetensors")} for n in
                    ("ours", "listed"))  # fmt: skip
    assert ours
    assert ours == listed


def test_an_index_names_the_lines(subject, small_sae, tmp_path):
    corpus = corpora.jsonl(write_jsonl(tmp_path / "data"))
    store = saelab.index(subject, small_sae, corpus, tmp_path / "store", progress=False)
    named = store.query("select id from documents order by document")["id"]
    assert list(named) == [f"train.jsonl:{i}" for i in range(1, 5)]


def test_an_enormous_document_is_passed_on_whole(subject, tmp_path):
    text = "word " * 400_000
    corpus = corpora.jsonl(write_jsonl(tmp_path / "data", [text, "short"]))
    assert [len(d.text) for d in corpus] == [len(text), 5]
    acts = saelab.harvest(subject, corpus, [HOOK], tmp_path / "acts", progress=False, long="truncate")
    assert len(acts) < subject.n_ctx + 10


# what is read


@given(st.text(alphabet="ab<>|", max_size=60), st.text(alphabet="ab<>|", min_size=1, max_size=4), st.data())
def test_splitting_a_stream_is_splitting_the_whole(text, separator, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    chunks = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert list(split_stream(chunks, separator)) == text.split(separator)


@settings(deadline=None)
@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=40), min_size=1, max_size=8))
def test_any_text_comes_through(texts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("any")
    kept = [(i, t) for i, t in enumerate(texts) if t and not t.isspace()]
    for corpus, first in (
        (corpora.jsonl(write_jsonl(folder, texts)), 1),
        (corpora.parquet(write_parquet(folder, texts)), 0),
    ):
        if kept:
            found = [(int(d.id.split(":")[1]) - first, d.text) for d in corpus]
            assert found == kept
        else:
            with pytest.raises(CorpusError, match="are empty"):
                list(corpus)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6))
def test_a_file_that_was_cut_gives_its_whole_lines_and_says_so(tmp_path_factory, at):
    path = write_jsonl(tmp_path_factory.mktemp("cut"), ["Müller", "b", "🙂c"], column="text")
    whole = path.read_bytes()
    at %= len(whole)
    path.write_bytes(whole[:at])
    lines = whole[:at].count(b"\n") + whole[:at].endswith(b"}")
    found, said = [], ""
    try:
        for document in corpora.jsonl(path):
            found.append(document.text)
    except CorpusError as error:
        said = str(error)
    assert ("cut short" in said) == (not whole[:at].endswith((b"}", b"\n"))) if at else "empty" in said
    assert found == ["Müller", "b", "🙂c"][:lines]


def test_empty_documents_inside_are_left_out(tmp_path):
    values = ["", "a", " \n\t", None, "b"]
    assert [d.id for d in corpora.jsonl(write_jsonl(tmp_path, values))] == ["train.jsonl:2", "train.jsonl:5"]
    assert [d.id for d in corpora.parquet(write_parquet(tmp_path, values))] == [
        "train.parquet:1",
        "train.parquet:4",
    ]
    assert [d.id for d in corpora.text(write_text(tmp_path, ["", "a", "\n", "b", "\n"]), END)] == [
        "train.txt:1",
        "train.txt:3",
    ]
    chats = corpora.jsonl(write_jsonl(tmp_path, [[], CHATS[0], None], "messages"), messages="messages")
    assert [d.id for d in chats] == ["train.jsonl:2"]


def test_line_ends_and_byte_order_marks_are_not_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\n\r\ntwo\rthree\n\nfour")
    (tmp_path / "b.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "one"}\r\n\r\n{"text": "two"}')
    assert [d.text for d in corpora.text(tmp_path, separator="\r\n\r\n")] == ["one", "two\nthree", "four"]
    assert [d.text for d in corpora.jsonl(tmp_path)] == ["one", "two"]


@pytest.mark.parametrize("encoding", ["utf-16", "cp1252", "shift_jis", "utf-32-be"])
def test_other_encodings(encoding, tmp_path):
    text = "日本の話。" * 9 if encoding == "shift_jis" else "Café crème — naïve. " * 9
    (tmp_path / "a.txt").write_bytes(f"{text}{END}b".encode(encoding))
    (tmp_path / "b.jsonl").write_bytes(json.dumps({"text": text}, ensure_ascii=False).encode(encoding))
    assert [d.text for d in corpora.text(tmp_path, END, encoding)] == [text, "b"]
    assert [d.text for d in corpora.jsonl(tmp_path, encoding=encoding)] == [text]


@pytest.mark.parametrize("end", files.COMPRESSED)
def test_compressed_files_are_unpacked(end, tmp_path):
    plain = write_jsonl(tmp_path / "plain").read_bytes()
    path = tmp_path / f"train.jsonl{end}"
    with pa.output_stream(str(path), compression="detect") as out:
        out.write(plain)
    assert [d.text for d in corpora.jsonl(tmp_path / "train*")] == TEXTS
    path.write_bytes(path.read_bytes()[:-6])
    with pytest.raises(CorpusError, match=r"readable\. Got .*train\.jsonl.*(Truncated|truncated|ended)"):
        list(corpora.jsonl(tmp_path / "train*"))


# fingerprints


@pytest.mark.parametrize("source", SOURCES)
def test_the_fingerprint_is_of_the_content(source, tmp_path):
    first, same = (SOURCES[source](tmp_path / name) for name in ("a", "b"))
    assert first.fingerprint() == same.fingerprint()
    parts = [first, first.take(2), first.shard(0, 2), first.shard(0, 2).take(1)]
    assert len({p.fingerprint() for p in parts}) == 4


def test_the_fingerprint_changes_with_content_order_and_column(tmp_path):
    a, b = write_jsonl(tmp_path / "a"), write_jsonl(tmp_path / "b", TEXTS[::-1])
    text = write_text(tmp_path / "t")
    corpora_ = [
        corpora.jsonl(a), corpora.jsonl(b), corpora.jsonl([a, b]), corpora.jsonl([b, a]),
        corpora.jsonl(a, "n"), corpora.jsonl(a, messages="text"), corpora.text(text), corpora.text(text, END),
        corpora.text(text, encoding="latin-1"),
    ]  # fmt: skip
    assert len({c.fingerprint() for c in corpora_}) == len(corpora_)


def test_a_file_is_hashed_once(tmp_path, monkeypatch):
    path, hashed, real = write_jsonl(tmp_path), [], files.hashlib.file_digest
    monkeypatch.setattr(files.hashlib, "file_digest", lambda f, n: hashed.append(f.name) or real(f, n))
    first = corpora.jsonl(path).fingerprint()
    assert corpora.jsonl(path).take(1).fingerprint() != first == corpora.jsonl(path).fingerprint()
    assert len(hashed) == 1
    os.utime(path, ns=(1, 1))
    assert corpora.jsonl(path).fingerprint() == first
    assert len(hashed) == 2


@pytest.mark.parametrize("ask", [list, lambda c: c.fingerprint()])
@pytest.mark.parametrize("source", ["text", "jsonl", "parquet"])
def test_a_file_that_changed_or_went_is_noticed(source, ask, tmp_path):
    corpus = SOURCES[source](tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(CorpusError, match=r"stay as they are.*Make the corpus again"):
        ask(corpus)
    path.unlink()
    with pytest.raises(CorpusError, match=r"readable.*No such file"):
        ask(corpus)


def test_a_data_set_of_the_hub_is_known_by_its_commit(monkeypatch):
    import datasets

    asked = []

    class Builder:
        """Stands for what the hub answers."""

        def __init__(self, commit):
            self.hash = commit

        def as_streaming_dataset(self, split):
            return datasets.Dataset.from_dict({"text": TEXTS, "n": range(4)}).to_iterable_dataset()

    def load(name, config, *, revision, data_files):
        asked.append((name, config, revision, data_files))
        return Builder(revision)

    monkeypatch.setattr(datasets, "load_dataset_builder", load)
    first, other = (corpora.hub("a/b", config="en", revision=c * 40, data_files="x*") for c in "12")
    assert asked == [("a/b", "en", "1" * 40, "x*"), ("a/b", "en", "2" * 40, "x*")]
    assert [d.text for d in first] == TEXTS
    assert (
        first.fingerprint()
        == corpora.hub("a/b", config="en", revision="1" * 40, data_files="x*").fingerprint()
    )
    assert first.fingerprint() != other.fingerprint()
    by_documents = corpora.hub("json", revision="short", data_files="x*")
    assert by_documents.fingerprint() == corpora.as_corpus(TEXTS).fingerprint()


# size

# the peak since this program began: ru_maxrss would begin at the peak of the process that started it
MEASURE = """
import re, sys
from pathlib import Path
from saelab import corpora
def peak():
    return int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
kind, path = sys.argv[1:]
path = Path(path).parent if kind == "hub" else path
options = {"separator": "<|endoftext|>"} if kind == "text" else {}
corpus = getattr(corpora, kind)(path, **options)
for _ in corpus.take(5_000): pass
before = peak()
total = sum(len(d.text) for d in corpus)
print(total, peak() - before)
"""


@pytest.fixture(scope="module")
def many():
    """100 MB of texts."""
    rng = np.random.default_rng(0)
    return [rng.integers(97, 123, 5_000, dtype=np.uint8).tobytes().decode() for _ in range(20_000)]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux, which tells a peak apart")
@pytest.mark.parametrize("kind", ["text", "jsonl", "parquet", "hub"])
def test_memory_stays_flat(kind, tmp_path, many):
    make = {"text": write_text, "parquet": lambda f, t: write_parquet(f, t, row_group_size=2_500)}
    path = make.get(kind, write_jsonl)(tmp_path / "data", many)
    assert path.stat().st_size > 100e6
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, kind, str(path)], capture_output=True, text=True, check=True
    )
    total, grown = result.stdout.split()
    assert int(total) == 100_000_000
    assert float(grown) < 45, f"{grown} MB more from 25 to 100 MB"  # 31 or less, also at 400 MB


# real texts


def test_stories(shared_data):
    corpus = corpora.text(shared_data / "language" / "text" / "tinystories.txt", separator=END)
    whole = (shared_data / "language" / "text" / "tinystories.txt").read_text(encoding="utf-8")
    assert [d.text for d in corpus] == [t for t in whole.split(END) if t.strip()]


def test_real_text_files(shared_data, tmp_path):
    with zipfile.ZipFile(shared_data / "language" / "text" / "inaugural.zip") as archive:
        archive.extractall(tmp_path)
    found = {}
    for path in sorted(tmp_path.rglob("*.txt")):
        try:
            found[path.name] = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            refused(lambda path=path: corpora.text(path), path.name, "encoding=")
            found[path.name] = path.read_text(encoding="latin-1")
            path.write_text(found[path.name], encoding="utf-8")
    assert len(found) > 50
    assert {d.id.split("/")[-1]: d.text for d in corpora.text(tmp_path / "**" / "[12]*.txt")} == found


def test_real_json_lines_and_parquet(shared_data):
    agreement = shared_data / "prompts" / "agreement"
    corpus = corpora.jsonl(agreement / "*.json", column="clean_prefix")
    lines = [line for p in sorted(agreement.glob("*.json")) for line in p.read_text().splitlines() if line]
    assert [d.text for d in corpus] == [json.loads(line)["clean_prefix"] for line in lines]
    refused(lambda: corpora.jsonl(agreement / "*.json"), "'clean_prefix'")
    path = shared_data / "concepts" / "axbench" / "concept10_train.parquet"
    texts = pq.read_table(path).column("output").to_pylist()
    wanted = [t for t in texts if t and t.strip()]
    assert [d.text for d in corpora.parquet(path, column="output")] == wanted
    assert [d.text for d in corpora.hub(path.parent, column="output")] == wanted
    assert corpora.parquet(path, column="output").n_documents == len(texts)


@pytest.mark.parametrize("kind", ["text", "jsonl", "parquet", "hub", "hub, saved"])
@pytest.mark.parametrize("name", ["a[1]", "a?", "a*"])
def test_the_name_of_a_folder_is_no_pattern(kind, name, tmp_path):
    for other in ("a1", "ab"):
        (tmp_path / other).mkdir()
        SOURCES[kind](tmp_path / other)
        for path in (tmp_path / other).rglob("*"):
            if path.is_file():
                path.write_text("another")
    (tmp_path / name).mkdir()
    if kind == "hub":
        with pytest.raises(CorpusError, match=r"datasets.* takes \*, \? and \[ .*Got .*corpora\.jsonl"):
            SOURCES[kind](tmp_path / name)
        return
    assert [document.text for document in SOURCES[kind](tmp_path / name)] == TEXTS
    if kind == "jsonl":
        file = next((tmp_path / name).rglob("*.jsonl*"))
        for paths in (file, file.parent, file.parent / "*", str(file.parent / "*.jsonl*")):
            assert [document.text for document in corpora.jsonl(paths)] == TEXTS
