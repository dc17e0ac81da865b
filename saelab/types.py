"""Central types: what flows between the packages, the protocols, and (from `saelab.errors`) the errors.

Nothing here imports torch at run time, so a feature store can be opened on a machine that has none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from saelab.config import integer
from saelab.errors import (
    ConfigError,
    CorpusError,
    DeviceMemoryError,
    FormatError,
    HookError,
    JobError,
    MissingDependency,
    NonFiniteError,
    NotReady,
    RangeError,
    RankError,
    SaelabError,
    ShapeError,
    StoreError,
    SubjectError,
    nearest,
    short,
)

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor


_CALL = re.compile(r"(.+)@(\d{1,9}|all)")


@dataclass(frozen=True)
class HookPoint:
    """Where to read or write in a Subject.

    Attributes:
        name: TransformerLens vocabulary for language models (`blocks.2.hook_resid_post`), module paths
            elsewhere. Where a module runs several times in a pass (a denoiser, a shared block), the call
            follows after an @: `unet.mid_block@3` is the fourth, `unet.mid_block@all` every one.
        io: "out" or "in", which side of a module is meant (ignored for language-model names, which imply it).
        n_heads: head count where heads are concatenated (`hook_z`: [n, n_heads * d_head]), else None.
    """

    name: str
    io: str = "out"
    n_heads: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            message = (
                f"A hook point's name must be a non-empty string. Got {self.name!r}. "
                "Pass a name out of subject.hooks()."
            )
            raise HookError(message)
        if not isinstance(self.io, str) or self.io not in ("out", "in"):
            message = f"io must be 'out' or 'in'. Got {self.io!r}. Pass io='out' for a module's output."
            raise HookError(message)

    def __repr__(self) -> str:
        more = [f", io={self.io!r}"] * (self.io != "out") + [f", n_heads={self.n_heads}"] * bool(self.n_heads)
        return f"HookPoint({self.name!r}{''.join(more)})"

    @classmethod
    def of(cls, hook: HookPoint | str) -> HookPoint:
        """A HookPoint of itself or of its name."""
        return hook if isinstance(hook, HookPoint) else cls(hook)

    @property
    def module(self) -> str:
        """The name without the call."""
        found = _CALL.fullmatch(self.name)
        return found[1] if found else self.name

    @property
    def call(self) -> int | str | None:
        """Which call of the module in a pass, from 0 on, or "all"; None where the name says none."""
        found = _CALL.fullmatch(self.name)
        return None if found is None else found[2] if found[2] == "all" else int(found[2])

    def __str__(self) -> str:
        return self.name


class ActivationBatch(NamedTuple):
    """Activations with their origin."""

    acts: Tensor
    """[n d_in] float."""
    rows: Tensor
    """int64 [n 2]: (sample, position) of each activation."""


@dataclass(frozen=True)
class Codes:
    """Sparse codes of n rows in CSR form, the same in memory and on disk. Signed codes are allowed.

    indptr: int64 [n + 1]; row i owns the entries indptr[i]:indptr[i+1].
    indices: int32 [nnz], latent of each entry, ascending within a row.
    values: float32 [nnz], never 0.
    d_sae: number of latents.
    """

    indptr: np.ndarray
    indices: np.ndarray
    values: np.ndarray
    d_sae: int

    def __repr__(self) -> str:
        return f"Codes({len(self.indptr) - 1:,} rows, d_sae={self.d_sae}, {len(self.values):,} codes)"

    def __post_init__(self) -> None:
        if self.indptr.ndim != 1 or len(self.indptr) < 1 or self.indptr[-1] != len(self.indices):
            message = (
                "indptr must be one-dimensional and end with nnz. "
                f"Got shape {self.indptr.shape} for {len(self.indices)} entries. Build by Codes.from_dense."
            )
            raise ShapeError(message)
        if len(self.indices) != len(self.values):
            message = (
                "indices and values must be of equal length. "
                f"Got {len(self.indices)} and {len(self.values)}. Build by Codes.from_dense."
            )
            raise ShapeError(message)

    def __len__(self) -> int:
        return len(self.indptr) - 1

    def to_frame(self) -> pd.DataFrame:
        """One line for each code that is not 0: row, latent, value."""
        import pandas as pd

        return pd.DataFrame({"row": self.row_ids(), "latent": self.indices, "value": self.values})

    @property
    def l0(self) -> np.ndarray:
        """int64 [n]: entries != 0 of each row."""
        return np.diff(self.indptr)

    @classmethod
    def from_dense(cls, dense: Any) -> Codes:
        """The entries of a dense tensor or array that are != 0, of either sign.

        Args:
            dense: [n d_sae].

        Raises:
            ShapeError: It is no matrix.
        """
        array = np.asarray(
            dense.detach().cpu().float() if hasattr(dense, "detach") else dense, dtype=np.float32
        )
        if array.ndim != 2:
            message = f"Dense codes must be [n d_sae]. Got shape {array.shape}. Flatten the leading axes."
            raise ShapeError(message)
        n, width = array.shape
        on = array != 0
        # over bools on one axis: six times as fast as over the matrix
        at = np.flatnonzero(on)
        sizes = np.count_nonzero(on, axis=1)
        indptr = np.zeros(n + 1, dtype=np.int64)
        np.cumsum(sizes, out=indptr[1:])
        col = at - np.repeat(np.arange(0, n * width, width) if width else sizes, sizes)
        return cls(indptr, col.astype(np.int32), array.reshape(-1)[at], width)

    def dense(self) -> np.ndarray:
        """float32 [n d_sae]."""
        out = np.zeros((len(self), self.d_sae), dtype=np.float32)
        out[self.row_ids(), self.indices] = self.values
        return out

    def row_ids(self) -> np.ndarray:
        """int64 [nnz]: row of each entry."""
        return np.repeat(np.arange(len(self)), self.l0)

    def by_latent(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """In CSC order: (indptr int64 [d_sae + 1], rows int64 [nnz] ascending, values float32 [nnz])."""
        order = np.argsort(self.indices, kind="stable")
        indptr = np.zeros(self.d_sae + 1, dtype=np.int64)
        np.cumsum(np.bincount(self.indices, minlength=self.d_sae), out=indptr[1:])
        return indptr, self.row_ids()[order], self.values[order]

    def row(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """(latents, values) of row i."""
        i = integer("i", i, 0, len(self) - 1, error=RangeError, remedy="Pass a row of these codes.")
        at = slice(self.indptr[i], self.indptr[i + 1])
        return self.indices[at], self.values[at]


class Scale(NamedTuple):
    """Per-row normalisation that the decoder undoes: x = x_normalised * norm + mean."""

    mean: Tensor
    """[n 1]"""
    norm: Tensor
    """[n 1]"""


@dataclass(frozen=True)
class Inputs:
    """Model-ready inputs, made by `Subject.prepare`.

    Attributes:
        data: keyword arguments of the model's forward, each with leading axis `samples`.
        lengths: int64 [samples], positions that are not padding; None without a position axis.
        counted: bool [samples positions], positions that count as rows: no padding, no BOS. None: all of
            `lengths`, or all.
        positions: int64 [samples positions], the number of each position in its sample, -1 where it is
            padding. None: 0, 1, ... as far as `lengths` goes, or to the end.
        given: bool [samples positions], False where the subject wrote the position itself, in generating.
            None: all were given.
        special: bool [samples positions], positions of special tokens. None: nothing is known of them.
    """

    data: Mapping[str, Any]
    lengths: np.ndarray | None = None
    counted: np.ndarray | None = None
    positions: np.ndarray | None = None
    given: np.ndarray | None = None
    special: np.ndarray | None = None

    def __len__(self) -> int:
        return int(next(iter(self.data.values())).shape[0])

    def __repr__(self) -> str:
        rows = "" if self.counted is None else f", {int(self.counted.sum()):,} rows"
        return f"Inputs({len(self)} samples{rows}: {', '.join(self.data)})"


@dataclass(frozen=True)
class Run:
    """What one forward pass gave.

    Attributes:
        acts: hook name -> [samples, positions, width], for each hook point that was read. Under `name@all`
            are the positions of all calls, one call after the other.
        output: the model's main output tensor (logits for language models), or None where the pass stopped
            early.
        spaces: hook name -> (height, width), where the module's own tensor is a grid of positions.
        calls: hook name -> number of calls, of each `name@all`.
    """

    acts: Mapping[str, Tensor]
    output: Tensor | None
    spaces: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    calls: Mapping[str, int] = field(default_factory=dict)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{hook} {list(acts.shape)}" for hook, acts in self.acts.items())
        return f"Run({shapes or 'no acts'}{', output' if self.output is not None else ''})"


class Shown(NamedTuple):
    """What a row shows: a token, a patch, an item."""

    facet: str
    """what kind of thing it is: "token", "patch", "item", ..."""
    name: str
    """text for people"""


@dataclass(frozen=True)
class Context:
    """What an edit is told of the pass that it edits."""

    hook: HookPoint
    """where it edits now"""
    inputs: Inputs | None = None
    """what the subject was run on"""
    counted: Tensor | None = None
    """bool [samples positions]: the positions that are rows (no padding, no BOS), where the activations have
    the positions of the inputs; else None, and all are"""
    call: int = 0
    """how often the module was called before in this pass"""
    shared: dict[Any, Any] = field(default_factory=dict)
    """one for each pass, the same at every hook point and call: where an edit leaves what it needs later"""
    past: dict[Any, Any] = field(default_factory=dict)
    """one for all passes that go on with the same samples, as the steps of a generation with a cache do; of
    any other pass its own, empty one"""


@runtime_checkable
class Intervention(Protocol):
    """An edit of the activations at one hook point or several. The null edit is the identity, bit for bit."""

    @property
    def hooks(self) -> tuple[HookPoint, ...]:
        """Where it edits; of several it is called once at each, in the order of the pass."""
        ...

    def __call__(self, acts: Tensor, context: Context) -> Tensor:
        """acts [samples, positions, width] -> the same shape."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data from which `saelab.interventions.load` makes it again."""
        ...


@runtime_checkable
class Subject(Protocol):
    """Any model that can be read and edited at hook points."""

    def hooks(self) -> list[str]:
        """Every hook point's name."""
        ...

    def width(self, hook: HookPoint | str) -> int:
        """Size of the last axis at a hook point (heads concatenated for hook_z)."""
        ...

    def prepare(self, raw: Sequence[Any]) -> Inputs:
        """Raw samples (texts, images, ...) to model-ready inputs."""
        ...

    def run(
        self,
        inputs: Inputs,
        read: Sequence[HookPoint | str] = (),
        edits: Sequence[Intervention] = (),
        *,
        output: bool = True,
    ) -> Run:
        """One forward pass.

        Args:
            inputs: What `prepare` gave.
            read: Hook points whose activations are kept.
            edits: Put in at their hook points, in this order.
            output: False allows it to stop after the last hook point that is read.
        """
        ...

    def label(self, inputs: Inputs, sample: int, position: int) -> str:
        """Text for people: the token, patch or item at a row.

        Args:
            inputs: What `prepare` gave.
            sample: Its number, from 0.
            position: In the sample, from 0.
        """
        ...

    def fingerprint(self) -> str:
        """Hex digest of architecture and weights; equal for equal models."""
        ...

    # its own way through a corpus

    def corpus(self, data: Any) -> Any:
        """The `saelab.corpora.Corpus` of what a user passes: texts, images, or what else it reads."""
        ...

    def prime(self, document: Any) -> None:
        """See a document before hook points are asked about: some subjects learn shapes from it."""
        ...

    def stretch(self, how: Any) -> int:
        """How many documents `read` takes at once; `how` is a `saelab.subjects.reading.How`."""
        ...

    def read(self, documents: Sequence[tuple[int, Any]], how: Any) -> Any:
        """How it reads some consecutive documents: a `saelab.subjects.reading.Reading`.

        Args:
            documents: (number, document) of each.
            how: A `saelab.subjects.reading.How`.
        """
        ...


def check_finite(acts: Tensor, what: str) -> None:
    """Refuse NaN and infinity by name.

    Args:
        acts: Any shape.
        what: They are, for the message.

    Raises:
        NonFiniteError: There is one.
    """
    import torch

    # one pass without memory of its own; a sum may be infinite where the numbers are not
    if not torch.isfinite(acts.sum()) and not torch.isfinite(acts).all():
        bad = int((~torch.isfinite(acts)).sum())
        message = (
            f"{what} must be finite. Got {bad} NaN or infinite values of {acts.numel()}. "
            "Drop these rows, or find the layer that overflows (float16 often does; try bfloat16)."
        )
        raise NonFiniteError(message)


__all__ = [
    "ActivationBatch", "Codes", "ConfigError", "Context", "CorpusError", "DeviceMemoryError",
    "FormatError", "HookError", "HookPoint", "Inputs",
    "Intervention", "JobError", "MissingDependency", "NonFiniteError", "NotReady", "RangeError", "RankError",
    "Run",
    "SaelabError", "Scale", "ShapeError", "Shown", "StoreError", "Subject", "SubjectError",
    "check_finite", "nearest", "short",
]  # fmt: skip
