"""Tensors in safetensors files: the bytes of the format's own library, read into any layout; others are
refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saelab import tensors
from saelab.tensors import Pieces, Reader, is_finite, write
from saelab.types import FormatError, StoreError

ALL = [torch.float64, torch.int64, torch.float32, torch.int32, torch.bfloat16, torch.float16, torch.int16,
       torch.uint8, torch.int8, torch.bool]  # fmt: skip


def named(**shapes):
    torch.manual_seed(0)
    made = {name: (torch.randn(shape) * 9).to(dtype) for name, (dtype, shape) in shapes.items()}
    return dict(sorted(made.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])))


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_bytes_are_those_of_the_library(tmp_path):
    given = named(
        b=(torch.float32, (3, 5)), a=(torch.float32, ()), n=(torch.int64, (2,)), h=(torch.float16, (0, 3))
    )
    for metadata in (None, {"format": "x"}):
        digest = write(tmp_path / "a", given, metadata)
        assert (tmp_path / "a").read_bytes() == safetensors.torch.save(given, metadata)
        assert digest == sha256(tmp_path / "a")


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(ALL), st.lists(st.integers(0, 7), max_size=3)), max_size=5))
def test_what_is_written_comes_back(tmp_path_factory, kinds):
    path = tmp_path_factory.mktemp("x") / "a"
    made = named(**{f"t{i}": (dtype, tuple(shape)) for i, (dtype, shape) in enumerate(kinds)})
    digest = write(path, made)
    assert safetensors.torch.load_file(path).keys() == made.keys()
    with Reader(path, digest) as file:
        assert file.entries.keys() == made.keys()
        for name, tensor in made.items():
            assert torch.equal(file.read(name), tensor)


@pytest.mark.parametrize("piece", [1, 40, 10**6])
def test_layouts_and_dtypes_and_pieces(tmp_path, monkeypatch, piece):
    monkeypatch.setattr(tensors, "PIECE", piece)
    x = torch.randn(7, 5)
    parts = {"x": x, "turned": x.t(), "part": x[1:4, ::2], "pieces": Pieces((7, 5), x.dtype, x.split(3))}
    digest = write(tmp_path / "a", parts)
    with Reader(tmp_path / "a", digest) as file:
        assert torch.equal(file.read("turned"), x.t())
        assert torch.equal(file.read("part"), x[1:4, ::2])
        assert torch.equal(file.read("pieces"), x)
        for out in (
            torch.empty(5, 7).t(),
            torch.empty(7, 5, dtype=torch.float64),
            torch.empty(14, 10)[::2, ::2],
        ):
            assert file.read("x", out) is out
            assert torch.equal(out.float(), x)


def test_finite_numbers_are_told_from_others():
    big = torch.full((9,), 3e38)
    assert is_finite(big)
    assert is_finite(torch.tensor([]))
    assert is_finite(torch.tensor(2))
    for bad in (float("nan"), float("inf"), -float("inf")):
        for at in (0, 4, 8):
            other = big.clone()
            other[at] = bad
            assert not is_finite(other)
            assert not is_finite(other[:, None].expand(9, 3))


@pytest.fixture
def good(tmp_path) -> Path:
    write(tmp_path / "a", {"x": torch.arange(6.0).reshape(2, 3), "y": torch.arange(4.0)})
    return tmp_path / "a"


HEADER = {
    "x": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "y": {"dtype": "F32", "shape": [4], "data_offsets": [24, 40]},
}


def spoilt(header):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(40)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"x", b"\xff" * 100, (2**63).to_bytes(8, "little") + bytes(40), spoilt(b"{"), spoilt(b"[]"),
        spoilt(b'{"x": 1, "x": 2}'), spoilt({"x": None}), spoilt({"x": HEADER["x"]}),
        spoilt(HEADER | {"z": HEADER["y"]}), spoilt(HEADER) + b"x", spoilt(HEADER)[:-1],
        *(
            spoilt(HEADER | {"y": HEADER["y"] | change})
            for change in (
                {"dtype": "F16"}, {"dtype": "X"}, {"dtype": []},
                {"shape": [5]}, {"shape": [-4]}, {"shape": "abcd"}, {"shape": [True, 4]}, {"shape": [4.0]},
                {"shape": [2**62, 2**62]},
                {"data_offsets": [0, 16]}, {"data_offsets": [28, 44]}, {"data_offsets": [28, 40]},
                {"data_offsets": [20, 40]}, {"data_offsets": [40, 24]},
                {"data_offsets": [24]}, {"data_offsets": [24.0, 40.0]}, {"data_offsets": None},
            )
        ),
    ],
)  # fmt: skip
def test_files_that_lie_are_refused(good, data):
    with Reader(good, sha256(good)) as file:
        assert torch.equal(file.read("y"), torch.arange(4.0))
    good.write_bytes(data)
    with pytest.raises(FormatError, match="safetensors"):
        Reader(good, sha256(good))


def test_a_file_that_changes_is_told(good):
    for digest in ("0" * 64, None, 3, ["x" * 10**6]):
        with pytest.raises(FormatError, match="truncated or altered") as caught:
            Reader(good, digest)
        assert len(str(caught.value)) < 1000
    digest = write(good, {"x": torch.zeros(10**5)})
    with Reader(good, digest) as file, good.open("r+b") as other:
        other.truncate(good.stat().st_size - 1)
        with pytest.raises(StoreError, match="shorter"):
            file.read("x")
    with pytest.raises(StoreError, match="readable"):
        Reader(good.with_name("none"), "x")
