"""What analysis returns: frozen records with a text form, and a table or figure where one says more.

Arrays are numpy, so that a result can be kept, compared and shown without the model that it came from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from saelab.analysis.texts import sample_text, shows, window_line
from saelab.arguments import an_integer, checked
from saelab.errors import headline, short
from saelab.layout import Layout, Part
from saelab.stores.naming import Telling
from saelab.stores.records import DocumentRecord, Example, LatentStats
from saelab.types import Codes, ConfigError, RangeError, Shown

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Examples:
    """Windows of one latent: strongest first, of its values > 0 ("top") or < 0 ("bottom"), or from weak to
    strong, spread over the range of its |value|s ("quantile")."""

    latent: int
    kind: str
    windows: tuple[Example, ...]

    def to_frame(self) -> pd.DataFrame:
        """One line for each window: value, document, position, call, text (what its rows show, joined; of a
        picture, the place that fires)."""
        import pandas as pd

        columns = ["value", "document", "position", "call", "text"]
        rows = [(w.value, w.document, w.position, w.call, shows(w)) for w in self.windows]
        return pd.DataFrame(rows, columns=columns)

    def lines(self, documents: Mapping[int, DocumentRecord] | None = None) -> list[str]:
        """A line for each window: its value, and its rows with the one that fires in brackets; of a picture,
        which it is and where it fires.

        Args:
            documents: of windows, by number; see `FeatureCard.documents`.
        """
        return [window_line(w, (documents or {}).get(w.document)) for w in self.windows]

    __repr__ = headline

    def __str__(self) -> str:
        return "\n".join(self.lines()) or f"latent {self.latent}: no {self.kind} examples"


@dataclass(frozen=True)
class LogitLens:
    """Direct effect of a latent's decoder row on the logits: W_dec[latent] @ W_U, its mean removed."""

    latent: int
    top: tuple[tuple[str, float], ...]
    """(token, logit per unit of code), largest first"""
    bottom: tuple[tuple[str, float], ...]
    """(token, logit per unit of code), smallest first"""
    spread: float
    """standard deviation over the vocabulary: the yardstick for the values above"""

    def to_frame(self) -> pd.DataFrame:
        """One row a token: token, logit, end ("top" or "bottom")."""
        import pandas as pd

        rows = [(t, v, "top") for t, v in self.top] + [(t, v, "bottom") for t, v in self.bottom]
        return pd.DataFrame(rows, columns=["token", "logit", "end"])

    __repr__ = headline

    def __str__(self) -> str:
        def line(pairs: tuple[tuple[str, float], ...]) -> str:
            return "  ".join(f"{t!r} {v:+.2f}" for t, v in pairs)

        head = f"latent {self.latent}"
        return f"{head} raises {line(self.top)}\n{' ' * len(head)} lowers {line(self.bottom)}"


@dataclass(frozen=True)
class FeatureCard:
    """Everything that a card shows of one latent."""

    stats: LatentStats
    top: Examples
    quantile: Examples
    lens: LogitLens | None = None
    """None where the hook point does not write to the residual stream, or no model is at hand"""
    label: str = ""
    bottom: Examples | None = None
    """of the negative pole; None where the latent is never negative"""
    documents: Mapping[int, DocumentRecord] = field(default_factory=dict)
    """by number those of the windows that are more than their rows' names: with a grid or a picture"""
    tokens: tuple[Telling, ...] = ()
    """what sets it apart (its positive pole, where it has two), the largest lift first"""
    bottom_tokens: tuple[Telling, ...] = ()
    """what sets the negative pole apart"""

    @property
    def latent(self) -> int:
        """Its number."""
        return self.stats.latent

    def to_frame(self) -> pd.DataFrame:
        """One line for each window, the strongest first, of "top", "quantile" and "bottom": kind, and what
        `Examples.to_frame` has."""
        import pandas as pd

        kinds = {"top": self.top, "quantile": self.quantile, "bottom": self.bottom}
        parts = {kind: examples.to_frame() for kind, examples in kinds.items() if examples is not None}
        return pd.concat(parts, names=["kind"]).reset_index("kind").reset_index(drop=True)

    __repr__ = headline

    def __str__(self) -> str:
        def told(examples: Examples) -> str:
            return "\n".join(examples.lines(self.documents)) or str(examples)

        lines = [str(self.stats) + (f"  «{self.label}»" if self.label else ""), told(self.top)]
        if self.bottom is not None:
            lines[1:] = ["positive pole", told(self.top), "negative pole", told(self.bottom)]
        for by, tokens in (("set apart by", self.tokens), ("negative pole by", self.bottom_tokens)):
            if tokens:
                lines.append(f"{by} (lift) " + "  ".join(f"{t.name!r} {t.lift:.3g}" for t in tokens))
        if self.lens is not None:
            lines += ["logits per unit of the positive pole"] * (self.bottom is not None) + [str(self.lens)]
        return "\n".join(lines)


@dataclass(frozen=True)
class SampleCodes:
    """One sample (a text, an image, a list of items), what its positions show, and the codes of every latent
    on each."""

    document: DocumentRecord
    """text, layout, labels and picture"""
    shown: tuple[Shown, ...]
    """facet and name of each position"""
    codes: Codes
    """[len(shown) d_sae]"""
    counted: np.ndarray
    """bool [len(shown)]: False for positions that statistics leave out, such as BOS"""
    calls: int = 1
    """of the module in a pass; the positions of one call come after those of another"""
    starts: tuple[int, ...] = ()
    """where the model read anew: the positions at which the parts begin of a text beyond its context, but the
    first"""

    @property
    def parted(self) -> str:
        """In how many parts it was read; "" where in one."""
        parts = len(self.starts) + 1
        return f"longer than the model's context: read in {parts} parts, each without the others" * (
            parts > 1
        )

    @property
    def text(self) -> str:
        """What the names show together."""
        return self.document.text

    @property
    def names(self) -> list[str]:
        """What each position shows."""
        return [each.name for each in self.shown]

    @property
    def layout(self) -> Layout:
        """How the positions of one call lie."""
        return Layout.parse(self.document.layout)

    def parts(self) -> list[Part]:
        """What the positions of one call are made of, in order."""
        return self.layout.parts(0, len(self.shown) // self.calls)

    @checked(position=an_integer(), n=an_integer())
    def top(self, position: int, n: int = 5) -> list[tuple[int, float]]:
        """The strongest latents at a position.

        Args:
            position: In the sample, from 0.
            n: At most so many.

        Returns:
            (latent, value), the largest |value| first.

        Raises:
            RangeError: The sample has no such position.
        """
        if position >= len(self.shown):
            message = f"position must be below {len(self.shown)}. Got {position}. Pass one of the sample."
            raise RangeError(message)
        latents, values = self.codes.row(position)
        order = np.argsort(-np.abs(values), kind="stable")[:n]
        return [(int(latents[i]), float(values[i])) for i in order]

    @checked(latent=an_integer())
    def of(self, latent: int) -> np.ndarray:
        """float32 [len(shown)]: one latent along the sample."""
        out = np.zeros(len(self.shown), dtype=np.float32)
        at = self.codes.indices == latent
        out[self.codes.row_ids()[at]] = self.codes.values[at]
        return out

    def to_frame(self) -> pd.DataFrame:
        """One line for each code that is not 0: position, facet, name, latent, value."""
        import pandas as pd

        position = self.codes.row_ids()
        shown = [self.shown[i] for i in position]
        return pd.DataFrame({
            "position": position, "facet": [s.facet for s in shown], "name": [s.name for s in shown],
            "latent": self.codes.indices, "value": self.codes.values,
        })  # fmt: skip

    __repr__ = headline

    def __str__(self) -> str:
        return sample_text(self)


@dataclass(frozen=True)
class Changed:
    """What becomes of a model's predictions where activations are changed, and with a control. All float32
    [n], in nats, NaN where nothing is predicted."""

    loss: np.ndarray
    """of each token, in the changed model"""
    kl: np.ndarray
    """KL(model || changed model) of the prediction of each token"""
    control: str
    """what the control is"""
    control_loss: np.ndarray
    control_kl: np.ndarray


class Layer(NamedTuple):
    """Something that is known of each position of a text, as a colour shows it."""

    name: str
    """one of `LAYERS`"""
    title: str
    unit: str
    note: str
    """what it is, in words"""
    values: np.ndarray
    """float32 [n], NaN where there is none"""
    mean: float
    control: float
    """the mean of what it stands beside"""
    beside: str
    """what that is"""


LAYERS = {
    "loss": "loss",
    "log_probability": "log-probability",
    "entropy": "entropy of the prediction",
    "sae_kl": "KL by the SAE",
    "sae_loss": "loss added by the SAE",
    "edits_kl": "KL by the edits",
    "edits_loss": "loss added by the edits",
}
"""Names of the layers of a text beside its latents -> what they are called."""
UNITS = {"nats": 1.0, "bits": math.log(2)}
"""Units of a loss -> how many nats one is."""


@dataclass(frozen=True)
class Predictions:
    """How a language model predicts each position of a text. All float32 [n], in nats, NaN at positions that
    nothing is before."""

    loss: np.ndarray
    """-log p(token | before)"""
    entropy: np.ndarray
    """of p(. | before): the loss that the model itself expects there"""
    sae: Changed | None = None
    """with the reconstruction of an SAE in the activation's place"""
    edits: Changed | None = None
    """with edits"""

    @property
    def names(self) -> list[str]:
        """The layers that there are."""
        known = {"sae": self.sae, "edits": self.edits}
        return [name for name in LAYERS if known.get(name.partition("_")[0], self) is not None]

    def layer(self, name: str, unit: str = "nats") -> Layer:
        """One layer, in a unit.

        Args:
            name: One of `names`.
            unit: "nats" or "bits".

        Raises:
            ConfigError: There is no such layer, or unit.
        """
        for what, value, known in (("layer", name, self.names), ("unit", unit, list(UNITS))):
            if not isinstance(value, str) or value not in known:
                message = f"{what} must be one of {', '.join(known)}. Got {short(value)}. Pass one of them."
                raise ConfigError(message)
        arm = self.sae if name.startswith("sae_") else self.edits
        who = (
            "with the SAE's reconstruction in the activation's place" if arm is self.sae else "with the edits"
        )
        if name == "loss":
            values, control, note = (
                self.loss,
                self.entropy,
                "how surprising the token is: minus log p(token | what is before it)",
            )
            beside = "expected by the model itself (entropy)"
        elif name == "log_probability":
            values, control, note = -self.loss, -self.entropy, "log p(token | what is before it)"
            beside = "expected by the model itself (minus entropy)"
        elif name == "entropy":
            values, control, note = (
                self.entropy,
                self.loss,
                "of the prediction: the loss that the model expects",
            )
            beside = "the loss that came"
        elif arm is None:  # `names` has it not
            raise AssertionError(name)
        elif name.endswith("_kl"):
            values, control, beside = arm.kl, arm.control_kl, arm.control
            note = f"KL(model ‖ model {who}) of the prediction of each token"
        else:
            values, control, beside = arm.loss - self.loss, arm.control_loss - self.loss, arm.control
            note = f"loss of the model {who} minus loss of the model"
        scale = np.float32(1 / UNITS[unit])
        means = [float(np.nanmean(each)) * float(scale) if np.isfinite(each).any() else math.nan
                 for each in (values, control)]  # fmt: skip
        return Layer(name, LAYERS[name], unit, note, values * scale, means[0], means[1], beside)

    def to_frame(self) -> pd.DataFrame:
        """One line for each position, one column for each layer, in nats."""
        import pandas as pd

        return pd.DataFrame({name: self.layer(name).values for name in self.names})

    def __repr__(self) -> str:
        mean = self.layer("loss").mean
        return f"Predictions({len(self.loss):,} positions, mean loss {mean:.3f} nats)"


@dataclass(frozen=True)
class Difference:
    """How latents differ between two samples, or between one and itself with edits."""

    first: SampleCodes
    second: SampleCodes
    pairs: np.ndarray
    """int64 [m 2]: positions of the first and of the second that stand for each other, ascending"""
    titles: tuple[str, str]
    """what they are"""
    latents: np.ndarray
    """int64 [k]: those that differ, most first"""
    size: np.ndarray
    """float64 [k]: sum of |differences| over the places, by their number. A place is a pair of positions, or
    a position that has no partner, where the other's value counts 0; those that are no rows are left out"""
    control: np.ndarray
    """float64 [k]: the same of the first and a control"""
    beside: str
    """what the control is"""

    def to_frame(self) -> pd.DataFrame:
        """One line for each latent that differs, most first: latent, difference, control."""
        import pandas as pd

        return pd.DataFrame({"latent": self.latents, "difference": self.size, "control": self.control})

    def __repr__(self) -> str:
        return f"Difference({len(self.pairs):,} places alike, {len(self.latents):,} latents differ)"

    def __str__(self) -> str:
        lines = [
            f"{self.titles[0]} against {self.titles[1]}; mean |difference| a place, beside {self.beside}"
        ]
        some = zip(self.latents[:20], self.size, self.control, strict=False)
        return "\n".join(lines + [f"{j:>8}  {size:.4f}  {control:.4f}" for j, size, control in some])


@dataclass(frozen=True)
class LatentTable:
    """One line a latent, for the browser over all of them. Arrays are all [d_sae]."""

    count: np.ndarray
    density: np.ndarray
    mean: np.ndarray
    min: np.ndarray
    max: np.ndarray
    names: tuple[str, ...]
    """a label, or what sets it apart, by pole where it has two; "" where nothing does"""
    absent: frozenset[int] = frozenset()
    """latents of which the store knows nothing, one that was made of an export; 0 and "not in the export" """

    @property
    def dead(self) -> int:
        """How many never fire, of those that the store knows."""
        return int((self.count == 0).sum()) - len(self.absent)

    @property
    def signed(self) -> bool:
        """Whether any latent is ever negative."""
        return bool((self.min < 0).any())

    def to_frame(self) -> pd.DataFrame:
        """One line for each latent: latent, name, count, density, mean, min, max."""
        import pandas as pd

        columns = {name: getattr(self, name) for name in ("count", "density", "mean", "min", "max")}
        return pd.DataFrame({"latent": np.arange(len(self)), "name": self.names, **columns})

    def telling(self) -> int | None:
        """A latent to begin reading with: of those that fire on at most 1 % of the rows, but on 20 at least,
        and have a name, the most frequent; where there is none, the most frequent of all; None of dead ones.
        """
        named = np.array([bool(name) for name in self.names], bool)
        some = named & (self.count >= 20) & (self.density <= 0.01)
        density = np.where(some, self.density, 0) if some.any() else self.density
        best = int(density.argmax()) if len(self) else 0
        return best if len(self) and self.count[best] else None

    def __len__(self) -> int:
        return len(self.count)

    def __repr__(self) -> str:
        unknown = f", {len(self.absent):,} not in the export" if self.absent else ""
        return f"LatentTable({len(self):,} latents, {self.dead:,} never fire{unknown})"
