"""Absorption and splitting, on latents that are planted so and on what ships with saelab."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import saelab
from saelab.analysis.probing.absorbed import absorption, f1, main_latents
from saelab.analysis.probing.linear import probe_of
from saelab.analysis.probing.words import read_words, words_of
from saelab.analysis.sources import Ground
from saelab.analysis.suites.absorption import UNTRAINED, Absorption, Cases, judged
from saelab.types import ConfigError, HookPoint

LETTERS, KINDS = 3, 20
"""Letters, and words of each; a word's activation is its letter's direction and its own. A twentieth
of a letter is too little to count as a latent that it is split into."""
WIDTH = LETTERS + LETTERS * KINDS


def cases(n: int = 1800) -> Cases:
    rng = np.random.default_rng(0)
    word = np.arange(n) % (LETTERS * KINDS)
    x = np.abs(rng.normal(0, 0.01, (n, WIDTH)))
    x[np.arange(n), word // KINDS] += 1.0
    x[np.arange(n), LETTERS + word] += 1.0
    labels = np.array(["abc"[w // KINDS] for w in word])
    judge = np.arange(n) // (LETTERS * KINDS) % 3 == 0
    return Cases(torch.tensor(x).float(), labels, judge, np.arange(n))


def sae(absorbed: tuple[int, ...] = ()) -> saelab.SAE:
    """A latent for each letter and each word; those of absorbed words bear their letter too."""
    made = saelab.SAE.create(saelab.recipe("jumprelu", d_in=WIDTH, d_sae=WIDTH, hook="h")).eval()
    with torch.no_grad():
        made.W_enc.copy_(torch.eye(WIDTH))
        made.W_dec.copy_(torch.eye(WIDTH))
        made.b_enc.zero_()
        made.b_dec.zero_()
        made.sparsifier.log_threshold.fill_(np.log(0.5))
        for word in absorbed:
            made.W_enc[LETTERS + word, word // KINDS] = -2
            made.W_dec[LETTERS + word, word // KINDS] = 1
    return made


@pytest.mark.parametrize(("absorbed", "share"), [((), 0), ((1,), 1 / 60), ((0, 25), 2 / 60)])
def test_the_words_whose_latents_bear_the_letter_are_found(absorbed, share):
    given = cases()
    arms = {"": sae(absorbed), UNTRAINED: saelab.SAE.create(sae().config, seed=1, rows=given.x)}
    claims, left_out, table = judged(arms, given, 0.6, 0)
    assert left_out == {}
    assert table["latents"].str.split().str[0].tolist() == ["0", "1", "2"]
    assert (table["F1 of the probe"] > 0.99).all()
    for letter, line in zip("abc", table.to_dict("records"), strict=True):
        own = given.judge & (given.labels == letter)
        word = given.x[:, LETTERS:].numpy().argmax(1)
        truth = np.isin(word[own], absorbed).mean()
        assert line["full"] == pytest.approx(truth)
        assert line["fraction"] == pytest.approx(truth)
    assert claims["full"].value == pytest.approx(share)
    # latents that have nothing to do with a letter leave it to others
    assert claims["fraction"].also[0].value > 0.5


def plainly(z: np.ndarray, main: list[int], cosine: np.ndarray, length: np.ndarray, whole: float):
    """The definition, word by word, as SAEBench's reads."""
    brought = [z[j] * length[j] * cosine[j] for j in range(len(z))]
    own = sum(brought[j] for j in main)
    others = sorted(
        (brought[j] for j in range(len(z)) if j not in main and cosine[j] >= 0.1 and brought[j] > 0),
        reverse=True,
    )
    top = sum(others[:3])
    if own >= whole or top / whole < 0.4:
        fraction = 0.0
    elif own <= 0:
        fraction = 1.0
    else:
        taken = min(top, whole - own)
        fraction = min(max(taken / (taken + own), 0.0), 1.0)
    first = max(range(len(z)), key=lambda j: brought[j])
    full = (
        all(z[j] == 0 for j in main)
        and cosine[first] >= 0.025
        and whole >= 0
        and brought[first] / whole >= 0.4
    )
    return fraction, full


def test_it_is_the_definition_word_by_word():
    rng = np.random.default_rng(3)
    z = rng.random((400, 8)) * (rng.random((400, 8)) < 0.35)
    cosine, length = rng.uniform(-0.3, 0.9, 8), rng.uniform(0.5, 2, 8)
    whole = rng.uniform(-0.2, 1.5, 400)
    for main in ([0], [3, 5]):
        found = absorption(z, np.array(main), cosine, length, whole)
        expected = [plainly(z[i], main, cosine, length, whole[i]) for i in range(400)]
        assert np.allclose(found.fraction, [each[0] for each in expected])
        assert found.full.tolist() == [each[1] for each in expected]
        assert 0.05 < found.fraction.mean() < 0.9
        assert found.full.any()


def test_a_letter_is_split_into_as_many_latents_as_it_takes():
    from scipy.sparse import csr_matrix

    rng = np.random.default_rng(0)
    for parts in (1, 2, 4):
        yes = rng.random(900) < 0.3
        codes = (rng.random((900, 20)) < 0.05) * 1.0
        which = rng.integers(parts, size=900)
        for part in range(parts):
            codes[:, part] = np.where(yes & (which == part), 2.0, 0.0)
        assert sorted(main_latents(csr_matrix(codes), yes, 0)) == list(range(parts))


def test_a_probe_points_where_the_letter_is():
    x = cases().x.double().numpy()
    probe = probe_of(x, np.array(cases().labels) == "a")
    assert np.linalg.norm(probe.direction) == pytest.approx(1)
    assert probe.direction.argmax() == 0
    assert f1(probe.says(x), cases().labels == "a") == 1.0
    assert f1(np.array([True, True, False]), np.array([True, False, True])) == 0.5


@pytest.fixture(scope="module")
def lab():
    return saelab.Lab.embedded()


def test_words_are_tokens_of_letters_read_at_their_own_position(lab, stories):
    for subject in (lab.subject, stories):
        words = words_of(subject, 10_000, 0)
        assert len(words.ids) > 150
        strings = subject.token_strings(words.ids.tolist())
        assert [s.strip()[0].lower() for s in strings] == words.letters.tolist()
        assert len(words_of(subject, 20, 0).ids) == 20
    words = words_of(lab.subject, 30, 0)
    hook = HookPoint("blocks.1.hook_resid_post")
    alone = read_words(lab.subject, [hook], words, 0, 7, 0)
    for i in (0, 29):
        inputs = lab.subject.prepare_tokens([[0, int(words.ids[i])]])
        acts = lab.subject.run(inputs, read=[hook], output=False).acts[str(hook)]
        assert torch.allclose(alone[i], acts[0, 1], atol=1e-4)
    after = read_words(lab.subject, [hook], words, 2, 7, 0)
    assert not torch.allclose(after, alone, atol=0.1)


def test_letters_that_the_model_does_not_know_are_left_out_and_labels_are_judged(lab):
    corpus = saelab.corpora.world(seed=6, n_documents=300)
    report = saelab.evaluate(
        lab.sae, lab.subject, corpus, suites=(Absorption(examples=0, rows=8_000),), max_rows=8_000
    )
    assert "is known to the model" in report.left_out["absorption: letters"]
    claim = report.claims["absorption: labels_fraction"]
    assert 0 <= claim.value <= 1
    assert {claim.what, *(each.what for each in claim.also)} == {"untrained SAE", "random latents"}
    assert report.claims["absorption: labels_split"].value >= 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"bar": 2}, "F1 from 0 to 1"),
        ({"held_out": 0}, "between 0 and 1"),
        ({"examples": -1}, "examples must be an integer >= 0"),
        ({}, "needs first letters, or labels of tokens"),
    ],
)
def test_what_cannot_be_judged_is_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        Absorption(**options).run(sae(), Ground(None, cases(50).x))


def test_a_transcoder_is_refused():
    config = saelab.recipe("skip_transcoder", d_in=4, d_out=4, d_sae=8, k=2, hook="a", hook_out="b")
    with pytest.raises(ConfigError, match=r"autoencoder of one hook point\. Got a skip_transcoder"):
        Absorption().run(saelab.SAE.create(config), Ground(None, torch.ones(3, 4)))
