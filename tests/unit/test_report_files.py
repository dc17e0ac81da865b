"""Reports in files: what is read is what was written, and nothing else is read."""

from __future__ import annotations

import dataclasses
import json
import math

import mutations
import numpy as np
import pandas as pd
import pytest

from saelab.analysis import Report, Reports, Scores, read_report
from saelab.analysis.controls import Alone, Beside, Control
from saelab.analysis.report_json import options_of
from saelab.analysis.suites import Found
from saelab.types import ConfigError, FormatError, SaelabError, StoreError

NAN = float("nan")
NUMBERS = Beside(
    np.float32(0.1), 1 / 3, (-math.inf, NAN), (0.1, math.inf), np.int64(12), "untrained SAE",
    (Control("shuffled labels", NAN, (0.0, 0.85)), Control("random directions", 0.25, (NAN, NAN))),
)  # fmt: skip
TABLES = {
    "of every kind": pd.DataFrame(
        {
            "double": [0.1, NAN, -math.inf],
            "single": np.array([0.1, NAN, math.inf], np.float32),
            "long": np.array([2**63 - 1, -(2**63), 0]),
            "byte": np.array([255, 0, 1], np.uint8),
            "yes": [True, False, True],
            "text": ["NaN", "\u202e</script>", ""],
            "mixed": np.array([None, NAN, "Infinity"], dtype=object),
        }
    ),
    "by name": pd.DataFrame({"n": [1, 2]}, index=pd.Index(["a", "b"], name="label")),
    "by two": pd.DataFrame({"n": [1.0, 2.0]}, index=pd.MultiIndex.from_tuples([("a", 1), ("b", 2)])),
    "from 5 on": pd.DataFrame({"n": [1, 2]}, index=[5, 6]),
    "of no rows": pd.DataFrame({"n": np.array([], np.int32)}),
    "of no columns": pd.DataFrame(),
}


def whole() -> Report:
    """A report with something in every field."""
    return Report(
        "blocks.2.hook_resid_post",
        1_000,
        1.5,
        NAN,
        Scores(0.1, 16.0, 0.25, loss=2.0, loss_recovered=None),
        Scores(0.7, NAN, 0.0),
        {"fvu": NUMBERS, "loss": Alone(NAN, "published without one", None)},
        {"loss_recovered": "a Net lacks loss"},
        {
            "told": Found({"share": NUMBERS, "rows": Alone(40.0, "a count", 3)}, {"more": "too few"}, TABLES),
            "silent": Found({}),
        },
        "ab12",
        {"recipe": "topk", "d_sae": 64},
        {"told": {"share": 0.5, "words": ["a"], "of": None}},
        3.5,
        Found({}, tables=TABLES),
    )


def assert_same(found: Report, expected: Report) -> None:
    """Every field, NaN equal to NaN; tables by value, dtype, index and names."""
    for field in dataclasses.fields(Report):
        ours, theirs = getattr(found, field.name), getattr(expected, field.name)
        if field.name not in ("suites", "core"):
            assert repr(plain(ours)) == repr(plain(theirs)), field.name
    assert list(found.suites) == list(expected.suites)
    for name, each in {**expected.suites, "core": expected.core}.items():
        of = found.core if name == "core" else found.suites[name]
        assert repr(plain(of.claims)) == repr(plain(each.claims))
        assert of.left_out == each.left_out
        assert list(of.tables) == list(each.tables)
        for title, table in each.tables.items():
            pd.testing.assert_frame_equal(of.tables[title], table, check_exact=True)


def plain(value):
    """Numbers of NumPy as Python's, so that repr tells whether two are the same number."""
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, Beside | Alone | Scores):
        return type(value)(**{f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)})
    if isinstance(value, Control):
        return Control(*map(plain, value))
    if isinstance(value, tuple | list):
        return [plain(each) for each in value]
    return value.item() if isinstance(value, np.generic) else value


def test_a_report_is_read_as_it_was_written(tmp_path):
    report = whole()
    assert_same(Report.from_json(report.to_json()), report)
    assert_same(read_report(report.save(tmp_path / "new" / "one.json")), report)
    assert json.loads(report.to_json())["version"] == 1
    assert Report.from_json(report.to_json()).to_json() == report.to_json()


def test_reports_of_several_keep_their_names_and_order(tmp_path):
    reports = Reports({"b </script>": whole(), "a": dataclasses.replace(whole(), n_rows=7)})
    for found in (Reports.from_json(reports.to_json()), read_report(reports.save(tmp_path / "all.json"))):
        assert list(found.reports) == ["b </script>", "a"]
        for name, each in reports.reports.items():
            assert_same(found[name], each)


def test_one_and_several_are_not_taken_for_each_other():
    with pytest.raises(FormatError, match=r"of one SAE.*read_report"):
        Report.from_json(Reports({"a": whole()}).to_json())
    with pytest.raises(FormatError, match=r"of several SAEs.*read_report"):
        Reports.from_json(whole().to_json())


def test_a_report_that_cannot_be_written_leaves_the_one_that_is_there(tmp_path):
    path = whole().save(tmp_path / "one.json")
    before = path.read_bytes()
    table = pd.DataFrame({"when": pd.to_datetime(["2024-01-01"])})
    bad = dataclasses.replace(whole(), suites={"told": Found({}, tables={"times": table})})
    with pytest.raises(ConfigError, match=r"times.*numbers, booleans or text"):
        bad.save(path)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["one.json"]
    with pytest.raises(StoreError):
        read_report(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("where", "value", "said"),
    [
        (("version",), 2, "newer saelab"),
        (("format",), "other", "format"),
        (("report", "n_rows"), -1, "count"),
        (("report", "n_rows"), True, "n_rows"),
        (("report", "hook"), "\ud800", "surrogate"),
        (("report", "sae", "fvu"), 10**400, "report"),
        (("report", "sae", "fvu"), "nan", "fvu"),
        (("report", "another"), 1, "another"),
        (("report", "scores", "fvu", "interval"), [0.1], "interval"),
        (("report", "scores", "loss", "control"), 0.1, "control"),
        (("report", "suites", "told", "claims", "rows", "why"), "", "no control|say why"),
        (("report", "suites", "told", "tables", "by name", "n"), 3, "3 values"),
        (("report", "suites", "told", "tables", "by name", "columns", 0, "dtype"), "O", "dtype"),
        (("report", "suites", "told", "tables", "by name", "columns", 0, "dtype"), "int8", None),
        (("report", "suites", "told", "tables", "by name", "columns", 0, "values", 0), 2**63, "int64"),
        (("report", "suites", "told", "tables", "by name", "columns", 0, "values", 0), [1], "values|must be"),
    ],
)
def test_a_file_that_says_something_else_is_refused(where, value, said):
    data = json.loads(whole().to_json())
    at = data
    for key in where[:-1]:
        at = at[key]
    at[where[-1]] = value
    if said is None:
        Report.from_json(json.dumps(data))
        return
    with pytest.raises(FormatError, match=said):
        Report.from_json(json.dumps(data))


def test_text_that_is_no_report_is_refused():
    deep = json.loads(whole().to_json())
    deep["report"]["options"]["told"]["share"] = json.loads("[" * 200 + "]" * 200)
    texts = ["", "[]", "{}", "null", "[" * 100_000, whole().to_json()[:-9], json.dumps(deep), "\ud800"]
    for text in texts:
        with pytest.raises(FormatError):
            Report.from_json(text)


def test_damaged_files_are_refused_or_read_as_a_report(tmp_path):
    whole().save(tmp_path / "good" / "report.json")
    read = 0
    for seed in range(600):
        said = mutations.mutate(tmp_path / "good", tmp_path / "bad", seed)
        try:
            found = read_report(tmp_path / "bad" / "report.json")
        except SaelabError:
            continue
        except Exception as error:
            msg = f"seed {seed}: {said}"
            raise AssertionError(msg) from error
        read += 1
        str(found)
        assert_same(Report.from_json(found.to_json()), found)
    assert 0 < read < 300


def test_options_of_a_suite_are_told_whatever_they_are():
    @dataclasses.dataclass(frozen=True)
    class Options:
        k: tuple[int, ...] = (1, 2)
        share: float = NAN
        labels: dict | None = None
        rows: object = None

    told = options_of(Options(labels={1: "a"}, rows=pd.DataFrame({"a": [1]})))
    assert told["k"] == [1, 2]
    assert told["share"] == "NaN"
    assert told["labels"] == "{1: 'a'}"
    assert "a" in told["rows"]
    json.dumps(told)
