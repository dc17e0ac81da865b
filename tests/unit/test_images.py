"""Corpora of images: of every place and every kind of file, in order, and what no model should meet."""

from __future__ import annotations

import io
import json
import os
import tracemalloc
import zipfile
import zlib

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import subjects_zoo as zoo
from PIL import Image, PngImagePlugin

import saelab
from saelab.corpora import images
from saelab.corpora.pictures import MOST_BYTES, picture_of, thumbnail
from saelab.types import ConfigError, CorpusError


def picture(seed: int, height: int = 24, width: int = 30) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)


def encoded(pixels: np.ndarray, kind: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind, **options)
    return out.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three classes of four pictures."""
    root = tmp_path_factory.mktemp("pictures")
    for i in range(12):
        place = root / "train" / "abc"[i % 3]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{i:02}.png").write_bytes(encoded(picture(i)))
    (root / "notes.txt").write_text("no image")
    return root


def told(corpus):
    return [(d.id, d.labels, picture_of(d.sample).tobytes()) for d in corpus]


def test_a_folder_a_zip_a_table_and_a_data_set_hold_the_same(folder, tmp_path):
    files = sorted(folder.rglob("*.png"))
    expected = [
        (f.relative_to(folder).as_posix(), f.relative_to(folder).parts[:-1], picture(int(f.stem)).tobytes())
        for f in files
    ]
    assert told(images(folder)) == expected
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        for file in files:
            archive.write(file, file.relative_to(folder))
    assert told(images(tmp_path / "z.zip")) == expected
    # as `datasets` writes images
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list("abc"))})
    rows = {"image": [str(f) for f in files], "label": [f.parent.name for f in files]}
    made = datasets.Dataset.from_dict(rows, features=features)
    made.to_parquet(tmp_path / "p.parquet")
    table = images(tmp_path / "p.parquet")
    assert [(labels, pixels) for _, labels, pixels in told(table)] == [(e[1][1:], e[2]) for e in expected]
    assert [d.id for d in table][:2] == ["p.parquet:0", "p.parquet:1"]
    for data in (made, made.to_iterable_dataset()):
        assert [t[1:] for t in told(images(data))] == [t[1:] for t in told(table)]
    plain = pa.table({"picture": [f.read_bytes() for f in files], "tags": [["x", "y"]] * 12})
    pq.write_table(plain, tmp_path / "q.parquet")
    other = images(tmp_path / "q.parquet", column="picture", label="tags")
    assert [t[1:] for t in told(other)] == [(("x", "y"), e[2]) for e in expected]
    arrays = images(np.stack([picture(i) for i in range(12)]), labels=list("abc") * 4)
    assert {d.labels for d in arrays} == {("a",), ("b",), ("c",)}
    prints = {c.fingerprint() for c in (images(folder), table, other, images(tmp_path / "z.zip"))}
    assert len(prints) == 4


def test_threads_change_nothing_and_do_not_run_far_ahead(folder):
    one, many = (told(images(folder, workers=n)) for n in (1, 5))
    assert one == many
    opened = []

    class Items:
        def __len__(self):
            return 1_000

        def __getitem__(self, i):
            opened.append(i)
            return picture(i, 8, 8)

    some = iter(images(Items(), workers=2))
    next(some)
    assert len(opened) <= 6
    some.close()


def test_memory_does_not_grow_with_the_corpus(tmp_path):
    """Pictures of 3 MB each: a few of them are held, not forty."""
    for i in range(40):
        (tmp_path / f"{i}.jpg").write_bytes(encoded(picture(i, 1_000, 1_000), "JPEG"))
    tracemalloc.start()
    held = sum(len(d.media) for d in images(tmp_path, workers=2))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert held
    assert peak < 12 * 3_000_000


EXIF_TURNED = Image.Exif()
EXIF_TURNED[0x0112] = 6


def _sixteen() -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((9, 9), 257 * 100, np.uint16)).save(out, "PNG")
    return out.getvalue()


def _animated() -> bytes:
    out = io.BytesIO()
    frames = [Image.fromarray(np.full((9, 9, 3), v, np.uint8)) for v in (200, 10)]
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:])
    return out.getvalue()


def _cmyk() -> bytes:
    out = io.BytesIO()
    Image.new("CMYK", (9, 9), (0, 255, 255, 0)).save(out, "JPEG", quality=95)
    return out.getvalue()


def _palette() -> bytes:
    out = io.BytesIO()
    Image.new("RGBA", (9, 9), (0, 0, 255, 0)).quantize().save(out, "PNG", transparency=0)
    return out.getvalue()


@pytest.mark.parametrize(
    ("data", "shape", "colour"),
    [
        (encoded(np.full((9, 30, 3), 50, np.uint8), "JPEG", exif=EXIF_TURNED), (30, 9), (50, 50, 50)),
        (_sixteen(), (9, 9), (100, 100, 100)),
        (_animated(), (9, 9), (200, 200, 200)),
        (_cmyk(), (9, 9), (254, 0, 0)),
        (_palette(), (9, 9), (255, 255, 255)),
        (encoded(np.zeros((9, 9, 4), np.uint8)), (9, 9), (255, 255, 255)),
        (encoded(np.full((9, 9), 7, np.uint8)), (9, 9), (7, 7, 7)),
    ],
    ids=["turned", "16 bits", "animated", "cmyk", "palette", "transparent", "grey"],
)
def test_files_of_every_kind_come_as_people_see_them(data, shape, colour, tmp_path):
    (tmp_path / "a.png").write_bytes(data)
    (document,) = images(tmp_path)
    assert document.sample.shape == (*shape, 3)
    assert np.abs(document.sample.astype(int) - colour).max() <= 3
    shown = np.asarray(Image.open(io.BytesIO(document.media)).convert("RGB"))
    assert shown.shape == (*shape, 3)
    assert np.abs(shown.astype(int) - colour).max() <= 3


def test_broken_and_huge_files_are_refused_or_left_out_by_name(tmp_path):
    good = encoded(picture(0))
    (tmp_path / "a.png").write_bytes(good)
    (tmp_path / "broken.png").write_bytes(good[: len(good) // 2])
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.png").write_text("<svg onload='alert(1)'>")
    # a bomb: some bytes that say 65,000 x 65,000
    header = bytearray(encoded(np.zeros((1, 1), np.uint8)))
    header[16:24] = (65_000).to_bytes(4, "big") * 2
    header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
    (tmp_path / "bomb.png").write_bytes(bytes(header))
    (tmp_path / "z.png").write_bytes(encoded(picture(1)))
    with pytest.raises(CorpusError, match=r"bomb\.png"):
        list(images(tmp_path))
    refused = {"broken.png": "whole|readable", "bomb.png": "decompression bomb", "text.png": "readable"}
    for small, name in refused.items():
        with pytest.raises(CorpusError, match=name):
            picture_of(tmp_path / small)
    with pytest.warns(
        UserWarning, match=r"4 of 6 images were left out: bomb\.png: .*broken\.png.*empty\.jpg.*; \.\.\."
    ):
        found = list(images(tmp_path, broken="skip"))
    assert [d.id for d in found] == ["a.png", "z.png"]
    with pytest.raises(CorpusError, match="at most 100 pixels"):
        list(images(tmp_path / ".." / tmp_path.name, max_pixels=100))
    with pytest.raises(CorpusError, match="none: 1 of 1"):
        list(images([tmp_path / "bomb.png"], broken="skip"))
    with pytest.raises(ConfigError, match="broken"):
        images(tmp_path, broken="ignore")


def test_names_and_metadata_of_strangers_do_no_harm(tmp_path):
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        for name in ("../../up.png", "/root.png", "a\\..\\b.png", "<img src=x onerror=alert(1)>.png"):
            archive.writestr(name, encoded(picture(0)))
    before = sorted(p.name for p in tmp_path.parent.iterdir())
    found = list(images(tmp_path / "z.zip"))
    assert sorted(p.name for p in tmp_path.parent.iterdir()) == before
    assert sorted(d.id for d in found) == [
        "<img src=x onerror=alert(1)>.png",
        "a/b.png",
        "root.png",
        "up.png",
    ]
    place = tmp_path / "odd"
    place.mkdir()
    with open(os.fsencode(place) + b"/\xff\xfe.png", "wb") as file:  # noqa: PTH123
        file.write(encoded(picture(0)))
    meta = PngImagePlugin.PngInfo()
    meta.add_text("Comment", "<script>alert(1)</script>")
    (place / "meta.png").write_bytes(encoded(picture(1), pnginfo=meta))
    noted = encoded(picture(2, 100, 100), "JPEG", comment=b"<script>", exif=b"Exif\x00\x00<script>")
    (place / "noted.jpg").write_bytes(noted)
    documents = list(images(place))
    assert not any(b"<script>" in d.media for d in documents)
    subject, hook = zoo.vision_subject("vit"), "blocks.0.hook_resid_post"
    config = saelab.recipe("topk", d_in=16, d_sae=32, k=4, hook=hook)
    store = saelab.index(
        subject, saelab.SAE.create(config, seed=0), images(place), tmp_path / "s", progress=False
    )
    assert {store.document(i).id for i in range(3)} == {d.id for d in documents}
    json.dumps([d.id for d in documents])


def test_small_pictures_keep_to_their_budget():
    for pixels in (picture(0, 64, 64), picture(1, 900, 1_200), picture(2, 3, 2_000)):
        for size in (8, 96, 512):
            made = thumbnail(pixels, size)
            assert len(made) <= MOST_BYTES
            assert max(Image.open(io.BytesIO(made)).size) <= max(size, 64)


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ("no/such/place", "a folder, a zip or a Parquet file"),
        (b"bytes", "items"),
        (3, "items"),
        ([], "at least one"),
    ],
)
def test_what_is_no_place_of_images_is_refused(item, words):
    with pytest.raises((CorpusError, ConfigError), match=words):
        images(item)


def test_places_without_images_are_refused(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(CorpusError, match="folder of images must hold"):
        images(tmp_path)
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr("a.txt", "a")
    with pytest.raises(CorpusError, match="zip of images must hold"):
        images(tmp_path / "z.zip")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "p.parquet")
    with pytest.raises(CorpusError, match="a column 'image'"):
        images(tmp_path / "p.parquet")
    (tmp_path / "q.parquet").write_bytes(b"none")
    with pytest.raises(CorpusError, match="must be readable"):
        images(tmp_path / "q.parquet")
    with pytest.raises(CorpusError, match="one for each of 1 images"):
        images([picture(0)], labels=["a", "b"])
