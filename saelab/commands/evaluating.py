"""`saelab eval`: one SAE, or every SAE of a folder on the same rows, resumable where `out` says where.

Each SAE's report is written into `out/reports` as soon as it is measured, so that a job that was killed goes
on with the next one; `out/reports.json` has them all once the last is there. Processes that torchrun starts
share the SAEs out among them, each by itself, so that reports are those of one process.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from saelab.commands import records
from saelab.commands.jobs import Job
from saelab.progress import new_bar
from saelab.types import ConfigError, SaelabError, StoreError

if TYPE_CHECKING:
    from saelab.analysis import Report, Reports
    from saelab.sae import SAE

REPORTS = "reports.json"
Load = Callable[[], "SAE"]


def finished(out: Path) -> Report | Reports:
    """What a finished job found. Raises FormatError, StoreError."""
    from saelab.analysis import read_report

    return read_report(out / REPORTS)


def evaluate(job: Job, saes: Mapping[str, Load], subject: Any, corpus: Any) -> Report | Reports:
    """Measure all that are not measured yet.

    Args:
        job: The command.
        saes: Name -> what loads it; one alone is called "".
        subject: The model.
        corpus: What it reads.

    Returns:
        The report of one that stands alone, the reports of those of a folder.

    Raises:
        StoreError: Another job's reports lie in `out`.
        RankError: Another process of the launch failed, or is lost; the same call goes on.
        ConfigError: The SAEs were scored on different rows, as where the corpus changed between two runs.
    """
    from saelab import dist
    from saelab.analysis import Reports

    out = None if job.values["out"] is None else Path(job.values["out"])
    with dist.joined(), _recorded(job, out if dist.first() else None) as record:
        dist.ranks.share(None)  # what is begun anew is out of the way once the first has come this far
        found: dict[str, Report] = {}
        with dist.together():
            own = _measured(job, saes, subject, corpus, out)
        for each in dist.ranks.everyone(own):
            found |= each
        found = {name: found[name] for name in saes}
        _refuse_other_rows(found)
        whole = found[""] if list(found) == [""] else Reports(found)
        if out is not None and dist.first():
            whole.save(out / REPORTS)
            record["fingerprints"] = {
                "subject": subject.fingerprint(),
                "corpus": corpus.fingerprint(),
                "saes": {name: report.about["fingerprint"] for name, report in found.items()},
            }
    return whole


def _measured(
    job: Job, saes: Mapping[str, Load], subject: Any, corpus: Any, out: Path | None
) -> dict[str, Report]:
    """The reports of this process's share of the SAEs: every n-th."""
    from saelab import dist

    options = {name: job.values[name] for name in ("suites", "max_rows", "batch_size", "seed")}
    own = dict(list(saes.items())[dist.ranks.rank :: dist.ranks.size])
    found: dict[str, Report] = {}
    shown = job.values["progress"] and dist.first()
    with new_bar(total=len(own), desc="SAEs", unit=" SAEs", disable=not shown) as bar, dist.alone():
        for name, load in own.items():
            found[name] = _one(name, load(), subject, corpus, options, out)
            bar.set_postfix_str(f"{name} FVU {found[name].sae.fvu:.3f}", refresh=False)
            bar.update()
    return found


def _one(
    name: str, sae: SAE, subject: Any, corpus: Any, options: Mapping[str, Any], out: Path | None
) -> Report:
    """One SAE's report, read where this very SAE's is there already."""
    from saelab.analysis import Report, evaluate, read_report

    path = None if out is None else out / "reports" / f"{quote(name or 'sae', safe=' ')}.json"
    if path is not None and path.is_file():
        with contextlib.suppress(SaelabError):  # a damaged one is measured again
            before = read_report(path)
            if isinstance(before, Report) and before.about.get("fingerprint") == sae.fingerprint():
                return before
    report = evaluate(sae, subject, corpus, **options)
    if path is not None:
        report.save(path)
    return report


@contextlib.contextmanager
def _recorded(job: Job, out: Path | None) -> Iterator[dict[str, Any]]:
    """The job's record, kept in `out` where there is one."""
    if out is None:
        yield {}
        return
    begun = _begun(out)
    if job.values["overwrite"]:
        for path in begun:
            path.unlink()
        begun = []
    different = records.left_by_another(job)
    if different and begun:
        message = (
            f"An evaluation goes on with the same job. Got {out}, where one was begun with "
            f"{'; '.join(different)[:400]}. Pass another out, or overwrite=true to begin anew."
        )
        raise StoreError(message)
    with records.recording(job) as record:
        yield record


def _begun(out: Path) -> list[Path]:
    """The reports that lie there; other files of that folder are not ours."""
    from saelab.analysis import read_report

    found = []
    for path in sorted((out / "reports").glob("*.json")):
        with contextlib.suppress(SaelabError):
            read_report(path)
            found.append(path)
    return found


def _refuse_other_rows(found: Mapping[str, Report]) -> None:
    rows = {(report.n_rows, report.rows): name for name, report in found.items()}
    if len(rows) > 1:
        told = [f"{n:,} rows ({fingerprint[:12]}) of {name}" for (n, fingerprint), name in rows.items()]
        message = (
            f"SAEs that are compared must be scored on the same rows. Got {'; '.join(told[:3])}. Did the "
            "corpus change since the first were scored? Begin anew with overwrite=true."
        )
        raise ConfigError(message)


__all__ = ["REPORTS", "evaluate", "finished"]
