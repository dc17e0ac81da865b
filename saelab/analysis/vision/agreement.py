"""Whether several generators lose and exaggerate the same."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from saelab.analysis.controls import CONFIDENCE, OWN, Beside, Control
from saelab.analysis.vision.blindspots import differences, drawn_weights
from saelab.analysis.vision.codes import NEURONS, UNTRAINED, Energies, read
from saelab.arguments import a_subject, an_integer, checked, full_sae, mapping, maybe
from saelab.errors import headline
from saelab.types import ConfigError, CorpusError

if TYPE_CHECKING:
    import pandas as pd

    from saelab.sae import SAE
    from saelab.types import Subject

NULL = "two samples of real images"


@dataclass(frozen=True, eq=False)
class GeneratorAgreement:
    """How alike the relative differences of generators are."""

    generators: tuple[str, ...]
    latents: np.ndarray
    """int64 [m]: alive in all that is compared"""
    relative: np.ndarray
    """float64 [generators m]: r_k of each"""
    figures: Mapping[str, Beside]
    """"a, b" -> Pearson's correlation of their r_k over latents, beside that of two samples of real images
    held against a third, which agree by the noise of what they are held against; and by the controls"""
    apart: Mapping[str, Beside]
    """the same with each generator held against a half of the real images of its own, which share no noise:
    about 0 for two samples of real images"""

    def to_frame(self) -> pd.DataFrame:
        """One line for each pair: correlation with its 95 % interval, that of real images, and both with
        halves of their own."""
        import pandas as pd

        lines = []
        for name, shared in self.figures.items():
            own = self.apart[name]
            told = {"r": shared.value, "from": shared.interval[0], "to": shared.interval[1]}
            halves = {"r_apart": own.value, "apart_from": own.interval[0], "apart_to": own.interval[1]}
            real = {"real_images": shared.control, "real_images_apart": own.control}
            lines.append({"pair": name} | told | halves | real)
        return pd.DataFrame(lines)

    __repr__ = headline

    def __str__(self) -> str:
        head = f"Agreement of {len(self.generators)} generators over {len(self.latents):,} latents"
        lines = [f"  {name}: {figure}" for name, figure in self.figures.items()]
        lines += [f"  {name}, real images apart: {figure}" for name, figure in self.apart.items()]
        return "\n".join([head, *lines])


@checked(
    generated=mapping, sae=maybe(full_sae), subject=maybe(a_subject), least=an_integer(1),
    splits=an_integer(1), seed=an_integer(), batch_size=an_integer(1),
)  # fmt: skip
def generator_agreement(
    real: Any,
    generated: Mapping[str, Any],
    sae: SAE | None = None,
    subject: Subject | None = None,
    *,
    least: int = 5,
    splits: int = 20,
    seed: int = 0,
    batch_size: int = 16,
) -> GeneratorAgreement:
    """Pearson's correlation of the relative differences of each two generators (Bohacek et al., arXiv
    2506.19708), beside what shared real images alone bring: r_k of both is held against the same images,
    whose noise is in both.

    Args:
        real: As of `blindspots`.
        generated: Name of each generator -> its images.
        sae: By which all are read; none with codes.
        subject: That reads them; none with codes or activations.
        least: Images of each set in which a latent fires, to be compared.
        splits: Of the real images, over which controls are means.
        seed: Of the draws.
        batch_size: Images of a pass.

    Returns:
        The correlation of each pair, with intervals over images drawn anew.

    Raises:
        ConfigError: Fewer than two generators, nothing to read them by, or codes by different SAEs.
        CorpusError: Fewer than six real images, or no latent that fires in all.
    """
    if len(generated) < 2:
        message = f"Generators must be two or more. Got {len(generated)}. Pass {{name: images}} of each."
        raise ConfigError(message)
    options: dict[str, Any] = {"batch_size": batch_size, "seed": seed}
    one = read("real", real, sae, subject, None, **options)
    if len(one) < 6:
        message = f"real must hold at least 6 documents. Got {len(one)}. Pass more."
        raise CorpusError(message)
    sets = {str(n): read(f"generated[{n!r}]", g, sae, subject, one, **options) for n, g in generated.items()}
    arms = {}
    for arm in (OWN, UNTRAINED, NEURONS):
        arms[arm] = _Arm(one.arms[arm], [each.arms[arm] for each in sets.values()], least)
    own = arms[OWN]
    if len(own.latents) < 3:
        message = (
            f"At least 3 latents must fire in {least} images of each set. Got {len(own.latents)}. Pass more "
            "images, or a lower least."
        )
        raise CorpusError(message)
    figures, apart = {}, {}
    null = own.null(splits, seed)
    for i, j in itertools.combinations(range(len(sets)), 2):
        name = ", ".join(list(sets)[k] for k in (i, j))
        also, also_apart = [], []
        for control in (UNTRAINED, NEURONS):
            each = arms[control]
            also.append(Control(control, each.shared(i, j), each.interval(i, j, seed)))
            halves = each.halves(i, j, splits, seed)
            also_apart.append(Control(control, float(halves.mean()), _ends(halves)))
        halves = own.halves(i, j, splits, seed)
        n, ends = len(own.latents), own.interval(i, j, seed)
        figures[name] = Beside(
            own.shared(i, j), float(null[0].mean()), ends, _ends(null[0]), n, NULL, tuple(also)
        )
        apart[name] = Beside(
            float(halves.mean()), float(null[1].mean()), _ends(halves), _ends(null[1]), n, NULL,
            tuple(also_apart),
        )  # fmt: skip
    return GeneratorAgreement(tuple(sets), own.latents, own.relative(), figures, apart)


class _Arm:
    """Energies by one kind of codes, of latents that fire in all sets."""

    def __init__(self, real: Energies, generated: list[Energies], least: int) -> None:
        fires = [np.asarray((each != 0).sum(0)).ravel() >= least for each in (real, *generated)]
        self.latents = np.flatnonzero(np.all(fires, axis=0))
        self.real = real[:, self.latents]
        self.generated = [each[:, self.latents] for each in generated]

    def relative(self) -> np.ndarray:
        """float64 [generators m]"""
        return np.stack([differences(_mean(self.real), _mean(each))[1] for each in self.generated])

    def shared(self, i: int, j: int) -> float:
        """Of both held against all real images."""
        found = self.relative()
        return _pearson(found[i], found[j])

    def halves(self, i: int, j: int, splits: int, seed: int) -> np.ndarray:
        """float64 [splits]: of each held against its own half."""
        one, two = self.generated[i], self.generated[j]
        return np.array([
            _pearson(_r(a, one), _r(b, two)) for a, b in self._split(2, splits, seed)
        ])  # fmt: skip

    def null(self, splits: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Of two samples of real images: held against a third, and each against one of its own."""
        shared = [_pearson(_r(c, a), _r(c, b)) for a, b, c in self._split(3, splits, seed)]
        apart = [_pearson(_r(c, a), _r(d, b)) for a, b, c, d in self._split(4, splits, seed)]
        return np.array(shared), np.array(apart)

    def interval(self, i: int, j: int, seed: int) -> tuple[float, float]:
        """Images of all three drawn anew."""
        rng = np.random.default_rng(seed)
        sides = (self.real, self.generated[i], self.generated[j])
        means = [np.asarray(side.T @ drawn_weights(rng, side.shape[0]).T) for side in sides]
        first, second = (differences(means[0], each)[1].T for each in means[1:])
        return _ends(np.array([_pearson(a, b) for a, b in zip(first, second, strict=True)]))

    def _split(self, parts: int, splits: int, seed: int) -> Any:
        for split in range(splits):
            order = np.random.default_rng([seed, split]).permutation(self.real.shape[0])
            yield [self.real[np.sort(each)] for each in np.array_split(order, parts)]


def _mean(each: Energies) -> np.ndarray:
    return np.asarray(each.mean(0), np.float64).ravel()


def _r(real: Energies, generated: Energies) -> np.ndarray:
    return differences(_mean(real), _mean(generated))[1]


def _pearson(one: np.ndarray, two: np.ndarray) -> float:
    known = np.isfinite(one) & np.isfinite(two)
    if known.sum() < 3:
        return float("nan")
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.corrcoef(one[known], two[known])[0, 1])


def _ends(values: np.ndarray) -> tuple[float, float]:
    tail, known = 50 * (1 - CONFIDENCE), values[np.isfinite(values)]
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.percentile(known, [tail, 100 - tail])
    return float(low), float(high)


__all__ = ["GeneratorAgreement", "generator_agreement"]
