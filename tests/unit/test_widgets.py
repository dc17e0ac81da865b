"""The views' Python side: what goes over the wire is what the results hold, every failure is an answer, views
follow what is chosen.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from shown import card, codes, decoded, decoded_windows, sample, table, window

from saelab.analysis.results import Examples, LatentTable
from saelab.types import Codes, ConfigError, RangeError
from saelab.widgets import CardView, DensitiesView, FeaturesView, SampleView, Selection, still
from saelab.widgets.base import View
from saelab.widgets.cards import card as pack_card
from saelab.widgets.features import pack_table
from saelab.widgets.questions import Ask
from saelab.widgets.selection import CHOICES
from saelab.widgets.sides import pack_codes
from saelab.widgets.wire import DTYPES, Packed, rounded


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("quantised", [False, True])
def test_a_card_comes_back_as_it_went(signed, quantised):
    result = card(signed=signed)
    packed = pack_card(result, quantised=quantised)
    groups = [result.top, *([result.bottom] if signed else []), result.quantile]
    windows = [w for group in groups for w in group.windows]
    kinds = [group.kind for group in groups for _ in group.windows]
    assert [w["kind"] for w in packed.header["windows"]] == kinds
    assert packed.header["stats"]["negative"] == (15 if signed else 0)
    assert [w["row"] for w in packed.header["windows"]] == [w.row for w in windows]
    for (names, values), made_of in zip(decoded_windows(*packed.encoded()), windows, strict=True):
        assert names == made_of.names
        step = packed.header.get("quantum", 0.0)
        np.testing.assert_allclose(values, made_of.values, atol=1.01 * step + 1e-6)
        np.testing.assert_array_equal(np.sign(values), np.sign(made_of.values))
    assert json.loads(json.dumps(packed.header)) == packed.header


@pytest.mark.parametrize("few", [1e-4, 0.002, 0.5, 1.0])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_weaker_pole_keeps_its_sign_in_an_exported_page(few, sign):
    """One pole hardly reaches past 0: its values must not fall on the 0 of a token that does not fire."""
    rng = np.random.default_rng(0)
    made = []
    for i in range(10):
        values = rng.random(21).astype(np.float32) * rng.choice([0, sign, -few * sign], 21).astype(np.float32)
        made.append(window(i, ["a"] * 21, values))
    none = card(signed=True, windows=0)
    result = replace(none, top=Examples(3, "top", tuple(made)))
    packed = pack_card(result, quantised=True)
    for (_, values), made_of in zip(decoded_windows(*packed.encoded()), made, strict=True):
        np.testing.assert_array_equal(np.sign(values), np.sign(made_of.values))
        np.testing.assert_allclose(values, made_of.values, atol=1.01 * packed.header["quantum"])


def test_a_card_is_small():
    header, buffers = pack_card(card(windows=40)).encoded()
    assert len(json.dumps(header)) + sum(map(len, buffers)) <= 50_000


def test_empty_and_lensless_cards():
    packed = pack_card(card(windows=0, lens=False))
    assert decoded_windows(*packed.encoded()) == []
    assert packed.header["lens"] is None


def test_a_number_that_json_has_none_for_is_none():
    stats = replace(card().stats, mean=float("nan"), max=float("inf"))
    header, _ = pack_card(replace(card(), stats=stats)).encoded()
    assert json.loads(json.dumps(header, allow_nan=False))["stats"]["mean"] is None
    assert rounded(1 / 3) == 0.333333


def test_codes_and_table_come_back_as_they_went():
    fields = decoded(*pack_codes(codes()).encoded())
    back = Codes(fields["indptr"].astype(np.int64), fields["indices"], fields["values"], 30)
    np.testing.assert_array_equal(back.dense(), codes().codes.dense())
    assert fields["names"] == list("abcde")
    assert fields["counted"].tolist() == [0, 1, 1, 1, 1]
    fields = decoded(*pack_table(table()).encoded())
    np.testing.assert_array_equal(fields["count"], table().count)
    assert sum(map(len, pack_table(table(65_536)).encoded()[1])) == 16 * 65_536
    both = replace(table(), min=np.linspace(-2, 0, 50))
    signed = decoded(*pack_table(both).encoded())
    assert signed.keys() - fields.keys() == {"min"}
    np.testing.assert_array_equal(signed["min"], both.min.astype(np.float32))


def test_lone_surrogates_do_not_break_the_wire():
    names = LatentTable(*(np.zeros(1),) * 5, ("\ud800x",))
    view = FeaturesView(names, questions={"card": card})
    assert decoded(*view.answers()["names"]().encoded())["names"] == ["?x"]


@pytest.mark.parametrize("dtype", [*DTYPES, "bool"])
def test_a_field_is_little_endian_and_says_what_it_is(dtype):
    array = np.arange(6).reshape(2, 3).astype(dtype)
    swapped = np.asfortranarray(array).astype(array.dtype.newbyteorder(">"))
    header, (data,) = Packed({"n": 1}, {"a": swapped}).encoded()
    sent = "uint8" if dtype == "bool" else dtype
    assert header == {"n": 1, "fields": [{"name": "a", "dtype": sent, "shape": [2, 3]}]}
    assert data == array.astype(np.dtype(sent).newbyteorder("<")).tobytes()


@pytest.mark.parametrize("array", [np.zeros(2, np.int64), np.zeros(2, complex), np.array(["a"])])
def test_a_field_that_browsers_have_no_array_for_is_refused(array):
    with pytest.raises(ConfigError, match=f"Got 'wide' of {array.dtype.name}"):
        Packed({}, {"wide": array}).encoded()


def test_the_order_of_fields_outlives_sorted_keys():
    header, buffers = pack_codes(codes()).encoded()
    saved = json.loads(json.dumps(header, sort_keys=True))
    assert decoded(saved, buffers)["names"] == list("abcde")


# ---- asking


class Sent(list):
    def __call__(self, content, buffers=None):
        self.append((content, buffers))


def ask(view, **message):
    sent = Sent()
    view.send = sent
    view._received(view, message, [])
    (answer,) = sent
    return answer


def test_questions_are_answered_by_number():
    view = CardView(3, questions={"card": card})
    content, buffers = ask(view, id=7, ask="card", args={"latent": 5})
    assert content["id"] == 7
    assert content["ok"]["latent"] == 5
    assert decoded(content["ok"], buffers).keys() == {"names", "values"}
    browser = FeaturesView(table(), questions={"card": card, "search": lambda text: [(4, 0.5)]})
    assert ask(browser, id=1, ask="search", args={"text": "hi"})[0]["ok"]["found"] == [[4, 0.5]]


@pytest.mark.parametrize(
    "message",
    [
        {"id": 1, "ask": "card", "args": {"latent": 99}},
        {"id": 1, "ask": "no such question"},
        {"id": 1, "ask": "card", "args": {"latnet": 3}},
        {"id": 1},
        "text",
        None,
        {"id": 1, "ask": ["card"]},
    ],
)
def test_every_failure_is_an_answer(message):
    def refuse(latent):
        if latent != 99:
            return card(latent)
        message = "latent must be an integer in 0..9. Got 99."
        raise RangeError(message)

    view = CardView(3, questions={"card": refuse})
    sent = Sent()
    view.send = sent
    view._received(view, message, [])
    ((content, _),) = sent
    assert content["error"]
    assert "ok" not in content
    if isinstance(message, dict) and message.get("args") == {"latent": 99}:
        assert content["error"] == "latent must be an integer in 0..9. Got 99."


def test_questions_that_come_together_are_answered_together(monkeypatch):
    def some(latent):
        if latent == 5:
            message = "latent must be below 5. Got 5."
            raise RangeError(message)
        return card(latent)

    view, sent = CardView(3, questions={"card": some}), Sent()
    view.send = sent
    many = [{"id": 10 + j, "args": {"latent": j}} for j in (4, 5, 6)]
    view._received(view, {"ask": "card", "many": [*many, None]}, [])
    ((content, buffers),) = sent
    each = content["answers"]
    assert [answer["id"] for answer in each] == [14, 15, 16, None]
    assert each[1] == {"id": 15, "error": "latent must be below 5. Got 5."}
    assert each[3]["error"]
    assert (each[0]["ok"]["latent"], each[2]["ok"]["latent"]) == (4, 6)
    for answer in (each[0], each[2]):
        n = len(answer["ok"]["fields"])
        alone = pack_card(card(answer["ok"]["latent"])).fields
        for name, value in decoded(answer["ok"], buffers[:n]).items():
            np.testing.assert_array_equal(value, alone[name])
        buffers = buffers[n:]
    assert not buffers
    # what takes long, or is large, does not wait for the others
    for limit in ("TOGETHER_S", "TOGETHER_BYTES"):
        with monkeypatch.context() as patched:
            patched.setattr(f"saelab.widgets.base.{limit}", -1)
            sent.clear()
            view._received(view, {"ask": "card", "many": many}, [])
        assert [[answer["id"] for answer in content["answers"]] for content, _ in sent] == [[14], [15], [16]]


def test_searching_without_a_model_says_so():
    browser = FeaturesView(table(), questions={"card": card})
    assert "needs the model" in ask(browser, id=1, ask="search", args={"text": "hi"})[0]["error"]


def test_a_question_has_one_name_in_both_languages():
    """As `keyOf` in shared/answers.js, whose test has the same cases."""
    assert Ask("codes").key() == "codes"
    assert Ask("card", {"latent": 7}).key() == "card?latent=7"
    assert Ask("card", {"sae": 'a"é&b=1', "latent": 7}).key() == 'card?latent=7&sae="a\\"é&b=1"'
    for value in (0.5, None, True, [1], np.int64(3)):
        with pytest.raises(ConfigError, match="integer or a string"):
            Ask("card", {"latent": value}).key()


# ---- selection and options


def test_views_share_the_selection():
    selection = Selection()
    views = [
        CardView(3, questions={"card": card}, selection=selection),
        FeaturesView(table(), questions={"card": card}, selection=selection),
        SampleView(codes(), questions={"card": card}, selection=selection),
    ]
    assert [v.latent for v in views] == [3, 3, 3]
    views[1].latent = 8
    assert [v.latent for v in views] == [8, 8, 8]
    selection.latent = None
    assert [v.latent for v in views] == [None, None, None]
    apart = CardView(1, questions={"card": card})
    assert selection.latent is None
    assert apart.latent == 1


def test_a_view_follows_what_it_says_and_no_more():
    class Rows(View):
        kind = "card"
        follows = ("row", "latents")

        def answers(self):
            return {}

    selection = Selection()
    rows = Rows(selection=selection, row=4)
    other = CardView(3, questions={"card": card}, selection=selection)
    assert (selection.row, other.row, selection.latent) == (4, 4, 3)
    assert {name for name in CHOICES if name in rows.keys} == {"row", "latents"}
    assert {name for name in CHOICES if name in other.keys} == {"latent", "row", "document"}
    assert rows.latent is None
    selection.latents = [5, np.int64(6)]
    assert rows.latents == (5, 6)
    # as the browser sends it
    rows.set_state({"latents": [1, 2], "row": 9})
    assert (selection.latents, selection.row, other.row) == ((1, 2), 9, 9)
    with pytest.raises(ConfigError, match="latent"):
        Rows(latent=3)
    rows.close()
    rows.close()
    selection.row = 5
    assert (rows.row, other.row) == (9, 5)


@pytest.mark.parametrize("value", [-1, 1.5, "3", True, (1,)])
def test_what_cannot_be_chosen_is_refused(value):
    selection = Selection(latent=3)
    for name in ("latent", "row", "document"):
        with pytest.raises(ConfigError, match=f"{name} must be an integer >= 0 or None. Got"):
            setattr(selection, name, value)
    assert selection.latent == 3
    selection.latent = np.int64(4)
    assert type(selection.latent) is int


@pytest.mark.parametrize("value", [3, "34", [1, -2], [1.5]])
def test_what_is_no_list_of_latents_is_refused(value):
    with pytest.raises(ConfigError, match="latents must be"):
        Selection(latents=value)


def test_unknown_options_are_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="with_card"):
        SampleView(codes(), questions={"card": card}, with_cards=True)
    with pytest.raises(ConfigError, match="'card'"):
        CardView(1, questions={})


def test_only_small_state_is_synchronised():
    for view in (CardView(3, questions={"card": card}), SampleView(codes(), questions={"card": card})):
        state = {
            k: v
            for k, v in view.get_state().items()
            if not k.startswith("_") and k not in ("layout", "tabbable", "tooltip")
        }
        chosen = {"latent", "latents", "row", "document", "with_card", "layer", "unit", "compared", "compact"}
        assert set(state) <= chosen | {"opening", "labels", "written"}


def test_what_a_view_paints_first_comes_along_if_it_is_short():
    chosen = Selection(latent=3)
    views = [
        CardView(3, questions={"card": card}),
        FeaturesView(table(), questions={"card": card}, selection=chosen),
        SampleView(codes(), questions={"card": card}, selection=chosen),
        SampleView(codes(), questions={"card": card}, selection=chosen, with_card=True),
    ]
    expected = [{"card?latent=3"}, {"table", "names", "card?latent=3"}, {"codes"}, {"codes", "card?latent=3"}]
    assert [set(v.opening) for v in views] == expected
    for view in views:
        for ask_first in view.first():
            sent, buffers = ask(view, id=1, ask=ask_first.question, args=ask_first.args)
            answer = view.opening[ask_first.key()]
            assert (sent["ok"], buffers) == (answer["header"], answer["buffers"])
    wide = FeaturesView(table(60_000), questions={"card": card})
    assert set(wide.opening) == {f"card?latent={wide.begins}"}


def test_views_print_as_text():
    assert "latent 3" in repr(CardView(3, questions={"card": card}))
    assert "never fire" in repr(FeaturesView(table(), questions={"card": card}))
    both = str(card(signed=True))
    assert "37.5% of them negative" in both
    assert both.index("positive pole") < both.index("negative pole") < both.index("raises")
    assert "pole" not in str(card())
    assert "min  -2.000" in repr(
        FeaturesView(replace(table(), min=np.full(50, -2.0)), questions={"card": card})
    )
    assert "'a'" in repr(SampleView(codes(), questions={"card": card}))
    bundle = CardView(3, questions={"card": card})._repr_mimebundle_()
    data = bundle[0] if isinstance(bundle, tuple) else bundle
    assert "latent 3" in data["text/plain"]
    assert "application/vnd.jupyter.widget-view+json" in data


def test_files_are_read_when_the_first_view_is_made():
    code = (
        f"sys_path = {str(Path(__file__).parents[1])!r}"
        + """
import sys
sys.path.insert(0, sys_path)
opened = []
sys.addaudithook(lambda event, args: event == "open" and opened.append(str(args[0])))
from saelab.widgets import CardView, FeaturesView, SampleView
read = lambda: [name for name in opened if name.endswith((".css", ".js"))]
assert read() == [], read()
from shown import card
view = CardView(3, questions={"card": card})
assert any(name.endswith("theme.css") for name in read())
assert "render" in view._esm and ".sl-root" in view._css
"""
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ---- where nothing runs


def forms():
    names = [*(f" w{i}" for i in range(3_000)), "<script>alert(1)</script>", "\u202eabc", "é\nb"]
    long = sample(names, np.random.default_rng(0).standard_normal((len(names), 4)))
    noisy = replace(card(windows=60, signed=True), label="<i>" * 400)
    many = LatentTable(*(np.ones(70_000),) * 5, ("<b>" * 90,) * 70_000)
    questions = {"card": lambda latent: noisy}
    return [
        SampleView(long, questions=questions),
        SampleView(long, questions=questions, latent=2, with_card=True),
        SampleView(codes(), questions=questions, latent=29),
        CardView(3, questions=questions),
        FeaturesView(many, questions=questions),
        FeaturesView(many, questions=questions, latent=3, latents=[4, 5]),
        DensitiesView(table()),
    ]


def test_every_view_says_itself_in_inert_html_of_bounded_size():
    for view in forms():
        form = view.html()
        assert 300 < len(form.encode()) <= still.MOST_BYTES
        parsed = Read()
        parsed.feed(form)
        assert parsed.open == []
        assert parsed.tags <= {
            "div",
            "mark",
            "b",
            "br",
            "small",
            "code",
            "table",
            "tr",
            "td",
            "th",
            "span",
            "bdi",
        }
        assert parsed.attributes <= {"style", "title", "dir"}
        bundle = view._repr_mimebundle_()
        data = bundle[0] if isinstance(bundle, tuple) else bundle
        assert data["text/html"] == form
        assert "application/vnd.jupyter.widget-view+json" in data


def test_the_form_of_a_text_is_its_text_with_the_values_marked():
    dense = np.zeros((4, 3))
    dense[1, 0], dense[2, 0], dense[2, 1], dense[3, 1] = 2.0, -1.0, 4.0, 1.0
    names = ["<bos>", "a<b", " c", " d"]
    result = sample(names, dense, np.array([False, True, True, True]))
    chosen = Read(SampleView(result, questions={"card": card}, latent=0).html())
    assert chosen.text.endswith("<bos>a<b c d")
    assert chosen.marked == [("a<b", "2"), (" c", "\N{MINUS SIGN}1")]
    assert "latent #0" in chosen.text
    # without one, or with one that is silent here, which is said: the strongest of each token
    for latent in (None, 2):
        view = SampleView(result, questions={"card": card}, **({} if latent is None else {"latent": latent}))
        other = Read(view.html())
        assert other.marked == [("a<b", "2"), (" c", "4"), (" d", "1")]
        assert ("latent #2 does not fire here" in other.text) == (latent == 2)
    colours = [re.search("background-color:(#......)", style)[1] for style in chosen.styles]
    assert len(set(colours)) == 2
    assert ["dashed" in style for style in chosen.styles] == [False, True]


def test_a_form_that_is_too_long_is_the_words_of_the_view():
    class Long(CardView):
        def html(self):
            return "x" * (still.MOST_BYTES + 1)

    bundle = Long(3, questions={"card": card})._repr_mimebundle_()
    assert "latent 3" in bundle[0]["text/html"]
    assert len(bundle[0]["text/html"]) < still.MOST_BYTES


class Read(HTMLParser):
    """HTML as a browser reads it: its tags, its text, what is marked."""

    def __init__(self, form=""):
        super().__init__()
        self.tags, self.attributes, self.open, self.text, self.marked, self.styles = (
            set(),
            set(),
            [],
            "",
            [],
            [],
        )
        self.feed(form)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag == "br":
            return
        self.open.append(tag)
        if tag == "mark":
            self.marked.append(("", dict(attrs)["title"]))
            self.styles.append(dict(attrs)["style"])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if "mark" in self.open:
            self.marked[-1] = (self.marked[-1][0] + data, self.marked[-1][1])
