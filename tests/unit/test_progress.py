"""What bars write where nobody watches them move."""

from __future__ import annotations

import sys
import types

import pytest
import tqdm.std
from tqdm.auto import tqdm as moving

from saelab.progress import new_bar


@pytest.fixture
def clock(monkeypatch):
    """Time that goes on where it is told to."""
    now = types.SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr(tqdm.std, "time", lambda: now.seconds)
    return now


@pytest.mark.parametrize("every", [0.01, 7, 45])
def test_a_log_gets_a_line_every_half_minute(clock, capsys, every):
    """Ten minutes of updates at most half a minute apart, or further: a line each time 30 s are over."""
    expected, last = 0, clock.seconds
    with new_bar(total=round(600 / every), desc="train", unit="row") as bar:
        for _ in range(round(600 / every)):
            clock.seconds += every
            bar.set_postfix_str(f"loss {clock.seconds:.0f}", refresh=False)
            bar.update(1)
            if clock.seconds - last >= 30:
                expected, last = expected + 1, clock.seconds
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == expected + 1
    assert {0.01: 19, 7: 17, 45: 13}[every] <= expected <= 20
    assert all(line.startswith("train: ") and line.isprintable() for line in lines)
    assert "100%" in lines[-1]
    assert len(set(lines)) >= expected


def test_a_short_pass_is_one_line_and_one_that_is_not_shown_is_none(clock, capsys):
    for shown in (True, False):
        with new_bar(total=3, desc="index", disable=not shown) as bar:
            bar.update(3)
            bar.refresh()
        assert len(capsys.readouterr().err.splitlines()) == shown
    with new_bar(total=3, leave=False) as bar:
        bar.update(3)
    assert capsys.readouterr().err == ""


def test_terminals_and_notebooks_get_a_bar_that_moves(monkeypatch):
    assert not isinstance(new_bar(disable=True), moving)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert isinstance(new_bar(disable=True), moving)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    shell = types.SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    assert isinstance(new_bar(disable=True), moving)
    monkeypatch.setattr(sys, "stderr", None)
    monkeypatch.delitem(sys.modules, "IPython")
    assert not isinstance(new_bar(disable=True), moving)
