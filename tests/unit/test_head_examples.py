"""Where heads look over a corpus, against loops over whole patterns and on planted heads."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import subjects_zoo as zoo
import torch
from letters import Letters

import saelab
from saelab.analysis import head_examples
from saelab.analysis.attention.sums import Ratios
from saelab.types import ConfigError, CorpusError, RangeError, SubjectError

LENGTH = 24


@pytest.fixture(scope="module")
def subject():
    return saelab.Lab.embedded().subject


@pytest.fixture(scope="module")
def texts():
    world = [document.text for document in saelab.corpora.world(seed=33, n_documents=11)]
    return [*world[:6], "a", *world[6:]]  # one that is too short lies between


def patterns(subject, text):
    """(ids, [layers heads n n]) of one text, read alone."""
    ids = subject.to_tokens(text)[:LENGTH]
    seen = subject.attend(subject.padded([ids])).patterns
    return ids, np.stack([seen[i][0].detach().double().numpy() for i in range(subject.n_layers)])


@pytest.fixture(scope="module")
def read(subject, texts):
    """Document -> ids, patterns."""
    found = {number: patterns(subject, text) for number, text in enumerate(texts)}
    return {number: own for number, own in found.items() if len(own[0]) >= 3}


@pytest.fixture(scope="module")
def found(subject, texts):
    return head_examples(subject, texts, n=3, drawn=2, length=LENGTH)


def pairs(n):
    """Of two different positions behind the first."""
    return [(q, k) for q in range(1, n) for k in range(1, q)]


AT = [(0, 0), (1, 6), (3, 5)]


@pytest.mark.parametrize("at", AT)
def test_the_strongest_sequences_are_those_of_a_loop(found, read, subject, at):
    strongest = {number: max(own[1][at][edge] for edge in pairs(len(own[0]))) for number, own in read.items()}
    order = sorted(strongest, key=lambda number: (-strongest[number], number))[:3]
    told = found.head(*at).sequences
    assert [each.document for each in told if each.interval] == order
    assert len(read) == found.n == 11
    assert len(told) == 5
    drawn = [each.document for each in told if not each.interval]
    assert drawn == [each.document for each in found.head(2, 2).sequences if not each.interval]
    for each in told:
        ids, pattern = read[each.document]
        assert each.tokens == tuple(subject.token_strings(ids))
        assert each.strongest == pytest.approx(strongest[each.document], abs=1e-5)
        if each.strongest < 0.005:
            assert each.best is None
        else:
            assert pattern[at][each.best] == pytest.approx(each.strongest, abs=1e-5)
        kept = {tuple(edge): weight for edge, weight in zip(each.edges.tolist(), each.weights, strict=True)}
        for q, row in enumerate(pattern[at]):
            largest = [k for k in np.argsort(-row)[:8].tolist() if row[k] >= 0.0051]
            for k in largest:
                assert kept[q, k] == pytest.approx(row[k], abs=1e-5)
            assert sum(query == q for query, _ in kept) <= 8
        assert min(kept.values()) >= 0.005
    counts = np.histogram(list(strongest.values()), found.head(*at).bins)[0]
    assert found.head(*at).strongest.tolist() == counts.tolist()


def share_of(read, at, token, side, numbers, even=False):
    """(share, error) of a token of the weight between two positions, by loops."""
    above, total = [], []
    for number in numbers:
        ids, pattern = read[number]
        own = np.tri(len(ids)) / np.arange(1, len(ids) + 1)[:, None] if even else pattern[at]
        above.append(sum(own[edge] for edge in pairs(len(ids)) if ids[edge[1 - side]] == token))
        total.append(sum(own[edge] for edge in pairs(len(ids))))
    share = sum(above) / sum(total)
    left = np.array(above) - share * np.array(total)
    n = len(left)
    return share, np.sqrt(np.square(left).sum() * n / (n - 1)) / sum(total)


@pytest.mark.parametrize("at", AT)
@pytest.mark.parametrize("side", ["keys", "queries"])
def test_tokens_are_chosen_on_half_and_judged_on_the_other(found, read, subject, at, side):
    number = int(side == "queries")
    choose, judge = list(read)[::2], list(read)[1::2]
    lifts = {}
    for token in {token for each in choose for token in read[each][0]}:
        own = share_of(read, at, token, number, choose)[0]
        lifts[token] = own - share_of(read, at, token, number, choose, even=True)[0]
    order = [token for token in sorted(lifts, key=lambda token: -lifts[token]) if lifts[token] > 1e-9][:10]
    told = getattr(found.head(*at), side)
    assert sorted(each.token for each in told) == sorted(subject.token_strings(order))
    for each, token in zip(told, order, strict=True):
        share, error = share_of(read, at, token, number, judge)
        assert each.share == pytest.approx(share, abs=1e-5)
        assert each.even == pytest.approx(share_of(read, at, token, number, judge, even=True)[0], abs=1e-5)
        assert each.low == pytest.approx(max(share - 1.96 * error, 0), abs=1e-4)
        assert each.high == pytest.approx(share + 1.96 * error, abs=1e-4)


def test_measures_and_distances_are_those_of_loops(found, read):
    at = (1, 6)
    by_hand = {name: [] for name in found.measures}
    away, even = np.zeros(13), []
    for ids, pattern in read.values():
        p, n = pattern[at], len(ids)
        for q in range(1, n):
            by_hand["self"].append(p[q, q])
            by_hand["previous"].append(p[q, q - 1])
            by_hand["first"].append(p[q, 0])
            by_hand["spread"].append(-sum(w * np.log(w) for w in p[q] if w > 0))
            by_hand["distance"].append(sum(p[q, k] * (q - k) for k in range(q + 1)))
            before = [j for j in range(q) if ids[j] == ids[q]]
            if before:
                by_hand["induction"].append(sum(p[q, j + 1] for j in before))
                even.append(len(before) / (q + 1))
        for q, k in pairs(n):
            away[[i for i, edge in enumerate((1, 2, 4, 8, 16, 32)) if q - k >= edge][-1] + 1] += p[q, k]
    for name, values in by_hand.items():
        assert found.measures[name].values[at] == pytest.approx(np.mean(values), rel=1e-4), name
        assert found.measures[name].low[at] < np.mean(values) < found.measures[name].high[at]
    assert found.measures["induction"].even == pytest.approx(np.mean(even), rel=1e-5)
    np.testing.assert_allclose(found.head(*at).away, away / away.sum(), atol=1e-5)
    assert found.head(*at).even_away.sum() == pytest.approx(1)


def test_intervals_hold_the_truth():
    """Of ratios of sums: 95 % of them."""
    random = np.random.default_rng(0)
    held = []
    for _ in range(400):
        ratios = Ratios((1,))
        for _ in range(60):
            size = random.integers(5, 30)
            ratios.add([random.binomial(size, 0.3)], [size])
        value, low, high = ratios.told()
        held.append(low[0] <= 0.3 <= high[0])
        assert low < value < high
    assert 0.92 < np.mean(held) < 0.98


class Planted:
    """One layer of two heads: the first looks at the last "b" before, else at the first position; the second
    attends evenly."""

    n_ctx, bos_id, n_layers, d_vocab = 40, 0, 1, 128
    fingerprint = run = prepare_tokens = layer_maps = None

    def to_tokens(self, text, bos=True):
        return [0, *map(ord, text)]

    def token_strings(self, ids):
        return [chr(i) for i in ids]

    def corpus(self, texts):
        return saelab.corpora.as_corpus(texts)

    def read(self, documents, how):
        inputs = self.padded([self.to_tokens(document.text) for _, document in documents])
        return SimpleNamespace(passes=lambda: iter([([0], inputs)]))

    def padded(self, rows):
        longest = max(map(len, rows))
        ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
        return SimpleNamespace(data={"input_ids": ids}, lengths=np.array([len(row) for row in rows]))

    def attend(self, inputs, read, *, output):
        ids = inputs.data["input_ids"]
        n = ids.shape[1]
        pattern = torch.zeros(len(ids), 2, n, n)
        pattern[:, 1] = torch.tril(torch.ones(n, n)) / torch.arange(1, n + 1)[:, None]
        for sample, row in enumerate(ids.tolist()):
            for at in range(n):
                before = [k for k in range(1, at) if row[k] == ord("b")]
                pattern[sample, 0, at, before[-1] if before else 0] = 1
        return SimpleNamespace(patterns={0: pattern})


def test_a_planted_head_is_told_and_an_even_one_is_not():
    random = np.random.default_rng(3)
    texts = ["".join(random.choice(list("abcdef"), 20)) for _ in range(30)]
    found = head_examples(Planted(), texts, n=4)
    head = found.head(0, 0)
    assert [each.token for each in head.keys] == ["b"]
    assert (head.keys[0].share, head.keys[0].apart) == (1.0, True)
    assert head.keys[0].even < 0.4
    assert all(each.strongest == 1 and each.tokens[each.best[1]] == "b" for each in head.sequences[:4])
    even = found.head(0, 1)
    assert not any(each.apart for each in (*even.keys, *even.queries))
    for name, own in found.measures.items():
        assert own.values[0, 1] == pytest.approx(own.even, rel=1e-6), name
    np.testing.assert_allclose(even.away, even.even_away, atol=1e-7)
    assert "looks at: 'b' 100.0%" in str(head)
    assert "no token above even attention" in str(even)
    assert len(repr(head)) < 200
    assert list(found.to_frame()["head"]) == [0, 1]


def test_what_it_cannot_read_is_refused(subject, found):
    with pytest.raises(SubjectError, match="Examples of heads needs"):
        head_examples(Letters(), ["abc", "abc"])
    with pytest.raises(CorpusError, match=r"two documents of 3 tokens or more\. Got 1"):
        head_examples(subject, ["When Rosa and Tobin"])
    with pytest.raises(CorpusError):
        head_examples(subject, [])
    with pytest.raises(ConfigError, match="length must be"):
        head_examples(subject, ["When Rosa and Tobin"] * 2, length=2)
    with pytest.raises(RangeError, match=r"one of the 32 that are known.* Got layer=4"):
        found.head(4, 0)


def test_other_models_are_read_the_same_way():
    """Of grouped queries and rotary positions: rows of attention sum to 1, whatever the batch."""
    subject = zoo.language_model("llama")
    texts = ["abcabcabcabc", "a b", "bcd bcd bcd bcd bcd", "zyx", "xyzzy xyz"]
    found = head_examples(subject, texts, n=2, length=12)
    alone = head_examples(subject, texts[:2], n=2, length=12)
    one, other = (each.head(1, 1).sequences for each in (found, alone))
    shared = {each.document: each for each in one}
    for each in other:
        if each.document in shared:
            assert shared[each.document].strongest == pytest.approx(each.strongest, abs=1e-5)
