"""Whether taking latents away makes a model forget one kind of text, and that alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from saelab.analysis.controls import untrained
from saelab.analysis.probing import labelled
from saelab.analysis.probing.claims import UNTRAINED, Shares, claim, halves, settle
from saelab.analysis.probing.gathered import Gathered, codes_of, directions_of, gather, weighed
from saelab.analysis.probing.removing import one_place
from saelab.analysis.sources import Ground
from saelab.analysis.suites.registry import Found, Suite, register
from saelab.capabilities import HasLoss
from saelab.config import is_number
from saelab.types import ConfigError, short

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

    from saelab.sae import SAE

EQUAL = "random latents of equal firing"
LEAST = 4
"""Documents of a kind, fitted and judged, without which it is left out."""
NEAR = 10
"""Latents nearest in firing, of which a random one is drawn."""


@register("unlearning")
@dataclass(frozen=True)
class Unlearning(Suite):
    """Does a model forget one kind of text where a few latents are turned round, and what else does it lose?

    Of the latents that fire on less than `retain` of the rows of all other documents, the n that fire most on
    those of one kind are clamped wherever they fire, z_j = -strength * (their mean where they fire), in every
    document (Farrell et al. 2024, arXiv 2410.19278, as in SAEBench, which asks questions in place of the
    loss). On held-out documents `forget_n` is what the subject loses more on that kind, in nats a target;
    `retain_n` what it loses more on all others; `unlearned_n` the difference; means over kinds.

    Beside them stand an untrained SAE, whose latents are chosen alike, and latents at random that fire as
    often on all rows.

    Attributes:
        forget: None: each kind or label of documents in turn; a name of one; or what is to be forgotten,
            texts or what else the subject reads, beside which the evaluation's corpus is what should stay.
        ns: Numbers of latents. There may be fewer that fire rarely enough elsewhere.
        strength: Of the clamp; 0 removes them.
        retain: Share of all other rows on which a latent may fire.
        held_out: Share of the documents that judges.
        kinds: How many are forgotten, at most, with forget=None: those of most documents.
        rows: Rows that are read, at most, of either side.

    Raises:
        ConfigError: An option is none of these, no kind has documents enough or a latent of its own, or the
            SAE is a transcoder or crosscoder.
    """

    forget: Any = None
    ns: tuple[int, ...] = (2, 10, 50)
    strength: float = 1.0
    retain: float = 0.01
    held_out: float = 0.3
    kinds: int = 4
    rows: int = 20_000

    needs: ClassVar[tuple[type, ...]] = (HasLoss,)

    def __post_init__(self) -> None:
        settle(self, "ns", "kinds", "rows")
        if not is_number(self.strength) or not 0 <= self.strength < float("inf"):
            message = f"strength must be 0 or more. Got {short(self.strength)}. Pass 1.0, or 0 to remove."
            raise ConfigError(message)
        if not is_number(self.retain) or not 0 < self.retain <= 1:
            message = f"retain must be a share of rows above 0. Got {short(self.retain)}. Pass retain=0.01."
            raise ConfigError(message)

    def run(self, sae: SAE, ground: Ground) -> Found:
        """Measure one SAE.

        Args:
            sae: The SAE.
            ground: What it is measured on.

        Raises:
            ConfigError: No kind can be judged, it is unknown, or the SAE is no autoencoder of one hook point.
            CorpusError: There are no rows.
        """
        one_place("Unlearning", sae)
        gathered, kinds = self._read(sae, ground)
        n = len(gathered.documents)
        judge = halves(n, self.held_out, ground.seed)
        held = [gathered.documents[i] for i in np.flatnonzero(judge).tolist()]
        arms = {"": sae, UNTRAINED: untrained(sae, gathered.x, seed=ground.seed)}
        judged = Ground.of(ground.subject, held, None, ground.batch_size, ground.seed)
        return self._forgotten(arms, gathered, kinds, judge, judged)

    def _read(self, sae: SAE, ground: Ground) -> tuple[Gathered, dict[str, np.ndarray]]:
        """Rows of all documents, and which of these are of each kind."""
        import torch

        gathered = gather(sae, ground, self.rows)
        if self.forget is None or isinstance(self.forget, str):
            named = labelled.names_of(gathered.documents)
            each = {name: np.array([name in own for own in named]) for name in sorted(set().union(*named))}
            each = {name: own for name, own in each.items() if not own.all()}
            wanted = [name for name in each if self.forget in (None, name)]
            most = sorted(wanted, key=lambda name: (-int(each[name].sum()), name))[: self.kinds]
            if not most:
                message = (
                    "What is forgotten must be a kind or label that some documents bear and others do not. "
                    f"Got {short(self.forget)} of {', '.join(each) or 'none'}. Pass one of these, or texts: "
                    "Unlearning(forget=[...])."
                )
                raise ConfigError(message)
            return gathered, {name: each[name] for name in most}
        other = gather(
            sae, Ground.of(ground.subject, self.forget, None, ground.batch_size, ground.seed), self.rows
        )
        first = len(gathered.documents)
        joined = Gathered(
            torch.cat([gathered.x, other.x]),
            torch.cat([gathered.y, other.y]),
            np.concatenate([gathered.document, other.document + first]),
            np.concatenate([gathered.position, other.position]),
            [*gathered.documents, *other.documents],
        )
        return joined, {"what is forgotten": np.arange(len(joined.documents)) >= first}

    def _forgotten(
        self,
        arms: Mapping[str, SAE],
        gathered: Gathered,
        kinds: Mapping[str, np.ndarray],
        judge: np.ndarray,
        judged: Ground,
    ) -> Found:
        import pandas as pd

        rng = np.random.default_rng(judged.seed)
        fit = ~judge[gathered.document]
        codes = {name: weighed(sae, codes_of(sae, gathered.x), gathered.x) for name, sae in arms.items()}
        plans: dict[tuple[str, str], Clamps] = {}
        left_out: dict[str, str] = {}
        for kind, positive in kinds.items():
            sizes = [int((positive[judge == side] == of).sum()) for side in (0, 1) for of in (0, 1)]
            own = clamps(codes[""], fit, positive[gathered.document], self.retain)
            if min(sizes) < LEAST or not len(own.latents):
                left_out[kind] = (
                    f"needs {LEAST} documents of it and as many others, fitted and held out. Got {min(sizes)}"
                    if min(sizes) < LEAST
                    else f"no latent that fires on it fires on less than {self.retain:.1%} of other rows"
                )
                continue
            plans[kind, ""] = own
            plans[kind, UNTRAINED] = clamps(codes[UNTRAINED], fit, positive[gathered.document], self.retain)
            plans[kind, EQUAL] = own.instead(equal_firing(codes[""], fit, own.latents[: max(self.ns)], rng))
        if not plans:
            message = (
                "Unlearning needs documents of a kind, and latents that fire on it and hardly elsewhere. Got "
                f"{short('; '.join(f'{k}: {why}' for k, why in left_out.items()), 300)}. Pass more "
                "documents, or raise retain."
            )
            raise ConfigError(message)
        names = ("", UNTRAINED, EQUAL)
        parts = ("forget", "retain", "unlearned")
        shares = {(part, n, name): Shares() for part in parts for n in self.ns for name in names}
        lines = {kind: {"kind": kind} for kind, name in plans if not name}
        held = np.flatnonzero(judge)
        losses = Losses(arms, judged)
        for (kind, name), plan in plans.items():
            arm = UNTRAINED if name == UNTRAINED else ""
            of = kinds[kind][held]
            for n in self.ns:
                added, targets = losses.added(arm, plan.first(n), self.strength)
                for part, chosen in (("forget", of), ("retain", ~of)):
                    at = np.flatnonzero(chosen & (targets > 0))
                    for each, off in ((part, False), ("unlearned", part == "retain")):
                        shares[each, n, name].add(f"{kind} {part}", at, added[at], of=targets[at], off=off)
                    lines[kind][f"{part} {n}{name and f', {name}'}"] = added[at].sum() / targets[at].sum()
            lines[kind][f"latents{name and f', {name}'}"] = " ".join(map(str, plan.latents[:10]))
        claims = {
            f"{part}_{n}": claim(
                shares[part, n, ""],
                {each: shares[part, n, each] for each in names[1:]},
                judged.seed,
                len(held),
            )
            for n in self.ns
            for part in parts
        }
        return Found(claims, left_out, {"kinds": pd.DataFrame(list(lines.values()))})


class Clamps(NamedTuple):
    """Latents in the order in which they go, and what they are where they fire."""

    latents: np.ndarray
    """int64 [m]"""
    means: np.ndarray
    """float64 [d_sae]: mean code of each latent where it fires, in units of the activations"""

    def first(self, n: int) -> Clamps:
        return Clamps(self.latents[:n], self.means)

    def instead(self, latents: np.ndarray) -> Clamps:
        return Clamps(latents, self.means)


def clamps(codes: csr_matrix, fit: np.ndarray, forget: np.ndarray, retain: float) -> Clamps:
    """The latents that fire on what is forgotten, most often first, and hardly on all else.

    Args:
        codes: [rows d_sae].
        fit: bool [rows], those that count.
        forget: bool [rows], those of what is forgotten.
        retain: Share of the other rows below which a latent must fire.
    """
    on: Any = codes != 0
    rates = [np.asarray(on[fit & side].mean(0)).ravel() for side in (forget, ~forget)]
    score = np.where(rates[1] < retain, rates[0], 0.0)
    order = np.argsort(-score, kind="stable")
    fired = np.asarray(on[fit].sum(0)).ravel()
    means = np.asarray(codes[fit].sum(0), dtype=np.float64).ravel() / np.maximum(fired, 1)
    return Clamps(order[score[order] > 0], means)


def equal_firing(
    codes: csr_matrix, fit: np.ndarray, latents: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """int64 [<= len(latents)]: for each latent another one, of the ten that fire nearest as often.

    Args:
        codes: [rows d_sae].
        fit: bool [rows], those that count.
        latents: int64.
        rng: Of the draws.
    """
    fired = np.asarray((codes[fit] != 0).sum(0)).ravel()
    free = np.setdiff1d(np.flatnonzero(fired), latents)
    found = []
    for latent in latents:
        if not len(free):
            break
        near = np.argsort(np.abs(fired[free] - fired[latent]), kind="stable")[:NEAR]
        found.append(free[rng.choice(near)])
        free = free[free != found[-1]]
    return np.array(found, dtype=np.int64)


class Losses:
    """What a subject loses on some documents, with latents clamped.

    Args:
        arms: "" -> the SAE, others by their names, of the same hook point.
        ground: The documents.
    """

    def __init__(self, arms: Mapping[str, SAE], ground: Ground) -> None:
        self._source: Any = ground.source(arms[""])
        self._blocks = [block for block in self._source.blocks() if len(block.x)]
        n = 1 + max(max(block.samples) for block in self._blocks)
        self.clean, self.targets = np.zeros(n), np.zeros(n)
        for block in self._blocks:
            at = list(block.samples)
            self.clean[at], self.targets[at] = self._source.subject.loss(block.inputs)
        self._directions = {name: directions_of(sae) for name, sae in arms.items()}
        self._codes = {
            name: [
                weighed(sae, codes_of(sae, x), x) for x in (block.x.float().cpu() for block in self._blocks)
            ]
            for name, sae in arms.items()
        }

    def added(self, arm: str, plan: Clamps, strength: float) -> tuple[np.ndarray, np.ndarray]:
        """float64 [documents], of each: what is lost more, in nats, and the number of targets.

        Args:
            arm: Whose latents are clamped.
            plan: Which.
            strength: z_j = -strength * mean where latent j fires.
        """
        import torch

        loss = self.clean.copy()
        for block, codes in zip(self._blocks, self._codes[arm], strict=True):
            own = codes[:, plan.latents].toarray().astype(np.float64)
            if not own.any():
                continue
            change = np.where(own != 0, -strength * plan.means[plan.latents] - own, 0.0)
            rows = block.y + torch.from_numpy(change @ self._directions[arm][plan.latents]).to(block.y)
            loss[list(block.samples)] = self._source.loss(block, rows)
        return loss - self.clean, self.targets


__all__ = ["Unlearning"]
