"""What is in the error: planted errors whose parts are known, held-out documents, losses, classes, widths."""

from __future__ import annotations

import numpy as np
import pandas as pd
import planted
import pytest
import torch

import saelab
from saelab.analysis import dark_matter, error_scaling
from saelab.analysis.classes import QUARTERS, bands, ordered, quarters
from saelab.analysis.dark.linear import Crossed, fold_of
from saelab.analysis.dark.scaling import power_law
from saelab.types import ConfigError, CorpusError, NonFiniteError, ShapeError

D = 48


def _normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Made(saelab.SAE):
    """Rebuilds rows as it is told, whatever its weights are."""

    made = staticmethod(lambda x: x)

    def forward(self, x, y=None, *, sparse=False):
        return super().forward(x)._replace(x_hat=self.made(x))


def _made(rebuild, d: int = D, d_sae: int = 64, hook: str = "h") -> Made:
    sae = Made(saelab.recipe("topk", d_in=d, d_sae=d_sae, k=4, hook=hook)).eval()
    sae.made = rebuild
    return sae


def _noise(x: torch.Tensor, width: int = D) -> torch.Tensor:
    """Standard normal numbers of each row, the same whenever it comes: a hash of its first two numbers."""
    angle = x[:, :2].double() @ (1e3 * _normal(2, width, seed=9)).double()
    uniform = (angle.sin() * 43758.5453).remainder(1)
    return torch.special.ndtri(uniform.clamp(1e-9, 1 - 1e-9)).to(x)


@pytest.fixture(scope="module")
def rows():
    """15,000 rows that are not round: variances from .1 to 5, a mean far from 0."""
    mix = torch.linalg.qr(_normal(D, D))[0] * torch.linspace(0.1, 5, D).sqrt()[:, None]
    return _normal(15_000, D, seed=1) @ mix + 3


@pytest.mark.parametrize(("a", "s"), [(0.9, 0.3), (0.5, 0.3), (0.5, 1.0), (0.8, 0.5), (1.1, 0.5), (1, 0.5)])
def test_planted_errors_come_apart(rows, a, s):
    """x_hat = a x + s n: (1 - a) x is linear and s n is not; within 3 % and .01."""
    spread, white = float((rows - rows.mean(0)).square().sum(1).mean()), s * s * D

    def rebuild(x):
        return a * x + s * _noise(x)

    found = dark_matter(_made(rebuild), rows, pursuit=False)
    shrunk = (1 - a) ** 2 * spread
    get = {name: score.value for name, score in found.scores.items()}
    assert get["nonlinear_fvu"] == pytest.approx(white / spread, rel=0.03)
    assert get["linear_r2"] == pytest.approx(shrunk / (shrunk + white), abs=0.01)
    assert get["linear_r2_mean"] == pytest.approx(shrunk / (shrunk + white), abs=0.06)
    assert get["fvu"] == pytest.approx(
        float((rows - rebuild(rows)).square().sum(1).mean()) / spread, rel=1e-4
    )
    assert get["linear_fvu"] + get["nonlinear_fvu"] == pytest.approx(get["fvu"])
    shuffled = {each.what: each.value for each in found.scores["linear_r2"].also}["shuffled errors"]
    assert abs(shuffled) <= 0.01
    assert found.identity < 1e-5
    low, high = found.scores["nonlinear_fvu"].interval
    assert low < white / spread < high


def test_norms_are_foretold_apart_from_directions(rows):
    """e = +-(c + w x) u: the sign is random, so that the vector is not linear, its norm is to the last digit,
    and its squared norm as the variance of a square says: 4 c^2 / (4 c^2 + 2 var)."""
    w = torch.zeros(D)
    w[:6] = 0.4
    z = (rows - rows.mean(0)) @ w
    var, c = float(z.var()), 6 * float(z.std())
    u = torch.nn.functional.normalize(_normal(D, seed=5), dim=0)

    def rebuild(x):
        sign = torch.where(_noise(x, 1)[:, 0] > 0, 1.0, -1.0)
        return x - (sign * (c + (x - rows.mean(0)) @ w))[:, None] * u

    found = dark_matter(_made(rebuild), rows, pursuit=False)
    assert abs(found.scores["linear_r2"].value) < 0.01
    assert found.scores["norm_r2"].value > 0.999
    assert found.scores["norm2_r2"].value == pytest.approx(4 * c**2 / (4 * c**2 + 2 * var), abs=0.01)
    assert found.scores["norm2_r2"].value < 0.99


def test_no_row_is_judged_by_a_map_that_saw_it():
    """Errors that have nothing to do with x, of little more rows than there are dimensions: fitted to
    themselves they would be linear by d / n = 40 %."""
    x = _normal(D * 5 // 2, D)
    noise = _noise(x)
    found = dark_matter(_made(lambda x: x - _noise(x)), x, folds=20, pursuit=False)
    both = torch.cat([x, torch.ones(len(x), 1)], 1)
    left = noise - both @ torch.linalg.lstsq(both, noise).solution
    assert float(left.square().sum() / noise.square().sum()) < 0.65
    assert found.scores["linear_r2"].value < 0
    assert "told too low" in str(found)


def test_documents_are_held_out_whole():
    """Documents of six equal rows: by rows, each would have its likes in the fit."""
    d, subject = planted.WIDTH, planted.subject()
    texts = [each.expand(6, d) for each in _normal(34, 1, d)]
    found = dark_matter(_made(lambda x: x - _noise(x, d), d, 16, "body"), subject, texts, pursuit=False)
    assert found.n_rows == 34 * 6
    assert found.scores["linear_r2"].value < 0
    assert set(found.left_out) == {"pursuit", "loss_linear", "loss_nonlinear"}
    assert "loss" in found.left_out["loss_linear"]


@pytest.fixture(scope="module")
def embedded():
    return saelab.Lab.embedded().subject, list(saelab.corpora.world(seed=11, n_documents=60))


@pytest.fixture(scope="module")
def found(embedded):
    return dark_matter(saelab.load_sae(saelab.embedded.sae_folder()), *embedded)


def test_the_scores_are_those_of_the_report(embedded, found):
    subject, corpus = embedded
    sae = saelab.load_sae(saelab.embedded.sae_folder())
    report = saelab.evaluate(sae, subject, corpus, suites=("dark_matter",))
    for name in ("value", "interval", "control"):
        assert getattr(found.scores["fvu"], name) == pytest.approx(getattr(report.scores["fvu"], name))
    assert found.l0 == pytest.approx(report.scores["l0"].value)
    assert found.losses.clean == pytest.approx(report.loss_clean)
    assert found.losses.ablated == pytest.approx(report.loss_ablated)
    assert found.losses.sae == pytest.approx(report.scores["loss"].value, rel=1e-5)
    suite = report.suites["dark_matter"]
    assert suite.claims == found.scores
    assert list(suite.tables) == ["classes", "losses"]
    assert "dark_matter: linear_r2" in report.to_frame().index
    assert saelab.analysis.Report.from_json(report.to_json()).suites.keys() == {"dark_matter"}


def test_the_error_added_back_is_the_model(found):
    assert found.identity < 1e-5
    assert found.identity_loss < 1e-5
    assert found.losses.both == pytest.approx(found.losses.clean, abs=1e-5)


def test_pursuit_errs_less_at_equal_l0(found):
    score = found.scores["pursuit_fvu"]
    assert found.pursuit_l0 <= found.l0
    assert score.value < score.control == found.scores["fvu"].value
    assert score.value < 0.5 * score.also[0].value, "an untrained decoder"
    assert found.scores["pursuit_nonlinear_fvu"].value < found.scores["nonlinear_fvu"].value


@pytest.mark.parametrize("linear", [True, False])
def test_each_part_is_worth_what_was_planted(embedded, linear):
    """Only the linear part is wrong (half of the coordinates are gone), or only the other: added back, the
    loss is the clean one. A map that was fitted to noise is d / n, some 3 % of it."""
    subject, corpus = embedded
    half = torch.arange(128) < 64
    rebuild = (lambda x: x * half) if linear else (lambda x: x + 8 * _noise(x, 128))
    found = dark_matter(_made(rebuild, 128, 64, saelab.embedded.STORE_HOOK), subject, corpus, pursuit=False)
    own, other = found.scores["loss_linear"], found.scores["loss_nonlinear"]
    own, other = (own, other) if linear else (other, own)
    assert found.losses.sae > found.losses.clean + 0.1
    assert own.value == pytest.approx(1, abs=1e-3 if linear else 0.05)
    assert other.value == pytest.approx(0, abs=1e-3 if linear else 0.1)
    assert own.apart
    assert own.what == "parts of other rows"


def test_rows_and_classes_add_up(found):
    rows, table = found.rows, found.classes()
    assert len(rows) == found.n_rows
    whole = (rows["error"] ** 2).sum() / (rows["input"] ** 2).sum()
    assert whole == pytest.approx(found.scores["fvu"].value)
    assert ((rows["linear"] + rows["nonlinear"]) >= rows["error"] - 1e-6).all()
    at = rows[rows["position"].between(8, 15)]
    line = table[table["class"] == "8-15"].iloc[0]
    assert line["rows"] == len(at)
    assert line["fvu"] == pytest.approx((at["error"] ** 2).sum() / (at["input"] ** 2).sum())
    assert line["linear share"] == pytest.approx(1 - (at["nonlinear"] ** 2).sum() / (at["error"] ** 2).sum())
    several = table.dropna()
    assert len(several) > 10
    assert (several["from"] <= several["fvu"]).all()
    assert (several["fvu"] <= several["to"]).all()
    assert set(table["by"]) == {"token kind", "position band", "token frequency", "document kind"}
    big = table[table["rows"] > 400]
    assert (big["shuffled fvu"] / whole - 1).abs().max() < 0.25


def test_kinds_of_rows():
    assert bands(np.array([0, 1, 2, 3, 4, 7, 8, 100])).tolist() == [
        "0", "1", "2-3", "2-3", "4-7", "4-7", "8-15", "64-127",
    ]  # fmt: skip
    counts = np.bincount([5, 5, 5, 5, 9, 9, 2, 7])
    assert quarters(counts)[[5, 9, 2, 7]].tolist() == [0, 2, 3, 3]
    assert quarters(np.ones(8, int)).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert ordered(np.array(["16-31", "8-15", "0", "2-3"])) == ["0", "2-3", "8-15", "16-31"]
    assert ordered(np.array(QUARTERS, object)[[3, 0, 2]]) == [QUARTERS[0], QUARTERS[2], QUARTERS[3]]


def test_other_rows_come_apart_by_the_same_map(rows):
    sae = _made(lambda x: 0.5 * x + 1)
    found = dark_matter(sae, rows[:2000], pursuit=False)
    parts = found.parts(sae, rows[5000:5100])
    torch.testing.assert_close(parts.linear, 0.5 * rows[5000:5100] - 1, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(sum(parts), rows[5000:5100], atol=1e-5, rtol=1e-5)
    with pytest.raises(ShapeError, match="width 48"):
        found.parts(_made(lambda x: x, 6), _normal(3, 6))


def test_it_is_told_in_words_and_drawn(found):
    text = str(found)
    assert "linear" in text.splitlines()[0]
    assert "told too low" not in text
    assert set(found.to_frame().index) == set(found.scores)
    figure = found.figure()
    names = list(figure.data[0].x)
    assert names == ["encoder", "pursuit", "untrained SAE"]
    total = [a + b for a, b in zip(figure.data[0].y, figure.data[1].y, strict=True)]
    scores = found.scores
    wanted = [scores["fvu"].value, scores["pursuit_fvu"].value, scores["fvu"].control]
    assert total == pytest.approx(wanted)


def test_maps_are_those_of_least_squares(rows):
    """Each fold's, by torch's own least squares on the other rows; blocks change nothing."""
    x, t = rows[:400, :9].double().clone(), rows[:400, 9:12].double() ** 2
    x[:, 8] = x[:, 0] - 2 * x[:, 1]  # one that is a sum of others
    x[:, 7] = 4  # one that is constant
    fold, crossed = fold_of(np.arange(400), 4, 3), Crossed(4)
    for low in range(0, 400, 90):
        at = slice(low, low + 90)
        crossed.add(fold[at], x[at], t[at])
    ones = torch.cat([x, torch.ones(400, 1)], 1)
    for k, fit in enumerate([*crossed.fits(), crossed.fit()]):
        seen = torch.from_numpy(fold != k)
        solution = torch.linalg.lstsq(ones[seen], t[seen], driver="gelsd", rcond=1e-9).solution
        torch.testing.assert_close(fit(x), ones @ solution, atol=1e-8, rtol=1e-8)
    assert np.bincount(fold).min() > 70


@pytest.mark.parametrize(
    ("rows", "error", "words"),
    [
        (torch.ones(1, D), CorpusError, "98 for 48 dimensions. Got 0 of 1"),
        (_normal(90, D), CorpusError, "98 for 48 dimensions"),
        (torch.full((200, D), torch.nan), NonFiniteError, "Activations"),
        (_normal(200, 9), ShapeError, r"\[n 48\]"),
    ],
)
def test_it_refuses_rows(rows, error, words):
    with pytest.raises(error, match=words):
        dark_matter(_made(lambda x: x), rows)


def test_it_refuses_what_is_no_autoencoder_and_one_document(embedded):
    subject, _ = embedded
    skip = saelab.SAE.create(saelab.recipe("transcoder", d_in=D, d_out=D, d_sae=64, k=4))
    with pytest.raises(ConfigError, match="transcoder"):
        dark_matter(skip, _normal(300, D))
    sae = saelab.load_sae(saelab.embedded.sae_folder())
    with pytest.raises(CorpusError, match="several documents"):
        dark_matter(sae, subject, ["one two three " * 60])
    report = saelab.evaluate(sae, subject, ["one two three " * 60], suites=("dark_matter",))
    assert "several documents" in report.left_out["dark_matter"]
    with pytest.raises(ConfigError, match="folds"):
        dark_matter(sae, _normal(300, 128), folds=1)


def _wide(rows, d_sae: int, common: torch.Tensor, own: float):
    """Errs on each row by a size that SAEs share, and by one of its own."""

    def rebuild(x):
        size = _noise(x[:, :2], 1).abs() * common + own * _noise(x[:, 2:4], 1).abs()
        return x - size * torch.nn.functional.normalize(_noise(x[:, 4:6]), dim=1)

    return dark_matter(_made(rebuild, d_sae=d_sae), rows[:3000], pursuit=False)


def test_a_wider_sae_errs_on_the_same_rows(rows):
    """Norms c |n| and c' |n| + o |m|: R2 of the second by the first is c'^2 / (c'^2 + o^2)."""
    one, two = _wide(rows, 64, torch.tensor(1.0), 0.0), _wide(rows, 128, torch.tensor(0.6), 0.3)
    across = error_scaling({"wide": two, "narrow": one})
    assert list(across.table.index) == ["narrow", "wide"]
    (pair,) = across.pairs
    assert (pair.narrow, pair.wide) == ("narrow", "wide")
    assert pair.r2.value == pytest.approx(0.36 / (0.36 + 0.09), abs=0.03)
    assert pair.r2.apart
    assert {pair.r2.what, *(each.what for each in pair.r2.also)} == {
        "norms of the rows",
        "errors of other rows",
    }
    assert abs(pair.r2.control) < 0.03
    assert abs(pair.gain.value) < 0.02
    assert "4 widths" in across.left_out["law"]
    assert not across.law
    assert "narrow -> wide" in str(across)


def test_the_law_of_widths():
    """Planted: c = .1, a = 3, m = .5; and one that no c above 0 fits."""
    wide = np.array([64, 128, 512, 2048, 8192])
    c, a, m = power_law(wide, 0.1 + 3 * wide**-0.5)
    assert (c, a, m) == pytest.approx((0.1, 3, 0.5), rel=0.05)
    c, a, m = power_law(wide, 2 * wide**-0.3 - 0.02)
    assert c == 0


def test_widths_in_one_table(rows):
    """Constant errors of .6 / width^.5 and .05 beside: the law, its bands, a figure."""
    made = {}
    for d_sae in (64, 128, 256, 512):
        size = (50 * (0.05 + 2 * d_sae**-0.5)) ** 0.5

        def rebuild(x, size=size):
            return x - size * torch.nn.functional.normalize(_noise(x), dim=1)

        made[str(d_sae)] = dark_matter(_made(rebuild, d_sae=d_sae), rows[:1500], pursuit=False)
    across = error_scaling(made)
    scale = 50 / float((rows[:1500] - rows[:1500].mean(0)).square().sum(1).mean())
    assert across.law["c"].value == pytest.approx(0.05 * scale, rel=0.2)
    assert across.law["m"].value == pytest.approx(0.5, rel=0.1)
    low, high = across.law["absent"].interval
    assert low <= across.law["absent"].value <= high
    assert len(across.pairs) == 4
    assert len(across.to_frame()) == 8
    assert len(across.figure().data) == 3
    assert isinstance(across.table, pd.DataFrame)
    with pytest.raises(ConfigError, match="same rows"):
        error_scaling({"a": made["64"], "b": _wide(rows, 64, torch.tensor(1.0), 0.0)})
    with pytest.raises(ConfigError, match="at least two"):
        error_scaling({"a": made["64"]})
    with pytest.raises(ConfigError, match="dark_matter gives"):
        error_scaling({"a": made["64"], "b": 3})
