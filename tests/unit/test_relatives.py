"""What is near a latent, against definitions and what was planted; windows that are made when asked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from letters import LONE, N_LATENTS, NEGATIVE, NEVER, TEXTS, TIED, WIDTH, Letters, Planted

import saelab
from saelab.analysis import drawn_examples, relatives, whole_document
from saelab.analysis.relatives import _chance_shares
from saelab.analysis.results_near import Hint
from saelab.types import RangeError, StoreError


@pytest.fixture
def rows(store):
    sql = "select name, document, position from rows join vocabulary using (shown) order by row"
    return store.query(sql)


def test_directions_and_neurons_are_those_of_the_decoder(store):
    rows = np.asarray(store.directions, np.float64)
    found = relatives(store, TIED, 4)
    norm = np.linalg.norm(rows, axis=1)
    cosine = np.divide(rows @ rows[TIED], norm * norm[TIED], out=np.full(N_LATENTS, -2.0), where=norm > 0)
    cosine[TIED] = -2
    assert [s.latent for s in found.similar] == np.argsort(-cosine, kind="stable")[:4].tolist()
    assert [s.cosine for s in found.similar] == pytest.approx(np.sort(cosine)[::-1][:4].tolist(), abs=1e-3)
    best = [
        np.delete(rows @ rows[j] / norm[j] / np.maximum(norm, 1e-9), j).max() for j in range(1, N_LATENTS)
    ]
    assert found.similar_usual == pytest.approx(np.median(best), abs=1e-3)
    squares = np.sort(rows[TIED] ** 2)[::-1] / norm[TIED] ** 2
    assert found.aligned == pytest.approx((squares[0], 1), abs=1e-3)
    assert found.neurons[0].neuron == np.argmax(np.abs(rows[TIED]))

    # chance, by drawing it: the nearest of the others; the largest neuron
    random = np.random.default_rng(1)
    drawn = random.standard_normal((4_000, N_LATENTS - 2, WIDTH))
    drawn /= np.linalg.norm(drawn, axis=2, keepdims=True)
    assert (drawn[:, :, 0].max(1) > found.similar_chance).mean() == pytest.approx(0.01, abs=0.005)
    assert ((drawn[:, 0] ** 2).max(1) > found.aligned_chance[0]).mean() == pytest.approx(0.01, abs=0.006)
    ten = np.sort(random.standard_normal((4_000, 300)) ** 2, axis=1)
    ten = ten[:, -10:].sum(1) / ten.sum(1)
    assert (ten > _chance_shares(300)[1]).mean() == pytest.approx(0.01, abs=0.006)
    lost = relatives(store, NEVER)
    assert (lost.similar, lost.neurons, lost.together, lost.hints) == ((), (), (), ())


def test_partners_stand_beside_what_independent_ones_give(store):
    fires = np.zeros((store.n_rows, N_LATENTS))
    for latent in range(N_LATENTS):
        fires[store.codes(latent)[0], latent] = 1
    found = relatives(store, TIED)
    assert len(found.together) > 3
    for other, count, expected, jaccard in found.together:
        both = (fires[:, TIED] * fires[:, other]).sum()
        assert count == both
        assert expected == pytest.approx(fires[:, TIED].sum() * fires[:, other].sum() / len(fires), rel=1e-4)
        assert jaccard == pytest.approx(both / np.maximum(fires[:, TIED], fires[:, other]).sum(), rel=1e-4)


class Split(Planted):
    """Latents 7 and 8 take turns where a coordinate is > 0; 9 fires where 7 does. All have one direction."""

    def __init__(self):
        super().__init__()
        self.W_dec[[8, 9]] = self.W_dec[7].clone()

    def encode_sparse(self, x):
        codes = self.dense(x)
        letter, half = x[:, 2] > 0, torch.arange(len(x)) % 2 > 0
        codes[letter] = 0  # of the others
        codes[:, 7] = letter * half
        codes[:, 8] = letter * ~half
        codes[:, 9] = codes[:, 7] * 2
        return saelab.types.Codes.from_dense(codes)

    def fingerprint(self):
        return "split"


def test_what_fires_instead_of_a_latent_is_found(tmp_path):
    store = saelab.index(Letters(), Split(), TEXTS * 3, tmp_path / "s", progress=False)
    found = {hint.latent: hint for hint in relatives(store, 7).hints}
    assert found[8].kind == "instead"
    assert found[8].count == 0 < found[8].expected - 3 * found[8].spread
    assert found[9].kind == "together"
    assert found[9].count == len(store.codes(7)[0])
    assert 10 not in found
    # of each letter: expected common rows of independent ones
    a, b = (store.firings(j, 100).set_index("name")["count"] for j in (7, 8))
    shown = store.query("select name, count from vocabulary").set_index("name")["count"]
    expected = sum(a[c] * b[c] / shown[c] for c in a.index.intersection(b.index))
    assert found[8].expected == pytest.approx(expected)
    assert found[8].overlap == pytest.approx(
        sum(min(a[c] / a.sum(), b[c] / b.sum()) for c in a.index.intersection(b.index))
    )
    assert Hint(1, 1.0, 1.0, 12, 10.0, 1.0).kind == "alike"


def test_random_and_silent_windows_are_of_the_store(store, rows):
    fired, values = store.codes(TIED)
    found = drawn_examples(store, TIED, 6)
    assert len({w.row for w in found.windows}) == 6
    for w in found.windows:
        assert w.value == values[fired == w.row][0]
        assert w.names[w.position - w.start] == rows["name"][w.row]
        own = rows[rows["document"] == w.document]
        part = own[(own["position"] - w.position).abs() <= 10]
        assert w.names == part["name"].tolist()
        assert w.values.tolist() == [dict(zip(fired, values, strict=True)).get(r, 0) for r in part.index]
    assert [w.row for w in drawn_examples(store, TIED, 6, seed=1).windows] != [w.row for w in found.windows]
    assert drawn_examples(store, NEVER).windows == ()

    silent = drawn_examples(store, TIED, 50, "silent")
    names = set(store.apart.top[TIED])
    want = set(rows.index[rows["name"].isin(names)]) - set(fired.tolist())
    assert {w.row for w in silent.windows} == want
    assert {w.value for w in silent.windows} <= {0.0}
    assert drawn_examples(store, NEGATIVE, 3, "silent").kind == "silent"

    whole = whole_document(store, TIED, int(fired[0]))
    assert "".join(whole.names) == TEXTS[whole.document][: len(whole.names)]
    assert whole.names[whole.position - whole.start] == rows["name"][int(fired[0])]
    with pytest.raises(RangeError, match="row"):
        whole_document(store, TIED, store.n_rows)


def test_what_a_store_without_codes_cannot_say_is_said(tmp_path):
    store = saelab.index(Letters(), Planted(), TEXTS, tmp_path / "s", codes="none", progress=False)
    with pytest.raises(StoreError, match="codes of every row"):
        drawn_examples(store, LONE)
    found = relatives(store, TIED)
    assert found.together
    assert found.hints == ()
    assert "need all codes" in str(found)
