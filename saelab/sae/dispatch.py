"""Which of two ways an operation takes: the plain one, in torch, or its Triton twin.

On CUDA each shape is measured once for a card and a torch: both ways run, and the faster is kept, in memory
and in a file of the user's cache, so that a later process, a resumed run among them, takes the same. A twin
is not tried on the CPU, in float64, or where Triton is missing.

$SAELAB_KERNELS says otherwise: `reference` never takes a twin, `triton` always does, on the CPU by Triton's
interpreter ($TRITON_INTERPRET=1, for tests).
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saelab.errors import MissingDependency, SaelabError
from saelab.files import read_json_or_none, user_folder, write_json
from saelab.types import ConfigError

MODES = ("auto", "reference", "triton")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
REPEATS = 3
_chosen: dict[str, bool] = {}
"""Of each operation and shape, on each kind of card: whether the twin is taken."""
_read: set[Path] = set()


def mode() -> str:
    """What $SAELAB_KERNELS says. Raises ConfigError where that is none of `MODES`."""
    said = os.environ.get("SAELAB_KERNELS", "") or "auto"
    if said not in MODES:
        message = f"SAELAB_KERNELS must be one of {', '.join(MODES)}. Got {said!r}. Unset it for 'auto'."
        raise ConfigError(message)
    return said


def possible(like: Tensor) -> bool:
    """Whether a twin may be taken for a tensor of this kind.

    Args:
        like: One of the operation's tensors.

    Raises:
        ConfigError: $SAELAB_KERNELS is no mode, or says `triton` on the CPU without the interpreter.
        MissingDependency: It says `triton`, which is not installed.
    """
    if like.dtype not in DTYPES or like.device.type not in ("cpu", "cuda"):
        return False
    asked = mode()
    if asked == "triton":
        if not installed():
            message = (
                "SAELAB_KERNELS=triton needs Triton, which is not installed. Run: pip install 'saelab[gpu]'"
            )
            raise MissingDependency(message)
        if like.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
            message = (
                "SAELAB_KERNELS=triton needs a GPU, or Triton's interpreter. Got a tensor on the CPU. Set "
                "TRITON_INTERPRET=1 before Python starts, or unset SAELAB_KERNELS."
            )
            raise ConfigError(message)
        return True
    return asked == "auto" and like.device.type == "cuda" and installed()


def installed() -> bool:
    """Whether Triton can be imported."""
    return importlib.util.find_spec("triton") is not None


def run(name: str, plain: Callable[..., Any], *arguments: Any) -> Any:
    """The result of an operation, by the way that is faster here.

    Args:
        name: Of the twin, `module.function` in `saelab.sae.twins`; it takes what `plain` takes.
        plain: The reference.
        *arguments: Of both, a tensor first.
    """
    like = arguments[0]
    if not possible(like) or _differentiable(arguments):
        return plain(*arguments)
    twin = _twin(name)
    if mode() == "triton":
        return twin(*arguments)
    key = f"{name} {' '.join(_described(each) for each in arguments)}"
    card = f"{torch.cuda.get_device_name(like.device)}, torch {torch.__version__}"
    place = f"{card}: {key}"
    if place not in _chosen:
        _recall(card)
    if place not in _chosen:
        with torch.cuda.device(like.device):
            _chosen[place] = _faster(twin, plain, arguments)
        _keep(card)
    return (twin if _chosen[place] else plain)(*arguments)


def _twin(name: str) -> Callable[..., Any]:
    module, _, function = name.partition(".")
    return getattr(importlib.import_module(f"saelab.sae.twins.{module}"), function)


def _differentiable(arguments: tuple[Any, ...]) -> bool:
    """Whether autograd follows: twins have no gradient of their own."""
    return torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in arguments)


def _described(argument: Any) -> str:
    """Equal for arguments that take about the same time: sizes up to a power of two."""
    if not isinstance(argument, Tensor):
        return str(argument)
    sizes = "x".join(str(1 << (size - 1).bit_length() if size else 0) for size in argument.shape)
    return f"{str(argument.dtype).removeprefix('torch.')}[{sizes}]"


def _faster(twin: Callable[..., Any], plain: Callable[..., Any], arguments: tuple[Any, ...]) -> bool:
    """Whether the twin is; not where it cannot be compiled or does not fit into the card."""
    try:
        return _milliseconds(twin, arguments) < _milliseconds(plain, arguments)
    except SaelabError:
        raise
    except Exception:  # of Triton's compiler, which has many
        return False


def _milliseconds(way: Callable[..., Any], arguments: tuple[Any, ...]) -> float:
    """The least of some calls, after one that compiles."""
    way(*arguments)
    took = []
    for _ in range(REPEATS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        way(*arguments)
        end.record()
        end.synchronize()
        took.append(start.elapsed_time(end))
    return min(took)


def _file(card: str) -> Path:
    return user_folder("cache") / "kernels" / f"{''.join(c if c.isalnum() else '-' for c in card)}.json"


def _recall(card: str) -> None:
    """Take over what another process measured on such a card, once."""
    path = _file(card)
    if path in _read:
        return
    _read.add(path)
    for key, faster in (read_json_or_none(path) or {}).items():
        _chosen.setdefault(f"{card}: {key}", faster is True)


def _keep(card: str) -> None:
    """For later processes; a cache that cannot be written costs them the measuring."""
    path, start = _file(card), f"{card}: "
    own = {key.removeprefix(start): value for key, value in _chosen.items() if key.startswith(start)}
    with contextlib.suppress(SaelabError):
        write_json(path, own)
