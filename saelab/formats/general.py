"""Bare encoders and decoders that no library claims, in any common wrapping, naming and orientation.

Files of these names are published for SAEs that compute different things, so nothing is guessed: tensors are
recognised by name and shape (see roles.py), a configuration within or beside the file is taken as evidence
(see vocabulary.py), and the user is asked, once, for everything that is still open. What it computes then is

    x' = (x - input_mean) / input_std                         (where the user says so; else x' = x)
    pre = (norm(x') - b_dec) W_enc + b_enc                    (b_dec if apply_b_dec_to_input)
    codes = activation(pre)
    x_hat = undo(codes W_dec + b_dec)              (undo of the norm, of mean and deviation if said)

with the rows of W_dec as they are, divided by their norms ('divide'), or so and pre times the norms ('fold').
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saelab.config import is_integer, is_number
from saelab.formats.layout import done
from saelab.formats.plain import Plain, hook_of
from saelab.formats.reading import refuse
from saelab.formats.roles import MATRICES, STATISTICS, Seen, see
from saelab.formats.settings import ignored, seen, unclaimed
from saelab.formats.source import Found, Source
from saelab.formats.vocabulary import flat, said
from saelab.sae import SAE
from saelab.types import short

NAME = "plain"
OPTIONS = {
    "activation": "How codes come from pre-activations: 'relu', 'topk', 'abs_topk', 'batchtopk', 'jumprelu', "
    "'identity' or 'gated'.",
    "k": "Codes of a row, of topk, abs_topk and batchtopk.",
    "threshold": "Above which pre-activations count, of jumprelu and batchtopk, where the file has none.",
    "apply_b_dec_to_input": "Whether the decoder's bias is subtracted from the input before encoding.",
    "normalise": "What is done to each row before encoding: 'none', 'layernorm', 'zscore' or 'sphere'.",
    "normalise_decoder": "False for decoder rows as they are, 'divide' to divide them by their norms, 'fold' "
    "to multiply pre-activations by these too.",
    "input_mean": "What the file's mean is: 'subtract' before encoding, 'undo' to add it again, 'ignore'.",
    "input_std": "What the file's deviation is: 'divide' before encoding, 'undo' to multiply too, 'ignore'.",
    "output_mean": "What the file's mean of targets is: 'add' to the output, or 'ignore'.",
    "output_std": "What the file's deviation of targets is: 'multiply' the output by it, or 'ignore'.",
    "pre_bias": "What it is beside a decoder's bias: 'subtract' before encoding, 'undo' to add it again too.",
    "transposed": "Which of W_enc [d_in d_sae] and W_dec [d_sae d_out] lie the other way round, in a list.",
    "tied": "True where the decoder, which is not in the file, is the encoder's transpose.",
    "layer": "Which one, where the file or folder holds an SAE for each of several layers.",
    "hook_out": "The hook point that a transcoder's output stands for.",
    "rule": "The same as activation.",
    "subtract": "The same as apply_b_dec_to_input.",
}
_RULES = ("relu", "topk", "abs_topk", "batchtopk", "jumprelu", "identity")
_COUNTED = ("topk", "abs_topk", "batchtopk")
_CUT = ("jumprelu", "batchtopk")
_NORMS = ("none", "layernorm", "zscore", "sphere")
_WRAPS = ("cfg", "config", "args", "hparams", "hyper_parameters", "hyperparameters", "params", "settings",
          "metadata", "trainer", "buffer")  # fmt: skip
_MEANS = {
    "input_mean": ("subtract", "undo", "ignore"),
    "pre_bias": ("subtract", "undo", "ignore"),
    "input_std": ("divide", "undo", "ignore"),
    "output_mean": ("add", "ignore"),
    "output_std": ("multiply", "ignore"),
}

# what a module that was saved whole holds of its own, and what training leaves in the same file
_MODULE = re.compile(
    r"(.*\.)?(__class__|_\w+|training|inplace|in_features|out_features)"
    r"|(optim\w*|(lr_)?scheduler\w*|lr_schedulers|callbacks|loops|rng\w*|metrics|history|logs?|stats)(\..*)?"
    r"|pytorch-lightning_version\.?.*|(train_|val_|eval_|test_)?(loss|losses|metrics)"
)


class Question(NamedTuple):
    """What neither file nor user has said yet."""

    option: str
    why: str
    """with the values that are allowed"""
    example: Any


def find(source: Source) -> Found | None:
    """An encoder, by name, with a decoder or a bias."""
    file = source.tensors()
    tensors = None if file is None else see(file)
    if tensors is None:
        return None
    config, name = seen(source)
    wrapped = tensors.wrapped
    named = {_unwrapped(key.removeprefix(wrapped)): value for key, value in flat(config)}
    config = {key: value for key, value in named.items() if not _MODULE.fullmatch(key)}
    return Found(source, f"{source.weights} has an encoder", config, source.weights or "", name)


def _unwrapped(key: str) -> str:
    """Without the names of what the settings are kept in."""
    head, _, rest = key.partition(".")
    return _unwrapped(rest) if rest and head in _WRAPS else key


def load(found: Found, assumed: Mapping[str, Any] | None = None) -> SAE:
    """What the user says that it is. assumed: answers that a format gives for all of its files."""
    tensors = see(found.file, found.source.given.get("layer"))
    if tensors is None:
        refuse(f"{found.path} must hold an encoder", short(sorted(found.file.info)), "Pass another file.")
    answers = _answers(found, tensors) | {"tied": "W_dec" not in tensors.names} | dict(assumed or {})
    answers |= _given(found)
    questions = _open(found, tensors, answers)
    if questions:
        refuse(
            f"{found.source.folder / found.weights} holds an encoder and a decoder whose meaning must be "
            "said: the same tensors are published for different SAEs",
            _shown(found, tensors, answers),
            _remedy(found, questions),
        )
    _check(found, tensors, answers)
    return done(_plain(found, tensors, answers), found, tensors.names["W_enc"])


def layers(found: Found) -> list[int]:
    """Of which layers it has an SAE, stacked in each tensor or side by side; none for one alone."""
    tensors = see(found.file)
    return [] if tensors is None else _numbers(tensors)


def _numbers(tensors: Seen) -> list[int]:
    return list(tensors.parts or range(tensors.layers or 0))


def _given(found: Found) -> dict[str, Any]:
    same = {"rule": "activation", "subtract": "apply_b_dec_to_input"}
    given: dict[str, Any] = {}
    for option, value in found.source.given.items():
        if option in OPTIONS and given.setdefault(same.get(option, option), value) is not value:
            refuse(f"{option} and {same.get(option)} are one option", "two values of it", "Pass one of them.")
    return given


def _answers(found: Found, tensors: Seen) -> dict[str, Any]:
    """What the file says itself. Raises FormatError where the user contradicts it."""
    told = said(found)
    sizes = {"d_in": tensors.d_in, "d_sae": tensors.d_sae, "d_out": tensors.d_out}
    for option, size in sizes.items():
        value = told.values.get(option)
        # some call the width of the input hidden, others that of the code
        if size is not None and value is not None and value not in (tensors.d_in, tensors.d_sae):
            refuse(
                f"{told.keys[option]} in {found.path} must fit the tensors, where it is {size}", str(value)
            )
    answers = {key: value for key, value in told.values.items() if key not in sizes}
    if "k" in tensors.names and "k" not in ignored(found):
        stored = found.file.read(tensors.names["k"])
        if stored.numel() != 1 or int(stored) != stored:
            refuse(f"k in {found.path} must be one integer", str(tuple(stored.shape)))
        if answers.setdefault("k", int(stored)) != int(stored):
            refuse(f"k in {found.path} must be that of its configuration, {answers['k']}", str(int(stored)))
    if "threshold" in answers and {"threshold", "log_threshold"} & set(tensors.names):
        name = told.keys["threshold"]
        refuse(
            f"{found.path} must say once what its thresholds are",
            f"{name}={answers['threshold']} and a tensor",
            f"Pass load_sae(..., ignore=[{name!r}]) if the tensor is right.",
        )
    given = _given(found)
    for option, value in answers.items():
        if option in given and given[option] != value:
            name = told.keys.get(option, option)
            refuse(
                f"{option} must be what the file says, {value!r}",
                f"{given[option]!r}",
                f"Leave it out, or pass ignore=[{name!r}] too where you know better.",
            )
    return answers


def _open(found: Found, tensors: Seen, answers: Mapping[str, Any]) -> list[Question]:
    """Everything that is still to be said."""
    names, activation = tensors.names, answers.get("activation")
    out: list[Question] = []

    def ask(option: str, why: str, example: Any, needed: bool = True) -> None:
        if needed and option not in answers:
            out.append(Question(option, why, example))

    numbers = _numbers(tensors)
    if numbers:
        told = _either(numbers) if tensors.parts else f"0 to {numbers[-1]}"
        ask("layer", f"which SAE of the {'file' if tensors.parts else 'stack'}: {told}", numbers[0])
    rules = ("gated",) if "b_gate" in names else _RULES
    example = rules[0] if len(rules) == 1 else "topk" if "k" in answers else "relu"
    cuts = [names[role] for role in ("threshold", "log_threshold") if role in names]
    if cuts and len(rules) > 1:
        example = "jumprelu" if found.file.info[cuts[0]].shape not in ((), (1,)) else "batchtopk"
    ask("activation", f"how codes come from pre-activations: {_either(rules)}", example)
    counted = activation in _COUNTED or activation is None
    ask("k", "codes of a row, for topk, abs_topk and batchtopk", 32, counted)
    cut = activation in _CUT or activation is None
    stored = "threshold" in names or "log_threshold" in names
    ask("threshold", "above which pre-activations count, for jumprelu and batchtopk: a number >= 0", 0.1,
        cut and not stored)  # fmt: skip
    ask(
        "apply_b_dec_to_input",
        f"whether {names.get('b_dec', names.get('pre_bias'))} is subtracted from x before encoding: True or "
        "False",
        False,
        bool({"b_dec", "pre_bias"} & set(names)),
    )
    both = {"b_dec", "pre_bias"} <= set(names)
    for option, allowed in _MEANS.items():
        about = f"what {names.get(option)} is for: {_either(allowed)}"
        ask(option, about, allowed[-1], option in names and (option != "pre_bias" or both))
    ask("normalise", f"what is done to each row of x before encoding: {_either(_NORMS)}", "none")
    if "W_dec" in names and not _unit(found, tensors):
        ask("normalise_decoder", "whether decoder rows, not of norm 1, are used as they are: False, "
            "'divide' (by their norms) or 'fold' (and pre-activations times the norms)", False)  # fmt: skip
    unclear = [role for role, way in tensors.lies.items() if way is None]
    if unclear:
        told = ", ".join(f"{names[role]} as {role}" for role in unclear)
        ask("transposed", "which of W_enc [d_in d_sae], W_dec [d_sae d_out] and W_skip [d_in d_out] lie the "
            f"other way round: a list of {told}, [] for none", [])  # fmt: skip
    if answers.get("tied") is True and "tied" not in found.source.given and "W_dec" not in names:
        if "tied" not in said(found).values:
            out.append(Question("tied", "whether the missing decoder is the encoder's transpose: True", True))
    more = [name for name in tensors.more if name not in ignored(found)]
    unknown = dict(said(found).unknown)
    if more or unknown:
        told = [f"the tensors {short(more)}"] if more else []
        told += [f"the settings {short(unknown)} of {found.path.name}"] if unknown else []
        out.append(
            Question(
                "ignore", f"that {' and '.join(told)} change no codes, by their names", [*more, *unknown]
            )
        )
    return out


def _check(found: Found, tensors: Seen, answers: Mapping[str, Any]) -> None:
    """Every answer is one that is allowed."""
    d_sae, numbers, activation = tensors.d_sae or 2**31, _numbers(tensors), answers["activation"]
    rules = ("gated",) if "b_gate" in tensors.names else _RULES
    allowed: dict[str, tuple[Callable[[Any], bool], str]] = {
        "activation": (lambda v: v in rules, _either(rules)),
        "k": (lambda v: is_integer(v) and 1 <= v <= d_sae, f"an integer between 1 and d_sae={d_sae}"),
        "threshold": (lambda v: is_number(v) and v >= 0, "a number of at least 0"),
        "apply_b_dec_to_input": (lambda v: isinstance(v, bool), "True or False"),
        "normalise": (lambda v: v in _NORMS, _either(_NORMS)),
        "normalise_decoder": (lambda v: v is False or v in ("divide", "fold"), "False, 'divide' or 'fold'"),
        "tied": (lambda v: isinstance(v, bool), "True or False"),
        "transposed": (lambda v: isinstance(v, (list, tuple)) and set(v) <= set(MATRICES),
                       f"a list of {_either(MATRICES)}"),
        "layer": (lambda v: is_integer(v) and v in (numbers or [0]), f"one of {short(numbers)}"),
        **{name: (lambda v, values=values: v in values, _either(values)) for name, values in _MEANS.items()},
    }  # fmt: skip
    for option, (right, words) in allowed.items():
        if option in answers and not right(answers[option]):
            refuse(f"{option} of {found.path} must be {words}", short(answers[option]), "Pass one of these.")
    unused = {"k": _COUNTED, "threshold": _CUT}
    for option, rules in unused.items():
        if option in found.source.given and activation not in rules:
            refuse(f"{option} is of {_either(rules)}", f"activation={activation!r}", f"Leave {option} out.")
    if "k" in answers and activation in ("relu", "identity", "gated"):
        refuse(
            f"An SAE of {found.path} whose activation is {activation!r} must have no k",
            f"k={answers['k']} in the file",
            "Pass ignore=[...] with its name there where you know that it is not used.",
        )
    for option in (*_MEANS, "layer", "tied"):
        there = {"layer": bool(numbers), "tied": "W_dec" not in tensors.names}
        if option in found.source.given and not there.get(option, option in tensors.names):
            refuse(
                f"{option} is of files that have one", short(sorted(found.file.info)), f"Leave {option} out."
            )
    vector = [r for r in ("threshold", "log_threshold") if r in tensors.names]
    if activation == "topk" and vector and found.file.info[tensors.names[vector[0]]].shape not in ((), (1,)):
        name = tensors.names[vector[0]]
        if name not in ignored(found):
            refuse(
                f"Thresholds of each latent in {found.path} must be those of a jumprelu",
                f"{name} {found.file.info[name].shape} and activation='topk'",
                f"Pass activation='jumprelu', or ignore=[{name!r}] where you know that they are not used.",
            )


def _plain(found: Found, tensors: Seen, answers: Mapping[str, Any]) -> Plain:
    """In double where something is folded, else the file's numbers."""
    names, dtype = tensors.names, found.source.dtype
    turned = set(answers.get("transposed", ()))
    turned |= {role for role, way in tensors.lies.items() if way}
    w = {role: _tensor(found, tensors, role, answers) for role in names if role != "k"}
    w = {role: t.t() if role in turned else t for role, t in w.items()}
    W_enc = w["W_enc"]
    W_dec = w["W_dec"] if "W_dec" in w else W_enc.t()
    (d_in, d_sae), d_out = W_enc.shape, W_dec.shape[1]
    if W_dec.shape[0] != d_sae:
        refuse(f"W_enc and W_dec in {found.path} must fit each other", f"{W_enc.shape} and {W_dec.shape}")
    hook_out = hook_of(answers.get("hook_out"), found.path)
    transcodes = d_out != d_in or hook_out is not None or "W_skip" in w
    own = w.pop("pre_bias") if "b_dec" not in w and "pre_bias" in w else None
    b_dec = w["b_dec"] if "b_dec" in w else own if own is not None else torch.zeros(d_out, dtype=dtype)
    b_enc = w["b_gate"] if "b_gate" in w else w["b_enc"] if "b_enc" in w else torch.zeros(d_sae, dtype=dtype)
    rule: Any = answers["activation"]
    if rule == "gated" and not {"r_mag", "b_mag"} <= set(w):
        refuse(f"A gated SAE in {found.path} must hold r_mag and b_mag", short(sorted(found.file.info)))
    plain = Plain(
        rule=rule,
        W_enc=W_enc,
        b_enc=b_enc,
        W_dec=W_dec,
        b_dec=b_dec,
        subtract=answers.get("apply_b_dec_to_input", False),
        normalise=answers["normalise"],
        k=answers["k"] if rule in _COUNTED else None,
        threshold=_threshold(w, answers, d_sae, found) if rule in _CUT else None,
        r_mag=w.get("r_mag") if rule == "gated" else None,
        b_mag=w.get("b_mag") if rule == "gated" else None,
        W_skip=w.get("W_skip"),
        transcodes=transcodes,
        hook_out=hook_out,
    )
    if answers.get("normalise_decoder"):
        norms = W_dec.norm(dim=1)
        if not (norms > 0).all():
            refuse(
                f"Decoder rows in {found.path} must not be 0 where they are divided by norms", "such a row"
            )
        fold = answers["normalise_decoder"] == "fold"
        plain = plain.folded(norms, found.path) if fold else replace(plain, W_dec=W_dec / norms[:, None])
    return _shifted(plain, w, answers, found)


def _shifted(plain: Plain, w: Mapping[str, Tensor], answers: Mapping[str, Any], found: Found) -> Plain:
    """Means and deviations as the user says, in the weights: (x - m) / s W = x (W / s) - (m / s) W."""
    used = {r: w[r].double() for r in _MEANS if r in w and answers.get(r, "ignore") != "ignore"}
    if not used:
        return plain
    skips = plain.W_skip is not None  # of which inputs, nothing tells
    if plain.normalise != "none" or skips or (plain.transcodes and "undo" in map(answers.get, used)):
        refuse(
            f"Means and deviations in {found.path} must be of raw inputs, and be undone in what was read",
            f"{ {r: answers[r] for r in used} }, normalise={plain.normalise!r}{', W_skip' if skips else ''}",
            "saelab has no SAE that does both.",
        )
    dtype, zero, one = plain.W_enc.dtype, torch.zeros(()).double(), torch.ones(()).double()
    mean = sum((used.get(r, zero) for r in ("input_mean", "pre_bias")), zero)
    std = used.get("input_std", one)
    if any((used[r] <= 0).any() for r in ("input_std", "output_std") if r in used):
        refuse(f"Deviations in {found.path} must be > 0", "others")
    plain = plain.moved(False)
    d_in, d_out = plain.W_enc.shape[0], plain.W_dec.shape[1]
    W_enc = plain.W_enc.double() / std.expand(d_in)[:, None]
    shift = mean.expand(d_in) @ W_enc
    back = std if answers.get("input_std") == "undo" else one
    W_dec, b_dec = plain.W_dec.double() * back, plain.b_dec.double() * back
    W_dec, b_dec = W_dec * used.get("output_std", one), b_dec * used.get("output_std", one)
    for role in ("input_mean", "pre_bias", "output_mean"):
        b_dec = b_dec + (used[role].expand(d_out) if answers.get(role) in ("undo", "add") else 0)
    b_mag = plain.b_mag
    if plain.rule == "gated" and plain.b_mag is not None and plain.r_mag is not None:
        b_mag = (plain.b_mag.double() - plain.r_mag.double().exp() * shift).to(dtype)
    return replace(
        plain,
        W_enc=W_enc.to(dtype),
        b_enc=(plain.b_enc.double() - shift).to(dtype),
        W_dec=W_dec.to(dtype),
        b_dec=b_dec.to(dtype),
        b_mag=b_mag,
    )


def _tensor(found: Found, tensors: Seen, role: str, answers: Mapping[str, Any]) -> Tensor:
    """The tensor of the layer that was asked for, without axes of 1 before a vector."""
    tensor = found.file.read(tensors.names[role], found.source.dtype)
    axes = 2 if role in MATRICES else 1
    n = tensors.layers
    if n is not None:
        while tensor.ndim > 1 and tensor.shape[0] == 1 and n in tensor.shape[1:]:
            tensor = tensor[0]
        if tensor.ndim and tensor.shape[0] == n:
            tensor = tensor[answers["layer"]]
    while tensor.ndim > axes and tensor.shape[0] == 1:
        tensor = tensor[0]
    return tensor.clone() if n is not None else tensor


def _threshold(w: Mapping[str, Tensor], answers: Mapping[str, Any], d_sae: int, found: Found) -> Tensor:
    if "threshold" in answers:
        value = torch.tensor(float(answers["threshold"]), dtype=found.source.dtype)
    else:
        value = w["threshold"] if "threshold" in w else w["log_threshold"].exp()
    value = value.reshape(()) if value.numel() == 1 else value
    by_latent = answers["activation"] == "jumprelu"
    if (
        value.shape not in ((), (d_sae,))
        or (value.ndim and not by_latent)
        or (not by_latent and not value >= 0)
    ):
        refuse(f"The threshold in {found.path} must be one number >= 0, or one a latent of jumprelu",
               str(tuple(value.shape)) if value.ndim else str(float(value)))  # fmt: skip
    return value.expand(d_sae).clone() if by_latent else value


def _unit(found: Found, tensors: Seen) -> bool:
    """Whether all decoder rows are of norm 1, whichever way they lie."""
    W_dec = found.file.read(tensors.names["W_dec"], torch.float32)
    way = tensors.lies["W_dec"]
    axes = (-2, -1) if way is None else (-2,) if way else (-1,)
    return all(bool(((W_dec.norm(dim=axis) - 1).abs() < 1e-4).all()) for axis in axes)


def _either(values: Any) -> str:
    words = [repr(value) for value in values]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _shown(found: Found, tensors: Seen, answers: Mapping[str, Any]) -> str:
    """The tensors and what is known, a line each."""
    roles = {name: role for role, name in tensors.names.items()}
    names = sorted(found.file.info, key=lambda name: (name not in roles, name))
    width = max(len(name) for name in names)
    lines = [f"d_in={tensors.d_in}, d_sae={tensors.d_sae} in" if tensors.d_in else "tensors"]
    for name in names[:24]:
        info = found.file.info[name]
        shape = " ".join(map(str, info.shape))
        role = "" if roles.get(name, name) == name else f"  {roles[name]}"
        lines.append(f"  {name:<{width}}  [{shape}] {info.dtype}{role}")
    if len(names) > 24:
        lines.append(f"  and {len(names) - 24} more")
    known = {key: value for key, value in answers.items() if key != "tied"}
    if known:
        lines.append(f"  known: {', '.join(f'{key}={value!r}' for key, value in known.items())}")
    for name in unclaimed(found.source):
        lines.append(f"  not used: {name}, which lies beside other files of tensors, too")
    return "\n".join(lines)


def _remedy(found: Found, questions: list[Question]) -> str:
    """What to say, and a call to copy."""
    width = max(len(question.option) for question in questions)
    lines = ["Say"]
    lines += [f"  {question.option:<{width}}  {question.why}" for question in questions]
    chosen = {question.option: question.example for question in questions}
    activation = chosen.get("activation", found.source.given.get("activation"))
    if activation is not None and activation not in _COUNTED:
        chosen.pop("k", None)
    if activation is not None and activation not in _CUT:
        chosen.pop("threshold", None)
    d_sae = see(found.file)
    if "k" in chosen and d_sae is not None and d_sae.d_sae is not None:
        chosen["k"] = min(chosen["k"], d_sae.d_sae)
    given = {key: value for key, value in found.source.given.items() if key not in chosen}
    if isinstance(given.get("ignore", chosen.get("ignore")), str):
        given["ignore"] = [given["ignore"]]
    if "ignore" in chosen:
        chosen["ignore"] = sorted({*chosen["ignore"], *ignored(found)})
    if found.source.format is not None:
        given["format"] = found.source.format
    path = str(found.source.folder / (found.source.name or ""))
    said_ = ", ".join(f"{key}={value!r}" for key, value in (given | chosen).items())
    lines.append(f"as in (with your values)  saelab.load_sae({path!r}, {said_})")
    return "\n".join(lines)


__all__ = ["NAME", "OPTIONS", "STATISTICS", "find", "layers", "load"]
