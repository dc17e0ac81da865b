"""Folders of jobs: one writer at a time, whole or absent, resumed after SIGKILL by the same job alone."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

from saelab.files import new_file
from saelab.stores import manifest as manifests
from saelab.types import StoreError

SPEC = {"corpus": "abc", "hooks": ["a", "b"], "dtype": "float32"}
# writes parts 0..5; where it is slow it says so and waits for a line; the store holds the parts' texts
PROGRAM = """
import sys
from pathlib import Path
from saelab.files import new_file
from saelab.stores import manifest as manifests
out, spec, how = Path(sys.argv[1]), {"n": 6}, sys.argv[2]
with manifests.building(out) if "building" in how else manifests.resumable(out, spec) as folder:
    (folder / "parts").mkdir(exist_ok=True)
    made = 0
    for i in range(6):
        path = folder / "parts" / f"{i}.txt"
        if not path.exists():
            with new_file(path) as temporary:
                with temporary.open("w") as file:
                    file.write("half")
                    file.flush()
                    if how.startswith("slow"):
                        print(f"writing {i}", flush=True)
                        sys.stdin.readline()
                    file.write(f" and half of {i}")
            made += 1
            if how.startswith("slow"):
                print(f"wrote {i}", flush=True)
                sys.stdin.readline()
    (folder / "whole.txt").write_text("".join(p.read_text() for p in sorted((folder / "parts").iterdir())))
    manifests.write_manifest(folder, "test", {"job": spec})
print("made", made)
"""


def start(out, how="slow"):
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(out), how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def until(process, said):
    """Let it go on until it says that."""
    for line in process.stdout:
        if line.strip() == said:
            return
        process.stdin.write("\n")
        process.stdin.flush()


def finish(out, how="fast"):
    process = start(out, how)
    printed, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    return printed.strip()


def files(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("said", "left"), [("writing 0", 6), ("wrote 0", 5), ("writing 3", 3), ("wrote 5", 0)]
)
def test_a_killed_job_goes_on_from_its_last_whole_part(tmp_path, said, left):
    process = start(tmp_path / "out")
    until(process, said)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "out").exists()
    parts = files(tmp_path / ".out-partial")
    whole = [p for p in parts if p.startswith("parts/") and not p.endswith(".tmp")]
    assert len(whole) == 6 - left
    assert finish(tmp_path / "out") == f"made {left}"
    assert finish(tmp_path / "undisturbed") == "made 6"
    assert files(tmp_path / "out") == files(tmp_path / "undisturbed")
    assert sorted(files(tmp_path / "out")) == ["manifest.json", "whole.txt"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "undisturbed"]


@pytest.mark.parametrize(
    ("first", "second"), [("slow", "fast"), ("slow building", "fast"), ("slow", "building")]
)
def test_a_second_job_is_refused_by_the_first_ones_number(tmp_path, first, second):
    process = start(tmp_path / "out", first)
    until(process, "writing 0")
    refused = start(tmp_path / "out", second)
    _, errors = refused.communicate(timeout=60)
    assert refused.returncode != 0
    assert "one job at a time" in errors
    assert f"process {process.pid} on " in errors
    assert process.communicate("\n" * 20, timeout=60)[0].strip().endswith("made 6")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "whole.txt").read_text().endswith("half and half of 5")


def test_threads_of_one_process_are_refused_too(tmp_path):
    entered, leave = threading.Event(), threading.Event()

    def work():
        with manifests.building(tmp_path / "out") as folder:
            entered.set()
            leave.wait(30)
            manifests.write_manifest(folder, "test", {})

    thread = threading.Thread(target=work)
    thread.start()
    entered.wait(30)
    with pytest.raises(StoreError, match="one job at a time"), manifests.resumable(tmp_path / "out", {}):
        pass
    leave.set()
    thread.join()
    assert manifests.read_manifest(tmp_path / "out", "test")["files"] == {}


def test_many_that_start_at_once_are_one(tmp_path):
    """The lock file comes and goes; whoever gets in is alone."""
    inside, seen, refused = [], [], []

    def work():
        for _ in range(200):
            try:
                with manifests.lock(tmp_path / "lock", "x"):
                    inside.append(1)
                    time.sleep(0)
                    seen.append(len(inside))
                    inside.pop()
            except StoreError:
                refused.append(1)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) + len(refused) == 1600
    assert set(seen) == {1}
    assert list(tmp_path.iterdir()) == []


def fail(error, opened, *names):
    """Write whole files into the folder of a job, then end in an error."""
    with opened as folder:
        for name in names:
            with new_file(folder / name) as temporary:
                temporary.write_text("whole")
        raise error


def leave(tmp_path, spec, **options):
    with pytest.raises(KeyboardInterrupt):
        fail(KeyboardInterrupt(), manifests.resumable(tmp_path / "out", spec, **options), "a.txt")


def test_another_job_is_refused_by_what_differs(tmp_path):
    leave(tmp_path, SPEC)
    other = SPEC | {"dtype": "float16", "seed": 3}
    match = r"same arguments.*dtype: 'float32' -> 'float16'; seed: None -> 3.*overwrite=True"
    with pytest.raises(StoreError, match=match), manifests.resumable(tmp_path / "out", other):
        pass
    assert (tmp_path / ".out-partial" / "a.txt").read_text() == "whole"
    with manifests.resumable(tmp_path / "out", other, overwrite=True) as folder:
        assert [p.name for p in folder.iterdir()] == ["job.json"]
        manifests.write_manifest(folder, "test", {"job": other})
    assert manifests.finished(tmp_path / "out", other)
    assert not manifests.finished(tmp_path / "out", SPEC)
    assert not manifests.finished(tmp_path, SPEC)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("text", [None, "", "{", "[]", "3"])
def test_a_job_that_cannot_be_read_is_not_gone_on_with(tmp_path, text):
    leave(tmp_path, SPEC)
    job = tmp_path / ".out-partial" / "job.json"
    job.unlink() if text is None else job.write_text(text)
    with pytest.raises(StoreError, match="overwrite=True"), manifests.resumable(tmp_path / "out", SPEC):
        pass
    with manifests.resumable(tmp_path / "out", SPEC, overwrite=True) as folder:
        assert [p.name for p in folder.iterdir()] == ["job.json"]


def test_the_same_job_goes_on_when_it_overwrites_and_when_tuples_are_lists(tmp_path):
    with manifests.building(tmp_path / "out") as folder:
        manifests.write_manifest(folder, "test", {"old": True})
    with pytest.raises(StoreError, match="new or empty"), manifests.resumable(tmp_path / "out", SPEC):
        pass
    leave(tmp_path, SPEC, overwrite=True)
    assert manifests.read_manifest(tmp_path / "out", "test")["old"]
    again = SPEC | {"hooks": ("a", "b")}
    with manifests.resumable(tmp_path / "out", again, overwrite=True) as folder:
        assert (folder / "a.txt").read_text() == "whole"
        manifests.write_manifest(folder, "test", {"job": SPEC})
    assert "old" not in manifests.read_manifest(tmp_path / "out", "test")
    assert manifests.finished(tmp_path / "out", again)


def write_half(path):
    with new_file(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError


def test_an_error_before_any_part_leaves_nothing(tmp_path):
    for opened in (manifests.resumable(tmp_path / "out", SPEC), manifests.building(tmp_path / "out")):
        with opened as folder, pytest.raises(RuntimeError):
            write_half(folder / "a.txt")
        assert not list((tmp_path / "out").glob("**/*a.txt*"))
        shutil.rmtree(tmp_path / "out")
    for opened in (manifests.resumable(tmp_path / "out", SPEC), manifests.building(tmp_path / "out")):
        with pytest.raises(RuntimeError):
            fail(RuntimeError(), opened)
        assert list(tmp_path.iterdir()) == []
    with pytest.raises(RuntimeError):
        fail(RuntimeError(), manifests.building(tmp_path / "out"), "a.txt")
    assert list(tmp_path.iterdir()) == []


def test_a_kill_between_the_renames_loses_no_store(tmp_path):
    """The old store is set aside, the process dies, and the next job finds it in its place again."""
    with manifests.building(tmp_path / "out") as folder:
        manifests.write_manifest(folder, "test", {"old": True})
    (tmp_path / "out").replace(tmp_path / ".out-old")
    leave(tmp_path, SPEC, overwrite=True)
    assert manifests.read_manifest(tmp_path / "out", "test")["old"]
    # and where the new one is in place already, the old one goes
    (tmp_path / ".out-old").mkdir()
    with manifests.resumable(tmp_path / "out", SPEC, overwrite=True) as folder:
        manifests.write_manifest(folder, "test", {"old": False})
    assert not manifests.read_manifest(tmp_path / "out", "test")["old"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_what_a_job_keeps_for_itself_is_no_part_of_the_store(tmp_path):
    known = {"far.bin": {"bytes": 5, "sha256": "0" * 64}}
    with manifests.resumable(tmp_path / "out", SPEC) as folder:
        (folder / "parts").mkdir()
        (folder / "parts" / "0.json").write_text("{}")
        (folder / "a.txt").write_text("a")
        (folder / "far.bin").write_text("12345")
        manifests.write_manifest(folder, "test", {}, known)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert list(manifest["files"]) == ["a.txt", "far.bin"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.txt", "far.bin", "manifest.json"]
    (tmp_path / "out" / "far.bin").unlink()
    with pytest.raises(StoreError, match=r"far\.bin must hold 5 bytes\. Got no such file"):
        manifests.read_manifest(tmp_path / "out", "test")


def test_what_is_half_written_or_was_a_manifest_is_gone_when_the_job_goes_on(tmp_path):
    leave(tmp_path, SPEC)
    partial = tmp_path / ".out-partial"
    (partial / "parts").mkdir()
    for path in (partial / ".b.txt.tmp", partial / "parts" / ".0.json.tmp", partial / "manifest.json"):
        path.write_text("half")
    with manifests.resumable(tmp_path / "out", SPEC) as folder:
        assert sorted(p.name for p in folder.rglob("*")) == ["a.txt", "job.json", "parts"]


def test_an_address_is_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for opened in (manifests.resumable("s3://b/acts", SPEC), manifests.building("s3://b/acts")):
        with pytest.raises(StoreError, match=r"folder.*s3://b/acts"):
            fail(RuntimeError(), opened)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_keeps_what_is_whole(tmp_path):
    full = OSError(28, "No space left on device")
    with pytest.raises(StoreError, match="No space left on device"):
        fail(full, manifests.resumable(tmp_path / "out", SPEC), "a.txt")
    with manifests.resumable(tmp_path / "out", SPEC) as folder:
        assert (folder / "a.txt").read_text() == "whole"


ENTRY = {"bytes": 1, "sha256": "0" * 64}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"version": 2}, "version 2"),
        ({"version": True}, "version True"),
        ({"version": 0}, "version 0"),
        ({"version": "1"}, "version '1'"),
        ({"version": None}, "version None"),
        ({"files": []}, "list its files"),
        *(
            ({"files": {name: ENTRY}}, "must lie in its folder")
            for name in (
                "../secret", "/etc/passwd", "a/../../secret", "C:\\x", "C:x", "\\\\host\\x", "..\\secret", "",
                "a\0b", "a" * 300,
            )
        ),
        ({"files": {"a": 3}}, "bytes and sha256"),
        *(
            ({"files": {"a": ENTRY | {"bytes": size}}}, "bytes and sha256")
            for size in (-1, 1.0, "1", None, True, [1])
        ),
        ({"files": {"a": {"bytes": 1}}}, "bytes and sha256"),
        ({"files": {"a": ENTRY | {"sha256": "0"}}}, "bytes and sha256"),
        ({"files": {"a": ENTRY | {"bytes": 10**30}}}, "must hold"),
        ({"files": {"link": ENTRY}}, "a link to"),
        ({"files": {"folder/file": ENTRY}}, "a link to"),
        ({"n": float("nan")}, "NaN"),
        ({"n": float("inf")}, "Infinity"),
    ],
)  # fmt: skip
def test_hostile_manifests_are_refused_and_nothing_else_is_read(tmp_path, change, says):
    (tmp_path / "secret").write_text("s")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("s")
    store = tmp_path / "store"
    store.mkdir()
    (store / "a").write_text("a")
    (store / "link").symlink_to(tmp_path / "secret")
    (store / "folder").symlink_to(tmp_path / "other")
    good = {"format": "saelab", "kind": "test", "version": 1, "files": {"a": ENTRY}}
    (store / "manifest.json").write_text(json.dumps(good))
    assert manifests.read_manifest(store, "test") == good
    (store / "manifest.json").write_text(json.dumps(good | change))
    with pytest.raises(StoreError, match=says):
        manifests.read_manifest(store, "test")
    (store / "manifest.json").unlink()
    (tmp_path / "manifest.json").write_text(json.dumps(good))
    (store / "manifest.json").symlink_to(tmp_path / "manifest.json")
    with pytest.raises(StoreError, match="a link to"):
        manifests.read_manifest(store, "test")


def test_an_endless_manifest_is_not_read(tmp_path):
    with (tmp_path / "manifest.json").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(StoreError, match=r"at most 268435456 bytes\. Got 1099511627776"):
        manifests.read_manifest(tmp_path, "test")
