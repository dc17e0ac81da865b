"""Pickles that are no zip files: read bit for bit; nothing that they name is run, allocated or reached."""

from __future__ import annotations

import gzip
import io
import pickle
import resource
import shutil
import struct
import tempfile
import time
import zipfile
from collections import OrderedDict
from pathlib import Path

import mutations
import pytest
import torch
from torch import Tensor

from saelab import load_sae
from saelab.formats.pickled import old, torch_file
from saelab.formats.pickled.unpickling import Kept
from saelab.types import FormatError

ROOT = Path(__file__).parents[1] / "golden" / "releases" / "vision"
DUMPED = ["hugofry-dumped", "patchsae-dumped", "prisma-dumped", "saelens-dumped", "saelens-old",
          "saelens-packed"]  # fmt: skip


def saved_old(data) -> bytes:
    """What torch.save wrote before torch 1.6."""
    buffer = io.BytesIO()
    torch.save(data, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


WRITERS = {
    "sae.pkl": pickle.dumps,
    "sae.pkl.gz": lambda data: gzip.compress(pickle.dumps(data, protocol=3)),
    "sae.pt": saved_old,
    "sae.pt.gz": lambda data: gzip.compress(saved_old(data)),
}


@pytest.fixture
def write(tmp_path):
    def to(name: str, data: bytes) -> Path:
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    return to


@pytest.mark.parametrize("name", WRITERS)
def test_every_tensor_is_read_bit_for_bit(name, write):
    torch.manual_seed(0)
    whole = torch.randn(5, 8)
    dtypes = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
              torch.uint8, torch.bool)  # fmt: skip
    tensors = {
        "whole": whole, "row": whole[2], "turned": whole.t(), "part": whole[1:3, ::2], "none": whole[:0],
        "one": torch.tensor(1.5), "parameter": torch.nn.Parameter(whole * 2),
        **{str(dtype): (whole * 9).to(dtype) for dtype in dtypes},
    }  # fmt: skip
    file = torch_file(write(name, WRITERS[name]({"state": OrderedDict(tensors), "n": 3, "kind": "x"})))
    assert file.extra == {"n": 3, "kind": "x"}
    assert set(file.info) == {f"state.{key}" for key in tensors}
    for key, tensor in tensors.items():
        read = file.read(f"state.{key}")
        assert torch.equal(read, tensor.detach())
        assert read.dtype == tensor.dtype
    kept = file.read("state.whole")
    kept.add_(1)  # no file is written to
    assert torch.equal(torch_file(file.path).read("state.whole"), whole)


def test_a_module_saved_whole_and_old(write):
    file = torch_file(write("module.pt", saved_old(torch.nn.Sequential(torch.nn.Linear(3, 2)))))
    assert {"0.weight", "0.bias"} <= set(file.info)


class Executes:
    ran = 0

    def __reduce__(self):
        return Executes.run, ()

    @staticmethod
    def run(*args):
        Executes.ran += 1


class Reduced:
    """Pickled as a call, with a state if there is one."""

    def __init__(self, *how):
        self.how = how

    def __reduce__(self):
        return self.how


def nested(data: bytes) -> Reduced:
    return Reduced(torch.storage._load_from_bytes, (data,))


def rebuilt(storage, *args, state=None) -> Reduced:
    args = (storage, *args, False, OrderedDict())
    return Reduced(torch._utils._rebuild_tensor_v2, args, *(() if state is None else (state,)))


@pytest.fixture
def sae(write, monkeypatch):
    """What of a config and weights is pickled -> a file in every way of writing, loaded."""
    monkeypatch.setattr(Executes, "ran", 0)

    def load(data, name="sae.pkl.gz"):
        return load_sae(write(name, WRITERS[name](data)))

    return load


def settings() -> dict:
    return {"hook_point": "x", "normalize_activations": "none"}


def weights() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {"W_enc": torch.randn(3, 5), "b_enc": torch.randn(5), "W_dec": torch.randn(5, 3),
            "b_dec": torch.randn(3)}  # fmt: skip


@pytest.mark.parametrize("name", WRITERS)
def test_nothing_is_run(name, sae):
    good = sae({"cfg": settings(), "state_dict": weights()}, name)
    assert good.encode(torch.ones(2, 3)).shape == (2, 5)
    beside = sae({"cfg": {**settings(), "more": Executes()}, "state_dict": weights()}, name)
    assert beside.fingerprint() == good.fingerprint()
    for bad in (
        Executes(),
        [Executes()],
        {"cfg": settings(), "state_dict": {**weights(), "W_enc": Executes()}},
    ):
        with pytest.raises(FormatError):
            sae(bad, name)
    assert Executes.ran == 0


@pytest.mark.parametrize(
    "data",
    [
        pickle.dumps(Executes()), saved_old(Executes()), saved_old([Executes()]), saved_old(torch.ones(3, 5)),
        pickle.dumps(nested(saved_old(Executes()))), b"", b"x" * 50,
        saved_old(torch.ones(15).untyped_storage())[:-3],
        saved_old(nested(saved_old(torch.ones(15).untyped_storage()))),
    ],
)  # fmt: skip
def test_nothing_within_bytes_is_run_or_is_more_than_a_storage(data, sae):
    for inside in (nested(data), rebuilt(nested(data), 0, (3, 5), (5, 1))):
        with pytest.raises(FormatError):
            sae({"cfg": settings(), "state_dict": {**weights(), "W_enc": inside}})
    assert Executes.ran == 0


STORAGE = saved_old(torch.arange(15.0)._typed_storage())


def test_tensors_lie_within_their_storages(sae):
    def with_W_enc(*how, **more):
        return {
            "cfg": settings(),
            "state_dict": {**weights(), "W_enc": rebuilt(nested(STORAGE), *how, **more)},
        }

    assert torch.equal(sae(with_W_enc(0, (3, 5), (5, 1))).W_enc, torch.arange(15.0).reshape(3, 5))
    for how in (
        (1, (3, 5), (5, 1)), (0, (3, 5), (6, 1)), (0, (3, 5), (-5, 1)), (-1, (3, 5), (5, 1)),
        (0, (2**40, 5), (5, 1)), (0, (3, 5), (1,)), (0, (3.0, 5), (5, 1)),
        (2**62, (0, 5), (5, 1)), (0, (3,) * 20, (0,) * 20), (None, (3, 5), (5, 1)),
    ):  # fmt: skip
        with pytest.raises(FormatError):
            sae(with_W_enc(*how))
    # torch.Tensor.__setstate__ would take the numbers of another, and hooks
    other = rebuilt(nested(STORAGE), 0, (3, 5), (1, 3))
    taken = (other, None, OrderedDict(), False, None)
    for evil in (taken, {"tensor": 1}, (None, {"tensor": torch.ones(3, 5)})):
        with pytest.raises(FormatError):
            sae(with_W_enc(0, (3, 5), (5, 1), state=evil))


def test_imports_and_tensors_are_not_altered():
    for kept in (Kept(torch.ones(1)), old._Call(print)):
        for name in ("tensor", "_function", "more"):
            with pytest.raises(AttributeError):
                setattr(kept, name, 1)
    before = vars(torch._utils._rebuild_tensor_v2).copy()
    for function in (torch._utils._rebuild_tensor_v2, torch.storage._load_from_bytes):
        evil = pickle.dumps(function)[:-1] + b"}\x8c\x04evilK\x01sb."
        with pytest.raises(FormatError):
            torch_file_of(evil)
    assert vars(torch._utils._rebuild_tensor_v2) == before


def torch_file_of(data: bytes, name: str = "sae.pkl"):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(data)
        return torch_file(path)


def test_old_files_that_lie():
    data = saved_old({"W": torch.arange(100.0)})
    size = struct.pack("<q", 100)
    whole, few = torch.arange(100.0), saved_old({"W": torch.arange(3.0)})
    twice = saved_old({"W": whole, "V": whole[:50]})
    at = twice.rindex(b"K\x64N")
    for bad, said in [
        (data.replace(b"K\x64N", b"K\x65N"), "size|lie within"),
        (data.replace(b"K\x64N", b"J\xff\xff\xff\x7fN"), "lie within it"),
        (data.replace(size, struct.pack("<q", 2**60)), "as large"),
        (data[:-1], "readable"),
        (data + b"x", "end where"),
        (few[: few.index(b"\x80\x02]")] + pickle.dumps([], protocol=2), "store what"),
        (twice[:at] + b"K\x63N" + twice[at + 3 :], "one size each"),
        (data + data, "end where"),
        (data.replace(b"little_endianq\x02\x88", b"little_endianq\x02\x89"), "little endian"),
        (data.replace(b"M\xe9\x03.", b"M\xe8\x03.", 1), "version"),
        (data.replace(b"torch\nFloatStorage", b"torch\nFoatStoragee"), "known type"),
        (pickle.dumps({"W": 1}) + b"x", "end where"),
        (b"\x80\x02Kd.", "named tensors"),
        (b"\x80\x02X\x07\x00\x00\x00storageQ.", "readable"),
        (b"\x80\x04\x95" + b"\xff" * 7 + b"\x3f.", "readable"),
        (b"\x80\x04\x8e" + b"\xff" * 7 + b"\x3f.", "readable"),
        (bytes(257) + b"ustar" + bytes(250), "tar file"),
    ]:
        assert bad != data
        with pytest.raises(FormatError, match=said):
            torch_file_of(bad)


def test_a_storage_is_not_read_again_and_again():
    """Six bytes of a pickle ask for the same 4 MB each time, kept or dropped."""
    data = saved_old(torch.zeros(10**6)._typed_storage())
    load = b"ctorch.storage\n_load_from_bytes\nq\x00B" + struct.pack("<I", len(data)) + data + b"q\x01\x85R"
    again = b"h\x00h\x01\x85R" * 10**5
    for many in (again, again.replace(b"R", b"R0")):
        start = time.process_time()
        with pytest.raises(FormatError, match="lie within it"):
            torch_file_of(b"\x80\x03(" + load + many + b"l.")
        assert time.process_time() - start < 5  # seconds of this process, however busy the machine is


def test_pickles_have_short_headers(monkeypatch):
    monkeypatch.setattr(old, "MAX_PICKLE", 1000)
    torch_file_of(pickle.dumps({"W": torch.ones(10**5)}))
    for data in ({"W": torch.ones(3), "n": list(range(10**4))}, {str(n): torch.ones(1) for n in range(9)}):
        for write in (pickle.dumps, saved_old):
            with pytest.raises(FormatError, match="at most"):
                torch_file_of(write(data))


def test_gzip(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    good = pickle.dumps({"W": torch.randn(100)})
    packed = gzip.compress(good)
    assert torch_file_of(packed, "sae.pkl.gz").info["W"].shape == (100,)
    wrong = bytearray(packed)
    wrong[-6] ^= 1  # of the checksum
    bomb = gzip.compress(bytes(2 * 10**8))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for bad, said in [
        (packed[:-9], "cut off|whole"),
        (packed[: len(packed) // 2], "cut off"),
        (packed[:10], "cut off"),
        (packed[:3], "cut off"),
        (packed + packed, "one gzip member"),
        (packed + b"x", "one gzip member"),
        (packed + bytes(2**21), "one gzip member"),
        (bytes(wrong), "incorrect data check"),
        (bomb, "unpack to at most"),
        (gzip.compress(b""), "readable"),
        (gzip.compress(packed), "readable"),
        (b"\x1f\x8b" + bytes(50), "readable"),
    ]:
        with pytest.raises(FormatError, match=said):
            torch_file_of(bad, "sae.pkl.gz")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB
    assert not list(tmp_path.iterdir())


def test_what_saelens_settings_say():
    torch.manual_seed(0)
    x = torch.randn(20, 3)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sae.pkl"

        def load(**changes):
            path.write_bytes(pickle.dumps({"cfg": settings() | changes, "state_dict": weights()}))
            return load_sae(path)

        w = weights()
        raw = load(apply_b_dec_to_input=False).encode(x)
        torch.testing.assert_close(raw, (x @ w["W_enc"] + w["b_enc"]).relu(), rtol=1e-5, atol=1e-5)
        assert not torch.allclose(raw, load().encode(x))
        assert torch.equal(load(normalize_activations=False).encode(x), load().encode(x))
        for changes in ({"apply_b_dec_to_input": 1}, {"normalize_activations": True},
                        {"activation_fn": "tanh-relu"}):  # fmt: skip
            with pytest.raises(FormatError, match=next(iter(changes)).split("_fn")[0]):
                load(**changes)


def test_other_packed_files_are_not_taken_for_saes(tmp_path):
    shutil.copy(ROOT / "hugofry-dumped" / "sae.pkl.gz", tmp_path)
    for name in ("explanations.jsonl.gz", "batch-0.json.gz", "x_log_feature_sparsity.pkl.gz"):
        (tmp_path / name).write_bytes(gzip.compress(b"{}"))
    assert load_sae(tmp_path).d_in == 6
    with pytest.raises(FormatError):
        load_sae(tmp_path / "explanations.jsonl.gz")


@pytest.mark.parametrize("name", DUMPED)
def test_mutated_files_are_refused_or_load(name, tmp_path):
    """A FormatError, or an SAE that encodes; nothing else. Packed ones are mutated unpacked too."""
    assert len(mutations.loaded(ROOT / name, tmp_path / "mutated", range(60))) < 60


# zips: torch's own reader of weights before ours, and both of one content


def saved(data) -> bytes:
    """What torch.save writes."""
    buffer = io.BytesIO()
    torch.save(data, buffer)
    return buffer.getvalue()


@pytest.fixture
def readers(monkeypatch):
    """Whether torch's own reader of weights was asked, for each file that torch has read."""
    asked, load = [], torch.load
    monkeypatch.setattr(
        torch, "load", lambda *args, **how: asked.append(how["weights_only"]) or load(*args, **how)
    )
    return asked


def test_a_state_dict_is_read_by_torch_and_a_module_by_us(write, readers):
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2)).half()
    weight = torch.nn.Parameter(torch.ones(2))
    state = {"model": module.state_dict(), "n": 3, "kind": torch.float16, "p": weight}
    file = torch_file(write("a.pt", saved(state)))
    assert readers == [True]
    assert (file.extra["n"], file.extra["kind"]) == (3, "torch.float16")
    whole = torch_file(write("b.pt", saved(module)))
    assert readers == [True, False]
    for name, tensor in module.state_dict().items():
        assert torch.equal(file.read(f"model.{name}"), tensor)
        assert torch.equal(whole.read(name), tensor)
    assert not file.read("p").requires_grad


def test_what_torch_does_not_know_is_read_by_us(write, readers, monkeypatch):
    load = torch.load

    def refusing(*args, **how):
        if how["weights_only"]:
            message = "an operation of another torch"
            raise pickle.UnpicklingError(message)
        return load(*args, **how)

    monkeypatch.setattr(torch, "load", refusing)
    assert torch.equal(torch_file(write("a.pt", saved({"W": torch.ones(3)}))).read("W"), torch.ones(3))
    assert readers == [False]


def test_what_torch_would_make_is_not_made(write, readers):
    """Neither a gigabyte out of some bytes, nor what a user has told torch to trust elsewhere."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    torch.serialization.add_safe_globals([Executes.run])
    try:
        for call in (Reduced(bytearray, (2**30,)), Reduced(torch.zeros, (2**28,)), Reduced(Executes.run, ())):
            file = torch_file(write("a.pt", saved({"W": torch.ones(3), "x": call})))
            assert list(file.info) == ["W"]
    finally:
        torch.serialization.clear_safe_globals()
    assert readers == [False] * 3
    assert Executes.ran == 0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def plain_zip(data: bytes, *more: str) -> bytes:
    """The same files, and more, in a zip without the records of large ones."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(buffer, "w") as to:
        for name in archive.namelist():
            to.writestr(name, archive.read(name))
        for name in more:
            to.writestr(archive.namelist()[0].replace("data.pkl", name), b"x")
    return buffer.getvalue()


def two_in_one(first: bytes, second: bytes) -> bytes:
    """A zip that ends with the place of the first's table of contents, but has the second's right before its
    end. torch reads the first; Python takes what lies before for something that a zip was appended to."""
    (end, n, size, at), (_, n2, size2, at2) = map(table_of, (first, second))
    assert (n, size) == (n2, size2)
    body, table = first[:end] + second[:at2], bytearray(second[at2 : at2 + size2])
    added = len(body) - at  # what Python adds to every place
    entry = 0
    while entry < len(table):
        (header,) = struct.unpack_from("<I", table, entry + 42)
        struct.pack_into("<I", table, entry + 42, header + end - added)
        entry += 46 + sum(struct.unpack_from("<HHH", table, entry + 28))
    return body + table + b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, n, n, size, at, 0)


def table_of(data: bytes) -> tuple[int, int, int, int]:
    """(where the end's record is, number of files, bytes and place of the table of contents)"""
    end = data.rindex(b"PK\x05\x06")
    _, n, size, at = struct.unpack_from("<HHII", data, end + 8)
    return end, n, size, at


def test_a_zip_that_is_two_is_refused(write):
    """What is judged would not be what is read."""
    good, other = (plain_zip(saved({"W": torch.ones(3), "n": n})) for n in (1, 2))
    assert torch_file(write("a.pt", good)).extra["n"] == 1
    path = write("a.pt", two_in_one(good, other))
    name = next(n for n in zipfile.ZipFile(path).namelist() if n.endswith("data.pkl"))
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(io.BytesIO(other)) as alone:
        assert archive.read(name) == alone.read(name)
    assert torch.load(path)["n"] == 1
    with pytest.raises(FormatError, match="one table of contents"):
        torch_file(path)
    module = saved({"W": torch.ones(3), "of": Executes})  # torch takes it for a program, Python does not
    pair = [plain_zip(module, name) for name in ("constants.pkl", "constantz.pkl")]
    assert torch_file(write("a.pt", pair[1])).info["W"].shape == (3,)
    for data, said in ((two_in_one(*pair), "one table of contents"), (pair[0], "a TorchScript program")):
        with pytest.raises(FormatError, match=said):
            torch_file(write("a.pt", data))
