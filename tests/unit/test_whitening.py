"""Training on whitened rows: closed forms, the fold, and what cannot be folded."""

from __future__ import annotations

import pytest
import torch

from saelab.sae import fvu, recipe
from saelab.training import Run, Whitening, train, whitening
from saelab.training.arguments import complete
from saelab.training.session import Session
from saelab.types import ConfigError

TINY = {"steps": 30, "batch_size": 64, "seed": 1, "progress": False, "log_every": 1}
DEVIATIONS = torch.tensor([30.0, 10.0, 3.0, 1.0, 1.0, 0.3, 0.1, 0.1])


@pytest.fixture(scope="module")
def planted() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(rows [2000 8] of exactly that mean and covariance, mean, axes)"""
    generator = torch.Generator().manual_seed(3)
    z = torch.randn(2_000, 8, generator=generator).double()
    z -= z.mean(0)
    z = z @ torch.linalg.inv(torch.linalg.cholesky((z.t() @ z) / (len(z) - 1)).t())
    axes = torch.linalg.qr(torch.randn(8, 8, generator=generator).double()).Q
    mean = 5 * torch.randn(8, generator=generator).double()
    return (z * DEVIATIONS) @ axes.t() + mean, mean, axes


def _config(name: str = "topk", **options):
    more = {"k": 2} if name in ("topk", "batchtopk") else {}
    return recipe(name, d_in=8, d_sae=24, **{"dead_after": 200, **more, **options})


@pytest.mark.parametrize("shrinkage", [0.0, 0.1, 1.0])
def test_it_is_the_inverse_root_of_a_planted_covariance(planted, shrinkage):
    rows, mean, axes = planted
    found = whitening.fit(rows.float(), Whitening(shrinkage))
    variances = DEVIATIONS.double().square()
    variances = (1 - shrinkage) * variances + shrinkage * variances.mean()
    assert torch.allclose(found.mean.double(), mean, atol=1e-5)
    assert torch.allclose(found.forward.double(), axes * variances.rsqrt() @ axes.t(), rtol=1e-4, atol=1e-5)
    assert torch.allclose(found.forward @ found.back, torch.eye(8), atol=1e-5)
    if not shrinkage:
        z = found(rows.float())
        assert torch.allclose(torch.cov(z.t()), torch.eye(8), atol=1e-3)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("topk", {}),
        ("topk", {"apply_b_dec_to_input": False}),
        ("topk", {"normalise": "none"}),
        ("relu", {"apply_b_dec_to_input": False, "b_dec_init": "zeros"}),
        ("batchtopk", {}),
        ("jumprelu", {}),
        ("gated", {}),
    ],
)
def test_folding_keeps_codes_and_brings_reconstructions_back(planted, name, options):
    rows, config = planted[0].float(), _config(name, **options)
    settings = complete(config, steps=30, batch_size=64, seed=1, lr=0.01, whiten=True)
    session = Session(config, settings, torch.device("cpu"), {}, None, rows[:1_000])
    for step in range(30):
        session.step(rows[step * 60 :][:64])
    sae, whitener = session.sae.eval(), session.whitener
    assert whitener is not None
    z = whitener(rows)
    codes, x_hat = sae.encode(z), sae(z).x_hat
    assert codes.count_nonzero() > 1_000
    raw = session.finish(1, 1.0).sae
    assert (raw.encode(rows) - codes).abs().max() <= 1e-5 * codes.abs().max()
    brought = x_hat @ whitener.back + whitener.mean
    assert (raw(rows).x_hat - brought).abs().max() < 1e-5 * rows.abs().max()


def test_decoder_rows_have_norm_1_in_the_whitened_space_and_callbacks_see_it(planted):
    rows, seen = planted[0].float(), []
    watch = [lambda event: seen.append(event.sae.W_dec.norm(dim=1)) if event.name == "log" else None]
    run = train(_config(), rows, whiten=True, callbacks=watch, **TINY)
    assert torch.allclose(seen[-1], torch.ones(24), atol=1e-5)
    assert (run.sae.W_dec.norm(dim=1) - 1).abs().max() > 1
    assert run.config == run.sae.config == _config()


def test_a_whitened_run_resumes_bit_for_bit_and_is_read_back(planted, tmp_path):
    rows = planted[0].float()

    def stop(event):
        if event.name == "log" and event.step == 13:
            raise KeyboardInterrupt

    given = {"whiten": Whitening(0.1), "held_out": 100} | TINY
    whole = train(_config(), rows, **given)
    part = train(_config(), rows, out=tmp_path, callbacks=[stop], **given)
    assert not part.finished
    whitener, unseen = whitening.fit(rows[:-100], Whitening(0.1)), rows[-100:]
    measured = fvu(whitener(unseen), whitener(whole.sae(unseen).x_hat))
    assert whole.history[-1].held_out_fvu == pytest.approx(measured, rel=0.01)
    rest = train(_config(), rows, out=tmp_path, **given)
    assert rest.history == whole.history
    assert rest.sae.fingerprint() == whole.sae.fingerprint() == Run.load(tmp_path).sae.fingerprint()
    assert train(_config(), rows, out=tmp_path, **given).sae.fingerprint() == whole.sae.fingerprint()
    with pytest.raises(ConfigError, match=r"settings.whiten"):
        train(_config(), rows, out=tmp_path, **given | {"whiten": True})


def test_directions_of_small_variance_are_learned_only_where_rows_are_whitened(planted):
    """Of 8 independent directions plain training explains the longest, whitened training each alike."""
    rows, _, axes = planted[0].float(), planted[1], planted[2].float()
    arguments = TINY | {"steps": 400, "lr": 0.003}
    config = _config(k=4)
    worst = {}
    for whiten in (False, Whitening(0.0)):
        sae = train(config, rows, whiten=whiten, **arguments).sae
        error = ((sae(rows).x_hat - rows) @ axes).square().mean(0) / DEVIATIONS.square()
        worst[bool(whiten)] = error
    assert worst[False].max() > 10 * worst[False].min()
    assert worst[False].max() > 0.9
    assert worst[True].max() < 0.7


@pytest.mark.parametrize(
    ("config", "more", "says"),
    [
        (_config(normalise="layernorm"), {}, "whiten needs normalise='none' or 'scalar'.*'layernorm'"),
        (_config(dictionary="archetypal"), {}, "whiten needs dictionary='free'.*'archetypal'"),
        (_config(), {"whiten": 0.1}, "whiten must be True or a saelab.training.Whitening. Got 0.1"),
        (recipe("matching_pursuit", d_in=8, d_sae=24), {}, "pre-activations alone"),
        (recipe("transcoder", d_in=8, d_sae=24, d_out=8, k=2), {}, "reconstruct what they read"),
    ],
)
def test_what_cannot_be_folded_is_refused(planted, config, more, says):
    rows = planted[0].float()
    acts = (rows, rows) if config.d_out else rows
    with pytest.raises(ConfigError, match=says):
        train(config, acts, **{"whiten": True} | more, **TINY)


def test_a_singular_covariance_is_refused_or_shrunk(planted):
    rows = planted[0].float()
    flat = torch.cat([rows[:, :7], rows[:, :1]], 1)
    with pytest.raises(ConfigError, match=r"shrinkage=0\.01"):
        train(_config(), flat, whiten=Whitening(0.0), **TINY)
    assert train(_config(), flat, whiten=Whitening(0.01), **TINY).finished
    with pytest.raises(ConfigError, match="share between 0 and 1"):
        Whitening(1.5)
