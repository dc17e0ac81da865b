"""Results as a small JSON header and binary arrays: what goes over the wire, and into exported pages."""

from __future__ import annotations

import base64
import functools
import itertools
import json
from typing import Any, NamedTuple

import numpy as np

from saelab.analysis.results import FeatureCard, LatentTable, SampleCodes


class Packed(NamedTuple):
    """A JSON header and arrays as bytes."""

    header: dict[str, Any]
    buffers: list[bytes]

    def page(self) -> dict[str, Any]:
        """As JSON, for exported pages."""
        return {"header": self.header, "buffers": [base64.b64encode(b).decode() for b in self.buffers]}


def codes(result: SampleCodes) -> Packed:
    """Tokens, and the codes in CSR form: indptr int32, indices int32, values float32."""
    header = {"tokens": list(map(clean, result.names)), "counted": [bool(c) for c in result.counted]}
    c = result.codes
    return Packed(
        header, [_bytes(c.indptr, np.int32), _bytes(c.indices, np.int32), _bytes(c.values, np.float32)]
    )


def table(result: LatentTable) -> Packed:
    """Columns of all latents: count int32, density, mean, max float32; where any is ever negative, min too.
    16 or 20 bytes a latent.
    """
    names = ("density", "mean", "max", "min") if result.signed else ("density", "mean", "max")
    columns = [_bytes(getattr(result, name), np.float32) for name in names]
    return Packed({"n": len(result)}, [_bytes(result.count, np.int32), *columns])


def names(result: LatentTable) -> Packed:
    """Names of all latents, as one JSON array in UTF-8."""
    return Packed({}, [json.dumps([clean(n) for n in result.names], ensure_ascii=False).encode()])


def card(result: FeatureCard, *, quantised: bool = False) -> Packed:
    """A card: the windows' token numbers (of the card's own vocabulary) and values, one window after the
    other.

    quantised: values in 255 steps (`quantum`) instead of float32; each is off by one step at most, and keeps
    its sign.
    """
    groups = (
        [result.top, result.quantile]
        if result.bottom is None
        else [result.top, result.bottom, result.quantile]
    )
    windows = [w for group in groups for w in group.windows]
    kinds = [group.kind for group in groups for _ in group.windows]
    shown = list(itertools.chain.from_iterable([w.names for w in windows]))
    place = {token: i for i, token in enumerate(dict.fromkeys(shown))}
    ids = list(map(place.__getitem__, shown))
    vocabulary = list(map(clean, place))
    wide = len(vocabulary) > 0xFFFF
    values = np.concatenate([w.values for w in windows]) if windows else np.zeros(0, np.float32)
    stats = result.stats
    header: dict[str, Any] = {
        "latent": stats.latent,
        "label": clean(result.label),
        "stats": {
            "count": stats.count,
            "n_rows": stats.n_rows,
            "density": stats.density,
            "mean": _rounded(stats.mean),
            "min": _rounded(stats.min),
            "max": _rounded(stats.max),
            "negative": stats.negative,
            "mean_abs": _rounded(stats.mean_abs),
            "low": _rounded(stats.edges[0]),
            "high": _rounded(stats.edges[-1]),
            "histogram": [int(c) for c in stats.histogram],
        },
        "windows": [
            {
                "kind": kind,
                "peak": w.position - w.start,
                "value": _rounded(w.value),
                "document": w.document,
                "start": w.start,
                "n": len(w.names),
            }
            for kind, w in zip(kinds, windows, strict=True)
        ],
        "vocabulary": vocabulary,
        "wide": wide,
        "lens": None,
    }
    if result.lens is not None:
        header["lens"] = {
            "top": [[clean(t), _rounded(v)] for t, v in result.lens.top],
            "bottom": [[clean(t), _rounded(v)] for t, v in result.lens.bottom],
            "spread": _rounded(result.lens.spread),
        }
    tokens = _bytes(np.array(ids), np.uint32 if wide else np.uint16)
    if not quantised:
        return Packed(header, [tokens, _bytes(values, np.float32)])
    low = min(float(values.min(initial=0)), 0.0)
    span = float(values.max(initial=0)) - low
    header["quantum"] = span / 255 if span else 1.0
    # 0 must stay 0, so that a token where the latent does not fire shows as such, with room for either sign
    header["zero"] = min(max(round(-low / header["quantum"]), 1), 254) if low < 0 else 0
    steps = np.rint(values / header["quantum"]) + header["zero"]
    steps = np.where((values != 0) & (steps == header["zero"]), header["zero"] + np.sign(values), steps)
    return Packed(header, [tokens, _bytes(np.clip(steps, 0, 255), np.uint8)])


@functools.lru_cache(maxsize=1 << 16)
def clean(text: str) -> str:
    """Text that JSON and UTF-8 can carry: lone surrogates become the replacement character."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _bytes(array: Any, dtype: Any) -> bytes:
    return np.ascontiguousarray(array, dtype=dtype).tobytes()


def _rounded(value: float) -> float:
    """Six significant digits: more than is shown, fewer bytes than all."""
    return float(f"{float(value):.6g}")
