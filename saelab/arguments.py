"""Arguments of public functions, checked before anything is done with them.

    @checked(store=a_store, latent=an_integer(), kind=one_of("top", "quantile"))
    def examples(store, latent, kind="top"): ...

Each check takes the argument's name and what was given, and returns it as the function wants it, or raises a
ConfigError that says what it must be.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from saelab.config import boolean, integer, is_number
from saelab.files import path_of
from saelab.types import ConfigError, ShapeError, StoreError, nearest, short

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from torch import Tensor

Check = Callable[[str, Any], Any]
F = TypeVar("F", bound=Callable[..., Any])


def checked(**checks: Check) -> Callable[[F], F]:
    """A decorator that checks arguments by their names; defaults are taken as they are.

    Args:
        checks: Name of an argument -> its check.
    """

    def decorate(function: F) -> F:
        signature = inspect.signature(function)
        assert checks.keys() <= signature.parameters.keys()

        @functools.wraps(function)
        def call(*args: Any, **options: Any) -> Any:
            given = signature.bind(*args, **options)
            for name in checks.keys() & given.arguments.keys():
                given.arguments[name] = checks[name](name, given.arguments[name])
            return function(*given.args, **given.kwargs)

        return call  # type: ignore[return-value]

    return decorate


flag: Check = boolean
"""True or False."""


def an_integer(low: int = 0, high: int | None = None) -> Check:
    """An integer in a range."""
    return lambda name, value: integer(name, value, low, high)


def real(low: float = -math.inf) -> Check:
    """A finite number, `low` or more."""

    def check(name: str, value: Any) -> float:
        if not is_number(value) or not math.isfinite(value) or value < low:
            bound = "" if low == -math.inf else f" >= {low:g}"
            _refuse(f"{name} must be a finite number{bound}", value, f"Pass e.g. {name}={max(low, 1):g}.")
        return float(value)

    return check


def maybe(check: Check) -> Check:
    """None, or what another check takes."""
    return lambda name, value: None if value is None else check(name, value)


def text(name: str, value: Any) -> str:
    """A string."""
    if not isinstance(value, str):
        _refuse(f"{name} must be a str", value, "Pass a string.")
    return str(value)


def one_of(*known: str) -> Check:
    """One of some names."""

    def check(name: str, value: Any) -> str:
        if not isinstance(value, str) or value not in known:
            near = nearest(value, known) if isinstance(value, str) else ""
            _refuse(f"{name} must be one of {', '.join(map(repr, known))}", value, f"{near}Pass one of them.")
        return value

    return check


def is_listed(value: Any) -> bool:
    """Whether it can be gone through, and is no single text."""
    single = isinstance(value, str | bytes | bytearray | type) or getattr(value, "shape", None) == ()
    by_number = hasattr(value, "__len__") and hasattr(value, "__getitem__")
    return (hasattr(value, "__iter__") or by_number) and not single


def listed(name: str, value: Any) -> Iterable[Any]:
    """What can be gone through, and is no single text."""
    if not is_listed(value):
        _refuse(f"{name} must be a list", value, f"Pass {name}=[...].")
    return value


def sequence(name: str, value: Any) -> Sequence[Any]:
    """A list of known length, in order."""
    counted = hasattr(value, "__len__") and not isinstance(value, Mapping | set | frozenset)
    if not counted:
        _refuse(f"{name} must be a list", value, f"Pass {name}=[...].")
    return listed(name, value)  # type: ignore[return-value]


def a_function(like: str) -> Check:
    """What can be called; like: an example of it."""

    def check(name: str, value: Any) -> Callable[..., Any]:
        if not callable(value):
            _refuse(f"{name} must be a function", value, f"Pass {name}={like}.")
        return value

    return check


def mapping(name: str, value: Any) -> Mapping[Any, Any]:
    """A dict or what is like one."""
    if not isinstance(value, Mapping):
        _refuse(f"{name} must be a dict", value, f"Pass {name}={{...}}.")
    return value


def integers(ndim: int = 1) -> Check:
    """A tensor, array or list of integers, as an int64 tensor of so many dimensions."""

    def check(name: str, value: Any) -> Tensor:
        import numpy as np
        import torch

        try:
            found = np.asarray(value.cpu() if isinstance(value, torch.Tensor) else value)
        except (TypeError, ValueError):
            found = np.empty(0, object)
        none = found.dtype.kind == "f" and not found.size
        if found.ndim != ndim or not (found.dtype.kind in "iu" or none):
            what = "a list of integers" if ndim == 1 else "integers [n 2]"
            _refuse(f"{name} must be {what}", value, "Pass a list, a NumPy array or a tensor of int.")
        return torch.from_numpy(found.astype(np.int64))

    return check


def place(name: str, value: Any) -> Path:
    """A path that the system can take."""
    return path_of(value, name, StoreError)


def floats(name: str, value: Any) -> Tensor:
    """A tensor or array of real numbers, as a tensor."""
    import numpy as np
    import torch

    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        value = torch.from_numpy(value if value.flags.writeable else value.copy())
    if not isinstance(value, torch.Tensor) or value.is_complex():
        _refuse(f"{name} must be a tensor of real numbers", value, "Pass a torch.Tensor or a NumPy array.")
    return value if value.is_floating_point() else value.float()


def matrix(name: str, value: Any) -> np.ndarray:
    """An array [n d] of real numbers, of NumPy."""
    found = floats(name, value).detach().cpu().numpy()
    if found.ndim != 2:
        message = f"{name} must be a matrix. Got {list(found.shape)}. Pass an array [n d]."
        raise ShapeError(message)
    return found


def either(*checks: Check) -> Check:
    """What one of some checks takes."""

    def check(name: str, value: Any) -> Any:
        for each in checks[:-1]:
            with contextlib.suppress(ConfigError):
                return each(name, value)
        return checks[-1](name, value)

    return check


def having(what: str, remedy: str, *attributes: str) -> Check:
    """An object that has these attributes.

    Args:
        what: What it is, as "an SAE".
        remedy: What to pass.
        attributes: Their names.
    """

    def check(name: str, value: Any) -> Any:
        foreign = isinstance(value, type | ModuleType)
        if foreign or not all(hasattr(value, attribute) for attribute in attributes):
            _refuse(f"{name} must be {what}", value, remedy)
        return value

    return check


an_sae = having("an SAE", "Pass what saelab.load_sae gives.", "config", "encode_sparse")
full_sae = having(
    "an SAE", "Pass what saelab.load_sae gives.", "config", "encode", "d_sae", "W_dec", "training"
)
a_store = having(
    "a feature store", "Pass what saelab.index gave, or FeatureStore.open(folder).", "latents", "query"
)
a_subject = having(
    "a subject", "Pass e.g. what saelab.load_subject gives.", "corpus", "read", "run", "fingerprint"
)


prepared = having("prepared inputs", "Pass what subject.prepare([...]) gives.", "data", "lengths")


def _refuse(rule: str, value: Any, remedy: str) -> NoReturn:
    message = f"{rule}. Got {type(value).__name__}: {short(value, 80)}. {remedy}"
    raise ConfigError(message)


__all__ = [
    "a_store", "a_subject", "an_integer", "an_sae", "checked", "either", "flag", "floats", "full_sae",
    "having", "integers", "is_listed", "listed", "mapping", "matrix", "maybe", "one_of", "place",
    "prepared", "real", "sequence", "text",
]  # fmt: skip
