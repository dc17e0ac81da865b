"""Variational codes: the divergence, the sampling, and the mode that is an L2 penalty."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from saelab.sae import SAE, recipe
from saelab.training import LOSSES, train
from saelab.training.losses import Firing, Progress


def _normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _sae(**options) -> tuple[SAE, torch.Tensor]:
    """An SAE whose log variances differ from latent to latent and from row to row where they are learned."""
    x = _normal(80, 8) + 1
    config = recipe("variational", d_in=8, d_sae=24, **{"k": 3, "kl_warmup": 0.0, "kl": 0.1} | options)
    sae = SAE.create(config, 0, x).train()
    if sae.sparsifier.sigma is None:
        with torch.no_grad():
            sae.sparsifier.W_var.copy_(_normal(8, 24, seed=1))
            sae.sparsifier.b_var.copy_(torch.linspace(-4, 1, 24))
    return sae, x


@pytest.mark.parametrize("sigma", [None, 0.3, 1.0])
def test_the_divergence_is_that_of_all_gaussians(sigma):
    """Beside torch.distributions, and beside an average over draws."""
    sae, x = _sae(sigma=sigma)
    part, inputs = sae.sparsifier, sae.centred(x)[0]
    forward = sae(x)._replace(pre=_normal(80, 24, seed=3))  # an SAE that starts has means near 0
    found = part.kl(forward.pre, inputs).detach()
    scale = (part.log_variance(inputs) / 2).exp().expand_as(forward.pre).detach()
    q, p = Normal(forward.pre.detach().relu(), scale), Normal(0.0, 1.0)
    torch.testing.assert_close(found, kl_divergence(q, p).sum(1), rtol=1e-5, atol=1e-5)
    loss = LOSSES["kl"](sae.config, Progress(10, 1.0, Firing(24, 10)))(sae, forward)
    torch.testing.assert_close(loss, 0.1 * found.mean())
    drawn = q.mean + q.stddev * _normal(2_000, *forward.pre.shape, seed=2)
    estimate = (q.log_prob(drawn) - p.log_prob(drawn)).sum(2).mean(0)
    assert float((estimate.mean() - found.mean()).abs()) <= 0.01 * float(found.mean())


def test_codes_are_drawn_with_the_variance_that_is_learned():
    sae, x = _sae(k=24)
    part, row = sae.sparsifier, sae.centred(x[:1])[0]
    pre, inputs = torch.full((40_000, 24), 20.0), row.expand(40_000, -1)  # far above where codes are clipped
    codes = part(pre, inputs, None).detach()
    expected = part.log_variance(row)[0].exp().detach()
    assert expected.max() > 20 * expected.min()
    torch.testing.assert_close(codes.var(0), expected, rtol=0.04, atol=0)
    assert float((codes.var(0) / expected).mean()) == pytest.approx(1, abs=0.01)
    torch.testing.assert_close(codes.mean(0), torch.full((24,), 20.0), rtol=2e-3, atol=0)
    # a gradient reaches the variance through the codes alone
    part(pre[:50], inputs[:50], None).square().sum().backward()
    assert part.b_var.grad.abs().min() > 0
    assert part.W_var.grad.any()


@pytest.mark.parametrize("sigma", [None, 0.3])
def test_training_samples_and_evaluation_does_not(sigma):
    sae, x = _sae(sigma=sigma)
    one, two = sae.encode(x) != 0, sae.encode(x) != 0
    overlap = ((one & two).sum(1) / (one | two).sum(1)).mean()
    assert 0 < float(overlap) < 1
    sae.sparsifier.draws -= 2  # the noise of a step follows from its number
    assert torch.equal(sae.encode(x) != 0, one)
    sae.eval()
    assert torch.equal(sae.encode(x), sae.encode(x))
    topk = SAE.create(recipe("topk", d_in=8, d_sae=24, k=3), 0, x)
    topk.load_state_dict({key: sae.state_dict()[key] for key in topk.state_dict()})
    assert torch.equal(sae.encode(x), topk.encode(x))


@pytest.mark.parametrize("sparse", [False, True])
def test_without_sampling_it_is_topk_with_an_l2_penalty(sparse):
    """Loss and gradients, to 1e-6; and it is called what it is."""
    sae, x = _sae(sampling=False, sigma=1.0, kl=0.2)
    topk = SAE.create(recipe("topk", d_in=8, d_sae=24, k=3), 0, x).train()
    progress = Progress(10, 2.0, Firing(24, 10))
    forward = sae(x, sparse=sparse)
    assert torch.equal(sae.encode(x), topk.encode(x))
    found = sum(LOSSES[name](sae.config, progress)(sae, forward) for name in ("mse", "kl"))
    plain = topk(x)
    size = 0.1 * plain.pre.relu().square().sum(1).mean()
    expected = LOSSES["mse"](topk.config, progress)(topk, plain) + size
    assert float((found - expected).abs().detach()) <= 1e-6
    for loss in (found, expected):
        loss.backward()
    for name, parameter in topk.named_parameters():
        torch.testing.assert_close(sae.get_parameter(name).grad, parameter.grad, rtol=1e-5, atol=1e-6)
    assert "L2 penalty" in sae.config.title
    assert "not sampled" in sae.config.title
    assert "L2 penalty" in str(sae)


def test_sampling_costs_more_the_larger_it_is():
    """The negative result of the audit: what the model has learned to select is lost in the noise."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(48, 24, generator=generator), dim=1)
    on = torch.rand(9_000, 48, generator=generator) < 3 / 48
    x = (on * (0.5 + torch.rand(9_000, 48, generator=generator))) @ directions
    error = []
    for sigma in (0.01, 0.1, 0.5):
        config = recipe("variational", d_in=24, d_sae=64, k=3, sigma=sigma, kl=0.0)
        run = train(config, x, steps=300, batch_size=256, progress=False)
        error.append(run.history[-1].fvu)
    assert error[0] < error[1] < error[2]
    assert error[2] > 3 * error[0]
