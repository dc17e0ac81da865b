"""Results as views show them, made without a model; and what Python sent, as the browser reads it."""

from __future__ import annotations

import base64
import json
import re
import struct
import zlib
from pathlib import Path

import numpy as np

from saelab.analysis.results import (
    Examples,
    FeatureCard,
    LatentTable,
    LogitLens,
    SampleCodes,
)
from saelab.stores.records import DocumentRecord, Example, LatentStats
from saelab.types import Codes, Shown
from saelab.widgets import View


def window(row: int, names: list[str], values: np.ndarray, document: int = 0) -> Example:
    """Around a firing in the middle."""
    return Example(0, "top", 0, -1, row, document, 10, 0, float(values[10]), 0, names, values)


def stats(latent: int, *, low: float = 0.0, high: float = 1.0, negative: int = 0) -> LatentStats:
    counts, edges = np.full(40, 1), np.linspace(low, high, 41)
    return LatentStats(latent, 1000, 40, 0.04, 0.25, low, high, negative, 0.5, 0.1, counts, edges, ["a"], [])


def sample(names: list[str], codes: np.ndarray, counted: np.ndarray | None = None) -> SampleCodes:
    """A text of these tokens."""
    counted = np.ones(len(names), bool) if counted is None else counted
    document = DocumentRecord(0, "0", "", "".join(names), "line")
    shown = tuple(Shown("token", name) for name in names)
    return SampleCodes(document, shown, Codes.from_dense(codes), counted)


def card(latent: int = 3, windows: int = 20, signed: bool = False, lens: bool = True) -> FeatureCard:
    rng = np.random.default_rng(latent)
    made = []
    for i in range(windows):
        values = (rng.random(21) * (rng.random(21) < 0.5)).astype(np.float32) * (
            rng.choice([-1, 1]) if signed else 1
        )
        names = [f" w{j}" for j in rng.integers(0, 400, 21)]
        made.append(window(100 + i, names, values, document=i))
    logits = LogitLens(latent, (("up", 1.0),), (("down", -1.0),), 0.2) if lens else None
    groups = {"top": made[::2], "quantile": made[1::2]}
    if signed:
        groups = {kind: made[i::3] for i, kind in enumerate(("top", "bottom", "quantile"))}
    shown = {kind: Examples(latent, kind, tuple(some)) for kind, some in groups.items()}
    figures = stats(latent, low=-1.0 if signed else 0.0, negative=15 if signed else 0)
    return FeatureCard(
        figures, shown["top"], shown["quantile"], logits, "a label", bottom=shown.get("bottom")
    )


def codes() -> SampleCodes:
    rng = np.random.default_rng(0)
    dense = rng.standard_normal((5, 30)) * (rng.random((5, 30)) < 0.2)
    return sample(list("abcde"), dense, np.array([False, True, True, True, True]))


def table(n: int = 50) -> LatentTable:
    rng = np.random.default_rng(1)
    count = rng.integers(0, 100, n)
    names = tuple(f"n{i}" for i in range(n))
    return LatentTable(count, count / 1000, rng.random(n), np.zeros(n), rng.random(n), names)


def levels_view(folder: Path) -> type[View]:
    """The view of docs/widgets.md as one from elsewhere: its module is written to a folder."""
    text = (Path(__file__).parents[1] / "docs" / "widgets.md").read_text()
    source, script = (
        re.search(rf"^```{language}\n(.*?)^```", text, re.M | re.S)[1] for language in ("python", "js")
    )
    (folder / "levels.js").write_text(script)
    names: dict = {"__name__": "levels"}
    exec(source, names)
    view = names["LevelsView"]
    view.folder = folder
    return view


def decoded(header: dict, buffers: list[bytes]) -> dict:
    """The fields of an answer by name, as the browser reads them."""
    fields = {}
    for field, data in zip(header["fields"], buffers, strict=True):
        if field["dtype"] == "json":
            assert field["shape"] == [len(data)]
            fields[field["name"]] = json.loads(data)
        else:
            fields[field["name"]] = np.frombuffer(data, field["dtype"]).reshape(field["shape"])
    return fields


def decoded_windows(header: dict, buffers: list[bytes]) -> list[tuple[list[str], np.ndarray]]:
    """Tokens and values of a card's windows, as the browser reads them."""
    fields = decoded(header, buffers)
    ids, values = fields["names"], fields["values"]
    if "quantum" in header:
        assert values.dtype == np.uint8
        values = (values.astype(float) - header["zero"]) * header["quantum"]
    out, at = [], 0
    for w in header["windows"]:
        part = slice(at, at + w["n"])
        out.append(([header["vocabulary"][i] for i in ids[part]], values[part]))
        at += w["n"]
    return out


def chunks(shelf: dict) -> dict[str, tuple[dict, list[bytes]]]:
    """All answers of a shelf of an exported page, by key: header and buffers."""
    keys = json.loads(inflated(shelf["index"]))
    answers = []
    for chunk in shelf["chunks"]:
        data = inflated(chunk)
        (length,) = struct.unpack_from("<I", data)
        at = 4 + length
        for header in json.loads(data[4:at]):
            buffers = []
            for field in header["fields"]:
                size = 1 if field["dtype"] == "json" else np.dtype(field["dtype"]).itemsize
                end = at + size * int(np.prod(field["shape"]))
                buffers.append(data[at:end])
                at = end
            answers.append((header, buffers))
        assert at == len(data)
    return dict(zip(keys, answers, strict=True))


def inflated(text: str) -> bytes:
    return zlib.decompress(base64.b64decode(text))
