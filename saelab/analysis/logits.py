"""The direct path from a latent to the output tokens."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from saelab.analysis.results import LogitLens
from saelab.arguments import an_integer, an_sae, checked, full_sae, listed
from saelab.config import integer
from saelab.stores.lenses import Lenses, keep, read
from saelab.types import RangeError

if TYPE_CHECKING:
    import numpy as np

    from saelab.sae import SAE
    from saelab.stores import FeatureStore
    from saelab.types import Subject


@checked(sae=an_sae, n=an_integer())
def logit_lens(sae: SAE, subject: Any, latent: int, n: int = 10) -> LogitLens:
    """Tokens that a latent's decoder row raises and lowers most by the direct path to the logits.

    logits = norm'(W_dec[latent]) @ W_U, its mean over the vocabulary removed, where norm' is the linear part
    of the final normalisation (centring for LayerNorm, and the elementwise gain); the division by the norm
    depends on the text and is left out. Latents on `hook_z` pass through the layer's output projection first
    (nostalgebraist 2020, "interpreting GPT: the logit lens"; for SAE latents Bricken et al. 2023).

    Args:
        sae: Its decoder rows are what latents write.
        subject: A model with logits.
        latent: Its number.
        n: Tokens on each side.

    Raises:
        RangeError: The latent is out of range.
        HookError: The hook point does not write to the residual stream.
    """
    latent = integer("latent", latent, 0, sae.config.d_sae - 1, error=RangeError)
    return logit_lenses(sae, subject, [latent], n)[0]


def logit_lenses(sae: SAE, subject: Any, latents: list[int], n: int = 10) -> list[LogitLens]:
    """`logit_lens` of many latents by one product. Raises HookError."""
    from saelab.harvesting.lenses import lenses_of

    found = lenses_of(sae, subject, sorted(set(latents)), n)
    return [LogitLens(j, *lens) for j in latents if (lens := found.of(j)) is not None]


@checked(sae=full_sae, latents=listed)
def direct_logits(sae: SAE, subject: Any, latents: list[int]) -> np.ndarray:
    """Direct effect on the logits of one unit of each latent; rows have mean 0.

    Args:
        sae: Its decoder rows are what latents write.
        subject: A model with logits.
        latents: Their numbers.

    Returns:
        float32 [len(latents) d_vocab].
    """
    from saelab.harvesting.lenses import direct_effects

    most = sae.W_dec.shape[0] - 1
    latents = [integer("latent", latent, 0, most, error=RangeError) for latent in latents]
    return direct_effects(sae, subject, latents).cpu().numpy()


class KeptLenses:
    """The lenses that are kept with a store; the model is asked for those that are not, and these are kept in
    blocks: to write them card by card takes several times as long as to find them.

    Args:
        store: Of the SAE.
        sae: Gives the SAE; None: there are no others than those that are kept.
        subject: Gives the model; None as well.
    """

    def __init__(
        self,
        store: FeatureStore,
        sae: Callable[[], SAE] | None = None,
        subject: Callable[[], Subject] | None = None,
    ) -> None:
        self._store, self._sae, self._subject = store, sae, subject
        self._known: Lenses | None = None
        self._new = _Unwritten(store)
        self._asked = False
        # with the kernel, or with the Lab
        weakref.finalize(self, self._new.write)

    def __call__(self, latents: Sequence[int]) -> dict[int, LogitLens]:
        """Latent -> its lens, of those that have one."""
        if self._known is None:
            self._known = read(self._store)
        missing = self._new.lenses.lacks(self._known.lacks(list(latents)))
        if missing and self._sae is not None and self._subject is not None:
            self._known = self._find(self._known, missing, self._sae(), self._subject())
        found = {j: self._known.of(j) or self._new.lenses.of(j) for j in latents}
        return {j: LogitLens(j, *lens) for j, lens in found.items() if lens is not None}

    def _find(self, known: Lenses, missing: list[int], sae: SAE, subject: Subject) -> Lenses:
        """Ask the model; what is known of all that are kept then."""
        from saelab.harvesting.lenses import BLOCK, keep_lenses, lenses_of

        if not self._asked:  # whether all are found in no time is tried once
            self._asked = True
            return keep_lenses(self._store, sae, subject, missing)
        self._new.lenses = self._new.lenses.with_(lenses_of(sae, subject, missing))
        if len(self._new.lenses.latents) < BLOCK:
            return known
        found = known.with_(self._new.lenses)
        self._new.write()
        return found


class _Unwritten:
    """Lenses that are not kept yet."""

    def __init__(self, store: FeatureStore) -> None:
        self._store, self.lenses = store, Lenses.none()

    def write(self) -> None:
        """Keep them, beside those that others kept meanwhile."""
        if len(self.lenses.latents) and self._store.folder.is_dir():
            keep(self._store, read(self._store).with_(self.lenses))
        self.lenses = Lenses.none()
