"""Where training rows come from: an ActivationStore or a tensor, behind one small interface."""

from __future__ import annotations

import contextlib
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from saelab import dist
from saelab.config import is_integer
from saelab.harvesting.outliers import lengths, limit
from saelab.sae.config import SAEConfig
from saelab.seeds import mixed
from saelab.types import ConfigError, HookError, HookPoint, ShapeError, check_finite, nearest

if TYPE_CHECKING:
    from saelab.stores import ActivationStore


ROWS_AT_ONCE = 8_192


class Rows(ABC):
    """Activations [n_rows d_in], shuffled once a pass by a seed."""

    n_rows: int
    waits = False
    """Whether `gather` may wait for a disk."""

    @abstractmethod
    def gather(self, at: Tensor) -> Tensor:
        """Rows by index, float32 [len(at) d_in]."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Hex digest; equal for equal data."""

    def key(self) -> str:
        """Equal for rows of the same hook of one source: what several SAEs may share."""
        return ""

    def outliers(self) -> dict[str, Any] | None:
        """Which rows were left out for their norm: `multiple` of the median, the limits, how many
        (`left_out`) `of` all; None where none were looked for."""
        return None

    def batches(self, size: int, seed: int, start: int = 0) -> Generator[Tensor, None, None]:
        """Endless full batches [size d_in] in an order that depends on the seed alone, from batch `start` on;
        where ranks share them, this rank's part of each.

        The rows left over at the end of a pass are dropped; each pass has its own order. Where rows lie on a
        disk a thread reads the next batch meanwhile.
        """
        places = self._places(size, seed, start)
        if not self.waits:
            yield from map(self.gather, places)
        with ThreadPoolExecutor(1, "saelab-rows") as reader:
            coming = reader.submit(self.gather, next(places))
            for at in places:
                batch, coming = coming.result(), reader.submit(self.gather, at)
                yield batch

    def _places(self, size: int, seed: int, start: int) -> Iterator[Tensor]:
        """Row numbers of each batch."""
        per_pass = self.n_rows // size
        epoch, at = divmod(start, per_pass)
        while True:
            order = self._order(epoch, seed)
            for i in range(at, per_pass):
                yield dist.rows.own(order[i * size : (i + 1) * size])
            epoch, at = epoch + 1, 0

    def origin(self, size: int, seed: int, step: int, i: int) -> str:
        """Where row i of batch `step` (from 0) comes from, for people."""
        epoch, at = divmod(step, self.n_rows // size)
        return self._origin(int(self._order(epoch, seed)[at * size + i]))

    def _order(self, epoch: int, seed: int) -> Tensor:
        """Row numbers in the order of a pass."""
        # mixed, so that a pass shares its order neither with the next nor with what callers draw from a seed
        generator = torch.Generator().manual_seed(mixed(seed, epoch))
        return torch.randperm(self.n_rows, generator=generator)

    def _origin(self, row: int) -> str:
        return f"row {row}"

    def first(self, n: int, size: int, seed: int) -> Tensor:
        """The first rows that training with this batch size and seed will see: about n, at most one pass."""
        count = max(1, min(n, self.n_rows) // size)
        return torch.cat(list(islice(self.batches(size, seed), count)))

    def take_off(self, n: int) -> TensorRows:
        """The last n rows, which these then lack. Raises ConfigError where too few are left."""
        if n >= self.n_rows:
            message = (
                f"held_out must be less than the number of activations, {self.n_rows}. Got {n}. "
                f"Pass a tenth, {self.n_rows // 10}, or harvest more."
            )
            raise ConfigError(message)
        self.n_rows -= n
        return TensorRows(self.gather(torch.arange(self.n_rows, self.n_rows + n)))


def moved(batches: Generator[Tensor, None, None], device: torch.device) -> Generator[Tensor, None, None]:
    """The same batches on a device. To a CUDA device rows travel one batch ahead, out of pinned memory and on
    a stream of their own, while the step before computes; rows that are there already do not wait.

    Args:
        batches: Of rows, without end.
        device: Where they are wanted.
    """
    if device.type != "cuda":
        yield from batches
        return
    stream, coming = torch.cuda.Stream(device), None
    with contextlib.closing(batches):
        for rows in batches:
            if rows.is_cuda:
                yield rows
                continue
            pinned = rows.pin_memory()  # kept until the copy is over, by torch's own allocator
            with torch.cuda.stream(stream):
                next_one = pinned.to(device, non_blocking=True), stream.record_event()
            if coming is not None:
                yield _arrived(*coming)
            coming = next_one


def _arrived(rows: Tensor, copied: Any) -> Tensor:
    """Rows that another stream copies, for the current one. copied: its event."""
    current = torch.cuda.current_stream(rows.device)
    current.wait_event(copied)
    rows.record_stream(current)
    return rows


class Stream(Rows):
    """Rows that are made as they are needed: see `saelab.training.stream`."""

    hooks: list[HookPoint]

    def take_off(self, n: int) -> TensorRows:
        message = (
            f"A stream has no last rows to hold out. Got held_out={n}. Pass a tensor or a store of other "
            "documents."
        )
        raise ConfigError(message)

    @abstractmethod
    def width(self, hook: HookPoint | str) -> int:
        """Width of the activations at one of its hooks."""

    @abstractmethod
    def reading(self, hooks: Sequence[str]) -> Stream:
        """Itself, giving the activations of these hooks side by side."""

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

    waits = True

    def __init__(self, store: ActivationStore, hook: str) -> None:
        self.store, self.hook = store, hook
        self.n_rows = store.n_rows

    def key(self) -> str:
        return self.hook

    def _origin(self, row: int) -> str:
        document, position = self.store.rows([row], self.hook).rows[0].tolist()
        return f"row {row} (document {document}, position {position})"

    def gather(self, at: Tensor) -> Tensor:
        return self.store.acts(at.numpy(), self.hook)

    def fingerprint(self) -> str:
        return self.store.fingerprint()


class JoinedRows(Rows):
    """Rows of several sources side by side: a transcoder's input and target, or what a crosscoder reads."""

    def __init__(self, sources: list[Rows]) -> None:
        self.sources = sources
        self.n_rows = sources[0].n_rows
        self.waits = any(source.waits for source in sources)

    def key(self) -> str:
        return "|".join(source.key() for source in self.sources)

    def gather(self, at: Tensor) -> Tensor:
        return torch.cat([source.gather(at) for source in self.sources], dim=1)

    def _origin(self, row: int) -> str:
        return self.sources[0]._origin(row)

    def fingerprint(self) -> str:
        told = [source.fingerprint() for source in self.sources]
        return told[0] if len(set(told)) == 1 else hashlib.sha256("".join(told).encode()).hexdigest()


class OrdinaryRows(Rows):
    """The rows of a source whose norms are within limits, on each of its sides.

    Args:
        source: All rows.
        sides: Width of each.
        multiple: Of the median norm.
        limits: The norms that rows may have; None for those of these rows.

    Raises:
        ConfigError: A median norm is 0, or no row is within.
    """

    def __init__(
        self, source: Rows, sides: Sequence[int], multiple: float, limits: Sequence[float] | None = None
    ) -> None:
        self.source, self.sides, self.multiple = source, list(sides), multiple
        self.waits = source.waits
        parts = torch.arange(source.n_rows).split(ROWS_AT_ONCE)
        norms = torch.cat([self._norms(source.gather(at)) for at in parts])
        if limits is None:
            names = source.key().split("|") if len(self.sides) == source.key().count("|") + 1 else []
            named = [name or "the rows" for name in names] or ["the rows"] * len(self.sides)
            limits = [limit(multiple, norms[:, i], name) for i, name in enumerate(named)]
        self.limits = list(limits)
        self.at = (norms <= torch.tensor(self.limits)).all(1).nonzero()[:, 0]
        self.n_rows, self.of = len(self.at), source.n_rows
        if not self.n_rows:
            message = (
                f"max_norm must leave rows. Got none of {self.of} within {self.limits}. Pass a higher one."
            )
            raise ConfigError(message)

    def _norms(self, rows: Tensor) -> Tensor:
        return torch.stack([lengths(side).cpu() for side in rows.split(self.sides, dim=1)], dim=1)

    def outliers(self) -> dict[str, Any] | None:
        told = {"multiple": self.multiple, "norms": self.limits}
        return {**told, "left_out": self.of - len(self.at), "of": self.of}

    def again(self) -> OrdinaryRows:
        """The same rows for another SAE, whose count is its own."""
        other = copy(self)
        other.n_rows = len(self.at)
        return other

    def key(self) -> str:
        return self.source.key()

    def _origin(self, row: int) -> str:
        return self.source._origin(int(self.at[row]))

    def gather(self, at: Tensor) -> Tensor:
        return self.source.gather(self.at[at])

    def fingerprint(self) -> str:
        return self.source.fingerprint()


def ordinary(rows: Rows, config: SAEConfig, multiple: float, known: dict[str, OrdinaryRows]) -> OrdinaryRows:
    """The rows whose norm is at most a multiple of the median, for which all are read once.

    Args:
        rows: All.
        config: Of the SAE that reads them.
        multiple: Of the median norm of each side.
        known: Those of other SAEs, by what they read.

    Raises:
        ConfigError: The rows are a stream, or half of them are zeros.
    """
    if isinstance(rows, Stream):
        message = "A stream leaves rows out itself. Got max_norm for train. Pass it to saelab.stream."
        raise ConfigError(message)
    if rows.key() not in known:
        known[rows.key()] = OrdinaryRows(rows, [width for _, width in _sides(config)], multiple)
    return known[rows.key()].again()


def as_rows(acts: Any, config: SAEConfig) -> tuple[Rows, SAEConfig]:
    """The rows behind `acts` and the config with its hooks filled in, everything checked before any work.

    A transcoder's rows hold input and target side by side. Raises ShapeError, NonFiniteError, HookError,
    ConfigError.
    """
    sides = _sides(config)
    several = isinstance(acts, (tuple, list))
    acts = tuple(map(_as_tensor, acts)) if several else _as_tensor(acts)
    if several and len(acts) == 2 and config.d_out is not None and all(map(torch.is_tensor, acts)):
        sides = [(config.hook, config.d_in), (config.hook_out, config.d_out)]  # layers are side by side
    if several and len(acts) != len(sides):
        message = (
            f"The recipe {config.recipe!r} needs {len(sides)} kinds of activations here. Got {len(acts)}. "
            "Pass (inputs, targets) for a transcoder, one for each of a crosscoder's widths, for a clt both "
            "ends of all layers (inputs first), else just one."
        )
        raise ShapeError(message)
    if isinstance(acts, Tensor) and len(sides) > 1 and config.d_out is None:
        sides = [(None, config.d_in)]  # already side by side
    given = list(acts) if several else [acts] * len(sides)
    if isinstance(acts, Tensor) and len(sides) > 1:
        message = "A transcoder needs inputs and targets. Got one tensor. Pass (inputs, targets)."
        raise ShapeError(message)
    if isinstance(acts, Stream):
        hooks = [_hook(acts, hook) for hook, _ in sides]
        for hook, (_, width) in zip(hooks, sides, strict=True):
            _check_width(acts.width(hook), width, hook)
        rows: Rows = acts.reading(hooks)
    else:
        sources, hooks = zip(*(_side(a, *side) for a, side in zip(given, sides, strict=True)), strict=True)
        _check_aligned(sources)
        rows = sources[0] if len(sources) == 1 else JoinedRows(list(sources))
    return rows, _filled(config, hooks)


def as_held_out(held_out: Any, config: SAEConfig, rows: Rows, taken: dict[str, Rows]) -> Rows | None:
    """The rows that training does not see: the last ones of `rows`, or others of the same hook. taken: what
    was taken off each source already, for the next SAE that reads it.

    Raises as as_rows does.
    """
    if held_out is None:
        return None
    if is_integer(held_out):
        found = taken.get(rows.key())
        if found is None:
            found = taken[rows.key()] = rows.take_off(int(held_out))
        else:
            rows.n_rows -= held_out
    elif isinstance(held_out, Stream):
        message = (
            "Held-out rows must be the same at every evaluation. Got a stream. Pass a tensor or a store."
        )
        raise ConfigError(message)
    else:
        found, _ = as_rows(held_out, config)
        if isinstance(rows, OrdinaryRows):  # what is measured is of the kind that was learnt
            found = OrdinaryRows(found, rows.sides, rows.multiple, rows.limits)
    if found.n_rows < 2 or not (found.gather(torch.arange(found.n_rows)).diff(dim=0) != 0).any():
        message = (
            f"Held-out rows must differ, or their FVU has no meaning. Got {found.n_rows} equal ones. Pass "
            "others."
        )
        raise ConfigError(message)
    return found


def check_enough(rows: Rows, batch_size: int) -> None:
    """Raises ConfigError where there is no full batch."""
    if rows.n_rows < batch_size:
        message = (
            f"batch_size must be at most the number of activations, {rows.n_rows}. Got {batch_size}. "
            f"Pass batch_size<={rows.n_rows} or harvest more."
        )
        raise ConfigError(message)


def _sides(config: SAEConfig) -> list[tuple[HookPoint | None, int]]:
    """(hook if known, width) of everything that a row holds."""
    if config.widths:
        written = config.widths_out if config.d_out is not None else ()
        hooks = config.hooks or (None,) * len(config.widths)
        hooks_out = config.hooks_out or (None,) * len(written)
        return list(zip((*hooks, *hooks_out), (*config.widths, *written), strict=True))
    target = [] if config.d_out is None else [(config.hook_out, config.d_out)]
    return [(config.hook, config.d_in), *target]


def _filled(config: SAEConfig, hooks: Sequence[str | None]) -> SAEConfig:
    """The config with the hooks that the activations name."""
    points = [None if hook is None else HookPoint.of(hook) for hook in hooks]
    if config.widths:
        n = len(config.widths)
        if config.d_out is not None and not config.hooks_out and len(points) > 2 and None not in points[n:]:
            config = replace(config, options={**config.options, "hooks_out": tuple(map(str, points[n:]))})
        known = not config.hooks and len(points) >= n and None not in points[:n]
        return replace(config, hooks=tuple(points[:n])) if known else config
    if config.hook is None and points[0] is not None:
        config = replace(config, hook=points[0])
    if config.d_out is not None and config.hook_out is None and points[1] is not None:
        config = replace(config, hook_out=points[1])
    return config


def _as_tensor(acts: Any) -> Any:
    """Arrays as tensors, which share their memory."""
    return torch.as_tensor(acts) if isinstance(acts, np.ndarray) and acts.dtype.kind == "f" else acts


def _side(acts: Any, hook: HookPoint | None, width: int) -> tuple[Rows, str | None]:
    """The rows of one kind of activations, and their hook if they name it."""
    if isinstance(acts, Tensor):
        if acts.ndim < 2 or acts.shape[-1] != width or not acts.is_floating_point():
            message = (
                f"Activations must be a floating-point tensor [n, d_in={width}]. "
                f"Got {acts.dtype} of shape {tuple(acts.shape)}. Pass "
                f"d_in={acts.shape[-1] if acts.ndim else 1} "
                "to the recipe, or other activations."
            )
            raise ShapeError(message)
        check_finite(acts, "Activations")
        return TensorRows(acts.detach().reshape(-1, width)), None
    if not all(hasattr(acts, n) for n in ("hooks", "width", "rows", "n_rows")):
        message = (
            "Activations must be an ActivationStore, a stream or a tensor [n, d_in]. "
            f"Got {type(acts).__name__}. Make a store by saelab.harvest(...), or pass torch.as_tensor(acts)."
        )
        raise ShapeError(message)
    name = _hook(acts, hook)
    _check_width(acts.width(name), width, name)
    return StoreRows(acts, name), name


def _check_width(found: int, width: int, hook: str | None) -> None:
    if found != width:
        message = (
            f"d_in must be the width of the activations at {hook}, {found}. Got d_in={width}. "
            f"Make the config with d_in={found} (d_out for a target, widths for a crosscoder)."
        )
        raise ShapeError(message)


def _check_aligned(sources: Sequence[Rows]) -> None:
    """Rows that are put side by side must be of the same documents and positions."""
    counts = [source.n_rows for source in sources]
    if len(set(counts)) > 1:
        message = f"Activations side by side must be as many. Got {counts} rows. Harvest the same corpus."
        raise ShapeError(message)
    stores = [source for source in sources if isinstance(source, StoreRows)]
    at = torch.randperm(counts[0], generator=torch.Generator().manual_seed(0))[:1000].numpy()
    origins = [source.store.rows(at, source.hook).rows for source in stores]
    if any(not torch.equal(origins[0], other) for other in origins[1:]):
        message = (
            "Activations side by side must be of the same documents and positions, row by row. Got stores "
            "whose rows differ. Harvest the same corpus with the same tokenizer."
        )
        raise ShapeError(message)


def _hook(store: ActivationStore | Stream, hook: HookPoint | None) -> str:
    names = [str(h) for h in store.hooks]
    if hook is None:
        if len(names) == 1:
            return names[0]
        message = (
            f"A store of several hooks needs the config's hook. Got hook=None and {', '.join(names)}. "
            f"Make the config with hook={names[0]!r} or another of these (hook_out for a target)."
        )
        raise HookError(message)
    if hook.name not in names:
        message = (
            f"The config's hook must be one of the store's: {', '.join(names)}. Got {hook.name!r}. "
            f"{nearest(hook.name, names)}Harvest that hook or change the config."
        )
        raise HookError(message)
    return hook.name
