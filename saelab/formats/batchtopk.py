"""BatchTopK (Bussmann) and top-AFA (Lee): a folder with `sae.pt` and `config.json` whose values, numbers
aside, are strings (read at bartbussmann/BatchTopK b9aab1c and SewoongLee/top-afa-sae 1c7a683).

config.json: {"sae_type", "act_size", "dict_size", "top_k", "input_unit_norm", "hook_point", ...}. With
input_unit_norm rows are centred and divided by their deviation plus 1e-5, which the decoder undoes.

    vanilla   relu((x - b_dec) W + b_enc)
    topk      the k largest of relu((x - b_dec) W): b_enc is there and not used
    jumprelu  relu(pre) where it exceeds exp(log_threshold), pre = x W + b_enc, b_dec not subtracted
    topafa    a prefix of the largest codes times norms whose norm is nearest to that of x - b_dec

batchtopk and its matryoshka keep the largest of a batch and store no threshold for single rows: the user
gives one that was estimated on data.
"""

from __future__ import annotations

from typing import Any

import torch

from saelab.config import is_number
from saelab.formats.layout import SAME, done, positive, take
from saelab.formats.plain import Plain, hook_of
from saelab.formats.reading import refuse
from saelab.formats.settings import HARMLESS, known
from saelab.formats.source import Found, Source
from saelab.sae import SAE
from saelab.types import short

NAME = "batchtopk"
CONFIG_FILE, WEIGHTS_FILE = "config.json", "sae.pt"
OPTIONS = {"threshold": "Above which codes count, in units of pre, for kinds that select within a batch."}

_KINDS = {
    "vanilla": "relu",
    "topk": "topk",
    "batchtopk": "batchtopk",
    "global-matryoshka-topk": "matryoshka",
    "jumprelu": "jumprelu",
    "topafa": "top_afa",
    "top_afa": "top_afa",
}

_KEYS = set("act_size dict_size sae_type top_k input_unit_norm group_sizes afa_coeff model_dtype".split())


def find(source: Source) -> Found | None:
    """config.json with act_size, dict_size and sae_type, beside sae.pt."""
    config = source.config(CONFIG_FILE)
    if config is None or not {"act_size", "dict_size", "sae_type"} <= set(config):
        return None
    if not source.has(WEIGHTS_FILE):
        return None
    evidence = f"{CONFIG_FILE} has act_size, dict_size and sae_type {short(config['sae_type'])}"
    return Found(source, evidence, config, WEIGHTS_FILE, CONFIG_FILE)


def load(found: Found) -> SAE:
    """The SAE of sae.py with these weights, in eval mode."""
    config = found.config
    known(config, HARMLESS | _KEYS, found)
    kind = config["sae_type"]
    if not isinstance(kind, str) or kind not in _KINDS:
        refuse(f"sae_type in {found.path} must be one of {', '.join(_KINDS)}", short(kind))
    rule = _KINDS[kind]
    threshold = "jumprelu.log_threshold"
    names = SAME | ({"threshold": threshold} if rule == "jumprelu" else {})
    weights = take(found, names, ignored=["num_batches_not_active", "threshold"])
    d_in, d_sae = weights["W_enc"].shape
    for key, size in (("act_size", d_in), ("dict_size", d_sae)):
        if _number(config[key]) != size:
            refuse(f"{key} in {found.path} must fit {found.weights}, where it is {size}", short(config[key]))
    unit = config.get("input_unit_norm", True)
    if str(unit) not in ("True", "False"):
        refuse(f"input_unit_norm in {found.path} must be true or false", short(unit))
    more: dict[str, Any] = {}
    if rule == "jumprelu":
        more = {"threshold": weights.pop("threshold").exp()}
    elif rule in ("batchtopk", "matryoshka"):
        value = found.asked("threshold", "its codes are the largest of a batch")
        if not is_number(value) or not value >= 0:
            refuse("threshold must be a number of at least 0", short(value), "Estimate it on data.")
        more = {"threshold": torch.tensor(float(value))}
    if rule in ("topk", "batchtopk", "matryoshka"):
        more["k"] = positive(_number(config.get("top_k")), "top_k", found)
    if rule == "matryoshka":
        more["groups"] = _groups(config.get("group_sizes"), found)
    if rule not in ("relu", "jumprelu"):
        weights["b_enc"] = torch.zeros_like(weights["b_enc"])
    plain = Plain(
        rule=rule,  # type: ignore[arg-type]
        subtract=rule != "jumprelu",
        normalise="zscore" if str(unit) == "True" else "none",
        hook=hook_of(config.get("hook_point"), found.path),
        **weights,
        **more,
    )
    return done(plain, found, "W_enc")


def _number(value: Any) -> Any:
    """What a value says that may be a string of a number."""
    return int(value) if isinstance(value, str) and value.isdecimal() and len(value) < 10 else value


def _groups(value: Any, found: Found) -> tuple[int, ...]:
    """Group sizes from a list, or from a string that holds one."""
    sizes = value.strip("[]").split(",") if isinstance(value, str) else value
    if not isinstance(sizes, list):
        refuse(f"group_sizes in {found.path} must be a list", short(value))
    return tuple(
        positive(_number(size.strip() if isinstance(size, str) else size), "group_sizes", found)
        for size in sizes
    )
