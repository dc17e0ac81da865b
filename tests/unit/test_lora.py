"""Adapters of a model around an SAE: one step by hand, what they leave alone, what they bring, files."""

from __future__ import annotations

import json
import sys

import pytest
import subjects_zoo as zoo
import torch

import saelab
from saelab.interventions import Reconstruct
from saelab.training import Adapted, adapt
from saelab.types import ConfigError, CorpusError, FormatError, HookError, MissingDependency, SubjectError

pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
HOOK = "blocks.1.hook_resid_post"
TEXTS = [f"The dog number {i} ran to the {'red ' * (i % 5)}house and saw a cat." for i in range(40)]
FAMILIES = ["llama", "gpt2"]


def an_sae(hook: str = HOOK, **options) -> saelab.SAE:
    return saelab.SAE.create(saelab.recipe("topk", d_in=32, d_sae=64, k=4, hook=hook, **options), 3)


@pytest.fixture(scope="module", params=FAMILIES)
def small(request):
    return zoo.language_model(request.param)


@pytest.fixture(scope="module")
def adapted(small):
    return adapt(an_sae(), small, TEXTS, steps=4, documents=2, rank=3, lr=0.1, progress=False)


def by_hand(model, small, texts, sae=None):
    """Log-probabilities by the library's model, the SAE put in by a hook of torch's own."""
    inputs = small.prepare(texts)
    kept = inputs.data["attention_mask"].bool().clone()
    if small.bos_id is not None:
        kept[:, 0] = False

    def put(module, given, out):
        first = out[0] if isinstance(out, tuple) else out
        made = first.clone()
        made[kept] = sae(first[kept]).x_hat
        return (made, *out[1:]) if isinstance(out, tuple) else made

    block = small.layers[1]
    path = next(name for name, module in small.model.named_modules() if module is block)
    handle = model.get_submodule(path).register_forward_hook(put) if sae is not None else None
    with torch.no_grad():
        logp = model(**inputs.data, use_cache=False).logits.float().log_softmax(-1)
    if handle is not None:
        handle.remove()
    ids = inputs.data["input_ids"]
    return logp, inputs.data["attention_mask"].bool()[:, 1:] & (ids[:, 1:] >= 0)


def test_the_first_kl_is_that_of_a_pass_by_hand_and_no_other_weight_moves(small):
    texts, sae = TEXTS[:2], an_sae()
    before = small.fingerprint(), sae.fingerprint()
    wanted = {id(p): p.requires_grad for p in small.model.parameters()}
    clean, where = by_hand(small.model, small, texts)
    spliced, _ = by_hand(small.model, small, texts, sae)
    own = adapt(sae, small, texts, steps=2, documents=2, rank=2, progress=False)
    kl = (clean.exp() * (clean - spliced)).sum(-1)[:, :-1][where].mean()
    assert own.history[0].kl == pytest.approx(float(kl), rel=1e-4)
    assert (small.fingerprint(), sae.fingerprint()) == before
    assert {id(p): p.requires_grad for p in small.model.parameters()} == wanted
    assert all(p.grad is None for p in (*small.model.parameters(), *sae.parameters()))
    now, _ = by_hand(small.model, small, texts)
    assert torch.equal(now, clean)
    moved, _ = by_hand(own.subject.model, small, texts, sae)
    assert not torch.equal(moved, spliced)


def test_adapters_stand_after_the_sae_alone(small, adapted):
    inputs = small.prepare(TEXTS[:3])
    names = [n for n, _ in adapted.subject.model.named_parameters() if "lora_" in n]
    assert names
    assert all(".2." in name for name in names)  # of three blocks
    at = [f"blocks.{i}.hook_resid_post" for i in range(3)]
    own, others = small.run(inputs, read=at).acts, adapted.subject.run(inputs, read=at).acts
    assert torch.equal(own[at[1]], others[at[1]])
    assert not torch.equal(own[at[2]], others[at[2]])
    assert adapted.n_parameters == sum(
        dict(adapted.subject.model.named_parameters())[name].numel() for name in names
    )
    again = adapt(an_sae(), small, TEXTS, steps=4, documents=2, rank=3, lr=0.1, progress=False)
    assert again.history == adapted.history
    other = adapt(an_sae(), small, TEXTS, steps=4, documents=2, rank=3, lr=0.1, seed=1, progress=False)
    assert other.history != adapted.history


def test_files_are_read_here_and_by_peft(small, adapted, tmp_path):
    import peft

    from saelab.subjects.bridge import twin_of

    adapted.save(tmp_path / "a")
    read = Adapted.load(tmp_path / "a", small, an_sae())
    inputs = small.prepare(TEXTS[:2])
    wanted = adapted.subject.run(inputs).output
    assert torch.equal(read.subject.run(inputs).output, wanted)
    assert (read.history, read.rank, read.alpha) == (adapted.history, 3, 3.0)
    theirs = peft.PeftModel.from_pretrained(twin_of(small.model), str(tmp_path / "a"))
    with torch.no_grad():
        assert torch.equal(theirs(**inputs.data, use_cache=False).logits, wanted)
    with pytest.raises(ConfigError, match="the sae that they were trained with"):
        Adapted.load(tmp_path / "a", small, saelab.SAE.create(an_sae().config, 4))
    told = json.loads((tmp_path / "a" / "saelab.json").read_text())
    (tmp_path / "a" / "saelab.json").write_text(json.dumps({**told, "history": [[1]]}))
    with pytest.raises(FormatError, match="must be whole"):
        Adapted.load(tmp_path / "a", small, an_sae())
    (tmp_path / "a" / "saelab.json").write_text(json.dumps(told))
    weights = tmp_path / "a" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(FormatError, match="must be whole"):
        Adapted.load(tmp_path / "a", small, an_sae())


def test_less_is_lost_with_the_reconstruction(subject, small_sae):
    """On unseen documents, beside the same small SAE in the model as it was."""
    sae = small_sae
    texts = saelab.corpora.world(seed=3, n_documents=300)
    held = saelab.corpora.world(seed=4, n_documents=100)
    adapted = adapt(sae, subject, texts, steps=60, documents=8, rank=8, progress=False)

    def kl(model):
        """From what the model says as it was."""
        found = []
        for document in held:
            inputs = subject.prepare([document.text])
            p, q = (
                each.output.float().log_softmax(-1)
                for each in (subject.run(inputs), model.run(inputs, edits=[Reconstruct(sae)]))
            )
            found.append(float((p.exp() * (p - q)).sum(-1).mean()))
        return sum(found) / len(found)

    assert kl(adapted.subject) < 0.85 * kl(subject)
    before = saelab.evaluate(sae, subject, held, max_rows=2000).scores
    after = saelab.evaluate(sae, adapted.subject, held, max_rows=2000).scores
    assert after["loss"].value < before["loss"].value
    assert after["fvu"].value == before["fvu"].value


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"sae": lambda: an_sae("blocks.2.hook_resid_post")}, ConfigError, "earlier block"),
        ({"sae": lambda: an_sae(None)}, HookError, "hook"),
        ({"sae": lambda: 3}, ConfigError, "an SAE"),
        ({"subject": lambda: saelab.TorchModule(torch.nn.Linear(3, 3))}, SubjectError, "language model"),
        ({"corpus": lambda: []}, CorpusError, "at least one document"),
        ({"steps": lambda: 0}, ConfigError, "steps"),
        ({"rank": lambda: 0}, ConfigError, "rank"),
        ({"alpha": lambda: float("nan")}, ConfigError, "alpha"),
        ({"lr": lambda: -1.0}, ConfigError, "lr"),
        ({"schedule": lambda: "steep"}, ConfigError, "schedule|shape"),
    ],
)
def test_what_cannot_be_adapted_is_refused(change, error, said):
    given = {"sae": an_sae(), "subject": zoo.language_model("llama"), "corpus": TEXTS, "steps": 2}
    asked = {**given, **{name: make() for name, make in change.items()}}
    with pytest.raises(error, match=said):
        adapt(asked.pop("sae"), asked.pop("subject"), asked.pop("corpus"), progress=False, **asked)


def test_without_the_library_its_name_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingDependency, match=r"saelab\[lora\]"):
        adapt(an_sae(), zoo.language_model("llama"), TEXTS, steps=1)
