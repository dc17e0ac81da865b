"""What a generator shows too rarely or too often: latents by their difference, with images of either side."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import traitlets

from saelab.types import ConfigError, short
from saelab.widgets import still
from saelab.widgets.base import View
from saelab.widgets.questions import Ask
from saelab.widgets.source import HasSources
from saelab.widgets.wire import Packed, clean, picture, rounded, told_claim

SHOWN = 12
"""Latents of either end of which a page, and the view as it stands, hold the images."""
WAYS = ("flagged", "lost", "boosted", "all")


class BlindspotsView(View):
    """Latents by how much less or more a generator shows them, with intervals and false-discovery rates; of a
    chosen one the real and the generated images that have most of it, side by side. What is flagged stands
    beside what is flagged of held-out real images, by an untrained SAE and by raw neurons.

    Choosing a latent chooses it in every linked view.

    Args:
        result: Of `saelab.analysis.blindspots`.
        images: Small pictures of the real and of the generated images, by their numbers; of none where they
            are not at hand.
        named: Gives what latents are called, by number.
        options: See `View`.

    Attributes:
        way: Which are listed: "flagged", "lost", "boosted" or "all".

    Raises:
        ConfigError: The result is another, or an option is unknown.
    """

    kind = "blindspots"
    follows = ("latent",)

    way = traitlets.Enum(WAYS, "flagged").tag(sync=True)

    def __init__(
        self,
        result: Any,
        images: tuple[Mapping[int, bytes], Mapping[int, bytes]] = ({}, {}),
        named: Callable[[], Mapping[int, str]] = dict,
        **options: Any,
    ) -> None:
        if not hasattr(result, "strongest") or not hasattr(result, "spots"):
            message = (
                f"lab.blindspots shows what saelab.analysis.blindspots gives. Got {short(result)}. Pass "
                "that, or show other results by lab.report."
            )
            raise ConfigError(message)
        self.result, self.images, self.named = result, images, named
        super().__init__(**options)

    @staticmethod
    def of(
        lab: HasSources, result: Any, real: Any = None, generated: Any = None, *, sae: str | None = None
    ) -> BlindspotsView:
        """What a generator shows too rarely or too often, latent by latent, with images of either side.

        >>> found = saelab.analysis.blindspots(real, generated, lab.sae, lab.subject)  # doctest: +SKIP
        >>> lab.blindspots(found, real, generated)  # doctest: +SKIP

        Args:
            lab: whose latents they are.
            result: Of `saelab.analysis.blindspots`.
            real: The real images that were read, a corpus of `saelab.corpora` or what makes one, for their
                pictures; without them there are none.
            generated: Likewise.
            sae: Name of the SAE; None: the chosen one.

        Raises:
            ConfigError: The result is none of `blindspots`.
            CorpusError: Other images than those that were read.
        """
        source = lab.source(sae)
        find = getattr(result, "pictures", lambda *corpora: ({}, {}))  # what is no result is refused below
        return BlindspotsView(
            result, find(real, generated), source.questions["labels"], selection=source.selection,
            edits=source.edits,
        )  # fmt: skip

    def answers(self) -> Mapping[str, Callable[..., Packed]]:
        return {"spots": self._spots, "pair": self._pair}

    def first(self) -> Iterable[Ask]:
        return [Ask("spots")]

    def exported(self) -> Iterable[Ask]:
        order = self._order()
        ends = dict.fromkeys([*order[:SHOWN], *order[::-1][:SHOWN]])
        latents = self.result.spots.latents
        return [Ask("spots"), *(Ask("pair", {"latent": int(latents[i])}) for i in ends)]

    def text(self) -> str:
        return str(self.result)

    def html(self) -> str:
        frame = self.result.to_frame().query("flag != ''")
        columns = ["latent", "called", "r", "95 % interval", "q", ""]
        names = self.named()
        lines = [
            [f"#{line.latent}", names.get(line.latent, "")[:60], f"{line.relative:+.3f}",
             f"{line.relative_from:+.3f} to {line.relative_to:+.3f}", f"{line.q:.3g}", line.flag]
            for line in (*frame.head(SHOWN).itertuples(), *frame.iloc[SHOWN:].tail(SHOWN).itertuples())
        ]  # fmt: skip
        said = [still.note(f"{name}: {figure}") for name, figure in self.result.figures.items()]
        return still.frame(still.note(self._head()), *said, still.grid(columns, lines))

    def left_out(self) -> str:
        n = len(self.result.spots) - 2 * SHOWN
        return f"images of all but the {SHOWN} latents of either end" if n > 0 and any(self.images) else ""

    def _head(self) -> str:
        return str(self.result).splitlines()[0]

    def _order(self) -> np.ndarray:
        """Places of the alive latents, what is lost first."""
        return np.argsort(np.nan_to_num(self.result.spots.relative), kind="stable")

    def _spots(self) -> Packed:
        result, spots, order = self.result, self.result.spots, self._order()
        flags = np.zeros(len(spots), np.int8)
        flags[spots.suppressed(result.fdr)], flags[spots.exaggerated(result.fdr)] = -1, 1
        names = self.named()
        header = {
            "head": clean(self._head()),
            "pictured": any(self.images),
            "fdr": result.fdr,
            "figures": [[clean(name), *told_claim(each)] for name, each in result.figures.items()],
        }
        return Packed(header, {
            "latents": spots.latents[order].astype(np.int32),
            "flags": flags[order],
            "relative": spots.relative[order].astype(np.float32),
            "interval": spots.relative_interval[order].astype(np.float32).ravel(),
            "q": spots.q[order].astype(np.float32),
            "energy": np.stack([spots.real, spots.generated], 1)[order].astype(np.float32).ravel(),
            "fired": spots.fired[order].astype(np.int32).ravel(),
            "names": [clean(names.get(int(j), "")) for j in spots.latents[order]],
        })  # fmt: skip

    def _pair(self, latent: int) -> Packed:
        """The images of either side that show a latent most: of each its id, its energy and its picture."""
        at = np.flatnonzero(self.result.spots.latents == latent)
        if not len(at):
            message = f"A latent must be one of those that are alive. Got {latent}. Pass one of the list."
            raise ConfigError(message)
        sides, pictures = [], []
        for side, ids, held in zip(self.result.strongest, self.result.ids, self.images, strict=True):
            told = []
            for where, document, energy in zip(*(part[at[0]].tolist() for part in side), strict=True):
                if where < 0:
                    break
                own = picture(held.get(document))
                pictures.append(own)
                told.append([clean(ids[where]), rounded(energy), len(own)])
            sides.append(told)
        return Packed({"sides": sides}, {"pictures": np.concatenate([picture(None), *pictures])})
