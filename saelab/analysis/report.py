"""What `saelab.evaluate` gives of one SAE: its scores, each beside its control."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from saelab.analysis.controls import Alone, Beside, framed
from saelab.analysis.suites.registry import Found
from saelab.errors import headline

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Scores:
    """The core scores of one SAE on one corpus; see `saelab.analysis.scores` for what each is. None where the
    subject cannot tell."""

    fvu: float
    l0: float
    dead: float
    loss: float | None = None
    loss_recovered: float | None = None


@dataclass(frozen=True)
class Report:
    """Scores of an SAE beside those of an untrained SAE of the same configuration, on the same rows."""

    hook: str
    n_rows: int
    loss_clean: float | None
    """the subject untouched, in nats for language models; None where it has no loss"""
    loss_ablated: float | None
    """the activations replaced by their mean"""
    sae: Scores
    untrained: Scores
    scores: Mapping[str, Beside] = field(default_factory=dict)
    """every core score by its name, beside its control, with intervals over documents (of "dead": over
    latents)"""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """scores, figures ("suite: name") and suites that could not be measured, and why"""
    suites: Mapping[str, Found] = field(default_factory=dict)
    """what each suite beside the core found, by its name"""
    rows: str = ""
    """fingerprint of what the rows are of, hex: reports are comparable where it and n_rows are equal"""

    @property
    def claims(self) -> dict[str, Beside | Alone]:
        """Every figure: core scores by their names, those of suites as "suite: name"."""
        found: dict[str, Beside | Alone] = dict(self.scores)
        for suite, each in self.suites.items():
            found |= {f"{suite}: {name}": claim for name, claim in each.claims.items()}
        return found

    def to_frame(self) -> pd.DataFrame:
        """One line for each figure: this SAE, each control (NaN where it stands beside none of that kind),
        and the 95 % interval of this SAE's."""
        return framed(self.claims)

    __repr__ = headline

    def __str__(self) -> str:
        head = f"{self.hook}, {self.n_rows:,} rows"
        if self.loss_clean is not None:
            head += f"; loss {self.loss_clean:.3f} clean, {self.loss_ablated:.3f} ablated"
        lines = [head, self.to_frame().to_string(float_format=lambda v: f"{v:.4g}", na_rep="")]
        return "\n".join([*lines, *(f"{name}: left out, {why}" for name, why in self.left_out.items())])


__all__ = ["Report", "Scores"]
