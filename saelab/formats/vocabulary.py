"""What people call the settings of an SAE, in the words of `load_sae`.

Configurations of files that no library claims name the same few things in many ways. Values are taken as
evidence, never as more: what is not a known value of a known setting is left to the user.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from saelab.config import is_integer, is_number
from saelab.formats.reading import refuse
from saelab.formats.settings import HARMLESS, ignored, known
from saelab.formats.source import Found
from saelab.types import short

_NAMES = {
    "activation": "activation activation_fn activation_fn_str activation_function activation_type act_fn act "
    "nonlinearity architecture arch sae_type type rule",
    "k": "k top_k topk K k_sparse k_active n_active num_active",
    "threshold": "threshold theta jump_relu_threshold",
    "apply_b_dec_to_input": "apply_b_dec_to_input subtract subtract_b_dec apply_pre_bias use_pre_bias "
    "apply_decoder_bias_to_pre_encoder subtract_decoder_bias",
    "normalise": "normalise normalize normalize_activations normalise_activations normalization "
    "input_normalization normalize_input normalize_inputs",
    "tied": "tied tied_weights tie_weights",
    "d_in": "d_in input_dim d_model activation_dim act_size act_dim n_inputs in_features input_size d_input "
    "d_act in_dim embed_dim embedding_dim n_embd",
    "d_sae": "d_sae hidden_dim dict_size d_hidden latent_dim n_latents num_latents d_dict n_features "
    "num_features n_dirs dictionary_size d_latent hidden_size n_hidden d_features nb_concepts n_components",
    "d_out": "d_out output_dim out_features",
}
_MEANT = {name: option for option, names in _NAMES.items() for name in names.split()}
_NESTED = {f"{at}.{name}": name for at in ("activation_fn_kwargs", "activation_kwargs") for name in ("k",)}
# what training does to the decoder is in its weights; how they were started is not there any more
_WEIGHTS = frozenset(
    "normalize_decoder normalise_decoder norm_decoder unit_norm_decoder normalize_sae_decoder "
    "decoder_unit_norm tied_init init_tied activation_fn_kwargs activation_kwargs".split()
)

ACTIVATIONS = {
    "relu": "relu", "standard": "relu", "vanilla": "relu", "l1": "relu", "topk": "topk", "topksae": "topk",
    "autoencodertopk": "topk", "topkrelu": "topk", "abstopk": "abs_topk", "batchtopk": "batchtopk",
    "batchtopksae": "batchtopk", "jumprelu": "jumprelu", "jumprelusae": "jumprelu", "identity": "identity",
    "gated": "gated", "gatedsae": "gated", "none": "identity",
}  # fmt: skip
"""What people call an activation, without case, hyphens and underscores -> its name here."""
_NORMS = {"none": "none", "false": "none", "layernorm": "zscore", "zscore": "zscore"}


@dataclass(frozen=True)
class Said:
    """What a configuration says, in the words of `load_sae`."""

    values: Mapping[str, Any]
    """option -> value"""
    keys: Mapping[str, str]
    """option -> what it is called there"""
    unknown: Mapping[str, Any]
    """Settings of which nothing is known, or whose values are none that saelab knows."""


def said(found: Found) -> Said:
    """What the configuration says. Raises FormatError for two settings that contradict each other."""
    values: dict[str, Any] = {}
    keys: dict[str, str] = {}
    named = dict(flat(found.config))
    rest = HARMLESS | _WEIGHTS | set(_MEANT) | set(_NESTED) | ignored(found)
    # what class a nested object is of says nothing but that it is there
    unknown = {
        key: value for key, value in named.items() if key not in rest and not key.endswith("__class__")
    }
    for key, value in named.items():
        option = _MEANT.get(_NESTED.get(key, key))
        if option is None or value is None or key in ignored(found):
            continue
        if key in ("topk", "top_k") and isinstance(value, bool):
            option, value = "activation", "topk" if value else None
        value = _value(option, value)
        if value is None:
            unknown[key] = named[key]
            continue
        if values.setdefault(option, value) != value:
            refuse(
                f"{keys[option]} and {key} in {found.path} must say the same",
                f"{short(values[option])} and {short(value)}",
                f"Pass load_sae(..., ignore=[{key!r}]) if the first is right.",
            )
        keys.setdefault(option, key)
    return Said(values, keys, unknown)


def agree(found: Found, plain: bool = True, **wanted: Any) -> None:
    """Refuse a configuration that says something else than what this format stands for.

    Args:
        plain: Whether the general reader can read such a file.
        wanted: option -> what it is here; a setting of another option has no place in it.
    """
    told = said(found)
    known(told.unknown, (), found)
    for option, value in told.values.items():
        if option not in wanted or wanted[option] != value:
            here = f"{wanted[option]!r}" if option in wanted else "nothing"
            refuse(
                f"{told.keys[option]} in {found.path} must be what an SAE of this format has, {here}",
                short(value),
                "Where you know that the setting is not used, pass "
                f"load_sae(..., ignore=[{told.keys[option]!r}])"
                + ("; format='plain' asks you what it computes." if plain else "."),
            )


def flat(config: Mapping[str, Any], name: str = "") -> list[tuple[str, Any]]:
    """(name, value), those of nested objects joined by dots."""
    out: list[tuple[str, Any]] = []
    for key, value in config.items():
        if isinstance(value, Mapping):
            out += flat(value, f"{name}{key}.")
        else:
            out.append((f"{name}{key}", value))
    return out


def _value(option: str, value: Any) -> Any:
    """In our words, None where there are none."""
    if option == "activation":
        return ACTIVATIONS.get(_bare(value).rpartition(".")[2]) if isinstance(value, str) else None
    if option == "normalise":
        return _NORMS.get(_bare(value)) if isinstance(value, (str, bool)) else None
    if option in ("apply_b_dec_to_input", "tied"):
        return value if isinstance(value, bool) else None
    if option == "threshold":
        return float(value) if is_number(value) else None
    return int(value) if is_integer(value) and value >= 1 else None


def _bare(value: Any) -> str:
    return re.sub("[_ -]", "", str(value).lower())


__all__ = ["ACTIVATIONS", "Said", "agree", "flat", "said"]
