"""Files of libraries for vision models."""

from __future__ import annotations

import gzip
import io
import pickle
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from regenerate_formats import rows
from release_cases import (
    CASES,
    Case,
    K,
    Result,
    absent,
    random,
    sae,
    topk,
)
from torch import Tensor

# ---- overcomplete ----------------------------------------------------------------------------------------


EXTRAS = "matplotlib cv2 skimage".split()


def overcomplete(
    cls: str, whole: bool, encoder: str = "linear", tied: bool = False, settled: bool = True, **settings: Any
) -> Callable[..., None]:
    def make(folder: Path, d_in: int, d_sae: int) -> None:
        absent("torchvision", "timm", *EXTRAS)
        from overcomplete import sae as theirs

        more = dict(settings)
        if cls.startswith("RA"):
            more |= {"points": random(9, d_in), "delta": 0.4}
        made = getattr(theirs, cls)(d_in, d_sae, encoder_module=encoder, **more)
        if tied:
            made.tied(bias=True)
        with torch.no_grad():
            for name, parameter in made.named_parameters():
                small = "bias" in name or parameter.ndim < 2
                parameter.copy_(random(*parameter.shape, size=0.2 if small else 0.6))
            if cls.endswith("JumpSAE"):
                made.thresholds -= 1
            made.train()
            if settled:
                made(rows(d_in))  # sets the running statistics and thresholds, and projects dictionaries
                made(rows(d_in) * 1.1)
        if whole:
            made.eval()
        folder.mkdir(parents=True)
        torch.save(made if whole else made.state_dict(), folder / "sae.pt")
        torch.save(made, folder / "whole.pickle")

    return make


def overcomplete_run(folder: Path, x: Tensor) -> Result:
    made = torch.load(folder / "whole.pickle", weights_only=False)
    (folder / "whole.pickle").unlink()
    made.train()
    made.eval()
    with torch.no_grad():
        _, codes, out = made(x)
    return codes, out


for name, case, given in (
    (
        "pursuit",
        overcomplete("MpSAE", True, "identity", k=K, dictionary_params={"use_multiplier": True}),
        {},
    ),
    ("pursuit-state", overcomplete("MpSAE", False, "identity", k=K), {"rule": "matching_pursuit", "k": K}),
    ("topk", overcomplete("TopKSAE", True, top_k=K), {}),
    ("topk-state", overcomplete("TopKSAE", False, top_k=K), {"rule": "topk", "k": K}),
    ("topk-norm", overcomplete("TopKSAE", True, "mlp_bn_1", top_k=K), {}),
    ("topk-tied", overcomplete("TopKSAE", True, tied=True, top_k=K), {}),
    # as the last step of an optimizer leaves it
    (
        "topk-raw",
        overcomplete("TopKSAE", False, settled=False, top_k=K),
        {"rule": "topk", "k": K, "normalization": "l2"},
    ),
    (
        "archetypal-raw",
        overcomplete("RATopKSAE", False, settled=False, top_k=K),
        {"rule": "topk", "k": K, "delta": 0.4},
    ),
    ("jump", overcomplete("JumpSAE", True), {}),
    ("jump-state", overcomplete("JumpSAE", False), {"normalization": "l2"}),
    (
        "jump-l1",
        overcomplete("JumpSAE", True, dictionary_params={"normalization": "max_l1", "use_multiplier": True}),
        {},
    ),
    ("batchtopk", overcomplete("BatchTopKSAE", True, top_k=40), {}),
    ("archetypal", overcomplete("RATopKSAE", True, top_k=K), {}),
    ("archetypal-state", overcomplete("RATopKSAE", False, top_k=K), {"rule": "topk", "k": K, "delta": 0.4}),
    ("archetypal-jump", overcomplete("RAJumpSAE", False), {"delta": 0.4}),
):
    CASES[f"overcomplete/{name}"] = Case(case, overcomplete_run, "", "overcomplete", given)

# ---- vision ----------------------------------------------------------------------------------------------


def settings_class(module: str, name: str) -> type:
    """A class that pickles refer to by name, as that of a library that is not there."""
    made = type(name, (), {"__module__": module})
    parts = module.split(".")
    for i in range(len(parts)):
        sys.modules.setdefault(".".join(parts[: i + 1]), types.ModuleType(parts[i]))
    setattr(sys.modules[module], name, made)
    return made


def dumped(path: Path, data: Any) -> None:
    """As save_model of all these libraries: torch.save for .pt, pickle.dump for .pkl and .pkl.gz. A .pt.gz is
    a packed .pt, old.pt what torch.save wrote before torch 1.6."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffixes == [".pkl", ".gz"]:
        with gzip.open(path, "wb") as file:
            pickle.dump(data, file)
    elif path.suffix == ".pkl":
        with path.open("wb") as file:
            pickle.dump(data, file, protocol=3)
    elif path.suffix == ".gz":
        buffer = io.BytesIO()
        torch.save(data, buffer)
        path.write_bytes(gzip.compress(buffer.getvalue()))
    else:
        torch.save(data, path, _use_new_zipfile_serialization=path.name != "old.pt")


def vision(module: str, name: str, file: str = "sae.pt", **settings: Any) -> Callable[[Path, int, int], None]:
    def make(folder: Path, d_in: int, d_sae: int) -> None:
        config = settings_class(module, name)()
        vars(config).update({"d_in": d_in, "d_sae": d_sae, "hook_point": "blocks.{layer}.hook_resid_post",
                             "hook_point_layer": 9, "dtype": torch.float32, **settings})  # fmt: skip
        w = sae(d_in, d_sae)
        if settings.get("architecture") == "gated":
            w |= {key: random(d_sae, size=0.2) for key in ("b_gate", "r_mag", "b_mag")}
        if module.startswith("sae_lens"):
            w |= {"scaling_factor": torch.ones(d_sae)}
        if file != "sae.pt":  # a module's state_dict has parameters, in an OrderedDict
            w = torch.nn.ParameterDict(w).state_dict(keep_vars=True)
        dumped(folder / file, {"cfg": config, "state_dict": w})

    return make


def undumped(folder: Path) -> Any:
    path = next(folder.iterdir())
    if path.suffix == ".pkl" or path.suffixes == [".pkl", ".gz"]:
        with path.open("rb") if path.suffix == ".pkl" else gzip.open(path) as file:
            return pickle.load(file)
    packed = io.BytesIO(gzip.decompress(path.read_bytes())) if path.suffix == ".gz" else path
    return torch.load(packed, weights_only=False)


def vision_run(folder: Path, x: Tensor) -> Result:
    """sae.py of ViT-Prisma at 6c19417; of mats_sae_training_for_ViTs without norm."""
    data = undumped(folder)
    config, w = vars(data["cfg"]), data["state_dict"]
    norm = config.get("normalize_activations") == "layer_norm"
    mean = x.mean(-1, keepdim=True) if norm else torch.zeros(len(x), 1)
    std = (x - mean).std(-1, keepdim=True) if norm else torch.ones(len(x), 1)
    inputs = (x - mean) / (std + 1e-5) if norm else x
    inputs = inputs - w["b_dec"] * config.get("apply_b_dec_to_input", True)
    if config.get("architecture") == "gated":
        gate = inputs @ w["W_enc"] + w["b_gate"] > 0
        codes = gate * (inputs @ (w["W_enc"] * w["r_mag"].exp()) + w["b_mag"]).relu()
    else:
        pre = inputs @ w["W_enc"] + w["b_enc"]
        codes = topk(pre) if config.get("activation_fn_str") == "topk" else pre.relu()
    return codes.detach(), ((codes @ w["W_dec"] + w["b_dec"]) * std + mean).detach()


SAELENS = ("sae_lens.training.config", "LanguageModelSAERunnerConfig")
PRISMA = ("vit_prisma.sae.config", "VisionModelSAERunnerConfig")
for name, case in {
    "prisma": vision(
        *PRISMA, normalize_activations="layer_norm", architecture="standard", activation_fn_str="relu"
    ),
    "prisma-gated": vision(*PRISMA, normalize_activations="layer_norm", architecture="gated"),
    "prisma-topk": vision(
        *PRISMA, normalize_activations="none", activation_fn_str="topk", activation_fn_kwargs={"k": K}
    ),
    "hugofry": vision("sae_training.config", "ViTSAERunnerConfig"),
    "patchsae": vision("src.sae_training.config", "ViTSAERunnerConfig"),
    "prisma-dumped": vision(*PRISMA, "sae.pkl.gz", normalize_activations="layer_norm", architecture="gated"),
    "hugofry-dumped": vision("sae_training.config", "ViTSAERunnerConfig", "sae.pkl.gz"),
    "patchsae-dumped": vision("src.sae_training.config", "ViTSAERunnerConfig", "sae.pkl"),
    "saelens-dumped": vision(*SAELENS, "sae.pkl.gz"),
    "saelens-old": vision(*SAELENS, "old.pt", activation_fn="relu", apply_b_dec_to_input=False),
    "saelens-packed": vision(*SAELENS, "sae.pt.gz", activation_fn="relu", normalize_activations=False),
}.items():
    CASES[f"vision/{name}"] = Case(case, vision_run, "", "formulas")
