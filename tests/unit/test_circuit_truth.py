"""The frozen truth of circuits: made again in part from the model, and refused where it was altered."""

from __future__ import annotations

import json

import numpy as np
import pytest

import saelab
from saelab.analysis import activation_patching, freeze, frozen, path_patching, prompt_task, read_truths
from saelab.analysis.circuits.truth import EDGES, HEADS
from saelab.embedded.tasks import task_prompts
from saelab.types import ConfigError, StoreError

TASKS = ["agreement", "docstring", "greater than", "indirect object"]


@pytest.fixture(scope="module")
def truths():
    return read_truths(saelab.embedded.circuits_file())


def task_of(subject, truth):
    return prompt_task(subject, **task_prompts(to_tokens=subject.to_tokens, **truth.prompts)._asdict())


def made_again(subject, task, truth, rng):
    """The two largest heads and edges, and one of each that is drawn, beside what the file says of them."""
    order = np.argsort(-np.abs(truth.heads.share), kind="stable")
    heads = [*order[:2], rng.choice(order[2:])]
    again = activation_patching(subject, task, "heads", only=[truth.heads.nodes[i] for i in heads])
    yield again, truth.heads, heads
    for way, edges in truth.edges.items():
        order = np.argsort(-np.abs(edges.share), kind="stable")
        asked = [*order[:2], rng.choice(order[2:])]
        only = [edges.nodes[i] for i in asked]
        yield path_patching(subject, task, only=only, through_mlps=way == "through MLPs"), edges, asked


def agrees(subject, task, truth, seed=0):
    for again, known, at in made_again(subject, task, truth, np.random.default_rng(seed)):
        intervals = np.array([again.interval(i) for i in range(len(at))])
        for own, theirs in (
            (again.share, known.share),
            *zip(intervals.T, (known.low, known.high), strict=True),
        ):
            if not np.allclose(own, theirs[at], atol=5e-4):
                return False
    return True


def test_it_is_of_the_shipped_model_and_of_prompts_that_can_be_written_again(subject, truths):
    assert list(truths) == TASKS
    for name, truth in truths.items():
        task = task_of(subject, truth)
        truth.check(subject, task)
        assert truth.n == len(task.pairs) == 128
        assert truth.clean == pytest.approx(task.clean.mean(), abs=1e-3)
        assert truth.corrupt == pytest.approx(task.corrupt.mean(), abs=1e-3)
        assert len(truth.heads.nodes) == 32
        assert set(truth.edges) == {"direct", "through MLPs"}
        assert all(len(edges.nodes) == 6 * 8 * 8 for edges in truth.edges.values())
        assert truth.heads.known.any(), name
    assert str(truths["indirect object"].heads).startswith("1.6 +")
    with pytest.raises(ConfigError, match="one pairs alone"):
        truths["docstring"].check(subject, task)


@pytest.mark.parametrize("name", TASKS)
def test_a_part_of_it_is_what_patching_finds(subject, truths, name):
    truth = truths[name]
    assert agrees(subject, task_of(subject, truth), truth)


def test_it_is_refused_where_it_was_altered(tmp_path, subject, truths):
    text = saelab.embedded.circuits_file().read_text()
    data = json.loads(text)
    task = data["tasks"]["indirect object"]
    for old, new in ((f'"least":{HEADS}', '"least":0.01'), ('"n":128', '"n":12'), ("[[", "[[ ")):
        assert old in text
        (tmp_path / "altered.json").write_text(text.replace(old, new, 1))
        if new == "[[ ":  # the same content
            assert list(read_truths(tmp_path / "altered.json")) == TASKS
            continue
        with pytest.raises(StoreError, match="as it was frozen"):
            read_truths(tmp_path / "altered.json")
    # with a hash of its own it is read, and patching tells
    at = task["nodes"].index(["blocks.1.attn.hook_z", 6])
    task["heads"]["share"][at] = 0.5
    freeze(tmp_path / "forged.json", data["tasks"])
    forged = read_truths(tmp_path / "forged.json")["indirect object"]
    assert not agrees(subject, task_of(subject, forged), forged)
    # what it calls known is what its effects make
    task["heads"]["known"].append("0.0")
    freeze(tmp_path / "named.json", data["tasks"])
    with pytest.raises(StoreError, match="as it was frozen"):
        read_truths(tmp_path / "named.json")
    for bad in ("{}", '{"format": "saelab circuits", "version": 9}', "[1]", "\0"):
        (tmp_path / "bad.json").write_text(bad)
        with pytest.raises(StoreError):
            read_truths(tmp_path / "bad.json")
    with pytest.raises(StoreError):
        read_truths(tmp_path / "none.json")


def test_what_is_frozen_is_read(tmp_path, subject):
    prompts = {"kind": "agreement", "n": 12, "seed": 9}
    task = prompt_task(subject, **task_prompts(to_tokens=subject.to_tokens, **prompts)._asdict())
    heads = activation_patching(subject, task, "heads")
    freeze(tmp_path / "own.json", {"mine": frozen(subject, task, prompts, heads, {})})
    found = read_truths(tmp_path / "own.json")["mine"]
    found.check(subject, task)
    np.testing.assert_allclose(found.heads.share, heads.share, atol=1e-5)
    assert found.edges == {}
    np.testing.assert_array_equal(found.heads.known, saelab.analysis.important(heads))
    assert EDGES == HEADS / 10
    assert "Truth of 'mine', 12 pairs" in repr(found)
