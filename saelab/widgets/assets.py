"""The browser side as strings: what anywidget loads of a view, and what an exported page runs.

A kind of view is a module `KIND.js` that exports `render`; styles that are its alone lie in `KIND.css`, if it
has any. What all share lies in `shared/`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from pathlib import Path

from saelab.types import ConfigError, MissingDependency, short
from saelab.widgets.joining import MODULES, joined, taken_apart

HERE = Path(__file__).parent
KIND = re.compile(r"[a-z][a-z0-9_-]*")
PAGE = "shared/page.js"


@functools.cache
def root() -> Path:
    """Where the JavaScript lies: inside an installed package, or beside it in a checkout."""
    for path in (HERE / "static", HERE.parents[1] / "widgets"):
        if (path / "shared" / "theme.css").is_file():
            return path
    message = (
        f"The widgets' JavaScript must be installed with saelab. Got none beside {HERE}. "
        f"Install saelab again."
    )
    raise MissingDependency(message)


def module(kind: str, folder: Path | None = None) -> str:
    """The module of one kind of view, whole, for anywidget: `export default { render }`.

    Args:
        kind: Name of the view's module.
        folder: Where it lies; None for those that come with saelab.

    Raises:
        ConfigError: There is no such module, or it cannot be joined with what it imports.
    """
    name, source = _view(kind, folder)
    script = joined({name: source}, _shared)
    return f'{script}\nexport default {{ render: {MODULES}["{name}"].render }};\n'


def board(kind: str, kinds: Mapping[str, Path | None]) -> str:
    """The module of a view that holds views of other kinds: it exports `holding(renders)`, which makes its
    `render` of theirs.

    Args:
        kind: Name of its module, which comes with saelab.
        kinds: The folder of each kind's module, as for `module`.

    Raises:
        ConfigError: As `module`.
    """
    own, source = _view(kind, None)
    script, renders = _scripts(kinds, {own: source})
    return f'{script}\nexport default {{ render: {MODULES}["{own}"].holding({{ {renders} }}) }};\n'


def page_script(kinds: Mapping[str, Path | None]) -> str:
    """What an exported page runs: a function `renderPage(data, places)` of views of these kinds.

    Args:
        kinds: The folder of each kind's module, as for `module`.

    Raises:
        ConfigError: As `module`.
    """
    script, renders = _scripts(kinds, {PAGE: _shared(PAGE) or ""})
    return (
        f"{script}\nconst renderPage = (data, places) => "
        f'{MODULES}["{PAGE}"].renderPage(data, places, {{ {renders} }});'
    )


def _scripts(kinds: Mapping[str, Path | None], more: Mapping[str, str]) -> tuple[str, str]:
    """The modules of these kinds and more ones, and the `kind: render` of each kind."""
    views = {kind: _view(kind, folder) for kind, folder in kinds.items()}
    script = joined({**dict(views.values()), **more}, _shared)
    renders = ", ".join(f'"{kind}": {MODULES}["{name}"].render' for kind, (name, _) in views.items())
    return script, renders


def css(kinds: Mapping[str, Path | None], *more: str) -> str:
    """The stylesheet that all views share, those of these kinds, and more shared ones by name."""
    paths = [root() / "shared" / f"{name}.css" for name in ("theme", "heatmap", "card", *more)]
    paths += [(folder or root() / "views") / f"{kind}.css" for kind, folder in kinds.items()]
    return "\n".join(path.read_text(encoding="utf-8") for path in paths if path.is_file())


def _view(kind: str, folder: Path | None) -> tuple[str, str]:
    """Name and source of a view's module."""
    path = (folder or root() / "views") / f"{kind}.js"
    if not KIND.fullmatch(kind) or not path.is_file():
        message = (
            f"A view's kind must name its JavaScript module, in small letters. Got {short(kind)}, with no "
            f"{path}. Write that module, or correct the kind."
        )
        raise ConfigError(message)
    name, source = f"views/{kind}.js", path.read_text(encoding="utf-8")
    if "render" not in taken_apart(name, source).exports:
        message = f"A view's module must export render. Got none in {path}. Write export const render = ..."
        raise ConfigError(message)
    return name, source


def _shared(name: str) -> str | None:
    """Source of a module that views share; views do not import each other."""
    path = root() / name
    known = re.fullmatch(r"shared/\w+\.js", name) and path.is_file()
    return path.read_text(encoding="utf-8") if known else None
