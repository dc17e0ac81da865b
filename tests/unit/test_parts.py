"""Dictionaries that are not free, matching pursuit, transcoders, crosscoders and per-row normalisation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import saelab
from saelab.sae import SAE, fvu, recipe
from saelab.sae.dictionaries import Archetypal, Free, Joint
from saelab.sae.sparsifiers import MatchingPursuit
from saelab.training import train
from saelab.types import ConfigError, HookError, ShapeError


def _normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _directions(n: int, width: int, seed: int) -> torch.Tensor:
    return torch.nn.functional.normalize(_normal(n, width, seed=seed), dim=1)


def _codes(n: int, n_features: int, k: float, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1_000 + seed)
    on = torch.rand(n, n_features, generator=generator) < k / n_features
    return on * (0.5 + torch.rand(n, n_features, generator=generator))


def _found(directions: torch.Tensor, rows: torch.Tensor) -> float:
    """Share of directions that some row meets at a cosine of .9."""
    return float(((directions @ torch.nn.functional.normalize(rows, dim=1).t()).amax(1) > 0.9).float().mean())


# frozen


def test_a_frozen_dictionary_stays_as_it_was_drawn_while_its_encoder_learns(tmp_path):
    x = _codes(4_000, 30, 2, 0) @ _directions(30, 16, 0)
    config = recipe("topk", d_in=16, d_sae=40, k=3, dictionary="frozen")
    start = SAE.create(config, 0, x)
    sae = train(config, x, steps=150, batch_size=256, progress=False).sae
    assert torch.equal(sae.W_dec, SAE.create(config, 0, x).W_dec)
    assert not torch.allclose(sae.W_enc, start.W_enc, atol=1e-2)
    assert fvu(x, sae(x).x_hat) < 0.9 * fvu(x, start(x).x_hat)
    free = train(replace(config, options=config.options | {"dictionary": "free"}), x, steps=150,
                 batch_size=256, progress=False).sae  # fmt: skip
    assert fvu(x, free(x).x_hat) < 0.8 * fvu(x, sae(x).x_hat)
    assert torch.equal(SAE.load(sae.save(tmp_path / "sae"))(x).x_hat, sae(x).x_hat)


# archetypal


def test_archetypal_rows_stay_near_the_hull(tmp_path):
    x = _codes(6_000, 30, 2, 0) @ _directions(30, 16, 0)
    config = recipe("topk", d_in=16, d_sae=40, k=3, dictionary="archetypal", candidates=60, delta=0.3)
    seen = []

    def look(event):
        dictionary = event.sae.dictionary
        assert (dictionary.W >= 0).all()
        torch.testing.assert_close(dictionary.W.sum(1), torch.ones(40))
        assert (dictionary.R.norm(dim=1) <= 0.3 + 1e-6).all()
        seen.append((dictionary.C.clone(), dictionary.W.detach().clone()))

    run = train(config, x, steps=150, batch_size=256, log_every=1, progress=False, callbacks=[look])
    assert all(torch.equal(C, seen[0][0]) for C, _ in seen)
    assert not torch.equal(seen[0][1], seen[-1][1])
    again = SAE.load(run.sae.save(tmp_path / "sae"))
    part = again.dictionary
    assert isinstance(part, Archetypal)
    far = (part() / part.g.exp() - part.W @ part.C).norm(dim=1)
    assert (far <= 0.3 + 1e-6).all()
    assert fvu(x, again(x).x_hat) < 0.5 * fvu(x, SAE.create(config, 0, x)(x).x_hat)


def test_a_pure_archetypal_dictionary_is_a_mixture_of_data_even_without_enough_of_it():
    x = _normal(7, 5)
    sae = SAE.create(recipe("archetypal", d_in=5, d_sae=12, k=2, candidates=10, delta=0.0), 0, x)
    assert not sae.dictionary.R.any()
    inputs = x / sae.input_scale - sae.b_dec
    nearest = torch.cdist(sae.dictionary.C, inputs).amin(1)
    torch.testing.assert_close(nearest, torch.zeros(10), atol=1e-5, rtol=0)
    torch.testing.assert_close(sae.W_dec, sae.dictionary.W @ sae.dictionary.C)


MIXED = {"k": 3, "dictionary": "archetypal", "candidates": 20, "delta": 0.3}


def test_a_dictionary_that_mixes_all_candidates_is_the_whole_one():
    x = _codes(3_000, 30, 2, 0) @ _directions(30, 16, 0)
    trained = [
        train(
            recipe("topk", d_in=16, d_sae=40, **MIXED, mixed=mixed), x, steps=60, batch_size=256,
            progress=False,
        ).sae
        for mixed in (None, 20, 99)
    ]  # fmt: skip
    whole = trained[0]
    assert not torch.allclose(whole.W_dec, SAE.create(whole.config, 0, x).W_dec, atol=0.05)
    for sae in trained[1:]:
        assert sae.dictionary.W.shape == (40, 20)
        torch.testing.assert_close(sae.W_dec, whole.W_dec, atol=1e-4, rtol=1e-3)


def test_a_direction_mixes_the_candidates_nearest_to_where_it_starts(tmp_path):
    x = _codes(3_000, 30, 2, 0) @ _directions(30, 16, 0)
    config = recipe("topk", d_in=16, d_sae=30, **MIXED, mixed=5)
    part = SAE.create(config, 0, x).dictionary
    assert part.W.shape == part.at.shape == (30, 5)
    start = part.at[:, 0]
    assert torch.equal(part.W, torch.eye(5)[torch.zeros(30, dtype=int)])
    apart = torch.cdist(part.C, part.C)
    for i in range(30):
        nearest = apart[start[i]].topk(5, largest=False).indices
        assert set(part.at[i].tolist()) == set(nearest.tolist())
    assert len(set(start[:20].tolist())) == 20
    with torch.no_grad():
        part.W.copy_(torch.rand(30, 5, generator=torch.Generator().manual_seed(0)))
        part.R.copy_(_normal(30, 16))
        part.project()
        part.g.fill_(0.3)
    by_hand = [sum(part.W[i, n] * part.C[part.at[i, n]] for n in range(5)) + part.R[i] for i in range(30)]
    torch.testing.assert_close(part(), torch.stack(by_hand) * part.g.exp())
    run = train(config, x, steps=100, batch_size=256, progress=False)
    again = SAE.load(run.sae.save(tmp_path / "sae"))
    found = again.dictionary
    assert torch.equal(found.at, run.sae.dictionary.at)
    assert torch.equal(again(x).x_hat, run.sae.eval()(x).x_hat)
    assert (found.W >= 0).all()
    torch.testing.assert_close(found.W.sum(1), torch.ones(30))
    far = (found() / found.g.exp() - found.mixtures()).norm(dim=1)
    assert (far <= 0.3 + 1e-6).all()
    assert fvu(x, again(x).x_hat) < 0.6 * fvu(x, SAE.create(config, 0, x)(x).x_hat)


@pytest.mark.parametrize("shape", ["", "-square"])
@pytest.mark.parametrize("mixed", [None, 9])
def test_archetypal_directions_equal_those_of_overcomplete(shape, mixed):
    golden = Path(__file__).parents[1] / "golden" / "releases"
    case = f"overcomplete/archetypal-raw{shape}"
    state = torch.load(golden / case / "sae.pt", weights_only=True)
    recorded = load_file(golden / "results.safetensors")
    W, C, R = (state[f"dictionary.{name}"] for name in ("W", "C", "Relax"))
    part = Archetypal(len(W), C.shape[1], len(C), 0.4, mixed)
    with torch.no_grad():
        order = torch.arange(len(C)) if mixed is None else torch.randperm(len(C))
        if mixed is not None:
            part.at.copy_(order.expand(len(W), -1))
        for own, theirs in (
            (part.C, C),
            (part.W, W[:, order]),
            (part.R, R),
            (part.g, state["dictionary.multiplier"]),
        ):
            own.copy_(theirs)
        part.project()
        torch.testing.assert_close(recorded[f"{case}/codes"] @ part(), recorded[f"{case}/x_hat"])


def test_many_candidates_are_rows_without_repeats(monkeypatch):
    monkeypatch.setattr("saelab.sae.dictionaries.MOST_CENTRES", 10)
    x = _normal(300, 16)
    part = SAE.create(recipe("topk", d_in=16, d_sae=40, **MIXED, mixed=4, normalise="none"), 0, x).dictionary
    centred = x - x.mean(0)
    near = torch.cdist(part.C, centred, compute_mode="donot_use_mm_for_euclid_dist").min(1)
    assert near.values.max() < 1e-4
    assert len(set(near.indices.tolist())) == 20


def test_resampling_needs_free_rows():
    with pytest.raises(ConfigError, match="resample_every needs free decoder rows"):
        recipe("archetypal", d_in=5, d_sae=12, k=2, resample_every=10)


# matching pursuit


def _pursued(x, W_dec, most, threshold, once):
    """Row by row, in plain Python."""
    codes = torch.zeros(len(x), len(W_dec))
    for i, row in enumerate(x):
        residual = row.clone()
        for _ in range(most):
            if residual.norm() <= threshold:
                break
            product = W_dec @ residual
            j = int(product.argmax())
            if product[j] <= 0 or (once and codes[i, j] != 0):
                break
            step = product[j] / W_dec[j].square().sum()
            codes[i, j] += step
            residual = residual - step * W_dec[j]
    return codes


@pytest.mark.parametrize("once", [True, False])
@pytest.mark.parametrize(("most", "threshold"), [(1, 0.0), (6, 0.0), (20, 0.5), (20, 0.05)])
def test_pursuit_is_its_definition(most, threshold, once):
    dictionary = Free(30, 12)
    dictionary.set(_directions(30, 12, 1) * torch.linspace(0.5, 2, 30)[:, None])
    x = _normal(50, 12) * torch.linspace(0, 1.5, 50)[:, None]
    part = MatchingPursuit(most, threshold, once)
    codes = part(x @ dictionary().t(), x, dictionary)
    expected = _pursued(x, dictionary().detach(), most, threshold, once)
    assert torch.equal(codes != 0, expected != 0)
    torch.testing.assert_close(codes, expected, rtol=1e-4, atol=1e-5)
    assert not codes[0].any()  # a row of zeros


def test_pursuit_on_orthonormal_directions_takes_the_largest_projections():
    directions = torch.linalg.qr(_normal(16, 16))[0]
    dictionary = Free(16, 16)
    dictionary.set(directions)
    x = _normal(200, 16, seed=2)
    product = x @ directions.t()
    codes = MatchingPursuit(5, 0.0, True)(product, x, dictionary)
    kept = product.topk(5, dim=1)
    expected = torch.zeros_like(product).scatter(1, kept.indices, kept.values.relu())
    torch.testing.assert_close(codes, expected, rtol=1e-4, atol=1e-5)


def test_gradients_of_pursuit_are_those_of_its_chain():
    x, W = _normal(9, 6).double(), _directions(14, 6, 3).double()

    def value(W_dec):
        dictionary = Free(14, 6).double()
        dictionary.W_dec = torch.nn.Parameter(W_dec.clone())
        x_hat = MatchingPursuit(3, 0.0, True)(x @ W_dec.t(), x, dictionary) @ dictionary()
        return (x - x_hat).square().sum(), dictionary

    error, dictionary = value(W)
    error.backward()
    # across the rows, where the norms that the rule keeps do not change
    step = _normal(14, 6, seed=4).double()
    step -= (step * W).sum(1, keepdim=True) * W
    slope = (value(W + 1e-6 * step)[0] - value(W - 1e-6 * step)[0]) / 2e-6
    assert float((dictionary.W_dec.grad * step).sum()) == pytest.approx(float(slope.detach()), rel=1e-3)


def test_pursuit_trains_its_directions_and_keeps_the_encoder_tied():
    directions = _directions(32, 24, 5)
    x = _codes(20_000, 32, 3, 5) @ directions
    config = recipe("matching_pursuit", d_in=24, d_sae=48, max_iterations=4, b_dec_init="zeros")
    sae = train(config, x[:18_000], steps=350, batch_size=256, progress=False).sae
    assert torch.equal(sae.W_enc, sae.W_dec.t())
    assert not sae.b_enc.any()
    assert _found(directions, sae.W_dec.detach()) >= 0.9
    untrained = SAE.create(config, 0, x[:1_000])
    held_out = x[18_000:]
    assert fvu(held_out, sae(held_out).x_hat) < 0.4 * fvu(held_out, untrained(held_out).x_hat)


# transcoders


def _pairs(seed: int, linear: float = 0.0):
    """(inputs, targets, input directions, target directions) with one code behind both, and a linear map."""
    reads, writes = _directions(32, 24, seed), _directions(32, 20, 50 + seed)
    codes = _codes(16_000, 32, 2.5, seed)
    x = codes @ reads
    return x, 30 * (codes @ writes + linear * x @ _normal(24, 20, seed=9) / 24**0.5), reads, writes


@pytest.mark.parametrize(
    ("sparsity", "steps", "options"),
    [("topk", 400, {}), ("batchtopk", 900, {}), ("jumprelu", 600, {"l0": 1e-2})],
)
def test_a_transcoder_finds_what_it_reads_and_what_it_writes(sparsity, steps, options, tmp_path):
    x, y, _, writes = _pairs(0)
    config = recipe("transcoder", d_in=24, d_out=20, d_sae=64, k=3, sparsity=sparsity, **options)
    run = train(config, (x[:14_000], y[:14_000]), steps=steps, batch_size=256, out=tmp_path, progress=False)
    sae = run.sae
    assert _found(writes, sae.W_dec.detach()) >= 0.9
    held_out = sae(x[14_000:], y[14_000:])
    control = SAE.create(config, 0, x[:14_000], y[:14_000])(x[14_000:])
    assert fvu(y[14_000:], held_out.x_hat) < 0.35 * fvu(y[14_000:], control.x_hat)
    assert run.history[-1].fvu == pytest.approx(fvu(y[14_000:], held_out.x_hat), rel=0.5)
    assert float(sae.output_scale) == pytest.approx(float(y[:14_000].norm(dim=1).mean()), rel=0.02)
    again = saelab.SAE.load(tmp_path)
    assert torch.equal(again(x[:9]).x_hat, sae(x[:9]).x_hat)


def test_a_skip_takes_the_linear_part():
    x, y, _, _ = _pairs(1, linear=3.0)
    error = {}
    for name in ("transcoder", "skip_transcoder"):
        config = recipe(name, d_in=24, d_out=20, d_sae=64, k=3)
        sae = train(config, (x[:14_000], y[:14_000]), steps=300, batch_size=256, progress=False).sae
        error[name] = fvu(y[14_000:], sae(x[14_000:]).x_hat)
    assert error["skip_transcoder"] < 0.5 * error["transcoder"]


def test_transcoders_are_refused_what_they_cannot_use():
    x, y, _, _ = _pairs(0)
    config = recipe("transcoder", d_in=24, d_out=20, d_sae=64, k=3)
    run = {"steps": 1, "batch_size": 8, "progress": False}
    with pytest.raises(ShapeError, match=r"needs inputs and targets. Got one tensor"):
        train(config, x, **run)
    with pytest.raises(ShapeError, match=r"must be as many. Got \[16000, 15999\] rows"):
        train(config, (x, y[1:]), **run)
    with pytest.raises(ShapeError, match=r"d_in=20\]"):
        train(config, (x, x), **run)
    with pytest.raises(ShapeError, match=r"needs 1 kinds of activations here\. Got 2"):
        train(recipe("topk", d_in=24, d_sae=64), (x, y), **run)
    with pytest.raises(ConfigError, match="needs d_out, the width of its target"):
        recipe("transcoder", d_in=24, d_sae=64)
    with pytest.raises(ConfigError, match="has no d_out or hook_out"):
        recipe("topk", d_in=24, d_sae=64, d_out=3)
    with pytest.raises(ShapeError, match="starts from rows and as many targets"):
        SAE.create(config, 0, x)
    sae = SAE.create(recipe("skip_transcoder", d_in=24, d_out=20, d_sae=64), 0)
    with pytest.raises(ShapeError, match="needs the inputs"):
        sae.decode(sae.encode(x[:3]))


# crosscoders


def test_a_crosscoder_finds_one_code_behind_places_of_different_size(tmp_path):
    here, there = _directions(32, 20, 3), _directions(32, 28, 4)
    there[:8] = 0  # features of the first place alone
    codes = _codes(16_000, 32, 2.5, 7)
    x = (codes @ here, 200 * codes @ there)
    config = recipe("crosscoder", d_in=48, d_sae=64, k=3, widths=(20, 28))
    run = train(config, x, steps=1_400, batch_size=256, out=tmp_path, progress=False)
    sae = run.sae
    first, second = sae.W_dec.detach().split((20, 28), dim=1)
    assert _found(here, first) >= 0.9
    assert _found(there[8:], second) >= 0.9
    # what only the first place has is read as its own
    latent = (here[:8] @ torch.nn.functional.normalize(first, dim=1).t()).argmax(1)
    assert float((second[latent].norm(dim=1) / first[latent].norm(dim=1)).median()) < 0.15
    sizes = [part.norm(dim=1).mean() for part in x]
    torch.testing.assert_close(sae.input_scale[[0, 47]], torch.stack(sizes), rtol=0.02, atol=0)
    assert torch.equal(saelab.SAE.load(tmp_path).encode(torch.cat(x, 1)[:9]), sae.encode(torch.cat(x, 1)[:9]))
    short = {"steps": 20, "batch_size": 256, "progress": False}
    assert torch.equal(train(config, x, **short).sae.W_dec, train(config, torch.cat(x, 1), **short).sae.W_dec)


def test_a_crosscoder_ranks_by_the_sum_of_norms():
    dictionary = Joint(3, (2, 1))
    dictionary.set(torch.tensor([[3.0, 4, 1], [0, 0, 2], [1, 0, 0]]))
    assert dictionary.norms().tolist() == [6, 2, 1]
    config = recipe("crosscoder", d_in=3, d_sae=3, k=1, widths=(2, 1))
    part = SAE(config).sparsifier
    pre = torch.tensor([[1.0, 2, 5]])
    assert part(pre, pre, dictionary).tolist() == [[1, 0, 0]]
    part.observe(part(pre, pre, dictionary), pre, dictionary)
    assert float(part.threshold) == 6
    with pytest.raises(ConfigError, match=r"widths that add up to d_in=3\. Got \(2, 2\)"):
        recipe("crosscoder", d_in=3, d_sae=3, k=1, widths=(2, 2))


# where their activations come from


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A subject of two places, and stores of both together and of each apart."""
    subject = torch.nn.Sequential(torch.nn.Linear(6, 10), torch.nn.ReLU(), torch.nn.Linear(10, 7))
    subject = saelab.TorchModule(subject)
    corpus = [_normal(6, seed=i) for i in range(500)]
    folder = tmp_path_factory.mktemp("acts")
    both = saelab.harvest(subject, corpus, ["0", "2"], folder / "both", progress=False)
    apart = [saelab.harvest(subject, corpus, [name], folder / name, progress=False) for name in ("0", "2")]
    return subject, corpus, both, apart


def test_two_hooks_of_a_store_or_a_stream_or_two_stores_are_the_same_pairs(stored):
    subject, corpus, both, apart = stored
    options = {"steps": 20, "batch_size": 64, "progress": False}
    sizes = {"d_in": 10, "d_out": 7, "d_sae": 16, "k": 2}
    config = recipe("transcoder", hook="0", hook_out="2", **sizes)
    one, two = train(config, both, **options), train(config, tuple(apart), **options)
    assert torch.equal(one.sae.W_dec, two.sae.W_dec)
    bare = recipe("transcoder", **sizes)
    filled = train(bare, tuple(apart), **options).config
    assert (str(filled.hook), str(filled.hook_out)) == ("0", "2")
    with pytest.raises(HookError, match="needs the config's hook"):
        train(bare, both, **options)
    stream = saelab.stream(subject, corpus, ["0", "2"], buffer_rows=256)
    cross = recipe("crosscoder", d_in=17, d_sae=16, k=2, widths=(10, 7), hooks=("0", "2"))
    runs = train([cross, config], stream, **options)
    assert [run.config.recipe for run in runs] == ["crosscoder", "transcoder"]
    rows = torch.cat([both.rows(range(5), name).acts for name in ("0", "2")], dim=1)
    whole = train(cross, both, **options).sae
    assert whole.encode(rows).shape == (5, 16)
    assert torch.equal(whole.W_dec, train(cross, tuple(apart), **options).sae.W_dec)


def test_stores_whose_rows_differ_are_not_paired(stored, tmp_path):
    subject, corpus, _, apart = stored
    config = recipe("transcoder", d_in=10, d_out=7, d_sae=16, k=2)
    options = {"steps": 1, "batch_size": 8, "progress": False}
    fewer = saelab.harvest(subject, corpus[:-1], ["2"], tmp_path / "fewer", progress=False)
    with pytest.raises(ShapeError, match=r"must be as many\. Got \[500, 499\]"):
        train(config, (apart[0], fewer), **options)


# per-row normalisation


def test_layernorm_takes_out_the_size_and_mean_of_rows():
    x = _codes(4_000, 32, 2.5, 8) @ _directions(32, 24, 8)
    x = x[x.norm(dim=1) > 0.1]  # what is left of rows of zeros is rounding
    config = recipe("topk", d_in=24, d_sae=64, k=3, normalise="layernorm")
    sae = train(config, x, steps=200, batch_size=256, progress=False).sae
    moved = x[:50] * torch.linspace(0.01, 1e4, 50)[:, None] + torch.linspace(-5, 5, 50)[:, None]
    torch.testing.assert_close(sae.encode(moved), sae.encode(x[:50]), rtol=1e-2, atol=1e-3)
    forward = sae(moved)
    torch.testing.assert_close(forward.scale.mean, moved.mean(1, keepdim=True))
    torch.testing.assert_close(sae.decode(forward.codes, sae.scale(moved)), forward.x_hat)
    with pytest.raises(ShapeError, match="needs the rows' scale"):
        sae.decode(forward.codes)
    assert fvu(x, sae(x).x_hat) < 0.5 * fvu(x, SAE.create(config, 0, x)(x).x_hat)


# what is measured of them in a model


@pytest.fixture(scope="module")
def model():
    lab = saelab.Lab.embedded()
    texts = [d.text for d in saelab.corpora.world(seed=77, n_documents=60)]
    return lab.subject, texts


def test_a_transcoder_of_the_identity_leaves_the_loss_alone(model):
    """Every latent on, both directions of each axis: x_hat is the target, bit for bit nearly."""
    subject, texts = model
    mlp, out = "blocks.1.hook_mlp_out", "blocks.1.hook_mlp_out"
    config = recipe(
        "transcoder", d_in=128, d_out=128, d_sae=256, k=256, hook=mlp, hook_out=out, normalise="none",
        b_dec_init="zeros",
    )  # fmt: skip
    sae = SAE(config).eval()
    with torch.no_grad():
        both = torch.cat([torch.eye(128), -torch.eye(128)])
        sae.W_enc.copy_(both.t())
        sae.dictionary.set(both)
    report = saelab.evaluate(sae, subject, texts[:20])
    assert report.sae.fvu < 1e-9
    assert report.sae.loss == pytest.approx(report.loss_clean, abs=1e-5)
    assert report.sae.loss_recovered == pytest.approx(1, abs=1e-3)
    assert report.untrained.loss_recovered < 0.9


def test_transcoders_and_crosscoders_are_scored_and_indexed_in_a_model(model, tmp_path):
    subject, texts = model
    first, second = "blocks.1.hook_resid_mid", "blocks.1.hook_mlp_out"
    acts = saelab.harvest(subject, texts, [first, second], tmp_path / "acts", progress=False)
    configs = [
        recipe("skip_transcoder", d_in=128, d_out=128, d_sae=256, k=16, hook=first, hook_out=second),
        recipe("crosscoder", d_in=256, d_sae=256, k=16, widths=(128, 128), hooks=(first, second)),
    ]
    runs = train(configs, acts, steps=150, batch_size=256, progress=False)
    for run, name in zip(runs, (f"{first} -> {second}", f"{first} + {second}"), strict=True):
        report = saelab.evaluate(run.sae, subject, texts[:20])
        assert report.hook == name
        assert report.sae.fvu < 0.6 * report.untrained.fvu
        assert report.sae.loss < report.untrained.loss
        store = saelab.index(subject, run.sae, texts[:20], tmp_path / run.config.recipe, progress=False)
        codes = run.sae.encode_sparse(torch.cat([acts.rows(range(30), h).acts for h in run.sae.reads], 1))
        assert sorted(store.rows(7).latents.tolist()) == codes.row(7)[0].tolist()
        lens = saelab.analysis.logit_lens(run.sae, subject, 3)
        assert lens.latent == 3


@pytest.mark.parametrize("sparsity", ["jumprelu", "l1"])
def test_a_narrow_transcoder_needs_no_k_that_it_does_not_use(sparsity):
    config = recipe("transcoder", d_in=4, d_sae=8, d_out=3, sparsity=sparsity)
    assert config.d_sae == 8
    assert recipe("crosscoder", d_in=4, d_sae=8, widths=(2, 2), sparsity="l1").d_sae == 8
    with pytest.raises(ConfigError, match="k must be between 1 and d_sae=8"):
        recipe("transcoder", d_in=4, d_sae=8, d_out=3)
