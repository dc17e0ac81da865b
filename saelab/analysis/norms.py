"""Are codes as long as what they stand for? Norms of codes against norms of inputs, and how much overlap of
the dictionary their difference proves (the ZF plot and eps_LBO of arXiv 2503.24277)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from saelab.analysis.panels import Curve, Drawing
from saelab.arguments import checked, floats, full_sae
from saelab.errors import headline, needing
from saelab.types import ConfigError

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from torch import Tensor

    from saelab.sae import SAE

BANDS = (0.25, 0.5, 1.0)
"""Values of eps (d_sae - 1) for which the figure shows what the theory allows."""
EQUAL = "equal"
SHOWN = 5_000
"""Points in the figure, at most."""


@dataclass(frozen=True, eq=False)
class NormDiagnostics:
    """Lengths of inputs and codes, row by row, in units of the normalised input.

    With unit directions u_j, sizes g_j = f_j ||W_dec_j|| and z = sum_j g_j u_j, all cosines of different
    directions within +-eps,

        | ||z||^2 - ||g||^2 | <= eps (||g||_1^2 - ||g||^2) <= eps (d_sae - 1) ||g||^2

    so that a near-orthogonal dictionary has codes as long as their inputs, and a difference in length proves
    overlap. The paper's eps_LBO puts the input less b_dec in the place of z, and its authors' script (the
    ZF plots of SewoongLee/top-afa-sae) the input itself, with ||b_dec|| as one more coordinate of the code;
    both then contain the error of the reconstruction too, and may exceed every cosine. The bounds here are
    of z itself, and cannot.
    Arrays are float64 [n]; NaN where a row has too few latents on to divide by.
    """

    d_sae: int
    input: np.ndarray
    """norm of the normalised input less b_dec: what codes should sum up to"""
    code: np.ndarray
    """||g||, norm of the codes times the norms of their directions"""
    product: np.ndarray
    """||z||, norm of what the codes do sum up to"""
    l0: np.ndarray
    """int64: codes != 0"""
    eps_lbo: np.ndarray
    """| input^2 - code^2 | / ((d_sae - 1) code^2), the paper's formula"""
    eps_lbo_script: np.ndarray
    """| raw^2 - c^2 | / ((d_sae - 1) c^2), as the authors' script has it: raw is the norm of the normalised
    input with b_dec in it, and c^2 = code^2 + ||b_dec||^2. The same as eps_lbo where b_dec is 0"""
    eps_bound: np.ndarray
    """| product^2 - code^2 | / ((d_sae - 1) code^2): some two directions overlap at least that much"""
    eps_sharp: np.ndarray
    """| product^2 - code^2 | / (||g||_1^2 - code^2): the same, up to d_sae / l0 times as strong"""
    coherence: float
    """largest |cosine| of two directions whose latents fired on these rows, which no bound exceeds; NaN with
    fewer than two"""

    @property
    def ratio(self) -> np.ndarray:
        """code / input, float64 [n]; NaN where the input is 0."""
        return _divide(self.code, self.input)

    def to_frame(self) -> pd.DataFrame:
        """One row an activation."""
        import pandas as pd

        names = (
            *("input", "code", "product", "ratio", "l0"),
            *("eps_lbo", "eps_lbo_script", "eps_bound", "eps_sharp"),
        )
        return pd.DataFrame({name: getattr(self, name) for name in names})

    def figure(self) -> go.Figure:
        """The ZF plot: norms of codes over norms of inputs, and the line where they are equal.

        About it are the bands 1 / sqrt(1 +- e) that the theory allows for e = eps (d_sae - 1) of .25, .5 and
        1 (1 sets no upper limit). Where there are more than 5,000 rows, every n-th is shown.

        Raises:
            MissingDependency: plotly is not installed.
        """
        with needing("A figure", "plotly", "plotly"):
            import plotly.graph_objects as go
        points, *lines = zf_plot(self.input, self.code).curves
        figure = go.Figure(
            go.Scattergl(
                x=points.x, y=points.y, customdata=self.l0[_some(len(self.l0))], mode="markers",
                name="activations", marker={"size": 4, "opacity": 0.4, "color": "#0072b2"},
                hovertemplate="input %{x:.3g}<br>code %{y:.3g}<br>L0 %{customdata}<extra></extra>",
            )
        )  # fmt: skip
        for line in lines:
            equal = line.name == EQUAL
            figure.add_scatter(
                x=line.x, y=line.y, mode="lines", name=line.name, showlegend=equal,
                line={"dash": "dash" if equal else "dot", "width": 1.5 if equal else 1,
                      "color": "#333333" if equal else "#999999"},
            )  # fmt: skip
        figure.update_layout(
            title=f"codes and inputs: median length ratio {np.nanmedian(self.ratio):.3f}"
            if np.isfinite(self.ratio).any()
            else "codes and inputs",
            xaxis_title="norm of the input", yaxis_title="norm of the code", template="plotly_white",
        )  # fmt: skip
        return figure

    def drawings(self) -> tuple[Drawing, ...]:
        """The ZF plot."""
        return (zf_plot(self.input, self.code),)

    __repr__ = headline

    def __str__(self) -> str:
        def middle(values: np.ndarray) -> str:
            known = values[np.isfinite(values)]
            return f"{np.median(known):.4g}" if len(known) else "-"

        return (
            f"{len(self.input):,} rows, medians: code / input {middle(self.ratio)}, L0 {middle(self.l0)}, "
            f"eps_LBO {middle(self.eps_lbo)}; the largest proven overlap is "
            f"{np.nanmax(self.eps_sharp, initial=0.0):.4g}, the largest measured {self.coherence:.4g}"
        )


def zf_plot(given: np.ndarray, code: np.ndarray) -> Drawing:
    """The ZF plot as `NormDiagnostics.figure` says.

    Args:
        given: [n], norms of the inputs.
        code: [n], norms of the codes.
    """
    end = np.array([0.0, np.nanmax(given, initial=0.0)])
    slopes = [(EQUAL, 1.0), *((f"eps (d_sae - 1) = {e:g}", (1 + e) ** -0.5) for e in BANDS)]
    slopes += [(f"eps (d_sae - 1) = {e:g}", (1 - e) ** -0.5) for e in BANDS if e < 1]
    some = _some(len(given))
    return Drawing(
        "ZF plot: codes and inputs",
        "norm of the input",
        "norm of the code",
        (
            Curve("activations", given[some], code[some]),
            *(Curve(name, end, slope * end, "guide") for name, slope in slopes),
        ),
    )


def _some(n: int) -> slice:
    return slice(None, None, -(-n // SHOWN) or 1)


@checked(sae=full_sae, acts=floats)
def norms(sae: SAE, acts: Tensor) -> NormDiagnostics:
    """Norms of codes beside norms of inputs, in eval mode.

    It holds for every autoencoder; top-AFA chooses its latents by it. The SAE is left in the mode that it was
    in.

    Args:
        sae: An autoencoder.
        acts: [.. d_in].

    Raises:
        ConfigError: It is a transcoder, whose code does not stand for its input.
    """
    import torch

    if sae.config.d_out is not None:
        message = (
            f"Norms compare codes with the inputs that they stand for. Got a {sae.config.recipe}, whose "
            "output is another activation. Pass an autoencoder."
        )
        raise ConfigError(message)
    mode = sae.training
    sae.eval()
    size = max(1, 2**22 // sae.d_sae)
    flat = acts.reshape(-1, acts.shape[-1]) if acts.ndim else acts
    try:
        with torch.no_grad():
            W_dec = sae.W_dec.double()
            length = W_dec.norm(dim=1)
            stacked, fired = [], torch.zeros(sae.d_sae, dtype=torch.bool, device=sae.device)
            for chunk in flat.split(size) if flat.ndim else [flat]:
                codes = sae.encode(chunk).double()
                on = codes != 0
                fired |= on.any(0)
                sizes = (codes * length).abs()
                raw = sae.target(chunk.to(sae.dtype)).double()
                lengths = [v.norm(dim=1) for v in (raw, raw - sae.b_dec, sizes, codes @ W_dec)]
                stacked.append(torch.stack([*lengths, sizes.sum(1), on.sum(1)]).cpu())
            bias = float(sae.b_dec.double().norm())
            coherence = _coherence(W_dec[fired] / length[fired].clamp_min(1e-300)[:, None])
    finally:
        sae.train(mode)
    raw, given, code, product, total, l0 = torch.cat(stacked, 1).numpy()
    cross = np.abs(product**2 - code**2)
    pairs = sae.d_sae - 1
    every, longer = pairs * code**2, code**2 + bias**2
    return NormDiagnostics(
        d_sae=sae.d_sae,
        input=given,
        code=code,
        product=product,
        l0=l0.astype(np.int64),
        eps_lbo=_divide(np.abs(given**2 - code**2), every),
        eps_lbo_script=_divide(np.abs(raw**2 - longer), pairs * longer),
        eps_bound=_divide(cross, every),
        # rounding alone keeps this from 0 where one latent is on
        eps_sharp=_divide(cross, np.where(l0 > 1, total**2 - code**2, 0.0)),
        coherence=coherence,
    )


def _coherence(unit: Tensor) -> float:
    """Largest |cosine| of two of these rows [m d_out]; NaN for fewer than two."""
    best = float("nan")
    for start in range(0, len(unit) - 1, 1024):
        chunk = unit[start : start + 1024]
        # each pair once: rows of the chunk with those after them
        cosine = (chunk @ unit[start:].t()).abs().triu_(1)
        best = float(np.fmax(best, float(cosine.max())))
    return best


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b, out=np.full(len(a), np.nan), where=b > 0)


__all__ = ["NormDiagnostics", "norms"]
