"""What the original libraries made of their SAEs, and of ours, is what we make of them (see
regenerate_formats.py)."""

from __future__ import annotations

import json

import pytest
import regenerate_formats as golden
import safetensors.torch
import torch

from saelab import load_sae, save_sae
from saelab.formats import sniff

THEIRS = safetensors.torch.load_file(golden.THEIRS)
OURS = safetensors.torch.load_file(golden.OURS)


def agrees(sae, codes, x_hat):
    """Codes to 1e-5 with the same support, dense and sparse; reconstructions to 1e-5."""
    x = golden.rows(sae.d_in)
    with torch.no_grad():
        mine = sae.encode(x)
        forward = sae(x)
    assert torch.equal(mine != 0, codes != 0)
    torch.testing.assert_close(mine, codes, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(forward.x_hat, x_hat, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.from_numpy(sae.encode_sparse(x).dense()), codes, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", golden.theirs())
def test_their_saes_give_their_codes(name):
    sae = load_sae(golden.FOLDER / name)
    agrees(sae, THEIRS[f"{name}/codes"], THEIRS[f"{name}/x_hat"])
    assert not sae.training
    if "Auto" not in name:
        assert (THEIRS[f"{name}/codes"] != 0).any(1).sum() >= 8, "codes of zeros prove nothing"


@pytest.mark.parametrize("name", golden.theirs())
def test_a_round_trip_is_bit_equal(name, tmp_path):
    """Through our own format, and through theirs wherever it can hold what was loaded."""
    sae = load_sae(golden.FOLDER / name)
    for format in ("saelab", name.split("/")[0]):
        again = load_sae(save_sae(sae, tmp_path / format, format))
        assert again.config == sae.config
        assert again.state_dict().keys() == sae.state_dict().keys()
        for key, tensor in sae.state_dict().items():
            assert torch.equal(again.state_dict()[key], tensor), (format, key)


@pytest.mark.parametrize(("format", "case"), golden.exported())
def test_they_make_of_our_files_what_we_made_of_the_sae(format, case, tmp_path):
    codes, x_hat = OURS[f"{format}/{case}/codes"], OURS[f"{format}/{case}/x_hat"]
    sae = golden.ours(case)
    agrees(sae, codes, x_hat)
    again = load_sae(save_sae(sae, tmp_path, format))
    agrees(again, codes, x_hat)
    assert again.config.hook == sae.config.hook
    assert (codes != 0).any()


@pytest.mark.parametrize(("format", "case"), golden.exported())
def test_they_still_do(format, case, tmp_path):
    """The same with the original library at hand."""
    pytest.importorskip({"saelens": "sae_lens"}.get(format, format))
    save_sae(golden.ours(case), tmp_path, format)
    agrees(golden.ours(case), *golden.run(format, tmp_path, golden.rows(6)))


def test_sniffing_says_what_is_there_and_reads_no_weights():
    for name in golden.theirs():
        folder = golden.FOLDER / name
        sniffed = sniff(folder)
        assert sniffed.format == name.split("/")[0]
        file = "cfg.json" if sniffed.format == "saelens" else "config.json"
        assert sniffed.config == json.loads((folder / file).read_text())
        assert file in sniffed.evidence
        weights = [t for n, t in sniffed.tensors.items() if n in ("W_enc", "encoder.weight")]
        assert sorted(weights[0].shape) == sorted(golden.SIZES["-square" if "square" in name else ""])
        assert weights[0].dtype == ("bfloat16" if "bfloat16" in name else "float32")


def test_all_are_small():
    assert sum(f.stat().st_size for f in golden.FOLDER.rglob("*") if f.is_file()) < 300_000
