"""The hub, against a local endpoint that speaks its API, and without any network."""

from __future__ import annotations

import base64
import json
import shutil
import threading
from pathlib import Path
from typing import NamedTuple

import hub_server
import pytest
import safetensors.torch
import torch
from forks import Forked

from saelab import load_sae, save_sae
from saelab.analysis import read_report
from saelab.formats import list_saes
from saelab.sae import SAE, recipe
from saelab.types import ConfigError, FormatError

GOLDEN = Path(__file__).parents[1] / "golden"
OWNER = "someone/saes"


@pytest.fixture
def repository(tmp_path):
    """A folder that is served as a repository: SAEs of several formats."""
    root = tmp_path / "repository"
    shutil.copytree(GOLDEN / "formats" / "saelens" / "topk", root / "layer_1" / "topk")
    shutil.copytree(GOLDEN / "releases" / "openmoss" / "scope", root / "Llama3_1-8B-Base-L3R-8x")
    shutil.copytree(GOLDEN / "releases" / "qwen_scope" / "qwen_scope", root / "qwen")
    for layer in (0, 1):
        source = next((root / "qwen").rglob("layer4.sae.pt"))
        shutil.copy(source, root / f"layer{layer}.sae.pt")
    big = SAE.create(recipe("topk", d_in=64, d_sae=512, k=4))
    save_sae(big, root / "big")
    return root


@pytest.fixture
def serving(repository):
    """cuts -> the endpoint, which ends with the test."""
    servers = []

    def serve(cuts=0):
        server = hub_server.serve(repository, OWNER, cuts)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return server

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


ANEW = """
import json, os, sys
for name in [name for name in sys.modules if name.partition(".")[0] == "huggingface_hub"]:
    del sys.modules[name]
import saelab, torch
from saelab.types import *
"""


class Ended(NamedTuple):
    """A program that is over."""

    returncode: int | None
    stdout: str
    stderr: str


def elsewhere(code: str, home: Path, port: int | None = None, **env: str) -> Ended:
    """Python in a process of its own: huggingface_hub reads its endpoint and cache when it is imported."""
    told = {
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        **({"HF_ENDPOINT": f"http://127.0.0.1:{port}"} if port else {}),
        **env,
    }
    clean = (
        f"import os\nfor k in [k for k in os.environ if k[:3] == 'HF_' or k[:7] == 'HUGGING']:\n"
        f"    del os.environ[k]\nos.environ |= {told!r}\n"
    )
    process = Forked(clean + ANEW + code)
    printed, errors = process.communicate(300)
    return Ended(process.returncode, printed, errors)


def test_an_sae_comes_from_the_hub_and_then_from_the_cache(serving, tmp_path):
    server = serving()
    code = f"""
sae = saelab.load_sae({OWNER!r}, "layer_1/topk")
print(sae.fingerprint())
print(saelab.load_sae({OWNER!r}, "Llama3_1-8B-Base-L3R-8x", revision="main").fingerprint())
print(saelab.load_sae({OWNER!r}, "layer1.sae.pt", k=3).fingerprint())
"""
    done = elsewhere(code, tmp_path / "home", server.server_port)
    assert done.returncode == 0, done.stderr
    wanted = [
        load_sae(GOLDEN / "formats/saelens/topk"),
        load_sae(GOLDEN / "releases/openmoss/scope"),
        load_sae(next((GOLDEN / "releases/qwen_scope/qwen_scope").rglob("*.pt")), k=3),
    ]
    wanted[2].config = load_sae(tmp_path / "repository" / "layer1.sae.pt", k=3).config
    assert done.stdout.split() == [sae.fingerprint() for sae in wanted]
    fetched = {
        line.split()[1].split("/resolve/")[1] for line in server.asked if line.startswith("GET /someone")
    }
    assert not any("big" in name or "layer0" in name for name in fetched), fetched
    # the cache has the hub's layout, and serves without a network
    assert list((tmp_path / "home/hub/models--someone--saes/snapshots").iterdir())
    again = elsewhere(code, tmp_path / "home", HF_HUB_OFFLINE="1")
    assert again.stdout == done.stdout, again.stderr


def test_a_connection_that_is_cut_is_taken_up_again(serving, tmp_path):
    server = serving(cuts=2)
    done = elsewhere(
        f"print(saelab.load_sae({OWNER!r}, 'big').fingerprint())", tmp_path / "home", server.server_port
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == load_sae(tmp_path / "repository" / "big").fingerprint()
    weights = [line for line in server.asked if line.startswith("GET") and "sae.safetensors" in line]
    assert server.cuts == 0
    assert len(weights) == 3


def test_what_cannot_be_reached_is_one_sentence(serving, tmp_path):
    said = "try:\n saelab.load_sae({!r}, {!r}, revision={!r})\nexcept StoreError as error:\n print(error)\n"
    there = (OWNER, "layer_1/topk", None)
    others = [("someone/else", None, None), (OWNER, "nowhere", None), (OWNER, "layer_1/topk", "v9")]
    for asked, home, options, words in [
        ([there], "a", {"HF_HUB_OFFLINE": "1"}, ["no connection"]),
        ([there], "b", {"port": 1}, ["must be on the Hugging Face hub"]),
        (others, "c", {"port": serving().server_port}, ["private", "none there", "no revision 'v9'"]),
    ]:
        done = elsewhere("".join(said.format(*each) for each in asked), tmp_path / home, **options)
        for line, word in zip(done.stdout.splitlines(), words, strict=True):
            assert word in line, (asked, done.stderr[-2000:])
            assert "Connect or log in" in line


def test_an_sae_in_several_files_is_fetched_whole(serving, repository, tmp_path):
    place, where = repository / "sharded", {}
    place.mkdir()
    shapes = {"W_enc": (6, 16), "b_enc": (16,), "W_dec": (16, 6), "b_dec": (6,)}
    for i, (name, shape) in enumerate(shapes.items()):
        where[name] = f"model-{i + 1:05}-of-00004.safetensors"
        safetensors.torch.save_file({name: torch.randn(shape)}, place / where[name])
    index = "model.safetensors.index.json"
    (place / index).write_text(json.dumps({"weight_map": where}))
    shutil.copy(place / where["W_enc"], place / "beside.safetensors")
    said = {"rule": "relu", "apply_b_dec_to_input": False, "normalise": "none", "normalise_decoder": False}
    code = f"""
for name in ("sharded/{index}", "sharded", "sharded/{where["W_dec"]}"):
    try:
        print(saelab.load_sae({OWNER!r}, name, **{said!r}).fingerprint())
    except FormatError as error:
        print(error)
"""
    port = serving().server_port
    first, second, third = elsewhere(code, tmp_path / "home", port).stdout.splitlines()
    assert first == load_sae(place / index, **said).fingerprint()
    assert "must hold one SAE" in second
    assert "beside.safetensors" in second
    assert "read together" in third
    (place / "beside.safetensors").unlink()
    assert elsewhere(code, tmp_path / "fresh", port).stdout.splitlines()[:2] == [first, first]


def test_a_folder_of_several_asks_which(serving, tmp_path):
    code = f"try:\n saelab.load_sae({OWNER!r})\nexcept FormatError as error:\n print(error)"
    done = elsewhere(code, tmp_path / "home", serving().server_port)
    assert "layer0.sae.pt" in done.stdout, done.stderr
    assert "list_saes" in done.stdout


def test_a_repository_is_listed_by_its_configurations(serving, repository, tmp_path):
    server = serving()
    code = f"for s in saelab.formats.list_saes({OWNER!r}): print(json.dumps(vars(s)))"
    done = elsewhere(code, tmp_path / "home", server.server_port)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert found == [vars(entry) for entry in list_saes(repository)]
    assert [(entry["subfolder"], entry["format"]) for entry in found] == [
        ("Llama3_1-8B-Base-L3R-8x", "openmoss"), ("big", "saelab"), ("layer0.sae.pt", "qwen_scope"),
        ("layer1.sae.pt", "qwen_scope"), ("layer_1/topk", "saelens"),
        ("qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_3", "qwen_scope"),
    ]  # fmt: skip
    assert (found[1]["d_in"], found[1]["d_sae"], found[1]["l0"]) == (64, 512, 4)
    assert found[4]["hook"] == "blocks.1.hook_resid_post"
    files = [line.split()[1] for line in server.asked if "/resolve/" in line]
    assert files
    assert all(name.endswith((".json", ".yaml")) for name in files)


def test_five_hundred_saes_are_listed_without_their_weights(tmp_path):
    source = GOLDEN / "formats" / "saelens" / "topk"
    for i in range(500):
        folder = tmp_path / f"layer_{i % 20}" / f"width_16k_l0_{i}"
        folder.mkdir(parents=True)
        shutil.copy(source / "cfg.json", folder)
        (folder / "sae_weights.safetensors").write_bytes(b"never opened")
    found = list_saes(tmp_path)
    assert len(found) == 500
    assert found[0].subfolder == "layer_0/width_16k_l0_0"
    assert found[-1].subfolder == "layer_19/width_16k_l0_499"
    with pytest.raises(FormatError):
        list_saes(tmp_path / "nothing")


def test_an_sae_is_pushed_with_its_card(serving, tmp_path):
    server = serving()
    code = f"""
from saelab.sae import SAE, recipe
torch.manual_seed(0)
sae = SAE.create(recipe("topk", d_in=6, d_sae=16, k=3, hook="blocks.1.hook_resid_post"))
from saelab.analysis import evaluate
from saelab.errors import ConfigError
report = evaluate(sae, torch.randn(40, 6))
other = SAE.create(recipe("topk", d_in=6, d_sae=16, k=3), seed=1)
try:
    other.push_to_hub({OWNER!r}, report=report)
except ConfigError as error:
    assert "report of a card" in str(error)
else:
    raise AssertionError
told = {{"metrics": {{"fvu": 0.25}}, "provenance": {{"model": "tiny"}}}}
print(sae.push_to_hub({OWNER!r}, **told, report=report))
"""
    done = elsewhere(code, tmp_path / "home", server.server_port, HF_TOKEN="hf_x")
    assert done.returncode == 0, done.stderr
    files = {
        entry["value"]["path"]: base64.b64decode(entry["value"]["content"])
        for entry in server.pushed
        if entry["key"] == "file"
    }
    assert set(files) == {"README.md", "config.json", "report.json", "sae.safetensors"}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    assert load_sae(tmp_path).config.hook.name == "blocks.1.hook_resid_post"
    card = files["README.md"].decode()
    for words in ("library_name: saelab", "| fvu | 0.25 |", "| model | tiny |", "topk", "d_sae", "load_sae("):
        assert words in card
    report = read_report(tmp_path / "report.json")
    fvu = report.scores["fvu"]
    low, high = fvu.interval
    assert f"| fvu | {fvu.value:.4g} | {fvu.control:.4g} | {low:.4g} | {high:.4g} |" in card
    assert "|  | this SAE | untrained SAE | from | to |" in card
    assert f"- loss: {report.left_out['loss']}" in card
    assert "40 rows of blocks.1.hook_resid_post" in card


def test_a_revision_needs_a_repository(tmp_path):
    with pytest.raises(ConfigError, match="revision"):
        load_sae(GOLDEN / "formats/saelens/topk", revision="main")
    assert torch.isfinite(load_sae(GOLDEN / "formats/saelens/topk").W_enc).all()
