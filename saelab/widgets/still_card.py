"""What stands on a card beside its windows, as it stands: what sets the latent apart, and what is near it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from saelab.analysis.results import FeatureCard
from saelab.analysis.results_near import Relatives
from saelab.widgets import still

TIMES = "\N{MULTIPLICATION SIGN}"
MOST = 5
"""Of each kind, at most."""


def apart(result: FeatureCard) -> str:
    """What sets a latent apart, with its lift.

    Args:
        result: The card.
    """
    titles = ("Set apart by", "Negative pole set apart by")
    return "".join(
        _part(title, (f"{each.name} {TIMES}{each.lift:.3g}" for each in told[:MOST]))
        for title, told in zip(titles, (result.tokens, result.bottom_tokens), strict=True)
        if told
    )


def near(result: Relatives) -> str:
    """What is near a latent, each kind beside what chance gives.

    Args:
        result: Of the latent.
    """
    parts: list[tuple[str, Sequence[str]]] = [
        (
            f"Similar directions (cosine; chance {result.similar_chance:.2f}, "
            f"usual {result.similar_usual:.2f})",
            [f"#{s.latent} {s.cosine:+.2f}" for s in result.similar[:MOST]],
        ),
        (
            "Fires with (rows, of expected)",
            [f"#{t.latent} {t.count:,} ({t.expected:.3g})" for t in result.together[:MOST]],
        ),
        (
            "Same tokens, near direction (rows where both fire, for those that the tokens give)",
            [f"#{h.latent} {h.kind}: {h.count:,} for {h.expected:.3g}" for h in result.hints[:MOST]],
        ),
        (
            f"Neurons (the largest has {result.aligned[0]:.1%} of the squared norm, "
            f"chance {result.aligned_chance[0]:.1%})",
            [f"{n.neuron} {n.weight:+.2f}" for n in result.neurons[:MOST]],
        ),
        (
            "Labels (scores as their judges gave them, without a control)"
            if any(scores for _, _, scores in result.labels[-MOST:])
            else "Labels",
            [_label(*each) for each in result.labels[-MOST:]],
        ),
    ]
    return "".join(_part(title, shown) for title, shown in parts if shown)


def _label(label: str, source: str, scores: Mapping[str, float]) -> str:
    judged = "".join(f", {name} {value:.2f}" for name, value in scores.items())
    return f"{label[: still.LABEL]} ({source}{judged})"


def _part(title: str, shown: Iterable[str]) -> str:
    items = "; ".join(map(still.escaped, shown))
    return f"<div><b>{still.escaped(title)}</b> {items}</div>"


__all__ = ["apart", "near"]
