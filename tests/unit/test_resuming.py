"""A harvest that is killed at any moment and called again ends with the bytes of one that was not."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import harvests
import pytest
import torch
from forks import run
from safetensors.torch import load_file

import saelab
from saelab.stores import ActivationStore, ActivationWriter
from saelab.types import CorpusError, StoreError

BATCH = 32  # documents of a stretch at batch_size 2


@pytest.fixture(scope="module")
def subject():
    return harvests.subject()


def files(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize("case", list(harvests.CASES))
def test_killed_at_any_moment_it_ends_with_the_same_bytes(tmp_path, case):
    found = json.loads(run("import harvests; harvests.main()", tmp_path, case))
    expected = files(tmp_path / "undisturbed")
    assert len(expected) > 15
    manifest = json.loads(expected["acts/manifest.json"])
    assert ("rounding" in manifest) == (case != "document")
    for number, moment in enumerate(harvests.MOMENTS):
        assert found[moment]["killed"], moment
        left = files(tmp_path / str(number))
        if moment == "after the rename":  # the finished store is opened, not made again; and is tidied
            assert found[moment]["read"] == 0
        assert left == expected, moment
    if case == "document":
        # documents whose rows are all in whole shards are not read again, but for those of one stretch
        rows = [load_file(p)["rows"] for p in sorted((tmp_path / "0" / "acts").glob("shard-*"))]
        for moment, told in found.items():
            if told["whole"] is None:
                continue
            whole = len(told["whole"])
            document = int(rows[whole - 1][-1, 0]) if whole else 0
            assert told["read"] == harvests.N_DOCUMENTS - document // BATCH * BATCH, moment
    assert found["in the third pass"]["whole"] == []
    assert found["after a shard"]["whole"][-1] == "shard-00007.safetensors"
    assert found["between the note and its shard"]["whole"][-1] == "shard-00002.safetensors"
    assert found["before the manifest"]["whole"] == sorted(
        Path(n).name for n in expected if n.endswith(".safetensors")
    )


class Stopping:
    """A subject that ends in an error at the n-th pass."""

    def __init__(self, subject, n, error=KeyboardInterrupt):
        self.subject, self.left, self.error = subject, n, error

    def __getattr__(self, name):
        return getattr(self.subject, name)

    def run(self, *args, **options):
        self.left -= 1
        if self.left < 0:
            raise self.error
        return self.subject.run(*args, **options)


def test_an_interrupt_keeps_whole_shards_and_the_same_call_alone_goes_on(subject, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        harvests.harvest(Stopping(subject, 60), tmp_path / "acts", "document")
    assert [p.name for p in tmp_path.iterdir()] == [".acts-partial"]
    before = files(tmp_path)
    with pytest.raises(StoreError, match=r"dtype: 'float32' -> 'float16'; shard_rows: 150 -> 151.*overwrite"):
        harvests.harvest(subject, tmp_path / "acts", "document", dtype="float16", shard_rows=151)
    assert files(tmp_path) == before
    counted = Stopping(subject, 10**9)
    with pytest.warns(UserWarning, match="are no rows"):
        harvests.harvest(counted, tmp_path / "acts", "document")
    assert [p.name for p in tmp_path.iterdir()] == ["acts"]
    assert 10**9 - counted.left == 150 - 32  # the last whole shard ends in the third stretch of 16 passes
    # several times
    for passes in (40, 50, 45, 1, 20):
        with pytest.raises(KeyboardInterrupt):
            harvests.harvest(Stopping(subject, passes), tmp_path / "again", "document")
    harvests.harvest(subject, tmp_path / "again", "document")
    assert files(tmp_path / "again") == files(tmp_path / "acts")


def test_what_is_there_already_is_opened(subject, tmp_path):
    first = harvests.harvest(subject, tmp_path / "acts", "document")
    before = files(tmp_path)
    again = harvests.harvest(Stopping(subject, 0), tmp_path / "acts", "document")
    assert again.fingerprint() == first.fingerprint()
    with pytest.raises(StoreError, match="new or empty"):
        harvests.harvest(subject, tmp_path / "acts", "document", max_rows=100)
    assert files(tmp_path) == before
    with pytest.raises(KeyboardInterrupt):
        harvests.harvest(Stopping(subject, 60), tmp_path / "acts", "document", overwrite=True)
    assert files(tmp_path / "acts") == files_of(before, "acts")
    harvests.harvest(subject, tmp_path / "acts", "document", overwrite=True)
    assert files(tmp_path) == before


def files_of(all_files, folder):
    return {name.removeprefix(f"{folder}/"): content for name, content in all_files.items()}


def test_an_error_before_the_first_shard_leaves_nothing(subject, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        harvests.harvest(Stopping(subject, 2), tmp_path / "acts", "document")
    with pytest.raises(CorpusError):
        saelab.harvest(subject, ["z" * 50], "blocks.0.hook_resid_post", tmp_path / "acts", long="error")
    assert list(tmp_path.iterdir()) == []


def test_another_corpus_of_samples_is_another_job(tmp_path):
    """Of samples that are no texts, too."""
    module = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2))
    model = saelab.TorchModule(module, prepare=lambda rows: torch.stack(list(rows)))
    samples = torch.randn(200, 3, 4)
    options = {"shard_rows": 50, "batch_size": 1, "progress": False}
    with pytest.raises(KeyboardInterrupt):
        saelab.harvest(Stopping(model, 60), samples, ["0"], tmp_path / "acts", **options)
    with pytest.raises(StoreError, match="corpus"):
        saelab.harvest(model, samples + 1, ["0"], tmp_path / "acts", **options)
    store = saelab.harvest(model, samples, ["0"], tmp_path / "acts", **options)
    torch.testing.assert_close(next(store.batches(1000)).acts, module[0](samples).flatten(0, 1).detach())


# the thread that writes


def test_the_model_runs_on_while_a_shard_is_written(subject, tmp_path, monkeypatch):
    """The first shard is written only once the model has gone on with the second."""
    write, more = ActivationWriter._write, threading.Event()

    def waiting(self, shard):
        assert threading.current_thread() is not threading.main_thread()
        assert more.wait(30)
        write(self, shard)

    class Watched(Stopping):
        def run(self, *args, **options):
            if 10**9 - self.left > 20:  # the first shard is full after 16 passes
                more.set()
            return super().run(*args, **options)

    monkeypatch.setattr(ActivationWriter, "_write", waiting)
    harvests.harvest(Watched(subject, 10**9), tmp_path / "acts", "document", shard_rows=500)
    monkeypatch.undo()
    harvests.harvest(subject, tmp_path / "b", "document", shard_rows=500)
    assert files(tmp_path / "acts") == files(tmp_path / "b")


@pytest.mark.parametrize("failing", [1, 4, "manifest.json"])
def test_a_full_disk_is_told_and_what_is_whole_is_kept(subject, tmp_path, monkeypatch, failing):
    from saelab import tensors as files_of_tensors

    save, n, write = files_of_tensors.write, [], Path.write_bytes
    full = OSError(28, "No space left on device")

    def sometimes(path, tensors, *rest):
        n.append(1)
        if len(n) == failing:
            path.write_bytes(b"half")
            raise full
        return save(path, tensors, *rest)

    def never(path, data):
        if "manifest.json" in path.name:
            write(path, b"half")
            raise full
        write(path, data)

    monkeypatch.setattr(files_of_tensors, "write", sometimes)
    if failing == "manifest.json":
        monkeypatch.setattr(Path, "write_bytes", never)
    with pytest.raises(StoreError, match="No space left on device"):
        harvests.harvest(subject, tmp_path / "acts", "document")
    monkeypatch.setattr(files_of_tensors, "write", save)
    monkeypatch.setattr(Path, "write_bytes", write)
    left = sorted(p.name for p in (tmp_path / ".acts-partial").glob("shard*")) if failing != 1 else []
    assert len(left) == {1: 0, 4: 3}.get(failing, len(left))
    assert (tmp_path / ".acts-partial").exists() == (failing != 1)
    assert not list(tmp_path.rglob("*.tmp"))
    harvests.harvest(subject, tmp_path / "acts", "document")
    harvests.harvest(subject, tmp_path / "b", "document")
    assert files(tmp_path / "acts") == files(tmp_path / "b")
    assert not [t for t in threading.enumerate() if t.name == "saelab-writer"]


def test_two_harvests_of_one_folder(subject, tmp_path):
    """The second is refused at once, and the first does not notice."""
    refused = []

    class Second(Stopping):
        def run(self, *args, **options):
            if not refused:
                with pytest.raises(StoreError, match=f"process {os.getpid()} on"):
                    harvests.harvest(subject, tmp_path / "acts", "document")
                refused.append(1)
            return super().run(*args, **options)

    harvests.harvest(Second(subject, 10**9), tmp_path / "acts", "document")
    assert refused
    ActivationStore.open(tmp_path / "acts").verify()
