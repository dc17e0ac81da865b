"""From a GGUF file to a Hugging Face folder: its numbers unpacked, its tokenizer and chat template kept."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm.std import tqdm

from saelab.config import is_integer
from saelab.progress import new_bar
from saelab.subjects.gguf import library
from saelab.subjects.gguf.header import Header, TensorInfo, refuse
from saelab.subjects.gguf.rope import FACTORS, scale_positions
from saelab.subjects.language import LanguageModel
from saelab.types import SaelabError, SubjectError, short

MAX_COUNT = 2**16
"""More heads, experts, ... than any model has."""
MAX_BLOCKS = 2**12

_BLOCK = re.compile(r"blk\.(\d{1,6})\.")
_OTHER_SENSES = ("v.", "a.", "mm.")
"""How tensors begin that read images or sound."""
_PROBE = "Hello, it's 12345 naïve cafés:\n\n\t  'x' 😀 中文 don't <|im_end|></s>"


def check(header: Header) -> None:
    """Refuse what could not be converted, before anything is unpacked.

    Raises:
        SubjectError: transformers reads no such architecture, or a quantisation of it cannot be unpacked.
        FormatError: The file is a part of a model, or its sizes are no sizes.
    """
    path, name = header.path, header.architecture
    kind = header.pairs.get("general.type", "model")
    if kind != "model":
        refuse(path, "must be a model", f"general.type {short(kind)}", "Pass the model's own file.")
    n_files = header.pairs.get("split.count", 1)
    if n_files not in (0, 1):
        got = f"one of {short(n_files)} parts"
        refuse(path, "must be a whole model", got, "Join them: llama-gguf-split --merge FIRST OUT.")
    if not library.is_known(name):
        _unread(
            path,
            f"the architecture {name!r}",
            f"The causal language models that transformers {version('transformers')} reads are "
            f"{', '.join(library.architectures())}.",
        )
    for tensor in header.tensors:
        if not library.dequantises(name, tensor.block.name):
            known = {block.name for block in library.blocks().values()}
            listed = ", ".join(sorted(k for k in known if library.dequantises(name, k)))
            _unread(path, f"tensors of type {tensor.block.name}", f"For {name} it unpacks {listed}.")
    for key, value in header.pairs.items():
        if not key.startswith(f"{name}.") or not is_integer(value):
            continue
        most = MAX_COUNT if key.endswith("_count") else 2**31 - 1
        if not 0 <= value <= most:
            refuse(path, f"must give {short(key)} a number from 0 to {most}", f"{value}")
    blocks, most = header.number("block_count"), min(MAX_BLOCKS, len(header.tensors))
    if blocks is None or not 1 <= blocks <= most:
        got = f"{blocks} with {len(header.tensors)} tensors"
        refuse(path, f"must give {name}.block_count, 1 to {most}", got)


def convert(header: Header, folder: Path, sha256: str, progress: bool) -> None:
    """Write the model of a GGUF file as a Hugging Face folder, in float32, or in the half precision of a file
    that holds nothing else, and `provenance.json`.

    Args:
        header: The file's header, checked.
        folder: An empty folder.
        sha256: The file's digest, for the record.
        progress: Whether to show a bar.

    Raises:
        SubjectError: transformers cannot read the file, saelab has no hook points for its architecture, or
            the disk has no room.
        FormatError: The file's tensors are not those of the model that it describes, or not finite.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = header.path
    with _reading(path), _bar(header, progress) as bar, tempfile.TemporaryDirectory() as room:
        # alone in a folder: transformers would take what lies beside the file for parts of the model
        (Path(room) / "model.gguf").symlink_to(path.resolve())
        source: Any = {"pretrained_model_name_or_path": room, "gguf_file": "model.gguf"}
        bar.set_postfix_str("config")
        config = _config(header, source)
        outline = _outline(config)
        unread = _compare(header, config, outline)
        bar.set_postfix_str("tokenizer")
        tokenizer = _generic_tokenizer(AutoTokenizer.from_pretrained(**source, local_files_only=True))
        tokenizer.model_max_length = header.number("context_length") or tokenizer.model_max_length
        LanguageModel(outline, tokenizer)  # has hook points, or is refused
        _check_room(folder, outline)
        bar.set_postfix_str("weights")
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            **source, **_unpacked(), config=config, dtype=torch.float32,
            output_loading_info=True, local_files_only=True,
        )  # fmt: skip
        model, told = loaded
        _check_weights(path, model, told)
        bar.set_postfix_str("writing")
        unquantised = _unquantised(model, header)
        unquantised.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        again = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        if again(_PROBE)["input_ids"] != tokenizer(_PROBE)["input_ids"]:
            got = f"a {type(tokenizer).__name__} that changes"
            refuse(path, "must hold a tokenizer that can be saved", got, "Load another conversion of it.")
        facts = _provenance(header, sha256, unread, unquantised)
        text = json.dumps(facts, indent=1, ensure_ascii=False)
        (folder / "provenance.json").write_text(text, encoding="utf-8")


def _config(header: Header, source: dict[str, Any]) -> Any:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(**source, local_files_only=True)
    scale_positions(config, header)
    return config


def _outline(config: Any) -> nn.Module:
    """The model without memory for its weights."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def _compare(header: Header, config: Any, outline: nn.Module) -> list[str]:
    """Names of the tensors that the text model leaves unread; it must need all others, no more and no less.

    A count of numbers: which tensor becomes which parameter is the library's affair.
    """
    layers = int(config.get_text_config().num_hidden_layers)
    ahead = header.number("nextn_predict_layers") or 0  # blocks that predict several tokens at once
    tied = bool(getattr(config.get_text_config(), "tie_word_embeddings", False))

    def unread(tensor: TensorInfo) -> bool:
        block = _BLOCK.match(tensor.name)
        return (
            tensor.name == FACTORS
            or (tensor.name == "output.weight" and tied)
            or tensor.name.startswith(_OTHER_SENSES)
            or (block is not None and layers <= int(block[1]) < layers + ahead)
        )

    has = sum(tensor.numel for tensor in header.tensors if not unread(tensor))
    wants = sum(tensor.numel() for tensor in _own(outline).values())
    extra = sum(buffer.numel() for buffer in outline.buffers())
    if has != wants or extra > has + 2**24:
        refuse(
            header.path,
            f"must hold the {wants:,} numbers of the {type(outline).__name__} that it describes",
            f"{has:,}",
            "transformers would leave tensors out or make them up: load another conversion of the model.",
        )
    return [tensor.name for tensor in header.tensors if unread(tensor)]


def _own(model: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors of a model, each once."""
    seen: dict[int, tuple[str, torch.Tensor]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        seen.setdefault(id(tensor), (name, tensor))
    return dict(seen.values())


def _check_room(folder: Path, outline: nn.Module) -> None:
    needed = 4 * sum(tensor.numel() for tensor in _own(outline).values())
    free = shutil.disk_usage(folder).free
    if needed > free:
        message = (
            f"A model is unpacked once into the cache, which needs {needed:,} bytes. Got {free:,} free at "
            f"{folder.parent}. Free some space, or set SAELAB_CACHE to a folder on another disk."
        )
        raise SubjectError(message)


def _check_weights(path: Path, model: nn.Module, told: dict[str, Any]) -> None:
    for key in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if told.get(key):
            names = short(sorted(map(str, told[key])))
            refuse(path, f"must hold each tensor of its {type(model).__name__}", f"{key} {names}")
    for name, tensor in _own(model).items():
        if not torch.isfinite(tensor).all():
            refuse(path, "must hold finite numbers", f"NaN or infinite values in {name}")


def _unquantised(model: Any, header: Header) -> Any:
    """The same model as if it had never been quantised: what came out of a GGUF file refuses to be saved."""
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    weights = model.state_dict()
    half = _half({tensor.block.name for tensor in header.tensors})
    if half is not None:
        rounded = {name: tensor.to(half) for name, tensor in weights.items()}
        if all(torch.equal(rounded[name].float(), tensor) for name, tensor in weights.items()):
            weights, config.dtype = rounded, half
    with torch.device("meta"):
        fresh = type(model)(config)
    fresh.load_state_dict(weights, assign=True)
    fresh.tie_weights()
    fresh.generation_config = model.generation_config
    return fresh


def _generic_tokenizer(tokenizer: Any) -> Any:
    """The same tokenizer without a class of its own, which would build another one when it is loaded."""
    from transformers import PreTrainedTokenizerFast

    if type(tokenizer) is PreTrainedTokenizerFast:
        return tokenizer
    generic = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, **tokenizer.special_tokens_map
    )
    generic.chat_template = tokenizer.chat_template
    return generic


def _half(kinds: set[str]) -> torch.dtype | None:
    """The half precision of a file that holds, float32 aside, nothing else."""
    halves = {"F16": torch.float16, "BF16": torch.bfloat16}
    rest = kinds - {"F32"}
    return halves.get(next(iter(rest))) if len(rest) == 1 else None


def _provenance(header: Header, sha256: str, unread: list[str], model: Any) -> dict[str, Any]:
    told = {key: header.pairs.get(f"general.{key}") for key in ("name", "license", "quantized_by")}
    return {
        "source": str(header.path),
        "sha256": sha256,
        "bytes": header.path.stat().st_size,
        "gguf_version": header.version,
        "architecture": header.architecture,
        **{key: value for key, value in told.items() if value is not None},
        "tensors": dict(Counter(tensor.block.name for tensor in header.tensors)),
        "numbers": sum(math.prod(tensor.shape) for tensor in header.tensors),
        "unread": unread,
        "dtype": str(model.dtype).removeprefix("torch."),
        "versions": {name: version(name) for name in ("saelab", "transformers", "gguf", "torch")},
    }


def _unpacked() -> dict[str, Any]:
    """Where transformers could leave the numbers packed, it is not to."""
    try:
        from transformers import GgufConfig
    except ImportError:
        return {}
    return {"quantization_config": GgufConfig(dequantize=True)}


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Whatever the libraries raise becomes a SubjectError; some of it, from Rust, is no Exception."""
    try:
        yield
    except (SaelabError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        text = str(error).strip().split("\n", 1)[0].rstrip(".")
        message = (
            f"A GGUF file must be readable by transformers {version('transformers')}. "
            f"Got {path}: {type(error).__name__}: {text[:300]}. "
            "Load another conversion of the model, or update transformers and gguf."
        )
        raise SubjectError(message) from None


@contextlib.contextmanager
def _bar(header: Header, shown: bool) -> Iterator[tqdm]:
    """One bar over the tensors in place of the libraries' own."""
    from transformers import modeling_gguf_pytorch_utils
    from transformers.utils import logging

    reader: Any = modeling_gguf_pytorch_utils

    with new_bar(total=len(header.tensors), desc=f"converting {header.path.name[:40]}", unit="tensor",
              disable=not shown) as bar:  # fmt: skip

        def counted(tensors: Any, **_: Any) -> Iterator[Any]:
            for tensor in tensors:
                yield tensor
                bar.update()

        enabled, own, level = logging.is_progress_bar_enabled(), reader.tqdm, logging.get_verbosity()
        logging.disable_progress_bar()
        logging.set_verbosity_error()
        reader.tqdm = counted
        try:
            yield bar
            bar.update(bar.total - bar.n)
        finally:
            reader.tqdm = own
            logging.set_verbosity(level)
            if enabled:
                logging.enable_progress_bar()


def _unread(path: Path, got: str, known: str) -> None:
    message = f"A GGUF file must be one that transformers reads. Got {path} with {got}. {known}"
    raise SubjectError(message)


__all__ = ["check", "convert"]
