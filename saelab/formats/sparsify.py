"""sparsify, called `sae` before (EleutherAI): a folder with `cfg.json` and `sae.safetensors` (read at 1.3.3).

cfg.json: {"d_in", "expansion_factor", "num_latents", "k", "activation", "transcode", "skip_connection", ...}.
encoder.weight and W_dec are both [d_sae d_in]; W_skip [d_in d_in] is used as x @ W_skip^T.

    topk       the k largest of relu((x - b_dec) W + c)
    groupmax   the largest of each of k neighbouring groups of latents
    signed     the k largest |pre| with their signs (2024; the library itself now passes the key over)
    transcode  b_dec is not subtracted from the input; the target is another activation

SAeUron (diffusion) has the same files with batch_topk, sample_topk and input_unit_norm beside: with the last,
its forward pass centres each row and divides it by its deviation plus 1e-5, and undoes it.
"""

from __future__ import annotations

import json
from pathlib import Path

import safetensors.torch

from saelab.files import write_bytes
from saelab.formats.layout import done, flag, positive, take
from saelab.formats.plain import Plain, of
from saelab.formats.reading import refuse
from saelab.formats.settings import known
from saelab.formats.source import Found, Source
from saelab.sae import SAE
from saelab.types import HookPoint, short

NAME = "sparsify"
CONFIG_FILE, WEIGHTS_FILE = "cfg.json", "sae.safetensors"

_NAMES = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "W_dec", "b_dec": "b_dec"}
_KEYS = (
    "d_in expansion_factor num_latents k activation normalize_decoder multi_topk skip_connection transcode "
    "signed batch_topk sample_topk input_unit_norm"
).split()
_RULES = {"topk": "topk", "groupmax": "group_max"}


def find(source: Source) -> Found | None:
    """cfg.json with k and a number of latents, and no architecture, beside sae.safetensors."""
    config = source.config(CONFIG_FILE)
    if config is None or not source.has(WEIGHTS_FILE) or "architecture" in config or "k" not in config:
        return None
    said = [key for key in ("expansion_factor", "num_latents") if key in config]
    if not said:
        return None
    evidence = f"{CONFIG_FILE} has k and {said[0]}, beside {WEIGHTS_FILE}"
    return Found(source, evidence, config, WEIGHTS_FILE, CONFIG_FILE)


def load(found: Found) -> SAE:
    """What SparseCoder.load_from_disk gives."""
    config = found.config
    known(config, _KEYS, found)
    flags = {
        key: flag(config.get(key, False), key, found)
        for key in ("signed", "transcode", "skip_connection", "input_unit_norm")
    }
    activation = config.get("activation", "topk")
    if activation not in ("topk", "groupmax"):
        refuse(f"activation in {found.path} must be topk or groupmax", short(activation))
    rule = "abs_topk" if flags["signed"] else _RULES[activation]
    names = _NAMES | ({"W_skip": "W_skip"} if flags["skip_connection"] else {})
    weights = take(found, names, transposed=("W_enc", "W_skip"))
    d_in, d_sae = weights["W_enc"].shape
    k = positive(config["k"], "k", found)
    if config.get("d_in", d_in) != d_in:
        refuse(f"d_in in {found.path} must fit {WEIGHTS_FILE}, where it is {d_in}", short(config["d_in"]))
    latents = config.get("num_latents") or d_in * positive(
        config.get("expansion_factor", 32), "expansion", found
    )
    if latents != d_sae:
        refuse(f"The latents in {found.path} must be those of {WEIGHTS_FILE}, {d_sae}", short(latents))
    if rule == "group_max" and d_sae % k:
        refuse(f"k in {found.path} must divide the {d_sae} latents of groupmax", str(k))
    if flags["skip_connection"] and not flags["transcode"]:
        refuse(
            f"A skip connection in {found.path} must be of a transcoder",
            "skip_connection without transcode",
            "No SAE of saelab subtracts b_dec and has one.",
        )
    if flags["transcode"] and rule == "group_max":
        refuse(f"A transcoder in {found.path} must be topk", rule, "saelab has no other with k.")
    plain = Plain(
        rule=rule,  # type: ignore[arg-type]
        subtract=not flags["transcode"],
        normalise="zscore" if flags["input_unit_norm"] else "none",
        k=k,
        transcodes=flags["transcode"],
        **_hooks(found.source.folder.name, flags["transcode"]),
        **weights,
    )
    return done(plain, found, "W_dec")


def save(sae: SAE, folder: Path) -> None:
    """What SparseCoder.load_from_disk loads with the same codes."""
    plain = of(sae, NAME)
    activation = {rule: name for name, rule in _RULES.items()}.get(plain.rule)
    d_in, d_sae = plain.W_enc.shape
    why = None
    if activation is None:
        why = f"codes selected by {plain.rule}"
    elif plain.normalise != "none":
        why = f"normalise={plain.normalise!r}"
    elif plain.transcodes and plain.W_dec.shape[1] != d_in:
        why = f"d_out={plain.W_dec.shape[1]}, where its transcoders have d_in={d_in}"
    elif activation == "groupmax" and d_sae % (plain.k or 1):
        why = f"{d_sae} latents, which k={plain.k} groups do not divide"
    if why:
        refuse(
            "An SAE saved as sparsify must be one that it can hold exactly",
            f"{sae.config.title!r}: {why}",
            "Save it as 'saelab'.",
        )
    plain = plain if plain.transcodes else plain.moved(True)
    tensors = {theirs: getattr(plain, ours) for ours, theirs in _NAMES.items()}
    tensors["encoder.weight"] = plain.W_enc.t()
    if plain.W_skip is not None:
        tensors["W_skip"] = plain.W_skip.t()
    config = {
        "activation": activation,
        "expansion_factor": max(1, d_sae // d_in),
        "normalize_decoder": False,
        "num_latents": d_sae,
        "k": plain.k,
        "multi_topk": False,
        "skip_connection": plain.W_skip is not None,
        "transcode": plain.transcodes,
        "d_in": d_in,
    }
    write_bytes(
        folder / WEIGHTS_FILE, safetensors.torch.save({name: t.contiguous() for name, t in tensors.items()})
    )
    write_bytes(folder / CONFIG_FILE, json.dumps(config).encode())


def _hooks(name: str, transcodes: bool) -> dict[str, HookPoint | None]:
    """The hook points of a folder named after a module, `layers.5` or `layers.5.mlp`: SAEs read its output,
    transcoders read its input and give its output. The output of an MLP is not what the stream gets where a
    norm comes after it (hook_mlp_out)."""
    words = name.split(".")
    if len(words) not in (2, 3) or words[0] not in ("layers", "h") or not words[1].isdigit():
        return {}
    ends = {("mlp",): ("mlp.hook_in", "mlp.hook_out"), (): ("hook_resid_pre", "hook_resid_post")}
    if tuple(words[2:]) not in ends:
        return {}
    before, after = (HookPoint(f"blocks.{int(words[1])}.{end}") for end in ends[tuple(words[2:])])
    return {"hook": before, "hook_out": after} if transcodes else {"hook": after}
