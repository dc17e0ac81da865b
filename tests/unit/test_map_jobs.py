"""Maps in the background: what is told, carried back, cancelled, lost, and made once."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from saelab.analysis import latent_map, start_map
from saelab.stores import FeatureStore
from saelab.types import ConfigError, JobError, MissingDependency, NotReady, SaelabError

LAYOUT = """
import os, sys, time
from pathlib import Path
import numpy as np
HERE = Path(__file__).parent
class UMAP:
    def __init__(self, random_state, tqdm_kwds, **options):
        self.seed, self.file = random_state, tqdm_kwds["file"]
    def fit_transform(self, rows):
        print("noise", flush=True)
        with (HERE / "made").open("a") as file:
            file.write(f"{os.getpid()}\\n")
        if self.seed == 1:
            raise ValueError("planted")
        if self.seed == 2:
            sys.stderr.write("last words")
            sys.stderr.flush()
            os.kill(os.getpid(), 9)
        self.file.write("3/4")
        while not (HERE / "go").exists():
            time.sleep(0.02)
        return rows[:, :2]
"""
"""A layout that fails, is killed, or waits, by its seed."""
SCRIPT = """
import sys, time
sys.path.insert(0, sys.argv[2])
from saelab.analysis import start_map
from saelab.stores import FeatureStore
job = start_map(FeatureStore.open(sys.argv[1]), method="umap")
job.observe(lambda job: print(job.progress.what, flush=True))
time.sleep(60)
"""


@pytest.fixture
def store(small_lab, tmp_path, monkeypatch):
    """A store that holds no map yet."""
    monkeypatch.setenv("SAELAB_CACHE", str(tmp_path / "cache"))
    kept = shutil.ignore_patterns(".map-*")
    return FeatureStore.open(shutil.copytree(small_lab.store.folder, tmp_path / "store", ignore=kept))


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """Where the planted layout lies, which processes that begin now import for umap-learn."""
    folder = tmp_path / "planted"
    folder.mkdir()
    (folder / "umap.py").write_text(LAYOUT)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "umap", raising=False)
    return folder


def until(what, true, seconds=60.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, what
        time.sleep(0.01)


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_job_makes_what_is_made_here(store):
    """t-SNE in a process of its own: the same picture, kept in the same place, and told of on the way."""
    heard = []
    job = start_map(store, method="tsne", seed=5)
    assert start_map(store, method="tsne", seed=5) is job
    job.observe(lambda job: heard.append((job.done, *job.progress)))
    with pytest.raises(NotReady, match="must be made"):
        job.result(timeout=0)
    found = job.result(timeout=120)
    assert job.done
    assert job.error is None
    ended, what, share, seconds = zip(*heard, strict=True)
    assert [*dict.fromkeys(what)] == [
        "starting",
        "profiles",
        "tsne",
        "pca",
        "random",
        "neighbours",
        "clusters",
        "done",
    ]
    assert [each for each in ended if each] == [True]
    assert share[0] is None
    assert max(s for w, s in zip(what, share, strict=True) if w == "tsne" and s) == 1.0
    assert list(seconds) == sorted(seconds)
    assert job.progress.seconds == seconds[-1]
    here = latent_map(store, method="tsne", seed=5, keep=False)
    np.testing.assert_array_equal(found.x, here.x)
    assert found.names == here.names
    again = start_map(store, method="tsne", seed=5)
    assert again.done
    np.testing.assert_array_equal(again.result().x, found.x)


def test_a_map_is_made_once_and_cancelled_without_a_trace(store, planted):
    before = names(store.folder)
    job = start_map(store, method="umap")
    until("the layout tells its share", lambda: job.progress[:2] == ("umap", 0.75))
    assert any(name.endswith(".lock") for name in names(store.folder))
    job.cancel()
    assert job.done
    assert job.progress.what == "cancelled"
    with pytest.raises(JobError, match="cancelled"):
        job.result()
    assert not alive(int((planted / "made").read_text()))
    assert names(store.folder) == before
    other = start_map(store, method="umap")
    assert other is not job
    heard = []

    def progress(what, share):
        heard.append(what)
        if heard.count("waiting") == 2:
            (planted / "go").touch()

    until("the layout has begun", lambda: other.progress.what == "umap")
    here = latent_map(store, method="umap", progress=progress)
    assert set(heard) == {"waiting"}
    np.testing.assert_array_equal(other.result(60).x, here.x)
    assert len((planted / "made").read_text().split()) == 2
    assert len(set(names(store.folder)) - set(before)) == 1


def test_errors_are_carried_back(store, planted, monkeypatch, tmp_path):
    faulty, killed = start_map(store, method="umap", seed=1), start_map(store, method="umap", seed=2)
    (planted / "openTSNE.py").write_text("raise ImportError('planted')")
    lacking = start_map(store, method="tsne")
    with pytest.raises(JobError, match=r"Got ValueError: planted(.|\n)*fit_transform"):
        faulty.result(60)
    with pytest.raises(
        JobError, match=r"Got signal 9, as where memory runs out, at 'umap'; it said: (.|\n)*last words"
    ):
        killed.result(60)
    with pytest.raises(MissingDependency, match="Got: planted"):
        lacking.result(60)
    assert faulty.progress.what == killed.progress.what == lacking.progress.what == "failed"
    monkeypatch.setattr(sys, "executable", str(tmp_path / "nothing"))
    with pytest.raises(JobError, match="can be started"):
        start_map(store, method="umap", seed=3).result(60)
    assert not [name for name in names(store.folder) if name.startswith(".map")]
    with pytest.raises(ConfigError):
        start_map(store, method="mds")


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")
def test_a_job_ends_with_who_began_it(store, planted, tmp_path):
    """A script without a guard; what interrupts it does not end the job, its death does."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    begun = subprocess.Popen(
        [sys.executable, script, store.folder, planted],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    for line in begun.stdout:
        if line.strip() == "umap" and (planted / "made").exists():
            break
    pid = int((planted / "made").read_text())
    os.kill(pid, signal.SIGINT)
    time.sleep(0.2)
    assert alive(pid)
    begun.kill()
    begun.wait()
    until("the job has ended", lambda: not alive(pid), 10)
    begun.stdout.close()


def test_what_observes_a_job_may_fail_or_cancel_it(store, planted):
    job = start_map(store, method="umap", seed=4)
    seen = []
    job.observe(lambda job: 1 / 0)
    job.observe(lambda job: seen.append(job.progress.what) or job.cancel())
    with pytest.raises(SaelabError, match="cancelled"):
        job.result(60)
    assert seen[-1] == "cancelled"
