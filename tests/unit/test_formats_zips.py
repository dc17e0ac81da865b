"""Files that two readers could take for two: refused, and nothing in them runs."""

from __future__ import annotations

import io
import json
import random
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from saelab import load_sae
from saelab.commands.info import describe
from saelab.formats.pickled import torch_file
from saelab.formats.reading import npz_file, safetensors_file
from saelab.types import FormatError, SaelabError

END = struct.Struct("<4s4H2LH")


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> tuple[bytes, Path]:
    """A TorchScript file that writes a flag when it is loaded, and where the flag would be."""
    folder = tmp_path_factory.mktemp("program")
    flag = folder / "flag"
    source = f'''
import torch


class Program(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.t = torch.zeros(2)

    @torch.jit.export
    def __getstate__(self):
        return (self.t, self.training)

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool]):
        self.t = state[0]
        self.training = state[1]
        torch.save(state[0], "{flag}")

    def forward(self, x):
        return x + self.t
'''
    (folder / "program_.py").write_text(source)
    names: dict = {"__name__": "program_"}
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        names["Program"] = __import__("program_").Program
    torch.jit.script(names["Program"]()).save(folder / "program.pt")
    flag.unlink(missing_ok=True)
    torch.jit.load(folder / "program.pt")  # it does what it should not
    assert flag.exists()
    flag.unlink()
    return (folder / "program.pt").read_bytes(), flag


def saved(data) -> bytes:
    buffer = io.BytesIO()
    torch.save(data, buffer)
    return buffer.getvalue()


def files_of(data: bytes) -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return [(name, archive.read(name)) for name in archive.namelist()]


def written(files: list[tuple[str, bytes]], start: int = 0) -> tuple[bytes, bytes]:
    """The files of a zip one after the other, and their table of contents; they begin at `start`."""
    body, table = b"", b""
    with zipfile.ZipFile(buffer := io.BytesIO(), "w") as archive:
        for name, data in files:
            archive.writestr(name, data)
    whole = buffer.getvalue()
    *_, size, at, _ = END.unpack(whole[-22:])
    body, table = whole[:at], bytearray(whole[at : at + size])
    entry = 0
    while entry < size:
        (place,) = struct.unpack_from("<I", table, entry + 42)
        struct.pack_into("<I", table, entry + 42, place + start)
        entry += 46 + sum(struct.unpack_from("<HHH", table, entry + 28))
    return body, bytes(table)


def ended(n: int, size: int, at: int, comment: bytes = b"") -> bytes:
    return END.pack(b"PK\x05\x06", 0, 0, n, n, size, at, len(comment)) + comment


def double(shown: list[tuple[str, bytes]], run: list[tuple[str, bytes]]) -> bytes:
    """Files that Python's reader sees, and others that torch's does: both tables are as large, and the end
    says the place of the second, right before which Python takes the first to be."""
    body, table = written(run)
    other, hidden = written(shown, len(body) - len(table))
    short = len(table) - len(hidden)
    assert short >= 0
    last = hidden.rindex(b"PK\x01\x02")
    padded = bytearray(hidden + b"c" * short)
    struct.pack_into("<H", padded, last + 32, short)
    return body + other + table + bytes(padded) + ended(len(run), len(table), len(body) + len(other))


def mutated(data: bytes, other: bytes, seed: int) -> bytes:
    """A zip of which one thing about its structure was changed; `other` is another, a program."""
    rng = random.Random(seed)
    changed = bytearray(data)
    *_, size, at, _ = END.unpack(data[-22:])
    kind = seed % 8
    if kind == 0:
        return other + data
    if kind == 1:
        return data + other
    if kind == 2:
        return data[: at + size] + other[at:] + data[at + size :]
    if kind == 3:  # a number of the last record
        struct.pack_into("<I", changed, len(changed) - rng.choice([14, 12, 10, 6]), rng.randrange(len(data)))
    elif kind == 4:  # of the table of contents
        changed[at + rng.randrange(size)] = rng.randrange(256)
    elif kind == 5:  # what is said where a file lies
        heads = [i.header_offset for i in zipfile.ZipFile(io.BytesIO(data)).infolist()]
        changed[rng.choice(heads) + rng.choice([0, 6, 8, 26, 30, 31, 40])] ^= 1 << rng.randrange(8)
    elif kind == 6:
        comment = bytes(rng.randrange(5)) + other[-rng.randrange(22, 600) :]
        struct.pack_into("<H", changed, len(changed) - 2, len(comment))
        return bytes(changed) + comment
    else:
        cut = rng.randrange(at, len(data))
        changed[cut:cut] = other[-rng.randrange(1, 200) :]
    return bytes(changed)


def test_what_two_readers_see_differently_is_refused_and_not_run(program, tmp_path):
    evil, flag = program
    good = saved({"W": torch.ones(2)})
    path = tmp_path / "sae.pt"
    data = double(files_of(good), files_of(evil))
    path.write_bytes(data)
    assert any(
        name.endswith("constants.pkl") for name in torch._C.PyTorchFileReader(str(path)).get_all_records()
    )
    for read in (torch_file, load_sae, describe):
        with pytest.raises(SaelabError):
            read(path)
    assert not flag.exists()
    with pytest.raises(FormatError, match="one table of contents"):
        torch_file(path)


def test_no_change_of_a_zip_makes_it_run_or_be_read_as_another(program, tmp_path):
    evil, flag = program
    good = saved({"W": torch.arange(6.0), "n": 3})
    for name, data in (("large", good), ("plain", plain(good))):
        path = tmp_path / f"{name}.pt"
        path.write_bytes(data)
        assert torch.equal(torch_file(path).read("W"), torch.arange(6.0))
        read = 0
        for seed in range(160):
            path.write_bytes(mutated(data, evil if seed % 2 else plain(evil), seed))
            try:
                file = torch_file(path)
            except FormatError:
                continue
            read += 1  # what no reader looks at: dates, systems
            assert torch.equal(file.read("W"), torch.arange(6.0))
            assert zipfile.ZipFile(path).namelist() == zipfile.ZipFile(io.BytesIO(data)).namelist()
        assert 0 < read < 40
    assert not flag.exists()


def plain(data: bytes) -> bytes:
    """The same files, without the records of large zips."""
    body, table = written(files_of(data))
    return body + table + ended(len(files_of(data)), len(table), len(body))


@pytest.mark.parametrize("kind", ["torch", "numpy"])
def test_bytes_beside_names_twice_and_records_that_disagree(kind, tmp_path):
    read = {"torch": torch_file, "numpy": npz_file}[kind]
    if kind == "torch":
        good = saved({"W": torch.ones(3)})
    else:
        np.savez(buffer := io.BytesIO(), W=np.ones(3, np.float32))
        good = buffer.getvalue()
    files = files_of(good)
    body, table = written(files)
    n, size, at = len(files), len(table), len(body)
    end = ended(n, size, at)
    far, far_table = written(files, 5)
    large = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, n, n, size, at)
    place = struct.pack("<4sLQL", b"PK\x06\x07", 0, at + size, 1)
    path = tmp_path / "file.bin"
    for data in (good, body + table + end, body + table + large + place + end):
        path.write_bytes(data)
        assert read(path).read("W").tolist() == [1, 1, 1]
    twice = written([*files, (files[0][0].upper().replace(".NPY", ".npy"), files[0][1])])
    wrong = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, n, n, size, at - 1)
    for data in (
        body + table + end + b"x",
        body + table + ended(n, size, at, b"a comment"),
        body + table + b"x" + end,
        body + b"x" + table + ended(n, size, at + 1),
        body[:4] + b"x" + body[4:] + table + ended(n, size, at + 1),
        body + table + ended(n - 1, size, at),
        body + table + ended(n + 1, size, at),
        body + table + ended(n, size - 1, at + 1),
        body + table + wrong + place + end,
        body + table + large + b"x" + place + end,
        body + table + large + place + ended(n, size, at - 1),
        b"PK\x03\x04x" + far + far_table + ended(n, size, at + 5),
        twice[0] + twice[1] + ended(n + 1, len(twice[1]), len(twice[0])),
    ):
        path.write_bytes(data)
        with pytest.raises(FormatError):
            read(path)


def test_a_tar_a_header_twice_and_other_ends(program, tmp_path):
    evil, flag = program
    with tarfile.open(tmp_path / "sae.pt", "w") as tar:
        info = tarfile.TarInfo("data.pkl")
        info.size = len(evil)
        tar.addfile(info, io.BytesIO(evil))
    tar_bytes = (tmp_path / "sae.pt").read_bytes()
    for data in (tar_bytes, tar_bytes + evil, b"x" + evil, b"\x1f\x8b" + evil, evil[4:]):
        (tmp_path / "sae.pt").write_bytes(data)
        with pytest.raises(FormatError):
            torch_file(tmp_path / "sae.pt")
    assert not flag.exists()
    entry = json.dumps({"dtype": "F32", "shape": [2], "data_offsets": [0, 8]})
    other = json.dumps({"dtype": "F32", "shape": [1], "data_offsets": [0, 4]})
    for header, size in (
        (f'{{"W": {entry}, "W": {other}}}', 8),
        (f'{{"W": {other}, "W": {entry}}}', 8),
        (f'{{"W": {entry}}}x', 8),
        (f'{{"W": {entry}}}', 9),
        (f'{{"W": {entry}}}', 7),
    ):
        path = tmp_path / "a.safetensors"
        path.write_bytes(struct.pack("<Q", len(header)) + header.encode() + bytes(size))
        with pytest.raises(FormatError):
            safetensors_file(path)
