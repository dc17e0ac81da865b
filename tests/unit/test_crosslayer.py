"""Cross-layer transcoders: their equation by a plain loop of matrices, training, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch

import saelab
from saelab import analysis
from saelab.commands import info
from saelab.sae import SAE
from saelab.training.losses import LOSSES, Firing, Progress
from saelab.types import ConfigError, ShapeError

L, D, F = 3, 5, 8
SPARSITIES = {
    "batchtopk": {"k": 4},
    "topk": {"k": 4},
    "l1": {"l1": 0.2, "l1_warmup": 0.0},
    "jumprelu": {"l0": 0.01, "l0_warmup": 0.0, "threshold": 0.2, "bandwidth": 0.4},
}
READS = [f"blocks.{i}.mlp.hook_in" for i in range(4)]
WRITES = [f"blocks.{i}.hook_mlp_out" for i in range(4)]


def config_of(sparsity="batchtopk", layers=L, per=F, d=D, **options):
    own = SPARSITIES[sparsity] | options
    return saelab.recipe(
        "clt", d_in=layers * d, d_out=layers * d, d_sae=layers * per, layers=layers, sparsity=sparsity, **own
    )


def drawn(n=400, seed=0, width=L * D):
    """Rows, of layers of different size."""
    sizes = torch.arange(1, L + 1).repeat_interleave(width // L)
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed)) * sizes + 0.3


def random_clt(sparsity="batchtopk"):
    sae = SAE.create(config_of(sparsity), 1, drawn(), drawn(seed=1) * 3)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return sae


def matrices(sae):
    """Leaves of the definition: (encoders [d F] by layer, decoders [F d] by layer and layer written)."""
    with torch.no_grad():
        encoders = [sae.W_enc[:, i * F : (i + 1) * F].double().clone() for i in range(L)]
        whole = sae.W_dec.double()
        decoders = {
            (i, j): whole[i * F : (i + 1) * F, j * D : (j + 1) * D].clone()
            for i in range(L)
            for j in range(L)
        }
    for (i, j), block in decoders.items():
        assert block.any() == (j >= i)
    decoders = {at: block for at, block in decoders.items() if at[1] >= at[0]}
    for leaf in (*encoders, *decoders.values()):
        leaf.requires_grad_()
    return encoders, decoders


@pytest.mark.parametrize("sparsity", SPARSITIES)
@pytest.mark.parametrize("sparse", [True, False])
def test_codes_losses_and_gradients_are_those_of_a_loop_over_layers(sparsity, sparse):
    """The sum over earlier layers and the penalty of Ameisen et al. 2025, each written out."""
    sae, x, y = random_clt(sparsity).train(), drawn(60, 5), drawn(60, 6) * 3
    options = sae.config.options
    progress = Progress(10, 1.7, Firing(L * F, 10))
    forward = sae(x, y, sparse=sparse)
    terms = [LOSSES[name](sae.config, progress) for name in sae.config.entry.losses(sae.config)]
    loss = torch.stack([term(sae, forward) for term in terms]).sum()
    loss.backward()
    codes = forward.codes.dense() if isinstance(forward.codes, tuple) else forward.codes

    encoders, decoders = matrices(sae)
    norms = [torch.cat([decoders[i, j] for j in range(i, L)], 1).norm(dim=1) for i in range(L)]
    x_in = (x.double() / sae.input_scale.double()).split(D, 1)
    b_enc = sae.b_enc.double()
    pre = torch.cat([x_in[i] @ encoders[i] for i in range(L)], 1) + b_enc
    size = torch.cat(norms)
    if sparsity == "l1":
        kept = pre > 0
    elif sparsity == "jumprelu":
        kept = pre > sae.sparsifier.threshold.double()
    else:
        score = (pre * size).detach()
        k = options["k"]
        least = (
            score.topk(k, 1).values[:, -1:] if sparsity == "topk" else score.flatten().topk(k * 60).values[-1]
        )
        kept = (score >= least) & (score > 0)
    expected = torch.where(kept, pre, 0)
    torch.testing.assert_close(codes.double(), expected.detach(), rtol=1e-5, atol=1e-5)
    given = []
    for j in range(L):
        own = sum(expected[:, i * F : (i + 1) * F] @ decoders[i, j] for i in range(j + 1))
        given.append(own + sae.b_dec.double()[j * D : (j + 1) * D])
    out = sae.output_scale.double()
    torch.testing.assert_close(
        forward.x_hat.double(), torch.cat(given, 1).detach() * out, rtol=1e-5, atol=1e-5
    )
    wanted = (torch.cat(given, 1) - y.double() / out).square().sum() / (60 * 1.7)
    if sparsity == "l1":
        wanted = wanted + options["l1"] * (expected * size).sum() / (60 * math.sqrt(1.7))
    if sparsity == "jumprelu":  # c for inputs of each layer of norm sqrt(d)
        scale = options["tanh_scale"] * math.sqrt(D)
        wanted = wanted + options["l0"] * (scale * expected * size).tanh().sum() / 60
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    wanted.backward()
    grad = sae.dictionary.W_dec.grad.split([F * (L - i) for i in range(L)])
    for i in range(L):
        own = grad[i].view(F, L - i, D)
        for j in range(i, L):
            torch.testing.assert_close(own[:, j - i].double(), decoders[i, j].grad, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(
            sae.W_enc.grad[:, i * F : (i + 1) * F].double(), encoders[i].grad, rtol=1e-4, atol=1e-6
        )
    sae.eval()
    some = [9, 0, 17, 3]
    torch.testing.assert_close(sae.encode_some(x, some), sae.encode(x)[:, some], rtol=1e-5, atol=1e-6)


def test_only_blocks_that_exist_are_held_and_the_estimate_counts_them():
    config = config_of(layers=6, per=64, d=16)
    sae = SAE.create(config)
    decoders = 64 * 16 * 6 * 7 // 2
    numbers = sum(p.numel() for p in sae.parameters())
    assert numbers == 16 * 6 * 64 + 6 * 64 + 6 * 16 + decoders
    told = saelab.training.estimate(config, steps=10, batch_size=64, device="cpu")
    assert told.weights == 4 * numbers
    whole = saelab.recipe("transcoder", d_in=96, d_out=96, d_sae=384, k=4)
    assert told.weights < 0.4 * saelab.training.estimate(whole, steps=10, batch_size=64, device="cpu").weights
    # each latent's own column and rows, and nothing else
    latent = 2 * 64 + 5
    x = torch.zeros(1, 96)
    x[0, :32] = x[0, 48:] = 1e3
    assert torch.equal(sae(x).pre[0, 128:192], sae(torch.zeros(1, 96)).pre[0, 128:192])
    assert sae.W_dec[latent, :32].abs().max() == 0
    assert (sae.W_dec[latent, 32:] != 0).all()
    assert float(sae.W_dec[latent].detach().norm()) == pytest.approx(1, abs=1e-5)


def planted(n, seed, layers=3, d=24):
    """What MLPs read and write, where 4 causes a layer, each seen at its own layer alone, write one direction
    to their own layer and to all later ones."""
    truth = torch.Generator().manual_seed(9)
    unit = torch.nn.functional.normalize
    reads = [unit(torch.randn(4, d, generator=truth), dim=1) for _ in range(layers)]
    writes = [unit(torch.randn(4, (layers - i) * d, generator=truth), dim=1) for i in range(layers)]
    draw = torch.Generator().manual_seed(seed)
    x, y = [], torch.zeros(n, layers * d)
    for i in range(layers):
        cause = (torch.rand(n, 4, generator=draw) < 0.2) * (1 + torch.rand(n, 4, generator=draw))
        x.append(cause @ reads[i])
        y[:, i * d :] += cause @ writes[i]
    return torch.cat(x, 1), y


def test_what_earlier_layers_write_to_later_ones_is_learnt():
    """Beside an untrained one, and beside transcoders of each layer alone, to which the later effects of
    earlier causes are out of reach."""
    rows = planted(4000, 0)
    config = config_of(per=6, d=24, k=3)
    run = saelab.train(config, rows, steps=800, batch_size=256, progress=False, lr=3e-3)
    x, y = planted(2000, 1)
    unexplained = lambda sae, x, y: float(  # noqa: E731
        (sae(x).x_hat - y).square().sum() / (y - y.mean(0)).square().sum()
    )
    with torch.no_grad():
        assert unexplained(run.sae, x, y) < 0.01
        assert unexplained(SAE.create(config, 0, *rows), x, y) > 0.5
    for i in range(L):
        at = slice(i * 24, (i + 1) * 24)
        one = saelab.recipe("transcoder", d_in=24, d_out=24, d_sae=6, k=1, sparsity="batchtopk")
        alone = saelab.train(
            one, (rows[0][:, at], rows[1][:, at]), steps=800, batch_size=256, progress=False, lr=3e-3
        )
        with torch.no_grad():
            fvu = unexplained(alone.sae, x[:, at], y[:, at])
        assert fvu < 0.1 if i == 0 else fvu > 0.3


@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_the_same_seed_gives_the_same_bits_and_so_does_a_run_that_goes_on(sparsity, tmp_path):
    rows = (drawn(600), drawn(600, 1))
    asked = {"steps": 40, "batch_size": 64, "progress": False, "checkpoint_every": 10}
    config = config_of(sparsity)
    whole = saelab.train(config, rows, **asked)

    def stop(event):
        if event.name == "checkpoint" and event.step == 20:
            raise KeyboardInterrupt

    half = saelab.train(config, rows, out=tmp_path / "run", callbacks=[stop], **asked)
    assert not half.finished
    again = saelab.train(config, rows, out=tmp_path / "run", **asked)
    assert again.finished
    assert again.sae.fingerprint() == whole.sae.fingerprint() == SAE.load(tmp_path / "run").fingerprint()
    assert saelab.train(config, rows, seed=1, **asked).sae.fingerprint() != whole.sae.fingerprint()


def test_target_l0_is_reached():
    config = config_of("jumprelu", d=24, per=16, target_l0=4, threshold=0.03, bandwidth=0.03, l0=1e-3)
    run = saelab.train(config, planted(4000, 0), steps=1000, batch_size=256, progress=False)
    assert sum(each.l0 for each in run.history[-10:]) / 10 == pytest.approx(4, rel=0.1)


@pytest.fixture(scope="module")
def trained(subject, tmp_path_factory):
    """(the store of both ends of two layers, a run on it)"""
    place = tmp_path_factory.mktemp("clt") / "acts"
    corpus = saelab.corpora.world(seed=5, n_documents=120)
    hooks = [*READS[:2], *WRITES[:2]]
    store = saelab.harvest(subject, corpus, hooks, place, progress=False)
    config = saelab.recipe(
        "clt", d_in=256, d_out=256, d_sae=256, layers=2, k=8, hooks=READS[:2], hooks_out=WRITES[:2]
    )
    return store, saelab.train(config, store, steps=150, batch_size=256, progress=False)


def test_it_is_trained_on_a_store_of_both_ends_and_each_layer_is_scored(trained, subject, tmp_path):
    store, run = trained
    sae = run.sae
    assert [str(hook) for hook in sae.reads] == READS[:2]
    assert [str(hook) for hook in sae.writes] == WRITES[:2]
    # sources may name the ends too
    ends = [saelab.harvest(subject, saelab.corpora.world(seed=5, n_documents=40), [h], tmp_path / str(i),
                           progress=False) for i, h in enumerate((*READS[:2], *WRITES[:2]))]  # fmt: skip
    bare = saelab.recipe("clt", d_in=256, d_out=256, d_sae=64, layers=2, k=8)
    named = saelab.train(bare, ends, steps=1, batch_size=64, progress=False).sae
    assert (named.reads, named.writes) == (sae.reads, sae.writes)

    report = analysis.evaluate(sae, store)
    places = report.core.tables["places"].set_index("place")
    assert list(places.index) == WRITES[:2]
    rows = {str(hook): store.acts(range(len(store)), str(hook)).float() for hook in store.hooks}
    with torch.no_grad():
        x_hat = sae(torch.cat([rows[h] for h in READS[:2]], 1)).x_hat
    for i, hook in enumerate(WRITES[:2]):
        y = rows[hook]
        fvu = float((x_hat[:, i * 128 : (i + 1) * 128] - y).square().sum() / (y - y.mean(0)).square().sum())
        line = places.loc[hook]
        assert line["fvu"] == pytest.approx(fvu, rel=1e-4)
        assert line["from"] < fvu < line["to"] < line["untrained"]
    passes = analysis.evaluate(sae, subject, saelab.corpora.world(seed=6, n_documents=8))
    assert passes.scores["fvu"].value < passes.scores["fvu"].control
    assert 0 < passes.scores["loss_recovered"].value < 1


def test_saved_and_described(trained, tmp_path):
    sae = trained[1].sae
    again = saelab.load_sae(sae.save(tmp_path / "clt"))
    assert again.fingerprint() == sae.fingerprint()
    assert again.writes == sae.writes
    told = info.describe(tmp_path / "clt").data
    assert (told["recipe"], told["reads"], told["writes"]) == ("clt", READS[:2], WRITES[:2])


def test_what_has_no_meaning_is_refused_by_name(trained, subject):
    for options, message in (
        ({"d_in": 16}, r"d_in must be a multiple of layers=3: that of one layer, times the layers. Got 16"),
        ({"d_sae": 25}, "d_sae must be a multiple of layers=3"),
        ({"d_out": 16}, "d_out must be a multiple of layers=3"),
        ({"layers": 0}, "layers must be"),
        ({"hooks": READS[:2]}, "hooks must be one for each of 3 layers. Got 2"),
        ({"hooks_out": WRITES[:2]}, "hooks_out must be names of hook points, one for each of 3 layers"),
        ({"hook": READS[0]}, "names what it reads and writes by hooks and hooks_out"),
        ({"sparsity": "gated"}, "sparsity must be one of"),
        ({"d_out": None}, "needs d_out"),
        ({"target_weight": 1.0}, "has no option 'target_weight'"),
    ):
        given = {"d_in": 15, "d_out": 15, "d_sae": 24, "layers": 3, "k": 4}
        with pytest.raises(ConfigError, match=message):
            saelab.recipe("clt", **(given | options))
    rows = drawn(100)
    with pytest.raises(ShapeError, match="for a clt both ends of all layers"):
        saelab.train(config_of(), (rows, rows, rows), steps=1, batch_size=10)
    with pytest.raises(ShapeError, match=r"needs inputs and targets\. Got one tensor"):
        saelab.train(config_of(), rows, steps=1, batch_size=10)


def test_the_lens_adds_up_what_a_latent_writes_at_each_layer(trained, subject):
    """Beside a transcoder of one layer that writes as much of it there: the model's own end is linear."""
    sae, j = trained[1].sae, 7
    scale = sae.out_scale.expand(256)
    assert scale[0] != scale[-1]
    row = (sae.W_dec[j] * scale).detach().split(128)
    assert all(part.norm() > 0 for part in row)
    config = saelab.recipe("transcoder", d_in=128, d_out=128, d_sae=4, k=1, hook=READS[0], hook_out=WRITES[0])
    plain = SAE.create(config)
    with torch.no_grad():
        plain.dictionary.W_dec[2] = sum(row) / scale[-1]
    ours, one = analysis.logit_lens(sae, subject, j), analysis.logit_lens(plain, subject, 2)
    assert [token for token, _ in ours.top] == [token for token, _ in one.top]
    assert [value for _, value in ours.top] == pytest.approx([value for _, value in one.top], rel=1e-4)
    assert ours.spread == pytest.approx(one.spread, rel=1e-4)
