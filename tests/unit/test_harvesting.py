"""Harvesting against one document at a time by the library itself; stores whole or absent."""

from __future__ import annotations

import json

import numpy as np
import pytest
import subjects_zoo as zoo
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import saelab
from saelab.corpora import world
from saelab.harvesting.batches import Batch
from saelab.harvesting.progress import progress_bar
from saelab.stores import ActivationStore
from saelab.subjects import LanguageModel
from saelab.subjects.reading import Rows
from saelab.types import (
    ConfigError,
    CorpusError,
    HookError,
    NonFiniteError,
    RangeError,
    ShapeError,
    StoreError,
)

HOOKS = ["blocks.0.hook_resid_post", "blocks.1.attn.hook_z"]


@pytest.fixture(scope="module")
def subject():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=300, n_embd=32, n_layer=3, n_head=4, n_positions=32, **zoo.NO_SPECIAL)
    return LanguageModel(GPT2LMHeadModel(config), zoo.byte_tokenizer())


@pytest.fixture(scope="module")
def texts():
    rng = np.random.default_rng(0)
    return [
        "".join(rng.choice(list("zqjxkv QZ"), size=n)).replace("  ", " zq") + "x"
        for n in (3, 20, 1, 9, 27, 14, 2)
    ]


def expected(subject, texts, hook_layer=1):
    """hidden_states of each document alone, BOS left out."""
    out, origin = [], []
    for number, text in enumerate(texts):
        ids = subject.to_tokens(text)
        states = subject.model(torch.tensor([ids]), output_hidden_states=True).hidden_states
        out.append(states[hook_layer][0, 1:].detach())
        origin += [(number, i) for i in range(1, len(ids))]
    return torch.cat(out), torch.tensor(origin)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_equals_the_library_document_by_document(subject, texts, tmp_path, batch_size):
    store = saelab.harvest(subject, texts, HOOKS, tmp_path / "acts", batch_size=batch_size, progress=False)
    acts, origin = expected(subject, texts)
    found = next(store.batches(10_000, hook=HOOKS[0]))
    torch.testing.assert_close(found.acts, acts, atol=1e-5, rtol=1e-4)
    assert torch.equal(found.rows, origin)
    assert store.hooks == HOOKS
    assert store.width(HOOKS[1]) == subject.width(HOOKS[1])
    store.verify()


def test_shards_hold_every_row_once_in_any_order(subject, texts, tmp_path):
    store = saelab.harvest(subject, texts, HOOKS[0], tmp_path / "acts", shard_rows=13, progress=False)
    assert len(list((tmp_path / "acts").glob("*.safetensors"))) == -(-store.n_rows // 13)
    acts, origin = expected(subject, texts)
    for seed in (0, 1):
        batches = list(store.batches(7, seed=seed))
        rows = torch.cat([b.rows for b in batches])
        assert sorted(map(tuple, rows.tolist())) == sorted(map(tuple, origin.tolist()))
        assert rows.tolist() != origin.tolist()
        at = {tuple(r): i for i, r in enumerate(origin.tolist())}
        back = torch.stack([acts[at[tuple(r)]] for r in rows.tolist()])
        torch.testing.assert_close(torch.cat([b.acts for b in batches]), back, atol=1e-5, rtol=1e-4)
    again = torch.cat([b.rows for b in store.batches(7, seed=1)])
    assert torch.equal(again, rows)
    parts = [r for i in range(3) for b in store.batches(4, seed=5, shard=(i, 3)) for r in b.rows.tolist()]
    assert sorted(map(tuple, parts)) == sorted(map(tuple, origin.tolist()))
    epochs = torch.cat([b.rows for b in store.batches(1000, seed=0, epochs=2)])
    n = store.n_rows
    assert sorted(epochs[:n].tolist()) == sorted(epochs[n:].tolist())
    assert epochs[:n].tolist() != epochs[n:].tolist()


@pytest.mark.parametrize("max_rows", [1, 5, 40])
def test_max_rows_is_exact(subject, texts, tmp_path, max_rows):
    store = saelab.harvest(
        subject, texts, HOOKS, tmp_path / "acts", max_rows=max_rows, batch_size=2, progress=False
    )
    acts, origin = expected(subject, texts)
    found = next(store.batches(1000, hook=HOOKS[0]))
    assert store.n_rows == max_rows
    assert torch.equal(found.rows, origin[:max_rows])
    torch.testing.assert_close(found.acts, acts[:max_rows], atol=1e-5, rtol=1e-4)


def test_bos_and_half_precision(subject, texts, tmp_path):
    whole = saelab.harvest(subject, texts, HOOKS, tmp_path / "a", include_bos=True, progress=False)
    assert whole.n_rows == sum(len(subject.to_tokens(t)) for t in texts)
    half = saelab.harvest(
        subject, texts, HOOKS, tmp_path / "b", include_bos=True, dtype="float16", progress=False
    )
    exact, rounded = next(whole.batches(999, hook=HOOKS[0])).acts, next(half.batches(999, hook=HOOKS[0])).acts
    torch.testing.assert_close(rounded, exact, atol=1e-3, rtol=1e-3)
    assert not torch.equal(rounded, exact)
    assert half.dtype == "float16"


def test_long_documents(subject, tmp_path):
    text = "zqjxkvQZ" * 12  # 96 tokens in a context of 32
    with pytest.raises(CorpusError, match=r"32 tokens.*Got 97.*'0'"):
        saelab.harvest(subject, [text], HOOKS, tmp_path / "e", long="error", progress=False)
    assert not (tmp_path / "e").exists()
    with pytest.warns(UserWarning, match="are no rows"):
        cut = saelab.harvest(subject, [text], HOOKS, tmp_path / "t", long="truncate", progress=False)
    assert cut.n_rows == 31
    split = saelab.harvest(subject, [text], HOOKS, tmp_path / "s", long="split", progress=False)
    found = next(split.batches(999, hook=HOOKS[0]))
    assert found.rows[:, 1].tolist() == list(range(1, 97))
    second = torch.tensor([subject.to_tokens(text)[:1] + subject.to_tokens(text)[32:63]])
    states = subject.model(second, output_hidden_states=True).hidden_states[1][0, 1:]
    torch.testing.assert_close(found.acts[31:62], states, atol=1e-5, rtol=1e-4)


def test_nan_is_named_and_nothing_stays(subject, texts, tmp_path):
    class Broken:
        def __getattr__(self, name):
            return getattr(subject, name)

        def run(self, inputs, **options):
            run = subject.run(inputs, **options)
            run.acts[HOOKS[0]][-1, 1, 0] = float("nan")
            return run

    with pytest.raises(NonFiniteError, match=r"blocks\.0\.hook_resid_post.*document '4' at position 1"):
        saelab.harvest(Broken(), texts, HOOKS, tmp_path / "acts", batch_size=100, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_leaves_nothing_and_keeps_what_was_there(subject, texts, tmp_path):
    saelab.harvest(subject, texts, HOOKS, tmp_path / "acts", progress=False)
    before = (tmp_path / "acts" / "manifest.json").read_text()

    class Interrupted:
        def __getattr__(self, name):
            return getattr(subject, name)

        def run(self, *args, **options):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        saelab.harvest(Interrupted(), texts, HOOKS, tmp_path / "acts", overwrite=True, progress=False)
    assert (tmp_path / "acts" / "manifest.json").read_text() == before
    assert [p.name for p in tmp_path.iterdir()] == ["acts"]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"hooks": ["blocks.0.hook_resid_pots"]}, HookError),
        ({"hooks": []}, HookError),
        ({"corpus": []}, CorpusError),
        ({"corpus": [""]}, CorpusError),
        ({"corpus": ["a", 3]}, CorpusError),
        ({"dtype": "int8"}, ConfigError),
        ({"long": "cut"}, ConfigError),
        ({"max_rows": 0}, ConfigError),
        ({"batch_size": 0}, ConfigError),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(subject, tmp_path, change, error):
    arguments = {"corpus": ["abc"], "hooks": HOOKS, "progress": False} | change
    with pytest.raises(error):
        saelab.harvest(subject, out=tmp_path / "acts", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_folders_are_not_overwritten_by_accident(subject, texts, tmp_path):
    (tmp_path / "acts").mkdir()
    (tmp_path / "acts" / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(StoreError):
            saelab.harvest(subject, texts, HOOKS, tmp_path / "acts", overwrite=overwrite, progress=False)
    assert (tmp_path / "acts" / "thesis.tex").read_text() == "years of work"


def test_damaged_stores_are_refused(subject, texts, tmp_path):
    store = saelab.harvest(subject, texts, HOOKS, tmp_path / "acts", progress=False)
    shard = tmp_path / "acts" / "shard-00000.safetensors"
    content = bytearray(shard.read_bytes())
    content[-3] ^= 1
    shard.write_bytes(content)
    with pytest.raises(StoreError, match="shard-00000"):
        ActivationStore.open(tmp_path / "acts").verify()
    shard.write_bytes(content[:-10])
    with pytest.raises(StoreError, match="truncated"):
        ActivationStore.open(tmp_path / "acts")
    manifest = tmp_path / "acts" / "manifest.json"
    manifest.write_text(json.dumps(store.manifest | {"version": 99}))
    with pytest.raises(StoreError, match="version 99"):
        ActivationStore.open(tmp_path / "acts")
    for text in ("", "{", "[]", '{"format": "other"}', "[" * 100_000):
        manifest.write_text(text)
        with pytest.raises(StoreError):
            ActivationStore.open(tmp_path / "acts")
    with pytest.raises(StoreError, match=r"manifest\.json"):
        ActivationStore.open(tmp_path)


def test_a_store_of_tensors(tmp_path):
    acts = torch.randn(50, 6)
    store = ActivationStore.create(tmp_path / "acts", {"h": acts})
    assert torch.equal(next(store.batches(100)).acts, acts)
    assert torch.equal(store.rows([4, 2, 2]).acts, acts[[4, 2, 2]])
    with pytest.raises(RangeError):
        store.rows([50])
    with pytest.raises(HookError):
        store.width("g")
    with pytest.raises(RangeError):
        store.batches(0)
    with pytest.raises(ShapeError):
        ActivationStore.create(tmp_path / "b", {"h": acts, "g": acts[:3]})
    assert not (tmp_path / "b").exists()
    assert store.fingerprint() == ActivationStore.create(tmp_path / "c", {"h": acts}).fingerprint()
    assert store.fingerprint() != ActivationStore.create(tmp_path / "d", {"h": acts + 1}).fingerprint()


def test_memory_does_not_grow_with_the_corpus(subject, tmp_path, monkeypatch):
    """The writer never holds more than two shards, whatever the corpus."""
    from saelab.stores import ActivationWriter

    made, held = ActivationWriter._buffers, []

    def spy(self, cuda):
        held.append(made(self, cuda))
        return held[-1]

    monkeypatch.setattr(ActivationWriter, "_buffers", spy)
    corpus = ["zqjxkvQZ"] * 3000
    saelab.harvest(subject, corpus, HOOKS, tmp_path / "acts", shard_rows=100, batch_size=2, progress=False)
    assert len(list((tmp_path / "acts").glob("shard-*"))) == 240
    assert len(held) == 2
    assert all(len(x) == 100 for tensors in held for x in tensors.values())


def test_other_subjects_have_positions_too(tmp_path):
    module = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(64, 3)
    )
    subject = saelab.TorchModule(module, prepare=lambda images: torch.stack(list(images)))
    images = torch.randn(5, 1, 6, 6)
    store = saelab.harvest(subject, images, ["0"], tmp_path / "acts", progress=False)
    assert store.n_rows == 5 * 16
    assert store.width("0") == 4
    found = next(store.batches(1000))
    torch.testing.assert_close(
        found.acts, module[0](images).flatten(2).transpose(1, 2).flatten(0, 1).detach()
    )
    assert found.rows[16].tolist() == [1, 0]


def test_the_corpus_is_read_as_a_stream(subject, tmp_path):
    store = saelab.harvest(
        subject, world(seed=1, n_documents=10**9), HOOKS, tmp_path / "acts", max_rows=200, progress=False
    )
    assert store.n_rows == 200


@pytest.mark.parametrize("max_rows", [None, 60, 10_000])
def test_the_progress_bar_knows_what_is_left(max_rows):
    documents = [f"{word} {word} {word}" for word in ("one", "two", "three", "four") * 20]
    corpus = world(seed=1, n_documents=60)
    assert corpus.take(7).n_documents == 7
    assert corpus.shard(1, 7).n_documents == len(list(corpus.shard(1, 7))) == 9

    with progress_bar("harvest", saelab.corpora.as_corpus(documents), max_rows, True) as bar:
        for i in range(4):
            rows = Rows(np.zeros((60, 3)), *[np.zeros(0)] * 5)
            batch = Batch(documents[20 * i : 20 * (i + 1)], 0, {}, rows, [])
            bar.add(batch)
            assert bar.bar.total == min(240, max_rows or 240)
            assert bar.bar.n == 60 * (i + 1)


def test_samples_are_a_corpus_like_texts(tmp_path):
    images = torch.randn(9, 3, 4, generator=torch.Generator().manual_seed(0))
    corpus = saelab.corpora.samples(images, "images", ids=[f"image-{i}" for i in range(9)])
    assert [d.id for d in corpus] == [f"image-{i}" for i in range(9)]
    assert all(torch.equal(d.raw, image) for d, image in zip(corpus, images, strict=True))
    assert [d.id for d in corpus.shard(1, 4)] == ["image-1", "image-5"]
    assert corpus.n_documents == 9
    assert corpus.take(4).n_documents == 4
    same = saelab.corpora.samples(list(images))
    assert corpus.fingerprint() == same.fingerprint() != saelab.corpora.samples(images + 1).fingerprint()
    assert corpus.take(4).fingerprint() != corpus.fingerprint()
    read = []

    class Lazy:
        def __len__(self):
            return 9

        def __getitem__(self, i):
            read.append(i)
            return images[i]

    lazy = saelab.corpora.samples(Lazy())
    assert read == []
    module = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.ReLU())
    subject = saelab.TorchModule(module, prepare=torch.stack)
    stores = [
        saelab.harvest(subject, given, ["0"], tmp_path / name, progress=False)
        for name, given in {"a": corpus, "b": lazy, "c": images, "d": iter(images)}.items()
    ]
    for store in stores:
        assert torch.equal(store.rows(range(27)).acts, module[0](images).flatten(0, 1).detach())
        assert store.manifest["corpus"] == corpus.fingerprint()
    with pytest.raises(CorpusError, match="ids"):
        saelab.corpora.samples(images, ids=["a"])
    with pytest.raises(CorpusError, match="at least one"):
        saelab.corpora.samples([])
