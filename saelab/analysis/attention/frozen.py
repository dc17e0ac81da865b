"""One text through a model, its patterns and the scales of its norms frozen: what is left is linear.

A *reading* is a linear function w . x of one row x at one place of the pass. Everything here takes a reading
back along the model's own path, to readings of rows that come before, and to constants.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from saelab.types import HookError, SubjectError

if TYPE_CHECKING:
    from torch import Tensor

    from saelab.sae import SAE
    from saelab.subjects.head_maps import LayerMaps, Norm
    from saelab.types import Inputs

CLOSE = 1e-3
"""Of its size: how far what a norm gives may be from what it is said to be."""
STREAM = {"hook_resid_pre": "pre", "hook_resid_mid": "mid", "hook_mlp_in": "mlp", "hook_resid_post": "post"}
"""Hook points of the stream within a block -> how much of the block has been added; "mlp": as much as the MLP
reads."""
INTO = {"attn.hook_in": "attn_in", "mlp.hook_in": "mlp_in", "ln2.hook_normalized": "mlp_in"}
"""What attention and MLP read -> the norm before it."""


class Place(NamedTuple):
    """Where a reading is."""

    layer: int
    name: str
    """of the hook point, without the block's"""

    @property
    def hook(self) -> str:
        """The hook point's name."""
        return f"blocks.{self.layer}.{self.name}"


class Reading(NamedTuple):
    """w . x of the row at one position of a place, and a constant that came on the way."""

    place: Place
    position: int
    w: Tensor
    """float64 [width]"""
    constant: Any = 0.0


class Edges(NamedTuple):
    """What the heads of a layer move into one row: its parts by head and source."""

    parts: Tensor
    """float64 [heads positions]"""
    heads: Tensor
    """float64 [heads d_head]: the reading of z, by head"""


def place_of(hook: Any) -> Place:
    """The place of a hook point.

    Raises:
        HookError: It is none whose heads can be told.
    """
    found = re.fullmatch(r"blocks\.(\d+)\.(.+)", str(hook))
    if found is None or found[2] not in (*STREAM, *INTO, "attn.hook_z", "hook_attn_out"):
        message = (
            "Attribution to heads needs an SAE on attn.hook_z, hook_attn_out, the residual stream, or what "
            f"attention or an MLP reads. Got {str(hook)!r}. Pass one of these."
        )
        raise HookError(message)
    return Place(int(found[1]), found[2])


class Frozen:
    """One pass over one text, with all that is needed to go back from a place.

    Args:
        subject: It has heads (`saelab.capabilities.HasHeads`).
        inputs: Of one text.
        place: Where the way back begins: what comes before it is read.
        more: Other hook points, such as SAEs on the way have, that are read.
        deep: Whether the way goes on below the heads' sources.

    Raises:
        HookError: A hook point on the way does not exist in this model.
        SubjectError: The model does something else there.
    """

    def __init__(
        self, subject: Any, inputs: Inputs, place: Place, more: Sequence[str] = (), *, deep: bool = False
    ) -> None:
        self.subject, self.deep = subject, deep
        self.maps: Callable[[int], LayerMaps] = cache(subject.layer_maps)
        norms = [place_of(hook) for hook in more if hook.split(".", 2)[2] in INTO]
        streams = [f"blocks.{each.layer}.hook_resid_{self.stage(each)}" for each in norms]
        hooks = dict.fromkeys([place.hook, *self._on_the_way(place), *streams, *more])
        self.embeds = [hook for hook in ("hook_embed", "hook_pos_embed") if hook in subject.hooks()]
        if place.name != "attn.hook_z" or deep:
            hooks |= dict.fromkeys(self.embeds)
        seen = subject.attend(inputs, list(hooks), output=False)
        self.acts = {name: x[0].detach().cpu() for name, x in seen.run.acts.items()}
        self.patterns = {i: x[0].detach().float().cpu() for i, x in seen.patterns.items()}
        self.values = {i: x[0].detach().float().cpu() for i, x in seen.values.items()}
        self.n = next(iter(self.acts.values())).shape[0]

    def _on_the_way(self, place: Place) -> list[str]:
        """Hook points between the embedding and a place."""
        z = place.name == "attn.hook_z"
        if z and not self.deep:
            return []
        found = ["blocks.0.hook_resid_pre"]
        for i in range(place.layer + 1):
            maps = self.maps(i)
            names = ["hook_attn_out", "hook_mlp_out"]
            if place.layer == i:
                stage = self.stage(place)
                names = {"pre": [], "mid": names[:1], "post": names}[stage]
                names += ["hook_attn_out"] * (place.name == "hook_attn_out")
                names += [f"hook_resid_{stage}"] * (place.name in INTO)
            if self.deep:
                names += ["hook_resid_pre", "attn.hook_in"]
            for name in names:
                self.subject.hook_point(f"blocks.{i}.{name}")  # says why where there is none
            found += [f"blocks.{i}.{name}" for name in names]
            if "hook_attn_out" in names and maps.norms.get("attn_out") is not None:
                found.append(f"blocks.{i}.attn.hook_z")
            elif "hook_attn_out" in names and "attn_out" not in maps.norms:
                refuse_norm(self.subject, f"blocks.{i}.hook_attn_out")
        return found

    def row(self, hook: str, position: int) -> Tensor:
        """float64 [width]: what was read at one position of a hook point."""
        return self.acts[hook][position].double()

    def stage(self, place: Place) -> str:
        """`stage_of` a place of this model."""
        return stage_of(self.subject, place, self.maps)

    def edges(self, layer: int, reading: Tensor, position: int) -> Edges:
        """What each head moves from each source into the z of a row.

        Args:
            layer: Whose.
            reading: float64 [heads * d_head], of z.
            position: Of the row.
        """
        pattern, value = self.patterns[layer][:, position].double(), self.values[layer].double()
        w = reading.unflatten(0, (len(pattern), -1))
        group = len(pattern) // len(value)
        told = torch.einsum("gsd,ghd->ghs", value, w.unflatten(0, (len(value), group))).flatten(0, 1)
        return Edges(pattern * told, w)

    def to_z(self, layer: int, position: int, w: Tensor) -> Reading:
        """A reading of what attention adds to the stream as one of z."""
        maps = self.maps(layer)
        norm, constant = maps.norms["attn_out"], 0.0
        if norm is not None:
            z = self.row(f"blocks.{layer}.attn.hook_z", position)
            before = z @ maps.write.flatten(0, 1) + maps.write_bias
            after = self.row(f"blocks.{layer}.hook_attn_out", position)
            w, c = self.through(norm, before, after, w, f"blocks.{layer}.hook_attn_out")
            constant = float(c)
        constant += float(maps.write_bias @ w)
        return Reading(Place(layer, "attn.hook_z"), position, maps.write.flatten(0, 1) @ w, constant)

    def to_stream(self, reading: Reading) -> Reading:
        """A reading of what attention or an MLP reads as one of the stream before the norm; of several w
        [n width] the constants are [n]."""
        (layer, name), position, w, constant = reading
        maps = self.maps(layer)
        kind = INTO[name]
        if kind not in maps.norms:
            refuse_norm(self.subject, reading.place.hook)
        norm, before = maps.norms[kind], Place(layer, f"hook_resid_{self.stage(reading.place)}")
        if norm is not None:
            if name == "ln2.hook_normalized":  # the norm without its gain and bias
                norm = norm._replace(gain=torch.ones_like(norm.gain), bias=torch.zeros_like(norm.bias))
            x, y = self.row(before.hook, position), self.row(reading.place.hook, position)
            w, more = self.through(norm, x, y, w, reading.place.hook)
            constant = constant + (float(more) if more.ndim == 0 else more)
        return Reading(before, position, w, constant)

    def through(self, norm: Norm, x: Tensor, y: Tensor, w: Tensor, hook: str) -> tuple[Tensor, Tensor]:
        """(w', c) with w . y = w' . x + c, the scale of the norm frozen at what made y of x; of one w or
        several.

        Raises:
            SubjectError: It does not make y of x.
        """
        back = w * norm.gain * self.scale(norm, x, y, hook)
        return back - back.mean(-1, keepdim=True) if norm.centred else back, w @ norm.bias

    def scale(self, norm: Norm, x: Tensor, y: Tensor, hook: str) -> Tensor:
        """float64 [...]: what a norm multiplied each row [... width] by, before its gain, to make y of x.

        Raises:
            SubjectError: It does not make y of x.
        """
        n = norm.gain * (x - x.mean(-1, keepdim=True) if norm.centred else x)
        scale = (n * (y - norm.bias)).sum(-1) / (n * n).sum(-1).clamp_min(1e-300)
        off = (n * scale[..., None] + norm.bias - y).norm(dim=-1)
        if not (off <= CLOSE * y.norm(dim=-1)).all():
            refuse_norm(self.subject, hook)
        return scale

    def start(self, position: int, w: Tensor) -> list[tuple[str, float]]:
        """(what, part) of the row that the first block reads."""
        first = self.row("blocks.0.hook_resid_pre", position)
        rows = [self.row(hook, position) for hook in self.embeds]
        if len(rows) == 2 and (rows[0] + rows[1] - first).norm() <= CLOSE * first.norm():
            return [("embedding", float(rows[0] @ w)), ("position", float(rows[1] @ w))]
        return [("embedding", float(first @ w))]

    def before(self, place: Place) -> tuple[list[int], list[int]]:
        """The layers whose attention, and those whose MLP, have been added to the stream at a place."""
        stage = self.stage(place)
        earlier = list(range(place.layer))
        return earlier + [place.layer] * (stage != "pre"), earlier + [place.layer] * (stage == "post")


def stage_of(subject: Any, place: Place, maps: Callable[[int], LayerMaps] | None = None) -> str:
    """How much of its block has been added to the stream where a place lies: "pre", "mid" or "post".

    Args:
        subject: The model.
        place: In it.
        maps: Its `layer_maps`, where they are kept.

    Raises:
        SubjectError: Nobody knows what its MLP reads.
    """
    kind = STREAM.get(place.name, INTO.get(place.name, "pre"))
    if kind in ("mlp", "mlp_in") and not (kind := (maps or subject.layer_maps)(place.layer).mlp_reads):
        refuse_norm(subject, place.hook)
    return "pre" if kind in ("attn_in", "pre") else kind


def writing_layers(subject: Any, place: Place) -> tuple[int, ...]:
    """The layers whose heads write directly into what lies at a place.

    Args:
        subject: The model.
        place: In it.

    Raises:
        SubjectError: As `stage_of`.
    """
    if place.name in ("attn.hook_z", "hook_attn_out"):
        return (place.layer,)
    return tuple(range(place.layer + (stage_of(subject, place) != "pre")))


def encoder_of(sae: SAE, x: Tensor, latent: int) -> tuple[Tensor, float]:
    """(w, c) with pre-activation = w . x + c, where a row's own normalisation is frozen.

    Args:
        sae: Whose.
        x: float64 [d_in], the row.
        latent: Its number.
    """
    w, constant = encoders_of(sae, x, torch.tensor([latent]))
    return w[0], float(constant[0])


def encoders_of(sae: SAE, x: Tensor, latents: Tensor) -> tuple[Tensor, Tensor]:
    """(w [n d_in], c [n]) of several latents; see `encoder_of`.

    Args:
        sae: Whose.
        x: float64 [d_in], the row.
        latents: int64 [n].
    """
    at = latents.to(sae.device)
    with torch.no_grad():
        rows = sae.W_enc[:, at].detach().double().cpu().t()
        constant = sae.b_enc[at].detach().double().cpu() - rows @ sae.b_in().detach().double().cpu()
        if not sae.per_row:
            return rows / sae.input_scale.detach().double().cpu(), constant
        row, scale = sae.normalised(x[None].to(sae.W_enc))
        assert scale is not None
    mean = float(scale.mean[0, 0])
    centred, row = x - mean, row[0].double().cpu()
    w = rows * ((centred @ row) / (centred @ centred).clamp_min(1e-300))
    return (w - w.mean(1, keepdim=True) if sae.config.options["normalise"] != "sphere" else w), constant


def decoder_of(sae: SAE, x: Tensor, latents: Tensor) -> tuple[Tensor, Tensor]:
    """(rows [n d_out], bias [d_out]) with x_hat = codes @ rows + bias, a row's normalisation frozen.

    Args:
        sae: Whose.
        x: float64 [d_in], the row that it reads.
        latents: int64 [n], those that are not 0.
    """
    with torch.no_grad():
        scale = sae.out_scale.detach().double().cpu()
        rows = sae.W_dec[latents.to(sae.device)].detach().double().cpu() * scale
        bias = sae.b_dec.detach().double().cpu() * scale
        own = sae.scale(x[None].to(sae.W_enc)) if sae.per_row else None
    if own is None:
        return rows, bias
    norm, mean = float(own.norm[0, 0]), float(own.mean[0, 0])
    return rows * norm, bias * norm + mean


def linear_values(subject: Any, layer: int) -> LayerMaps:
    """The maps of a layer whose values are linear in what its attention reads.

    Args:
        subject: The model.
        layer: From 0.

    Raises:
        SubjectError: They are not.
    """
    maps = subject.layer_maps(layer)
    if maps.read is None:
        message = (
            "The way back through heads needs values that are linear in what attention reads. Got "
            f"{type(subject.model).__name__}, where those of layer {layer} are normed, or mixed between "
            "positions. Use dfa, which takes one step."
        )
        raise SubjectError(message)
    return maps


def refuse_norm(subject: Any, hook: str) -> None:
    """Raises SubjectError."""
    message = (
        "Attribution through the stream needs blocks in which a norm, or nothing, lies before and behind "
        f"attention and MLP. Got {type(getattr(subject, 'model', subject)).__name__}, where something else "
        f"does at {hook}. Use an SAE on attn.hook_z, or another model."
    )
    raise SubjectError(message)


__all__ = [
    "INTO", "STREAM", "Edges", "Frozen", "Place", "Reading", "decoder_of", "encoder_of", "encoders_of",
    "linear_values", "place_of", "refuse_norm", "stage_of", "writing_layers",
]  # fmt: skip
