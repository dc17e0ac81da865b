"""Logit lenses that are kept with a store, so that a card needs no model."""

from __future__ import annotations

import gc
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

import saelab
from saelab.analysis.logits import direct_logits, logit_lenses
from saelab.harvesting.lenses import BLOCK, keep_lenses, lenses_of
from saelab.stores import FeatureStore, lenses


@pytest.fixture
def store(small_lab, tmp_path, monkeypatch):
    """A copy of the small store with what index has kept, and an empty cache."""
    monkeypatch.setenv("SAELAB_CACHE", str(tmp_path / "cache"))
    shutil.copytree(small_lab.store.folder, tmp_path / "store")
    return FeatureStore.open(tmp_path / "store")


def unloadable(store, small_sae):
    """A Lab whose model is nowhere: what it shows it knows without."""
    return saelab.Lab("no/such/model", small_sae, store)


def same(found, expected):
    assert [t for t, _ in found.top + found.bottom] == [t for t, _ in expected.top + expected.bottom]
    for ours, theirs in ((found.top, expected.top), (found.bottom, expected.bottom)):
        np.testing.assert_allclose([v for _, v in ours], [v for _, v in theirs], rtol=1e-4, atol=1e-5)
    assert found.spread == pytest.approx(expected.spread, rel=1e-4)


def test_index_keeps_the_lens_of_every_latent_and_cards_show_it_without_the_model(store, small_sae, subject):
    lab = unloadable(store, small_sae)
    for j in (0, 7, 63):
        card = lab.card(j)
        assert card.lens.latent == j
        same(card.lens, logit_lenses(small_sae, subject, [j])[0])
    store.verify()  # what is kept is no part of the store


def test_they_are_those_of_the_plain_sort_of_all_logits(small_sae, subject):
    effects = direct_logits(small_sae, subject, [5, 3])
    for lens, effect in zip(logit_lenses(small_sae, subject, [5, 3], 4), effects, strict=True):
        order = np.argsort(-effect, kind="stable")
        assert [t for t, _ in lens.top] == subject.token_strings(order[:4].tolist())
        assert [t for t, _ in lens.bottom] == subject.token_strings(order[::-1][:4].tolist())
        assert lens.spread == pytest.approx(float(effect.std()), rel=1e-4)


def changed(folder, metadata=None, **tensors):
    path = folder / lenses.NAME
    found = load_file(path)
    stamp = {"format": lenses.FORMAT, "version": lenses.VERSION, "applies": True}
    manifest = FeatureStore.open(folder).manifest
    said = {**stamp, "sae": manifest["sae"], "subject": manifest["subject"], **(metadata or {})}
    save_file(found | tensors, path, {"saelab": json.dumps(said)})


@pytest.mark.parametrize(
    "fault",
    [
        {"metadata": {"subject": "another"}},
        {"metadata": {"sae": "another"}},
        {"metadata": {"version": "2"}},
        {"tokens": np.full((64, 20), 10**6, np.int32)},
        {"tokens": np.full((64, 20), -1, np.int32)},
        {"tokens": np.zeros((64, 19), np.int32), "logits": np.zeros((64, 19), np.float32)},
        {"tokens": np.zeros((63, 20), np.int32)},
        {"logits": np.full((64, 20), np.nan, np.float32)},
        {"spread": np.zeros(63, np.float32)},
        {"latents": np.zeros(64, np.int32)},
        {"latents": np.arange(1, 65, dtype=np.int32)},
        {"latents": np.arange(64)},
        {"tokens": np.zeros((64, 20))},
        {"text": np.frombuffer(b'["a", 1]', np.uint8)},
        {"text": np.frombuffer(b"[" * 10_000, np.uint8)},
        {"text": np.frombuffer(rb'["\ud800"]', np.uint8)},
        {"more": np.zeros(3, np.float32)},
        b"",
        b"\xff" * 100,
        "folder",
        "cut",
    ],
    ids=lambda fault: " ".join(fault) if isinstance(fault, dict) else str(fault[:6]),
)
def test_what_is_kept_of_another_or_damaged_is_ignored_and_made_anew(store, small_sae, subject, fault):
    path = store.folder / lenses.NAME
    if isinstance(fault, dict):
        changed(store.folder)
        assert len(lenses.read(store).latents) == 64  # unchanged it is sound
        changed(store.folder, **fault)
    elif fault == "folder":
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes(path.read_bytes()[:-8] if fault == "cut" else fault)
    assert len(lenses.read(store).latents) == 0
    card = saelab.Lab(subject, small_sae, store).card(7)
    same(card.lens, logit_lenses(small_sae, subject, [7])[0])
    assert unloadable(store, small_sae).card(9).lens is not None


def test_where_the_folder_cannot_be_written_they_are_kept_in_the_cache(store, small_sae, subject, tmp_path):
    (store.folder / lenses.NAME).unlink()
    (store.folder / lenses.NAME).mkdir()  # no file can take its name
    saelab.Lab(subject, small_sae, store).card(7)
    kept = list((tmp_path / "cache" / "logit_lens").iterdir())
    assert len(kept) == 1
    assert len(lenses.read(store).latents) == 64
    kept[0].unlink()
    (tmp_path / "cache").rename(tmp_path / "moved")
    (tmp_path / "cache").write_text("no folder")
    assert saelab.Lab(subject, small_sae, store).card(7).lens is not None  # kept nowhere, and shown


def test_nothing_is_written_into_the_installed_package(monkeypatch, tmp_path):
    monkeypatch.setenv("SAELAB_CACHE", str(tmp_path / "cache"))
    store = FeatureStore.open(saelab.embedded.store_folder())
    before = (store.folder / lenses.NAME).read_bytes()
    lenses.keep(store, lenses.Lenses.none())
    assert (store.folder / lenses.NAME).read_bytes() == before
    assert len(list((tmp_path / "cache" / "logit_lens").iterdir())) == 1


def test_where_all_would_take_long_those_that_were_asked_for_are_kept(store, small_sae, subject, monkeypatch):
    monkeypatch.setattr("saelab.harvesting.lenses.BLOCK", 8)
    (store.folder / lenses.NAME).unlink()
    assert keep_lenses(store, small_sae, subject, [40], seconds=0).latents.tolist() == [*range(8), 40]
    found = keep_lenses(store, small_sae, subject, [50, 3], seconds=0)
    assert found.latents.tolist() == [*range(16), 40, 50]
    again = lenses.read(store)
    for j in found.latents.tolist():
        assert again.of(j) == found.of(j)
        same(saelab.analysis.LogitLens(j, *again.of(j)), logit_lenses(small_sae, subject, [j])[0])
    assert again.of(41) is None
    assert again.lacks([41, 40]) == [41]
    assert len(keep_lenses(store, small_sae, subject).latents) == 64


def test_cards_write_them_in_blocks_and_the_rest_with_the_lab(store, small_sae, subject, monkeypatch):
    monkeypatch.setattr("saelab.harvesting.lenses.BLOCK", 8)
    plain = keep_lenses  # none but those of the first block are found beside those that are asked for
    monkeypatch.setattr("saelab.harvesting.lenses.keep_lenses", lambda *of: plain(*of, seconds=0))
    (store.folder / lenses.NAME).unlink()
    lab = saelab.Lab(subject, small_sae, store)
    for j in range(20, 30):
        same(lab.card(j).lens, logit_lenses(small_sae, subject, [j])[0])
    assert lenses.read(store).latents.tolist() == [*range(8), *range(20, 29)]  # 29 waits for others
    mine = lenses.read(store).with_(lenses_of(small_sae, subject, [60]))
    lenses.keep(store, mine)  # as another kernel does
    same(lab.card(29).lens, logit_lenses(small_sae, subject, [29])[0])
    del lab
    gc.collect()
    assert lenses.read(store).latents.tolist() == [*range(8), *range(20, 30), 60]


def test_that_a_hook_point_has_no_path_to_logits_is_kept_too(store, small_sae, subject, monkeypatch):
    (store.folder / lenses.NAME).unlink()

    def refused(*args):
        message = "hook_q does not write to the residual stream. Got it. Pass another."
        raise saelab.types.HookError(message)

    monkeypatch.setattr(type(subject), "to_residual", refused)
    assert saelab.Lab(subject, small_sae, store).card(7).lens is None
    assert unloadable(store, small_sae).card(8).lens is None


def test_blocks_do_not_change_them(small_sae, subject):
    torch.manual_seed(0)
    config = saelab.recipe("topk", d_in=128, d_sae=BLOCK + 3, k=4, hook=small_sae.config.hook)
    sae = saelab.SAE(config).eval()
    found = lenses_of(sae, subject, list(range(BLOCK + 3)))
    for j in (0, BLOCK - 1, BLOCK, BLOCK + 2):
        same(saelab.analysis.LogitLens(j, *found.of(j)), logit_lenses(sae, subject, [j])[0])
