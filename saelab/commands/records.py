"""What a job leaves beside its result: `job.toml`, the job with all defaults, which runs again as it is, and
`provenance.json`: what it was given, versions, git revision, fingerprints, seeds, times.

Until the result is there they wait in one hidden file beside it, `.NAME.job.json`: so a folder that has
`provenance.json` is finished, and a job that was killed is known by it.
"""

from __future__ import annotations

import contextlib
import platform
import subprocess
import tomllib
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from saelab.commands.jobs import Job
from saelab.files import Stamp, json_bytes, parse_json, read_json, write_json
from saelab.stores.places import is_address, place_of
from saelab.types import FormatError, SaelabError, StoreError

STAMP = Stamp("saelab-job", 1, remedy="Delete it: what lies beside it does not need it.")
JOB, PROVENANCE = "job.toml", "provenance.json"
LIBRARIES = (
    "saelab",
    "torch",
    "transformers",
    "transformer-lens",
    "numpy",
    "safetensors",
    "duckdb",
    "pyarrow",
)


Out = Path | str
"""A folder, or an address that fsspec knows, where a record is kept only once the job is done."""


def place(out: str | Path) -> Out:
    """A folder's path; an address as it is."""
    return str(out) if is_address(out) else Path(out)


def waiting(out: Path) -> Path:
    """Where the record of a job lies that is not finished."""
    return out.parent / f".{out.name}.job.json"


def begun(out: Path) -> list[Path]:
    """What an unfinished job has left: folders of finished parts beside `out`, checkpoints in it."""
    found = [out.parent / f".{out.name}-partial", out / "checkpoints", out / "history.jsonl", out / "reports"]
    return [path for path in [*found, *out.glob("*/checkpoints")] if path.exists()]


def is_whole(out: Path) -> bool:
    """Whether a store or a finished run, or several, lie there."""
    runs = [folder for folder in out.glob("*-*") if folder.is_dir() and folder.name[0].isdigit()]
    return any((out / name).is_file() for name in ("manifest.json", "run.json", "reports.json")) or (
        bool(runs) and all((folder / "run.json").is_file() for folder in runs)
    )


def is_finished(job: Job) -> bool:
    """Whether this very job is done. Raises StoreError where another job's result is in its place."""
    out = place(job.values["out"])
    if job.values.get("overwrite") or not job.values.get("resume", True):
        return False
    record = recorded(out)
    if record is None:
        left = read(waiting(out)) if isinstance(out, Path) and waiting(out).is_file() else None
        if left is None or not is_whole(Path(out)) or _differences(left, job):
            return False
        _finish(out, left)  # it was killed between its last two steps
        return True
    found = _differences(record, job)
    if found and not job.values.get("append"):
        anew = "resume=false" if "resume" in job.values else "overwrite=true"
        message = (
            f"A job's out must be new or its own. Got {out}, where {record['command']} has written with "
            f"{'; '.join(found)[:400]}. Pass another out, or {anew} to begin anew."
        )
        raise StoreError(message)
    return not found


def left_by_another(job: Job) -> list[str]:
    """What differs in the job that an unfinished one left beside `out`; nothing where there is none."""
    out = place(job.values["out"])
    left = read(waiting(out)) if isinstance(out, Path) and waiting(out).is_file() else None
    return [] if left is None else _differences(left, job)


@contextlib.contextmanager
def recording(job: Job) -> Iterator[dict[str, Any]]:
    """Keep the record while the job runs, put it into `out` when it is done.

    Yields:
        The record. What the result itself does not state of its "fingerprints" may be put into it.
    """
    out = place(job.values["out"])
    session: dict[str, Any] = {"started": now(), "ended": None, "versions": versions(), "git": git_revision()}
    record = {
        **STAMP.fields(),
        "command": job.command,
        "given": job.given,
        "job": job.to_toml(),
        "seeds": job.seeds(),
        "sessions": [session],
    }
    with _kept(out, record, job) if isinstance(out, Path) else contextlib.nullcontext():
        yield record
        session["ended"] = now()
        _finish(out, record)


@contextlib.contextmanager
def _kept(out: Path, record: dict[str, Any], job: Job) -> Iterator[None]:
    """The record beside `out`, with the sessions before this one where they were of the same job."""
    path = waiting(out)
    before = read(path) if path.is_file() else None
    if before is not None and not _differences(before, job):
        record["sessions"] = [*before["sessions"], *record["sessions"]]
    write_json(path, record)
    try:
        yield
    except SaelabError:
        # a job that was refused leaves what was there as it was
        if before is not None:
            write_json(path, before)
        elif not begun(out):
            path.unlink(missing_ok=True)
        raise


def recorded(out: Out) -> dict[str, Any] | None:
    """The record of the finished job that wrote `out`, or None."""
    there = place_of(out)
    data = there.read(PROVENANCE)
    if data is None:
        return None
    return _checked(STAMP.parse(data, f"{out}/{PROVENANCE}", "job's record"), out, there.read(JOB))


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """Of Python and of the libraries that numbers depend on."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def git_revision() -> dict[str, Any] | None:
    """The commit of the working folder, and whether tracked files differ from it; None without git."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True, timeout=20)
        return done.stdout.strip()

    try:
        revision = git("rev-parse", "HEAD")
        return {"revision": revision, "changed": bool(git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _finish(out: Out, record: dict[str, Any]) -> None:
    there = place_of(out)
    told = {name: value for name, value in record.items() if name != "job"}
    there.write(JOB, record["job"].encode())
    fingerprints = _fingerprints(out) | told.get("fingerprints", {})
    there.write(PROVENANCE, json_bytes(told | {"fingerprints": fingerprints}))
    if isinstance(out, Path):
        waiting(out).unlink(missing_ok=True)


def _fingerprints(out: Out) -> dict[str, Any]:
    """Of what the result was made from, as the result itself states them."""
    data = place_of(out).read("manifest.json")
    if data is not None:
        manifest = parse_json(data, out, "store's manifest")
        return {name: manifest[name] for name in ("subject", "sae", "corpus") if name in manifest}
    found: dict[str, Any] = {}
    for path in sorted([*Path(out).glob("run.json"), *Path(out).glob("*/run.json")]):
        told = read_json(path, "run's run.json")["provenance"]
        prefix = "" if path.parent == out else f"{path.parent.name}."
        found |= {prefix + name: told.get(name) for name in ("data", "held_out", "weights")}
    return found


def _differences(record: dict[str, Any], job: Job) -> list[str]:
    if record["command"] != job.command:
        return [f"command: {record['command']!r} -> {job.command!r}"]
    try:
        return Job(job.command, tomllib.loads(record["job"])).differences(job)
    except (SaelabError, ValueError) as error:  # edited, or of a saelab with other arguments
        return [str(error)]


def read(path: Path) -> dict[str, Any]:
    """The record of a job that is not finished. Raises FormatError where it is something else."""
    return _checked(STAMP.read(path, "job's record"), path, None)


def _checked(data: dict[str, Any], where: object, job: bytes | None) -> dict[str, Any]:
    """A record with its job's TOML, which lies beside that of a finished one. Raises FormatError."""
    if not isinstance(data.get("command"), str) or not isinstance(data.get("sessions"), list):
        message = f"The record of {where} must tell of a job. Got something else. {STAMP.remedy}"
        raise FormatError(message)
    return data if "job" in data else data | {"job": (job or b"").decode("utf-8", "replace")}
