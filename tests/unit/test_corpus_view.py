"""The documents of a store: found, sorted and read as loops over its tables and the model itself say."""

from __future__ import annotations

import numpy as np
import pytest
from shown import decoded

from saelab import analysis
from saelab.analysis.stored import mean_losses, stored_codes
from saelab.stores.documents import find_documents
from saelab.types import ConfigError, RangeError, StoreError
from saelab.widgets.corpus import PAGE_OPEN


def by_document(store, latent):
    """document -> values of a latent."""
    rows, values = store.codes(latent)
    found = {}
    for row, value in zip(rows.tolist(), values.tolist(), strict=True):
        found.setdefault(store.rows(row).document, []).append(value)
    return found


def test_documents_are_found_as_loops_find_them(small_lab):
    store = small_lab.store
    every = store.documents(range(store.n_documents))
    word = every[3].text.split()[1].upper()
    found = find_documents(store, "text", word)
    assert found.documents.tolist() == [n for n, d in every.items() if word.lower() in d.text.lower()]
    assert 3 in found.documents
    assert len(find_documents(store, "text", "%_'; drop table x --").documents) == 0
    rows = [store.rows(row) for row in range(0, 400)]
    last = rows[-1].document  # of which there may be more rows
    for name in {rows[50].name, rows[51].name, " ", "\n"}:
        bare = name.strip(" ")
        held = {r.document for r in rows if r.name == name or (bare and r.name.strip(" ") == bare)}
        asked = find_documents(store, "token", name).documents.tolist()
        assert [n for n in asked if n < last] == sorted(n for n in held if n < last)
    longest = find_documents(store, sort="rows")
    assert (np.diff(longest.score) <= 0).all()
    assert longest.score.sum() == store.n_rows
    sql = find_documents(store, "sql", "n_rows > 8 and document < 40 -- few").documents
    sizes = zip(longest.documents.tolist(), longest.score.tolist(), strict=True)
    assert sql.tolist() == sorted(n for n, size in sizes if size > 8 and n < 40) != []


@pytest.mark.parametrize("which", ["small_lab", "signed_lab"])
def test_documents_are_sorted_by_a_latent(which, request):
    store = request.getfixturevalue(which).store
    latent = int((store.latents()["count"] - 40).abs().argmin())
    fires = by_document(store, latent)
    strongest = find_documents(store, sort="strongest", latent=latent)
    expected = {n: max(map(abs, values)) for n, values in fires.items()}
    assert dict(zip(strongest.documents.tolist(), strongest.score.tolist(), strict=True)) == pytest.approx(
        {n: expected.get(n, 0) for n in range(store.n_documents)}
    )
    assert (np.diff(strongest.score) <= 0).all()
    count = find_documents(store, "latent", f"#{latent}", sort="firings", latent=latent, descending=False)
    assert dict(zip(count.documents.tolist(), count.score.tolist(), strict=True)) == {
        n: len(values) for n, values in fires.items()
    }
    assert (np.diff(count.score) >= 0).all()


def test_a_stored_document_is_what_the_model_reads(small_lab):
    """Without the model: names and codes of its rows."""
    for document in (0, 7):
        stored, read = (
            stored_codes(small_lab.store, document),
            small_lab.source().questions["corpus"]().read(document),
        )
        rows = np.flatnonzero(read.counted)[: len(stored.shown)]
        assert stored.names == [read.names[i] for i in rows]
        np.testing.assert_allclose(stored.codes.dense(), read.codes.dense()[rows], atol=1e-4)


def test_surprise_is_the_mean_loss_of_those_that_were_read(small_lab):
    corpus = small_lab.source().questions["corpus"]()
    corpus.losses.clear()
    some = [4, 2, 9]
    assert corpus.surprise(some) >= 0
    for number in some:
        text = small_lab.store.document(number).text
        wanted = analysis.predictions(small_lab.subject, text).layer("loss").mean
        assert corpus.losses[number] == pytest.approx(wanted, abs=1e-4)
    long = "Rosa went to the market. " * 80
    assert mean_losses(small_lab.subject, [long, "Hugo"])[0] == pytest.approx(
        analysis.predictions(small_lab.subject, long).layer("loss").mean, abs=1e-4
    )
    found = corpus.find("text", "", "surprise", None, True)
    assert set(found.documents[:3]) == set(some)
    assert (np.diff(found.score[:3]) <= 0).all()
    assert np.isnan(found.score[3:]).all()
    assert "known of 3 of" in found.what


def test_the_view_answers_and_its_page_is_bounded(small_lab, tmp_path):
    small_lab.selection.document = None
    view = small_lab.corpus(5)
    assert (view.document, small_lab.selection.document) == (5, 5)
    answers = view.answers()
    listed = decoded(
        *answers["list"](way="text", words="", sort="document", latent=-1, descending=1).encoded()
    )
    assert listed["documents"].tolist() == list(range(small_lab.store.n_documents))
    ((number, _, begins),) = decoded(*answers["lines"](documents="5").encoded())["lines"]
    assert (number, begins) == (5, small_lab.store.document(5).text[:240])
    row = small_lab.store.rows(40)
    at = answers["place"](row=40).header
    assert at["document"] == row.document
    assert stored_codes(small_lab.store, row.document).names[at["at"]] == row.name
    assert answers["codes"](document=5).header["layers"] == []
    assert answers["codes"](document=5, model=1).header["layers"][0] == ["loss", "loss"]
    loss = decoded(*answers["layer"](name="loss", unit="nats", document=5, model=1).encoded())["values"]
    np.testing.assert_allclose(
        loss, analysis.predictions(small_lab.subject, small_lab.store.document(5).text).loss, atol=1e-5
    )
    assert sum(ask.question == "codes" for ask in view.exported()) <= PAGE_OPEN + 1
    assert view.export(tmp_path / "corpus.html").stat().st_size < 2_000_000
    assert "5" in repr(view)
    assert len(view.html()) < 60_000
    small_lab.selection.document = 6
    assert view.document == 6
    for wrong, error in (
        ({"way": "regex"}, ConfigError),
        ({"way": "sql", "words": "1); drop table documents; --"}, StoreError),
        ({"way": "latent", "words": "99"}, RangeError),
        ({"way": "latent", "words": "x"}, ConfigError),
        ({"sort": "strongest"}, ConfigError),
    ):
        asked = {"way": "text", "words": "", "sort": "document", "latent": -1, "descending": 1} | wrong
        with pytest.raises(error):
            answers["list"](**asked)
    with pytest.raises(RangeError):
        small_lab.corpus(10**6)
    small_lab.selection.document = None
