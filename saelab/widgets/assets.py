"""The browser side as strings: anywidget loads a view from one blob, in which relative imports would fail."""

from __future__ import annotations

import functools
import re
from pathlib import Path

from saelab.types import MissingDependency

HERE = Path(__file__).parent
SHARED = ("dom", "scales", "bridge", "card", "view")
VIEWS = ("card", "tokens", "features")


@functools.cache
def folder() -> Path:
    """Where the JavaScript lies: inside an installed package, or beside it in a checkout."""
    for path in (HERE / "static", HERE.parents[1] / "widgets"):
        if (path / "theme.css").is_file():
            return path
    message = (
        f"The widgets' JavaScript must be installed with saelab. Got none beside {HERE}. "
        f"Install saelab again."
    )
    raise MissingDependency(message)


@functools.cache
def css() -> str:
    """The stylesheet of all views."""
    return (folder() / "theme.css").read_text(encoding="utf-8")


@functools.cache
def module(view: str, render: str) -> str:
    """The module of one view, whole, for anywidget: `export default {render}`."""
    parts = [*(_plain(f"shared/{name}.js") for name in SHARED), _plain(f"{view}.js")]
    return "\n".join([*parts, f"export default {{ render: {render} }};\n"])


@functools.cache
def page_script() -> str:
    """Everything that an exported page runs."""
    names = [*(f"shared/{name}.js" for name in SHARED), *(f"{view}.js" for view in VIEWS), "page.js"]
    return "\n".join(map(_plain, names))


def _plain(name: str) -> str:
    """A module's source without its imports and exports, so that several can stand in one file."""
    source = (folder() / name).read_text(encoding="utf-8")
    source = re.sub(r"^import [^;]*;\n", "", source, flags=re.M)
    return re.sub(r"^export (?=const|function|async function)", "", source, flags=re.M)
