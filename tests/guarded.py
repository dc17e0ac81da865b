"""Calls that are ended before they do what takes too long, for `fuzzed`."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import pytest

from saelab import interventions


def entered(model: Any, edits: Any, tokenizer: Any = None) -> None:
    """What a context manager refuses, it refuses when it is entered."""
    with interventions.applied(model, edits, tokenizer):
        pass


def spliced(subject: Any, saes: Any, error: Any = True, everywhere: Any = False) -> None:
    """The same of SAEs that are spliced in."""
    with interventions.spliced(subject, saes, error, everywhere=everywhere):
        pass


def without_ray(call: Callable[..., Any]) -> Callable[..., Any]:
    """It ends where Ray would start, which takes half a minute."""

    @functools.wraps(call)
    def stopped(**how: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, "ray", None)
            return call(**how)

    return stopped
