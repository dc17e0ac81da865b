"""Rows that are no tokens: patches of images, items of lists, and texts with an image in them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn

import saelab
from saelab.analysis import sample_codes
from saelab.capabilities import HasLogits, HasLoss, HasTokens, lacking, need
from saelab.corpora import Document
from saelab.layout import Layout
from saelab.stores.records import MEDIA_BYTES, media_type
from saelab.subjects.reading import How, ReadsSamples, SampleReading
from saelab.types import CorpusError, ShapeError, SubjectError

SIDE, WIDTH, D_SAE = 6, 8, 24


class Net(nn.Module):
    """A small CNN: a map of 6 x 6, then a pooled vector."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, WIDTH, 3, padding=1)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x):
        return self.head(self.conv(x).relu().mean((2, 3)))


class Patches(nn.Module):
    """A vision transformer's way: a class token before 3 x 3 patches."""

    def __init__(self):
        super().__init__()
        self.embed, self.block, self.head = nn.Linear(4, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2)
        self.cls = nn.Parameter(torch.ones(1, 1, WIDTH))

    def forward(self, x):
        x = x.unfold(2, 2, 2).unfold(3, 2, 2).flatten(2, 3).flatten(3)[:, 0]
        x = torch.cat([self.cls.expand(len(x), -1, -1), self.embed(x)], 1)
        return self.head(self.block(x)[:, 0])


def _images(n=10, seed=0):
    return torch.rand(n, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def cnn():
    torch.manual_seed(0)
    return saelab.TorchModule(Net(), example=_images(1))


def _sae(width=WIDTH, hook="conv", **options):
    rows = torch.randn(200, width, generator=torch.Generator().manual_seed(3))
    config = saelab.recipe("topk", d_in=width, d_sae=D_SAE, k=3, hook=hook, **options)
    return saelab.SAE.create(config, seed=1, rows=rows).eval()


@pytest.fixture(scope="module")
def corpus():
    return saelab.corpora.images(_images(), labels=list("aabbccddee"))


@pytest.fixture(scope="module")
def store(cnn, corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("cnn") / "features"
    return saelab.index(cnn, _sae(), corpus, out, n_examples=4, n_quantile=4, progress=False)


def test_patches_are_counted_like_tokens(store, cnn):
    sae = _sae()
    x = cnn.run(cnn.prepare(_images()), read=["conv"]).acts["conv"]
    dense = sae.encode(x.reshape(-1, WIDTH)).detach().numpy()
    names = [f"{r},{c}" for r, c in itertools.product(range(SIDE), repeat=2)] * 10
    assert store.facets == ("patch",)
    assert store.n_rows == len(dense) == 10 * SIDE * SIDE
    for latent in range(D_SAE):
        fires = dense[:, latent] != 0
        counts = {name: sum(f for f, n in zip(fires, names, strict=True) if n == name) for name in set(names)}
        expected = sorted(((c, n) for n, c in counts.items() if c), key=lambda p: (-p[0], p[1]))
        found = store.firings(latent, n=99)
        assert found["name"].tolist() == [n for _, n in expected]
        assert found["count"].tolist() == [c for c, _ in expected]
        assert store.latent(latent).top_names == [n for _, n in expected[:3]]
    name = store.top_names()[min(store.top_names())][0]
    here = np.array(names) == name
    for line in store.search(value=("patch", name), n=99).itertuples():
        both = int((dense[here, line.latent] != 0).sum())
        assert line.count == both
        assert line.score == pytest.approx(2 * both / ((dense[:, line.latent] != 0).sum() + here.sum()))
    with pytest.raises(CorpusError, match="one of the store's tokens"):
        store.search(token=name)


def test_an_example_shows_its_picture_whole(store):
    for latent in range(D_SAE):
        for example in store.examples(latent):
            assert (example.start, len(example.names)) == (0, SIDE * SIDE)
            assert example.values[example.position] == example.value
            document = store.document(example.document)
            assert (document.layout, document.grids) == (f"grid {SIDE}x{SIDE}", True)
            assert media_type(document.media) == "image/png"
            assert document.labels == (document.text,)
    rows = store.query("select row, position from rows order by row")
    assert (rows["position"] == rows["row"] % (SIDE * SIDE)).all()


def test_a_large_grid_shows_the_rows_around(cnn, tmp_path):
    images = torch.rand(2, 1, 40, 40, generator=torch.Generator().manual_seed(1))
    store = saelab.index(cnn, _sae(), images, tmp_path / "s", n_examples=2, n_quantile=0, progress=False)
    layout = Layout.parse("grid 40x40")
    for example in itertools.chain.from_iterable(store.examples(j) for j in range(D_SAE)):
        first, last = layout.window(example.position, 10, 10, 1600)
        assert (example.start, len(example.names)) == (first, last - first + 1)
        assert example.names[example.position - first] == layout.place(example.position).name


@pytest.mark.parametrize("hook", ["conv", "head"])
def test_a_store_does_not_depend_on_the_batch_size(cnn, corpus, tmp_path, hook):
    """What a row shows must not hold its number within a batch."""
    sae = _sae(cnn.width(hook), hook)
    one, other = (
        saelab.index(cnn, sae, corpus, tmp_path / str(size), batch_size=size, progress=False)
        for size in (1, 4)
    )
    for table in ("vocabulary", "firings", "rows", "documents"):
        assert one.query(f"select * from {table}").equals(other.query(f"select * from {table}")), table
    assert one.facets == (("patch",) if hook == "conv" else ("extra",))


def test_class_tokens_and_patches_by_a_layout(tmp_path):
    torch.manual_seed(0)
    subject = saelab.TorchModule(Patches(), example=_images(1), layout="extra 1, grid 3x3")
    store = saelab.index(subject, _sae(hook="block"), _images(), tmp_path / "s", progress=False)
    assert store.facets == ("extra", "patch")
    rows = store.query("select name, facet from rows join vocabulary using (shown) order by row limit 10")
    assert rows["facet"].tolist() == ["extra"] + ["patch"] * 9
    assert rows["name"].tolist() == ["0", *(f"{r},{c}" for r in range(3) for c in range(3))]
    wrong = saelab.TorchModule(Patches(), example=_images(1), layout="grid 3x3")
    with pytest.raises(ShapeError, match=r"'grid 3x3' holds 9 positions\. Got 10 of document '0' at block"):
        saelab.harvest(wrong, _images(), ["block"], tmp_path / "acts", progress=False)
    assert not (tmp_path / "acts").exists()


class Mixed(ReadsSamples):
    """Texts with an image in them: three words, a picture of 2 x 2, as many words as there are."""

    def hooks(self):
        return ["h"]

    def width(self, hook):
        return WIDTH

    def prepare(self, raw):
        lengths = np.array([7 + len(words) for words in raw])
        ids = torch.zeros(len(raw), int(lengths.max()), dtype=torch.long)
        for i, words in enumerate(raw):
            ids[i, : lengths[i]] = torch.tensor([1, 2, 3, 9, 9, 9, 9, *map(len, words)])
        return saelab.types.Inputs({"ids": ids}, lengths)

    def run(self, inputs, read=(), edits=(), *, output=True):
        ids = inputs.data["ids"].float()
        acts = torch.stack([torch.sin(ids * (i + 1)) for i in range(WIDTH)], -1)
        return saelab.types.Run({str(h): acts for h in read}, None)

    def label(self, inputs, sample, position):
        return f"w{int(inputs.data['ids'][sample, position])}"

    def read(self, documents, how):
        layout = lambda words, n: f"line 3, grid 2x2, line {len(words)}"  # noqa: E731
        return SampleReading(documents, how.batch_size, self.prepare, layout, self.label)

    def fingerprint(self):
        return "mixed"


def test_texts_with_an_image(tmp_path):
    sentences = [["a", "bb"], ["ccc"], ["dd", "ee", "f"]]
    store = saelab.index(Mixed(), _sae(hook="h"), sentences, tmp_path / "s", progress=False)
    assert store.facets == ("patch", "position")
    first = store.query(
        "select name, facet from rows join vocabulary using (shown) where document = 0 order by row"
    )
    assert first["name"].tolist() == ["w1", "w2", "w3", "w9", "w9", "w9", "w9", "w1", "w2"]
    assert first["facet"].tolist() == ["position"] * 3 + ["patch"] * 4 + ["position"] * 2
    assert store.document(2).layout == "line 3, grid 2x2, line 3"
    found = sample_codes(Mixed(), _sae(hook="h"), ["x"])
    assert [s.facet for s in found.shown] == ["position"] * 3 + ["patch"] * 4 + ["position"]


def test_one_sample_of_any_kind_is_shown(cnn, store, corpus):
    sae = _sae()
    lab = saelab.Lab(cnn, sae, store)
    document = next(iter(corpus))
    for sample in (document.sample, document):
        codes = lab.codes(sample)
        assert str(codes.layout) == f"grid {SIDE}x{SIDE}"
        x = cnn.run(cnn.prepare([document.sample]), read=["conv"]).acts["conv"][0]
        np.testing.assert_allclose(codes.codes.dense(), sae.encode(x).detach().numpy(), atol=1e-6)
    assert lab.codes(document).document.media == document.media
    assert "Net" not in str(lab.show(document))
    best = lab.search(document, n=5)
    share = (lab.codes(document).codes.dense() != 0).mean(0)
    density = (store.latents()["count"].to_numpy() + 1) / (store.n_rows + 1)
    specific = np.where(share, share * np.log2(np.where(share, share, 1) / density), -np.inf)
    np.testing.assert_allclose(best["score"], np.sort(specific)[::-1][:5])
    np.testing.assert_allclose(best["score"], specific[best["latent"]])
    with pytest.raises(SubjectError, match=r"A heatmap of tokens needs .*to_tokens"):
        lab.tokens("text")
    card = lab.card(3)
    assert card.lens is None
    assert str(card).count("document") == len(card.top.windows) + len(card.quantile.windows) - len(
        card.quantile.windows
    )


def test_capabilities_are_asked_for_by_name(cnn):
    language = saelab.Lab.embedded().subject
    for capability in (HasTokens, HasLogits, HasLoss):
        assert lacking(language, capability) == []
        assert lacking(cnn, capability)
        with pytest.raises(SubjectError, match=r"This needs a subject that .*Got a TorchModule, which lacks"):
            need(cnn, capability, "This")
    with_loss = saelab.TorchModule(Net(), example=_images(1), loss=lambda out, inputs: out.square().sum(1))
    assert lacking(with_loss, HasLoss) == []
    summed, n = with_loss.loss(with_loss.prepare(_images(4)))
    assert summed.shape == n.shape == (4,)
    bad = saelab.TorchModule(Net(), example=_images(1), loss=lambda out, inputs: out.sum())
    with pytest.raises(ShapeError, match=r"one number for each of 4 samples\. Got shape \[\]"):
        bad.loss(bad.prepare(_images(4)))


def test_only_texts_are_packed(cnn):
    with pytest.raises(saelab.types.ConfigError, match=r"Only texts are packed\. Got packing='blocks'"):
        cnn.stretch(How(packing="blocks"))


def test_media_is_small_and_a_picture(cnn, tmp_path):
    big = Document("big", "t", sample=_images()[0], media=b"\x89PNG\r\n\x1a\n" + bytes(MEDIA_BYTES))
    other = Document("other", "t", sample=_images()[0], media=b"<svg onload='alert(1)'>")
    for document, match in (
        (big, "Got 65,544 bytes of document 'big'"),
        (other, "none of these of document"),
    ):
        with pytest.raises(CorpusError, match=match):
            saelab.index(cnn, _sae(), [document], tmp_path / "s", progress=False)
        assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("item", "match"),
    [
        (np.zeros((5, 5, 7)), "1, 3 or 4 channels"),
        (np.full((4, 4), 3.0), "floats must be in 0..1. Got 3..3"),
        (np.full((4, 4), 999), "integers must be in 0..255"),
        (np.zeros((0, 4)), "1, 3 or 4 channels"),
        ("no/such.png", "must be readable. Got 'no/such.png'"),
    ],
)
def test_what_is_no_image(item, match):
    with pytest.raises(CorpusError, match=match):
        list(saelab.corpora.images([item]))


def test_images_of_every_form(tmp_path):
    from PIL import Image

    rng = np.random.default_rng(0)
    colour = rng.integers(0, 255, (80, 200, 3), dtype=np.uint8)
    Image.fromarray(colour).save(tmp_path / "one.png")
    items = [
        colour, colour.transpose(2, 0, 1), torch.from_numpy(colour), colour / 255.0, colour[:, :, 0],
        Image.fromarray(colour), tmp_path / "one.png", str(tmp_path / "one.png"), colour[:9, :9],
    ]  # fmt: skip
    found = list(saelab.corpora.images(items, size=64))
    for document in found:
        assert media_type(document.media) in ("image/png", "image/jpeg")
        assert len(document.media) < 10_000
    assert [d.id for d in found][-3:] == ["one.png", "one.png", "8"]
    assert saelab.corpora.images(items).fingerprint() == saelab.corpora.images(items).fingerprint()
