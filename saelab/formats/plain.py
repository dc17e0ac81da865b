"""An SAE in the terms that all libraries share: what lies between a file of theirs and an SAE of ours."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.formats.reading import refuse
from saelab.sae import SAE, recipe
from saelab.sae.architectures import PURSUIT
from saelab.sae.batchwise import BatchTopK, FeatureChoice, GroupBias
from saelab.sae.sparsifiers import AbsTopK, Gated, Gaussian, GroupMax, JumpReLU, MatchingPursuit, ReLU, TopK
from saelab.types import ConfigError, FormatError, HookError, HookPoint, short

Rule = Literal[
    "relu",
    "identity",
    "topk",
    "abs_topk",
    "group_max",
    "jumprelu",
    "batchtopk",
    "matryoshka",
    "gated",
    "top_afa",
    "matching_pursuit",
]


@dataclass(frozen=True)
class Plain:
    """An SAE on raw activations:

        x' = norm(x)                                       (see SAE.normalised: none, zscore or sphere)
        pre = (x' - b_dec) @ W_enc + b_enc                 (b_dec only if `subtract`)
        codes = rule(pre)
        x_hat = undo(codes @ W_dec + b_dec + x @ W_skip)   (W_skip of skip transcoders)

    Rules: relu(pre); pre itself (identity); the k largest pre of a row, then relu (topk), or the k largest
    |pre| (abs_topk), or the largest of each of k neighbouring groups, then relu (group_max); see TopAFA
    (top_afa) and MatchingPursuit;
    relu(pre) * (pre > threshold), threshold [d_sae] (jumprelu) or [] (batchtopk and matryoshka, whose
    training selects k a row on average); gated: (pre > 0) * relu(exp(r_mag) * (pre - b_enc) + b_mag).
    """

    rule: Rule
    W_enc: Float[Tensor, "d_in d_sae"]
    b_enc: Float[Tensor, " d_sae"]
    W_dec: Float[Tensor, "d_sae d_out"]
    b_dec: Float[Tensor, " d_out"]
    subtract: bool
    normalise: str = "none"
    k: int | None = None
    threshold: Tensor | None = None
    r_mag: Tensor | None = None
    b_mag: Tensor | None = None
    W_skip: Float[Tensor, "d_in d_out"] | None = None
    groups: tuple[int, ...] | None = None
    transcodes: bool = False
    hook: HookPoint | None = None
    hook_out: HookPoint | None = None
    widths: tuple[int, ...] = ()
    """Widths of the activations that a crosscoder reads side by side."""
    input_scale: Tensor | None = None
    """[d_in] of a crosscoder: what raw activations are divided by; the rest is in those units."""
    pursuit: Mapping[str, Any] = field(default_factory=dict)
    """Options of matching pursuit."""

    def moved(self, subtract: bool) -> Plain:
        """The same SAE with or without b_dec subtracted from the input: the encoder bias takes it over,
        b_enc -+ b_dec @ W_enc, since (x - b) W + c = x W + (c - b W). The magnitude bias of a gated one
        does the same, after its factor. In float64, rounded once."""
        if subtract == self.subtract:
            return self
        shift = self.b_dec.double() @ self.W_enc.double() * (1 if subtract else -1)
        b_mag, dtype = self.b_mag, self.b_enc.dtype
        if self.rule == "gated":
            b_mag = (self.b_mag.double() + self.r_mag.double().exp() * shift).to(dtype)  # type: ignore[union-attr]
        return replace(self, subtract=subtract, b_enc=(self.b_enc.double() + shift).to(dtype), b_mag=b_mag)

    def folded(self, norms: Tensor, path: Path) -> Plain:
        """The same SAE with codes times `norms` [d_sae] and decoder rows by as much smaller. For rules that
        commute with positive factors (relu, gated) and those that a library applies to pre times norms."""
        if not (norms > 0).all():
            refuse(f"The decoder rows in {path} must not be 0", "a row of norm 0, by which codes are divided")
        return self._times(norms, path)

    def scaled(self, s: float, path: Path, s_out: float | None = None) -> Plain:
        """This SAE, which is of activations times s, on raw ones: (x s - b) W + c = (x - b / s) (s W) + c.
        s_out: of a transcoder's target, s if None."""
        out = s if s_out is None else s_out
        if not (s > 0 and out > 0 and math.isfinite(s) and math.isfinite(out)):
            refuse(f"The scales of activations in {path} must be finite and > 0", f"{s} and {out}")
        changes: dict[str, Tensor] = {
            "W_enc": self.W_enc * s,
            "W_dec": self.W_dec / out,
            "b_dec": self.b_dec / out,
        }
        if self.W_skip is not None:
            changes["W_skip"] = self.W_skip * s / out
        return _finite(replace(self, **changes), path)  # type: ignore[arg-type]

    def _times(self, norms: Tensor, path: Path) -> Plain:
        changes = {
            "W_enc": self.W_enc * norms,
            "b_enc": self.b_enc * norms,
            "W_dec": self.W_dec / norms[:, None],
        }
        if self.b_mag is not None:
            changes["b_mag"] = self.b_mag * norms
        return _finite(replace(self, **changes), path)  # type: ignore[arg-type]


def _finite(plain: Plain, path: Path) -> Plain:
    """Numbers may overflow when norms or scales are folded into them."""
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        if not torch.isfinite(getattr(plain, name)).all():
            refuse(f"The weights in {path.parent} must be usable", f"{name} that overflows once folded")
    return plain


def build(plain: Plain, path: Path) -> SAE:
    """The SAE, in eval mode, its weights those of `plain` bit for bit and in their memory. path: for
    messages."""
    d_in, d_sae = plain.W_enc.shape
    options: dict[str, Any] = {"normalise": plain.normalise, **plain.pursuit}
    state: dict[str, Tensor | None] = {
        "W_enc": plain.W_enc,
        "b_enc": plain.b_enc,
        "b_dec": plain.b_dec,
        "dictionary.W_dec": plain.W_dec,
    }
    name: str = plain.rule
    if not plain.transcodes:
        options["apply_b_dec_to_input"] = plain.subtract
    elif plain.subtract or plain.normalise != "none" or name not in _TRANSCODERS:
        refuse(
            f"A transcoder in {path} must be {', '.join(_TRANSCODERS)} on the raw input",
            f"{plain.rule}, normalisation {plain.normalise!r}, b_dec subtracted: {plain.subtract}",
            "saelab has no such transcoder.",
        )
    if plain.rule in ("topk", "abs_topk", "batchtopk", "matryoshka", "group_max"):
        options["k"] = plain.k
    if plain.rule in ("batchtopk", "matryoshka"):
        # training that goes on moves the threshold slowly, as after many batches
        state |= {"sparsifier.threshold": plain.threshold, "sparsifier.seen": torch.tensor(100.0)}
        options |= {"groups": plain.groups} if plain.rule == "matryoshka" else {}
    elif plain.rule == "jumprelu":
        state["sparsifier.raw_threshold"] = plain.threshold
        options["log_threshold"] = False
    elif plain.rule == "gated":
        # the gate's bias lies within the sparsifier, so that the magnitude starts from the product alone
        options["gate_bias"] = True
        state |= {"sparsifier.b_gate": plain.b_enc, "b_enc": torch.zeros(d_sae)}
        state |= {"sparsifier.r_mag": plain.r_mag, "sparsifier.b_mag": plain.b_mag}
    if plain.transcodes:
        name = "transcoder" if plain.W_skip is None else "skip_transcoder"
        options = {"k": min(32, d_sae), "sparsity": _TRANSCODERS[plain.rule]} | options
        if plain.W_skip is not None:
            state["W_skip"] = plain.W_skip
    elif plain.widths:
        name = "crosscoder"
        sparsity = "l1" if plain.rule == "relu" else plain.rule
        options = {"k": min(32, d_sae), "sparsity": sparsity, "widths": list(plain.widths)} | options
    if plain.input_scale is not None:
        state["input_scale"] = plain.input_scale
    try:
        config = recipe(
            name,
            d_in=d_in,
            d_sae=d_sae,
            d_out=plain.W_dec.shape[1] if plain.transcodes else None,
            hook=plain.hook,
            hook_out=plain.hook_out,
            **options,
        )
    except (ConfigError, HookError) as error:
        msg = f"The configuration in {path} must be one that saelab knows. {error}"
        raise FormatError(msg) from error
    return SAE.from_tensors(config, state)


_TRANSCODERS = {"relu": "l1", "topk": "topk", "batchtopk": "batchtopk", "jumprelu": "jumprelu"}
"""Rule of a transcoder -> its option `sparsity`."""


def of(sae: SAE, to: str) -> Plain:
    """An SAE of ours in plain terms, its input and output scales folded into the weights: with s the input
    scale and t the output's (t = s but for transcoders),

        (x / s - b) W + c = (x - s b) (W / s) + c,      (f W_dec + b) t = f (t W_dec) + t b.

    to: the format's name, for messages. Raises FormatError for what no other library has.
    """
    config, sparsifier = sae.config, sae.sparsifier

    def cannot(what: str) -> None:
        refuse(
            f"An SAE saved as {to} must be one that {to} can hold exactly",
            f"{config.title!r}: {what}",
            "Save it as 'saelab'.",
        )

    if config.widths:
        cannot("it reads several activations at once")
    normalise: str = config.options["normalise"]
    if normalise == "layernorm":
        cannot("normalise='layernorm' divides by the norm alone, theirs by the deviation plus 1e-5")
    weights = {k: v.detach().cpu().float() for k, v in sae.state_dict().items()}
    s, t = sae.input_scale.cpu().float(), sae.out_scale.cpu().float()
    plain = Plain(
        rule="relu",
        W_enc=weights["W_enc"] / s,
        b_enc=weights["b_enc"],
        W_dec=sae.W_dec.detach().cpu().float() * t,
        b_dec=weights["b_dec"] * t,
        subtract=bool(config.options.get("apply_b_dec_to_input", False)),
        normalise="none" if normalise == "scalar" else normalise,
        W_skip=weights["W_skip"] * t / s if "W_skip" in weights else None,
        transcodes=config.d_out is not None,
        hook=config.hook,
        hook_out=config.hook_out,
    )
    if getattr(sparsifier, "by_norm", False):  # ranked times norms: the norms go into the encoder
        plain = plain.folded(sae.dictionary.norms().detach().cpu().float(), Path(to))
    if type(sparsifier) is ReLU:
        return plain
    if type(sparsifier) in (TopK, Gaussian):  # in eval mode a Gaussian code is the TopK of its mean
        return replace(plain, rule="topk", k=sparsifier.k)
    if type(sparsifier) is MatchingPursuit:
        return replace(
            plain,
            rule="matching_pursuit",
            pursuit={name: config.options[name] for name in PURSUIT},
        )
    if type(sparsifier) is GroupMax:
        return replace(plain, rule="group_max", k=sparsifier.k)
    if type(sparsifier) is AbsTopK:
        return replace(plain, rule="abs_topk", k=sparsifier.k)
    if type(sparsifier) is BatchTopK:
        groups = _groups(sae) if config.recipe == "matryoshka" else None
        rule: Rule = "batchtopk" if groups is None else "matryoshka"
        return replace(
            plain,
            rule=rule,
            k=max(1, round(sparsifier.k)),
            threshold=weights["sparsifier.threshold"],
            groups=groups,
        )
    if type(sparsifier) is JumpReLU:
        # what is stored, a negative threshold too, else what is used
        raw = weights.get("sparsifier.raw_threshold")
        return replace(
            plain,
            rule="jumprelu",
            threshold=sparsifier.threshold.detach().cpu().float() if raw is None else raw,
        )
    if type(sparsifier) is FeatureChoice:
        if (sparsifier.threshold < 0).any():
            cannot("a latent's threshold is below 0, where theirs clip codes")
        return replace(plain, rule="jumprelu", threshold=weights["sparsifier.threshold"])
    if type(sparsifier) is GroupBias:
        bias = weights["sparsifier.bias"]  # <= 0, so pre + bias > 0 is pre > -bias >= 0
        if sparsifier.magnitude == "pre":
            return replace(plain, rule="jumprelu", threshold=-bias)
        return replace(plain, b_enc=plain.b_enc + bias)
    if type(sparsifier) is Gated:
        r_mag, b_mag = weights["sparsifier.r_mag"], weights["sparsifier.b_mag"]
        if sparsifier.b_gate is not None and not plain.b_enc.any():
            return replace(plain, rule="gated", b_enc=weights["sparsifier.b_gate"], r_mag=r_mag, b_mag=b_mag)
        # ours counts the magnitude from pre with b_enc in it: exp(r) (pre - b_enc) + (exp(r) b_enc + b_mag)
        b_mag = (b_mag.double() + r_mag.double().exp() * plain.b_enc.double()).float()
        gate = plain.b_enc if sparsifier.b_gate is None else plain.b_enc + weights["sparsifier.b_gate"]
        return replace(plain, rule="gated", b_enc=gate, r_mag=r_mag, b_mag=b_mag)
    cannot(f"its codes are selected by {type(sparsifier).__name__}")
    raise AssertionError


def _groups(sae: SAE) -> tuple[int, ...]:
    """Sizes of the groups; by default prefixes of 1/16, 1/8, 1/4, 1/2 and all of the latents."""
    if sae.config.options["groups"] is not None:
        return tuple(sae.config.options["groups"])
    ends = sorted({-(-sae.d_sae // 2**i) for i in range(5)})
    return tuple(end - start for start, end in zip([0, *ends], ends, strict=False))


def hook_of(name: Any, path: Path) -> HookPoint | None:
    """The hook point that a config names, or None where it names none."""
    if name is None or name == "":
        return None
    if not isinstance(name, str) or len(name) > 1000:
        refuse(f"The hook name in {path} must be a string", short(name))
    return HookPoint(name)
