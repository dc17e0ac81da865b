"""`saelab.evaluate` on subjects of every kind, stores and tensors; scores of one's own."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import saelab
from saelab.analysis import scores
from saelab.types import ConfigError, CorpusError, HookError, ShapeError, SubjectError

HOOK = "blocks.2.hook_resid_post"


class Net(nn.Module):
    """Two layers on rows of 4; its loss is known in closed form."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.second(self.first(x))


def _loss(out, inputs):
    return out.square().sum(1)


@pytest.fixture(scope="module")
def subject_of_rows():
    torch.manual_seed(0)
    return saelab.TorchModule(Net(), example=torch.randn(1, 4), loss=_loss)


@pytest.fixture(scope="module")
def rows():
    return torch.randn(300, 4, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def sae():
    config = saelab.recipe("topk", d_in=6, d_sae=20, k=3, hook="first")
    return saelab.SAE.create(
        config, seed=2, rows=torch.randn(100, 6, generator=torch.Generator().manual_seed(0))
    )


def _dense(sae, x):
    with torch.no_grad():
        return sae.encode(x), sae(x).x_hat


def test_a_module_with_a_loss_equals_brute_force(subject_of_rows, rows, sae):
    report = saelab.evaluate(sae, subject_of_rows, rows, batch_size=7)
    net = subject_of_rows.module
    with torch.no_grad():
        x = net.first(rows)
        codes, x_hat = _dense(sae, x)
        loss = {
            "clean": _loss(net.second(x), None),
            "spliced": _loss(net.second(x_hat), None),
            "ablated": _loss(net.second(x.mean(0).expand_as(x)), None),
            "zeroed": _loss(net.second(torch.zeros_like(x)), None),
        }
    mean = {name: float(value.mean()) for name, value in loss.items()}
    told = "a TorchModule lacks targets"
    assert report.left_out == {"kl": told, "kl_recovered_zero": told}
    assert report.n_rows == 300
    assert report.loss_clean == pytest.approx(mean["clean"], rel=1e-5)
    assert report.loss_ablated == pytest.approx(mean["ablated"], rel=1e-5)
    assert report.sae.loss == pytest.approx(mean["spliced"], rel=1e-5)
    assert report.loss_zeroed == pytest.approx(mean["zeroed"], rel=1e-5)
    recovered = (mean["zeroed"] - mean["spliced"]) / (mean["zeroed"] - mean["clean"])
    assert report.scores["loss_recovered_zero"].value == pytest.approx(recovered, rel=1e-4)
    recovered = (mean["ablated"] - mean["spliced"]) / (mean["ablated"] - mean["clean"])
    assert report.sae.loss_recovered == pytest.approx(recovered, rel=1e-4)
    assert report.sae.fvu == pytest.approx(saelab.sae.fvu(x, x_hat), rel=1e-5)
    assert report.sae.l0 == pytest.approx(float((codes != 0).sum(1).float().mean()))
    cosine = torch.nn.functional.cosine_similarity(x, x_hat).mean()
    assert report.scores["cosine"].value == pytest.approx(float(cosine), rel=1e-5)
    ratio = x_hat.norm(dim=1).sum() / x.norm(dim=1).sum()
    assert report.scores["length_ratio"].value == pytest.approx(float(ratio), rel=1e-5)
    by_hand = {
        "mse": float((x - x_hat).square().mean()),
        "log2_mse": float((x - x_hat).square().mean().log2()),
        "error_norm": float((x - x_hat).norm(dim=1).mean()),
        "relative_bias": float(x_hat.square().sum() / (x * x_hat).sum()),
        "l2_ratio": float((x_hat.norm(dim=1) / x.norm(dim=1)).mean()),
        "l1": float(codes.abs().sum(1).mean()),
        "hoyer": float(np.nanmean(saelab.analysis.hoyer(codes))),
        "dense": float(((codes != 0).float().mean(0) > 0.1).float().mean()),
    }
    for name, value in by_hand.items():
        assert report.scores[name].value == pytest.approx(value, rel=1e-5), name
    assert report.scores["fvu"].n == 300
    assert report.scores["dead"].n == 20


def test_what_a_subject_cannot_tell_is_left_out_by_name(subject_of_rows, rows, sae):
    bare = saelab.TorchModule(subject_of_rows.module, example=rows[:1])
    report = saelab.evaluate(sae, bare, rows)
    full = saelab.evaluate(sae, subject_of_rows, rows)
    why = "a TorchModule lacks loss"
    assert {name for name, told in report.left_out.items() if told == why} == {
        "loss",
        "loss_recovered",
        "loss_recovered_zero",
    }
    assert (report.loss_clean, report.loss_ablated, report.sae.loss) == (None, None, None)
    assert report.sae.fvu == full.sae.fvu
    assert "loss: left out, a TorchModule lacks loss" in str(report)
    assert list(report.to_frame().index) == [n for n in full.to_frame().index if "loss" not in n]
    assert report.loss_zeroed is None
    points = saelab.analysis.frontier({"topk": [report]})
    assert np.isnan(points.at(3.0)["loss_recovered"]).all()


def test_activations_at_hand_are_scored_alike(subject_of_rows, rows, sae, tmp_path):
    x = subject_of_rows.run(subject_of_rows.prepare(rows), read=["first"]).acts["first"][:, 0]
    store = saelab.harvest(subject_of_rows, rows, ["first"], tmp_path / "acts", progress=False)
    whole = saelab.evaluate(sae, subject_of_rows, rows)
    for source in (store, x):
        report = saelab.evaluate(sae, source)
        assert report.n_rows == 300
        for name in ("fvu", "l0", "dead", "cosine"):
            assert report.scores[name].value == pytest.approx(whole.scores[name].value, rel=1e-5), name
        assert "activations alone have no loss" in report.left_out["loss"]
    assert saelab.evaluate(sae, store, max_rows=50).n_rows == 50


def test_a_transcoder_over_a_store_is_scored_on_its_target(subject_of_rows, rows, tmp_path):
    config = saelab.recipe("transcoder", d_in=6, d_out=3, d_sae=10, k=2, hook="first", hook_out="second")
    store = saelab.harvest(subject_of_rows, rows, ["first", "second"], tmp_path / "a", progress=False)
    x, y = store.acts(np.arange(300), "first"), store.acts(np.arange(300), "second")
    sae = saelab.SAE.create(config, seed=0, rows=x, targets=y)
    report = saelab.evaluate(sae, store)
    assert report.hook == "first -> second"
    assert report.sae.fvu == pytest.approx(saelab.sae.fvu(y, sae(x).x_hat), rel=1e-5)
    with pytest.raises(ShapeError, match="Pass a store of both ends for a transcoder"):
        saelab.evaluate(sae, x)


def test_intervals_are_over_documents_and_hold_the_value(subject, small_sae):
    corpus = saelab.corpora.world(seed=4, n_documents=30)
    report = saelab.evaluate(small_sae, subject, corpus)
    for name, score in report.scores.items():
        assert score.interval[0] <= score.value <= score.interval[1], name
        assert score.n == (64 if name in ("dead", "dense") else 30), name
    assert report.scores["fvu"].apart
    assert report.sae.fvu == report.scores["fvu"].value
    assert report.untrained.loss == report.scores["loss"].control


def test_a_score_of_ones_own_is_one_class(subject_of_rows, rows, sae, monkeypatch):
    monkeypatch.setattr(scores.registry, "_SCORES", dict(scores.registered()))

    @scores.register("weight")
    class Weight(scores.Score):
        """Sum of |code| of a row, mean."""

        def of_rows(self, seen):
            size = seen.codes.abs().sum(1)
            return {"size": size, "rows": size.new_ones(len(size))}

        def value(self, sums):
            return sums["size"] / sums["rows"]

    report = saelab.evaluate(sae, subject_of_rows, rows)
    x = subject_of_rows.run(subject_of_rows.prepare(rows), read=["first"]).acts["first"][:, 0]
    found = report.scores["weight"]
    assert found.value == pytest.approx(float(sae.encode(x).abs().sum(1).mean()), rel=1e-5)
    assert found.interval[0] < found.value < found.interval[1]
    assert found.control != found.value
    assert "weight" in report.to_frame().index
    for name, cls, match in (
        ("l0", Weight, "a name of its own"),
        ("x", type("Bare", (scores.Score,), {}), "a docstring"),
        ("x", type("NoScore", (), {"__doc__": "x"}), "a class below"),
    ):
        with pytest.raises(ConfigError, match=match):
            scores.register(name)(cls)


def test_what_cannot_be_evaluated(subject_of_rows, rows, sae):
    x = torch.randn(5, 6)
    for source, corpus, error, match in (
        (subject_of_rows, None, ConfigError, "needs a corpus"),
        (x, rows, ConfigError, "scored as they are"),
        (SimpleNamespace(), rows, ConfigError, "Got a SimpleNamespace"),
        (x[:, :3], None, ShapeError, r"must be \[n 6\]"),
        (x[:0], None, CorpusError, "There must be rows"),
    ):
        with pytest.raises(error, match=match):
            saelab.evaluate(sae, source, corpus)
    unnamed = saelab.SAE.create(saelab.recipe("topk", d_in=6, d_sae=20, k=3), seed=0)
    with pytest.raises(HookError, match="must name the hook point"):
        saelab.evaluate(unnamed, subject_of_rows, rows)
    assert saelab.evaluate(unnamed, x).n_rows == 5
    with pytest.raises(SubjectError, match="A logit lens needs a subject that"):
        saelab.analysis.logit_lens(sae, subject_of_rows, 0)
