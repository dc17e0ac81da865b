"""Latents that a probe rests on, and what its accuracy is once they are taken out of the activations:
SHIFT's idea (Marks et al. 2024, arXiv 2403.19647), as SAEBench measures it in SCR and TPP.

A document's activation is the mean over its rows. To take a latent out is to subtract z_j d_j from each row,
and so its mean from the document's: the error of the SAE stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from saelab.analysis.probing.claims import RANDOM, SHUFFLED, UNTRAINED
from saelab.analysis.probing.gathered import Gathered, averages, codes_of, directions_of, weighed
from saelab.analysis.probing.linear import Probe, probe_of
from saelab.types import ConfigError

if TYPE_CHECKING:
    from saelab.sae import SAE


@dataclass(frozen=True)
class Pooled:
    """Documents as one SAE sees them."""

    x: np.ndarray
    """float64 [documents d_in]: mean activations"""
    codes: np.ndarray
    """float64 [documents live]: mean codes in raw units, of the latents that are ever on"""
    directions: np.ndarray
    """float64 [live d_in]"""
    latents: np.ndarray
    """int64 [live]: their numbers"""

    def without(self, at: np.ndarray, documents: np.ndarray, like: np.ndarray | None = None) -> np.ndarray:
        """float64 [n d_in]: mean activations of some documents with some latents taken out.

        Args:
            at: int64 [k], places among the live latents.
            documents: int64 [n].
            like: int64 [m], documents whose mean codes are put in their place; None for zeros.
        """
        codes = self.codes[np.ix_(documents, at)]
        if like is not None:
            codes = codes - self.codes[np.ix_(like, at)].mean(0)
        return self.x[documents] - codes @ self.directions[at]


def autoencoder(what: str, sae: SAE) -> None:
    """Refuse what writes elsewhere than it reads. Raises ConfigError."""
    if sae.config.d_out is not None:
        message = f"{what} is of an autoencoder. Got a {sae.config.recipe}. Leave the suite out."
        raise ConfigError(message)


def one_place(what: str, sae: SAE) -> None:
    """Refuse what is no autoencoder of one hook point. Raises ConfigError."""
    if sae.config.d_out is not None or sae.config.widths:
        message = (
            f"{what} is of an autoencoder of one hook point. Got a {sae.config.recipe}. Leave the suite out."
        )
        raise ConfigError(message)


def pooled(sae: SAE, gathered: Gathered, n_documents: int) -> Pooled:
    """The documents of some rows.

    Args:
        sae: The SAE.
        gathered: The rows.
        n_documents: Documents, those without rows among them.
    """
    from scipy.sparse import csc_matrix

    codes = weighed(sae, codes_of(sae, gathered.x), gathered.x)
    mean = averages(gathered.document, n_documents)
    summed: Any = csc_matrix(mean.astype(np.float64) @ codes)
    live = np.flatnonzero(np.diff(summed.indptr))
    x = mean.astype(np.float64) @ gathered.x.double().numpy()
    return Pooled(np.asarray(x), summed[:, live].toarray(), directions_of(sae)[live], live)


def effects(of: Pooled, probe: Probe, positive: np.ndarray, fit: np.ndarray, *, either: bool) -> np.ndarray:
    """float64 [live]: what a latent does to a probe between two kinds of documents, (mean z_j of the positive
    - mean z_j of the others) d_j . w.

    Args:
        of: The documents.
        probe: On their activations.
        positive: bool [documents].
        fit: int64 [n], documents that the means are over.
        either: Its size whatever its sign (SCR); else only of latents that are larger where the label is
            (TPP).
    """
    yes, no = (of.codes[fit[positive[fit] == kind]].mean(0) for kind in (True, False))
    apart = yes - no
    if not either:
        apart = np.maximum(apart, 0)
    found = apart * (of.directions @ probe.direction)
    return np.abs(found) if either else found


def orders(
    arms: Mapping[str, Pooled],
    probe: Probe,
    positive: np.ndarray,
    fit: np.ndarray,
    most: int,
    rng: np.random.Generator,
    *,
    either: bool,
) -> dict[str, np.ndarray]:
    """Arm -> its latents, those that a probe rests on most first: of the SAE (""), of its control, by labels
    that are shuffled among the fitted documents, and drawn at random.

    Args:
        arms: "" -> documents as the SAE sees them, "untrained SAE" -> as its control does.
        probe: Of the label.
        positive: bool [documents], which have it.
        fit: int64 [n], documents that are fitted on.
        most: Latents of each arm.
        rng: Of the draws.
        either: As for `effects`.
    """
    own = arms[""]
    wrong = positive.copy()
    wrong[fit] = rng.permutation(wrong[fit])
    # a probe of the true labels would tell which latents matter, whatever the means are of
    misled = probe_of(own.x[fit], wrong[fit])
    found = {
        name: strongest(effects(of, by, labels, fit, either=either), most)
        for name, of, by, labels in (
            ("", own, probe, positive),
            (UNTRAINED, arms[UNTRAINED], probe, positive),
            (SHUFFLED, own, misled, wrong),
        )
    }
    return found | {RANDOM: rng.permutation(len(own.latents))[:most]}


def strongest(effect: np.ndarray, n: int) -> np.ndarray:
    """int64 [<= n]: the latents of the largest effects above 0."""
    order = np.argsort(-effect, kind="stable")[:n]
    return order[effect[order] > 0]


__all__ = ["Pooled", "autoencoder", "effects", "one_place", "orders", "pooled", "strongest"]
