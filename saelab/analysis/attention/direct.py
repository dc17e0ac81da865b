"""One step back: which heads, from which source tokens, wrote a latent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from saelab.analysis.attention.frozen import (
    INTO,
    STREAM,
    Frozen,
    Place,
    Reading,
    encoder_of,
    place_of,
    writing_layers,
)
from saelab.analysis.results_attention import DFA, HeadAttribution
from saelab.arguments import a_subject, an_integer, checked, full_sae, maybe
from saelab.arguments import text as a_text
from saelab.capabilities import HasHeads, HasTokens, need
from saelab.config import integer
from saelab.types import ConfigError, CorpusError, HookError, RangeError, ShapeError, short

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from saelab.sae import SAE
    from saelab.subjects.head_maps import Norm
    from saelab.types import Inputs


class Asked(NamedTuple):
    """A latent at a place of a text, checked."""

    inputs: Inputs
    tokens: tuple[str, ...]
    place: Place
    latent: int


class Fired(NamedTuple):
    """What a latent does at one position."""

    dest: int
    pre: float
    code: float


@checked(sae=full_sae, n_heads=maybe(an_integer(1)))
def head_attribution(
    sae: SAE, n_heads: int | None = None, sizes: Sequence[float] | np.ndarray | None = None
) -> HeadAttribution:
    """Which head each latent of an SAE on `hook_z` belongs to, from its weights alone.

        share of head h in latent i = ||W_dec[i, h]|| / sum_g ||W_dec[i, g]||

    (Kissane et al. 2024), the same of W_enc, and ||W_enc[h, i]|| s_h with s_h the size of what the head
    gives: heads differ in it, and a large weight on a small z moves little.

    Args:
        sae: On attn.hook_z, where heads lie one after another.
        n_heads: Heads of the layer; None: as the SAE's hook point says.
        sizes: [n_heads], the root mean square length of each head's z; None: that of the decoder's rows.

    Raises:
        HookError: The SAE is on another hook point.
        ConfigError: The number of heads is not known.
        ShapeError: Its width is no multiple of the heads, or there are other sizes than one for each.
    """
    hook = sae.reads[0]
    if len(sae.reads) != 1 or sae.config.d_out is not None or not hook.module.endswith("attn.hook_z"):
        message = (
            f"Heads lie side by side at attn.hook_z alone. Got an SAE on {' + '.join(map(str, sae.reads))}. "
            "Pass an SAE on blocks.N.attn.hook_z; of others dfa tells the heads on a text."
        )
        raise HookError(message)
    heads = n_heads or hook.n_heads
    if heads is None:
        message = (
            f"n_heads must be known. Got none of {hook!r}. Pass n_heads=subject.n_heads, or load the SAE "
            "with n_heads=."
        )
        raise ConfigError(message)
    if sae.d_in % heads:
        message = (
            f"The SAE's width must be a multiple of its heads. Got {sae.d_in} of {heads} heads. Pass the "
            "layer's number of heads."
        )
        raise ShapeError(message)
    with torch.no_grad():
        decoder = _norms((sae.W_dec * sae.out_scale).double().cpu(), heads)
        encoder = _norms((sae.W_enc.t() / sae.input_scale).double().cpu(), heads)
    own = np.sqrt((decoder**2).mean(0)) if sizes is None else _sizes(sizes, heads)
    return HeadAttribution(
        _shares(decoder), _shares(encoder), _shares(encoder * own), own, measured=sizes is not None
    )


@checked(subject=a_subject, sae=full_sae)
def head_readings(subject: Any, sae: SAE) -> np.ndarray:
    """How much of what each latent of an SAE on the stream reads every head can write, from weights alone.

        share of head h of layer l in latent i = ||W_O[l, h] w_i|| / sum over all heads before it

    with w_i the column of the encoder, through the gains of the norms on the way. What W_enc tells of an SAE
    on `hook_z` (see `head_attribution`), one map further on. It knows nothing of what heads do write: their
    patterns and values, and the scales of norms behind attention, which differ from layer to layer.

    Args:
        subject: The model that the SAE reads; its heads can be read.
        sae: On the stream, on hook_attn_out, or on what attention or an MLP reads.

    Returns:
        float64 [d_sae layers heads], of the layers whose heads write there; sums over heads are 1.

    Raises:
        SubjectError: The subject has no attention that can be read.
        HookError: The SAE is on attn.hook_z or another kind of hook point, or no head lies before it.
    """
    need(subject, HasHeads, "Attribution to heads")
    place = place_of(sae.hook)
    layers = writing_layers(subject, place)
    if place.name == "attn.hook_z" or not layers:
        message = (
            f"Readings of heads need an SAE behind W_O, with a head before it. Got one on {place.hook}. Use "
            "head_attribution for attn.hook_z, or another SAE."
        )
        raise HookError(message)
    w = sae.W_enc.detach().double().cpu()
    if sae.per_row and sae.config.options["normalise"] != "sphere":
        w = w - w.mean(0)
    if place.name in INTO:
        w = _through(subject.layer_maps(place.layer).norms.get(INTO[place.name]), w, place.name)
    sizes = []
    for layer in layers:
        maps = subject.layer_maps(layer)
        sizes.append((maps.write @ _through(maps.norms.get("attn_out"), w)).norm(dim=1))
    found = torch.stack(sizes).permute(2, 0, 1).numpy()
    with np.errstate(invalid="ignore", divide="ignore"):
        return found / found.sum((1, 2), keepdims=True)


def _through(norm: Norm | None, w: Tensor, name: str = "") -> Tensor:
    """Readings [width n] behind a norm as those before it, but for its scale."""
    if norm is None:
        return w
    back = w if name == "ln2.hook_normalized" else w * norm.gain[:, None]
    return back - back.mean(0) if norm.centred else back


@checked(subject=a_subject, sae=full_sae, text=a_text, dest=maybe(an_integer()))
def dfa(subject: Any, sae: SAE, text: str, latent: int, dest: int | None = None) -> DFA:
    """Direct feature attribution: a latent's pre-activation by head and source position.

    With the patterns A and values v of the pass, of an SAE on hook_z whose column of the encoder is w::

        pre = sum_head sum_source A[head, dest, source] v[source, head] . w[head] + constants

    An SAE on the stream, or on what attention or an MLP reads, has such a sum for every layer before it,
    through W_O and any norm behind it, and beside them the embedding and the MLPs; scales of norms are those
    of this text. All of it is read of the model's own pass, so the parts sum to what the SAE computes
    (`DFA.pre`), whatever the architecture; models in which that cannot hold are refused.

    Args:
        subject: A language model whose heads can be read.
        sae: On attn.hook_z, hook_attn_out, the stream, or what attention or an MLP reads.
        text: Any.
        latent: Its number.
        dest: The position, BOS counted; None: where its code is largest.

    Raises:
        SubjectError: The subject has no attention that can be read.
        HookError: The SAE is on another kind of hook point, or on none of this subject.
        ShapeError: The SAE is of another width.
        CorpusError: The text is empty, too long, or has fewer than two tokens.
        RangeError: The latent or position is out of range, or the latent fires nowhere and no dest is given.
    """
    return dfa_of(subject, sae, asked_of(subject, sae, text, latent), dest)[0]


def dfa_of(subject: Any, sae: SAE, asked: Asked, dest: int | None) -> tuple[DFA, Frozen]:
    """`dfa` of what was asked, and the pass that it was read of.

    Args:
        subject: The model.
        sae: The SAE.
        asked: What was asked.
        dest: The position, or None.
    """
    place = asked.place
    frozen = Frozen(subject, asked.inputs, place)
    x = frozen.acts[place.hook]
    fired = fired_of(sae, x, asked, dest)
    w, constant = encoder_of(sae, frozen.row(place.hook, fired.dest), asked.latent)
    reading, rest = Reading(place, fired.dest, w, constant), []
    if place.name in INTO:
        reading = frozen.to_stream(reading)
    if reading.place.name in STREAM:
        rest += frozen.start(fired.dest, reading.w)
    layers, parts, constant = [], [], reading.constant
    for own in _of_z(frozen, reading):
        layers.append(own.place.layer)
        parts.append(frozen.edges(own.place.layer, own.w, fired.dest).parts.numpy())
        constant += own.constant
    if reading.place.name in STREAM:
        mlps = frozen.before(reading.place)[1]
        rest += [
            (f"MLP {i}", float(frozen.row(f"blocks.{i}.hook_mlp_out", fired.dest) @ reading.w)) for i in mlps
        ]
    rest.append(("constants", constant))
    heads = next((each.shape[0] for each in parts), 0)
    edges = np.stack(parts) if parts else np.zeros((0, heads, frozen.n))
    found = DFA(
        asked.latent, place.hook, asked.tokens, fired.dest, tuple(layers), edges, fired.pre, fired.code,
        tuple(rest),
    )  # fmt: skip
    return found, frozen


def _of_z(frozen: Frozen, reading: Reading) -> list[Reading]:
    """The readings of z, by layer, that a reading is made of; its own constant is left out."""
    layer, name = reading.place
    if name == "attn.hook_z":
        return [reading._replace(constant=0.0)]
    layers = [layer] if name == "hook_attn_out" else frozen.before(reading.place)[0]
    return [frozen.to_z(i, reading.position, reading.w) for i in layers]


def asked_of(subject: Any, sae: SAE, text: str, latent: Any) -> Asked:
    """What was asked, checked; see `dfa`.

    Args:
        subject: The model.
        sae: The SAE.
        text: Any.
        latent: Its number.
    """
    need(subject, HasHeads, "Attribution to heads")
    need(subject, HasTokens, "Attribution to heads")
    latent = integer("latent", latent, 0, sae.d_sae - 1, error=RangeError, remedy="Pass a latent of the SAE.")
    if len(sae.reads) > 1:
        message = (
            f"Attribution to heads needs an SAE that reads one hook point. Got one of {len(sae.reads)}, "
            f"{' + '.join(map(str, sae.reads))}. Pass an SAE or a transcoder."
        )
        raise HookError(message)
    place = place_of(sae.hook)
    if (width := subject.width(sae.hook)) != sae.d_in:
        message = (
            f"The SAE's d_in must be the width of {sae.hook}, {width}. Got {sae.d_in}. Pass an SAE of this "
            "model."
        )
        raise ShapeError(message)
    return Asked(*read_text(subject, text), place, latent)


def read_text(subject: Any, text: str) -> tuple[Inputs, tuple[str, ...]]:
    """A text for a pass, and its tokens.

    Args:
        subject: The model.
        text: Any.

    Raises:
        CorpusError: It is empty, too long, or has fewer than two tokens.
    """
    inputs = subject.prepare([text])
    ids = inputs.data["input_ids"][0].tolist()
    if len(ids) < 2:
        message = (
            "A text must have a token to attend to and one that attends. Got "
            f"{len(ids)} token, {text!r}. Pass a longer text."
        )
        raise CorpusError(message)
    return inputs, tuple(subject.token_strings(ids))


def in_text(dest: int, asked: Asked) -> int:
    """A position of the text, checked.

    Args:
        dest: The position.
        asked: What was asked.
    """
    last = len(asked.tokens) - 1
    return integer("dest", dest, 0, last, error=RangeError, remedy="Pass a position of the text.")


def fired_of(sae: SAE, x: Tensor, asked: Asked, dest: int | None) -> Fired:
    """Where a latent is looked at, and what the SAE computes there.

    Args:
        sae: The SAE.
        x: float [positions d_in], what it reads.
        asked: What was asked.
        dest: The position, or None.
    """
    if dest is not None:
        dest = in_text(dest, asked)
    with torch.no_grad():
        out = sae((x if dest is None else x[dest : dest + 1]).to(sae.W_enc))
    pre, codes = (each[:, asked.latent].double().cpu().numpy() for each in (out.pre, out.codes))
    if dest is None:
        size = np.abs(codes)
        if not size.any():
            at = int(pre.argmax())
            message = (
                f"A latent must fire somewhere in the text. Got latent {asked.latent}, whose largest "
                f"pre-activation is {pre[at]:.3g} at position {at}, {asked.tokens[at]!r}, where its code is "
                f"0. Pass another text, or dest={at} to see what holds it back."
            )
            raise RangeError(message)
        dest = int(size.argmax())
        pre, codes = pre[dest:], codes[dest:]
    return Fired(dest, float(pre[0]), float(codes[0]))


def _norms(weights: Tensor, heads: int) -> np.ndarray:
    return weights.unflatten(1, (heads, -1)).norm(dim=-1).numpy()


def _sizes(sizes: Any, heads: int) -> np.ndarray:
    try:
        found = np.asarray(sizes, dtype=np.float64)
    except (TypeError, ValueError):
        found = np.empty(0)
    if found.shape != (heads,) or not (np.isfinite(found) & (found >= 0)).all():
        message = f"sizes must be {heads} finite numbers >= 0. Got {short(sizes)}. Pass one for each head."
        raise ShapeError(message)
    return found


def _shares(norms: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return norms / norms.sum(1, keepdims=True)


__all__ = [
    "Asked", "Fired", "asked_of", "dfa", "fired_of", "head_attribution", "head_readings", "read_text",
]  # fmt: skip
