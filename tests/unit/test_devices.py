"""Devices and dtypes, as every function takes them."""

from __future__ import annotations

import pytest
import torch

import saelab
from saelab.devices import dtype_name, torch_device, torch_dtype
from saelab.training.estimates import estimate
from saelab.types import ConfigError

ABSENT = ["cuda:7", "mps", "gpu", "meta", 3.5, None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    sae = saelab.SAE.create(saelab.recipe("topk", d_in=8, d_sae=16, k=2))
    return sae.save(tmp_path_factory.mktemp("sae"), dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("bf16", torch.bfloat16), ("fp16", torch.float16), ("float64", torch.float64),
        ("torch.float16", torch.float16), (torch.float64, torch.float64),
        (None, torch.float32), ("auto", torch.bfloat16),
    ],
)  # fmt: skip
def test_an_sae_comes_in_the_dtype_that_is_asked_for(folder, dtype, expected):
    sae = saelab.load_sae(folder, dtype=dtype)
    assert (sae.dtype, sae.stored_dtype) == (expected, "bfloat16")


def test_harvest_train_and_save_take_the_same_names(folder, tmp_path):
    sae = saelab.load_sae(folder)
    assert saelab.load_sae(sae.save(tmp_path / "a", dtype="fp16")).stored_dtype == "float16"
    with pytest.raises(ConfigError, match=r"^dtype must be one of float32, float16, bfloat16\. Got 'fp64'"):
        sae.save(tmp_path / "a", dtype="fp64")
    needed = dict(steps=1, batch_size=4, device="cpu")
    told = [
        estimate(sae.config, precision=name, **needed).activations
        for name in ("bf16", torch.bfloat16, "fp32")
    ]
    assert told[0] == told[1] != told[2]
    with pytest.raises(ConfigError, match=r"^precision must be one of float32, bfloat16\. Got 'fp16'"):
        estimate(sae.config, precision="fp16", **needed)


@pytest.mark.parametrize("bad", ["int8", "load", "", "bfloat", 16, None, b"float32", torch.int64])
def test_other_dtypes_are_refused(bad):
    with pytest.raises(ConfigError, match=r"^dtype must be one of float32, .*\. Got .*\. \S.*[.?]\s?$"):
        torch_dtype(bad)
    assert dtype_name("auto", ("float32", "auto")) == "auto"


@pytest.mark.parametrize("device", ABSENT)
def test_absent_devices_get_one_sentence(folder, device):
    calls = [torch_device, lambda device: saelab.load_sae(folder, device=device)]
    calls.append(lambda device: saelab.SAE.load(folder, device=device))
    if device is not None:  # of a training, None is this machine's
        config = saelab.load_sae(folder).config
        calls.append(lambda device: estimate(config, steps=1, batch_size=4, device=device))
    for call in calls:
        with pytest.raises(ConfigError, match=r"^device must be one of this machine's, cpu\b") as told:
            call(device)
        assert len(str(told.value)) < 150
