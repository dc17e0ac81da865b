"""Docstrings of what is public are in Google's style, and true to the code."""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from types import ModuleType
from typing import Any

import pytest

import saelab
from saelab import errors
from saelab.commands.docstrings import entries, sections
from saelab.types import RangeError, SaelabError

PACKAGES = [
    "saelab", "saelab.types", "saelab.sae", "saelab.corpora", "saelab.subjects", "saelab.formats",
    "saelab.stores", "saelab.training", "saelab.interventions", "saelab.harvesting", "saelab.analysis",
    "saelab.analysis.scores", "saelab.analysis.controls", "saelab.layout", "saelab.embedded",
    "saelab.demo", "saelab.scale", "saelab.stores.compare", "saelab.stores.neuronpedia", "saelab.seeds",
    "saelab.files", "saelab.dist", "saelab.config", "saelab.widgets",
]  # fmt: skip
"""Whose public names (`__all__`, else what they define) are held to it, with the methods of their classes."""


def own_names(module: ModuleType) -> list[str]:
    """What a module without `__all__` defines, and what it passes on by `import x as x`."""
    own = [
        name for name, thing in vars(module).items() if getattr(thing, "__module__", "") == module.__name__
    ]
    imports = [node for node in ast.parse(inspect.getsource(module)).body if isinstance(node, ast.ImportFrom)]
    passed_on = [alias.name for node in imports for alias in node.names if alias.name == alias.asname]
    return [name for name in own if not name.startswith("_")] + passed_on


def public(package: str) -> Iterator[tuple[str, Any]]:
    """(name, function or class) of all that is public and of this library."""
    module = importlib.import_module(package)
    for name in getattr(module, "__all__", own_names(module)):
        thing = getattr(module, name)
        if not callable(thing) or not str(getattr(thing, "__module__", "")).startswith("saelab"):
            continue
        yield f"{package}.{name}", thing
        if inspect.isclass(thing):
            for method in (each for each in dir(thing) if not each.startswith("_")):
                value = inspect.getattr_static(thing, method)
                value = getattr(value, "__func__", value)
                function = getattr(value, "fget", value)
                named = inspect.isfunction(function) and function.__name__ != "<lambda>"
                if named and function.__module__.startswith("saelab"):
                    yield f"{package}.{name}.{method}", value


def complaints(thing: Any) -> list[str]:
    """What is wrong with a docstring, in words."""
    if isinstance(thing, property):
        return [] if sections(thing.fget)[""] else ["no summary"]  # type: ignore[arg-type]
    function = inspect.unwrap(thing)
    said = sections(function)
    if inspect.isclass(thing):
        if not vars(thing).get("__doc__"):
            return ["no summary"]
        own = vars(thing).get("__init__")
        # of a dataclass or a NamedTuple the fields say it themselves
        if not inspect.isfunction(own) or own.__module__ != thing.__module__ or is_dataclass(thing):
            return _words(said)
        function = own
        said = {**sections(own), **said} if own.__doc__ else said
    parameters = inspect.signature(function).parameters
    names = [name for name in parameters if name not in ("self", "cls") and not name.startswith("_")]
    told = entries(said.get("Args", ""))
    found = _words(said)
    if len(names) >= 2:
        found += [f"Args says nothing of {name}" for name in names if not told.get(name)]
    found += [f"Args names {name}, which is none" for name in told if name not in parameters]
    raised = entries(said.get("Raises", ""))
    found += [f"Raises names {name}, which is no error" for name in raised if not _is_error(name)]
    if _raises(function) and not raised:
        found.append(f"raises {_raises(function)} and has no Raises")
    return found


def _is_error(name: str) -> bool:
    kind = getattr(errors, name, None) or getattr(builtins, name, None)
    return inspect.isclass(kind) and issubclass(kind, Exception)


def _words(said: dict[str, str]) -> list[str]:
    summary = said[""].split("\n\n")[0]
    found = [] if summary and summary.rstrip()[-1] in ".:?" else ["no summary that ends in a full stop"]
    if re.search(r"\bRaises?\s+\w+(Error|Dependency)\b", said[""]):
        found.append("says in its text what it raises, not in Raises")
    return found


def _raises(function: Callable[..., Any]) -> set[str]:
    """The SaelabErrors that the function itself raises, not what it calls."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    raised = [node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise)]
    called = {
        each.func.id for each in raised if isinstance(each, ast.Call) and isinstance(each.func, ast.Name)
    }
    known = {name: inspect.unwrap(function).__globals__.get(name) for name in called}
    return {name for name, kind in known.items() if inspect.isclass(kind) and issubclass(kind, SaelabError)}


@pytest.mark.parametrize("package", PACKAGES)
def test_docstrings_say_what_the_code_takes_and_raises(package):
    found = {name: wrong for name, thing in public(package) if (wrong := complaints(thing))}
    assert not found, "\n".join(f"{name}: {'; '.join(wrong)}" for name, wrong in found.items())


def test_the_check_covers_functions_classes_and_methods():
    names = dict(public("saelab"))
    assert names["saelab.SAE.load"] is not None
    assert {"saelab.train", "saelab.SAE", "saelab.SAE.encode", "saelab.ActivationStore.hooks"} <= set(names)
    assert len(names) > 80
    assert {"saelab.widgets.page", "saelab.widgets.View.export"} <= set(dict(public("saelab.widgets")))


def good(message, b, *rest, c=1, **more):
    """Do it.

    Args:
        message: int64 [n].
        b, c: Both.
        rest: Goes
            on: here.
        more: And more.

    Returns:
        None.

    Raises:
        RangeError: Always.
    """
    raise RangeError(message)


def without_summary(a):
    pass


def without_args(a, b):
    """Do it."""


def with_strange_args(a):
    """Do it.

    Args:
        a: One.
        b: None.
    """


def with_strange_raises(a):
    """Do it.

    Raises:
        RangError: Always.
    """


def without_raises(message):
    """Do it."""
    raise RangeError(message)


def in_words(message):
    """Do it. Raises RangeError."""
    raise RangeError(message)


class Bare:
    """A thing."""

    def __init__(self, a, b):
        pass


def test_the_check_sees_what_is_wrong():
    assert complaints(good) == []
    assert entries(sections(good)["Args"]) == {
        "message": "int64 [n].", "b": "Both.", "c": "Both.", "rest": "Goes on: here.", "more": "And more.",
    }  # fmt: skip
    assert complaints(without_summary) == ["no summary that ends in a full stop"]
    assert complaints(without_args) == ["Args says nothing of a", "Args says nothing of b"]
    assert complaints(with_strange_args) == ["Args names b, which is none"]
    assert complaints(with_strange_raises) == ["Raises names RangError, which is no error"]
    assert complaints(without_raises) == ["raises {'RangeError'} and has no Raises"]
    assert len(complaints(in_words)) == 2
    assert complaints(Bare) == ["Args says nothing of a", "Args says nothing of b"]
    assert complaints(saelab.SaelabError) == []
