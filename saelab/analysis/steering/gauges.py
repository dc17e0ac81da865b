"""Gauges of a steering view: how well a gate tells texts apart, and how far edited activations are from
natural ones."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from saelab.analysis.steering.gate import calibrate_gate, drawn
from saelab.analysis.steering.natural import Natural
from saelab.analysis.steering.selected import documents_of
from saelab.analysis.steering.sheets import natural_of
from saelab.arguments import listed
from saelab.types import ConfigError, HookPoint

if TYPE_CHECKING:
    from torch import Tensor

    from saelab.sae import SAE
    from saelab.stores import FeatureStore
    from saelab.types import Subject

NATURAL = 64
"""Texts whose activations say what is natural, at most."""


class Gauges:
    """What a view says of edits by one SAE beside what they do.

    Args:
        subject: A language model.
        sae: Whose latents are edited.
        store: Of the SAE, whose texts say what is natural; without it the clean ones do.
    """

    def __init__(self, subject: Subject, sae: SAE, store: FeatureStore | None = None) -> None:
        self.subject, self.sae, self.store = subject, sae, store
        self.clean: tuple[str, ...] = ()
        self.target: tuple[str, ...] = ()
        self._natural: dict[str, Natural] | None = None
        self._curves: dict[str, dict[str, Any]] = {}

    def calibrated_on(self, clean: Iterable[str], target: Iterable[str]) -> None:
        """Texts by which gates are judged, from now on.

        Args:
            clean: Those that a gate should leave alone.
            target: Those that it should open on.

        Raises:
            ConfigError: One is there without the other.
        """
        self.clean, self.target = tuple(listed("clean", clean)), tuple(listed("target", target))
        if bool(self.clean) != bool(self.target):
            message = (
                f"A gate is calibrated on clean and on target texts. Got {len(self.clean)} and "
                f"{len(self.target)}. Pass both, or neither."
            )
            raise ConfigError(message)
        self._natural, self._curves = None, {}

    def curve(self, edit: Any) -> dict[str, Any]:
        """The curve of a gate, as `calibrate_gate` finds it on the clean and target texts.

        Args:
            edit: A gated edit.

        Returns:
            As `saelab.analysis.steering.gate.drawn`; empty without texts.

        Raises:
            CorpusError: There are fewer than four texts of a kind.
        """
        if not self.clean:
            return {}
        key = json.dumps(edit.to_dict(), sort_keys=True)
        if key not in self._curves:
            found = calibrate_gate(edit, self.clean, self.target, subject=self.subject)
            self._curves[key] = drawn(found)
        return self._curves[key]

    def far(self, hook: HookPoint, rows: Tensor, plain: Tensor) -> dict[str, float]:
        """How far rows [n width] are from natural ones, on average; plain: what they were before."""
        if not len(rows):
            return {"norm": 1.0}
        norm = (rows.norm(dim=-1) / plain.norm(dim=-1).clamp_min(1e-30)).mean()
        natural = self._nature().get(hook.name)
        ratios = {} if natural is None else natural.ratios(rows)
        return {"norm": float(norm)} | {name: float(each.mean()) for name, each in ratios.items()}

    def _nature(self) -> dict[str, Natural]:
        """Natural activations of the hook points that are written, of the store's texts or of clean ones."""
        if self._natural is None:
            texts = list(self.clean)
            if self.store is not None:
                texts = [record.text for record in self.store.documents(range(NATURAL)).values()]
            documents = documents_of([text for text in texts[:NATURAL] if text], self.subject.corpus)
            hooks = list(dict.fromkeys(self.sae.writes))
            self._natural = natural_of(self.subject, documents, hooks, 16) if documents else {}
        return self._natural


__all__ = ["Gauges"]
