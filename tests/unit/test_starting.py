"""Runs that start from an SAE: what is taken, what moves, latents that are split, what is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

import saelab
from saelab.sae import SAE, SAEConfig
from saelab.training import Origin, Run, Start, estimate
from saelab.types import ConfigError, ShapeError

D_IN, D_SAE = 16, 48
RECIPES = {
    "topk": {"k": 4},
    "batchtopk": {"k": 4},
    "matryoshka": {"k": 4},
    "abs_topk": {"k": 4},
    "relu": {},
    "jumprelu": {},
    "gated": {"gate_bias": True},
    "transcoder": {"k": 4},
    "skip_transcoder": {"k": 4, "sparsity": "jumprelu"},
    "crosscoder": {"k": 4, "widths": (10, 6)},
}


def rows(seed: int = 0, n: int = 2000) -> torch.Tensor:
    """Sparse sums of 40 directions, off centre."""
    generator = torch.Generator().manual_seed(7)
    directions = torch.nn.functional.normalize(torch.randn(40, D_IN, generator=generator), dim=1)
    generator.manual_seed(seed)
    return (torch.randn(n, 40, generator=generator) - 1).relu() @ directions + 0.3


def given(config: SAEConfig):
    x = rows()
    return x if config.d_out is None else (x, x.roll(1, dims=1) * 2 + 1)


def train(config: SAEConfig, steps: int = 100, **how) -> Run:
    return saelab.train(
        config, given(config), **{"steps": steps, "batch_size": 200, "progress": False, **how}
    )


def config_of(name: str, m: int = 1) -> SAEConfig:
    options = dict(RECIPES[name])
    if "k" in options:
        options["k"] *= m
    out = D_IN if "transcoder" in name else None
    return saelab.recipe(name, d_in=D_IN, d_sae=m * D_SAE, d_out=out, **options)


@pytest.fixture(scope="module", params=RECIPES)
def parent(request) -> SAE:
    return train(config_of(request.param), steps=60).sae


def outputs(sae: SAE) -> torch.Tensor:
    with torch.no_grad():
        return sae(rows(1)).x_hat


def off(a: torch.Tensor, b: torch.Tensor) -> float:
    """Share of the variance."""
    return float((a - b).square().sum() / (a - a.mean(0)).square().sum())


@pytest.mark.parametrize("m", [1, 2, 3])
def test_a_run_starts_where_the_sae_is_and_children_add_up_to_their_parent(parent, m):
    """Seen by a step of no length on the decoder alone, so that thresholds of batches stand still."""
    config = config_of(parent.config.recipe, m)
    start = Start(parent, trained=("W_dec",), noise=0)
    child = train(config, steps=1, lr=1e-30, start=start).sae
    assert off(outputs(parent), outputs(child)) < 1e-11
    noisy = train(config, steps=1, lr=1e-30, start=replace(start, noise=0.001)).sae
    assert off(outputs(parent), outputs(noisy)) < 1e-3
    if m > 1:
        pairs = noisy.W_enc.detach().t().unflatten(0, (D_SAE, m))
        assert not torch.equal(pairs[:, 0], pairs[:, 1])
        torch.testing.assert_close(pairs.sum(1), parent.W_enc.detach().t(), atol=1e-5, rtol=1e-4)


def test_children_part_and_the_wider_sae_explains_more():
    x = rows(n=4000)
    config = saelab.recipe("topk", d_in=D_IN, d_sae=12, k=2)
    fit = {"batch_size": 200, "progress": False, "steps": 600}
    parent = saelab.train(config, x, **fit).sae
    wide = replace(config, d_sae=24, options={**config.options, "k": 4})
    child = saelab.train(wide, x, start=parent, **fit).sae
    longer = saelab.train(config, x, start=parent, **fit).sae
    fvu = {}
    for name, sae in {"child": child, "longer": longer}.items():
        fvu[name] = off(rows(1), outputs(sae))
    assert fvu["child"] < 0.8 * fvu["longer"]
    first, second = child.W_dec.detach().unflatten(0, (12, 2)).unbind(1)
    assert (torch.cosine_similarity(first, second) < 0.98).float().mean() > 0.5


@pytest.mark.parametrize(
    ("trained", "moves"),
    [
        ("all", {"W_enc", "b_enc", "W_dec", "b_dec"}),
        ("encoder", {"W_enc", "b_enc"}),
        ("decoder", {"W_dec"}),
        (("W_dec", "b_dec"), {"W_dec", "b_dec"}),
        (("b_enc",), {"b_enc"}),
    ],
)
@pytest.mark.parametrize("name", ["topk", "batchtopk"])
def test_only_what_is_trained_moves(name, trained, moves):
    parent = train(config_of(name)).sae
    child = train(config_of(name), steps=20, start=Start(parent, trained=trained)).sae
    moved = {
        key.rsplit(".", 1)[-1]
        for key, value in parent.state_dict().items()
        if not torch.equal(value, child.state_dict()[key])
    }
    assert moved - {"threshold", "seen"} == moves
    encoder = not {"W_enc", "b_enc", "b_dec"}.isdisjoint(moves)
    assert ("threshold" in moved) == (name == "batchtopk" and encoder)
    assert all(p.requires_grad for p in child.parameters())


def test_where_the_encoder_knows_no_b_dec_it_is_the_decoders():
    config = saelab.recipe("topk", d_in=D_IN, d_sae=D_SAE, k=4, apply_b_dec_to_input=False)
    parent = train(config).sae
    child = train(config, steps=20, start=Start(parent, trained="decoder")).sae
    assert not torch.equal(parent.b_dec, child.b_dec)
    with torch.no_grad():
        assert torch.equal(parent.encode(rows(1)), child.encode(rows(1)))


def test_a_new_decoder_for_the_old_encoder_and_a_new_encoder_for_the_old_decoder():
    """The lost half is found again: with the codes kept to the bit, or with the directions."""
    config = config_of("topk")
    parent = train(config, steps=400).sae
    x = rows(1)
    old = off(x, outputs(parent))
    found = train(config, steps=400, start=Start(parent, taken="encoder", trained="decoder"), lr=0.01).sae
    with torch.no_grad():
        assert torch.equal(parent.encode(x), found.encode(x))
    assert off(x, outputs(found)) < 1.1 * old
    start = Start(parent, taken="decoder", trained="encoder")
    first = train(config, steps=1, lr=1e-30, start=start).sae
    found = train(config, steps=400, start=start).sae
    assert torch.equal(parent.W_dec, found.W_dec)
    assert off(x, outputs(found)) < 1.1 * old < 0.9 * off(x, outputs(first))
    again = train(config, steps=1, lr=1e-30, start=Start(parent, taken="encoder")).sae
    cosine = torch.cosine_similarity(again.W_dec, parent.W_enc.t())
    torch.testing.assert_close(cosine, torch.ones(D_SAE), atol=1e-5, rtol=0)  # tied_init
    untied = replace(config, options={**config.options, "tied_init": False})
    drawn = train(untied, steps=1, lr=1e-30, start=Start(parent, taken="encoder")).sae
    assert torch.cosine_similarity(drawn.W_dec, parent.W_enc.t()).abs().max() < 0.95


def test_another_k():
    """Thresholds of batches are learned anew then, from the first batch on."""
    parent = train(config_of("batchtopk")).sae
    config = replace(parent.config, options={**parent.config.options, "k": 8})
    run = train(config, steps=3, start=Start(parent, trained="decoder"))
    with torch.no_grad():
        l0 = [(sae.encode(rows(1)) != 0).sum(1).float().mean() for sae in (parent, run.sae)]
    assert l0[0] == pytest.approx(4, rel=0.15)
    assert l0[1] == pytest.approx(8, rel=0.15)
    assert run.history[0].l0 == 8


def test_it_is_kept_with_the_run_and_another_sae_goes_on_with_none_of_it(tmp_path):
    config = config_of("topk", 2)
    parents = [train(config_of("topk"), seed=seed).sae for seed in (0, 1)]
    how = {"steps": 40, "checkpoint_every": 10, "seed": 3}
    whole = train(config, start=parents[0], **how)

    def stop(event):
        if event.step == 25:
            event.live.stop()

    cut = train(config, start=parents[0], out=tmp_path, callbacks=[stop], log_every=1, **how)
    assert not cut.finished
    for other in (parents[1], Start(parents[0], trained="decoder"), Start(parents[0], noise=0.1), None):
        with pytest.raises(ConfigError, match=r"same config, settings and data.*settings\.start"):
            train(config, start=other, out=tmp_path, log_every=1, **how)
    done = train(config, start=parents[0], out=tmp_path, log_every=1, **how)
    assert done.sae.fingerprint() == whole.sae.fingerprint()
    origin = Origin(parents[0].fingerprint(), D_SAE, noise=0.001)
    assert Run.load(tmp_path).settings.start == origin
    assert json.loads((tmp_path / "run.json").read_text())["provenance"]["start"] == origin.weights


def test_several_configs_start_from_one_each_and_shape_the_estimate():
    config, parent = config_of("topk"), train(config_of("topk")).sae
    wide = config_of("topk", 2)
    alone = [train(c, start=s, steps=15) for c, s in ((config, None), (config, parent), (wide, parent))]
    how = {"steps": 15, "batch_size": 200, "progress": False}
    both = saelab.train([config, config, wide], rows(), start=[None, parent, parent], **how)
    assert [r.sae.fingerprint() for r in both] == [r.sae.fingerprint() for r in alone]
    fit = {"steps": 10, "batch_size": 100}
    full, part = estimate(config, **fit), estimate(config, start=Start(parent, trained=("W_dec",)), **fit)
    assert full.weights == part.weights == 4 * (2 * D_IN * D_SAE + D_SAE + D_IN)
    assert part.optimizer == 2 * 4 * D_IN * D_SAE == part.gradients
    assert full.optimizer == 2 * full.weights


def test_an_sae_of_another_format_is_trained_on(tmp_path):
    """Its decoder rows are of no unit norm: a run keeps its function, or is refused."""
    parent = train(config_of("topk")).sae
    parent.dictionary.set(parent.W_dec.detach() * torch.linspace(0.5, 2, D_SAE)[:, None])
    saelab.save_sae(parent, tmp_path, "saelens")
    loaded = saelab.load_sae(tmp_path)
    with pytest.raises(ConfigError, match=r"norms from .* to .*\. Pass decoder_norm='free'"):
        train(loaded.config, start=loaded, steps=5)
    free = replace(loaded.config, options={**loaded.config.options, "decoder_norm": "free"})
    same = train(free, start=loaded, steps=1, lr=1e-30).sae
    assert off(outputs(parent), outputs(same)) < 1e-10
    before, after = off(rows(1), outputs(loaded)), train(free, start=loaded, steps=200).sae
    assert off(rows(1), outputs(after)) < 0.9 * before


def start_from(parent: SAE, how: dict, config: SAEConfig) -> Run:
    acts = torch.randn(300, config.d_in)
    return saelab.train(config, acts, steps=2, batch_size=100, start=Start(parent, **how))


@pytest.mark.parametrize(
    ("error", "match", "name", "change", "how"),
    [
        (ConfigError, "recipe, 'relu'. Got 'topk'. Make the config by", "relu", {}, {}),
        (ShapeError, "d_in=17. Got one of 16", "topk", {"d_in": 17}, {}),
        (ShapeError, "multiple.*Got 100. Pass d_sae=96", "topk", {"d_sae": 100}, {}),
        (ShapeError, "multiple.*Got 40. Pass d_sae=48", "topk", {"d_sae": 40}, {}),
        (ConfigError, "own normalise='none'.*Got one of 'scalar'", "topk", {"normalise": "none"}, {}),
        (
            ConfigError,
            "'all', 'encoder', 'decoder'.* Did you mean 'encoder'",
            "topk",
            {},
            {"taken": "encodr"},
        ),
        (ConfigError, "name weights of the SAE.*'W_encc'.*'W_enc'", "topk", {}, {"trained": ("W_encc",)}),
        (ConfigError, "noise must be at least 0", "topk", {}, {"noise": -1}),
        (ConfigError, "resample_every=None", "topk", {"resample_every": 5}, {"trained": "encoder"}),
    ],
)
def test_what_does_not_fit_is_refused(error, match, name, change, how):
    parent = SAE.create(config_of("topk"))
    options = {"d_in": D_IN, "d_sae": D_SAE, **change}
    with pytest.raises(error, match=match):
        start_from(parent, how, saelab.recipe(name, **options))


def test_what_has_no_parts_or_children_is_refused():
    for name in ("gba", "matching_pursuit"):
        config = saelab.recipe(name, d_in=D_IN, d_sae=D_SAE)
        parent = SAE.create(config)
        assert train(config, start=parent, steps=2).sae.d_sae == D_SAE
        with pytest.raises(ConfigError, match="neither is made of the other"):
            train(config, start=Start(parent, trained="decoder"), steps=2)
        with pytest.raises(ConfigError, match="cannot be split"):
            train(replace(config, d_sae=2 * D_SAE), start=parent, steps=2)
    frozen = saelab.recipe("topk", d_in=D_IN, d_sae=D_SAE, k=4, dictionary="frozen")
    with pytest.raises(ConfigError, match="must train something"):
        train(frozen, start=Start(SAE.create(frozen), trained="decoder"), steps=2)
    aimed = saelab.recipe("relu", d_in=D_IN, d_sae=D_SAE, target_l0=5)
    with pytest.raises(ConfigError, match="target_l0 moves the encoder"):
        train(aimed, start=Start(SAE.create(aimed), trained=("W_dec",)), steps=2)
    with pytest.raises(ConfigError, match="one for each of the 1 configs"):
        train(aimed, start=[None, None], steps=2)
    with pytest.raises(ConfigError, match=r"A run starts from an SAE\. Got 'run'"):
        train(aimed, start="run", steps=2)
