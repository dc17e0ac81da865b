"""Streams against a harvested store: the same rows, bounded, in an order that a continued run finds again."""

from __future__ import annotations

import itertools
import threading

import numpy as np
import pytest
import subjects_zoo as zoo
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from saelab.corpora import world
from saelab.harvesting import harvest
from saelab.sae import recipe
from saelab.subjects import LanguageModel
from saelab.training import stream, train
from saelab.training.streaming import _buffer, _shuffled
from saelab.types import ConfigError, CorpusError, HookError, ShapeError

HOOK = "blocks.0.hook_resid_post"


@pytest.fixture(scope="module")
def subject():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=300, n_embd=16, n_layer=2, n_head=2, n_positions=32, **zoo.NO_SPECIAL)
    return LanguageModel(GPT2LMHeadModel(config), zoo.byte_tokenizer())


@pytest.fixture(scope="module")
def corpus():
    return world(seed=1, n_documents=300)


@pytest.fixture(scope="module")
def harvested(subject, corpus, tmp_path_factory):
    store = harvest(subject, corpus, [HOOK], tmp_path_factory.mktemp("acts") / "a", progress=False)
    return store.rows(np.arange(store.n_rows), HOOK).acts


def rows_of(batches, n):
    return torch.cat(list(itertools.islice(batches, n)))


def as_set(rows):
    return sorted(map(tuple, rows.double().round(decimals=5).tolist()))


@pytest.mark.parametrize(("buffer_rows", "size"), [(512, 64), (500, 96), (64, 64), (10, 64)])
@pytest.mark.parametrize("refills", [1, 2, 5])
def test_every_row_is_given_once_and_half_of_the_buffer_waits(
    subject, corpus, harvested, buffer_rows, size, refills
):
    per_half = max(1, buffer_rows // 2 // size)
    half = per_half * size
    given = stream(subject, corpus, HOOK, buffer_rows=buffer_rows).batches(size, seed=3)
    rows = rows_of(given, refills * per_half)
    waiting = _buffer(half, 3, refills)
    assert len(waiting) == len(waiting.unique()) == 2 * half
    read = torch.arange((refills + 2) * half)
    out = read[~torch.isin(read, waiting)]
    assert len(out) == len(rows) == refills * half
    passes = torch.cat([harvested] * (1 + len(read) // len(harvested)))
    assert as_set(rows) == as_set(passes[out])
    assert not torch.allclose(rows, passes[out], atol=1e-4)


def test_neighbours_in_a_batch_share_a_document_as_often_as_chance_says():
    """Documents of 20 rows; once the buffer has been mixed for a while, within three standard deviations."""
    half, pairs, same, expected = 4_000, 0, 0, 0.0
    for refill in range(3, 40):
        rows = _buffer(half, 7, refill)[_shuffled(half, 7, refill)]
        document = rows // 20
        same += int((document[: half - 1] == document[1:half]).sum())
        counts = torch.bincount(document - document.min()).double()
        expected += float((counts * (counts - 1)).sum() / (2 * half * (2 * half - 1))) * (half - 1)
        pairs += half - 1
    assert abs(same - expected) < 3 * expected**0.5
    assert expected / pairs < 0.002


def test_a_small_corpus_fills_the_buffer_in_several_passes(subject, corpus, harvested):
    n = len(harvested)
    size = n // 3 + 5
    rows = rows_of(stream(subject, corpus, HOOK, buffer_rows=2 * size).batches(size, seed=0), 4)
    waiting = _buffer(size, 0, 4)
    read = torch.arange(6 * size)
    assert as_set(rows) == as_set(harvested[read[~torch.isin(read, waiting)] % n])


@pytest.mark.parametrize("start", [1, 4, 7, 23, 90])
def test_a_later_start_gives_the_same_batches(subject, corpus, start):
    def source():
        return stream(subject, corpus, HOOK, buffer_rows=256, batch_size=2)

    whole = itertools.islice(source().batches(64, seed=5), start, start + 3)
    for a, b in zip(whole, source().batches(64, seed=5, start=start), strict=False):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_a_subject_without_tokens_streams_too():
    subject = zoo.cnn_subject()
    source = stream(subject, zoo.images(40), subject.hooks()[0], buffer_rows=32)
    first = list(itertools.islice(source.batches(8, seed=0), 6))
    again = list(itertools.islice(source.batches(8, seed=0, start=3), 3))
    for a, b in zip(first[3:], again, strict=True):
        torch.testing.assert_close(a, b)


def test_training_from_a_stream_equals_itself_and_continues(subject, corpus, tmp_path):
    config = recipe("topk", d_in=16, d_sae=32, k=4)
    arguments = {"steps": 40, "batch_size": 64, "seed": 0, "progress": False}

    def source():
        return stream(subject, corpus, HOOK, buffer_rows=256)

    whole = train(config, source(), out=tmp_path / "whole", **arguments)
    assert str(whole.sae.hook) == HOOK

    def stop(event):
        if event.name == "checkpoint" and event.step >= 20:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        train(config, source(), out=tmp_path / "cut", callbacks=[stop], **arguments)
    continued = train(config, source(), out=tmp_path / "cut", **arguments)
    for name, tensor in whole.sae.state_dict().items():
        torch.testing.assert_close(continued.sae.state_dict()[name], tensor, rtol=0, atol=0)
    with pytest.raises(ConfigError, match="data"):
        train(
            config,
            stream(subject, corpus, HOOK, buffer_rows=128),
            out=tmp_path / "whole",
            **arguments,
        )


def test_the_thread_ends_with_its_reader_and_its_errors_arrive(subject, corpus, monkeypatch):
    def threads():
        return [t for t in threading.enumerate() if t.name == "saelab-stream"]

    batches = stream(subject, corpus, HOOK, buffer_rows=128).batches(64, seed=0)
    next(batches)
    assert len(threads()) == 1
    batches.close()
    assert not threads()

    def fails(*args, **kwargs):
        message = "planted"
        raise ZeroDivisionError(message)

    source = stream(subject, corpus, HOOK, buffer_rows=128)
    monkeypatch.setattr(subject, "run", fails)
    with pytest.raises(ZeroDivisionError, match="planted"):
        next(source.batches(64, seed=0))
    assert not threads()


def test_bad_streams_are_refused(subject, corpus):
    with pytest.raises(HookError, match="hook_resid_post"):
        stream(subject, corpus, "blocks.0.hook_resid_pst")
    with pytest.raises(CorpusError):
        stream(subject, [], HOOK)
    with pytest.raises(ConfigError, match="buffer_rows"):
        stream(subject, corpus, HOOK, buffer_rows=0)
    with pytest.raises(ShapeError, match="d_in"):
        train(recipe("topk", d_in=8, d_sae=32, k=4), stream(subject, corpus, HOOK), steps=2, batch_size=8)
    config = recipe("topk", d_in=16, d_sae=32, k=4, hook="blocks.1.hook_resid_post")
    with pytest.raises(HookError):
        train(config, stream(subject, corpus, HOOK), steps=2, batch_size=8)
    config = recipe("topk", d_in=16, d_sae=32, k=4)
    source = stream(subject, corpus, HOOK)
    with pytest.raises(ConfigError, match="no last rows"):
        train(config, source, steps=2, batch_size=8, held_out=100)
    with pytest.raises(ConfigError, match="Got a stream"):
        train(config, source, steps=2, batch_size=8, held_out=source)
    run = train(config, source, steps=2, batch_size=8, held_out=torch.randn(30, 16), progress=False)
    assert run.history[-1].held_out_fvu is not None
