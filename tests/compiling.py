"""Compiles every Triton twin for a GPU that need not be here, and prints what each takes as a line of JSON.

python compiling.py [compute capability, 90]
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "0"

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from saelab.sae.twins import batch, rows, select, steps

LONG, F32, BF16, I32 = "*i64", "*fp32", "*bf16", "*i32"
LISTS = {"listed": F32, "places": I32, "counts": I32, "leasts": F32}


def tiles(size: tuple[int, int], k: int) -> dict[str, int]:
    return select.sizes(k, *size)


SIZES = {"n": "i32", "d_sae": "i32", "d_in": "i32", "K": "i32", "width": "i32", "size": "i32"}
TABLE = {"starts": LONG, "ends": LONG, "indptr": LONG, "indices": LONG, "weights": F32}
TABLE |= {"table": F32, "out": F32, "a": F32, "b": F32}
JUMP = dict.fromkeys(("values", "grad", "pre", "threshold", "d_pre", "sums", "out"), F32) | {
    "bandwidth": "fp32"
}
FLAT = {"flat": F32, "threshold": F32, "counts": LONG, "ends": LONG, "out": LONG, "per": "i32"}
ENCODE = {"x": F32, "W": F32, "b": F32, "w_row": "i32", "w_col": "i32", **LISTS}
HALF = {**ENCODE, "x": BF16, "W": BF16}
WHOLE = {"EXACT": False, "WIDEN": False, "BK": 32}
JOBS = {
    "sums of rows": (rows._sums, TABLE, {"HAS": True, "E": 4, "BLOCK": 1024}, 4),
    "sums of pieces": (rows._sums, TABLE, {"HAS": False, "E": 4, "BLOCK": 1024}, 4),
    "sums of one column": (rows._sums, TABLE, {"HAS": True, "E": 64, "BLOCK": 1}, 4),
    "products of rows": (rows._products, TABLE, {"E": 4, "BLOCK": 1024}, 4),
    "top-k of a matrix, k 32": (
        select._matrix, {"pre": F32, **LISTS}, {"SIGNED": False, **tiles(select.MATRIX, 32)}, 4,
    ),
    "encode to top-k, k 32, float32": (
        select._product, ENCODE, {**WHOLE, "HALF": False, **tiles(select.PRODUCT, 32)}, 8,
    ),
    "encode to top-k, k 64, bfloat16": (
        select._product, HALF, {**WHOLE, "HALF": True, **tiles(select.PRODUCT, 64)}, 8,
    ),
    "histogram": (
        batch._count_bins, FLAT, {"BINS": batch.BINS, "SHIFT": batch.SHIFT, "BLOCK": batch.BLOCK}, 8,
    ),
    "count above": (batch._count_above, FLAT, {"OWN": True, "BLOCK": batch.BLOCK}, 4),
    "list above": (batch._list_above, FLAT, {"OWN": False, "BLOCK": batch.BLOCK}, 4),
    "jump": (steps._exceed, JUMP, {"BLOCK": 1024}, 4),
    "jump, backward": (
        steps._jump_back, JUMP, {"WHOLE": True, "TO_INPUT": True, "ROWS": steps.ROWS, "BLOCK": 256}, 4,
    ),
}  # fmt: skip


def resources(cubin: bytes) -> dict[str, int]:
    """Registers a thread, and bytes of what does not fit into them."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        said = subprocess.run(
            [tool, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    found = dict(re.findall(r"(REG|STACK):(\d+)", said))
    return {"registers": int(found["REG"]), "spilled bytes": int(found["STACK"])}


def compiled(name: str, capability: int) -> dict[str, object]:
    function, types, constants, warps = JOBS[name]
    signature = {}
    for argument in function.arg_names:
        signature[argument] = "constexpr" if argument in constants else {**SIZES, **types}[argument]
    started = time.thread_time()
    source = ASTSource(function, signature, {(function.arg_names.index(n),): v for n, v in constants.items()})
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps})
    return {
        "kernel": name,
        "shared bytes": made.metadata.shared,
        "ptx lines": made.asm["ptx"].count("\n"),
        **resources(made.asm["cubin"]),
        "tensor cores": "wgmma" in made.asm["ptx"] or "mma.sync" in made.asm["ptx"],
        "seconds": round(time.thread_time() - started, 1),
    }


if __name__ == "__main__":
    for name in JOBS:
        print(json.dumps(compiled(name, int(sys.argv[1]) if len(sys.argv) > 1 else 90)), flush=True)
