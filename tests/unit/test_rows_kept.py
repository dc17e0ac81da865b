"""Every token is a row, or a person is told; and no more is run than was asked for."""

from __future__ import annotations

import warnings

import pytest
import subjects_zoo as zoo
import torch

import saelab
from saelab.types import ConfigError, CorpusError, SubjectError

HOOK = "blocks.1.hook_resid_post"
LONG = "Once upon a time, there was a dog. " * 40


@pytest.fixture(scope="module")
def subject():
    return zoo.language_model("llama")


@pytest.fixture(scope="module")
def sae():
    return saelab.SAE.create(saelab.recipe("topk", d_in=32, d_sae=24, k=3, hook=HOOK), seed=0)


def positions_run(subject, monkeypatch) -> list[int]:
    """What comes to hold how many positions each pass ran."""
    ran, run = [], subject.run

    def counting(inputs, *args, **options):
        samples = len(next(iter(inputs.data.values())))
        ran.append(samples if inputs.lengths is None else int(inputs.lengths.sum()))
        return run(inputs, *args, **options)

    monkeypatch.setattr(subject, "run", counting)
    return ran


def test_a_long_document_is_read_to_its_end_and_nothing_is_said(subject, sae, tmp_path):
    n = len(subject.to_tokens(LONG)) - 1
    assert n > 3 * subject.n_ctx
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        acts = saelab.harvest(subject, [LONG], [HOOK], tmp_path / "acts", progress=False)
        store = saelab.index(subject, sae, [LONG], tmp_path / "features", progress=False)
    assert len(acts) == store.n_rows == n
    for manifest in (acts.manifest, store.manifest):
        assert (manifest["documents_cut"], manifest["tokens_cut"]) == (0, 0)


@pytest.mark.parametrize("n_documents", [1, 3])
def test_what_is_cut_is_told_with_the_count(subject, sae, tmp_path, n_documents):
    lost = n_documents * (len(subject.to_tokens(LONG)) - subject.n_ctx)
    said = f"{lost:,} tokens of {n_documents} documents.*long='split'"
    corpus = ["Tim ran", *[LONG] * n_documents]
    with pytest.warns(UserWarning, match=said):
        acts = saelab.harvest(subject, corpus, [HOOK], tmp_path / "a", long="truncate", progress=False)
    with pytest.warns(UserWarning, match=said):
        store = saelab.index(subject, sae, corpus, tmp_path / "f", long="truncate", progress=False)
    for manifest in (acts.manifest, store.manifest):
        assert (manifest["documents_cut"], manifest["tokens_cut"]) == (n_documents, lost)


def test_what_is_short_of_max_rows_is_told(subject, sae, tmp_path):
    with pytest.warns(UserWarning, match=r"fewer rows than max_rows=5,000\. Got \d+"):
        saelab.harvest(subject, zoo.TEXTS, [HOOK], tmp_path / "a", max_rows=5_000, progress=False)
    with pytest.warns(UserWarning, match=r"fewer rows than max_rows=5,000\. Got \d+"):
        saelab.index(subject, sae, zoo.TEXTS, tmp_path / "f", max_rows=5_000, progress=False)


@pytest.mark.parametrize("packing", ["document", "blocks", "blocks_masked"])
@pytest.mark.parametrize("max_rows", [1, 70, 333])
def test_no_more_is_run_than_the_rows_and_a_batch(subject, monkeypatch, tmp_path, packing, max_rows):
    corpus = [LONG, *(f"{text} {i}" for i, text in enumerate(zoo.TEXTS * 40)), LONG]
    whole = saelab.harvest(subject, corpus, [HOOK], tmp_path / "whole", packing=packing, progress=False)
    ran = positions_run(subject, monkeypatch)
    how = {"packing": packing, "max_rows": max_rows, "batch_size": 4, "progress": False}
    some = saelab.harvest(subject, corpus, [HOOK], tmp_path / "some", **how)
    assert len(some) == max_rows
    # liveness is known by now; a batch is four blocks of the context at most, each with a BOS that is no row
    assert sum(ran) <= max_rows * 1.2 + 4 * subject.n_ctx
    a, b = (torch.as_tensor(s.acts(range(max_rows), HOOK)) for s in (some, whole))
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_no_more_samples_are_run_than_are_needed(monkeypatch, tmp_path):
    subject = zoo.cnn_subject()
    hook = "1.0"
    saelab.harvest(subject, zoo.images(2), [hook], tmp_path / "first", progress=False)
    ran = positions_run(subject, monkeypatch)
    store = saelab.harvest(
        subject, zoo.images(50), [hook], tmp_path / "acts", max_rows=100, batch_size=2, progress=False
    )
    assert (len(store), sum(ran)) == (100, 2)  # of 64 rows each


@pytest.mark.parametrize("packing", ["document", "blocks", "blocks_masked"])
def test_bos_is_a_row_nowhere_unless_it_is_asked_for(subject, sae, tmp_path, packing):
    texts = ["Once upon a time.<|bos|>Tim ran.<|bos|><|bos|>The sun.", "<|bos|>Tim"]
    ids = [i for text in texts for i in subject.to_tokens(text)]
    n_bos = ids.count(subject.bos_id)
    assert n_bos == 5
    acts = saelab.harvest(subject, texts, [HOOK], tmp_path / "a", packing=packing, progress=False)
    store = saelab.index(subject, sae, texts, tmp_path / "f", packing=packing, progress=False)
    assert len(acts) == store.n_rows == len(ids) - n_bos
    assert "<|bos|>" not in store.query("select name from vocabulary where count > 0")["name"].tolist()
    with_bos = saelab.harvest(
        subject, texts, [HOOK], tmp_path / "b", packing=packing, include_bos=True, progress=False
    )
    assert len(with_bos) == len(ids)
    counted = subject.prepare(texts).counted
    assert int(counted.sum()) == len(ids) - n_bos


def test_the_bos_of_a_later_piece_is_no_row_even_where_bos_is_asked_for(subject, tmp_path):
    ids = subject.to_tokens(LONG)
    acts = saelab.harvest(subject, [LONG], [HOOK], tmp_path / "a", include_bos=True, progress=False)
    assert len(acts) == len(ids)
    positions = acts.rows(range(len(ids)), HOOK).rows[:, 1].tolist()
    assert positions == list(range(len(ids)))


def test_the_context_is_what_is_asked_for():
    model, tokenizer = zoo.causal_lm("llama"), zoo.byte_tokenizer()
    subject = saelab.LanguageModel(model, tokenizer, n_ctx=16)
    assert subject.n_ctx == 16
    with pytest.raises(CorpusError, match="context of 16 tokens"):
        subject.prepare([LONG])
    for bad in (0, 65, 1.5, True):
        with pytest.raises(ConfigError, match=r"n_ctx must be an integer in 1\.\.64"):
            saelab.LanguageModel(model, tokenizer, n_ctx=bad)


def test_a_context_that_nobody_knows_can_be_passed():
    model = zoo.causal_lm("bloom")
    del model.config.seq_length
    with pytest.raises(SubjectError, match="n_ctx="):
        saelab.LanguageModel(model, zoo.byte_tokenizer())
    assert saelab.LanguageModel(model, zoo.byte_tokenizer(), n_ctx=40).n_ctx == 40


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("bf16", torch.bfloat16), ("fp16", torch.float16), ("float64", torch.float64),
        (torch.float16, torch.float16),
        (None, torch.float32), ("auto", torch.bfloat16),
    ],
)  # fmt: skip
def test_dtypes_by_their_usual_names(tmp_path, dtype, expected):
    zoo.causal_lm("llama").bfloat16().save_pretrained(tmp_path)
    zoo.byte_tokenizer().save_pretrained(tmp_path)
    subject = saelab.load_subject(tmp_path, dtype=dtype, n_ctx=32)
    assert (subject.model.dtype, subject.n_ctx) == (expected, 32)


@pytest.mark.parametrize("device", ["cuda:7", "mps", "gpu", "meta", 3.5])
def test_absent_devices_are_refused_in_one_sentence(tmp_path, device):
    with pytest.raises(SubjectError, match=r"^device must be one of this machine's, cpu\b") as told:
        saelab.load_subject(tmp_path, device=device)
    assert len(str(told.value)) < 150
