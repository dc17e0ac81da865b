"""`saelab eval` over a folder of SAEs: what is done is kept; only what is of the same rows is compared."""

from __future__ import annotations

import functools
import json
import socket
from pathlib import Path

import pytest
from forks import Forked

import saelab
from saelab.analysis import Reports, read_report
from saelab.cli import main
from saelab.commands import evaluating, jobs, work
from saelab.types import ConfigError, StoreError

HOOK = "blocks.2.hook_resid_post"
NAMES = ["k4", "wide/k8", "wide/k16"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three small SAEs of one hook point, two of them below a folder."""
    folder = tmp_path_factory.mktemp("saes")
    for name in NAMES:
        k = int(name.split("k")[-1])
        config = saelab.recipe("topk", d_in=128, d_sae=64, k=k, hook=HOOK)
        saelab.SAE.create(config, seed=k).save(folder / name)
    return folder


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def command(folder, *more) -> list[str]:
    told = ["--subject", "embedded", "--sae", str(folder), "--corpus.kind", "text", "--corpus.paths", "texts"]
    return ["eval", *told, "--max-rows", "200", *more, "--no-progress"]


@pytest.fixture
def texts():
    path = Path("texts")
    path.write_text("\n\n".join(d.text for d in saelab.corpora.world(seed=5, n_documents=12)))
    return path


def job(arguments: list[str]) -> jobs.Job:
    pairs = zip(arguments[1::2], arguments[2::2], strict=False)
    flags = {name[2:].replace("-", "_"): [value] for name, value in pairs if name != "--no-progress"}
    return jobs.Job("eval", jobs.merged("eval", {}, flags))


def test_every_sae_of_a_folder_is_scored_and_the_table_told(folder, texts, capsys):
    assert main(command(folder, "--out", "out")) == 0
    told = capsys.readouterr().out
    assert "Pareto front" in told
    found = read_report(Path("out/reports.json"))
    assert isinstance(found, Reports)
    assert sorted(found.reports) == sorted(NAMES)
    subject = saelab.load_subject(str(saelab.embedded.model_folder()))
    for name in NAMES:
        assert name in told
        sae = saelab.SAE.load(folder / name)
        wanted = saelab.evaluate(sae, subject, saelab.corpora.text("texts"), max_rows=200)
        assert found[name].to_json() == wanted.to_json()
    record = json.loads(Path("out/provenance.json").read_text())
    assert record["fingerprints"]["saes"]["k4"] == saelab.SAE.load(folder / "k4").fingerprint()
    assert main(["info", "out"]) == 0
    assert "evaluation" in capsys.readouterr().out


def test_a_job_that_was_killed_goes_on_and_finds_the_same(folder, texts, monkeypatch, capsys):
    assert main(command(folder, "--out", "whole")) == 0
    seen = []
    evaluate = saelab.analysis.evaluate

    @functools.wraps(evaluate)
    def killed(sae, *args, **options):
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(sae.fingerprint())
        return evaluate(sae, *args, **options)

    monkeypatch.setattr(saelab.analysis, "evaluate", killed)
    assert main(command(folder, "--out", "out")) == 130
    assert "goes on" in capsys.readouterr().err
    assert not Path("out/reports.json").exists()

    @functools.wraps(evaluate)
    def once(sae, *args, **options):
        assert sae.fingerprint() not in seen
        seen.append(sae.fingerprint())
        return evaluate(sae, *args, **options)

    monkeypatch.setattr(saelab.analysis, "evaluate", once)
    assert main(command(folder, "--out", "out")) == 0
    assert len(seen) == 3
    assert Path("out/reports.json").read_text() == Path("whole/reports.json").read_text()
    assert main(command(folder, "--out", "out")) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert len(seen) == 3


def stopped_after_one(folder, monkeypatch):
    evaluate = saelab.analysis.evaluate
    done = []

    @functools.wraps(evaluate)
    def killed(sae, *args, **options):
        if done:
            raise KeyboardInterrupt
        done.append(sae)
        return evaluate(sae, *args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(saelab.analysis, "evaluate", killed)
        assert main(command(folder, "--out", "out")) == 130


def test_saes_that_were_scored_on_other_rows_are_not_compared(folder, texts, monkeypatch):
    stopped_after_one(folder, monkeypatch)
    texts.write_text(texts.read_text()[200:])
    with pytest.raises(ConfigError, match="same rows"):
        work.run(job(command(folder, "--out", "out")))
    assert not Path("out/reports.json").exists()
    Path("out/reports/mine.json").write_text("[]")
    work.run(job(command(folder, "--out", "out", "--overwrite", "true")))
    assert Path("out/reports/mine.json").exists()  # what lies beside ours is not begun anew
    assert isinstance(read_report("out/reports.json"), Reports)


def test_another_job_does_not_go_on_with_what_one_left(folder, texts, monkeypatch):
    stopped_after_one(folder, monkeypatch)
    with pytest.raises(StoreError, match="seed: 0 -> 3"):
        work.run(job(command(folder, "--out", "out", "--seed", "3")))
    assert len(list(Path("out/reports").glob("*.json"))) == 1


def test_an_sae_that_changed_and_a_damaged_report_are_measured_again(folder, texts, monkeypatch, tmp_path):
    stopped_after_one(folder, monkeypatch)
    (path,) = Path("out/reports").glob("*.json")
    before = path.read_text()
    path.write_text(before[: len(before) // 2])
    work.run(job(command(folder, "--out", "out")))
    assert path.read_text() == before
    subject = saelab.load_subject(str(saelab.embedded.model_folder()))
    other = saelab.SAE.create(saelab.recipe("topk", d_in=128, d_sae=64, k=4, hook=HOOK), seed=99)
    found = evaluating.evaluate(
        job(command(folder, "--out", "out")), {"k4": lambda: other}, subject, saelab.corpora.text("texts")
    )
    assert found["k4"].about["fingerprint"] == other.fingerprint()


def test_one_sae_stands_alone_and_suites_are_named(folder, texts, capsys):
    assert main(command(folder / "k4", "--out", "one", "--suites", "core")) == 0
    found = read_report("one/reports.json")
    assert not isinstance(found, Reports)
    capsys.readouterr()
    assert main(command(folder / "k4", "--json")) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["report"]["sae"]["fvu"] == found.sae.fvu
    assert told["fingerprints"]["sae"] == found.about["fingerprint"]
    with pytest.raises(ConfigError, match="nothing"):
        work.run(job(command(folder / "k4", "--suites", "nothing")))


TASK = """
import functools, os, sys
from saelab import analysis
from saelab.cli import main
out, dies, *arguments = sys.argv[1:]
evaluate = analysis.evaluate
@functools.wraps(evaluate)
def dying(*args, **options):
    if dies == os.environ["RANK"]:
        os._exit(9)
    return evaluate(*args, **options)
analysis.evaluate = dying
sys.exit(main([*arguments, "--out", out]))
"""
"""A process of `saelab eval`; that of rank `dies` is killed at its first SAE."""


def launched(arguments, out: str, dies: str = "-"):
    """Codes and output of two ranks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        told = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    processes = [
        Forked(TASK, out, dies, *arguments, **told, RANK=str(i), LOCAL_RANK=str(i)) for i in range(2)
    ]
    ended = [process.communicate(timeout=300) for process in processes]
    return [process.returncode for process in processes], ended


@pytest.mark.slow
def test_ranks_share_the_saes_out_and_what_a_killed_one_left_is_done_on_resume(folder, texts):
    told = command(folder, "--suites", "norms")
    assert main([*told, "--out", "alone"]) == 0
    wanted = Path("alone/reports.json").read_text()
    codes, _ = launched(told, "out", dies="1")
    assert codes[1] == 9
    assert codes[0] != 0
    done = sorted(path.stem for path in Path("out/reports").glob("*.json"))
    assert len(done) == 2  # every second of three: those of rank 0 are kept
    assert not Path("out/reports.json").exists()
    before = {path: path.stat().st_mtime_ns for path in Path("out/reports").glob("*.json")}
    codes, ((first, error), (second, _)) = launched(told, "out")
    assert codes == [0, 0], error
    assert Path("out/reports.json").read_text() == wanted
    assert {path: path.stat().st_mtime_ns for path in before} == before  # not measured again
    assert "Pareto front" in first
    assert second == ""  # one of them prints
