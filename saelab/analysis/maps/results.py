"""A map of latents, and what it says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from saelab.analysis.maps.faithful import NEIGHBOURS, Faith
from saelab.errors import headline

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

CONTROLS = ("pca", "random")
SAID = {"pca": "PCA", "umap": "UMAP", "tsne": "t-SNE", "random": "a random projection"}


@dataclass(frozen=True)
class LatentMap:
    """Two coordinates for each latent, clusters with names, and how far the picture can be trusted."""

    by: str
    """what latents are near by: "decoder", "cofiring" or "tokens" """
    method: str
    """"pca", "umap" or "tsne" """
    x: np.ndarray = field(repr=False)
    """float32 [d_sae], NaN of latents that have no vector: zero directions, or what never fires"""
    y: np.ndarray = field(repr=False)
    """float32 [d_sae]"""
    dead: np.ndarray = field(repr=False)
    """bool [d_sae]: those that never fire in the store"""
    cluster: np.ndarray = field(repr=False)
    """int32 [d_sae] into `names`, the largest first; -1 of none"""
    names: tuple[str, ...] = field(repr=False)
    """of each cluster, what its latents fire on more than others do"""
    faith: Mapping[str, Faith] = field(repr=False)
    """of the picture under its method, and of its controls: "pca", and "random" directions"""
    seed: int = 0

    @property
    def placed(self) -> np.ndarray:
        """int64 [m]: the latents that have a place."""
        return np.flatnonzero(np.isfinite(self.x))

    @property
    def trusted(self) -> bool:
        """Whether more neighbours are kept than by each of the controls, by the intervals."""
        own = self.faith[self.method].kept
        others = [self.faith[name].kept for name in CONTROLS if name != self.method]
        return all(own.low > other.high for other in others)

    @property
    def verdict(self) -> str:
        """In words, how far to trust what is near in the picture."""
        own = self.faith[self.method].kept
        beside = ", ".join(
            f"{SAID[name]} {100 * self.faith[name].kept.value:.0f} %"
            for name in CONTROLS
            if name != self.method
        )
        share = f"{100 * own.value:.0f} % [{100 * own.low:.0f}, {100 * own.high:.0f}]"
        text = f"The picture keeps {share} of the {NEIGHBOURS} nearest neighbours ({beside})."
        if not self.trusted:
            return f"{text} That is no more than its controls: do not read nearness here."
        if own.value < 0.5:
            return f"{text} Most neighbours are elsewhere in the picture: look them up in the whole space."
        return text

    def to_frame(self) -> pd.DataFrame:
        """One line a latent: latent, x, y, dead, cluster, name (of the cluster, "" of none)."""
        import pandas as pd

        names = [self.names[c] if c >= 0 else "" for c in self.cluster.tolist()]
        columns = {"x": self.x, "y": self.y, "dead": self.dead, "cluster": self.cluster, "name": names}
        return pd.DataFrame({"latent": np.arange(len(self.x)), **columns})

    def controls(self) -> pd.DataFrame:
        """One line a picture and measure: picture, measure, value, low, high."""
        import pandas as pd

        rows = [
            (name, measure, *share)
            for name, each in self.faith.items()
            for measure, share in zip(Faith._fields, each, strict=True)
        ]
        return pd.DataFrame(rows, columns=["picture", "measure", "value", "low", "high"])

    def figure(self) -> go.Figure:
        """The latents by cluster, the dead ones as crosses, with the names of the largest clusters."""
        import plotly.graph_objects as go

        figure = go.Figure()
        groups = [
            ("no cluster", (self.cluster < 0) & ~self.dead, {"color": "#9ca3af"}),
            ("clusters", (self.cluster >= 0) & ~self.dead, {"colorscale": "Turbo"}),
            ("never fires", self.dead, {"color": "#6b7280", "symbol": "x"}),
        ]
        for name, mask, marker in groups:
            at = np.flatnonzero(mask & np.isfinite(self.x))
            own = {"color": self.cluster[at], **marker} if name == "clusters" else marker
            said = [
                f"#{j}  {self.names[c] if c >= 0 else ''}" for j, c in zip(at, self.cluster[at], strict=True)
            ]
            figure.add_scattergl(
                x=self.x[at], y=self.y[at], mode="markers", name=name, text=said, hoverinfo="text",
                marker={"size": 4, "opacity": 0.7, **own},
            )  # fmt: skip
        for number, name in enumerate(self.names[:20]):
            at = self.cluster == number
            figure.add_annotation(
                x=float(np.median(self.x[at])), y=float(np.median(self.y[at])), text=_escaped(name),
                showarrow=False, font={"size": 11}, bgcolor="rgba(255,255,255,0.7)",
            )  # fmt: skip
        axis = {"showgrid": False, "zeroline": False, "showticklabels": False}
        return figure.update_layout(
            title={"text": f"latents by {self.by}, {SAID[self.method]}<br><sup>{self.verdict}</sup>"},
            template="plotly_white", xaxis=axis, yaxis={**axis, "scaleanchor": "x"}, height=640,
        )  # fmt: skip

    __repr__ = headline

    def __str__(self) -> str:
        n, placed = len(self.x), len(self.placed)
        lines = [
            f"{placed:,} of {n:,} latents by {self.by}, {SAID[self.method]}; {len(self.names)} clusters",
            self.verdict,
        ]
        for name, each in self.faith.items():
            told = ", ".join(f"{m} {s}" for m, s in zip(Faith._fields, each, strict=True))
            lines.append(f"{SAID[name]}: {told}")
        count = np.bincount(self.cluster[self.cluster >= 0], minlength=len(self.names))
        lines += [f"cluster {i}: {count[i]:,} latents  {name}" for i, name in enumerate(self.names[:10])]
        return "\n".join(lines)


def _escaped(text: str) -> str:
    """For plotly, whose texts know some tags."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


__all__ = ["CONTROLS", "SAID", "LatentMap"]
