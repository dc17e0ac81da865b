"""The suite "stability"."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from saelab.analysis.anew import trained
from saelab.analysis.controls import Beside, untrained
from saelab.analysis.probing.gathered import gather
from saelab.analysis.stability import alike, claims
from saelab.analysis.suites.registry import Found, Suite, register
from saelab.arguments import is_listed
from saelab.config import integer
from saelab.types import ConfigError, short

if TYPE_CHECKING:
    import pandas as pd

    from saelab.analysis.sources import Ground
    from saelab.sae import SAE


@register("stability")
@dataclass(frozen=True)
class Stability(Suite):
    """Would another training have found the same dictionary? Cosines of decoder rows: with the nearest of the
    other SAE (MMCS), and with a partner of its own (Hungarian method).

    "this SAE" is it beside one trained anew by its configuration; "seeds" and "halves" are two trained anew,
    on the same rows, or each on its own half of them (the samples of one are not those of the other), always
    from other random weights. They say how stable the recipe is at this budget, which is small. With `others`
    nothing is trained: "others" are this SAE beside each of them.
    """

    others: tuple[Any, ...] = ()
    """SAEs of the same place, such as other seeds of a run; their figures are means over them"""
    steps: int = 100
    """of each training"""
    rows: int = 20_000
    """that are trained on, at most"""
    batch_size: int = 512
    most: int = 4096
    """latents of a dictionary that is matched one to one, at most"""

    def __post_init__(self) -> None:
        from saelab.sae import SAE

        if not is_listed(self.others) or not all(isinstance(each, SAE) for each in self.others):
            message = f"others must be a list of SAEs. Got {short(self.others)}. Pass others=[sae, ...]."
            raise ConfigError(message)
        object.__setattr__(self, "others", tuple(self.others))
        for name in ("steps", "rows", "batch_size", "most"):
            object.__setattr__(self, name, integer(name, getattr(self, name), 1))

    def run(self, sae: SAE, ground: Ground) -> Found:
        """Measure one SAE.

        Args:
            sae: The SAE.
            ground: What it is measured on.

        Raises:
            ConfigError: One of `others` writes another width, or there is one sample for two halves.
        """
        import torch

        signed = sae.sparsifier.signed
        seed = ground.seed
        read = gather(sae, ground, self.rows)
        rows, unit = read.x, read.document
        targets = None if sae.config.d_out is None else read.y
        one, other = (_directions(untrained(sae, rows, targets, seed=seed + i)) for i in (1, 2))
        control = alike(one, other, signed, self.most)
        pairs: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
        own = _directions(sae)
        if self.others:
            for each in self.others:
                if each.d_out != sae.d_out:
                    message = (
                        f"SAEs that are compared must write activations of one width. Got {each.d_out} "
                        f"beside {sae.d_out}. Pass SAEs of the same hook point."
                    )
                    raise ConfigError(message)
            pairs["others"] = [(own, _directions(each)) for each in self.others]
        else:
            half = np.isin(unit, np.unique(unit)[::2])
            if not 0 < half.sum() < len(unit):
                message = f"Data halves need two samples. Got {len(np.unique(unit))}. Pass more of them."
                raise ConfigError(message)
            parts = [torch.from_numpy(each) for each in (half, half, ~half)]
            how: dict[str, Any] = {"steps": self.steps, "batch_size": self.batch_size, "device": sae.device}
            again = []
            for i, part in enumerate(parts):
                of = None if targets is None else targets[part]
                again.append(_directions(trained(sae.config, rows[part], of, seed=seed + 1 + i, **how)))
            pairs = {
                "this SAE": [(own, again[0])],
                "seeds": [(again[0], again[1])],
                "halves": [(again[0], again[2])],
            }
        found: dict[str, Beside] = {}
        tables: dict[str, pd.DataFrame] = {}
        for name, each in pairs.items():
            cosines = [alike(a, b, signed, self.most) for a, b in each]
            matched = [c.matched for c in cosines if c.matched is not None]
            mean = type(cosines[0])(
                np.mean([c.best for c in cosines], 0),
                np.mean(matched, 0) if len(matched) == len(cosines) else None,
            )
            found |= claims(name, mean, control, seed, signed, sae.d_out)
            tables[name] = _table(mean)
        left_out = {}
        if not any(name.endswith("stability") for name in found):
            left_out["stability"] = f"more than {self.most:,} latents: pass a larger most"
        return Found(found, left_out, tables)


def _directions(sae: SAE) -> np.ndarray:
    return sae.W_dec.detach().cpu().double().numpy()


def _table(found: Any) -> pd.DataFrame:
    import pandas as pd

    columns = {"latent": np.arange(len(found.best)), "best": found.best}
    return pd.DataFrame(columns if found.matched is None else {**columns, "matched": found.matched})
