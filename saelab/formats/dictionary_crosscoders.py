"""CrossCoder and BatchTopKCrossCoder of science-of-finetuning's fork of dictionary_learning (read at
173f7fa).

    x'_l    = (x_l - activation_mean_l) * activation_global_scale_l       (where they are set: NaN stands for
    not) pre     = sum_l x'_l encoder.weight[l] + encoder.bias codes   = relu(pre), of BatchTopK where code
    times norm exceeds `threshold` x_hat_l = (codes decoder.weight[l] + decoder.bias[l]) /
    activation_global_scale_l + activation_mean_l

encoder.weight [L A D], decoder.weight [L D A], biases [D] and [L A]. norm is sum_l ||decoder.weight[l, i]||
for code_normalization 1 (CROSSCODER), the only one in which saelab ranks codes. Inputs here are the
activations of all L side by side; codes are those of `encode`, not times their norms.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from saelab.formats.layout import integer, length, positive
from saelab.formats.plain import Plain, build
from saelab.formats.reading import TensorFile, refuse
from saelab.types import short

if TYPE_CHECKING:
    from saelab.formats.source import Found
    from saelab.sae import SAE

_WEIGHTS = ("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias")
_STATISTICS = ("target_rms", "activation_mean", "activation_std", "activation_global_scale")
_KINDS = {1: "CROSSCODER", 2: "SAE", 3: "MIXED", 4: "NONE", 5: "DECOUPLED"}


def crosscoder(found: Found, file: TensorFile, name: str) -> SAE:
    """The SAE of a crosscoder's tensors; name: its dict_class."""
    batch = name == "BatchTopKCrossCoder"
    names = {*_WEIGHTS, *(("k", "threshold") if batch else ())}
    known = names | {"code_normalization_id", *_STATISTICS}
    if set(file.info) - known or names - set(file.info):
        refuse(f"{file.path} must hold {', '.join(sorted(names))}, as {name} does", short(sorted(file.info)))
    shape = file.info["decoder.bias"].shape
    d_sae = length(file, "encoder.bias")
    if len(shape) != 2 or shape[0] < 2:
        refuse(f"decoder.bias in {file.path} must be [L A], L >= 2", str(shape))
    places, width = shape
    wanted = {"encoder.weight": (places, width, d_sae), "decoder.weight": (places, d_sae, width)}
    for key, size in wanted.items():
        if file.info[key].shape != size:
            refuse(f"{key} in {file.path} must be of shape {size}", str(file.info[key].shape))
    W_enc, b_enc, W_dec, b_dec = (file.read(key, found.source.dtype) for key in _WEIGHTS)
    mean, scale = _normalisation(found, file, places, width)
    W_enc, W_dec = W_enc.reshape(places * width, d_sae), W_dec.transpose(0, 1).reshape(d_sae, places * width)
    b_dec = b_dec.reshape(-1)
    if mean is not None:
        # (x - m) s = x s - m s: the shift goes into the biases, the scale is the SAE's own
        shift = (mean * scale).reshape(-1).to(W_enc.dtype)
        b_enc, b_dec = b_enc - shift @ W_enc, b_dec + shift
    plain = Plain(
        rule="batchtopk" if batch else "relu",
        W_enc=W_enc,
        b_enc=b_enc,
        W_dec=W_dec,
        b_dec=b_dec,
        subtract=False,
        k=positive(integer(file, "k"), "k", found) if batch else None,
        threshold=_threshold(found, file) if batch else None,
        widths=(width,) * places,
        input_scale=(1 / scale).expand(places, width).reshape(-1).contiguous(),
    )
    sae = build(plain, found.path)
    sae.stored_dtype = file.info["encoder.weight"].dtype
    return sae


def _threshold(found: Found, file: TensorFile) -> Tensor:
    kind = 1
    if "code_normalization_id" in file.info and file.info["code_normalization_id"].shape == ():
        kind = int(file.read("code_normalization_id"))
    if kind != 1:
        refuse(
            f"code_normalization in {found.path} must be CROSSCODER",
            _KINDS.get(kind, str(kind)),
            "saelab ranks codes times the sum of their directions' norms and in no other way.",
        )
    if file.info["threshold"].shape != ():
        refuse(f"threshold in {file.path} must be one number", str(file.info["threshold"].shape))
    value = file.read("threshold", found.source.dtype)
    if not value >= 0:
        refuse(f"threshold in {file.path} must be at least 0", "one that training has not set", "Set it.")
    return value


def _normalisation(found: Found, file: TensorFile, places: int, width: int) -> tuple[Tensor | None, Tensor]:
    """(mean [L A] or None, what inputs are multiplied by [L 1])"""
    ones = torch.ones(places, 1)
    present = {name: file.raw(name) for name in _STATISTICS if name in file.info}
    mean, scale = present.get("activation_mean"), present.get("activation_global_scale")
    if mean is None or mean.isnan().all():
        if scale is not None and not (scale.isnan() | (scale == 1)).all():
            refuse(f"activation_mean in {file.path} must be set where activation_global_scale is", "NaN")
        return None, ones
    relative = found.asked("keep_relative_variance", "it keeps statistics for two normalisations")
    if relative is not True or scale is None or scale.shape != (places,) or mean.shape != (places, width):
        refuse(
            f"activation_mean and activation_global_scale in {file.path} must be [{places} {width}] and "
            f"[{places}]",
            "another normalisation, of each number by itself",
            "saelab has one scale for each activation that a crosscoder reads.",
        )
    if not (torch.isfinite(mean).all() and torch.isfinite(scale).all() and (scale > 0).all()):
        refuse(
            f"activation_mean and activation_global_scale in {file.path} must be finite, scales > 0", "others"
        )
    return mean.float(), scale.float()[:, None]
