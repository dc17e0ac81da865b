"""Stores at addresses: an S3 server on this machine, and fsspec's memory."""

from __future__ import annotations

import gc
import json
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path

import harvests
import pytest
import torch

import saelab
from saelab.stores import ActivationStore, remote
from saelab.stores import manifest as manifests
from saelab.types import MissingDependency, StoreError

fsspec = pytest.importorskip("fsspec")


@pytest.fixture(scope="module")
def subject():
    return harvests.subject()


@pytest.fixture(scope="module")
def server():
    moto = pytest.importorskip("moto.server", reason="moto and s3fs are extras of development")
    pytest.importorskip("s3fs")
    server = moto.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture(params=["s3", "memory"])
def place(request, monkeypatch, tmp_path_factory):
    """(file system, address of an empty folder there)"""
    # where the locks of addresses lie: other runs of these tests use the same addresses
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("locks")))
    if request.param == "memory":
        fs = fsspec.filesystem("memory")
        fs.store.clear()
        return fs, "memory://bucket/lab/acts"
    url = request.getfixturevalue("server").replace("0.0.0.0", "127.0.0.1")
    for name, value in {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    fs = fsspec.filesystem("s3", skip_instance_cache=True)
    if fs.exists("bucket"):
        fs.rm("bucket", recursive=True)
    fs.mkdir("bucket")
    return fs, "s3://bucket/lab/acts"


def names(fs):
    fs.invalidate_cache()
    return sorted(p.strip("/").removeprefix("bucket/") for p in fs.find("bucket"))


class Stopping:
    def __init__(self, subject, n):
        self.subject, self.left = subject, n

    def __getattr__(self, name):
        return getattr(self.subject, name)

    def run(self, *args, **options):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return self.subject.run(*args, **options)


def test_a_harvest_there_is_that_here(subject, place, tmp_path):
    fs, url = place
    options = {"max_rows": 170, "shard_rows": 50}
    here = harvests.harvest(subject, tmp_path / "acts", "blocks", **options)
    there = harvests.harvest(subject, url, "blocks", **options)
    assert there.manifest == here.manifest
    assert names(fs) == [f"lab/acts/{p.name}" for p in sorted((tmp_path / "acts").iterdir())]
    for name in here.manifest["files"]:
        assert fs.cat_file(f"bucket/lab/acts/{name}") == (tmp_path / "acts" / name).read_bytes()
    there.verify()
    for cache_bytes in (0, 20_000, 2**36):  # nothing, some shards, all of them
        store = ActivationStore.open(url, cache_bytes=cache_bytes)
        for options in ({}, {"seed": 3}, {"seed": 1, "shard": (1, 2)}):
            pairs = zip(
                store.batches(60, hook=store.hooks[1], **options),
                here.batches(60, hook=here.hooks[1], **options),
                strict=True,
            )
            assert all(torch.equal(a.acts, b.acts) and torch.equal(a.rows, b.rows) for a, b in pairs)
        cache = store.folder._cache
        copies = sorted(p.name for p in Path(cache.name).iterdir()) if cache else []
        sizes = [here.manifest["files"][name]["bytes"] for name in copies]
        assert sum(sizes) == store.folder._cached <= cache_bytes
        assert len(copies) == {0: 0, 20_000: 3}.get(cache_bytes, 4)
        assert torch.equal(pickle.loads(pickle.dumps(store)).acts([5, 3, 4], store.hooks[0]),
                           here.acts([5, 3, 4], here.hooks[0]))  # fmt: skip
        del store
        gc.collect()
        assert cache is None or not Path(cache.name).exists()


def test_a_harvest_that_was_interrupted_goes_on_there(subject, place, tmp_path):
    fs, url = place
    with pytest.raises(KeyboardInterrupt):
        harvests.harvest(Stopping(subject, 2), url, "document")
    assert names(fs) == []
    with pytest.raises(KeyboardInterrupt):
        harvests.harvest(Stopping(subject, 60), url, "document")
    left = names(fs)
    assert "lab/acts/job.json" in left
    assert "lab/acts/shard-00011.safetensors" in left
    assert "lab/acts/manifest.json" not in left
    with pytest.raises(StoreError, match=r"manifest\.json"):
        ActivationStore.open(url)
    with pytest.raises(StoreError, match=r"max_rows: None -> 7"):
        harvests.harvest(subject, url, "document", max_rows=7)
    # its last shard is not whole
    fs.pipe_file("bucket/lab/acts/shard-00011.safetensors", b"half")
    counted = harvests.Counted(subject)
    there = harvests.harvest(counted, url, "document")
    assert 0 < counted.samples < harvests.N_DOCUMENTS
    here = harvests.harvest(subject, tmp_path / "acts", "document")
    assert there.manifest == here.manifest
    there.verify()
    assert names(fs) == [f"lab/acts/{p.name}" for p in sorted((tmp_path / "acts").iterdir())]
    again = harvests.harvest(Stopping(subject, 0), url, "document")
    assert again.manifest == here.manifest


def test_what_is_there_is_not_overwritten_by_accident(subject, place):
    fs, url = place
    fs.pipe_file("bucket/lab/acts/thesis.tex", b"years of work")
    for overwrite in (False, True):
        with pytest.raises(StoreError, match="Only a store is overwritten"):
            harvests.harvest(subject, url, "document", overwrite=overwrite)
    assert names(fs) == ["lab/acts/thesis.tex"]
    fs.rm_file("bucket/lab/acts/thesis.tex")
    fs.pipe_file("bucket/lab/acts-2/thesis.tex", b"years of work")
    harvests.harvest(subject, url, "document", max_rows=400)
    with pytest.raises(StoreError, match="new place"):
        harvests.harvest(subject, url, "document", max_rows=200)
    assert harvests.harvest(subject, url, "document", max_rows=200, overwrite=True).n_rows == 200
    expected = ["manifest.json", "shard-00000.safetensors", "shard-00001.safetensors"]
    assert names(fs) == ["lab/acts-2/thesis.tex", *(f"lab/acts/{name}" for name in expected)]


def test_two_jobs_on_this_machine(subject, place):
    _, url = place

    class Second(Stopping):
        def run(self, *args, **options):
            if self.left == 10**9:
                with pytest.raises(StoreError, match="one job at a time"):
                    harvests.harvest(subject, url, "document")
            return super().run(*args, **options)

    harvests.harvest(Second(subject, 10**9), url, "document", max_rows=300)


def test_damage_there_is_found(subject, place):
    fs, url = place
    store = harvests.harvest(subject, url, "document")
    name = "bucket/lab/acts/shard-00002.safetensors"
    content = fs.cat_file(name)
    fs.pipe_file(name, content[:-1] + bytes([content[-1] ^ 1]))
    for read in (store.verify, lambda: ActivationStore.open(url).rows([301], store.hooks[0])):
        with pytest.raises(StoreError, match=r"shard-00002.*hash"):
            read()
    n = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + n])
    for change in (
        {"dtype": "I32"},
        {"shape": [32, 150]},
        {"data_offsets": [-(10**9), -(10**9) + 19_200]},
        {"data_offsets": [0, 10**15]},
        {"data_offsets": [0]},
    ):
        text = json.dumps(header | {store.hooks[0]: header[store.hooks[0]] | change}).encode()
        fs.pipe_file(name, len(text).to_bytes(8, "little") + text + content[8 + n :])
        far = remote.Remote(url)
        expected = {k: (v["dtype"], v["shape"]) for k, v in header.items()}
        with pytest.raises(StoreError, match="shard-00002"):
            far.shard("shard-00002.safetensors", expected)[store.hooks[0]][0:150]
    fs.rm_file(name)
    with pytest.raises(StoreError, match=r"shard-00002.*no such file"):
        ActivationStore.open(url)
    with pytest.raises(StoreError, match="stay as it was"):
        ActivationStore(remote.Remote(url), store.manifest).rows([301], store.hooks[0])
    manifest = fs.cat_file("bucket/lab/acts/manifest.json").decode()
    fs.pipe_file("bucket/lab/acts/manifest.json", manifest.replace("shard-00002", "../../secret").encode())
    with pytest.raises(StoreError, match="must lie in its folder"):
        ActivationStore.open(url)


def test_training_reads_from_there(subject, place, tmp_path):
    _, url = place
    here = harvests.harvest(subject, tmp_path / "acts", "document")
    there = harvests.harvest(subject, url, "document")
    config = saelab.recipe("topk", d_in=32, d_sae=64, k=4, hook=here.hooks[0])
    runs = [saelab.train(config, s, steps=5, batch_size=256, progress=False) for s in (here, there)]
    assert runs[0].sae.fingerprint() == runs[1].sae.fingerprint()


def test_addresses_that_cannot_be_reached(subject, monkeypatch):
    with pytest.raises(MissingDependency, match="nowhere"):
        ActivationStore.open("nowhere://bucket/acts")
    with pytest.raises(MissingDependency):
        harvests.harvest(subject, "nowhere://bucket/acts", "document")
    far = remote.Remote("memory://x")

    def broken(*args, **options):
        message = "the network is down"
        raise RuntimeError(message)

    monkeypatch.setattr(type(far._fs), "find", broken)
    with pytest.raises(StoreError, match="RuntimeError: the network is down"):
        ActivationStore.open("memory://x")
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(MissingDependency, match="pip install"):
        ActivationStore.open("s3://bucket/acts")


def test_a_store_here_needs_no_fsspec(tmp_path):
    program = """
import sys, torch
from saelab.stores import ActivationStore
before = "fsspec" in sys.modules  # torch may bring it
sys.modules["fsspec"] = None
store = ActivationStore.create(sys.argv[1], {"a": torch.randn(10, 3)})
store.verify()
list(ActivationStore.open(sys.argv[1]).batches(3, seed=0))
assert "saelab.stores.remote" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "acts")], check=True, timeout=60)
    assert manifests.read_manifest(tmp_path / "acts", "activations")["n_rows"] == 10


@pytest.mark.parametrize("name", ["run[1]", "run?", "run*"])
def test_the_name_of_a_folder_is_no_pattern(subject, name, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    fsspec.filesystem("memory").store.clear()
    plain = harvests.harvest(subject, tmp_path / "plain", "document", max_rows=200)
    how = {"hook": plain.hooks[0], "seed": 0}
    theirs = torch.cat([b.acts for b in plain.batches(64, **how)])
    for root in ("memory://bucket", f"file://{tmp_path}/there"):
        for other, n in (("run1", 100), ("runs", 50), (name, 200)):
            harvests.harvest(subject, f"{root}/{other}/acts", "document", max_rows=n)
        opened = ActivationStore.open(f"{root}/{name}/acts")
        opened.verify()
        assert torch.equal(torch.cat([b.acts for b in opened.batches(64, **how)]), theirs)
