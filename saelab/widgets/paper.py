"""Pictures of views for paper: SVG, and PNG of it."""

from __future__ import annotations

from pathlib import Path

from saelab.errors import needing
from saelab.files import write_bytes

SUFFIXES = (".svg", ".png")
DENSE = 3.0
"""Pixels of a PNG for one of an SVG: 1,920 across a map, 300 dpi on 16 cm."""


def write(path: str | Path, svg: str) -> Path:
    """Write a picture as its suffix says.

    Args:
        path: A file that ends with one of `SUFFIXES`.
        svg: The picture.

    Returns:
        The path.

    Raises:
        MissingDependency: A PNG is wanted, and vl-convert-python is not installed.
        StoreError: It cannot be written.
    """
    png = Path(path).suffix.lower() == ".png"
    write_bytes(path, _png(svg) if png else svg.encode())
    return Path(path)


def _png(svg: str) -> bytes:
    with needing("A PNG", "vl-convert-python", "'saelab[map]', or write x.svg"):
        import vl_convert
    return vl_convert.svg_to_png(svg, scale=DENSE)


__all__ = ["SUFFIXES", "write"]
