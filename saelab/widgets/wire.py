"""What goes over the wire, and into exported pages: a JSON header and named binary fields."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from saelab.stores.records import media_type
from saelab.types import ConfigError

# those that a browser has typed arrays for
DTYPES = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "float32", "float64")


class Packed(NamedTuple):
    """An answer."""

    header: dict[str, Any]
    """what JSON can hold; the key "fields" is taken"""
    fields: Mapping[str, Any] = {}
    """by name: numpy arrays of one of DTYPES or bool (sent as uint8), or a value that is sent as JSON and in
    bytes, such as a long list of strings"""
    needs: tuple[Any, ...] = ()
    """`Ask`s whose answers are shown with this one: a page that holds it holds them too"""

    def encoded(self) -> tuple[dict[str, Any], list[bytes]]:
        """As it is sent.

        Returns:
            The header with a description of the fields, `{name, dtype, shape}` each, and their bytes in the
            same order. The descriptions are a list, since notebooks sort the keys of what they save.

        Raises:
            ConfigError: A field has a dtype that browsers have no array for.
        """
        described, buffers = [], []
        for name, value in self.fields.items():
            if isinstance(value, np.ndarray):
                dtype, data = _bytes(name, value)
                shape = list(value.shape)
            else:
                dtype, data = "json", json.dumps(value, ensure_ascii=False).encode()
                shape = [len(data)]
            described.append({"name": name, "dtype": dtype, "shape": shape})
            buffers.append(data)
        return {**self.header, "fields": described}, buffers


@functools.lru_cache(maxsize=1 << 16)
def clean(text: str) -> str:
    """Text that JSON and UTF-8 can carry: lone surrogates become the replacement character."""
    return text.encode("utf-8", "replace").decode("utf-8")


def cleaned(names: Iterable[str | None]) -> list[str | None]:
    """Names, each as `clean` gives it; None stays."""
    return [None if name is None else clean(name) for name in names]


def picture(media: bytes | None) -> np.ndarray:
    """A picture as a field: uint8, none of what is no PNG, JPEG, GIF or WebP."""
    known = media if media is not None and media_type(media) is not None else b""
    return np.frombuffer(known, np.uint8)


def rounded(value: float) -> float | None:
    """Six significant digits: more than is shown, fewer bytes than all. None where JSON has no number."""
    short = float(f"{value:.6g}")
    return short if short - short == 0 else None  # a page has 70 of these for each latent


def told_claim(claim: Any) -> list[Any]:
    """Value, from, to, controls (what, value, from, to), whether apart (None: unknown), why there is no
    control: of a `Beside` or an `Alone` of `saelab.analysis.controls`."""
    if hasattr(claim, "why"):
        return [rounded(claim.value), None, None, [], None, clean(claim.why)]
    ends = [rounded(end) for end in claim.interval]
    controls = [(claim.what, claim.control, claim.control_interval), *claim.also]
    told = [[clean(what), rounded(value), *map(rounded, of)] for what, value, of in controls]
    known = all(end == end for _, _, of in controls for end in of) and None not in ends
    return [rounded(claim.value), *ends, told, claim.apart if known else None, ""]


def _bytes(name: str, array: np.ndarray) -> tuple[str, bytes]:
    """dtype, and little-endian bytes."""
    dtype = "uint8" if array.dtype == np.bool_ else array.dtype.name
    if dtype not in DTYPES:
        message = (
            f"A field must be an array of {', '.join(DTYPES)} or bool. Got {name!r} of {dtype}. "
            f"Cast it, e.g. with .astype(np.float32)."
        )
        raise ConfigError(message)
    return dtype, np.ascontiguousarray(array, dtype=np.dtype(dtype).newbyteorder("<")).tobytes()
