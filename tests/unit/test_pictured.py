"""Documents that are pictures: what goes over the wire, into pages and into text, for any layout."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from shown import card, chunks, decoded, laid_out, table

import saelab
from saelab.analysis.results import Examples
from saelab.stores.records import DocumentRecord, Example
from saelab.widgets import CardView, FeaturesView, SampleView, Selection, Views, page, still
from saelab.widgets.cards import PICTURE_BYTES
from saelab.widgets.cards import card as pack_card
from saelab.widgets.questions import Ask
from saelab.widgets.sides import pack_codes

LAYOUT = "extra 1, grid 2x3"
NAMES = ["0", "0,0", "0,1", "0,2", "1,0", "1,1", "1,2"]


def png(size: int, seed: int = 0) -> bytes:
    """A picture of noise, which does not compress."""
    pixels = np.random.default_rng(seed).integers(0, 255, (size, size, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def document(number: int, size: int = 8, layout: str = LAYOUT) -> DocumentRecord:
    return DocumentRecord(number, str(number), "image", "", layout, (f"cat {number}",), png(size, number))


def window(document: int, peak: int, call: int = 0) -> Example:
    values = np.zeros(7, np.float32)
    values[peak] = 1 + document
    where = {"start": 0, "names": NAMES, "values": values}
    return Example(3, "top", 0, -1, 7 * document + peak, document, peak, call, values[peak], **where)


def pictured(n: int, size: int = 8, call: int = 0):
    """A card of n windows, each of a document of its own, last document first."""
    windows = tuple(window(i, 1 + i % 6, call) for i in reversed(range(n)))
    documents = {w.document: document(w.document, size) for w in windows}
    empty = Examples(3, "quantile", ())
    return replace(card(), top=Examples(3, "top", windows), quantile=empty, documents=documents)


def test_a_card_carries_its_pictures():
    result = pictured(12)
    header, buffers = pack_card(result).encoded()
    header = json.loads(json.dumps(header, sort_keys=True))  # as notebooks save it
    fields = decoded(header, buffers)
    at, found = 0, {}
    for told in header["documents"]:
        found[told["document"]] = fields["pictures"][at : at + told["bytes"]].tobytes()
        at += told["bytes"]
        assert (told["label"], told["grids"], told["asked"]) == (f"cat {told['document']}", 1, False)
        assert told["title"] == f"image {told['document']} «cat {told['document']}»"
    assert found == {number: each.media for number, each in result.documents.items()}
    assert at == len(fields["pictures"])
    # patches are called by their place, so that only the names of the others go along
    assert header["windows"][0]["parts"] == [["extra", 1, 0, 0, 1], ["grid", 6, 3, 0, 6]]
    assert [header["vocabulary"][i] for i in fields["names"]] == ["0"] * 12
    assert "call" not in header["windows"][0]
    assert pack_card(pictured(2, call=4)).header["windows"][0]["call"] == 4
    values = fields["values"].reshape(12, 7)
    np.testing.assert_array_equal(values, [w.values for w in result.top.windows])


def test_pictures_beyond_the_budget_are_asked_for():
    result = pictured(12, size=60)
    packed = pack_card(result)
    along = [told["document"] for told in packed.header["documents"] if told["bytes"]]
    asked = [told["document"] for told in packed.header["documents"] if told["asked"]]
    # the first windows have theirs
    assert along + asked == list(range(11, -1, -1))
    assert len(asked) > 0
    assert PICTURE_BYTES / 2 < len(packed.fields["pictures"]) <= PICTURE_BYTES
    assert packed.needs == tuple(Ask("picture", {"document": number}) for number in asked)
    view = CardView(3, questions={"card": lambda _: result, "documents": lambda _: result.documents})
    (answer,) = [decoded(*view.answers()["picture"](document=0).encoded())["picture"]]
    assert answer.tobytes() == result.documents[0].media
    # nobody can be asked: they are left out
    alone = CardView(3, questions={"card": lambda _: result})
    told = alone.answers()["card"](latent=3).header["documents"]
    assert not any(each["asked"] for each in told)


def data_of(path) -> dict:
    return json.loads(re.search(r'id="saelab-data">(.*?)</script>', path.read_text(), re.S)[1])


def test_a_page_holds_a_picture_once(tmp_path):
    """Whatever the cards and views that show it, and whether they are asked one by one or together."""
    asked = []

    def documents(numbers):
        asked.append(list(numbers))
        return {number: document(number) for number in numbers}

    questions = {"card": lambda latent: pictured(3 + latent % 2), "documents": documents}
    chosen = Selection()
    browser = FeaturesView(table(6), questions=questions, selection=chosen)
    one = CardView(2, questions=questions, selection=chosen)
    data = data_of(page(tmp_path / "p.html", "t", [Views("", [one, browser])]))
    assert [sorted(view["shelves"]) for view in data["views"]] == [
        ["card", "picture"],
        ["card", "names", "picture", "table"],
    ]
    assert len({view["shelves"]["picture"] for view in data["views"]}) == 1
    held = chunks(data["shelves"][data["views"][0]["shelves"]["picture"]])
    assert sorted(held) == [f"picture?document={number}" for number in range(4)]
    for number in range(4):
        (picture,) = held[f"picture?document={number}"][1]
        assert picture == document(number).media
    cards = chunks(data["shelves"][data["views"][0]["shelves"]["card"]])
    for header, buffers in cards.values():
        assert all(told["asked"] for told in header["documents"])
        assert not decoded(header, buffers)["pictures"].size
    # each once, as many as there are at a time
    assert sorted(asked[-1]) == [0, 1, 2, 3]
    # and where nobody is asked for pictures, cards carry their own
    lone = data_of(CardView(2, questions={"card": questions["card"]}).export(tmp_path / "lone.html"))
    ((header, buffers),) = chunks(lone["shelves"][0]).values()
    assert decoded(header, buffers)["pictures"].size == sum(len(document(i).media) for i in range(3))


@pytest.mark.parametrize("media", [None, b"<svg onload=alert(1)>", b""])
def test_what_is_no_picture_is_not_sent(media):
    result = laid_out(LAYOUT, ["extra", *["patch"] * 6], NAMES, np.eye(7), media=media)
    assert not decoded(*pack_codes(result).encoded())["picture"].size
    held = {0: DocumentRecord(0, "0", "image", "", LAYOUT, (), media)}
    header = pack_card(replace(pictured(1), documents=held)).header
    assert (header["documents"][0]["bytes"], header["documents"][0]["asked"]) == (0, False)


def test_a_sample_says_how_it_lies():
    facets = ["extra", *["patch"] * 6]
    dense = np.tile(np.eye(7), (2, 1)) * np.arange(1, 15)[:, None]
    result = laid_out(LAYOUT, facets * 2, NAMES * 2, dense, calls=2, media=png(8), labels=("cat",))
    packed = pack_codes(result)
    assert packed.header["parts"] == [["extra", 1, 0, 0, 1], ["grid", 6, 3, 0, 6]]
    assert (packed.header["calls"], packed.header["labels"]) == (2, ["cat"])
    assert packed.fields["picture"].tobytes() == png(8)
    text = repr(SampleView(result, questions={"card": card}))
    assert text.splitlines() == [
        "document 0 «cat»",
        "call 0",
        "       extra '0'  0:1.00",
        "grid 2x3, the strongest |value| of each patch up to 7:",
        "  -=*",
        "  #%@",
        "strongest: 6:7.00 at 1,2; 5:6.00 at 1,1; 4:5.00 at 1,0; 3:4.00 at 0,2; 2:3.00 at 0,1",
        "call 1",
        "       extra '0'  0:8.00",
        "grid 2x3, the strongest |value| of each patch up to 14:",
        "  *#%",
        "  %@@",
        "strongest: 6:14.00 at 1,2; 5:13.00 at 1,1; 4:12.00 at 1,0; 3:11.00 at 0,2; 2:10.00 at 0,1",
    ]


def test_a_long_sample_is_cut_short_in_words():
    facets, names = ["item"] * 400, [f"film {i}" for i in range(400)]
    lines = str(laid_out("list", facets, names, np.ones((400, 1)))).splitlines()
    assert len(lines) == 201
    assert lines[-1] == "... and 200 lines more"


def test_a_card_in_words_says_where_a_picture_fires():
    result = pictured(2, call=1)
    assert str(result).splitlines()[1:3] == [
        "   2.000  image 1 «cat 1» at call 1, patch 0,1",
        "   1.000  image 0 «cat 0» at call 1, patch 0,0",
    ]
    # without its documents too
    assert str(result.top).splitlines()[0] == "   2.000  document 1 at 0,1"
    assert result.top.to_frame()["text"].tolist() == ["0,1", "0,0"]


def test_pictures_where_nothing_runs():
    """A grid as cells, the pictures that there is room for, and where each window fires."""
    dense = np.zeros((7, 4))
    dense[5, 1] = -2.0
    shown = laid_out(LAYOUT, ["extra", *["patch"] * 6], NAMES, dense, media=png(8), labels=("cat",))
    form = SampleView(shown, questions={"card": card}, latent=1).html()
    table = re.search("<table.*?</table>", form)[0]
    assert [row.count("<td") for row in table.split("</tr>")[:-1]] == [3, 3]
    assert [i for i, cell in enumerate(table.split("<td")[1:]) if "background-color" in cell] == [4]
    assert form.count("data:image/png;base64,") == 1
    result = pictured(12, size=36)
    form = CardView(3, questions={"card": lambda _: result}).html()
    assert 0 < form.count("<img") < 8
    assert len(form.encode()) <= still.MOST_BYTES
    assert "image 11 «cat 11» at patch 1,2" in form
    wide = laid_out("grid 64x64", ["patch"] * 4096, ["x"] * 4096, np.ones((4096, 1)))
    form = SampleView(wide, questions={"card": card}, latent=0).html()
    assert form.count("<td") == 16 * 16


def test_a_card_shows_a_picture_once_and_a_text_at_each_firing():
    lab = saelab.Lab.embedded_vision()
    for latent in (44, 236):
        every = lab.store.examples(latent, 20)
        once = saelab.analysis.card(lab.store, latent).top.windows
        of = [w.document for w in once]
        assert len(of) == len(set(of)) < len(every)
        assert set(of) == {w.document for w in every}
        assert once[0] == every[0]
        for w in once:  # the strongest of its picture
            assert w.value == max(each.value for each in every if each.document == w.document)
    text = saelab.Lab.embedded()
    latent = next(
        j for j in range(100)
        if len({w.document for w in text.store.examples(j, 20)}) < len(text.store.examples(j, 20))
    )  # fmt: skip
    assert len(saelab.analysis.card(text.store, latent).top.windows) == len(text.store.examples(latent, 20))
