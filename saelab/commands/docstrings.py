"""Docstrings in Google's style: a summary, and what its sections say."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

SECTIONS = ("Args", "Attributes", "Returns", "Yields", "Raises", "Example")


def sections(thing: Callable[..., Any]) -> dict[str, str]:
    """The docstring in parts: what stands before the sections by "", the text of each by its name.

    Args:
        thing: A function or a class.
    """
    found, name = {"": ""}, ""
    for line in (inspect.getdoc(thing) or "").splitlines():
        if line.endswith(":") and line[:-1] in SECTIONS:
            name = line[:-1]
            found[name] = ""
        else:
            found[name] += f"{line}\n"
    return {name: inspect.cleandoc(f"\n{text}") for name, text in found.items()}


def entries(section: str) -> dict[str, str]:
    """Name -> what is said of it, on one line, of a section whose entries are `name: text`; "a, b: text" is
    said of both.

    Args:
        section: Its text, see `sections`.
    """
    found: dict[str, str] = {}
    names: list[str] = []
    for line in section.splitlines():
        entry = re.match(r"([\w*][\w*, ]*): *(.*)", line)  # what is indented goes on with the one before
        if entry:
            names, line = re.findall(r"\w+", entry[1]), entry[2]
        for name in names:
            found[name] = f"{found.get(name, '')} {line.strip()}".strip()
    return found
