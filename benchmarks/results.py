"""Figures as files: what a benchmark found, with the machine, versions, date and command that gave it.

python benchmarks/results.py [NAME ...]     print the kept figures as Markdown tables, as the docs quote them

A benchmark calls `record(NAME, rows, **facts)` where it is asked to keep what it found; that writes
benchmarks/results/NAME.json, which is committed. README and docs/results quote only these files.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "benchmarks" / "results"
PACKAGES = ("saelab", "torch", "numpy")


def record(name: str, rows: Sequence[Mapping[str, Any]], **facts: Any) -> Path:
    """Keep what a benchmark found as benchmarks/results/NAME.json, in place of what it found before.

    Args:
        name: Of the file, without its ending.
        rows: Of the table, each column to value; JSON values, or what has a `str`. Units stand in the
            columns' names ("seconds", "x product").
        **facts: What else tells how to read them: the shapes, the threads, `versions` of other libraries
            (added to those of saelab, torch, numpy and Python).

    Returns:
        The file.
    """
    versions = {package: _version(package) for package in PACKAGES} | dict(facts.pop("versions", {}))
    kept = {
        "name": name,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command(),
        "commit": _commit(),
        "machine": machine(),
        "versions": {"python": platform.python_version(), **versions},
        **facts,
        "rows": [dict(row) for row in rows],
    }
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{name}.json"
    path.write_text(json.dumps(kept, indent=1, default=str, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"kept as {path.relative_to(ROOT)}")
    return path


def command() -> str:
    """The command line of this process, as typed at the root of the checkout."""
    script = Path(sys.argv[0]).resolve()
    inside = script.relative_to(ROOT) if script.is_relative_to(ROOT) else script.name
    return shlex.join(["python", str(inside), *sys.argv[1:]])


def machine() -> dict[str, Any]:
    """What figures depend on: processor, cores, memory, GPU, system, and how busy it is."""
    facts: dict[str, Any] = {"processor": _processor(), "cores": os.cpu_count(), "system": platform.system()}
    if hasattr(os, "sysconf"):
        facts["memory GB"] = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9)
    if hasattr(os, "getloadavg"):
        facts["load"] = round(os.getloadavg()[0], 1)
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
        facts["gpu"] = sys.modules["torch"].cuda.get_device_name()
    return facts


def table(kept: Mapping[str, Any]) -> str:
    """A kept file as Markdown: how it was made, then its rows."""
    rows, where = kept["rows"], kept["machine"]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    versions = ", ".join(f"{name} {number}" for name, number in kept["versions"].items())
    lines = [
        f"`{kept['command']}`: {kept['date'][:10]}, {where['processor']}, {where['cores']} cores, "
        f"load {where.get('load', '?')}; {versions}.",
        "",
        "| " + " | ".join(columns) + " |",
        "|" + "|".join("---:" if _numeric(rows, column) else "---" for column in columns) + "|",
        *("| " + " | ".join(_said(row.get(column, "")) for column in columns) + " |" for row in rows),
    ]
    return "\n".join(lines)


def _numeric(rows: Sequence[Mapping[str, Any]], column: str) -> bool:
    return all(isinstance(row.get(column, 0), int | float) for row in rows)


def _said(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def _commit() -> str:
    """Of the checkout, marked where files differ from it."""
    git = ["git", "-C", str(ROOT)]
    try:
        found = subprocess.run([*git, "describe", "--always", "--dirty"], capture_output=True, text=True)
    except OSError:
        return "unknown"
    return found.stdout.strip() or "unknown"


def _processor() -> str:
    """Its name and, of those that matter for products, its instructions."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() or platform.machine()
    found = {}
    for line in info.read_text().splitlines():
        key, _, value = line.partition(":")
        found.setdefault(key.strip(), value.strip())
    flags = found.get("flags", "").split()
    has = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in flags]
    return " ".join([found.get("model name", platform.machine()), *([f"({', '.join(has)})"] if has else [])])


def main() -> None:
    for path in [FOLDER / f"{name}.json" for name in sys.argv[1:]] or sorted(FOLDER.glob("*.json")):
        print(f"## {path.stem}\n\n{table(json.loads(path.read_text(encoding='utf-8')))}\n")


if __name__ == "__main__":
    main()
