"""frontier against hand-made reports, whose places and interpolations are known."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from saelab.analysis import Report, Reports, Scores, frontier
from saelab.analysis.controls import Alone, Beside
from saelab.types import ConfigError


def report(l0: float, fvu: float, recovered: float = 0.9, **changes) -> Report:
    sae = Scores(fvu, l0, dead=0.25, loss=2.0, loss_recovered=recovered)
    untrained = Scores(0.7, 2 * l0, dead=0.0, loss=4.0, loss_recovered=0.4)
    whole = Report("blocks.2.hook_resid_post", 1_000, 1.5, 5.0, sae, untrained)
    return dataclasses.replace(whole, **changes)


@pytest.fixture
def two():
    return frontier(
        {"b": [report(32, 0.1, 0.98), report(8, 0.3, 0.8)], "a": [report(16, 0.15), report(64, 0.05)]}
    )


def test_names_keep_their_order_and_saes_are_sorted_by_l0(two):
    frame = two.to_frame()
    assert list(zip(frame["name"], frame["l0"], strict=True)) == [("b", 8), ("b", 32), ("a", 16), ("a", 64)]
    assert list(frame["fvu"]) == [0.3, 0.1, 0.15, 0.05]
    assert list(frame.columns[4:]) == ["dead", "untrained fvu", "untrained loss_recovered"]
    assert frame.iloc[0, 4:].tolist() == [0.25, 0.7, 0.4]
    assert "1,000 rows" in str(two)


def test_between_two_saes_scores_are_linear_in_log_l0(two):
    at = two.at(16)  # half-way between 8 and 32 on a logarithmic axis; exactly the first SAE of "a"
    assert at.loc["b"].tolist() == pytest.approx([0.2, 0.89])
    assert at.loc["a"].tolist() == pytest.approx([0.15, 0.9])


def test_outside_of_what_was_measured_nothing_is_said(two):
    assert np.isnan(two.at(8)["fvu"]["a"])
    assert np.isnan(two.at(64)["fvu"]["b"])
    assert not two.at(32).isna().any().any()


def test_an_sae_that_never_fires_is_listed_but_not_interpolated_from():
    found = frontier({"relu": [report(0, 1.0), report(4, 0.2), report(16, 0.1)], "off": [report(0, 1.0)]})
    assert len(found.to_frame()) == 4
    assert np.isnan(found.at(2)["fvu"]["relu"])
    assert found.at(8)["fvu"]["relu"] == pytest.approx(0.15)
    assert np.isnan(found.at(8)["fvu"]["off"])


def test_the_figure_shows_every_sae_and_every_control_in_both_panels(two):
    figure = two.figure()
    assert len(figure.data) == 8
    by_name = {(t.name, t.xaxis): t for t in figure.data}
    assert list(by_name["b", "x"].x) == [8, 32]
    assert list(by_name["b", "x"].y) == [0.3, 0.1]
    assert list(by_name["b", "x2"].y) == [0.8, 0.98]
    assert list(by_name["untrained", "x2"].x) == [16, 64, 32, 128]
    assert list(by_name["untrained", "x2"].y) == [0.4] * 4
    assert {t.name for t in figure.data if t.visible == "legendonly"} == {"untrained"}
    assert [t.name for t in figure.data if t.showlegend] == ["b", "a", "Pareto front", "untrained"]


def test_lines_are_told_apart_without_colour():
    figure = frontier({str(i): [report(8, 0.1)] for i in range(8)}).figure()
    looks = {(t.marker.symbol, t.line.dash) for t in figure.data[:8]}
    assert len(looks) == 8


def known(l0: float, fvu: float, wide: float, recovered: float = 0.9) -> Report:
    """A report whose scores have intervals."""
    claims = {
        "fvu": Beside(fvu, 0.7, (fvu - wide, fvu + 2 * wide), (0.6, 0.8), 9),
        "loss_recovered": Alone(recovered, "published without one"),
    }
    return report(l0, fvu, recovered, scores=claims)


def test_the_front_has_whom_nobody_beats_and_says_where_that_is_sure():
    found = frontier(
        {
            "a": [known(8, 0.30, 0.01), known(32, 0.10, 0.01)],
            # as dense as the first and worse; between the two, not apart from the first; worse and denser
            "b": [known(8, 0.35, 0.01), known(16, 0.28, 0.02), known(64, 0.12, 0.01)],
            "off": [report(0, 1.0), report(4, float("nan"))],
        }
    )
    front = found.front()
    assert list(zip(front["name"], front["l0"], strict=True)) == [("a", 8), ("b", 16), ("a", 32)]
    assert list(front["sure"]) == [True, False, True]
    assert front.iloc[1].tolist()[2:5] == pytest.approx([0.28, 0.26, 0.32])
    recovered = found.front("loss_recovered")
    assert list(recovered["l0"]) == [4]  # all recover as much: the sparsest is enough
    assert not recovered["sure"].any()  # without intervals nothing is
    with pytest.raises(ConfigError, match="fvu, loss_recovered"):
        found.front("dead")


def test_the_figure_draws_the_front_in_steps_and_the_intervals_as_bars():
    figure = frontier({"a": [known(8, 0.3, 0.01), known(32, 0.1, 0.01), known(64, 0.2, 0.01)]}).figure()
    line, front = (next(t for t in figure.data if t.name == name) for name in ("a", "Pareto front"))
    assert list(front.x) == [8, 32]
    assert front.line.shape == "hv"
    assert list(line.error_y.array) == pytest.approx([0.02] * 3)
    assert list(line.error_y.arrayminus) == pytest.approx([0.01] * 3)
    other = next(t for t in figure.data if t.name == "a" and t.xaxis == "x2")
    assert list(other.error_y.array) == [0.0] * 3


def test_lines_are_made_of_saes_of_one_recipe_and_width():
    def of(recipe, width, l0):
        return report(l0, 0.1, about={"recipe": recipe, "d_sae": width})

    reports = Reports(
        {"x": of("topk", 4096, 32), "y": of("topk", 4096, 8), "z": of("relu", 64, 4), "w": report(1, 1)}
    )
    groups = reports.by_recipe()
    assert list(groups) == ["topk, 4,096 latents", "relu, 64 latents", "w"]
    assert [p.sae.l0 for p in frontier(groups).points] == [8, 32, 4, 1]


def test_reports_of_other_texts_or_places_are_refused():
    for change in (
        {"n_rows": 999},
        {"hook": "blocks.1.hook_resid_post"},
        {"loss_clean": 1.6},
        {"rows": "ab"},
    ):
        with pytest.raises(ConfigError, match="same texts and hook point"):
            frontier({"a": [report(8, 0.1)], "b": [report(8, 0.1, **change)]})
    for nothing in ({}, {"a": []}):
        with pytest.raises(ConfigError, match="at least one report"):
            frontier(nothing)


def test_an_l0_that_is_not_positive_is_refused(two):
    for l0 in (0, -1, float("nan")):
        with pytest.raises(ConfigError, match="greater than 0"):
            two.at(l0)
