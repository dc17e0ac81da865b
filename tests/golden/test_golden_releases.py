"""What libraries make of the files of releases is what we make of them (see regenerate_releases.py)."""

from __future__ import annotations

import json

import pytest
import regenerate_releases as golden
import safetensors.torch
import torch

from saelab import load_sae, save_sae
from saelab.formats import names, sniff

RESULTS = safetensors.torch.load_file(golden.RESULTS) if golden.RESULTS.exists() else {}


def loaded(name, **options):
    case = golden.CASES[golden.cases()[name][0]]
    return load_sae(golden.FOLDER / name / case.where, **case.given, **options)


def agrees(sae, codes, x_hat):
    """Codes to 1e-5 with the same support, dense and sparse; reconstructions to 1e-5."""
    x = golden.rows(sae.d_in)
    with torch.no_grad():
        mine, forward = sae.encode(x), sae(x)
    assert torch.equal(mine != 0, codes != 0)
    torch.testing.assert_close(mine, codes, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(forward.x_hat, x_hat, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.from_numpy(sae.encode_sparse(x).dense()), codes, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", golden.cases())
def test_releases_give_their_codes(name):
    codes = RESULTS[f"{name}/codes"]
    agrees(loaded(name), codes, RESULTS[f"{name}/x_hat"])
    assert (codes != 0).any(1).sum() >= 8, "codes of zeros prove nothing"


@pytest.mark.parametrize("name", golden.cases())
def test_they_are_told_apart_unaided(name):
    case = golden.CASES[golden.cases()[name][0]]
    sniffed = sniff(golden.FOLDER / name / case.where)
    assert sniffed.format == name.split("/")[0]
    assert sniffed.evidence


@pytest.mark.parametrize("name", golden.cases())
def test_through_our_own_format_they_are_bit_equal(name, tmp_path):
    sae = loaded(name)
    again = load_sae(save_sae(sae, tmp_path))
    assert again.fingerprint() == sae.fingerprint()
    assert again.config == sae.config


@pytest.mark.parametrize("name", [name for name in golden.cases() if name.startswith("sparsify/")])
def test_sparsify_is_written_bit_equal(name, tmp_path):
    sae = loaded(name)
    if name.startswith(("sparsify/signed", "sparsify/saeuron")):
        return
    again = load_sae(save_sae(sae, tmp_path / "layers.1", "sparsify"))
    assert again.fingerprint() == sae.fingerprint()


def test_every_format_has_a_case_or_is_only_refused():
    assert {name.split("/")[0] for name in golden.CASES} == set(names()) - {
        "saelab", "temporal", "plain",
    }  # fmt: skip
    provenance = json.loads(golden.PROVENANCE.read_text())
    assert provenance.keys() == {case for case, _ in golden.cases().values()}
