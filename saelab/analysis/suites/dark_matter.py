"""What is in the error?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from saelab.analysis.dark.measuring import measured
from saelab.analysis.suites.registry import Found, Suite, register

if TYPE_CHECKING:
    from saelab.analysis.sources import Ground
    from saelab.sae import SAE


@register("dark_matter")
@dataclass(frozen=True)
class DarkMatter(Suite):
    """What is in the SAE's error: how much of it is linear in the activations, what gradient pursuit on the
    same decoder avoids at equal L0, and what each part is worth to the subject (arXiv 2410.14670).

    Fields:
        folds: Of documents; each is judged by a map that was fitted to the others.
        pursuit: Whether pursuit is measured.
    """

    folds: int = 5
    pursuit: bool = True

    def run(self, sae: SAE, ground: Ground) -> Found:
        import pandas as pd

        found = measured(sae, ground, self.folds, self.pursuit)
        tables = {"classes": found.classes(ground.seed)}
        if found.losses is not None:
            told = found.losses._asdict()
            tables["losses"] = pd.DataFrame({"with": list(told), "loss": list(told.values())})
        return Found(found.scores, found.left_out, tables)
