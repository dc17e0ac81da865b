"""Damaged copies of a folder, by a seeded generator: bytes flipped, cut, doubled or put in, files lost,
emptied or made folders, JSON values replaced by others of every kind. Gzipped files are damaged as they are
or, every other time, before they are packed."""

from __future__ import annotations

import gzip
import json
import random
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from saelab.formats import load_sae
from saelab.sae import SAE
from saelab.types import FormatError

GOLDEN = Path(__file__).parent / "golden"
VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    1,
    -1,
    3,
    2**31,
    2**63,
    10**30,
    0.5,
    -1.5,
    1e308,
    "",
    "none",
    "x" * 300,
    "../../etc/passwd",
    "\0",
    "6.0.0",
    "5.9.0",
    "layer_norm",
    "hook_z",
    "float16",
    "float8",
    "standard",
    "gated",
    "jumprelu",
    "topk",
    "batchtopk",
    "transcoder",
    "AutoEncoder",
    "AutoEncoderTopK",
    "BatchTopKSAE",
    [],
    [1],
    {},
    {"a": {}},
]


def goldens() -> list[Path]:
    """Every folder of the goldens that holds an SAE."""
    suffixes = (".safetensors", ".pt", ".pth", ".npz", ".pkl", ".gz")
    found = {p.parent for p in GOLDEN.rglob("*") if p.suffix in suffixes and p.parent.parent != GOLDEN}
    return sorted(p for p in found if not p.name.endswith("-square") and p.name != "checkpoints")


def mutate(source: Path, target: Path, seed: int) -> str:
    """Copy the folder and damage one of its files; returns what was done."""
    random_ = random.Random(seed)
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    packed = list(target.glob("*.gz"))
    if not packed or random_.random() < 0.5:
        return _damage(target, random_)
    for path in packed:
        path.write_bytes(gzip.decompress(path.read_bytes()))
    said = _damage(target, random_)
    for path in packed:
        if path.is_file():
            path.write_bytes(gzip.compress(path.read_bytes()))
    return f"packed, {said}"


def loaded(source: Path, target: Path, seeds: Iterable[int]) -> list[SAE]:
    """The SAEs of those damaged copies that load, and encode; of the others each is a FormatError. Raises
    AssertionError where one is anything else."""
    found = []
    for seed in seeds:
        said = mutate(source, target, seed)
        try:
            sae = load_sae(target)
        except FormatError:
            continue
        except Exception as error:
            msg = f"seed {seed}: {said}"
            raise AssertionError(msg) from error
        assert sae.encode(torch.ones(2, sae.d_in)).shape == (2, sae.d_sae)
        found.append(sae)
    return found


def _damage(target: Path, random_: random.Random) -> str:
    path = random_.choice(sorted(p for p in target.rglob("*") if p.is_file()))
    data = bytearray(path.read_bytes())
    how = random_.choice(
        ["json"] * 4 + ["flip"] * 4 + ["noise", "cut", "lose", "empty", "folder", "insert", "double"]
    )
    known = sorted(target.rglob("*.json"))
    if how == "json" and not known:
        how = "flip"
    if how == "json":
        path = random_.choice(known)
        document = json.loads(path.read_text())
        if isinstance(document, list):
            document[:] = document[:-1] if random_.random() < 0.3 else [*document, random_.choice(VALUES)]
            path.write_text(json.dumps(document))
            return f"{how} {path.name}"
        said = _replace(document, random_)
        path.write_text(json.dumps(document))
        return f"{how} {said}"
    if how == "flip":
        for _ in range(random_.choice([1, 1, 2, 8])):
            # headers are at the ends, and deserve more
            at = random_.choice([random_.randrange(len(data)), random_.randrange(min(400, len(data)))])
            data[at] = random_.randrange(256)
    elif how == "noise":
        start = random_.randrange(len(data))
        data[start : start + 64] = random_.randbytes(64)
    elif how == "cut":
        del data[random_.randrange(len(data)) :]
    elif how == "empty":
        data.clear()
    elif how == "insert":
        at = random_.randrange(len(data))
        data[at:at] = random_.randbytes(random_.randrange(1, 9))
    elif how == "double":
        data *= 2
    path.unlink()
    if how == "folder":
        path.mkdir()
    elif how != "lose":
        path.write_bytes(data)
    return f"{how} {path.name}"


def _replace(document: dict[str, Any], random_: random.Random) -> str:
    """Replace, drop or add a value somewhere in it."""
    at: Any = document
    while True:
        if random_.random() < 0.1:
            at["another"] = random_.choice(VALUES)
            return "another"
        key = random_.choice(list(at))
        if isinstance(at[key], dict) and at[key] and random_.random() < 0.7:
            at = at[key]
            continue
        if random_.random() < 0.15:
            del at[key]
            return f"without {key}"
        at[key] = random_.choice(VALUES)
        return f"{key}={at[key]!r}"
