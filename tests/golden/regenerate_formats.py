"""Write formats/: tiny SAEs as the original libraries save them, and what these libraries make of them.

Run it where they are installed: `PYTHONPATH=. python tests/golden/regenerate_formats.py`, after
`pip install torch sae-lens dictionary-learning` in an environment of its own. It runs each library on its own
SAEs, and on ours as saelab saves them for it. Written with sae-lens 6.54.12 and dictionary-learning 0.1.0.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from saelab.sae import SAE, recipe

FOLDER = Path(__file__).with_name("formats")
THEIRS, OURS = FOLDER / "theirs.safetensors", FOLDER / "ours.safetensors"
SIZES = {"": (6, 16), "-square": (8, 8)}
K = 3


def rows(d_in: int) -> Tensor:
    """[16 d_in] of plain arithmetic, some of them small, so that epsilons of normalisations show."""
    i = torch.arange(16, dtype=torch.float64)[:, None]
    j = torch.arange(d_in, dtype=torch.float64)[None]
    x = torch.sin(1.3 * i * (j + 1)) + 0.5 * torch.cos(2.1 * i + j * j) + 0.3
    return (x * torch.where(i % 4 == 0, 0.01, 1.0)).float()


# ---- SAELens --------------------------------------------------------------------------------------------


def saelens_cases() -> dict[str, tuple[str, dict[str, Any]]]:
    """case -> (architecture, settings)."""
    return {
        "standard": ("standard", {}),
        "standard-raw": ("standard", {"apply_b_dec_to_input": False}),
        "standard-layer_norm": ("standard", {"normalize_activations": "layer_norm"}),
        "standard-rescale": ("standard", {"normalize_activations": "constant_norm_rescale"}),
        "standard-hook_z": ("standard", {"reshape_activations": "hook_z"}),
        "standard-bfloat16": ("standard", {"dtype": "bfloat16"}),
        "gated": ("gated", {}),
        "gated-raw": ("gated", {"apply_b_dec_to_input": False, "normalize_activations": "layer_norm"}),
        "jumprelu": ("jumprelu", {}),
        "jumprelu-raw": ("jumprelu", {"apply_b_dec_to_input": False}),
        "topk": ("topk", {"k": K}),
        "topk-norms": ("topk", {"k": K, "rescale_acts_by_decoder_norm": True}),
        "topk-layer_norm": ("topk", {"k": K, "normalize_activations": "layer_norm"}),
        "abstopk": ("abstopk", {"k": K}),
        "abstopk-norms": ("abstopk", {"k": K, "rescale_acts_by_decoder_norm": True}),
        "transcoder": ("transcoder", {"d_out": 5, "apply_b_dec_to_input": False}),
        "skip_transcoder": ("skip_transcoder", {"d_out": 5, "apply_b_dec_to_input": False}),
        "batchtopk": ("batchtopk", {"k": K}),
        "batchtopk-raw": ("batchtopk", {"k": K, "rescale_acts_by_decoder_norm": False}),
        "batchtopk-checkpoint": ("batchtopk", {"k": K}),
        "matryoshka": ("matryoshka_batchtopk", {"k": K, "matryoshka_widths": [3, 8]}),
        "matryoshka-checkpoint": ("matryoshka_batchtopk", {"k": K, "matryoshka_widths": [3, 8]}),
    }


def make_saelens(case: str, d_in: int, d_sae: int, folder: Path) -> None:
    """Write one SAE of theirs."""
    from sae_lens.registry import get_sae_class, get_sae_training_class
    from sae_lens.saes.sae import SAEMetadata

    architecture, settings = saelens_cases()[case]
    training = architecture.endswith("batchtopk")
    cls, config = (get_sae_training_class if training else get_sae_class)(architecture)
    hook = "blocks.1.attn.hook_z" if "hook_z" in case else "blocks.1.hook_resid_post"
    metadata = SAEMetadata(model_name="tiny", hook_name=hook, hook_name_out="blocks.1.hook_mlp_out")
    sae = cls(config(d_in=d_in, d_sae=d_sae, metadata=metadata, **settings))
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            parameter.copy_(torch.randn(parameter.shape) * (0.2 if name[0] in "bt" else 0.6))
        if architecture == "jumprelu":
            sae.threshold[0], sae.threshold[1] = 0.0, -0.5
        if training:
            sae.topk_threshold.fill_(0.37)
    if training and "checkpoint" not in case:
        sae.save_inference_model(folder)
    else:
        sae.save_model(folder)


def run_saelens(folder: Path, x: Tensor) -> tuple[Tensor, Tensor]:
    """(codes, reconstructions) of a folder, in float32; a warning is an error."""
    from sae_lens.saes.sae import SAE as Theirs
    from sae_lens.saes.sae import TrainingSAE

    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as spare:
        warnings.simplefilter("error")
        config = json.loads((folder / "cfg.json").read_text())
        if "topk_threshold" in safetensors.torch.load_file(folder / "sae_weights.safetensors"):
            TrainingSAE.load_from_disk(folder).save_inference_model(spare)
            folder = Path(spare)
        sae = Theirs.load_from_disk(folder, dtype="float32")
        x = x.reshape(len(x), 2, -1) if config.get("reshape_activations") == "hook_z" else x
        with torch.no_grad():
            codes = sae.encode(x)
            return codes, sae(x).reshape(len(x), -1)


# ---- dictionary_learning --------------------------------------------------------------------------------

DICTIONARIES = (
    "AutoEncoder", "AutoEncoder-norms", "AutoEncoderNew", "GatedAutoEncoder", "AutoEncoderTopK",
    "BatchTopKSAE", "MatryoshkaBatchTopKSAE", "JumpReluAutoEncoder",
)  # fmt: skip


def make_dictionary(case: str, d_in: int, d_sae: int, folder: Path) -> None:
    """Write one dictionary of theirs."""
    from dictionary_learning import dictionary
    from dictionary_learning.trainers import batch_top_k, matryoshka_batch_top_k, top_k

    name = case.split("-")[0]
    modules = (dictionary, top_k, batch_top_k, matryoshka_batch_top_k)
    cls = next(getattr(module, name) for module in modules if hasattr(module, name))
    selects, groups = "TopK" in name, {"group_sizes": [2, d_sae - 2]} if "Matryoshka" in name else {}
    made = cls(d_in, d_sae, **({"k": K} if selects else {}), **groups)
    with torch.no_grad():
        for key, parameter in made.named_parameters():
            small = "bias" in key or key[0] in "bt"
            parameter.copy_(torch.randn(parameter.shape) * (0.2 if small else 0.6))
        if case == "AutoEncoder":
            made.decoder.weight.div_(made.decoder.weight.norm(dim=0))
        if name == "JumpReluAutoEncoder":
            made.threshold[0], made.threshold[1] = 0.0, -0.5
        if name in ("BatchTopKSAE", "MatryoshkaBatchTopKSAE"):
            made.threshold.fill_(0.37)
    folder.mkdir(parents=True)
    torch.save(made.state_dict(), folder / "ae.pt")
    trainer = {"dict_class": name, "activation_dim": d_in, "dict_size": d_sae, "layer": 1, "lm_name": "tiny"}
    trainer |= {"submodule_name": "resid_post_layer_1"} | ({"k": K} if selects else {}) | groups
    (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"ctx_len": 16}}))


def run_dictionary(folder: Path, x: Tensor) -> tuple[Tensor, Tensor]:
    """(codes, reconstructions) of a folder."""
    from dictionary_learning.utils import load_dictionary

    made, _ = load_dictionary(str(folder), "cpu")
    with torch.no_grad():
        return made.encode(x), made(x)


def theirs() -> dict[
    str, tuple[Callable[..., None], Callable[..., tuple[Tensor, Tensor]], str, tuple[int, int]]
]:
    """folder -> (how it is written, how it is run, case, (d_in, d_sae))."""
    found: dict[str, Any] = {}
    for suffix, size in SIZES.items():
        for case in saelens_cases():
            found[f"saelens/{case}{suffix}"] = (make_saelens, run_saelens, case, size)
        for case in DICTIONARIES:
            found[f"dictionary_learning/{case}{suffix}"] = (make_dictionary, run_dictionary, case, size)
    return found


# ---- ours, as saelab saves them for them -----------------------------------------------------------------

EXPORTED = {
    "relu": {},
    "relu-raw": {"apply_b_dec_to_input": False, "normalise": "none"},
    "relu-zscore": {"normalise": "zscore"},
    "relu-sphere": {"normalise": "sphere"},
    "gated": {},
    "gated-raw": {"apply_b_dec_to_input": False, "gate_bias": True},
    "jumprelu": {},
    "jumprelu-raw": {"apply_b_dec_to_input": False, "log_threshold": False, "normalise": "none"},
    "topk": {"k": K},
    "topk-raw": {"k": K, "apply_b_dec_to_input": False},
    "abs_topk": {"k": K},
    "archetypal": {"k": K},
    "batchtopk": {"k": K},
    "matryoshka": {"k": K},
    "mutual_choice": {"k": K},
    "feature_choice": {"k": K},
    "variational": {"k": K},
    "gba": {},
    "gba-biased": {"magnitude": "biased"},
    "transcoder": {"k": K, "sparsity": "l1"},
    "skip_transcoder": {"k": K, "sparsity": "l1"},
}
ONLY_SAELENS = ("relu-zscore", "relu-sphere", "abs_topk", "transcoder", "skip_transcoder")


def ours(case: str) -> SAE:
    """An SAE of ours [6 -> 16] with weights of plain arithmetic, scales other than 1 where it has them."""
    name = case.split("-")[0]
    d_out = 5 if "transcoder" in name else None
    options = {"hook": "blocks.1.hook_resid_post", **EXPORTED[case]}
    if d_out:
        options["hook_out"] = "blocks.1.hook_mlp_out"
    sae = SAE.create(recipe(name, d_in=6, d_sae=16, d_out=d_out, **options))
    with torch.no_grad():
        for number, (key, tensor) in enumerate(sorted(sae.state_dict().items())):
            if not tensor.is_floating_point():
                continue
            i = torch.arange(tensor.numel(), dtype=torch.float64).reshape(tensor.shape)
            wave = torch.sin(i * math.e + number) * (0.2 if "b_" in key or "threshold" in key else 0.6)
            if key.endswith("sparsifier.threshold"):
                wave = wave.abs() + 0.05
            if key == "sparsifier.bias":
                wave = -wave.abs()
            if key == "sparsifier.log_threshold":
                wave = wave - 2
            if key.endswith("_scale"):
                wave = (
                    torch.full_like(i, 1.7)
                    if sae.config.options["normalise"] == "scalar"
                    else torch.ones_like(i)
                )
            tensor.copy_(wave)
    return sae


def exported() -> list[tuple[str, str]]:
    """(format, case)"""
    rest = [case for case in EXPORTED if case not in ONLY_SAELENS]
    return [("saelens", case) for case in EXPORTED] + [("dictionary_learning", case) for case in rest]


def run(format: str, folder: Path, x: Tensor) -> tuple[Tensor, Tensor]:
    """The original library's (codes, reconstructions) of a folder."""
    return (run_saelens if format == "saelens" else run_dictionary)(folder, x)


def main() -> None:
    """Write everything anew."""
    from saelab.formats import save_sae

    shutil.rmtree(FOLDER, ignore_errors=True)
    kept = {}
    for number, (name, (make, execute, case, (d_in, d_sae))) in enumerate(theirs().items()):
        torch.manual_seed(number)
        make(case, d_in, d_sae, FOLDER / name)
        kept[f"{name}/codes"], kept[f"{name}/x_hat"] = execute(FOLDER / name, rows(d_in))
    safetensors.torch.save_file({k: v.contiguous() for k, v in kept.items()}, THEIRS)
    kept = {}
    for format, case in exported():
        with tempfile.TemporaryDirectory() as folder:
            save_sae(ours(case), folder, format)
            kept[f"{format}/{case}/codes"], kept[f"{format}/{case}/x_hat"] = run(
                format, Path(folder), rows(6)
            )
    safetensors.torch.save_file({k: v.contiguous() for k, v in kept.items()}, OURS)
    size = sum(file.stat().st_size for file in FOLDER.rglob("*") if file.is_file())
    print(f"{len(theirs())} SAEs of theirs, {len(kept) // 2} of ours, {size:,} bytes")


if __name__ == "__main__":
    main()
