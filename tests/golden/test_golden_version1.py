"""What saelab wrote at revision 3335fd3 opens today, or is migrated by one call. `version1/` was written by
that revision from the embedded model, 40 documents of `corpora.world(seed=31)` and SAEs of 24 latents.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import saelab
from saelab.types import StoreError

OLD = Path(__file__).parent / "version1"
HOOK = "blocks.2.hook_resid_post"
EXPECTED = json.loads((OLD / "expected.json").read_text())


@pytest.fixture
def old(tmp_path):
    """A copy of all of it: tests write into it."""
    shutil.copytree(OLD, tmp_path / "old")
    return tmp_path / "old"


@pytest.fixture(scope="module")
def corpus():
    return saelab.corpora.world(seed=31, n_documents=40)


def test_saes_and_activations_open_unchanged():
    sae = saelab.SAE.load(OLD / "sae")
    assert sae.fingerprint() == EXPECTED["fingerprint"]
    assert saelab.load_sae(OLD / "sae").fingerprint() == EXPECTED["fingerprint"]
    acts = saelab.ActivationStore.open(OLD / "acts")
    acts.verify()
    assert acts.fingerprint() == EXPECTED["acts"]
    assert (acts.n_rows, acts.hooks) == (400, [HOOK])


def test_a_finished_run_is_read_and_a_killed_one_goes_on(old):
    acts = saelab.ActivationStore.open(old / "acts")
    config = saelab.SAE.load(old / "sae").config
    options = {"steps": 40, "batch_size": 64, "seed": 0, "progress": False}
    before = sorted((p.name, p.stat().st_mtime_ns) for p in (old / "run").iterdir())
    run = saelab.train(config, acts, out=old / "run", **options)
    assert run.sae.fingerprint() == EXPECTED["fingerprint"]
    assert sorted((p.name, p.stat().st_mtime_ns) for p in (old / "run").iterdir()) == before
    steps = []
    again = saelab.train(
        config, acts, out=old / "killed", **options, callbacks=[lambda e: steps.append(e.step)]
    )
    assert steps[0] == 20  # from its checkpoint
    for name, tensor in again.sae.state_dict().items():
        torch.testing.assert_close(tensor, run.sae.state_dict()[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["features", "signed"])
def test_a_store_is_refused_by_name_and_migrated(old, corpus, subject, tmp_path, name):
    with pytest.raises(StoreError, match=r"version 2.*Got version 1.*saelab\.stores\.migrate\("):
        saelab.FeatureStore.open(old / name)
    store = saelab.stores.migrate(old / name, tmp_path / "new")
    store.verify()
    # it says what an index made today says, table by table
    options = {"n_examples": 5, "n_quantile": 5, "window": (5, 5), "max_rows": 700}
    if name == "signed":
        options = {
            "n_examples": 3,
            "n_quantile": 3,
            "window": (3, 3),
            "max_rows": 400,
            "codes": "sampled=0.5",
        }
    sae = saelab.SAE.load(old / ("sae" if name == "features" else "signed_sae"))
    fresh = saelab.index(subject, sae, corpus, tmp_path / "fresh", **options, progress=False)
    assert subject.fingerprint() == EXPECTED["subject"]
    for table in saelab.stores.tables.SCHEMAS:
        ours, theirs = (s.query(f"select * from {table}") for s in (store, fresh))
        if table in ("latents", "examples", "codes_by_latent", "codes_by_row", "sample"):
            for column in ("value", "values", "mean", "min", "max", "sum", "sum_abs", "min_abs", "mean_abs"):
                if column in ours and ours[column].notna().all():  # other machines round otherwise
                    a, b = (np.concatenate([np.atleast_1d(v) for v in t.pop(column)]) for t in (ours, theirs))
                    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
        pd.testing.assert_frame_equal(ours, theirs)
    # in place too, once: the second call opens what is there
    again = saelab.stores.migrate(old / name)
    assert again.manifest["version"] == 2
    assert saelab.stores.migrate(old / name).n_rows == again.n_rows


def test_what_a_migrated_store_says(old, tmp_path):
    expected = EXPECTED["features"]
    store = saelab.stores.migrate(old / "features", tmp_path / "new")
    assert store.labels().to_dict("list") == {"latent": [3], "label": ["three"], "source": ["me"]}
    assert store.facets == ("token",)
    pd.testing.assert_frame_equal(
        store.latents().round(6), pd.DataFrame(expected["latents"]), check_dtype=False
    )
    pd.testing.assert_frame_equal(store.tokens(3), pd.DataFrame(expected["tokens_3"]), check_dtype=False)
    found = [[e.row, e.position, e.start, round(e.value, 5), e.names] for e in store.examples(3, 5)]
    assert found == expected["top_3"]
    assert saelab.Lab(str(saelab.embedded.model_folder()), old / "sae", store).card(3).label == "three"


def test_a_migration_that_fails_leaves_the_old_store(old, tmp_path, monkeypatch):
    before = {p.name: p.read_bytes() for p in (old / "features").iterdir()}
    (old / "features" / "rows.parquet").write_bytes(before["rows.parquet"][:-100] + bytes(100))
    spoiled = {p.name: p.read_bytes() for p in (old / "features").iterdir()}
    with pytest.raises(StoreError, match=r"rows|as it was written"):
        saelab.stores.migrate(old / "features")
    assert {p.name: p.read_bytes() for p in (old / "features").iterdir()} == spoiled
    assert not [p for p in old.iterdir() if p.name.startswith(".")]
    with pytest.raises(StoreError, match="Got version 2"):
        saelab.stores.migrate(saelab.embedded.store_folder(), tmp_path / "x")
