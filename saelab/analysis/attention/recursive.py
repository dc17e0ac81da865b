"""Many steps back: from a latent through heads, SAEs and MLPs to the embeddings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from saelab.analysis.attention.direct import asked_of, fired_of
from saelab.analysis.attention.frozen import (
    INTO,
    STREAM,
    Frozen,
    Place,
    Reading,
    decoder_of,
    encoder_of,
    linear_values,
    place_of,
    refuse_norm,
)
from saelab.analysis.results_attention import Branch, RecursiveDFA
from saelab.arguments import a_subject, an_integer, checked, full_sae, listed, maybe
from saelab.arguments import text as a_text
from saelab.types import ConfigError, HookError, ShapeError, short

if TYPE_CHECKING:
    from torch import Tensor

    from saelab.sae import SAE

ATTENTION, MLPS = ("attn.hook_z", "hook_attn_out"), ("hook_mlp_out", "mlp.hook_out")
"""What an SAE must stand for to be met on the way."""
KEPT = 6
"""Children of a step that are told apart, beside errors, constants and the embedding."""


class _Part(NamedTuple):
    """A part of a step, and how it is taken further back."""

    branch: Branch
    next: Reading | None = None
    """of what it is made of; None where the way ends"""


@checked(
    subject=a_subject, sae=full_sae, text=a_text, dest=maybe(an_integer()), saes=listed, depth=an_integer(1),
    width=an_integer(1),
)  # fmt: skip
def recursive_dfa(
    subject: Any,
    sae: SAE,
    text: str,
    latent: int,
    dest: int | None = None,
    saes: Iterable[SAE] | Mapping[str, SAE] = (),
    *,
    depth: int = 4,
    width: int = 4,
) -> RecursiveDFA:
    """A latent's pre-activation, followed back through heads, SAEs and MLPs to the embeddings.

    With patterns, the scales of norms, and which latents fire frozen, every step is linear, so that the parts
    of a step sum to it:

    - a latent is a sum over what its SAE reads, and a constant;
    - the stream is the embedding, what attention of each layer adds, and what MLPs add;
    - what attention adds is a sum of latents of the SAE that stands for it, with its error, or else of edges,
      what one head moves from one source;
    - an edge is a sum over the stream at its source, before that layer;
    - what an MLP adds is a sum of latents of a transcoder, with its error, or else the way ends there.

    At each step the `width` largest latents and edges are followed, `KEPT` are told apart, and the others are
    summed. The error of an SAE ends the way and is always told. A code is taken as its pre-activation times
    their ratio here, which is 1 for most architectures.

    Args:
        subject: A language model whose heads can be read.
        sae: Of the latent; as for `dfa`.
        text: Any.
        latent: Its number.
        dest: The position, BOS counted; None: where its code is largest.
        saes: SAEs on attn.hook_z or hook_attn_out, and transcoders of MLPs (or SAEs on what MLPs give, at
            which the way ends), one for each layer at most. Those behind the latent are not met.
        depth: Steps back, at most.
        width: Parts of a step that are followed.

    Raises:
        SubjectError: The subject has no attention that can be read, or something else than norms on the way.
        HookError: An SAE is on a hook point where none is met, or that this model does not have.
        ShapeError: An SAE is of another width.
        ConfigError: Two SAEs stand for the same.
        CorpusError, RangeError: As `dfa`.
    """
    asked = asked_of(subject, sae, text, latent)
    met = standing(subject, list(saes.values() if isinstance(saes, Mapping) else saes))
    within = {at: each for at, each in met.items() if at[1] <= asked.place.layer}
    more = dict.fromkeys(hook for each in within.values() for hook in (str(each.hook), str(each.writes[-1])))
    frozen = Frozen(subject, asked.inputs, asked.place, list(more), deep=True)
    x = frozen.acts[asked.place.hook]
    fired = fired_of(sae, x, asked, dest)
    w, constant = encoder_of(sae, frozen.row(str(sae.hook), fired.dest), asked.latent)
    way = _Way(frozen, within, depth, width)
    start = Branch(
        "latent", fired.pre, asked.place.layer, None, fired.dest, asked.latent, str(sae.hook), code=fired.code
    )
    root = way.followed(_Part(start, Reading(asked.place, fired.dest, w, constant)), 0)
    deepest = max(at for at, _ in root.walk())
    sums = tuple(root.cut(at) for at in range(deepest + 1))
    return RecursiveDFA(asked.tokens, fired.dest, root, fired.pre, sums)


class _Way:
    """How steps of one text are taken."""

    def __init__(self, frozen: Frozen, met: Mapping[tuple[str, int], SAE], depth: int, width: int) -> None:
        self.frozen, self.met, self.depth, self.width = frozen, met, depth, width

    def followed(self, part: _Part, depth: int) -> Branch:
        """The branch with what it is made of."""
        if depth == self.depth or part.next is None:
            return part.branch
        parts = self._parts(part.next)
        goes = sorted((e for e in parts if e.next is not None), key=lambda e: -abs(e.branch.value))
        children = [self.followed(each, depth + 1) for each in goes[: self.width]]
        children += [each.branch for each in goes[self.width : KEPT]]
        rest = [each.branch for each in goes[max(self.width, KEPT) :]]
        for each in parts:
            if each.next is None:
                (rest if each.branch.kind == "rest" else children).append(each.branch)
        children.sort(key=lambda branch: -abs(branch.value))
        if rest:
            total, count = sum(each.value for each in rest), sum(each.count for each in rest)
            children.append(Branch("rest", total, count=count))
        return replace(part.branch, children=tuple(children))

    def _parts(self, reading: Reading) -> list[_Part]:
        """What a reading is made of: its parts sum to it."""
        frozen, constant = self.frozen, 0.0
        if reading.place.name in INTO:
            reading = frozen.to_stream(reading)
        place, at, w, constant = reading
        parts: list[_Part] = []
        if place.name in STREAM:
            attention, mlps = frozen.before(place)
            parts += [_Part(Branch(kind, value, position=at)) for kind, value in frozen.start(at, w)]
            for i in mlps:
                found, more = self._mlp(i, at, w)
                parts, constant = parts + found, constant + more
        else:
            attention = [place.layer]
        for i in attention:
            found, more = self._attention(i, at, w, place.name)
            parts, constant = parts + found, constant + more
        if constant:
            parts.append(_Part(Branch("constants", constant)))
        return parts

    def _attention(self, i: int, at: int, w: Tensor, name: str) -> tuple[list[_Part], float]:
        """What a reading of what attention adds (or of z) is made of, and a constant."""
        sae = self.met.get(("attention", i)) if name in STREAM else None
        if sae is not None and str(sae.hook).endswith("hook_attn_out"):
            return self._latents(sae, i, at, w)
        constant = 0.0
        if name != "attn.hook_z":
            _, _, w, constant = self.frozen.to_z(i, at, w)
        if sae is not None:
            found, more = self._latents(sae, i, at, w)
            return found, constant + more
        return self._edges(i, at, w), constant

    def _edges(self, i: int, at: int, w: Tensor) -> list[_Part]:
        frozen = self.frozen
        edges, maps = frozen.edges(i, w, at), linear_values(frozen.subject, i)
        assert maps.read is not None
        size = edges.parts.abs().flatten()
        largest = torch.topk(size, min(max(self.width, KEPT), len(size))).indices.tolist()
        heads, n = edges.parts.shape
        group, found = heads // maps.read.shape[1], []
        for head, source in (divmod(flat, n) for flat in largest):
            pattern, own = float(frozen.patterns[i][head, at, source]), edges.heads[head]
            back = pattern * (maps.read[:, head // group] @ own)
            constant = pattern * float(maps.read_bias[head // group] @ own)
            reading = Reading(Place(i, "attn.hook_in"), source, back, constant)
            branch = Branch("edge", float(edges.parts[head, source]), i, head, source)
            found.append(_Part(branch, reading))
        count = int((edges.parts != 0).sum()) - len(largest)
        left = float(edges.parts.sum() - edges.parts.flatten()[largest].sum())
        return found + [_Part(Branch("rest", left, count=count))] * (count > 0)

    def _mlp(self, i: int, at: int, w: Tensor) -> tuple[list[_Part], float]:
        """What a reading of what an MLP adds to the stream is made of, and a constant."""
        frozen, sae = self.frozen, self.met.get(("mlp", i))
        hook = f"blocks.{i}.hook_mlp_out"
        added = frozen.row(hook, at)
        if sae is None:
            return [_Part(Branch("mlp", float(added @ w), i, None, at))], 0.0
        constant, norms = 0.0, frozen.maps(i).norms
        if str(sae.writes[-1]) != hook:  # what it gives before a norm behind it
            if "mlp_out" not in norms:
                refuse_norm(frozen.subject, hook)
            if (norm := norms["mlp_out"]) is not None:
                w, c = frozen.through(norm, frozen.row(str(sae.writes[-1]), at), added, w, hook)
                constant = float(c)
        found, more = self._latents(sae, i, at, w)
        return found, constant + more

    def _latents(self, sae: SAE, i: int, at: int, w: Tensor) -> tuple[list[_Part], float]:
        """What a reading of what an SAE stands for is made of, and a constant."""
        frozen, read, written = self.frozen, str(sae.hook), str(sae.writes[-1])
        x, y = frozen.row(read, at), frozen.row(written, at)
        with torch.no_grad():
            out = sae(x[None].to(sae.W_enc))
        codes, pre = (each[0].double().cpu() for each in (out.codes, out.pre))
        latents = codes.nonzero()[:, 0]
        rows, bias = decoder_of(sae, x, latents)
        told = codes[latents] * (rows @ w)
        goes = written != read or not written.endswith(MLPS)
        found = []
        for j, value in zip(latents.tolist(), told.tolist(), strict=True):
            branch = Branch("latent", value, i, None, at, j, read, code=float(codes[j]))
            reading = None
            if goes and abs(float(pre[j])) > 1e-12:
                column, constant = encoder_of(sae, x, j)
                times = value / float(pre[j])
                reading = Reading(place_of(read), at, column * times, constant * times)
            found.append(_Part(branch, reading))
        constant = float(bias @ w)
        if sae.W_skip is not None:
            skip = (sae.W_skip.detach() * sae.out_scale / sae.input_scale).double().cpu()
            bias, branch = bias + x @ skip, Branch("skip", float(x @ skip @ w), i, None, at)
            found.append(_Part(branch, Reading(place_of(read), at, skip @ w)))
        error = y - codes[latents] @ rows - bias
        return [*found, _Part(Branch("error", float(error @ w), i, None, at, sae=read))], constant


def standing(subject: Any, saes: Sequence[Any], *, stream: bool = False) -> dict[tuple[str, int], SAE]:
    """("attention", "mlp", or "pre", "mid" or "post" of the stream; layer) -> the SAE that stands for it.

    Args:
        subject: The model.
        saes: SAEs and transcoders.
        stream: Whether they may stand for the stream.

    Raises:
        HookError: One is on another hook point.
        ConfigError: Two stand for the same.
        ShapeError: One is of another width.
    """
    found: dict[tuple[str, int], SAE] = {}
    for given in saes:
        sae = full_sae("Each of saes", given)
        if stream and sae.config.hooks and sae.config.hooks_out:
            found |= _layers(subject, sae, found)
            continue
        written = str(sae.writes[-1]) if sae.writes else ""
        layer, _, name = written.removeprefix("blocks.").partition(".")
        streams = {f"hook_resid_{stage}": stage for stage in ("pre", "mid", "post")} if stream else {}
        kinds = dict.fromkeys(ATTENTION, "attention") | dict.fromkeys(MLPS, "mlp") | streams
        alone = len(sae.reads) == 1 and (name not in streams or written == str(sae.hook))
        if not alone or not layer.isdigit() or name not in kinds:
            places = "attn.hook_z, hook_attn_out, hook_mlp_out or mlp.hook_out"
            message = (
                f"SAEs on the way must stand for {places}{', or be on hook_resid_*' * stream}. Got one for "
                f"{short(' + '.join(map(str, sae.writes)))}. Leave it out."
            )
            raise HookError(message)
        for hook, width in ((sae.hook, sae.d_in), (sae.writes[-1], sae.d_out)):
            if (own := subject.width(hook)) != width:
                message = (
                    f"An SAE must be of the width of {hook}, {own}. Got {width}. Pass SAEs of this model."
                )
                raise ShapeError(message)
        if written != str(sae.hook):
            place_of(sae.hook)
        at = (kinds[name], int(layer))
        if at[0] == "pre" and at[1]:  # the same rows as behind the layer before
            at = ("post", at[1] - 1)
        _refuse_second(found, at, sae)
        found[at] = sae
    return found


def _layers(subject: Any, sae: SAE, found: Mapping[tuple[str, int], SAE]) -> dict[tuple[str, int], SAE]:
    """What a cross-layer transcoder stands for: the MLP of each of its layers. Raises as `standing` does."""
    own: dict[tuple[str, int], SAE] = {}
    for read, written in zip(map(str, sae.reads), map(str, sae.writes), strict=True):
        layer, _, name = written.removeprefix("blocks.").partition(".")
        before = max((number for _, number in own), default=-1)
        if name not in MLPS or not layer.isdigit() or int(layer) <= before:
            message = (
                "A cross-layer transcoder on the way must stand for the MLPs of layers in their order. Got "
                f"{short(' + '.join(map(str, sae.writes)))}. Leave it out."
            )
            raise HookError(message)
        for hook in (read, written):
            if (width := subject.width(hook)) != sae.config.d_read:
                message = (
                    f"An SAE must be of the width of {hook}, {width}. Got {sae.config.d_read}. Pass SAEs of "
                    "this model."
                )
                raise ShapeError(message)
        if place_of(read).layer != int(layer):
            message = (
                f"Latents of a cross-layer transcoder must read the layer that they first write to, {layer}. "
                f"Got {read!r}. Leave it out."
            )
            raise HookError(message)
        _refuse_second(found, ("mlp", int(layer)), sae)
        own["mlp", int(layer)] = sae
    return own


def _refuse_second(found: Mapping[tuple[str, int], SAE], at: tuple[str, int], sae: SAE) -> None:
    """Raises ConfigError."""
    if at in found:
        what = at[0] if at[0] in ("attention", "mlp") else "stream"
        both = " and ".join(" + ".join(map(str, each.reads)) for each in (found[at], sae))
        message = f"One SAE must stand for the {what} of a layer. Got {both}. Leave one out."
        raise ConfigError(message)


__all__ = ["MLPS", "recursive_dfa", "standing"]
