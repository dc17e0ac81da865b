"""A sample as it goes over the wire: its codes, in chunks where it is long, and what else is known of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from saelab.analysis.results import LAYERS, UNITS, Difference, Layer, Predictions, SampleCodes
from saelab.stores.characters import joined
from saelab.types import ConfigError
from saelab.widgets.questions import Ask
from saelab.widgets.wire import Packed, clean, cleaned, picture, rounded

CHUNK = 4096
"""Positions whose codes go together: of a longer text they are asked for as they come into sight."""
PAGE_CODES = 8_000_000
"""Bytes of codes of one sample that a page holds, at most, before they are compressed: from its start on."""
PAGE_ALONG = 256
"""Latents along a long text that a page holds, at most: those with the largest sum of |value|s."""

LISTED = 100
"""Latents that differ, at most, as they are sent."""


@dataclass(frozen=True)
class Side:
    """A sample, and how it is answered for."""

    codes: SampleCodes
    layers: Sequence[str] = ()
    """names of what `predict` knows"""
    predict: Callable[[], Predictions] | None = None

    @cached_property
    def predictions(self) -> Predictions:
        """What the model predicts. Raises ConfigError where nothing does."""
        if self.predict is None:
            message = "Layers need a language model that gives logits. Got none. Colour by latents."
            raise ConfigError(message)
        return self.predict()

    def codes_answer(self, labels: Mapping[int, str]) -> Packed:
        """The first chunk, and all that is known without the model."""
        return pack_codes(self.codes, labels, self.layers)

    def chunk(self, number: int) -> Packed:
        """The codes of one chunk, in CSR form."""
        n = len(self.codes.shown)
        if not 0 <= number * CHUNK < n:
            message = f"number must be below {-(-n // CHUNK)}. Got {number}. Pass that of a chunk."
            raise ConfigError(message)
        return Packed({"first": number * CHUNK}, _csr(self.codes, number))

    def along(self, latent: int) -> Packed:
        """Where a latent fires, and its values."""
        at = np.flatnonzero(self.codes.codes.indices == latent)
        positions = self.codes.codes.row_ids()[at].astype(np.int32)
        return Packed({"latent": latent}, {"positions": positions, "values": self.codes.codes.values[at]})

    def layer(self, name: str, unit: str) -> Packed:
        """One layer."""
        return pack_layer(self.predictions.layer(name, unit))

    def asks(self, side: int) -> Iterable[Ask]:
        """What a page answers beside the first chunk, within its budgets."""
        of: dict[str, int | str] = {"side": side} if side else {}
        for name in self.layers:
            for unit in UNITS:
                yield Ask("layer", {"name": name, "unit": unit, **of})
        if not is_long(self.codes):
            return
        ends = self.codes.codes.indptr
        for number in range(1, -(-len(self.codes.shown) // CHUNK)):
            if 8 * ends[min((number + 1) * CHUNK, len(ends) - 1)] > PAGE_CODES:
                break
            yield Ask("chunk", {"number": number, **of})
        for latent in strongest(self.codes, PAGE_ALONG):
            yield Ask("along", {"latent": latent, **of})

    @property
    def left_out(self) -> str:
        """What of a long text no page holds; "" where it holds all."""
        kept = {ask.args.get("number") for ask in self.asks(0) if ask.question == "chunk"}
        chunks = -(-len(self.codes.shown) // CHUNK)
        fired = len(np.unique(self.codes.codes.indices))
        parts = []
        if is_long(self.codes) and len(kept) + 1 < chunks:
            parts.append(f"the latents of tokens from {(len(kept) + 1) * CHUNK:,} on")
        if is_long(self.codes) and fired > PAGE_ALONG:
            parts.append(f"colours by others than the {PAGE_ALONG} strongest of {fired:,} latents")
        return " and ".join(parts)


def is_long(result: SampleCodes) -> bool:
    """Whether the codes of a sample go in several chunks: those of a line of tokens that is long."""
    return result.calls == 1 and len(result.shown) > CHUNK and [p.kind for p in result.parts()] == ["line"]


def strongest(result: SampleCodes, n: int) -> list[int]:
    """The latents with the largest sum of |value|s on a sample, at most n, largest first."""
    latents, at = np.unique(result.codes.indices, return_inverse=True)
    sums = np.bincount(at, np.abs(result.codes.values), len(latents))
    return [int(latents[i]) for i in np.argsort(-sums, kind="stable")[:n]]


def pack_difference(result: Difference) -> Packed:
    """What stands for each other, and the latents that differ most, at most LISTED."""
    some = slice(0, LISTED)
    header = {"titles": list(result.titles), "beside": result.beside, "n": len(result.latents)}
    fields = {
        "pairs": result.pairs.reshape(-1).astype(np.int32),
        "latents": result.latents[some].astype(np.int32),
        "size": result.size[some].astype(np.float32),
        "control": result.control[some].astype(np.float32),
    }
    return Packed(header, fields)


def pack_layer(layer: Layer) -> Packed:
    """One layer."""
    header = {
        "name": layer.name, "title": layer.title, "unit": layer.unit, "note": layer.note,
        "mean": rounded(layer.mean), "control": rounded(layer.control), "beside": layer.beside,
    }  # fmt: skip
    return Packed(header, {"values": layer.values.astype(np.float32, copy=False)})


def pack_codes(
    result: SampleCodes, labels: Mapping[int, str] | None = None, layers: Sequence[str] = ()
) -> Packed:
    """What each position shows, of which kind that is, how they lie, whether they are counted, and the codes
    in CSR form, of a long text those of its first chunk; the picture, if there is one; of the latents that
    fire the labels; which layers may be asked for."""
    codes, document = result.codes, result.document
    fired = map(int, np.unique(codes.indices))
    kinds = {facet: i for i, facet in enumerate(dict.fromkeys(each.facet for each in result.shown))}
    header: dict[str, Any] = {
        "facets": list(kinds),
        "parts": [list(part) for part in result.parts()],
        "calls": result.calls,
        "parted": result.parted,
        "starts": list(result.starts),
        "labels": list(map(clean, document.labels)),
        "named": {str(j): clean(labels[j]) for j in fired if labels and labels.get(j)},
        "layers": [[name, LAYERS[name]] for name in layers],
    }
    fields = {
        "names": cleaned(joined(result.names)),
        "facets": np.array([kinds[each.facet] for each in result.shown], np.uint8),
        "counted": result.counted,
        "picture": picture(document.media),
    }
    if not is_long(result):
        return Packed(header, {**fields, **_csr(result)})
    header["per"] = CHUNK
    return Packed(header, {**fields, **_csr(result, 0), "strongest": strongest_values(result)})


def strongest_values(result: SampleCodes) -> np.ndarray:
    """float32 [n]: the strongest code of each position that counts, with its sign; else 0."""
    out = np.zeros(len(result.shown), np.float32)
    rows, values = result.codes.row_ids(), result.codes.values
    order = np.argsort(np.abs(values), kind="stable")  # the last one written is the strongest
    out[rows[order]] = values[order]
    return np.where(result.counted, out, np.float32(0))


def _csr(result: SampleCodes, number: int | None = None) -> dict[str, np.ndarray]:
    """The codes of a chunk; None: of all positions."""
    codes, n = result.codes, len(result.shown)
    first, last = (0, n) if number is None else (number * CHUNK, min(n, (number + 1) * CHUNK))
    ends = codes.indptr[first : last + 1]
    at = slice(int(ends[0]), int(ends[-1]))
    return {
        "indptr": (ends - ends[0]).astype(np.int32),
        "indices": codes.indices[at].astype(np.int32),
        "values": codes.values[at].astype(np.float32),
    }
