"""What `saelab info` and `convert` say of a folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_cli import HOOK

import saelab
from saelab import cli
from saelab.cli import main
from saelab.commands import flags, info, jobs, work
from saelab.types import FormatError

HEAVY = {"torch", "transformers", "pandas", "duckdb", "scipy", "plotly", "ipywidgets"}

pytestmark = pytest.mark.usefixtures("own_folder")


def test_info_knows_what_saelab_writes(small_lab, small_acts, small_sae, tmp_path):
    assert info.describe(small_acts.folder).data["hooks"] == {HOOK: 128}
    features = info.describe(small_lab.store.folder)
    assert (features.kind, features.data["n_rows"]) == ("feature store", 3_000)
    assert features.data["labels"] == {}
    shutil.copytree(small_lab.store.folder, tmp_path / "labelled")
    labelled = saelab.stores.FeatureStore.open(tmp_path / "labelled")
    labelled.attach_labels({1: "verbs"}, source="me")
    labelled.attach_labels({1: "names", 4: "dates"}, source="model")
    told = info.describe(labelled.folder)
    assert told.data["labels"] == {"me": 1, "model": 2}
    assert "me 1, model 2" in "\n".join(told.lines())
    model = info.describe(saelab.embedded.model_folder())
    assert (model.kind, model.data["n_layer"]) == ("model", 4)
    sae = info.describe(small_sae.save(tmp_path / "sae"))
    assert sae.kind == "SAE"
    wanted = {"format": "saelab", "recipe": "topk", "d_in": 128, "d_sae": 64, "reads": [HOOK]}
    assert {name: sae.data[name] for name in wanted} == wanted
    assert sae.data["options"]["normalise"] == "scalar"
    checked = info.describe(tmp_path / "sae", check=True)
    same = ("format", "recipe", "d_in", "d_sae", "reads", "dtype")
    assert {name: checked.data[name] for name in same} == {name: sae.data[name] for name in same}
    assert sae.data["options"].items() <= checked.data["options"].items()
    assert {key for key in checked.data if key.startswith("as ")} == {
        "as saelab", "as saelens", "as dictionary_learning", "as sparsify"
    }  # fmt: skip
    assert checked.data["as saelens"] == "exact"
    for told in (features, model, sae, checked):
        json.dumps(told.data)
        assert all("None" not in line for line in told.lines())


def test_info_says_what_an_export_cannot_hold(tmp_path):
    saelab.SAE(saelab.recipe("abs_topk", d_in=8, d_sae=16, k=2)).save(tmp_path / "sae")
    told = info.describe(tmp_path / "sae", check=True).data
    assert told["as saelab"] == "exact"
    assert told["as dictionary_learning"].startswith("refused: ")


@pytest.mark.parametrize("fault", ["cut", "d_sae", "no config", "later"])
def test_info_sees_a_damaged_sae_without_loading_it(small_sae, tmp_path, fault, capsys):
    folder = small_sae.save(tmp_path / "sae")
    config = json.loads((folder / "config.json").read_text())
    if fault == "cut":
        weights = folder / "sae.safetensors"
        weights.write_bytes(weights.read_bytes()[:-4])
    elif fault == "d_sae":
        config["config"]["d_sae"] = 65
    elif fault == "no config":
        del config["config"]
    else:
        config["version"] = 2
    (folder / "config.json").write_text(json.dumps(config))
    assert main(["info", "sae"]) == 1
    assert "sae" in capsys.readouterr().err


def test_help_and_info_of_what_saelab_wrote_load_neither_torch_nor_pandas(small_lab, small_acts, small_sae):
    """One process runs them all; the first that loads a heavy library is named."""
    shutil.copytree(small_lab.store.folder, "labelled")
    saelab.stores.FeatureStore.open("labelled").attach_labels({1: "verbs"}, source="me")
    small_sae.save("sae")
    saelab.train(small_sae.config, small_acts, steps=2, batch_size=64, out="run", progress=False)
    wrote = ["sae", "run", "labelled", small_acts.folder, saelab.embedded.model_folder()]
    commands = [(["--help"], 0), *(([name, "--help"], 0) for name in cli.COMMANDS)]
    commands += [(["nothing"], 2), (["train", "--setps", "3"], 2), (["info"], 2)]
    commands += [(["info", str(path)], 0) for path in wrote]
    # and of what cannot be an SAE of anybody else's
    Path("nothing").mkdir()
    Path("notes").mkdir()
    Path("notes/notes.txt").write_text("a, b")
    commands += [(["info", name], 1) for name in ("nothing", "notes", "notes/notes.txt", "missing")]
    code = f"""
import contextlib, io, sys
from saelab.cli import main
for command, code in {commands!r}:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            ended = main(command)
        except SystemExit as error:
            ended = error.code
    assert ended == code, (command, ended)
    heavy = {HEAVY!r} & set(sys.modules)
    assert not heavy, (command, heavy)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_it_takes_names_that_the_locale_cannot_write(small_lab, small_sae):
    """LC_ALL=C, without the coercion to UTF-8 that Python does: names are bytes, output is ASCII."""
    place = Path("日本語 ünï")
    shutil.copytree(small_lab.store.folder, place / "features")
    saelab.stores.FeatureStore.open(place / "features").attach_labels({1: "verbs"}, source="作者")
    small_sae.save(place / "sae")
    code = """
import sys
from saelab.cli import main
sys.exit(main(["info", sys.argv[1] + "/features"]) or main(["info", sys.argv[1] + "/sae", "--json"])
         or main(["info", sys.argv[1] + "/features", "--json"]) or 10 * main(["info", sys.argv[1] + "/none"]))
"""
    plain = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    ran = subprocess.run([sys.executable, "-c", code, place], env=os.environ | plain, capture_output=True)
    assert ran.returncode == 10, ran.stderr
    assert b"\\u4f5c\\u8005" in ran.stdout  # 作者
    assert str(place / "sae").encode() in ran.stdout
    assert b"which is not there" in ran.stderr
    assert b"Traceback" not in ran.stderr


def test_the_list_of_flags_is_that_of_the_functions():
    derived = json.loads(json.dumps(flags.derived()))
    remedy = "write it anew: python -m saelab.commands.flags"
    assert json.loads(flags.LISTED.read_text()) == derived, remedy


def test_info_of_what_is_nothing_ends_in_1(capsys):
    Path("empty").mkdir()
    for name in ("empty", "missing"):
        assert main(["info", name]) == 1
        assert "nothing that saelab knows" in capsys.readouterr().err
    Path("other").mkdir()
    Path("other/manifest.json").write_text('{"name": "a web page"}')
    assert main(["info", "other"]) == 1


def test_info_of_a_damaged_store_says_so(small_acts, tmp_path, capsys):
    import shutil

    shutil.copytree(small_acts.folder, tmp_path / "acts")
    (tmp_path / "acts" / "shard-00000.safetensors").write_bytes(b"short")
    assert main(["info", "acts"]) == 1
    assert "shard-00000" in capsys.readouterr().err


def test_convert_writes_what_the_other_library_loads(small_sae, tmp_path, capsys):
    small_sae.save(tmp_path / "sae")
    assert main(["convert", "sae", "theirs", "--to", "dictionary_learning"]) == 0
    assert saelab.formats.sniff("theirs").format == "dictionary_learning"
    assert main(["convert", "theirs", "sae", "--to", "saelab"]) == 1
    assert "new or empty folder" in capsys.readouterr().err
    assert main(["convert", "sae", "x", "--to", "sealens"]) == 1
    assert "Did you mean 'saelens'" in capsys.readouterr().err
    signed = saelab.SAE(saelab.recipe("abs_topk", d_in=8, d_sae=16, k=2))
    with pytest.raises(FormatError):
        work.convert(str(signed.save(tmp_path / "signed")), "y", "dictionary_learning", None, None, False, {})
    assert not Path("y").exists()


def test_what_files_leave_open_is_said_by_flags(capsys):
    """Two SAEs: k is in no file of the one, the kind of codes in none of the other."""
    releases = Path(__file__).parents[1] / "golden" / "releases"
    shutil.copy(next((releases / "qwen_scope").rglob("layer4.sae.pt")), "layer4.sae.pt")
    vsae = releases / "dictionary_learning" / "vsae-topk-third"
    for path, flag, option in [
        (Path("layer4.sae.pt"), ["--k", "3"], {"k": 3}),
        (vsae, ["--selection", "relu"], {"selection": "relu"}),
    ]:
        assert "not loaded" in info.describe(path).kind
        assert main(["convert", str(path), f"{path.stem}-out", "--to", "saelens"]) == 1
        assert f"Pass load_sae(..., {flag[0][2:]}=...)" in capsys.readouterr().err
        assert main(["info", str(path), *flag]) == 0
        assert main(["convert", str(path), f"{path.stem}-out", "--to", "saelens", *flag]) == 0
        x = torch.randn(20, saelab.load_sae(path, **option).d_in)
        codes = saelab.load_sae(path, **option).encode(x)
        torch.testing.assert_close(saelab.load_sae(f"{path.stem}-out").encode(x), codes, rtol=1e-5, atol=1e-5)
    given = {"subject": "embedded", "corpus": {"kind": "world"}, "out": "o"}
    values = jobs.Job("index", given | {"sae": {"path": "layer4.sae.pt", "k": 3}}).values
    assert work._sae(values["sae"]).config.options["k"] == 3
