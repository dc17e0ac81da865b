"""Crosscoders of two models (Kissane et al.; read at ckkissane/crosscoder-model-diff-replication e221e8d):
`cc_weights.pt` and `cfg.json`, or `0.pt` and `0_cfg.json`.

    codes = relu(sum_m x_m W_enc[m] + b_enc),   x_hat_m = codes W_dec[:, m] + b_dec[m]

or, where a configuration or the user says so, of the k largest of a row alone (TopK).
W_enc [M d d_sae], W_dec [d_sae M d], b_dec [M d]. Inputs here are the activations of all M side by side.
"""

from __future__ import annotations

from typing import Literal

from saelab.formats.layout import done, length, positive
from saelab.formats.plain import Plain
from saelab.formats.reading import refuse
from saelab.formats.settings import seen
from saelab.formats.source import Found, Source
from saelab.formats.vocabulary import agree, said
from saelab.sae import SAE
from saelab.types import short

NAME = "crosscoder"
WEIGHTS_FILE = "cc_weights.pt"
OPTIONS = {
    "activation": "'relu' or 'topk', of a crosscoder without a configuration whose name does not tell.",
    "k": "Codes of a row, of a TopK crosscoder.",
}

_NAMES = ("W_enc", "W_dec", "b_enc", "b_dec")


def find(source: Source) -> Found | None:
    """W_enc and W_dec of three axes, b_dec of two."""
    file = source.tensors()
    if file is None or set(file.info) != set(_NAMES):
        return None
    if [len(file.info[name].shape) for name in _NAMES] != [3, 3, 1, 2]:
        return None
    config, named = seen(source)
    evidence = f"{source.weights} has W_enc and W_dec of three axes"
    return Found(source, evidence, config, source.weights or "", named)


def load(found: Found) -> SAE:
    """The CrossCoder, on activations side by side."""
    file = found.file
    shapes = {name: file.info[name].shape for name in _NAMES}
    m, d = shapes["b_dec"]
    d_sae = length(file, "b_enc")
    wanted = {"W_enc": (m, d, d_sae), "W_dec": (d_sae, m, d), "b_enc": (d_sae,), "b_dec": (m, d)}
    if shapes != wanted or not all("float" in file.info[name].dtype for name in _NAMES):
        refuse(f"{file.path} must hold floating point tensors of shapes {wanted}", str(shapes))
    if m < 2:
        refuse(f"A crosscoder in {file.path} must read several activations", f"{m}")
    rule, k = _rule(found)
    wanted = {"activation": rule, "apply_b_dec_to_input": False, "normalise": "none"}
    agree(found, plain=False, d_in=d, d_sae=d_sae, **wanted, **({} if k is None else {"k": k}))
    W_enc, W_dec, b_enc, b_dec = (file.read(name, found.source.dtype) for name in _NAMES)
    plain = Plain(
        rule=rule,
        k=k,
        W_enc=W_enc.reshape(m * d, d_sae),
        b_enc=b_enc,
        W_dec=W_dec.reshape(d_sae, m * d),
        b_dec=b_dec.reshape(m * d),
        subtract=False,
        widths=(d,) * m,
    )
    return done(plain, found, "W_enc")


def _rule(found: Found) -> tuple[Literal["relu", "topk"], int | None]:
    """How codes are selected, and k of TopK."""
    settings, given = said(found), found.source.given
    told, name = settings.values, settings.keys.get("activation", "activation")
    if "activation" in told:
        rule = told["activation"]
        if given.get("activation", rule) != rule:
            refuse(f"activation must be what {found.path} says, {rule!r}", short(given["activation"]), "")
    elif found.config or found.weights == WEIGHTS_FILE:  # theirs are of one kind
        rule = given.get("activation", "relu")
    else:
        rule = found.asked("activation", "its name and its tensors do not tell")
    if rule not in ("relu", "topk"):
        refuse(
            f"{name} of a crosscoder in {found.path} must be 'relu' or 'topk'",
            short(rule),
            "saelab has no other that ranks codes as they are.",
        )
    if rule == "relu":
        return rule, None
    k = told.get("k") or positive(found.asked("k", f"{name} is 'topk', of which it tells no k"), "k", found)
    if given.get("k", k) != k:
        refuse(f"k must be what {found.path} says, {k}", short(given["k"]), "Leave it out.")
    return rule, k
