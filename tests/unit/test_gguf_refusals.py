"""GGUF files that lie, are damaged, or are not for us: refused by name, in bounded time and memory."""

from __future__ import annotations

import random
import resource
import struct
import time
import tracemalloc

import gguf_files as files
import numpy as np
import pytest
import subjects_zoo as zoo
import torch
import transformers
from gguf_files import NAMED, array, header, pair, tensor, text

import saelab
from saelab.subjects.gguf import library
from saelab.subjects.gguf.header import read_header
from saelab.types import FormatError, SaelabError, SubjectError

HUGE = 2**64 - 1
Q4_0, F32 = 2, 0


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SAELAB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def small(tmp_path):
    """A file of a small model, whole."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(zoo.config("llama"))
    return files.write_model(tmp_path / "small.gguf", model, zoo.byte_tokenizer(), "llama")


def load(path):
    return saelab.load_subject(path, progress=False)


ROW = tensor("a", (32,))
HOSTILE = {
    "empty": (b"", "begin with the letters GGUF"),
    "another format": (b"PK\x03\x04" + b"\0" * 64, "begin with the letters GGUF"),
    "magic alone": (b"GGUF", "its whole header"),
    "version 1": (header(NAMED, version=1), "version 1"),
    "version 4": (header(NAMED, version=4), "version 4"),
    "big-endian": (header(NAMED, version=0x03000000), "big-endian"),
    "many pairs": (header(NAMED, n_pairs=HUGE), "at most 16,384 key-value pairs"),
    "more pairs than bytes": (header(NAMED, n_pairs=10_000), "must hold the 10,000 key-value pairs"),
    "many tensors": (header(NAMED, n_tensors=HUGE), "at most 65,536 tensors"),
    "more tensors than bytes": (header(NAMED, n_tensors=60_000), "must hold the 60,000 tensors"),
    "an endless key": (header(struct.pack("<Q", HUGE) + b"x" * 40, n_pairs=1), "a key of at most 1,024"),
    "a key beyond the end": (header(struct.pack("<Q", 1000) + b"x" * 40, n_pairs=1), "an end within a key"),
    "a key of other letters": (header(pair(b"\xff\xfe", 4, b"\0" * 4)), "a key in UTF-8"),
    "a key twice": (header(NAMED, NAMED), "'general.architecture' twice"),
    "a type of value": (header(NAMED, pair("x", 13, b"\0" * 8)), "type 13"),
    "half a truth": (header(NAMED, pair("x", 7, b"\2")), "a truth value. Got 2"),
    "an endless string": (header(NAMED, pair("x", 8, struct.pack("<Q", HUGE))), "'x' of at most"),
    "a string of other letters": (header(NAMED, pair("x", 8, text(b"\xc3\x28"))), "'x' in UTF-8"),
    "an endless array": (header(NAMED, pair("x", 9, array(4, HUGE, b""))), "items of 'x'"),
    "an array beyond the end": (header(NAMED, pair("x", 9, array(12, 2_000_000, b""))), "hold the 2,000"),
    "strings beyond the end": (header(NAMED, pair("x", 9, array(8, 2_000_000, b""))), "must hold the 2,000"),
    "a bad string in an array": (header(NAMED, pair("x", 9, array(8, 1, text(b"\xff")))), "an item of 'x'"),
    "a type of items": (header(NAMED, pair("x", 9, array(77, 1, b"\0" * 8))), "type 77"),
    "arrays of arrays": (header(NAMED, pair("x", 9, array(9, 1, array(4, 0, b"")))), "no array of arrays"),
    "no architecture": (header(pair("x", 4, b"\0" * 4)), "general.architecture by a word. Got None"),
    "a number for it": (header(pair("general.architecture", 4, b"\0" * 4)), "by a word. Got 0"),
    "a path for it": (header(pair("general.architecture", 8, text("../../x"))), r"by a word. Got '\.\./"),
    "nothing for it": (header(pair("general.architecture", 8, text(""))), "by a word. Got ''"),
    "alignment 0": (header(NAMED, pair("general.alignment", 4, b"\0" * 4)), "general.alignment"),
    "alignment 24": (header(NAMED, pair("general.alignment", 4, struct.pack("<I", 24))), "general.alignment"),
    "alignment of words": (header(NAMED, pair("general.alignment", 8, text("32"))), "general.alignment"),
    "no axes": (header(NAMED, tensors=(tensor("a", ()),), data=b"\0" * 4), "1 to 4 axes. Got 0"),
    "many axes": (header(NAMED, tensors=(tensor("a", (1,) * 9),)), "1 to 4 axes. Got 9"),
    "an axis of 0": (header(NAMED, tensors=(tensor("a", (0, 32)),)), r"Got the shape \(32, 0\)"),
    "a negative axis": (header(NAMED, tensors=(tensor("a", (HUGE,)),)), "axes of 1 and more"),
    "a product beyond 64 bits": (
        header(NAMED, tensors=(tensor("a", (2**33, 2**33)),), data=b"\0" * 64), "must hold .* bytes for 'a'"
    ),
    "more than there is": (header(NAMED, tensors=(tensor("a", (33,)),), data=b"\0" * 128), "a file of 256"),
    "beyond the file": (header(NAMED, tensors=(tensor("a", (32,), F32, 2**63),), data=b"\0" * 128), "a file"),
    "off its alignment": (header(NAMED, tensors=(tensor("a", (4,), F32, 4),), data=b"\0" * 128), "offset 4"),
    "half a block": (header(NAMED, tensors=(tensor("a", (33,), Q4_0),), data=b"\0" * 128), "rows of 33"),
    "an unknown type": (header(NAMED, tensors=(tensor("a", (32,), 999),), data=b"\0" * 128), "Got type 999"),
    "a name twice": (header(NAMED, tensors=(ROW, ROW), data=b"\0" * 128), "'a' twice"),
    "bytes that two share": (
        header(NAMED, tensors=(ROW, tensor("b", (32,))), data=b"\0" * 128), "'a' and 'b' in the same bytes"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_header(name, tmp_path):
    data, match = HOSTILE[name]
    path = tmp_path / "hostile.gguf"
    path.write_bytes(data)
    blocks = library.blocks()  # what it imports is not measured
    tracemalloc.start()
    start = time.process_time()
    with pytest.raises(FormatError, match=match) as refusal:
        read_header(path, blocks)
    assert time.process_time() - start < 1
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()
    assert str(path) in str(refusal.value)
    with pytest.raises(SaelabError, match=match):
        load(path)


def test_a_sound_header_is_read(tmp_path):
    """What the cases above are refused for is not what all are refused for."""
    pairs = [
        NAMED,
        pair("x.word", 8, text("naïve")),
        pair("x.list", 9, array(5, 3, struct.pack("<3i", 1, -2, 3))),
        pair("x.words", 9, array(8, 2, text("a") + text("b"))),
        pair("x.yes", 7, b"\1"),
        pair("llama.block_count", 4, struct.pack("<I", 7)),
        pair("general.alignment", 4, struct.pack("<I", 64)),
    ]
    tensors = (tensor("a", (32, 3), Q4_0), tensor("b", (5,), F32, 64))
    path = tmp_path / "sound.gguf"
    path.write_bytes(header(*pairs, tensors=tensors, data=b"\0" * 200))
    found = read_header(path, library.blocks())
    assert (found.architecture, found.number("block_count"), found.version) == ("llama", 7, 3)
    assert [found.pairs[f"x.{name}"] for name in ("word", "list", "words", "yes")] == [
        "naïve", [1, -2, 3], None, True,
    ]  # fmt: skip
    a, b = found.tensors
    assert (a.shape, a.block.name, a.stop - a.start, a.numel) == ((3, 32), "Q4_0", 54, 96)
    assert (b.start - a.start, b.stop - b.start, a.start % 64) == (64, 20, 0)


def test_millions_of_empty_strings_take_no_more_than_a_moment(tmp_path):
    """The largest arrays that pass: what a limit allows must be affordable."""
    path = tmp_path / "many.gguf"
    many = 2**21
    path.write_bytes(header(NAMED, pair("x", 9, array(8, many, b"\0" * 8 * many))))
    start = time.process_time()
    read_header(path, library.blocks())
    assert time.process_time() - start < 20
    path.write_bytes(
        header(NAMED, pair("x", 9, array(0, many, b"\0" * many)), pair("y", 9, array(0, 1, b"\0")))
    )
    with pytest.raises(FormatError, match="at most 2,097,152 items"):
        read_header(path, library.blocks())


def test_headers_of_chance(small):
    """Bytes of a sound file changed at random, seconds of it: a header or a FormatError, nothing else."""
    data, blocks = small.read_bytes(), library.blocks()
    start = read_header(small, blocks).tensors[0].start
    path, rng = small.with_name("fuzz.gguf"), random.Random(0)
    began, outcomes = time.monotonic(), {True: 0, False: 0}
    # a machine with other work to do gets to fewer
    while (spent := time.monotonic() - began) < 3 or (min(outcomes.values()) <= 20 and spent < 60):
        changed = bytearray(data[: rng.randrange(start) if rng.random() < 0.2 else len(data)])
        for _ in range(rng.choice((1, 1, 2, 8))):
            at = rng.randrange(min(start, len(changed)) or 1)
            if rng.random() < 0.5:
                changed[at : at + 8] = rng.choice((b"\xff" * 8, b"\0" * 8, struct.pack("<Q", 2**40)))
            elif at < len(changed):
                changed[at] = rng.randrange(256)
        path.write_bytes(changed)
        try:
            read_header(path, blocks)
            outcomes[True] += 1
        except FormatError:
            outcomes[False] += 1
    assert min(outcomes.values()) > 20, outcomes


def test_whole_files_of_chance(small):
    """The same through load_subject: whatever passes the header meets the libraries, and comes back a
    SaelabError or as a model; memory stays small."""
    data, blocks = bytearray(small.read_bytes()), library.blocks()
    load(small)  # what loading needs anyway
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = read_header(small, blocks).tensors[0].start
    rng, outcomes = random.Random(1), {True: 0, False: 0}
    began, path = time.monotonic(), small.with_name("fuzz.gguf")
    # a machine with other work to do gets to fewer
    while (spent := time.monotonic() - began) < 5 or (min(outcomes.values()) <= 5 and spent < 60):
        changed = bytearray(data)
        at = rng.randrange(24, start)
        changed[at] = rng.choice((0, 1, 2, 127, 255, rng.randrange(256)))
        path.write_bytes(changed)
        try:
            load(path)
            outcomes[True] += 1
        except SaelabError:
            outcomes[False] += 1
    assert min(outcomes.values()) > 5, outcomes
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KB


# --- what is sound, and not for us


def changed(tmp_path, pairs=None, **options):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(zoo.config("llama"))
    path = tmp_path / "changed.gguf"
    return files.write_model(path, model, zoo.byte_tokenizer(), "llama", pairs=pairs, **options)


def test_an_architecture_that_transformers_does_not_read(tmp_path):
    path = tmp_path / "x.gguf"
    path.write_bytes(header(pair("general.architecture", 8, text("grok-9"))))
    with pytest.raises(
        SubjectError, match=r"'grok-9'\. The causal .* reads are .*gemma2.*llama.*qwen2"
    ) as refusal:
        load(path)
    assert "t5" not in str(refusal.value)


def test_a_quantisation_that_is_not_unpacked(tmp_path):
    import gguf

    kind = int(gguf.GGMLQuantizationType.Q8_K)
    size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType.Q8_K][1]
    path = tmp_path / "x.gguf"
    path.write_bytes(header(NAMED, tensors=(tensor("a", (256,), kind),), data=b"\0" * size))
    with pytest.raises(SubjectError, match=r"of type Q8_K\. For llama it unpacks BF16, F16, F32, .*Q4_K"):
        load(path)


@pytest.mark.parametrize(
    ("pairs", "match"),
    [
        ({"general.type": "adapter"}, "general.type 'adapter'"),
        ({"split.count": 3}, "one of 3 parts. Join them"),
        ({"llama.block_count": 2**31}, "block_count' a number from 0 to 65536"),
        ({"llama.block_count": 5000}, "block_count, 1 to 30. Got 5000"),
        ({"llama.block_count": 0}, "block_count, 1 to 30. Got 0"),
        ({"llama.attention.head_count": 2**31}, "head_count"),
        ({"llama.embedding_length": 2**31 - 1}, "must be readable by transformers"),
        ({"llama.embedding_length": 2**30}, "must hold the .* numbers of the LlamaForCausalLM"),
        ({"llama.vocab_size": 2**31 - 1}, "must hold the .* numbers of the LlamaForCausalLM"),
        ({"llama.context_length": 2**32 - 1}, "context_length"),
        ({"llama.block_count": 2}, "must hold the .* numbers of the LlamaForCausalLM"),
        ({"llama.embedding_length": "wide"}, "must be readable by transformers"),
        ({"tokenizer.ggml.padding_token_id": 10**6}, "must be readable by transformers"),
        ({"llama.attention.head_count": 0}, "must be readable by transformers"),
    ],
)
def test_sizes_that_are_none(pairs, match, tmp_path):
    path = changed(tmp_path, pairs)
    start = time.process_time()
    with pytest.raises(SaelabError, match=match):
        load(path)
    assert time.process_time() - start < 20


def test_tensors_that_are_missing_or_too_many(tmp_path):
    """transformers makes up what is missing and leaves out what it does not know, and warns at most."""
    with pytest.raises(FormatError, match=r"must hold the 42,464 numbers .* Got 41,440"):
        load(changed(tmp_path, without="blk.1.attn_q.weight"))
    with pytest.raises(FormatError, match="leave tensors out or make them up"):
        load(changed(tmp_path, extra={"blk.0.attn_q.bias": np.ones(32, np.float32)}))
    # as many numbers in all, but others
    swapped = {"blk.1.attn_other.weight": np.ones((32, 32), np.float32)}
    with pytest.raises(FormatError, match=r"missing_keys.*layers.1.self_attn.q_proj.weight"):
        load(changed(tmp_path, without="blk.1.attn_q.weight", extra=swapped))


def test_numbers_that_are_none(tmp_path, small):
    import gguf

    place = next(t for t in gguf.GGUFReader(small).tensors if t.name == "blk.0.ffn_up.weight").data_offset
    data = bytearray(small.read_bytes())
    data[int(place) : int(place) + 4] = struct.pack("<f", float("nan"))
    small.write_bytes(data)
    with pytest.raises(FormatError, match=r"NaN or infinite values in model.layers.0.mlp.up_proj.weight"):
        load(small)


def test_files_and_folders_that_are_none(tmp_path):
    (tmp_path / "notes.txt").write_text("a note")
    with pytest.raises(
        FormatError, match=r"begin with the letters GGUF\. Got another kind of file. Pass a GGUF"
    ):
        load(tmp_path / "notes.txt")
    with pytest.raises(SubjectError, match=r"GGUF file must exist. Got 'model.gguf'"):
        load("model.gguf")
    with pytest.raises(SubjectError, match=r"config.json.*or one GGUF file"):
        load(tmp_path)
