"""What `saelab.evaluate` measures of a language model, beside the formulas of SAELens and of
dictionary_learning by hooks of this test's own; and passes that several SAEs share."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import saelab
from saelab.analysis import splicing, suites
from saelab.analysis.sources import Ground, Kept

HOOK = "blocks.2.hook_resid_post"
TEXTS = [
    "When Rosa and Tobin went to the market, Rosa gave the basket to Tobin.",
    "The war lasted from the year 1732 to the year 1741.",
    "Omar liked the soup, and it was very good.",
]


@pytest.fixture(scope="module")
def subject():
    return saelab.load_subject(saelab.embedded.model_folder())


@pytest.fixture(scope="module")
def sae():
    return saelab.SAE.load(saelab.embedded.sae_folder())


@pytest.fixture(scope="module")
def by_hooks(subject, sae):
    """Activations, codes, and logits with other things in their place, text by text and without padding."""
    model, found = subject.model, []
    layer = model.transformer.h[2]

    def logits(ids, new=None):
        def hook(module, args, output):
            tensor = output if isinstance(output, torch.Tensor) else output[0]
            kept.append(tensor.clone())
            if new is None:
                return output
            tensor = torch.cat([tensor[:, :1], new[None].to(tensor)], 1)  # BOS is no row
            return tensor if isinstance(output, torch.Tensor) else (tensor, *output[1:])

        kept = []
        handle = layer.register_forward_hook(hook)
        with torch.no_grad():
            out = model(ids).logits
        handle.remove()
        return out, kept[0][0, 1:]

    for text in TEXTS:
        ids = torch.tensor([subject.to_tokens(text)])
        clean, x = logits(ids)
        with torch.no_grad():
            codes = sae.encode(x)
            x_hat = sae.decode(codes)
        spliced, zeroed = logits(ids, x_hat)[0], logits(ids, torch.zeros_like(x))[0]
        found.append((ids, x, codes, x_hat, clean, spliced, zeroed))
    return found


@pytest.fixture(scope="module")
def report(subject, sae):
    return saelab.evaluate(sae, subject, TEXTS)


def _ce(logits, ids):
    return F.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="none")


def _kl(clean, other):
    """SAELens': torch's KL of softmax and log-softmax, at every position."""
    return F.kl_div(other.log_softmax(-1), clean.softmax(-1), reduction="none").sum(-1)[0]


def test_scores_of_rows_are_those_of_the_peers(by_hooks, report):
    x, codes, x_hat = (torch.cat([each[i] for each in by_hooks]) for i in (1, 2, 3))
    lengths = x.norm(dim=-1), x_hat.norm(dim=-1)
    variance = x.double().square().sum(1).mean() - x.double().mean(0).square().sum()
    both = {  # what SAELens and dictionary_learning compute alike
        "l0": (codes != 0).float().sum(-1).mean(),
        "l1": codes.abs().sum(-1).mean(),
        "cosine": ((x / lengths[0][:, None]) * (x_hat / lengths[1][:, None])).sum(-1).mean(),
        "relative_bias": lengths[1].square().mean() / (x * x_hat).sum(-1).mean(),
    }
    saelens = {
        "fvu": (x - x_hat).square().sum(1).double().mean() / variance,  # 1 - explained_variance
        "mse": (x - x_hat).square().sum(-1).mean() / x.shape[1],
    }
    theirs = {
        "error_norm": torch.linalg.norm(x - x_hat, dim=-1).mean(),
        "dead": 1 - codes.any(dim=0).float().mean(),
    }
    for name, value in {**both, **saelens, **theirs}.items():
        assert report.scores[name].value == pytest.approx(float(value), rel=1e-5), name
    assert report.n_rows == len(x)
    # dictionary_learning's share of the variance forgives the mean error, as the docstring says
    forgiving = float(1 - (x - x_hat).var(dim=0).sum() / x.var(dim=0).sum())
    mean_error = (x - x_hat).double().mean(0).square().sum() / variance
    n = len(x)
    assert 1 - forgiving == pytest.approx((report.sae.fvu - float(mean_error)), rel=1e-4)
    assert forgiving > 1 - report.sae.fvu, n


def test_losses_and_divergences_are_those_of_the_peers(by_hooks, report):
    ce = {
        name: torch.cat([_ce(each[i], each[0]) for each in by_hooks]).double().mean().item()
        for name, i in (("clean", 4), ("spliced", 5), ("zeroed", 6))
    }
    assert report.loss_clean == pytest.approx(ce["clean"], rel=1e-5)
    assert report.loss_zeroed == pytest.approx(ce["zeroed"], rel=1e-5)
    assert report.sae.loss == pytest.approx(ce["spliced"], rel=1e-5)
    score = (ce["zeroed"] - ce["spliced"]) / (ce["zeroed"] - ce["clean"])
    assert report.scores["loss_recovered_zero"].value == pytest.approx(score, rel=1e-5)
    kl, zeroed = (
        torch.cat([_kl(each[4], each[i])[:-1] for each in by_hooks]).double().mean().item() for i in (5, 6)
    )
    assert report.scores["kl"].value == pytest.approx(kl, rel=1e-5)
    assert report.scores["kl_recovered_zero"].value == pytest.approx((zeroed - kl) / zeroed, rel=1e-5)


HOOKS = (
    ("blocks.0.hook_resid_pre",),
    ("blocks.1.hook_resid_post",),
    ("blocks.3.hook_resid_post",),  # nothing but the head comes after it
    ("blocks.2.attn.hook_z",),
    ("blocks.1.hook_mlp_out",),
    ("blocks.1.attn.hook_q",),  # read on another copy of the model
    ("blocks.3.hook_resid_post", "blocks.1.hook_resid_post"),
)


@pytest.mark.parametrize("hooks", HOOKS)
def test_the_error_added_back_gives_the_clean_loss(hooks, subject, monkeypatch):
    if len(hooks) == 1:
        sae = saelab.SAE.create(saelab.recipe("topk", d_in=128, d_sae=64, k=4, hook=hooks[0]))
    else:
        sae = saelab.SAE.create(
            saelab.recipe("crosscoder", hooks=hooks, widths=(128, 128), d_in=256, d_sae=64, k=4)
        )
    source = Ground.of(subject, TEXTS, None, 2, 0).source(sae)
    monkeypatch.setattr(splicing, "middle", lambda *_: (0, None))
    whole = Ground.of(subject, TEXTS, None, 2, 0).source(sae)
    for block, again in zip(source.blocks(), whole.blocks(), strict=True):
        with torch.no_grad():
            x_hat = sae(block.x).x_hat
        mean = block.y.mean(0)
        base = source.losses(block, mean)
        back = source.spliced(block, x_hat + (block.y - x_hat), base)
        np.testing.assert_allclose(back.loss, base.clean, rtol=1e-5)
        assert abs(back.kl / back.n).max() < 2e-6
        # a pass that goes on from the middle is a pass
        found, there = source.spliced(block, x_hat, base), whole.losses(again, mean)
        assert (abs(found.loss - base.clean) > 0.1).any()
        whole_found = whole.spliced(again, x_hat, there)
        for name in ("n", "clean", "ablated", "zeroed", "loss"):
            np.testing.assert_allclose(getattr(found, name), getattr(whole_found, name), rtol=1e-5)
        for name in ("kl", "kl_zeroed"):
            np.testing.assert_allclose(getattr(found, name), getattr(whole_found, name), rtol=1e-4)
        np.testing.assert_allclose(source.loss(block, x_hat), found.loss, rtol=1e-6)


@pytest.mark.parametrize(("suite", "passes"), [("errors", 1 + 4), ("dark_matter", 1 + 1 + 6)])
def test_suites_make_no_pass_whose_loss_they_do_not_tell(suite, passes, subject, sae, monkeypatch):
    # on a real model passes are what an evaluation waits for; those up to the rows are kept
    asked = suites.registered()[suite]()
    ground = Ground.of(subject, [text * 12 for text in TEXTS * 5], None, 16, 0)
    [_] = ground.source(sae).blocks()
    made: list[int] = []
    logp = splicing.Splicing._logp
    monkeypatch.setattr(splicing.Splicing, "_logp", lambda *a: made.append(1) or logp(*a))
    asked.run(sae, ground)
    assert len(made) == passes


def test_several_saes_share_the_passes_and_score_as_alone(subject, sae, monkeypatch):
    other = saelab.SAE.create(saelab.recipe("relu", d_in=128, d_sae=32, hook=HOOK), seed=3)
    twin = saelab.SAE.create(sae.config, seed=5)
    elsewhere = saelab.SAE.load(saelab.embedded.sae_folder("blocks.1.hook_resid_post"))
    saes = {"a": sae, "relu": other, "twin": twin, "elsewhere": elsewhere}
    alone = {name: saelab.evaluate(each, subject, TEXTS) for name, each in saes.items()}
    read: list[str] = []
    run = type(subject).run

    def counted(self, inputs, read_=(), edits=(), **options):
        read.append("read" if options.get("read") else "whole")
        return run(self, inputs, **({"edits": edits} | options))

    monkeypatch.setattr(type(subject), "run", counted)
    found = saelab.evaluate(saes, subject, TEXTS)
    for name, report in alone.items():
        own, other = found[name].core.tables["densities"], report.core.tables["densities"]
        assert own.equals(other)
        assert replace(found[name], core=report.core) == report, name
    # two places, each read once; there clean, mean, zeros, and an SAE and its untrained one: twins share that
    assert read.count("read") == 2
    assert read.count("whole") == (3 + 3 + 2) + (3 + 1 + 1)


def test_passes_that_do_not_fit_are_made_again(subject, sae):
    corpus = saelab.corpora.world(seed=2, n_documents=40)
    ground = Ground.of(subject, corpus, None, 4, 0)
    small = replace(ground, kept=Kept(most=100_000))
    runs = []
    for each in (ground, small):
        source = each.source(sae)
        first, second = list(source.blocks()), list(source.blocks())
        assert all(torch.equal(a.x, b.x) for a, b in zip(first, second, strict=True))
        runs.append([a.x is b.x for a, b in zip(first, second, strict=True)])
    assert all(runs[0])
    assert not any(runs[1])


def test_the_table_of_densities_is_a_histogram_of_all_latents(subject, sae, report, by_hooks):
    table = report.core.tables["densities"]
    codes = torch.cat([each[2] for each in by_hooks])
    share = (codes != 0).double().mean(0).numpy()
    assert table["this SAE"].sum() == table["untrained SAE"].sum() == sae.d_sae
    assert table["this SAE"][0] == (share == 0).sum()
    for low, high, n in table[["from", "to", "this SAE"]].iloc[1:].itertuples(index=False):
        assert ((share > low * (1 + 1e-12)) & (share <= high * (1 + 1e-12))).sum() == n
