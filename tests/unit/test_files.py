"""Files are whole or absent, and JSON is read with care."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

import saelab
from saelab import files
from saelab.files import Stamp, new_file, new_folder, parse_json, read_json, write_bytes, write_json
from saelab.types import ConfigError, FormatError, StoreError


def full(*args):
    raise OSError(28, "No space left on device")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StoreError, match="No space left"):
        write_json(path, {"new": 1})
    assert read_json(path) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """The order of what the system is asked for: the content, the name, the folder."""
    said = []
    sync, replace = files.os.fsync, Path.replace
    monkeypatch.setattr("os.fsync", lambda fd: said.append("sync") or sync(fd))
    monkeypatch.setattr(Path, "replace", lambda self, to: said.append("rename") or replace(self, to))
    write_bytes(tmp_path / "new" / "a", b"x")
    assert said == ["sync", "rename", "sync"]


def test_a_write_that_is_killed_leaves_the_old_file(tmp_path):
    write_bytes(tmp_path / "a", b"old")
    program = """
import sys
from pathlib import Path
from saelab.files import new_file
with new_file(Path(sys.argv[1])) as temporary:
    temporary.write_bytes(b"new")
    print("written", flush=True)
    sys.stdin.read()
"""
    command = [sys.executable, "-c", program, str(tmp_path / "a")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"written\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert (tmp_path / "a").read_bytes() == b"old"
    write_bytes(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"


def test_threads_that_write_one_file_do_not_meet(tmp_path):
    right = []

    def work(content):
        for _ in range(50):
            write_bytes(tmp_path / "a", content)
            right.append((tmp_path / "a").read_bytes() in contents)

    contents = [bytes([n]) * 10_000 for n in range(4)]
    threads = [threading.Thread(target=work, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [True] * 200
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_where_a_folder_cannot_be_made_it_says_so(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="must be writable"):
        write_bytes(tmp_path / "file" / "a", b"x")


def fill(folder, content, error=None):
    with new_folder(folder) as temporary:
        (temporary / "a").write_text(content)
        if error is not None:
            raise error


def test_a_folder_is_whole_or_as_it_was(tmp_path, monkeypatch):
    place = tmp_path / "deep" / "folder"
    fill(place, "old")
    (place / "b").write_text("of the old one")
    with pytest.raises(KeyboardInterrupt):
        fill(place, "half", KeyboardInterrupt())
    assert sorted(p.name for p in place.iterdir()) == ["a", "b"]
    replace = Path.replace
    monkeypatch.setattr("saelab.files._exchange", lambda one, other: False)
    monkeypatch.setattr(
        Path, "replace", lambda self, to: full() if ".tmp" in self.name else replace(self, to)
    )
    with pytest.raises(OSError, match="No space"):
        fill(place, "new")
    assert (place / "a").read_text() == "old"
    monkeypatch.undo()
    fill(place, "new")
    assert [p.name for p in place.iterdir()] == ["a"]
    assert (place / "a").read_text() == "new"
    assert [p.name for p in place.parent.iterdir()] == ["folder"]


def test_a_new_file_that_was_not_written_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), new_file(tmp_path / "a"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"a": NaN}', b'{"a": -Infinity}', b"[1]", b"3", b"null"],
)
def test_a_file_that_is_no_object_is_a_format_error(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(FormatError, match="JSON"):
        read_json(tmp_path / "a.json")
    assert files.read_json_or_none(tmp_path / "a.json") is None
    assert files.read_json_or_none(content) is None


def test_what_is_missing_or_too_large_is_refused(tmp_path):
    with pytest.raises(StoreError, match="readable"):
        read_json(tmp_path / "none.json")
    assert files.read_json_or_none(tmp_path / "none.json") is None
    with (tmp_path / "endless").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(FormatError, match="at most 100 bytes"):
        read_json(tmp_path / "endless", most=100)
    assert read_json(write(tmp_path, [1, 2]), of=list) == [1, 2]
    with pytest.raises(FormatError, match="JSON array"):
        read_json(write(tmp_path, {}), of=list)


def write(folder, data):
    write_json(folder / "a.json", data)
    return folder / "a.json"


def test_keys_that_come_twice_are_refused_where_they_must_be():
    assert parse_json(b'{"a": 1, "a": 2}', "x") == {"a": 2}
    with pytest.raises(FormatError, match="a key that comes twice"):
        parse_json(b'{"b": {"a": 1, "a": 2}}', "x", unique=True)


def test_text_of_any_kind_comes_back(tmp_path):
    data = {"ü": "☃\ud800\x7f", "a": [1.5, None, True, 10**30]}
    assert read_json(write(tmp_path, data)) == data


STAMP = Stamp("saelab", 3, "thing", "Pass a thing.")
GOOD = {"format": "saelab", "kind": "thing", "version": 2}


def test_a_stamp_knows_its_own_files(tmp_path):
    assert STAMP.fields() == {"format": "saelab", "kind": "thing", "version": 3}
    assert list(Stamp("saelab", 1).fields()) == ["format", "version"]
    assert STAMP.check(GOOD, "x") == 2
    assert STAMP.read(write(tmp_path, GOOD | {"n": 1}), "thing")["n"] == 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format": "other"}, "a.json must say format 'saelab'. Got 'other'. Pass a thing."),
        ({"format": "x" * 10**6}, "must say format 'saelab'. Got 'xxx"),
        ({"kind": None}, "must say kind 'thing'. Got None. Pass a thing."),
        ({"version": 4}, "must be of version 3 or older. Got version 4: a newer saelab wrote it. Upgrade"),
        *(
            ({"version": v}, "a version, an integer >= 1. Got version")
            for v in (0, True, "1", 1.0, None, [1])
        ),
    ],
)
def test_a_stamp_refuses_others(tmp_path, change, says):
    path = write(tmp_path, GOOD | change)
    with pytest.raises(FormatError) as caught:
        STAMP.read(path, "thing")
    assert says in str(caught.value)
    assert len(str(caught.value)) < 1000
    with pytest.raises(ConfigError):
        replace(STAMP, error=ConfigError).parse(path.read_bytes(), path, "thing")


@pytest.mark.parametrize(
    "use",
    [
        lambda path: saelab.load_sae(path),
        lambda path: saelab.formats.sniff(path),
        lambda path: saelab.load_subject(path),
        lambda path: saelab.SAE.load(path),
        lambda path: saelab.FeatureStore.open(path),
        lambda path: saelab.ActivationStore.open(path),
        lambda path: saelab.stores.migrate(path),
        lambda path: saelab.training.Run.load(path),
        lambda path: saelab.interventions.load(path),
        lambda path: saelab.interventions.save([], path),
        lambda path: saelab.Lab(path, saelab.embedded.sae_folder(), saelab.embedded.store_folder()),
        lambda path: saelab.Lab(saelab.embedded.model_folder(), path, saelab.embedded.store_folder()),
    ],
)
def test_bytes_are_no_path_and_it_is_said_how_to_make_one(use):
    with pytest.raises(saelab.SaelabError, match=r"must be .*Got bytes, b'name'. Pass os.fsdecode\(path\)."):
        use(b"name")
