"""`saelab train`: from a store or a corpus, one recipe or several, killed and gone on with."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from test_cli import HOOK, TRAIN, refuse_work, saelab_command, wait_for

import saelab
from saelab.cli import main
from saelab.commands import info, jobs, records
from saelab.types import ConfigError

pytestmark = pytest.mark.usefixtures("own_folder")


def test_train_takes_one_recipe_or_several(small_acts, capsys, monkeypatch):
    one = [*TRAIN, "--acts", small_acts.folder, "--steps", "20", "--no-progress", "--held-out", "500"]
    assert main([*map(str, one), "--out", "one"]) == 0
    run = saelab.train(
        saelab.recipe("topk", d_in=128, d_sae=64, k=4), small_acts,
        steps=20, batch_size=256, held_out=500, progress=False,
    )  # fmt: skip
    told = json.loads(Path("one/provenance.json").read_text())["fingerprints"]
    assert told["weights"] == run.sae.fingerprint()
    assert told["data"] == small_acts.fingerprint()
    assert main([*map(str, one), "--start", "one", "--out", "further"]) == 0
    assert saelab.training.Run.load(Path("further")).settings.start.weights == run.sae.fingerprint()
    Path("two.toml").write_text(
        f"acts = {str(small_acts.folder)!r}\nout = 'two'\nsteps = 10\nbatch_size = 256\nprogress = false\n"
        "[[recipe]]\nname = 'topk'\nd_sae = 64\nk = 4\n[[recipe]]\nname = 'relu'\nd_sae = 32\n"
    )
    assert main(["train", "two.toml"]) == 0
    assert "2 training runs" in capsys.readouterr().out
    assert saelab.SAE.load("two/1-relu").config.d_sae == 32
    refuse_work(monkeypatch)
    assert main(["train", "two.toml"]) == 0
    assert main(["train", "two.toml", "--recipe.k", "3"]) == 1
    assert "--recipe.k changes one table" in capsys.readouterr().err


def test_train_makes_its_rows_from_a_corpus(subject, capsys, monkeypatch):
    """The hook points are those of the recipes, unless they are said."""
    Path("job.toml").write_text(
        "subject = 'embedded'\nout = 'run'\nsteps = 5\nbatch_size = 64\nprogress = false\n"
        "corpus = {kind = 'world', seed = 3, n_documents = 20}\nstream = {buffer_rows = 1024}\n"
        f"[[recipe]]\nname = 'topk'\nd_sae = 64\nk = 4\nhook = '{HOOK}'\n"
        "[[recipe]]\nname = 'transcoder'\nd_sae = 64\nk = 4\n"
        "hook = 'blocks.1.hook_resid_mid'\nhook_out = 'blocks.1.hook_mlp_out'\nd_out = 128\n"
    )
    assert main(["train", "job.toml"]) == 0
    hooks = [HOOK, "blocks.1.hook_resid_mid", "blocks.1.hook_mlp_out"]
    corpus = saelab.corpora.world(seed=3, n_documents=20)
    configs = [
        saelab.recipe("topk", d_in=128, d_sae=64, k=4, hook=hooks[0]),
        saelab.recipe("transcoder", d_in=128, d_out=128, d_sae=64, k=4, hook=hooks[1], hook_out=hooks[2]),
    ]
    rows = saelab.stream(subject, corpus, hooks, buffer_rows=1024)
    runs = saelab.train(configs, rows, steps=5, batch_size=64, progress=False)
    told = json.loads(Path("run/provenance.json").read_text())["fingerprints"]
    assert [told["0-topk.weights"], told["1-transcoder.weights"]] == [run.sae.fingerprint() for run in runs]
    refuse_work(monkeypatch)
    assert main(["train", "job.toml"]) == 0
    assert "nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ({}, "Got neither. Pass --acts"),
        ({"subject": "embedded"}, "Got subject. Pass --acts"),
        ({"acts": "a", "subject": "embedded", "corpus": {"kind": "world"}}, "Got acts, subject, corpus"),
        ({"acts": "a", "stream": {}}, "Got acts, stream"),
        ({"subject": "embedded", "corpus": {"kind": "world"}, "stream": {"rows": 3}}, "stream.rows"),
    ],
)
def test_rows_come_from_one_place(rows, says):
    job = {"out": "o", "steps": 1, "batch_size": 2, "recipe": {"name": "topk", "d_sae": 8}}
    with pytest.raises(ConfigError, match=says):
        jobs.Job("train", job | rows)


def test_hooks_alone_say_what_is_read(subject, capsys):
    """A pattern as well; the width follows from them."""
    asked = [*TRAIN, "--subject", "embedded", "--corpus.kind", "world", "--corpus.n-documents", "20"]
    asked += ["--steps", "2", "--no-progress", "--hooks"]
    assert main([*asked, HOOK, "--out", "one"]) == 0
    config = saelab.recipe("topk", d_in=128, d_sae=64, k=4, hook=HOOK)
    rows = saelab.stream(subject, saelab.corpora.world(n_documents=20), HOOK)
    run = saelab.train(config, rows, steps=2, batch_size=256, progress=False)
    assert saelab.SAE.load(f"one/0-topk-{HOOK}").fingerprint() == run.sae.fingerprint()
    assert main([*asked, "blocks.?.hook_resid_post", "--out", "all"]) == 0
    assert len(list(Path("all").glob("*-topk-blocks.?.hook_resid_post"))) == 4


def test_a_stream_needs_a_hook_point(capsys):
    given = [*TRAIN, "--steps", "2", "--out", "o", "--subject", "embedded", "--corpus.kind", "world"]
    assert main(given) == 1
    assert "--recipe.hook" in capsys.readouterr().err
    assert not Path("o").exists()


@pytest.mark.slow
def test_a_train_that_is_killed_goes_on_to_the_same_weights(small_acts, capsys):
    train = [
        *TRAIN,
        "--acts",
        small_acts.folder,
        "--steps",
        "800",
        "--checkpoint-every",
        "50",
        "--no-progress",
    ]
    train = list(map(str, train))
    process = saelab_command(*train, "--out", "killed")
    wait_for(lambda: list(Path("killed/checkpoints").glob("step-*")), process)
    process.kill()
    process.communicate()
    assert info.describe("killed").kind == "training run, not finished"
    assert not Path("killed/run.json").exists()

    process = saelab_command(*train, "--out", "killed")
    seen = {p.name for p in Path("killed/checkpoints").glob("step-*")}
    wait_for(lambda: {p.name for p in Path("killed/checkpoints").glob("step-*")} - seen, process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "interrupted; the same command goes on" in errors

    assert main([*train, "--out", "killed"]) == 0
    assert main([*train, "--out", "whole"]) == 0
    killed, whole = (saelab.SAE.load(out).fingerprint() for out in ("killed", "whole"))
    assert killed == whole
    told = json.loads(Path("killed/provenance.json").read_text())
    assert [session["ended"] is None for session in told["sessions"]] == [True, True, False]
    assert not records.waiting(Path("killed")).exists()
