"""Harvests that kill themselves (SIGKILL) at a given moment and are called again.

`main`, in a process of its own with the arguments FOLDER CASE, forks a process for each harvest and prints as
JSON what each second call read.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

N_DOCUMENTS = 300
CASES: dict[str, dict[str, Any]] = {
    "document": {"long": "truncate"},  # one sample of each, so that passes can be counted
    "blocks": {"packing": "blocks", "dtype": "bfloat16", "include_bos": True},
    "masked": {"packing": "blocks_masked", "dtype": "float16", "max_rows": 3_000},
}
MOMENTS = {
    "in the third pass": ("run", 3),
    "in the fortieth pass": ("run", 40),
    "with half a shard on disk": ("save", 5),
    "between the note and its shard": ("name", "shard-00003.safetensors"),
    "after a shard": ("named", "shard-00007.safetensors"),
    "after the second shard's note": ("named", "shard-00001.json"),
    "before the manifest": ("name", "manifest.json"),
    "after the manifest": ("named", "manifest.json"),
    "after the rename": ("named", "acts"),
}


def documents() -> list[str]:
    import numpy as np

    rng = np.random.default_rng(0)
    return ["x" + "".join(rng.choice(list("zqjxkvQZ"), size=rng.integers(0, 40))) for _ in range(N_DOCUMENTS)]


def subject() -> Any:
    import subjects_zoo as zoo
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from saelab.subjects import LanguageModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=4, n_positions=32, **zoo.NO_SPECIAL)
    return LanguageModel(GPT2LMHeadModel(config), zoo.byte_tokenizer())


def harvest(model: Any, out: Any, case: str, **options: Any) -> Any:
    """Several shards a stretch of 32 documents (256 in blocks)."""
    import saelab

    hooks = ["blocks.0.hook_resid_post", "blocks.1.attn.hook_z"]
    given = {"batch_size": 2, "shard_rows": 150, "progress": False} | CASES[case] | options
    return saelab.harvest(model, documents(), hooks, out, **given)


class Counted:
    """A subject that counts the samples that it reads."""

    def __init__(self, model: Any) -> None:
        self.model, self.samples = model, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def run(self, inputs: Any, **options: Any) -> Any:
        self.samples += len(inputs)
        return self.model.run(inputs, **options)


def die(kind: str, when: Any) -> None:
    """Have this process kill itself at that moment."""
    from saelab import tensors as files_of_tensors
    from saelab.subjects import LanguageModel

    def kill() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    run, save, replace, calls = LanguageModel.run, files_of_tensors.write, Path.replace, []

    def counted(self: Any, *args: Any, **options: Any) -> Any:
        calls.append("run")
        if kind == "run" and calls.count("run") == when:
            kill()
        return run(self, *args, **options)

    def halved(path: Path, tensors: Any, *rest: Any) -> str:
        digest = save(path, tensors, *rest)
        calls.append("save")
        if kind == "save" and calls.count("save") == when:
            with path.open("rb+") as file:
                file.truncate(path.stat().st_size // 2)
            kill()
        return digest

    def renamed(self: Path, target: Path) -> Path:
        mine = target.name == when
        if kind == "name" and mine:
            kill()
        found = replace(self, target)
        if kind == "named" and mine:
            kill()
        return found

    LanguageModel.run, files_of_tensors.write, Path.replace = counted, halved, renamed  # type: ignore


def main() -> None:
    folder, case = Path(sys.argv[1]), sys.argv[2]
    model = subject()
    found = {}
    for number, (moment, (kind, when)) in enumerate(MOMENTS.items()):
        out = folder / str(number) / "acts"
        out.parent.mkdir()
        if (child := os.fork()) == 0:
            die(kind, when)
            harvest(model, out, case)
            os._exit(0)
        killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
        partial = out.with_name(".acts-partial")
        whole = sorted(p.name for p in partial.glob("shard-*")) if partial.exists() else None
        counted = Counted(model)
        harvest(counted, out, case)
        found[moment] = {"killed": killed, "whole": whole, "read": counted.samples}
    harvest(model, folder / "undisturbed" / "acts", case)
    sys.stdout.write(json.dumps(found))
