"""Training through the model: loss and gradient of a plain loop, and what it brings on the embedded model."""

from __future__ import annotations

import numpy as np
import pytest
import subjects_zoo as zoo
import torch

import saelab
from saelab.training import Objective, Start, end_to_end
from saelab.types import ConfigError, CorpusError, SubjectError

WENT = "the machine went away"
HOOK, LAST = "blocks.1.hook_resid_post", "blocks.2.hook_resid_post"
TEXTS = [f"The dog number {i} ran to the {'red ' * (i % 5)}house and saw a cat." for i in range(40)]


@pytest.fixture(scope="module")
def small():
    return zoo.language_model("llama")


def recipe(name: str = "topk", **options):
    return saelab.recipe(name, d_in=32, d_sae=64, k=4, hook=HOOK, **options)


@pytest.fixture(scope="module")
def parent(small, tmp_path_factory):
    acts = saelab.harvest(small, TEXTS, [HOOK], tmp_path_factory.mktemp("a") / "acts", progress=False)
    return saelab.train(recipe(), acts, steps=60, batch_size=128, progress=False).sae


@pytest.mark.parametrize("output", ["kl", "ce"])
def test_a_step_is_that_of_a_plain_loop(small, parent, output):
    """One pass of two documents by hand, with the library's own model and a hook of torch's own."""
    texts = TEXTS[:2]
    n = sum(len(small.to_tokens(text)) - 1 for text in texts)
    objective = Objective(output, weight=0.7, local=0.4, later=(LAST,), later_weight=0.3)
    run = end_to_end(
        recipe(), small, texts, steps=1, batch_size=n, start=Start(parent), objective=objective, lr=1e-3,
        optimizer="signum", clip=None, schedule="constant", progress=False,
    )  # fmt: skip
    assert all(p.grad is None for p in small.model.parameters())
    sae = saelab.SAE.create(recipe())
    sae.load_state_dict(parent.state_dict())
    sae.train()
    inputs = small.prepare(texts)
    ids = inputs.data["input_ids"]
    kept = inputs.data["attention_mask"].bool()
    kept[:, 0] = False
    clean = small.run(inputs, read=[HOOK, LAST])
    rows = clean.acts[HOOK][kept]
    variance = (rows - rows.mean(0)).square().sum(1).mean()
    forward = sae(rows)

    def put(acts):
        out = acts.clone()
        out[kept] = forward.x_hat
        return out

    spliced = small.run(inputs, read=[LAST], edits=[(HOOK, put)], grad=True)
    there = kept.clone()
    there[:, 0] = True
    there = there[:, :-1] & inputs.data["attention_mask"].bool()[:, 1:]
    p, q = clean.output.log_softmax(-1)[:, :-1], spliced.output.log_softmax(-1)[:, :-1]
    if output == "kl":
        told = (p.exp() * (p - q)).sum(-1)[there].mean()
    else:
        told = torch.nn.functional.cross_entropy(q[there], ids[:, 1:][there])
    a, b = clean.acts[LAST][kept], spliced.acts[LAST][kept]
    later = (a - b).square().sum() / (a - a.mean(0)).square().sum()
    local = (forward.x_hat - rows).square().sum() / (len(rows) * variance)
    loss = 0.7 * told + 0.4 * local + 0.3 * later
    named = dict(sae.named_parameters())
    grads = dict(zip(named, torch.autograd.grad(loss, list(named.values()), allow_unused=True), strict=True))
    assert run.history[0].loss == pytest.approx(float(loss.detach()), rel=1e-4)
    for name, grad in grads.items():
        if grad is None or name == "dictionary.W_dec":  # the rows of which are brought to norm 1
            continue
        moved = run.sae.state_dict()[name] - parent.state_dict()[name]
        clear = grad.abs() > 1e-5
        assert clear.any(), name
        assert torch.equal(moved[clear].sign(), -grad[clear].sign()), name


def test_what_the_model_says_is_kept_better_at_equal_l0(subject):
    """A fine-tuning by KL beside one of the same steps by the local loss alone."""
    texts = saelab.corpora.world(seed=3, n_documents=500)
    held = saelab.corpora.world(seed=4, n_documents=100)
    sae = saelab.SAE.load(saelab.embedded.sae_folder())
    asked = {"steps": 30, "batch_size": 512, "start": sae, "lr": 3e-4, "progress": False}
    found = {}
    for name, objective in {"kl": Objective(), "local": Objective(weight=0.0)}.items():
        run = end_to_end(sae.config, subject, texts, objective=objective, **asked)
        found[name] = saelab.evaluate(run.sae, subject, held, max_rows=2000).scores
    assert found["kl"]["l0"].value == pytest.approx(found["local"]["l0"].value, rel=0.01)
    assert found["kl"]["kl"].value < 0.9 * found["local"]["kl"].value
    assert found["kl"]["loss"].value < found["local"]["loss"].value


def test_the_balanced_weight_makes_both_as_large(small, parent):
    asked = {"steps": 1, "batch_size": 200, "start": parent, "progress": False}
    both = end_to_end(recipe(), small, TEXTS, **asked).history[0].loss
    local = end_to_end(recipe(), small, TEXTS, objective=Objective(weight=0.0), **asked).history[0].loss
    # the recipe divides by the variance of the rows that it began with, the balance by that of its batch
    assert both == pytest.approx(2 * local, rel=0.1)


@pytest.mark.parametrize("name", ["relu", "batchtopk", "matryoshka", "transcoder"])
def test_new_ones_learn_and_are_drawn_by_the_seed(small, name, tmp_path):
    options = {"d_in": 32, "d_sae": 64, "hook": HOOK}
    if name == "transcoder":
        options |= {"hook": "blocks.1.hook_resid_mid", "hook_out": "blocks.1.hook_mlp_out", "d_out": 32}
    if name != "relu":
        options["k"] = 4
    config = saelab.recipe(name, **options)
    asked = {"batch_size": 100, "lr": 3e-3, "progress": False, "log_every": 1}
    run = end_to_end(config, small, TEXTS, steps=40, out=tmp_path / "run", seed=2, **asked)
    same = end_to_end(config, small, TEXTS, steps=40, seed=2, **asked)
    assert run.sae.fingerprint() == same.sae.fingerprint()
    assert np.mean([r.loss for r in run.history[-5:]]) < 0.9 * np.mean([r.loss for r in run.history[:5]])
    loaded = saelab.training.Run.load(tmp_path / "run")
    assert loaded.sae.fingerprint() == run.sae.fingerprint()
    assert loaded.provenance["end_to_end"]["objective"]["output"] == "kl"
    assert [r.rows for r in run.history[:3]] == [100, 200, 300]


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"objective": lambda: Objective("mse")}, ConfigError, "output"),
        ({"objective": lambda: Objective(weight=-1)}, ConfigError, "weight must be"),
        ({"objective": lambda: Objective(local=float("nan"))}, ConfigError, "local must be"),
        ({"config": lambda: saelab.recipe("topk", d_in=32, d_sae=64, k=4)}, ConfigError, "with its hook"),
        ({"config": lambda: 3}, ConfigError, "with its hook"),
        ({"subject": lambda: saelab.TorchModule(torch.nn.Linear(3, 3))}, SubjectError, "end to end"),
        ({"corpus": lambda: []}, CorpusError, "at least one document"),
        ({"steps": lambda: 0}, ConfigError, "steps"),
        ({"batch_size": lambda: 0}, ConfigError, "batch_size"),
    ],
)
def test_what_cannot_be_trained_so_is_refused(small, change, error, said):
    given = {"config": recipe(), "subject": small, "corpus": TEXTS, "steps": 2, "batch_size": 50}

    def call():
        asked = {**given, **{name: make() for name, make in change.items()}}
        end_to_end(asked.pop("config"), asked.pop("subject"), asked.pop("corpus"), progress=False, **asked)

    with pytest.raises(error, match=said):
        call()


def test_a_run_that_is_stopped_goes_on_with_the_same_result(small, parent, tmp_path, monkeypatch):
    """Stopped within a pass, within a stretch of documents, in the second reading of the corpus."""
    asked = {"steps": 30, "batch_size": 70, "progress": False, "checkpoint_every": 5, "documents": 2}
    config = recipe("batchtopk")
    whole = end_to_end(config, small, TEXTS, **asked)
    again = end_to_end(config, small, TEXTS, out=tmp_path / "run", **asked)
    passes = []

    def stops_after(steps):
        step = saelab.training.session.Session.step

        def stopped(self, batch):
            if self.progress.step == steps:
                raise OSError(WENT)
            passes.append(len(batch))
            return step(self, batch)

        monkeypatch.setattr(saelab.training.session.Session, "step", stopped)

    out = tmp_path / "stopped"
    for steps in (9, 28):
        with monkeypatch.context():
            stops_after(steps)
            with pytest.raises(OSError, match=WENT):
                end_to_end(config, small, TEXTS, out=out, **asked)
        monkeypatch.undo()
    assert max(passes) > 1  # batches of several passes, so passes of several batches
    with pytest.raises(ConfigError, match="objective"):
        end_to_end(config, small, TEXTS, out=out, objective=Objective(weight=0.3), **asked)
    run = end_to_end(config, small, TEXTS, out=out, **asked)
    assert run.sae.fingerprint() == whole.sae.fingerprint() == again.sae.fingerprint()
    assert [r._replace(rows=0) for r in run.history] == [r._replace(rows=0) for r in whole.history]
    read = end_to_end(config, small, [*TEXTS], out=out, **asked)
    assert read.sae.fingerprint() == whole.sae.fingerprint()
    anew = end_to_end(config, small, TEXTS, out=out, resume=False, **{**asked, "steps": 2})
    assert anew.sae.fingerprint() != whole.sae.fingerprint()


def test_nothing_goes_through_the_model_where_only_the_reconstruction_counts(small, parent, monkeypatch):
    passes = []
    run = small.run

    def counted(inputs, *args, **options):
        passes.append(options.get("grad", False))
        return run(inputs, *args, **options)

    monkeypatch.setattr(small, "run", counted)
    asked = {"steps": 2, "batch_size": 100, "start": parent, "progress": False}
    end_to_end(recipe(), small, TEXTS, objective=Objective(weight=0.0), **asked)
    assert set(passes) == {False}


def test_rows_carry_the_errors_of_other_saes_and_the_output_is_compared_with_none(small, parent):
    """One pass by hand, three SAEs put in by hooks of torch's own."""
    before, after = (
        saelab.SAE.create(saelab.recipe("topk", d_in=32, d_sae=64, k=8, hook=hook), 5)
        for hook in ("blocks.0.hook_resid_post", LAST)
    )
    texts = TEXTS[:2]
    n = sum(len(small.to_tokens(text)) - 1 for text in texts)
    run = end_to_end(
        recipe(), small, texts, steps=1, batch_size=n, start=Start(parent), spliced=[before, after],
        clip=None, objective=Objective(weight=1.0), schedule="constant", progress=False,
    )  # fmt: skip
    inputs = small.prepare(texts)
    kept = inputs.data["attention_mask"].bool().clone()
    kept[:, 0] = False
    arriving = []

    def put(sae):
        def hook(module, given, out):
            acts = out[0] if isinstance(out, tuple) else out
            made = acts.clone()
            made[kept] = sae(acts[kept]).x_hat
            arriving.append(acts[kept])
            return (made, *out[1:]) if isinstance(out, tuple) else made

        return hook

    with torch.no_grad():
        clean = small.model(**inputs.data, use_cache=False).logits.log_softmax(-1)
        pairs = zip(small.layers, (before, parent, after), strict=True)
        handles = [layer.register_forward_hook(put(sae)) for layer, sae in pairs]
        spliced = small.model(**inputs.data, use_cache=False).logits.log_softmax(-1)
        for handle in handles:
            handle.remove()
    x = arriving[1]
    where = inputs.data["attention_mask"].bool()[:, 1:]
    kl = (clean.exp() * (clean - spliced)).sum(-1)[:, :-1][where].mean()
    local = (parent(x).x_hat.detach() - x).square().sum() / (x - x.mean(0)).square().sum()
    assert run.history[0].loss == pytest.approx(float(kl + local), rel=1e-3)
    assert run.provenance["end_to_end"]["spliced"] == [before.fingerprint(), after.fingerprint()]


def test_rows_of_outlier_norm_are_neither_trained_on_nor_replaced(small):
    """Planted: at two tokens the stream is a hundred times as long as elsewhere."""
    ids = small.to_tokens("red cat", bos=False)[:2]

    class Spiked(type(small)):
        def run(self, inputs, read=(), edits=(), **options):
            spikes = torch.isin(inputs.data["input_ids"], torch.tensor(ids))[..., None]
            seen.extend(edit for _, edit in edits)
            planted = (HOOK, lambda acts: acts * (1 + 99 * spikes))
            return super().run(inputs, read, [planted, *edits], **options)

    seen: list = []
    spiked = Spiked(small.model, small.tokenizer)
    asked = {"steps": 3, "batch_size": 60, "progress": False, "log_every": 1}
    run = end_to_end(recipe(), spiked, TEXTS, max_norm=10, **asked)
    told = run.provenance["outliers"]
    texts = [small.to_tokens(text, bos=False) for text in TEXTS]
    share = sum(i in ids for text in texts for i in text) / sum(map(len, texts))
    assert told["left_out"] / told["of"] == pytest.approx(share, abs=0.05)
    assert told["left_out"] > 0
    assert end_to_end(recipe(), spiked, TEXTS, **asked).provenance["outliers"] is None
    inputs = small.prepare(TEXTS[:1])
    acts = small.run(inputs, read=[HOOK]).acts[HOOK]
    spikes = torch.isin(inputs.data["input_ids"], torch.tensor(ids))
    seen.clear()
    end_to_end(recipe(), spiked, TEXTS[:1], max_norm=10, **{**asked, "steps": 1, "batch_size": 5})
    changed = (seen[0](acts) != acts).any(-1)
    assert changed.sum() == 5
    assert not (changed & spikes).any()
