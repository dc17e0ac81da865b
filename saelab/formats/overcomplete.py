"""overcomplete (KempnerInstitute): a module saved whole, or its state dict, in one file (read at 0.3.0).

    codes = rule(relu(pre)),   pre = encoder(x),   x_hat = codes @ D;   no bias is subtracted or added

D is normalise(_weights) * exp(multiplier), or of archetypal dictionaries (W C + Relax) * exp(multiplier) with
the rows of W made convex and those of Relax cut to the norm delta: what its eval mode computes once and
keeps. Tied encoders are x @ D^T + bias. A BatchNorm behind a linear encoder goes into it with its running
statistics: a = weight / sqrt(running_var + eps), W a, (b - running_mean) a + bias.

    TopKSAE       the k largest of a row JumpSAE       where relu(pre) >= exp(thresholds): that number itself
    counts, unlike in ours, so ours is the
                  next smaller float
    BatchTopKSAE  where relu(pre) >= running_threshold, which only modules saved whole have
    MpSAE         has no encoder: k steps of matching pursuit on the rows of D, each a whole product with
                  one of them, of any sign

A state dict has neither the rule nor k, delta or the normalisation: the user says them.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from saelab.config import is_number
from saelab.formats.layout import done, positive
from saelab.formats.plain import Plain
from saelab.formats.reading import TensorFile, refuse
from saelab.formats.settings import HARMLESS, known, seen
from saelab.formats.source import Found, Source
from saelab.sae import SAE
from saelab.types import short

NAME = "overcomplete"
OPTIONS = {
    "rule": "What a state dict computes: 'relu', 'topk' or 'batchtopk' (JumpSAE is known by its thresholds); "
    "'matching_pursuit' where it has no encoder.",
    "k": "Codes of a row, for rule='topk' or 'batchtopk', and steps of matching pursuit.",
    "threshold": "running_threshold, for rule='batchtopk'.",
    "normalization": "How the dictionary's rows are scaled, if not to norm 1: 'l2', 'l1', 'max_l2', 'max_l1' "
    "or 'identity'.",
    "delta": "The largest norm of the rows of Relax, for an archetypal dictionary.",
}

_CLASSES = {
    "SAE": "relu",
    "TopKSAE": "topk",
    "RATopKSAE": "topk",
    "JumpSAE": "jumprelu",
    "RAJumpSAE": "jumprelu",
    "BatchTopKSAE": "batchtopk",
    "MpSAE": "matching_pursuit",
}
_KEYS = HARMLESS | set("training fitted kernel_fn nb_concepts threshold_momentum top_k input_shape".split())
# what modules saved whole hold of their own, and what their encoder and dictionary are made of
_MODULE = re.compile(
    r"(\w+\.)*(__class__|_\w+(\.__class__)?|training|inplace|in_features|out_features|affine|eps|momentum|"
    r"num_features|track_running_stats|weight)"
    r"|encoder\.(hidden_activation|hidden_dim|input_size|n_components|nb_blocks|norm_layer|residual|"
    r"output_activation|final_activation\.\w+)"
    r"|(dictionary|encoder\.tied_to)\.(delta|device|in_dimensions|nb_candidates|nb_concepts|normalization|use_multiplier)"
)
_ARCHETYPAL = {"dictionary.C", "dictionary.W", "dictionary.Relax"}
_REFUSED = {
    "OMPSAE": "Codes of an OMPSAE are solved for by non-negative least squares after each step, which no SAE "
    "of saelab does.",
    "QSAE": "Codes of a QSAE are levels that it has learned, which no SAE of saelab has.",
}
_BLOCK = "encoder.final_block."
_NORMS = ("weight", "bias", "running_mean", "running_var")
_WHY = "a state dict of overcomplete does not tell"


def find(source: Source) -> Found | None:
    """dictionary._weights, or dictionary.C, W and Relax."""
    file = source.tensors()
    if file is None or not ("dictionary._weights" in file.info or set(file.info) >= _ARCHETYPAL):
        return None
    said = "dictionary._weights" if "dictionary._weights" in file.info else "dictionary.C, W and Relax"
    config, name = seen(source)
    return Found(source, f"{source.weights} has {said}", config, source.weights or "", name)


def load(found: Found) -> SAE:
    """The module in eval mode."""
    config, file = found.config, found.file
    name = str(config.get("__class__", "")).rsplit(".", 1)[-1]
    quantised = "QSAE" if "Q" in file.info else ""
    if (name or quantised) not in ("", *_CLASSES):
        refuse(
            f"{found.path} must hold a module out of {', '.join(_CLASSES)}",
            short(config.get("__class__", quantised)),
            _REFUSED.get(name or quantised, "saelab has no such SAE."),
        )
    rule = _CLASSES.get(name) or ("jumprelu" if "thresholds" in file.info else None)
    if not any(tensor.startswith("encoder.") for tensor in file.info):
        rule = rule or found.asked("rule", "without an encoder, 'matching_pursuit' of an MpSAE, or an OMPSAE")
        if rule != "matching_pursuit":
            refuse(
                f"{found.path} must hold an encoder, or be an MpSAE (rule='matching_pursuit')",
                f"rule={short(rule)} and the tensors {short(sorted(file.info))}",
                _REFUSED["OMPSAE"],
            )
        return _pursuit(found)
    if rule is None:
        rule = found.asked("rule", _WHY)
        if rule not in ("relu", "topk", "batchtopk"):
            refuse("rule must be 'relu', 'topk' or 'batchtopk'", short(rule), "")
    known({key: config[key] for key in config if not _MODULE.fullmatch(key)}, _KEYS, found)
    for key in ("encoder.final_activation.__class__", "encoder.output_activation"):
        if "relu" not in str(config.get(key) or "relu").lower():
            refuse(f"{key} in {found.path} must be ReLU", short(config[key]), "saelab has no such encoder.")
    W_dec = _dictionary(found)
    W_enc, b_enc = _encoder(found, W_dec)
    more: dict[str, Any] = {}
    if rule in ("topk", "batchtopk"):
        more["k"] = positive(config["top_k"] if "top_k" in config else found.asked("k", _WHY), "top_k", found)
    if rule == "jumprelu":
        more["threshold"] = _below(_vector(file, "thresholds", len(b_enc), found).exp())
    if rule == "batchtopk":
        # its k counts a whole batch; an SAE of ours is then at its threshold for good
        stored = "running_threshold" in file.info
        value = file.read("running_threshold", torch.float32) if stored else found.asked("threshold", _WHY)
        more["threshold"] = _below(torch.as_tensor(value, dtype=torch.float32).reshape(()).clamp_min(0))
        more["k"] = min(more["k"], len(b_enc))
    dtype = found.source.dtype
    more = {key: value.to(dtype) if isinstance(value, Tensor) else value for key, value in more.items()}
    plain = Plain(
        rule=rule,  # type: ignore[arg-type]
        W_enc=W_enc.to(dtype),
        b_enc=b_enc.to(dtype),
        W_dec=W_dec.to(dtype),
        b_dec=torch.zeros(W_dec.shape[1], dtype=dtype),
        subtract=False,
        **more,
    )
    return done(plain, found, _main(file))


def _pursuit(found: Found) -> SAE:
    """An MpSAE in eval mode, which has no dropout."""
    config, W_dec = found.config, _dictionary(found)
    known({key: config[key] for key in config if not _MODULE.fullmatch(key)}, _KEYS | {"k", "dropout"}, found)
    zeros = torch.zeros(sum(W_dec.shape))
    plain = Plain(
        rule="matching_pursuit",
        W_enc=W_dec.t().to(found.source.dtype),
        b_enc=zeros[: len(W_dec)].to(found.source.dtype),
        W_dec=W_dec.to(found.source.dtype),
        b_dec=zeros[len(W_dec) :].to(found.source.dtype),
        subtract=False,
        pursuit={
            "max_iterations": positive(config["k"] if "k" in config else found.asked("k", _WHY), "k", found),
            "residual_threshold": 0.0,
            "stop_on_duplicate": False,
            "whole_product": True,
        },
    )
    return done(plain, found, _main(found.file))


def _main(file: TensorFile) -> str:
    return "dictionary._weights" if "dictionary._weights" in file.info else "dictionary.C"


def _below(threshold: Tensor) -> Tensor:
    """pre >= threshold is pre > the next smaller float; of relu(pre) >= 0 only what is above 0 shows."""
    return torch.where(threshold > 0, torch.nextafter(threshold, torch.zeros_like(threshold)), threshold)


def _dictionary(found: Found) -> Tensor:
    """[d_sae d_in]: what eval mode uses, in float32."""
    file, config = found.file, found.config
    fused = "dictionary._fused_dictionary"
    main = "dictionary._weights" if "dictionary._weights" in file.info else "dictionary.Relax"
    if len(file.info[main].shape) != 2:
        refuse(f"{main} in {file.path} must have two axes", str(file.info[main].shape))
    if fused in file.info and config.get("dictionary.training") is False:
        if file.info[fused].shape != file.info[main].shape:
            refuse(f"{fused} in {file.path} must be as {main}", str(file.info[fused].shape))
        return file.read(fused, torch.float32)
    scale = torch.ones(())
    if "dictionary.multiplier" in file.info:
        if file.info["dictionary.multiplier"].shape != ():
            refuse(f"dictionary.multiplier in {file.path} must be one number", "several")
        scale = file.read("dictionary.multiplier", torch.float32).exp()
    if main == "dictionary._weights":
        return _normalised(file.read(main, torch.float32), found) * scale
    delta = config["dictionary.delta"] if "dictionary.delta" in config else found.asked("delta", _WHY)
    if not is_number(delta) or not delta >= 0:
        refuse("delta must be a number of at least 0", short(delta), "")
    C, W, relax = (file.read(f"dictionary.{name}", torch.float32) for name in ("C", "W", "Relax"))
    if W.ndim != 2 or C.ndim != 2 or (W.shape[0], C.shape[1]) != relax.shape or W.shape[1] != C.shape[0]:
        refuse(f"C, W and Relax in {file.path} must fit each other", f"{C.shape}, {W.shape}, {relax.shape}")
    W = W.relu()
    W = W / (W.sum(dim=-1, keepdim=True) + 1e-8)
    relax = relax * (delta / relax.norm(dim=-1, keepdim=True)).clamp(max=1)
    return (W @ C + relax) * scale


def _normalised(weights: Tensor, found: Found) -> Tensor:
    said = re.search(r"normalize_(\w+)$", str(found.config.get("dictionary.normalization", "")))
    kind = said[1] if said else found.source.given.get("normalization")
    norms = weights.norm(dim=1, keepdim=True)
    if kind is None:
        if (norms - 1).abs().max() < 1e-6:
            return weights
        kind = found.asked("normalization", "dictionary rows are not of norm 1, and " + _WHY)
    absolute = weights.abs().sum(1, keepdim=True)
    divisors = {
        "l2": norms + 1e-8,
        "max_l2": norms.amax(0, keepdim=True),
        "l1": absolute + 1e-8,
        "max_l1": absolute.amax(0, keepdim=True),
        "identity": torch.ones(()),
    }
    if kind not in divisors:
        refuse(f"normalization in {found.path} must be one of {', '.join(divisors)}", short(kind))
    return weights / divisors[kind]


def _encoder(found: Found, W_dec: Tensor) -> tuple[Tensor, Tensor]:
    """(W_enc [d_in d_sae], b_enc [d_sae]), in float32."""
    file = found.file
    d_sae, d_in = W_dec.shape
    tied = any(name.startswith("encoder.tied_to.") for name in file.info)
    names = {n for n in file.info if n.startswith("encoder.") and not n.startswith("encoder.tied_to.")}
    linear = {_BLOCK + "0.weight", _BLOCK + "0.bias"}
    norm = {_BLOCK + f"1.{name}" for name in _NORMS} & names
    counted = names - {_BLOCK + "1.num_batches_tracked"}
    if tied and counted <= {"encoder.bias"}:
        bias = torch.zeros(d_sae)
        if "encoder.bias" in names:
            bias = _vector(file, "encoder.bias", d_sae, found)
        return W_dec.t(), bias
    if counted in ({"encoder.weight"}, {"encoder.weight", "encoder.bias"}):
        weight, bias = "encoder.weight", "encoder.bias"
    elif counted - norm == linear and len(norm) in (0, 4):
        weight, bias = _BLOCK + "0.weight", _BLOCK + "0.bias"
    else:
        refuse(
            f"The encoder in {file.path} must be linear, with a BatchNorm at most",
            short(sorted(names)) if names else "no tensors of its own",
            "An encoder of several layers, or with LayerNorm or attention, is none of an SAE.",
        )
    if file.info[weight].shape != (d_sae, d_in):
        refuse(f"{weight} in {file.path} must be of shape {(d_sae, d_in)}", str(file.info[weight].shape))
    W, b = file.read(weight, torch.float32), torch.zeros(d_sae)
    if bias in names:
        b = _vector(file, bias, d_sae, found)
    if norm:
        gamma, beta, mean, var = (_vector(file, _BLOCK + f"1.{name}", d_sae, found) for name in _NORMS)
        eps = found.config.get(_BLOCK + "1.eps", 1e-5)
        if not isinstance(eps, float) or (var < 0).any():
            refuse(f"The BatchNorm in {file.path} must have a variance >= 0 and an eps", short(eps))
        a = gamma / (var + eps).sqrt()
        W, b = W * a[:, None], (b - mean) * a + beta
    return W.t(), b


def _vector(file: TensorFile, name: str, n: int, found: Found) -> Tensor:
    if name not in file.info or file.info[name].shape != (n,):
        refuse(f"{name} in {found.path} must be of shape ({n},)", str(file.info.get(name)))
    return file.read(name, torch.float32)
