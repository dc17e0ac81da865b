"""Options that users of other libraries train with: what they do, and where they are refused. Their numbers
are held against the originals in tests/golden/test_golden_peers_training.py."""

from __future__ import annotations

import pytest
import torch

import saelab
from saelab.sae import SAE
from saelab.sae.batchwise import BatchTopK
from saelab.sae.dictionaries import Free, Joint
from saelab.sae.sparsifiers import TopK
from saelab.types import ConfigError


def recipe(name: str, **options):
    return saelab.recipe(name, d_in=12, d_sae=48, **options)


def rows(n: int = 2000) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    directions = torch.nn.functional.normalize(torch.randn(30, 12, generator=generator), dim=1)
    return (torch.randn(n, 30, generator=generator) - 1).relu() @ directions


def train(config, **how):
    return saelab.train(config, rows(), **{"steps": 150, "batch_size": 200, "progress": False, **how})


def test_the_pre_activation_loss_brings_back_latents_that_nothing_else_reaches():
    options = {"threshold": 0.5, "aux_coefficient": 0.0, "dead_after": 400}
    dead = {
        weight: train(recipe("jumprelu", **options, pre_act_loss=weight), steps=400).history[-1].dead
        for weight in (0.0, 0.3)
    }
    assert dead[0.0] > 0.1
    assert dead[0.3] < 0.5 * dead[0.0]


@pytest.mark.parametrize("few", [False, True])
@pytest.mark.parametrize("of", ["dead", "all"])
def test_the_pre_activation_loss_is_its_formula(few, of, monkeypatch):
    from saelab.sae import sparsifiers
    from saelab.training.losses import LOSSES, Firing, Progress

    monkeypatch.setattr(sparsifiers, "DENSE", 1 if few else 10**6)
    config = recipe("jumprelu", pre_act_loss=0.7, pre_act_of=of, decoder_norm="free", threshold=0.4)
    sae = SAE.create(config, rows=rows()).train()
    sae.dictionary.set(sae.W_dec.detach() * torch.linspace(0.5, 2, 48)[:, None])
    firing = Firing(48, 10)
    firing.since[::3] = 10
    x = rows(60)
    LOSSES["pre_act"](config, Progress(10, 4.0, firing))(sae, sae(x, sparse=True)).backward()
    ours = [sae.W_enc.grad, sae.b_enc.grad, sae.b_dec.grad, sae.sparsifier.log_threshold.grad]
    ours = [each.clone() for each in ours]
    sae.zero_grad()
    pre = (x / sae.input_scale - sae.b_dec) @ sae.W_enc + sae.b_enc
    below = (sae.sparsifier.log_threshold.exp() - pre).relu() * sae.W_dec.norm(dim=1)
    chosen = below if of == "all" else below[:, ::3]
    (0.7 * chosen.sum(1).mean() / 2).backward()
    theirs = [sae.W_enc.grad, sae.b_enc.grad, sae.b_dec.grad, sae.sparsifier.log_threshold.grad]
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("k", [0.3, 0.75, 2.5])
def test_batches_keep_a_fraction_of_a_latent_a_row(k):
    """int(k n) of the batch, and about as many a row afterwards."""
    run = train(recipe("batchtopk", k=k), steps=300)
    assert all(record.l0 == int(k * 200) / 200 for record in run.history)
    with torch.no_grad():
        assert (run.sae.encode(rows()) != 0).sum() / 2000 == pytest.approx(k, rel=0.15)
    fallen = train(recipe("batchtopk", k=k, k_start=8, k_anneal=0.5))
    l0 = [record.l0 for record in fallen.history]
    assert l0[0] > 7.8
    assert l0[-1] == int(k * 200) / 200


def test_ranked_by_decoder_norm():
    """As if the norms were in the encoder already; equal to the plain choice where they are 1."""
    generator = torch.Generator().manual_seed(0)
    pre = torch.randn(50, 9, generator=generator)
    dictionary = Free(9, 4)
    dictionary.set(torch.randn(9, 4, generator=generator))
    norms = dictionary.norms().detach()
    for part, plain in ((TopK(3, True), TopK(3)), (BatchTopK(1.5, 0.9, True), BatchTopK(1.5, 0.9))):
        chosen = part.train()(pre, pre, dictionary)
        torch.testing.assert_close(chosen * norms, plain.train()(pre * norms, pre, dictionary))
        assert not torch.equal(chosen != 0, plain(pre, pre, dictionary) != 0)
        dictionary_of_one = Free(9, 4)
        dictionary_of_one.set(torch.nn.functional.normalize(dictionary(), dim=1))
        assert torch.equal(part(pre, pre, dictionary_of_one) != 0, plain(pre, pre, dictionary_of_one) != 0)


@pytest.mark.parametrize("name", ["topk", "batchtopk", "matryoshka"])
def test_ranked_by_decoder_norm_it_trains_and_goes_to_other_libraries(name, tmp_path):
    run = train(recipe(name, k=4, by_norm=True, decoder_norm="free"))
    assert run.history[-1].fvu < 0.5 * run.history[0].fvu
    with torch.no_grad():
        norms = run.sae.W_dec.norm(dim=1)
        assert norms.max() / norms.min() > 1.02
        for form in ("saelens", "dictionary_learning"):
            saelab.save_sae(run.sae, tmp_path / form, form)
            back = saelab.load_sae(tmp_path / form)
            torch.testing.assert_close(back(rows()).x_hat, run.sae(rows()).x_hat, atol=2e-5, rtol=1e-4)


def test_a_crosscoders_directions_have_a_norm_of_each_place_or_of_all():
    apart, whole = Joint(5, (3, 4)), Joint(5, (3, 4), whole=True)
    W = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    for each in (apart, whole):
        each.set(W)
    torch.testing.assert_close(apart.norms(), W[:, :3].norm(dim=1) + W[:, 3:].norm(dim=1))
    torch.testing.assert_close(whole.norms(), W.norm(dim=1))
    for sparsity in ("batchtopk", "l1"):
        runs = [
            train(recipe("crosscoder", widths=(5, 7), k=4, sparsity=sparsity, norms=norms))
            for norms in ("sum", "joint")
        ]
        assert runs[0].sae.fingerprint() != runs[1].sae.fingerprint()
        assert max(run.history[-1].fvu for run in runs) < 0.6


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("topk", {"k": 0.5}, r"k must be whole.*Got 0\.5.*batchtopk"),
        ("batchtopk", {"k": 0.0}, r"k must be above 0.*Got 0\.0"),
        ("batchtopk", {"k": 48.5}, "at most d_sae=48"),
        ("topk", {"k": 4, "by_norm": True}, "decoder_norm='free'"),
        ("topk", {"by_norm": True, "decoder_norm": "free", "dictionary": "frozen"}, "not of norm 1"),
        ("relu", {"by_norm": True}, "no option 'by_norm'"),
        ("topk", {"pre_act_loss": 0.1}, "no option 'pre_act_loss'"),
        ("jumprelu", {"pre_act_loss": -1}, "at least 0"),
        ("jumprelu", {"pre_act_los": 0.1}, r"no option 'pre_act_los'\. Did you mean 'pre_act_loss'"),
        ("crosscoder", {"widths": (5, 7), "norms": "mean"}, "'sum', 'joint'"),
        ("crosscoder", {"widths": (5, 7), "sparsity": "topk", "k": 0.5}, "k must be between 1"),
    ],
)
def test_they_are_refused_where_they_have_no_meaning(name, options, match):
    with pytest.raises(ConfigError, match=match):
        recipe(name, **options)
    with pytest.raises(ConfigError, match="sparsity='jumprelu'"):
        recipe("transcoder", d_out=3, sparsity="topk", pre_act_loss=0.1)
