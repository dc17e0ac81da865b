"""Devices and dtypes as users say them, checked in one place. Light: torch is imported where it is needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from saelab.errors import ConfigError, SaelabError, nearest, short

if TYPE_CHECKING:
    import torch

FLOATS = ("float32", "float16", "bfloat16", "float64")
"""The dtypes of weights and activations, by torch's names."""
SHORT = {
    "bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32", "float": "float32",
    "fp64": "float64", "double": "float64",
}  # fmt: skip
"""What else they are called."""


def dtype_name(
    dtype: Any,
    among: Sequence[str] = FLOATS,
    *,
    name: str = "dtype",
    error: type[SaelabError] = ConfigError,
) -> str:
    """What torch calls a dtype.

    Args:
        dtype: A torch.dtype, or its name: "bfloat16", "torch.bfloat16" or "bf16".
        among: Those that are allowed, by torch's names; any other word in it ("auto") is taken as it is.
        name: The argument's, for the message.
        error: What is raised.

    Raises:
        SaelabError: `error`, where it is none of them.
    """
    said = str(dtype).removeprefix("torch.")
    said = SHORT.get(said, said)
    if said in among and (isinstance(dtype, str) or type(dtype).__name__ == "dtype"):
        return said
    hint = nearest(said, among) or f"Pass {among[0]!r}."
    message = f"{name} must be one of {', '.join(among)}. Got {short(dtype)}. {hint}".strip()
    raise error(message)


def torch_dtype(
    dtype: Any,
    among: Sequence[str] = FLOATS,
    *,
    name: str = "dtype",
    error: type[SaelabError] = ConfigError,
) -> torch.dtype:
    """As `dtype_name`, as torch's. Of among, every word must be a dtype."""
    import torch

    return getattr(torch, dtype_name(dtype, among, name=name, error=error))


def torch_device(device: Any, *, error: type[SaelabError] = ConfigError) -> torch.device:
    """A device that this machine has and that holds numbers.

    Args:
        device: A torch.device, or its name.
        error: What is raised.

    Raises:
        SaelabError: `error`, where there is no such device here; it names those that there are.
    """
    import torch

    try:
        found = torch.device(device)
        here = found.type != "meta" and torch.empty(0, device=found) is not None
    except Exception:  # torch lists all that it was ever built for
        here = False
    if not here:
        own = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        own += ["mps"] if torch.backends.mps.is_available() else []
        message = (
            f"device must be one of this machine's, {', '.join(own)}. Got {short(device)}. "
            f"Pass device={own[-1]!r}."
        )
        raise error(message)
    return found


def holding(device: torch.device, what: str, error: type[SaelabError] = ConfigError) -> torch.device:
    """The device of a module, which must hold its weights to compute with them.

    Args:
        device: Where it is.
        what: What it is, for the message.
        error: What is raised.

    Raises:
        SaelabError: `error`, where it is torch's meta device.
    """
    if device.type == "meta":
        message = (
            f"{what} must be on a device that holds its weights. Got one on 'meta', which holds none. "
            "Load it on one, as by device='cpu'."
        )
        raise error(message)
    return device
