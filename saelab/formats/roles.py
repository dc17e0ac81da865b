"""Which tensors of a file are an encoder, a decoder and what belongs to them, by names and shapes.

Names say which tensor is which; biases, other shapes and, of torch.nn.Linear, the name say which way round a
matrix lies. What they do not tell is left open.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from saelab.formats.reading import TensorFile, TensorInfo, refuse
from saelab.types import short

_LINEAR = r"(\.\d+|_linear|\.linear|\.fc|_layer|\.layer|\.lin|_proj)?"
_FIRST = r"((lin|linear|fc|layer)_)?"
# role -> what people call it, in lower case and without what the file's tensors are wrapped in
_NAMED = {
    "W_enc": r"(w|weights?)_?enc(oder)?|enc(oder)?_w(eights?)?|w_e|encoder|enc"
    rf"|{_FIRST}enc(ode|oder)?{_LINEAR}[._](w|weights?|kernel)",
    "W_dec": r"(w|weights?)_?dec(oder)?|dec(oder)?_w(eights?)?|w_d|decoder|dec|dictionary|dictionary_vectors"
    rf"|{_FIRST}dec(ode|oder)?{_LINEAR}[._](w|weights?|kernel)",
    "b_enc": rf"(b|bias(es)?)_?enc(oder)?|enc(oder)?_b(ias)?|b_e|latent_bias|hidden_bias"
    rf"|{_FIRST}enc(ode|oder)?{_LINEAR}[._](b|bias(es)?)",
    "b_dec": rf"(b|bias(es)?)_?dec(oder)?|dec(oder)?_b(ias)?|b_d|bias|b"
    rf"|{_FIRST}dec(ode|oder)?{_LINEAR}[._](b|bias(es)?)",
    "pre_bias": r"pre_bias|b_pre|bias_pre|pre_encoder_bias|input_bias|tied_bias",
    "W_skip": rf"(w|weights?)_?skip|skip(_connection)?{_LINEAR}([._](w|weights?))?",
    "threshold": r"(\w+\.)?(threshold|thresholds|theta)",
    "log_threshold": r"(\w+\.)?log_thresholds?",
    "k": r"k|top_?k",
    "input_mean": r"(act(ivation)?s?_|input_|x_|data_|train_)?mean|mu|(input_(standardizer|norm)|norm)\.mean",
    "input_std": r"(act(ivation)?s?_|input_|x_|data_|train_)?std|sigma|(input_(standardizer|norm)|norm)\.std",
    "output_mean": r"(output_|target_|y_)mean|output_(standardizer|norm)\.mean",
    "output_std": r"(output_|target_|y_)std|output_(standardizer|norm)\.std",
    "b_gate": r"b_gate|gate_bias",
    "r_mag": r"r_mag",
    "b_mag": r"b_mag|mag_bias",
}
_ROLES = {role: re.compile(pattern) for role, pattern in _NAMED.items()}
MATRICES = ("W_enc", "W_dec", "W_skip")
VECTORS = ("b_enc", "b_dec", "pre_bias", "b_gate", "r_mag", "b_mag")
STATISTICS = ("input_mean", "input_std", "output_mean", "output_std")
# what training leaves in the same file or in the same module
_LEFT = re.compile(
    r"(optim\w*|optimizer\w*|(lr_)?scheduler\w*|rng\w*|cuda_rng\w*|scaler|grad_scaler|ema\w*|history)\..*"
    r"|(.*\.)?(stats_last_nonzero|num_batches_not_active|num_batches_tracked|bandwidth|steps?|step_count|n_steps"
    r"|num_steps|steps_since_\w+|last_active\w*|feature_density|act_freq\w*|fired\w*|n_forward\w*|miss_counts)"
)


@dataclass(frozen=True)
class Seen:
    """What the tensors of a file are."""

    wrapped: str
    """What the names of the SAE's tensors begin with, as in "state_dict."."""
    names: Mapping[str, str]
    """role -> name in the file; of an encoder without decoder, a tied one, W_dec is missing."""
    layers: int | None
    """How many SAEs are stacked in each tensor, None for one alone."""
    d_in: int | None
    """None where shapes leave open which way round the matrices lie."""
    d_sae: int | None
    d_out: int | None
    lies: Mapping[str, bool | None]
    """W_enc, W_dec, W_skip -> whether it is the transpose of ours, None where nothing tells."""
    more: tuple[str, ...] = field(default=())
    """Tensors that are none of these."""
    parts: tuple[int, ...] = field(default=())
    """Numbers of the layers whose SAEs lie side by side under names that differ in them; this is one."""


def see(file: TensorFile, layer: object = None) -> Seen | None:
    """The SAE in these tensors, or None where there is no encoder. layer: of SAEs of several layers side by
    side, which one; the first where it is none of them. Raises FormatError where there are several that no
    number tells apart, or where shapes contradict each other."""
    kept = [name for name in file.info if not _LEFT.fullmatch(name)]
    found = {prefix: _roles(kept, prefix) for prefix in _prefixes(kept)}
    found = {p: roles for p, roles in found.items() if {"W_enc", "W_dec"} <= set(roles)} or {
        p: roles
        for p, roles in found.items()
        if "W_enc" in roles and len(_shape(file, roles["W_enc"])) == 2 and set(roles) & set(VECTORS)
    }
    if not found:
        return None
    parts = _numbered(list(found))
    if parts:
        chosen = parts[layer if isinstance(layer, int) and layer in parts else min(parts)]
        kept = [n for n in kept if n.startswith(chosen) or not any(map(n.startswith, found))]
        found = {chosen: found[chosen]}
    if len(found) > 1:
        refuse(
            f"{file.path} must hold one SAE, or SAEs of several layers stacked in each tensor "
            "or under names that differ in one number",
            f"encoders under {short(sorted(found))}",
            "Save each of them in a file of its own.",
        )
    prefix, roles = next(iter(found.items()))
    outside = {
        role: name for name in kept for role in STATISTICS
        if not (prefix and name.startswith(prefix)) and _ROLES[role].fullmatch(name.lower())
    }  # fmt: skip
    roles = outside | roles
    layers = _layers(file, roles)
    more = tuple(sorted(set(kept) - set(roles.values())))
    sizes = {role: _flat(file.info[name], layers, _axes(role)) for role, name in roles.items()}
    return Seen(prefix, roles, layers, *_sizes(file, roles, sizes), more, tuple(sorted(parts)))


def _numbered(prefixes: list[str]) -> dict[int, str]:
    """Number -> prefix, where several differ in one number alone."""
    digits = [tuple(map(int, re.findall(r"\d+", prefix))) for prefix in prefixes]
    if len(prefixes) < 2 or len({re.sub(r"\d+", "#", prefix) for prefix in prefixes}) > 1:
        return {}
    differing = [column for column in zip(*digits, strict=True) if len(set(column)) > 1]
    if len(differing) != 1 or len(set(differing[0])) < len(prefixes):
        return {}
    return dict(zip(differing[0], prefixes, strict=True))


def _prefixes(names: Iterable[str]) -> list[str]:
    """What may stand before the SAE's own names: nothing, or any of the parts before a dot."""
    found = {""}
    for name in names:
        words = name.split(".")
        found |= {".".join(words[:i]) + "." for i in range(1, len(words))}
    return sorted(found)


def _roles(names: Iterable[str], prefix: str) -> dict[str, str]:
    """role -> name, of the names under a prefix; a role that two names claim is neither's."""
    claimed: dict[str, list[str]] = {}
    for name in names:
        if name.startswith(prefix):
            own = name[len(prefix) :].lower()
            role = next((role for role, pattern in _ROLES.items() if pattern.fullmatch(own)), None)
            if role is not None:
                claimed.setdefault(role, []).append(name)
    return {role: found[0] for role, found in claimed.items() if len(found) == 1}


def _shape(file: TensorFile, name: str) -> tuple[int, ...]:
    return file.info[name].shape


def _layers(file: TensorFile, roles: Mapping[str, str]) -> int | None:
    """How many SAEs are stacked: the encoder has three axes, and its biases two."""
    shape = _shape(file, roles["W_enc"])
    if len(shape) == 2:
        return None
    biases = [_shape(file, roles[role]) for role in ("b_enc", "b_dec", "pre_bias") if role in roles]
    if len(shape) != 3 or not biases or any(len(s) != 2 or s[0] != shape[0] for s in biases):
        refuse(
            f"{roles['W_enc']} in {file.path} must have two axes, or three with biases of two",
            f"{shape}, biases {biases}",
            "A crosscoder or a cross-layer transcoder is no stack of SAEs.",
        )
    return shape[0]


def _axes(role: str) -> int:
    return 2 if role in MATRICES else 1


def _flat(info: TensorInfo, layers: int | None, axes: int) -> tuple[int, ...]:
    """Without the axis of layers, and without axes of 1 before a vector."""
    shape = list(info.shape)
    while layers is not None and len(shape) > 1 and shape[0] == 1 and layers in shape[1:]:
        shape = shape[1:]
    if layers is not None and shape and shape[0] == layers:
        shape = shape[1:]
    while len(shape) > axes and shape[0] == 1:
        shape = shape[1:]
    return tuple(shape)


def _sizes(
    file: TensorFile, roles: Mapping[str, str], sizes: Mapping[str, tuple[int, ...]]
) -> tuple[int | None, int | None, int | None, dict[str, bool | None]]:
    """(d_in, d_sae, d_out, which matrices lie the other way round)"""
    enc, dec = sizes["W_enc"], sizes.get("W_dec")
    if len(enc) != 2 or (dec is not None and len(dec) != 2):
        refuse(f"Encoder and decoder in {file.path} must be matrices", f"{enc} and {dec}")
    hidden = _one(file, roles, sizes, ("b_enc", "b_gate", "r_mag", "b_mag"))
    inner = _one(file, roles, sizes, ("pre_bias", "input_mean", "input_std"))
    outer = _one(file, roles, sizes, ("b_dec", "output_mean", "output_std"))
    linear = {role: re.search(r"\.weight$", roles[role]) is not None for role in MATRICES if role in roles}
    lies: dict[str, bool | None] = {}
    # W_enc is [d_in d_sae], transposed [d_sae d_in]
    ways = [way for way in (False, True) if _fits(enc, way, inner, hidden)]
    if dec is not None:
        pairs = [
            (a, b) for a in ways for b in (False, True)
            if (enc[::-1] if a else enc)[1] == (dec[::-1] if b else dec)[0]
            and _fits(dec, b, hidden, outer)
            and (outer is not None or inner is not None or _same_width(enc, dec, a, b))
        ]  # fmt: skip
        if len({a for a, _ in pairs}) > 1 and inner is None and outer is not None:
            # an SAE gives what it reads: the width of its input is that of its output
            same = [pair for pair in pairs if _same_width(enc, dec, *pair)]
            pairs = same or pairs
        ways = sorted({a for a, _ in pairs})
        way = ways[0] if len(ways) == 1 else linear["W_enc"] or None
        others = sorted({b for a, b in pairs if way in (None, a)})
        lies["W_dec"] = others[0] if len(others) == 1 else linear["W_dec"] or None
        if not pairs:
            refuse(
                f"Encoder and decoder in {file.path} must fit each other and their biases",
                short({name: file.info[name].shape for name in roles.values()}),
            )
    elif not ways:
        refuse(
            f"The encoder in {file.path} must fit its biases",
            short({name: file.info[name].shape for name in roles.values()}),
        )
    lies["W_enc"] = ways[0] if len(ways) == 1 else linear["W_enc"] or None
    d_in = d_sae = d_out = None
    if lies["W_enc"] is not None or enc[0] == enc[1]:
        d_in, d_sae = enc[::-1] if lies["W_enc"] else enc
    if dec is not None and (lies["W_dec"] is not None or dec[0] == dec[1]):
        d_out = dec[0] if lies["W_dec"] else dec[1]
    elif dec is None:
        d_out = d_in
    if "W_skip" in sizes:
        skip, ends = sizes["W_skip"], (d_in, d_out)
        fitting = [way for way in (False, True) if len(skip) == 2 and _fits(skip, way, *ends)]
        if not fitting:
            refuse(
                f"{roles['W_skip']} in {file.path} must lead from what is read to what is written",
                f"{skip}, d_in={d_in} and d_out={d_out}",
            )
        lies["W_skip"] = fitting[0] if len(fitting) == 1 else linear["W_skip"] or None
    return d_in, d_sae, d_out, lies


def _one(
    file: TensorFile, roles: Mapping[str, str], sizes: Mapping[str, tuple[int, ...]], which: Iterable[str]
) -> int | None:
    """The length that these vectors share, None where there are none. Single numbers say nothing."""
    found = {
        sizes[role][0] for role in which if role in roles and len(sizes[role]) == 1 and sizes[role][0] > 1
    }
    if len(found) > 1 or any(len(sizes[role]) > 1 for role in which if role in roles):
        got = {roles[role]: file.info[roles[role]].shape for role in which if role in roles}
        refuse(f"Vectors of {file.path} that belong together must be of one length", short(got))
    return next(iter(found), None)


def _fits(shape: tuple[int, ...], way: bool, rows: int | None, columns: int | None) -> bool:
    a, b = shape[::-1] if way else shape
    return rows in (None, a) and columns in (None, b)


def _same_width(enc: tuple[int, ...], dec: tuple[int, ...], a: bool, b: bool) -> bool:
    return (enc[::-1] if a else enc)[0] == (dec[::-1] if b else dec)[1]


__all__ = ["MATRICES", "STATISTICS", "VECTORS", "Seen", "see"]
