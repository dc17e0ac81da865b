"""What a choice of latents is: which, why, and how well they do on samples that had no part in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from saelab.analysis.controls import Beside
from saelab.analysis.steering.known import check_unseen
from saelab.arguments import listed
from saelab.corpora import Corpus, Document, as_corpus, samples
from saelab.errors import headline

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go


class Contrast(NamedTuple):
    """Samples that hold a concept, and samples that do not."""

    positive: tuple[Document, ...]
    negative: tuple[Document, ...]


@dataclass(frozen=True)
class Choice:
    """A latent that was chosen, and why. All but `held_out` is of the samples that were fitted on."""

    latent: int
    pole: int
    """1, or -1 where its negative codes stand for the concept"""
    score: float
    """that of the method, by which it was ranked"""
    input_score: float
    """mean code of the positive samples less that of the negative ones, in standard deviations within them"""
    output_score: float | None
    """what steering by it changes: the mean log-probability (nats) of the tokens that the concept makes more
    frequent, or the metric; None where that cannot be measured"""
    mean_positive: float
    """mean code over the positive samples"""
    mean_negative: float
    share_positive: float
    """share of the positive samples in which it fires"""
    share_negative: float
    held_out: float
    """AUROC of the latent alone on held-out samples"""


@dataclass(frozen=True)
class Selected:
    """Latents that stand for a concept, the best first, and how well they do on samples not fitted on."""

    method: str
    hook: str
    choices: tuple[Choice, ...]
    scores: Mapping[str, Beside]
    """AUROC of all of them together on held-out samples, beside "random latents" of similar firing rates, and
    beside the same selection on "shuffled labels" (their intervals are over 20 draws of latents or labels;
    with method="score" the true labels find the candidates of both, which favours the control)"""
    fit: Contrast = field(repr=False)
    """what they were chosen on"""
    held_out: Contrast = field(repr=False)
    """what they were judged on: to measure with"""
    fitted: frozenset[str] = field(repr=False)
    """hashes of what they were chosen on; `effect` refuses these samples"""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """what could not be measured, and why"""

    @property
    def latents(self) -> tuple[int, ...]:
        """Their numbers, as edits take them."""
        return tuple(choice.latent for choice in self.choices)

    @property
    def auroc(self) -> float:
        """Of all of them together on held-out samples."""
        return next(iter(self.scores.values())).value

    def check(self, data: Iterable[Any]) -> None:
        """Refuse samples that they were chosen on: texts, Documents, or what else the subject reads.

        Raises:
            CorpusError: There are some.
        """
        check_unseen(documents_of(data), self.fitted, "the selection")

    def to_frame(self) -> pd.DataFrame:
        """One line a latent: why it was chosen."""
        import pandas as pd

        return pd.DataFrame(
            [vars(choice) for choice in self.choices], columns=list(Choice.__dataclass_fields__)
        )

    def figure(self) -> go.Figure:
        """Input score against output score of the chosen latents: the two often disagree."""
        import plotly.graph_objects as go

        known = [choice for choice in self.choices if choice.output_score is not None]
        figure = go.Figure(
            go.Scatter(
                x=[choice.input_score for choice in known], y=[choice.output_score for choice in known],
                text=[str(choice.latent) for choice in known], mode="markers+text",
                textposition="top center", marker={"size": 9, "color": "#0072b2"},
                hovertemplate="latent %{text}<br>input %{x:.3g}<br>output %{y:.3g}<extra></extra>",
            )
        )  # fmt: skip
        return figure.update_layout(
            title=f"{self.hook}: {len(self.choices)} latents by {self.method}", template="plotly_white",
            xaxis_title="input score (standard deviations)", yaxis_title="output score (change by steering)",
            height=420,
        )  # fmt: skip

    __repr__ = headline

    def __str__(self) -> str:
        value, (low, high) = self.auroc, next(iter(self.scores.values())).interval
        sizes = [len(each) for contrast in (self.fit, self.held_out) for each in contrast]
        lines = [
            f"{len(self.choices)} latents at {self.hook} by {self.method!r}, fitted on {sizes[0]} positive "
            f"and {sizes[1]} negative samples",
            f"AUROC {value:.4g} [{low:.4g}, {high:.4g}] on {sizes[2]} + {sizes[3]} held-out samples; "
            + ", ".join(f"{name} {score.control:.4g}" for name, score in self.scores.items()),
            self.to_frame().to_string(index=False, float_format=lambda v: f"{v:.3g}"),
        ]
        return "\n".join([*lines, *(f"{name}: left out, {why}" for name, why in self.left_out.items())])


def documents_of(data: Iterable[Any], corpus: Callable[[Any], Corpus] | None = None) -> list[Document]:
    """Samples as documents.

    Args:
        data: Texts, Documents, or what else a subject reads.
        corpus: The subject's own way; by default texts are texts, and all else is a sample.
    """
    if corpus is not None:
        return list(corpus(data))
    items = list(listed("data", data))
    texts = all(isinstance(item, str | Document | list) for item in items)
    return list(as_corpus(items) if texts else samples(items))


__all__ = ["Choice", "Contrast", "Selected", "documents_of"]
