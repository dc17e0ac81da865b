"""`target_l0`: runs that end with the L0 that was asked for."""

from __future__ import annotations

import pytest
import torch

import saelab
from saelab.training import LOSSES, train
from saelab.training.losses import Firing, Progress
from saelab.types import ConfigError


def synthetic(n=12_000, d=32, m=100, seed=0):
    """Sums of directions, each of which is on in 4 % of the rows."""
    generator = torch.Generator().manual_seed(seed)
    true = torch.nn.functional.normalize(torch.randn(m, d, generator=generator), dim=1)
    on = torch.rand(n, m, generator=generator) < 0.04
    return (on * (0.5 + torch.rand(n, m, generator=generator))) @ true


@pytest.fixture(scope="module")
def real():
    """Of the embedded model, a middle layer."""
    subject = saelab.load_subject(saelab.embedded.model_folder())
    rows = saelab.stream(
        subject, saelab.corpora.world(seed=3, n_documents=450), "blocks.1.hook_resid_post", buffer_rows=4096
    )
    return torch.cat([batch for batch, _ in zip(rows.batches(256, 0), range(110), strict=False)])


CASES = {
    "relu": {},
    "gated": {},
    "jumprelu": {},
    "jumprelu, tanh": {"penalty": "tanh"},
    "jumprelu, squared": {"target_weight": 3.0},
}


@pytest.mark.parametrize(
    ("data", "case"),
    [*(("synthetic", case) for case in CASES), ("real", "relu"), ("real", "jumprelu, squared")],
)
def test_a_run_ends_with_the_l0_that_was_asked_for(case, data, real):
    rows, target = (synthetic(), 6) if data == "synthetic" else (real, 12)
    config = saelab.recipe(case.split(",")[0], d_in=rows.shape[1], d_sae=160, target_l0=target, **CASES[case])
    unseen = torch.arange(len(rows)) % 8 == 0
    run = train(config, rows[~unseen], steps=1200, batch_size=128, progress=False, held_out=rows[unseen])
    found = run.history[-1].held_out_l0
    assert found == pytest.approx(target, rel=0.05), [round(each.l0, 1) for each in run.history[::10]]
    assert run.history[0].l0 > 1.5 * target  # it was not there to begin with


def test_the_squared_penalty_is_dictionary_learnings():
    """weight (L0 / target - 1)^2 and its gradient for the thresholds, d L0 / d threshold being that of the
    plain penalty (JumpReluTrainer.loss)."""
    rows = synthetic(200)
    asked = {"d_in": 32, "d_sae": 64, "l0_warmup": 0.0}
    plain = saelab.recipe("jumprelu", l0=1.0, **asked)
    squared = saelab.recipe("jumprelu", target_l0=9, target_weight=0.7, **asked)
    sae = saelab.SAE.create(plain, 0, rows).train()
    values, slopes = [], []
    for config in (plain, squared):
        loss = LOSSES["l0"](config, Progress(10, 1.0, Firing(64, 10)))
        sae.zero_grad()
        value = loss(sae, sae(rows, sparse=True))
        value.backward()
        values.append(float(value.detach()))
        slopes.append(sae.sparsifier.log_threshold.grad.clone())
    l0 = values[0]
    assert values[1] == pytest.approx(0.7 * (l0 / 9 - 1) ** 2, rel=1e-5)
    torch.testing.assert_close(slopes[1], slopes[0] * 2 * 0.7 * (l0 / 9 - 1) / 9)


def test_a_run_that_aims_goes_on_to_the_last_bit(tmp_path):
    config = saelab.recipe("relu", d_in=32, d_sae=64, target_l0=5)
    asked = {"steps": 80, "batch_size": 64, "progress": False, "checkpoint_every": 10}
    whole = train(config, synthetic(3000), **asked)

    def stop(event):
        if event.step == 40:
            event.live.stop()

    first = train(config, synthetic(3000), **asked, out=tmp_path / "run", log_every=10, callbacks=[stop])
    assert not first.finished
    again = train(config, synthetic(3000), **asked, out=tmp_path / "run", log_every=10)
    for name, value in whole.sae.state_dict().items():
        assert torch.equal(value, again.sae.state_dict()[name]), name


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("relu", {"target_l0": 0}, "greater than 0"),
        ("relu", {"target_l0": 65}, "d_sae=64"),
        ("relu", {"target_l0": 5, "l1": 0.0}, "l1"),
        ("jumprelu", {"target_weight": 1.0}, "target_l0"),
        ("jumprelu", {"target_l0": 5, "target_weight": 1.0, "penalty": "tanh"}, "l0 penalty"),
        ("topk", {"target_l0": 5}, "has no option 'target_l0'"),
    ],
)
def test_targets_without_a_meaning_are_refused(name, options, said):
    with pytest.raises(ConfigError, match=said):
        saelab.recipe(name, d_in=32, d_sae=64, **options)
