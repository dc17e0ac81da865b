"""Whatever the moment at which a process is killed, what is on the disk is the old or the new, whole; and the
same call again gives what one call gives."""

from __future__ import annotations

import shutil

import dying
import pytest
import torch
from letters import TEXTS, Letters, Planted

import saelab
from saelab import files
from saelab.sae import SAE
from saelab.stores import FeatureStore
from saelab.types import StoreError

TABLES = ("latents", "examples", "codes_by_row", "documents", "coactivation")


@pytest.fixture(scope="module")
def parts():
    return Letters(), Planted()


def same(store: FeatureStore, other: FeatureStore) -> None:
    for table in TABLES:
        assert store.query(f"from {table}").equals(other.query(f"from {table}")), table


@pytest.fixture(params=["exchanged", "renamed twice"])
def way(request, monkeypatch):
    """How a folder takes the place of another: as on this system, and as on others."""
    if request.param == "renamed twice":
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    return request.param


def test_append(parts, way, tmp_path):
    first = saelab.index(*parts, TEXTS[:5], tmp_path / "first", progress=False)
    shutil.copytree(first.folder, tmp_path / "s")
    wanted = saelab.index(*parts, TEXTS[5:9], tmp_path / "s", append=True, progress=False)
    shutil.copytree(wanted.folder, tmp_path / "wanted")
    wanted = FeatureStore.open(tmp_path / "wanted")
    out = tmp_path / "out" / "s"

    def append() -> FeatureStore:
        return saelab.index(*parts, TEXTS[5:9], out, append=True, progress=False)

    def work() -> None:
        append()

    shutil.copytree(first.folder, out)
    n = 0
    for moment in dying.moments(work, out.parent):
        n = moment
        try:
            assert FeatureStore.open(out).n_documents in (5, 9)
        except StoreError:
            assert way == "renamed twice"
            assert not out.exists()
        same(append(), wanted)
        same(append(), wanted)
        assert [p.name for p in out.parent.iterdir() if not p.name.endswith(".lock")] == ["s"]
        shutil.rmtree(out.parent)
        shutil.copytree(first.folder, out)
    assert n > 5


def test_append_of_others_and_of_the_first_again(parts, tmp_path):
    """Two calls differ in what they add; one is none of the store's own."""
    out = tmp_path / "s"
    for some in (TEXTS[:5], TEXTS[5:7], TEXTS[7:9]):
        for _ in range(2):
            found = saelab.index(*parts, some, out, append=True, progress=False)
    assert found.n_documents == 9
    again = saelab.index(*parts, TEXTS[5:7], out, append=True, progress=False)
    assert again.n_documents == 9
    merged = saelab.stores.merge([again], tmp_path / "m")
    assert "jobs" not in merged.manifest
    assert saelab.index(*parts, TEXTS[5:7], tmp_path / "m", append=True, progress=False).n_documents == 11


def test_index_over_another(parts, way, tmp_path):
    out = tmp_path / "s"
    wanted = saelab.index(*parts, TEXTS[5:9], tmp_path / "wanted", progress=False)
    saelab.index(*parts, TEXTS[:5], out, progress=False)

    def work() -> None:
        saelab.index(*parts, TEXTS[5:9], out, overwrite=True, progress=False)

    for _ in dying.moments(work, tmp_path):
        if way == "exchanged":
            assert FeatureStore.open(out).n_documents in (5, 4)
        same(saelab.index(*parts, TEXTS[5:9], out, overwrite=True, progress=False), wanted)
        saelab.index(*parts, TEXTS[:5], out, overwrite=True, progress=False)
        assert [p.name for p in tmp_path.glob(".s*") if not p.name.endswith(".lock")] == []


def test_save_over_another(tmp_path, monkeypatch):
    """Also where the disk has no second name for a file."""
    torch.manual_seed(0)
    saes = [SAE(saelab.recipe("topk", d_in=4, d_sae=8, k=k)) for k in (2, 3)]
    old, new = (sae.fingerprint() for sae in saes)
    for linked in (True, False):
        if not linked:

            def refuse(*args: object, **how: object) -> None:
                raise PermissionError

            monkeypatch.setattr("pathlib.Path.hardlink_to", refuse)
        saes[0].save(tmp_path)
        seen = set()
        for _ in dying.moments(lambda: saes[1].save(tmp_path), tmp_path):
            seen.add(SAE.load(tmp_path).fingerprint())
            saes[1].save(tmp_path)
            assert SAE.load(tmp_path).fingerprint() == new
            names = [p.name for p in tmp_path.iterdir() if not p.name.endswith(".tmp")]
            assert sorted(names) == ["config.json", "sae.safetensors"]
            saes[0].save(tmp_path)
        assert seen == {old, new}


def test_one_process_trains_into_a_folder(tmp_path):
    config = saelab.recipe("topk", d_in=4, d_sae=8, k=2)
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    how = {"steps": 3, "batch_size": 16, "out": tmp_path / "a" / "run", "progress": False}
    met = []

    def again(event: object) -> None:
        with pytest.raises(
            StoreError, match=r"one job at a time\. Got .*run, which process \d+ on .* is writ"
        ):
            saelab.train(config, x, **how)
        met.append(event)

    run = saelab.train(config, x, **how, callbacks=[again])
    assert met
    assert saelab.train(config, x, **how).sae.fingerprint() == run.sae.fingerprint()
    assert not (tmp_path / "a" / "run" / ".lock").exists()
    several = {**how, "out": tmp_path / "several"}
    saelab.train([config, config], x, **several)
    assert not (tmp_path / "several" / ".lock").exists()
