"""Heads that continue what has been before, families of latents and roles of heads, on planted ones."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import subjects_zoo as zoo
import torch
from scipy.sparse import csr_array

import saelab
from saelab.analysis import families, head_attribution, head_roles, induction_scores, prefix_curves
from saelab.analysis.attention import families as module
from saelab.types import ConfigError, CorpusError, ShapeError, SubjectError


class Planted:
    """One layer whose heads look where they are planted to. Head k of the first three goes by the last k + 1
    tokens: to what followed their last occurrence, else to BOS; the fourth looks at the position before."""

    n_ctx, bos_id, n_layers, d_vocab, special_ids = 200, 0, 1, 1000, frozenset({0})
    corpus = read = run = fingerprint = prepare_tokens = layer_maps = None

    def to_tokens(self, text):
        return [0, *map(ord, text)]

    def token_strings(self, ids):
        return [str(i) for i in ids]

    def padded(self, rows):
        return SimpleNamespace(data={"input_ids": torch.tensor(rows)})

    def attend(self, inputs, read, *, output):
        ids = inputs.data["input_ids"].numpy()
        pattern = torch.zeros(len(ids), 4, ids.shape[1], ids.shape[1])
        for sample, row in enumerate(ids):
            for head in range(3):
                seen = {}
                for at in range(len(row)):
                    key = tuple(row[at - head : at + 1]) if at >= head else None
                    pattern[sample, head, at, seen.get(key, 0)] = 1
                    if key is not None:
                        seen[key] = min(at + 1, len(row) - 1)
            for at in range(len(row)):
                pattern[sample, 3, at, max(at - 1, 0)] = 1
        return SimpleNamespace(patterns={0: pattern})


def test_scores_of_planted_heads():
    found = induction_scores(Planted(), n=6, length=20)
    np.testing.assert_allclose(found.scores[0], [1, 18 / 19, 17 / 19, 0], atol=0.08)  # the first has no past
    np.testing.assert_allclose(found.previous[0], [0, 0, 0, 1], atol=0.02)
    assert (found.low <= found.scores).all()
    assert (found.scores <= found.high).all()
    assert found.control[0, 0] < 0.15
    frame = found.to_frame()
    assert list(frame["head"][:3]) == [0, 1, 2]
    assert "3 of 4 heads above a random position" in str(found)
    assert len(repr(found)) < 200


def test_curves_of_planted_heads():
    found = prefix_curves(Planted(), [1, 2, 3, 5], n=20, length=100)
    np.testing.assert_allclose(found.scores[0], [[1] * 4, [0, 1, 1, 1], [0, 0, 1, 1], [0] * 4], atol=0.11)
    assert found.short == [(0, 0)]
    assert found.long == [(0, 1), (0, 2)]
    # the token two before the source tells nothing to the one that goes by the last alone
    assert np.abs(found.drop[0, 0]).max() < 0.11
    assert found.drop[0, 1, 1:].min() > 0.85
    assert found.drop[0, 2, 2:].min() > 0.85
    assert found.drop_low[0, 2, 2] > 0
    assert (found.drop[..., 0] == 0).all()
    assert "by one token (score(1) > 0.5) 0.0" in str(found)
    assert len(found.to_frame()) == 16


def test_copies_that_nearly_touch():
    """Many short sequences: whatever the places, there is another position to look at."""
    found = prefix_curves(Planted(), [1, 9], n=400, length=24)
    assert np.isfinite(found.control).all()


def test_the_embedded_models_induction_heads(subject):
    """Three, all in the last layer; an untrained model has none."""
    found = induction_scores(subject, n=16)
    assert [tuple(at) for at in np.argwhere(found.low > 0.5)] == [(3, 0), (3, 1), (3, 5)]
    assert found.control.max() < 0.1
    random = induction_scores(zoo.language_model("llama"), n=16, length=20)
    assert random.scores.max() < 0.3


X, Y = 7, 11


def planted_rows(seed=0, documents=60, length=50, vocabulary=30):
    """Latents that fire by tokens: two before is X; X is next by induction; X was 10 or more back; at random;
    and never."""
    draw = np.random.default_rng(seed)
    token = draw.integers(0, vocabulary, (documents, length))
    fires = np.zeros((documents, length, 5), dtype=np.float32)
    for d, row in enumerate(token):
        for i in range(length):
            fires[d, i, 0] = i >= 2 and row[i - 2] == X
            fires[d, i, 1] = any(row[j] == row[i] and row[j + 1] == X for j in range(i - 1))
            fires[d, i, 2] = i >= 10 and Y in row[: i - 10 + 1]
            fires[d, i, 3] = draw.random() < 0.1
    fires *= draw.uniform(0.8, 1.0, fires.shape)
    rows = module._Rows(
        np.repeat(np.arange(documents), length), token.ravel(), csr_array(fires.reshape(-1, 5))
    )
    return rows, [f"<{i}>" for i in range(vocabulary)]


@pytest.fixture
def planted(monkeypatch):
    monkeypatch.setattr(module, "_read", lambda *_: planted_rows())
    model = zoo.language_model("gpt2")
    return model, saelab.SAE.create(saelab.recipe("relu", d_in=32, d_sae=5, hook="blocks.1.attn.hook_z"))


def test_planted_families_are_found_and_not_in_shuffled_tokens(planted):
    found = families(*planted, ["a"])
    told = {p.latent: p for p in found.proxies}
    assert [told[j].family for j in range(4)] == ["local", "induction", "long-range", "unclear"]
    assert [told[j].token for j in range(3)] == [f"<{X}>", f"<{X}>", f"<{Y}>"]
    assert told[0].offset == 2
    for j in range(3):
        assert told[j].precision == told[j].recall == 1
        assert told[j].precision_interval[0] > 0.8
    assert max(p.control for p in found.proxies if p.latent < 2) < 0.5
    assert found.unjudged == 1
    assert found.counts == {"induction": 1, "local": 1, "long-range": 1, "unclear": 1}
    assert "1 induction, 1 local, 1 long-range, 1 unclear" in str(found)
    assert len(found.to_frame()) == 4


def test_strength_leaves_weak_codes_out(planted, monkeypatch):
    rows, names = planted_rows()
    noise = np.random.default_rng(3).random(rows.fires.shape) < 0.3
    weak = csr_array(rows.fires.todense() + 0.1 * noise)
    monkeypatch.setattr(module, "_read", lambda *_: (rows._replace(fires=weak), names))
    assert families(*planted, ["a"], strength=0).proxies[0].family == "unclear"
    assert families(*planted, ["a"], strength=0.5).proxies[0].family == "local"


def test_roles_of_heads(planted):
    found, sae = families(*planted, ["a"]), planted[1]
    with torch.no_grad():
        sae.W_dec.zero_()
        for latent, head in ((0, 0), (1, 0), (2, 1), (3, 1), (4, 2)):
            sae.W_dec[latent, 8 * head] = 1
    roles = head_roles(found, head_attribution(sae, 4), n=2)
    assert roles.counts[:2].tolist() == [[1, 1, 0, 0], [0, 0, 1, 1]]
    assert roles.counts[2:].tolist() == [[0, 0, 0, 0]] * 2  # latent 4 never fires
    assert (roles.several, roles.judged) == (1, 1)
    assert str(roles).startswith("1 of 1 heads with two clear latents or more are of several families: 100%")
    none = head_roles(families(*planted, ["a"], bar=2), head_attribution(sae, 4), n=2)
    assert str(none).startswith("no head has two clear latents among its top 2")
    wide = saelab.SAE.create(saelab.recipe("relu", d_in=32, d_sae=8, hook="blocks.1.attn.hook_z"))
    with pytest.raises(ShapeError, match="Got 5 and 8 latents"):
        head_roles(found, head_attribution(wide, 4))


def test_what_cannot_be_asked_is_refused(planted, monkeypatch):
    model = zoo.language_model("gpt2")
    with pytest.raises(ConfigError, match=r"fit the context of 64 tokens. Got length=40, which takes 81"):
        induction_scores(model, length=40)
    with pytest.raises(ConfigError, match=r"Each of lengths must be an integer in 1\.\.9"):
        prefix_curves(model, [10])
    with pytest.raises(SubjectError, match="heads can be read"):
        induction_scores(zoo.cnn_subject())
    one = planted_rows(documents=1)
    monkeypatch.setattr(module, "_read", lambda *_: one)
    with pytest.raises(CorpusError, match="and others to judge them"):
        families(*planted, ["a"])
    monkeypatch.setattr(module, "_read", lambda *_: planted_rows())
    with pytest.raises(CorpusError, match="Some latent must fire on 10000 rows"):
        families(*planted, ["a"], least=10_000)
    with pytest.raises(ConfigError, match="what families and head_attribution give"):
        head_roles(3, 4)
