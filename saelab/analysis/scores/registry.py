"""What a score of `saelab.evaluate` is, and which there are.

A score is computed from sums over units, for the SAE and for its control alike, and so has an interval
without code of its own: it says which quantities of rows, samples or latents are summed, and what follows
from the sums.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from saelab.types import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from saelab.analysis.ordinary import Ordinary
    from saelab.sae import SAE
    from saelab.sae.kernels import Sparse

S = TypeVar("S", bound="type[Score]")
_SCORES: dict[str, Score] = {}


@dataclass(frozen=True)
class Seen:
    """Some rows as one SAE has seen them."""

    x: Tensor
    """[rows d_in]: what it reads"""
    y: Tensor
    """[rows d_out]: what x_hat should be: x itself, or a transcoder's target"""
    x_hat: Tensor
    """[rows d_out]"""
    found: Tensor | Sparse
    """codes [rows d_sae], dense or not"""
    mean: Tensor
    """[d_out]: of y over all rows"""
    ordinary: Ordinary
    """which rows are of usual length"""

    @cached_property
    def codes(self) -> Tensor:
        """[rows d_sae]; `on`, `size`, `length` and `fired` need none that are dense."""
        return self.found.dense() if isinstance(self.found, tuple) else self.found

    @cached_property
    def error(self) -> Tensor:
        """float64 [rows]: |y - x_hat|^2."""
        return (self.y - self.x_hat).double().square().sum(1)

    @cached_property
    def deviation(self) -> Tensor:
        """float64 [rows]: |y - mean|^2."""
        return (self.y.double() - self.mean.double()).square().sum(1)

    @cached_property
    def usual(self) -> Tensor:
        """bool [rows]: |y| is at most OUTLIER times the median."""
        return self.ordinary.rows(self.y)

    @cached_property
    def usual_deviation(self) -> Tensor:
        """float64 [rows]: |y - mean of the usual rows|^2."""
        return (self.y.double() - self.ordinary.mean.to(self.y.device)).square().sum(1)

    @cached_property
    def product(self) -> Tensor:
        """float64 [rows]: y . x_hat."""
        return (self.y.double() * self.x_hat.double()).sum(1)

    @cached_property
    def lengths(self) -> tuple[Tensor, Tensor]:
        """float64 [rows] each: |y| and |x_hat|."""
        return self.y.double().norm(dim=1), self.x_hat.double().norm(dim=1)

    @cached_property
    def on(self) -> Tensor:
        """float64 [rows]: codes != 0."""
        return self._summed(lambda values: values != 0)

    @cached_property
    def size(self) -> Tensor:
        """float64 [rows]: sum of |code|."""
        return self._summed(lambda values: values.abs())

    @cached_property
    def length(self) -> Tensor:
        """float64 [rows]: |codes|_2."""
        return self._summed(lambda values: values.double().square()).sqrt()

    @property
    def d_sae(self) -> int:
        """Latents."""
        return self.found.d_sae if isinstance(self.found, tuple) else self.found.shape[1]

    @cached_property
    def fired(self) -> Tensor:
        """int64 [d_sae]: rows where each latent is not 0."""
        if isinstance(self.found, tuple):
            indices = self.found.indices[self.found.values != 0]
            return indices.bincount(minlength=self.found.d_sae)
        return (self.found != 0).sum(0)

    @cached_property
    def rows(self) -> Tensor:
        """int64 [rows]: ones."""
        return self.x.new_ones(len(self.x)).long()

    def _summed(self, of: Callable[[Tensor], Tensor]) -> Tensor:
        if not isinstance(self.found, tuple):
            return of(self.found).sum(1).double()
        out = self.found.values.new_zeros(len(self.x)).double()
        return out.index_add_(0, self.found.rows(), of(self.found.values).double())


@dataclass(frozen=True)
class Spliced:
    """Some samples as the subject loses on them, next to what it loses untouched. Arrays are [samples]."""

    n: np.ndarray
    """targets"""
    loss: np.ndarray
    """summed loss with the reconstruction in place of the rows"""
    clean: np.ndarray
    """of the subject untouched"""
    ablated: np.ndarray
    """with the mean of all rows in their place"""
    zeroed: np.ndarray
    """with zeros in their place"""
    kl: np.ndarray | None = None
    """summed KL(untouched || with the reconstruction) of the distributions of tokens; None of a subject
    without `HasTargets`"""
    kl_zeroed: np.ndarray | None = None
    """the same with zeros in place of the rows"""


@dataclass(frozen=True)
class Fired:
    """How often the latents of one SAE fired on all rows."""

    rows: np.ndarray
    """int64 [d_sae]: rows where each is not 0"""
    n_rows: int
    sae: SAE

    @property
    def density(self) -> np.ndarray:
        """float64 [d_sae]: share of the rows."""
        return self.rows / self.n_rows


class Score(ABC):
    """One score of an SAE; its class's docstring is what people read.

    A score has one of the three methods that say what is summed.
    """

    name: ClassVar[str] = ""
    needs: ClassVar[type | None] = None
    """what the subject must be able to do (`saelab.capabilities.HasLoss`, ...); None: rows alone suffice"""

    def of_rows(self, seen: Seen) -> Mapping[str, Tensor]:
        """Quantity -> [rows]; units are the samples that rows are of."""
        return {}

    def of_samples(self, spliced: Spliced) -> Mapping[str, np.ndarray]:
        """Quantity -> [samples]; units are samples."""
        return {}

    def of_latents(self, fired: Fired) -> Mapping[str, np.ndarray]:
        """Quantity -> [d_sae], once all rows were seen; units are latents."""
        return {}

    @abstractmethod
    def value(self, sums: Mapping[str, Any]) -> Any:
        """The score, from quantity -> its sum (numbers, or arrays of them alike)."""


def register(name: str) -> Callable[[S], S]:
    """A class decorator that adds a score to `saelab.evaluate`.

    Args:
        name: of the score, as reports have it.

    Raises:
        ConfigError: The class is no Score, has no docstring, or another has the name.
    """

    def decorated(cls: S) -> S:
        old = _SCORES.get(name)
        taken = old is not None and (type(old).__module__, type(old).__qualname__) != (
            cls.__module__,
            cls.__qualname__,
        )
        if not (isinstance(cls, type) and issubclass(cls, Score)) or not cls.__doc__ or taken:
            message = (
                "A score must be a class below saelab.analysis.scores.Score with a docstring and a name of "
                f"its own. Got {cls.__name__} as {name!r}. Say in the docstring what it is."
            )
            raise ConfigError(message)
        cls.name = name
        _SCORES[name] = cls()
        return cls

    return decorated


def registered() -> dict[str, Score]:
    """Every score, by its name."""
    return dict(_SCORES)
