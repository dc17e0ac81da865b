"""The command line: jobs from files and flags, what they leave, exit codes, and being killed."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
import tempfile
import time
import tomllib
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from forks import Forked

import saelab
from saelab.cli import main
from saelab.commands import info, jobs, records, work
from saelab.commands.arguments import from_flags, storable
from saelab.types import ConfigError, FormatError, StoreError

pytestmark = pytest.mark.usefixtures("own_folder")
HOOK = "blocks.2.hook_resid_post"
ROOT = Path(__file__).parents[2]
HARVEST = [
    "harvest",
    "--subject",
    "embedded",
    "--hooks",
    HOOK,
    "--corpus.kind",
    "world",
    "--corpus.seed",
    "3",
]
HARVEST += ["--corpus.n-documents", "30", "--max-rows", "500", "--out", "acts", "--no-progress"]
TRAIN = ["train", "--recipe", "topk", "--recipe.d-sae", "64", "--recipe.k", "4", "--batch-size", "256"]


@pytest.fixture(scope="module")
def acts(subject, tmp_path_factory):
    """What HARVEST gives, by the Python function."""
    corpus = saelab.corpora.world(seed=3, n_documents=30)
    folder = tmp_path_factory.mktemp("python") / "acts"
    return saelab.harvest(subject, corpus, [HOOK], folder, max_rows=500, progress=False)


def saelab_command(*arguments):
    """The command in a process of its own."""
    return Forked("import sys; from saelab.cli import main; sys.exit(main())", *arguments)


def refuse_work(monkeypatch):
    def refuse(*_):
        pytest.fail("a finished job loads no model and trains nothing")

    monkeypatch.setattr(work, "_DO", dict.fromkeys(work._DO, refuse))


# what a job is


@pytest.mark.parametrize(
    ("hint", "texts", "value"),
    [
        (int, ["12"], 12),
        (float, ["1"], 1.0),
        (str, ["12"], "12"),
        (str, ["true"], "true"),
        (str, ["a, b"], "a, b"),
        (bool, ["false"], False),
        (int | None, ["none"], None),
        (str | None, ["none"], "none"),
        (float | str, ["auto"], "auto"),
        (float | str, ["1e-3"], 1e-3),
        (tuple[int, int], ["3,4"], (3, 4)),
        (tuple[int, int] | None, ["[3, 4]"], (3, 4)),
        (list[str], ["a"], ["a"]),
        (list[str], ["a,b"], ["a", "b"]),
        (list[str], ["a", "b,c"], ["a", "b,c"]),
        (str | list[str], ["a", "b"], ["a", "b"]),
        (str | list[str], ['["a,b"]'], ["a,b"]),
        (list[int], ["1", "2"], [1, 2]),
        (Any, ["1,2"], [1, 2]),
        (Any, ["a,b"], "a,b"),
        (Any, ["none"], "none"),
        (Any, ["2024-01-01"], "2024-01-01"),
    ],
)  # fmt: skip
def test_flags_are_read_as_the_annotation_says(hint, texts, value):
    read = from_flags(texts, hint, "x")
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("hint", "texts"),
    [(int, ["1.5"]), (int, ["true"]), (int, ["1", "2"]), (bool, ["yes"]), (tuple[int, int], ["1,2,3"])],
)
def test_flags_of_another_type_are_refused(hint, texts):
    with pytest.raises(ConfigError, match=r"x.* must .*\. Got .*\. Correct"):
        from_flags(texts, hint, "x")


def test_a_job_written_down_is_the_same_job():
    recipe = [{"name": "topk", "d_sae": 64, "k": 4}, {"name": "relu", "d_sae": 64, "l1": 0.25}]
    job = jobs.Job(
        "train", {"acts": "a", "out": 'odd "name"\x7f\n', "steps": 5, "batch_size": 8, "recipe": recipe}
    )
    again = jobs.Job("train", tomllib.loads(job.to_toml()))
    assert storable(again.values) == storable(job.values)
    assert job.differences(again) == []
    other = jobs.Job("train", {**job.given, "seed": 1, "progress": False})
    assert job.differences(other) == ["seed: 0 -> 1"]


def test_flags_win_over_the_file_and_the_file_over_defaults():
    given = {
        "subject": "gpt2",
        "hooks": ["a"],
        "out": "o",
        "corpus": {"kind": "text", "paths": "x"},
        "batch_size": 3,
    }
    flags = {
        "subject": ["embedded"],
        "corpus.paths": ["y", "z"],
        "max_rows": ["7"],
        "subject.dtype": ["float32"],
    }
    values = jobs.Job("harvest", jobs.merged("harvest", given, flags)).values
    assert values["subject"] == {"name": "embedded", "device": "cpu", "dtype": "float32", "n_ctx": None}
    assert values["corpus"]["paths"] == ["y", "z"]
    assert (values["batch_size"], values["max_rows"], values["dtype"]) == (3, 7, "float32")
    assert given["corpus"]["paths"] == "x"


@pytest.mark.parametrize(
    ("command", "function"),
    [
        ("harvest", saelab.harvest),
        ("index", saelab.index),
        ("train", saelab.train),
        ("eval", saelab.evaluate),
    ],
)
def test_every_argument_of_the_function_is_one_of_the_command(command, function):
    named = set(inspect.signature(function).parameters) - {"config", "callbacks"}
    known = jobs.flag_arguments(command)
    assert named <= set(known) | {name.split(".")[0] for name in known}


def test_every_argument_of_every_corpus_and_recipe_is_one():
    known = set(jobs.flag_arguments("harvest")) | set(jobs.flag_arguments("train"))
    for kind in jobs.KINDS:
        for name in inspect.signature(getattr(saelab.corpora, kind)).parameters:
            assert f"corpus.{name}" in known
    assert {"recipe.k", "recipe.l1", "recipe.widths", "recipe.hook_out"} <= known


WORLD = {"kind": "world"}


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"hook": ["x"]}, "no argument 'hook'. Did you mean 'hooks'"),
        ({"subject": {"nam": "x"}}, "no argument 'subject.nam'. Did you mean 'name'"),
        ({"subject": 3}, "subject must be a table. Got 3"),
        ({"max_rows": "many"}, "max_rows must be of type int. Got 'many'"),
        ({"max_rows": True}, "max_rows must be of type int. Got True"),
        ({"hooks": HOOK}, "hooks must be of type list"),
        ({"hooks": [3]}, r"hooks\[0\] must be of type HookPoint or str. Got 3"),
        ({"corpus": {"kind": "jsonlines"}}, "corpus.kind must be one of .* Did you mean 'jsonl'"),
        ({"corpus": {}}, r"needs corpus.kind \(one of text, .* Pass --corpus.kind, or write it"),
        ({"corpus": "x.txt"}, "corpus must be a table"),
        ({"corpus": WORLD | {"paths": "x"}}, "corpus of kind 'world' has no argument 'corpus.paths'"),
        ({"corpus": {"kind": "text"}}, "needs corpus.paths .* Pass --corpus.paths"),
        ({"corpus": WORLD | {"shard": [1]}}, "corpus.shard must have 2 entries"),
        ({"corpus": WORLD | {"take": 0}}, "corpus.take must be an integer >= 1"),
        ({"out": None}, "out must be of type"),
    ],
)  # fmt: skip
def test_a_wrong_job_is_refused_by_name(changed, says):
    job = {"subject": "embedded", "hooks": [HOOK], "out": "o", "corpus": WORLD}
    with pytest.raises(saelab.SaelabError, match=says):
        jobs.Job("harvest", job | changed)


@pytest.mark.parametrize(
    ("command", "given", "names"),
    [
        ("harvest", {}, "subject corpus.kind hooks out"),
        ("harvest", {"subject": {"device": "cpu"}, "corpus": {"kind": "text"}, "out": "o"},
         "subject.name corpus.paths hooks"),
        ("index", {"corpus": WORLD}, "subject sae out"),
        ("eval", {}, "subject sae corpus.kind"),
        ("train", {}, "recipe out acts batch_size"),
        ("train", {"recipe": "topk", "acts": "a"}, "recipe.d_sae out batch_size"),
        ("train", {"recipe": {"k": 3}, "subject": "gpt2", "corpus": WORLD, "steps": 3},
         "recipe.name out batch_size"),
    ],
)  # fmt: skip
def test_all_that_is_missing_is_named_at_once_with_its_flag(command, given, names):
    with pytest.raises(ConfigError) as refused:
        jobs.Job(command, given)
    needs, got, remedy = str(refused.value).split(". ")
    assert needs.startswith(f"saelab {command} needs ")
    named = set(re.findall(r"([\w.]+) \(", needs))
    assert named == set(names.split())
    assert set(re.findall(r"--([\w.-]+)", remedy)) == {name.replace("_", "-") for name in named}
    assert got == f"Got {', '.join(given) or 'nothing'}"


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"recipe": {"name": "topk", "d_sae": 8, "kk": 3}}, "recipe.kk'. Did you mean 'k'"),
        ({"recipe": {"name": "top_k", "d_sae": 8}}, "recipe.name must be one of .* Did you mean 'topk'"),
        ({"recipe": {"name": "topk"}}, "needs recipe.d_sae"),
        ({"recipe": [{"name": "topk", "d_sae": 8}, {"name": "relu"}]}, "name 'relu' needs recipe.d_sae"),
        ({"callbacks": []}, "no argument 'callbacks'"),
        ({"lr": float("inf")}, "lr must be .* finite number.* Got inf"),
        ({"recipe": {"name": "relu", "d_sae": 8, "l1": date(2024, 1, 1)}}, "recipe.l1 .* Got 2024-01-01"),
    ],
)  # fmt: skip
def test_a_wrong_recipe_is_refused_by_name(changed, says):
    job = {"acts": "a", "out": "o", "steps": 1, "batch_size": 2, "recipe": {"name": "topk", "d_sae": 8}}
    with pytest.raises(ConfigError, match=says):
        jobs.Job("train", job | changed)


# what comes out


def test_harvest_gives_what_the_function_gives_and_runs_once(acts, capsys, monkeypatch):
    assert main(HARVEST) == 0
    assert "activation store" in capsys.readouterr().out
    store = saelab.ActivationStore.open("acts")
    store.verify()
    assert store.fingerprint() == acts.fingerprint()
    assert not records.waiting(Path("acts")).exists()
    refuse_work(monkeypatch)
    assert main(HARVEST) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert main(["harvest", "acts/job.toml"]) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert main([*HARVEST, "--max-rows", "400"]) == 1  # given twice: a list, and max_rows is none
    assert main([*HARVEST, "--dtype", "float16"]) == 1
    assert "dtype: 'float32' -> 'float16'. Pass another out, or overwrite=true" in capsys.readouterr().err


def test_overwrite_begins_anew(capsys):
    assert main(HARVEST) == 0
    assert main([*HARVEST, "--dtype", "float16", "--overwrite"]) == 0
    assert saelab.ActivationStore.open("acts").dtype == "float16"
    assert jobs.read("acts/job.toml")["dtype"] == "float16"


def test_provenance_says_how_without_saying_where(acts, tmp_path):
    subprocess.run(
        "git init -q && git -c user.name=a -c user.email=a@b commit -q --allow-empty -m x",
        shell=True,
        check=True,
    )
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert main(HARVEST) == 0
    told = json.loads(Path("acts/provenance.json").read_text())
    assert told["fingerprints"] == {name: acts.manifest[name] for name in ("subject", "corpus")}
    assert told["seeds"] == {"corpus.seed": 3}
    (session,) = told["sessions"]
    assert session["started"] <= session["ended"]
    assert session["git"] == {"revision": head, "changed": False}
    assert session["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"torch", "transformers", "numpy"} <= set(session["versions"])
    for name in ("job.toml", "provenance.json"):
        assert str(tmp_path) not in Path("acts", name).read_text()
        assert str(Path.home()) not in Path("acts", name).read_text()


def test_git_is_not_needed(monkeypatch):
    assert records.git_revision() is None
    monkeypatch.setenv("PATH", "")
    assert records.git_revision() is None


def test_a_job_killed_before_its_record_was_put_is_finished(monkeypatch, capsys):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(records, "_finish", killed)
        assert main(HARVEST) == 130
    assert "interrupted; the same command goes on" in capsys.readouterr().err
    assert records.waiting(Path("acts")).is_file()
    assert "command harvest" in "\n".join(info.describe("acts").lines())
    refuse_work(monkeypatch)
    assert main(HARVEST) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert Path("acts/provenance.json").is_file()
    assert not records.waiting(Path("acts")).exists()


def test_a_refused_job_leaves_what_was_there(capsys):
    bad = [argument.replace(HOOK, "blocks.9.nothing") for argument in HARVEST]
    assert main(bad) == 1
    assert list(Path.cwd().iterdir()) == []
    waiting = records.waiting(Path("acts"))
    with pytest.raises(KeyboardInterrupt), records.recording(jobs.Job("harvest", job_of(HARVEST))):
        raise KeyboardInterrupt
    before = waiting.read_text()
    assert main(bad) == 1
    assert waiting.read_text() == before


def job_of(arguments):
    """The job that flags stand for."""
    texts = [a for a in arguments[1:] if a != "--no-progress"]
    flags = {name[2:].replace("-", "_"): [v] for name, v in zip(texts[::2], texts[1::2], strict=True)}
    return jobs.merged(arguments[0], {}, flags)


def test_index_and_eval_give_what_the_functions_give(subject, small_sae, tmp_path, capsys):
    small_sae.save(tmp_path / "sae")
    corpus = saelab.corpora.world(seed=3, n_documents=30).shard(0, 2)
    common = ["--subject", "embedded", "--sae", "sae", "--corpus.kind", "world", "--corpus.seed", "3"]
    common += ["--corpus.n-documents", "30", "--corpus.shard", "0,2", "--max-rows", "300"]
    assert main(["index", *common, "--out", "features", "--window", "2,3", "--no-progress"]) == 0
    options = {"max_rows": 300, "window": (2, 3), "progress": False}
    wanted = saelab.index(subject, small_sae, corpus, tmp_path / "wanted", **options)
    store = saelab.FeatureStore.open("features")
    store.verify()
    query = "select * from examples order by latent, kind, rank"
    assert store.query(query).equals(wanted.query(query))
    told = json.loads(Path("features/provenance.json").read_text())["fingerprints"]
    assert told["sae"] == small_sae.fingerprint()

    capsys.readouterr()
    assert main(["eval", *common, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    report = saelab.evaluate(small_sae, subject, corpus, max_rows=300)
    assert told["report"]["sae"]["fvu"] == report.sae.fvu
    assert told["report"]["n_rows"] == report.n_rows
    assert told["fingerprints"]["corpus"] == corpus.fingerprint()


def test_harvest_to_an_address_is_recorded_there(acts, capsys, monkeypatch, tmp_path_factory):
    fsspec = pytest.importorskip("fsspec")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("locks")))  # other runs use it too
    monkeypatch.setattr(fsspec.filesystem("memory"), "store", {})
    address = [argument.replace("acts", "memory://bucket/acts") for argument in HARVEST]
    assert main(address) == 0
    assert list(Path.cwd().iterdir()) == []
    told = json.loads(fsspec.filesystem("memory").cat("/bucket/acts/provenance.json"))
    assert told["fingerprints"]["corpus"] == acts.manifest["corpus"]
    refuse_work(monkeypatch)
    capsys.readouterr()
    assert main(address) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert main([*address, "--dtype", "float16"]) == 1
    assert "dtype: 'float32' -> 'float16'" in capsys.readouterr().err
    assert main(["info", "memory://bucket/acts"]) == 0
    assert "command harvest" in capsys.readouterr().out
    assert main(["info", "memory://bucket/none"]) == 1


# being killed


def test_a_harvest_that_is_interrupted_goes_on(subject, acts, capsys, monkeypatch):
    small = [argument.replace("500", "1500") for argument in HARVEST]
    small += ["--shard-rows", "300", "--batch-size", "1"]
    loaded = saelab.load_subject(saelab.embedded.model_folder())
    run, calls = loaded.run, []

    def interrupted(*arguments, **options):
        calls.append(1)
        if len(calls) == 20:  # in the second stretch of 16 documents
            raise KeyboardInterrupt
        return run(*arguments, **options)

    loaded.run = interrupted
    monkeypatch.setattr(work, "_subject", lambda _: loaded)
    assert main(small) == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert not Path("acts").exists()
    told = info.describe("acts")
    assert told.kind == "job, not finished"
    assert told.data["parts"] >= 1
    assert told.data["job"]["ended"] is None
    assert main(small) == 0
    store = saelab.ActivationStore.open("acts")
    assert len(store.manifest["shard_rows"]) == 5
    python = saelab.corpora.world(seed=3, n_documents=30)
    options = {"max_rows": 1500, "shard_rows": 300, "batch_size": 1, "progress": False}
    wanted = saelab.harvest(subject, python, [HOOK], Path("wanted"), **options)
    assert store.fingerprint() == wanted.fingerprint()
    assert [p.name for p in sorted(Path.cwd().iterdir())] == ["acts", "wanted"]


def wait_for(condition, process):
    deadline = time.monotonic() + 120
    while not condition() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.poll() is None, process.communicate()


@pytest.mark.slow
def test_the_command_tells_results_on_one_stream_and_progress_on_the_other(acts):
    process = saelab_command(*HARVEST[:-1], "--json")
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert json.loads(out)["n_rows"] == 500
    assert "harvest:" in errors
    assert saelab.ActivationStore.open("acts").fingerprint() == acts.fingerprint()


# command lines


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "COMMAND"),
        (["harvst"], "invalid choice: 'harvst'"),
        (["harvest", "--max-row", "3"], "unknown argument --max-row. Did you mean '--max-rows'"),
        (["train", "--recipe.kk=3"], "unknown argument --recipe.kk=3. Did you mean '--recipe.k'"),
        (["harvest", "--max-rows"], "expected one argument"),
        (["convert", "a", "b"], "--to"),
        (["info"], "folder"),
    ],
)
def test_a_command_line_that_says_nothing_ends_in_2(arguments, says, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["harvest", "no.toml"], "No such file"),
        (["harvest", "bad.toml"], "must be TOML. Got bad.toml, of which: .*line 2"),
        (["harvest", "--max_rows", "x"], "max_rows must be of type int. Got 'x'"),
        (["harvest"], "saelab harvest: .* needs subject .* hooks .* Pass --subject, .* --hooks and"),
        (["train", *TRAIN[1:], "--acts", "no", "--out", "o", "--steps", "3"], "must hold manifest.json"),
        (["info", "no"], "not there"),
    ],
)
def test_an_error_is_one_line_and_ends_in_1(arguments, says, capsys):
    Path("bad.toml").write_text("a = 1\nb = \n")
    assert main(arguments) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert len(told.err.splitlines()) == 1
    assert re.search(says, told.err), told.err
    assert [p.name for p in Path.cwd().iterdir()] == ["bad.toml"]


def test_help_lists_the_arguments_of_the_function(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["index", "--help"])
    assert ended.value.code == 0
    told = capsys.readouterr().out
    assert "--n-quantile VALUE" in told
    assert "within its document" in " ".join(told.split())  # out of the docstring


@pytest.mark.parametrize("command", ["harvest", "index", "train", "eval"])
def test_every_argument_is_explained(command):
    known = jobs.flag_arguments(command)
    assert [name for name, argument in known.items() if not argument.line] == []
    assert not any("\n" in argument.line or len(argument.line) > 300 for argument in known.values())


def test_a_record_of_a_later_version_is_refused():
    Path("acts").mkdir()
    Path("acts/provenance.json").write_text(
        '{"format": "saelab-job", "version": 9, "command": "x", "sessions": []}'
    )
    with pytest.raises(FormatError, match="of version 1 or older"):
        records.recorded(Path("acts"))
    Path("acts/provenance.json").write_text("[]")
    with pytest.raises(FormatError, match="Delete it"):
        records.recorded(Path("acts"))


def test_another_result_is_not_written_over(small_acts, capsys):
    assert main([*HARVEST, "--out", "acts"]) == 1  # out given twice
    assert main(HARVEST) == 0
    train = [*TRAIN, "--acts", str(small_acts.folder), "--steps", "3", "--out", "acts"]
    with pytest.raises(StoreError, match="command: 'harvest' -> 'train'"):
        work.run(jobs.Job("train", job_of(train)))
