"""Load a language model from a folder, a GGUF file, Ollama or the Hugging Face hub, with errors that help."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import torch

from saelab.devices import FLOATS, dtype_name, torch_device
from saelab.errors import needing
from saelab.files import path_of, read_json_or_none
from saelab.subjects import gguf
from saelab.subjects.language import LanguageModel
from saelab.subjects.points import AS_MODULE
from saelab.types import MissingDependency, SubjectError

TOKENIZER = re.compile(r"tokenizer.*|vocab.*|merges\.txt|.*\.(model|tiktoken)")


def load_subject(
    name: str | Path,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype | None = None,
    progress: bool = True,
    n_ctx: int | None = None,
) -> LanguageModel:
    """A causal language model and its tokenizer as a `LanguageModel`, from Hugging Face, llama.cpp or Ollama.

    The weights are frozen (requires_grad False); gradients of activations still work (`run(..., grad=True)`).

    Args:
        name: A local folder (config.json, weights, tokenizer), a hub id such as "gpt2", a GGUF file or a
            folder that holds one, or a model of Ollama's as "ollama:llama3.2:1b". The local cache is
            asked first for a hub id. A GGUF is converted at the first call into a cache ($SAELAB_CACHE, else
            the user's), and read from there after.
        device: A torch device.
        dtype: "float32", "bfloat16", ... ("bf16", "fp16", "fp32" too), or a torch.dtype; "auto" keeps the
            checkpoint's own. None keeps it too (float32 for what was quantised), but turns half precision
            into float32 on the CPU, where half is slower and less exact.
        progress: Whether to show how far the conversion of a GGUF file is.
        n_ctx: Tokens of the longest text that is read, and of a block; None: as many as the model takes.

    Raises:
        SubjectError: The model cannot be found, read or reached; device or dtype do not exist; transformers
            reads no such architecture or quantisation.
        ConfigError: n_ctx is below 1 or more than the model takes.
        FormatError: A GGUF file, or a manifest of Ollama's, is damaged or unsafe.
        MissingDependency: A library is not installed.
    """
    if isinstance(name, bytes):
        path_of(name, "A model's folder or hub id", SubjectError)
    if not isinstance(name, (str, Path)) or not str(name):
        msg = f"A model is named by a folder or a hub id. Got {name!r}. Pass e.g. 'gpt2'."
        raise SubjectError(msg)
    place = torch_device(device, error=SubjectError)
    kind = dtype_name("auto" if dtype is None else dtype, (*FLOATS, "auto"), error=SubjectError)
    folder = Path(name).expanduser()
    found = gguf.find(name)
    if found is not None:
        model, tokenizer = _from_folder(gguf.converted(found, progress))
    elif folder.is_dir():
        model, tokenizer = _from_folder(folder)
    elif (
        isinstance(name, Path)
        or folder.is_absolute()
        or str(name).startswith((".", "~"))
        or str(name).count("/") > 1
    ):
        msg = f"A model's folder must exist. Got {str(name)!r}. Check the path, or pass a hub id."
        raise SubjectError(msg)
    elif ":" in str(name):
        msg = f"A hub id has no colon. Got {name!r}. For a model of Ollama's pass 'ollama:{name}'."
        raise SubjectError(msg)
    else:
        model, tokenizer = _from_hub(str(name))
    half = model.dtype in (torch.float16, torch.bfloat16)
    if dtype is None and place.type == "cpu" and half:
        kind = "float32"
    model = model.to(place) if kind == "auto" else model.to(device=place, dtype=getattr(torch, kind))
    return LanguageModel(model.requires_grad_(False), tokenizer, n_ctx)


def _from_folder(folder: Path) -> tuple[Any, Any]:
    if not (folder / "config.json").is_file():
        msg = (
            "A model's folder must hold config.json, weights and a tokenizer, or one GGUF file. "
            f"Got {str(folder)!r} without config.json. Pass the folder that model.save_pretrained wrote."
        )
        raise SubjectError(msg)
    if not any(TOKENIZER.fullmatch(file.name) for file in folder.iterdir()):
        msg = (
            f"A model's folder must hold its tokenizer. Got {str(folder)!r} without tokenizer.json "
            "or its like. Save it there by tokenizer.save_pretrained(folder). What reads no text is a "
            "subject by saelab.TorchModule(model)."
        )
        raise SubjectError(msg)
    try:
        return _pretrained(str(folder), local_files_only=True)
    except (MissingDependency, SubjectError):
        raise
    except Exception as error:
        if "Unrecognized configuration class" in str(error):
            raise SubjectError(_no_language_model(folder)) from None
        msg = (
            "A model's folder must hold readable weights and a tokenizer. "
            f"Got {str(folder)!r}: {_first_line(error)}. Save it again by model.save_pretrained(folder) and "
            "tokenizer.save_pretrained(folder)."
        )
        raise SubjectError(msg) from None


def _no_language_model(folder: Path) -> str:
    kind = (read_json_or_none(folder / "config.json") or {}).get("model_type")
    load = "T5EncoderModel" if kind in ("t5", "mt5", "umt5") else "AutoModel"
    return (
        f"A language model predicts the next token. Got {str(folder)!r} of the kind {kind!r}, which "
        "transformers knows as none. Read it at its modules' paths: "
        f"model = {load}.from_pretrained(folder), then {AS_MODULE}."
    )


def _from_hub(name: str) -> tuple[Any, Any]:
    try:
        return _pretrained(name, local_files_only=True)
    except (MissingDependency, SubjectError):
        raise
    except Exception as error:  # not in the cache, or not whole there
        cached = _first_line(error)
    if _offline():
        msg = (
            "A hub model must be in the cache while HF_HUB_OFFLINE is set. "
            f"Got {name!r}, which is not. {_remedy(name)}"
        )
        raise SubjectError(msg)
    _reach(name)
    try:
        return _pretrained(name, local_files_only=False)
    except SubjectError:
        raise
    except Exception as error:
        msg = (
            "A hub model must load as a causal language model. "
            f"Got {name!r}: {_first_line(error)} (from the cache: {cached}). "
            f"{_remedy(name)}"
        )
        raise SubjectError(msg) from None


def _reach(name: str) -> None:
    """Ask the hub for the model once, with a short patience, before the library starts its retries."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    try:
        HfApi().model_info(name, timeout=5)
    except GatedRepoError:
        problem = "is gated: accept its terms on its page and log in by `hf auth login`"
    except (RepositoryNotFoundError, HFValidationError):
        problem = "is no public model on the Hugging Face hub: check the spelling, or log in if it is private"
    except Exception as error:
        problem = f"cannot be reached: no connection to the Hugging Face hub ({type(error).__name__})"
    else:
        return
    msg = (
        f"A model id must be in the local cache or on the hub. Got {name!r}, which {problem}. {_remedy(name)}"
    )
    raise SubjectError(msg)


def _pretrained(name: str, *, local_files_only: bool) -> tuple[Any, Any]:
    with needing("A language model", "transformers", "'transformers>=5'"):
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging
    bar = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=local_files_only)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            name, local_files_only=local_files_only, output_loading_info=True
        )
        model, told = loaded
    finally:
        if bar:
            logging.enable_progress_bar()
    if missing := sorted(told["missing_keys"]):
        msg = (
            f"A language model's weights must be whole. Got {name!r} without {', '.join(missing[:3])}"
            f"{f' and {len(missing) - 3} more' if len(missing) > 3 else ''}, which transformers would fill "
            "at random. Save the whole model, or read what there is by saelab.TorchModule."
        )
        raise SubjectError(msg)
    return model, tokenizer


def _offline() -> bool:
    return any(
        os.environ.get(v, "").upper() in ("1", "ON", "YES", "TRUE")
        for v in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    )


def _first_line(error: BaseException) -> str:
    text = str(error).strip().split("\n", 1)[0].rstrip(".")
    return f"{type(error).__name__}: {text}"[:300]


def _remedy(name: str) -> str:
    return (
        "Pass the path of a local model folder, or download it once where there is a network: `hf download "
        f"{name}`. saelab.Lab.embedded() needs no network."
    )


__all__ = ["load_subject"]
