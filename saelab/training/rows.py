"""Where training rows come from: an ActivationStore or a tensor, behind one small interface."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Generator
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from saelab import dist
from saelab.sae.recipes import SAEConfig
from saelab.types import ConfigError, HookError, HookPoint, ShapeError, check_finite, nearest

if TYPE_CHECKING:
    from saelab.stores import ActivationStore


class Rows(ABC):
    """Activations [n_rows d_in], shuffled once a pass by a seed."""

    n_rows: int

    @abstractmethod
    def gather(self, at: Tensor) -> Tensor:
        """Rows by index, float32 [len(at) d_in]."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Hex digest; equal for equal data."""

    def key(self) -> str:
        """Equal for rows of the same hook of one source: what several SAEs may share."""
        return ""

    def batches(self, size: int, seed: int, start: int = 0) -> Generator[Tensor, None, None]:
        """Endless full batches [size d_in] in an order that depends on the seed alone, from batch `start` on;
        where ranks share them, this rank's part of each.

        The rows left over at the end of a pass are dropped; each pass has its own order.
        """
        per_pass = self.n_rows // size
        epoch, at = divmod(start, per_pass)
        while True:
            order = self._order(epoch, seed)
            for i in range(at, per_pass):
                yield self.gather(dist.rows.part(order[i * size : (i + 1) * size]))
            epoch, at = epoch + 1, 0

    def origin(self, size: int, seed: int, step: int, i: int) -> str:
        """Where row i of batch `step` (from 0) comes from, for people."""
        epoch, at = divmod(step, self.n_rows // size)
        return self._origin(int(self._order(epoch, seed)[at * size + i]))

    def _order(self, epoch: int, seed: int) -> Tensor:
        """Row numbers in the order of a pass."""
        # mixed, so that a pass shares its order neither with the next nor with what callers draw from a seed
        mixed = (seed * 0x9E3779B1 + epoch * 0x85EBCA6B + 0x5AE1AB) % 2**63
        return torch.randperm(self.n_rows, generator=torch.Generator().manual_seed(mixed))

    def _origin(self, row: int) -> str:
        return f"row {row}"

    def first(self, n: int, size: int, seed: int) -> Tensor:
        """The first rows that training with this batch size and seed will see: about n, at most one pass."""
        count = max(1, min(n, self.n_rows) // size)
        return torch.cat(list(islice(self.batches(size, seed), count)))


class Stream(Rows):
    """Rows that are made as they are needed, of one hook point: see `saelab.training.stream`."""

    hooks: list[HookPoint]

    @abstractmethod
    def width(self, hook: HookPoint | str) -> int:
        """d_in"""

    def origin(self, size: int, seed: int, step: int, i: int) -> str:
        return f"row {i} of the batch"


class TensorRows(Rows):
    """Rows of a tensor [n d_in]."""

    def __init__(self, acts: Tensor) -> None:
        self.acts = acts
        self.n_rows = len(acts)

    def gather(self, at: Tensor) -> Tensor:
        return self.acts[at.to(self.acts.device)].float()

    def fingerprint(self) -> str:
        acts = self.acts.detach().cpu().contiguous()
        digest = hashlib.sha256(f"{acts.dtype} {tuple(acts.shape)}".encode())
        digest.update(acts.view(torch.uint8).numpy().data)
        return digest.hexdigest()


class StoreRows(Rows):
    """Rows of one hook of an ActivationStore."""

    def __init__(self, store: ActivationStore, hook: str) -> None:
        self.store, self.hook = store, hook
        self.n_rows = store.n_rows

    def key(self) -> str:
        return self.hook

    def _origin(self, row: int) -> str:
        document, position = self.store.rows([row], self.hook).rows[0].tolist()
        return f"row {row} (document {document}, position {position})"

    def gather(self, at: Tensor) -> Tensor:
        return self.store.rows(at.numpy(), self.hook).acts.float()

    def fingerprint(self) -> str:
        return self.store.fingerprint()


def as_rows(acts: Any, config: SAEConfig, batch_size: int) -> tuple[Rows, SAEConfig]:
    """The rows behind `acts` and the config with its hook filled in, everything checked before any work.

    Raises ShapeError, NonFiniteError, HookError, ConfigError.
    """
    if isinstance(acts, Tensor):
        if acts.ndim < 2 or acts.shape[-1] != config.d_in or not acts.is_floating_point():
            message = (
                f"Activations must be a floating-point tensor [n, d_in={config.d_in}]. "
                f"Got {acts.dtype} of shape {tuple(acts.shape)}. Pass "
                f"d_in={acts.shape[-1] if acts.ndim else 1} "
                "to the recipe, or other activations."
            )
            raise ShapeError(message)
        check_finite(acts, "Activations")
        rows: Rows = TensorRows(acts.detach().reshape(-1, config.d_in))
    elif isinstance(acts, Stream) or all(hasattr(acts, n) for n in ("hooks", "width", "rows", "n_rows")):
        hook = _hook(acts, config)
        width = acts.width(hook)
        if width != config.d_in:
            message = (
                f"d_in must be the width of the activations at {hook}, {width}. Got d_in={config.d_in}. "
                f"Make the config with d_in={width}."
            )
            raise ShapeError(message)
        rows = acts if isinstance(acts, Stream) else StoreRows(acts, hook)
        if config.hook is None:
            config = replace(config, hook=HookPoint.of(hook))
    else:
        message = (
            "Activations must be an ActivationStore, a stream or a tensor [n, d_in]. "
            f"Got {type(acts).__name__}. Make a store by saelab.harvest(...), or pass torch.as_tensor(acts)."
        )
        raise ShapeError(message)
    if rows.n_rows < batch_size:
        message = (
            f"batch_size must be at most the number of activations, {rows.n_rows}. Got {batch_size}. "
            f"Pass batch_size<={rows.n_rows} or harvest more."
        )
        raise ConfigError(message)
    return rows, config


def _hook(store: ActivationStore | Stream, config: SAEConfig) -> str:
    names = [str(h) for h in store.hooks]
    if config.hook is None:
        if len(names) == 1:
            return names[0]
        message = (
            f"A store of several hooks needs the config's hook. Got hook=None and {', '.join(names)}. "
            f"Make the config with hook={names[0]!r} or another of these."
        )
        raise HookError(message)
    if config.hook.name not in names:
        message = (
            f"The config's hook must be one of the store's: {', '.join(names)}. Got {config.hook.name!r}. "
            f"{nearest(config.hook.name, names)}Harvest that hook or change the config."
        )
        raise HookError(message)
    return config.hook.name
