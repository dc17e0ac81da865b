"""load_subject on GGUF files: what was written is read, converted once, by file, folder or Ollama's name."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time

import gguf_files as files
import numpy as np
import pytest
import subjects_zoo as zoo
import torch
import transformers
from forks import Forked

import saelab
from saelab.subjects import gguf
from saelab.subjects.gguf import cache, convert, ollama
from saelab.types import FormatError, MissingDependency, SubjectError

TEMPLATE = (
    "{% for message in messages %}<|user|>{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SAELAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "models"))


def made(kind: str, **changes) -> transformers.PreTrainedModel:
    """A small model whose norms and biases are not those that it would have anyway."""
    torch.manual_seed(0)
    config = zoo.config(kind)
    for name, value in changes.items():
        setattr(config, name, value)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            else:  # attention is to matter
                parameter.mul_(10)
    return model


def logits(model, inputs) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs.data, use_cache=False).logits[inputs.data["attention_mask"].bool()]


def load(path):
    return saelab.load_subject(path, progress=False)


CASES = {
    "llama": ("llama", {}),
    "mistral": ("llama", {}),  # llama.cpp writes it so
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"head_dim": 128}),
    "gemma2": ("gemma2", {}),
    "gpt2": ("gpt2", {"n_positions": 1024}),
}


@pytest.mark.parametrize("kind", CASES)
def test_the_model_that_was_written(kind, tmp_path):
    architecture, changes = CASES[kind]
    tokenizer = files.sentencepiece_tokenizer() if kind == "gemma2" else zoo.byte_tokenizer()
    model = made(kind, vocab_size=len(tokenizer), **changes)
    subject = load(files.write_model(tmp_path / "model.gguf", model, tokenizer, architecture))
    assert subject.bos_id == tokenizer.bos_token_id
    assert subject.n_ctx == model.config.max_position_embeddings
    for text in zoo.TEXTS:
        for words in (text, "  two spaces,\na line and naïve 😀"):
            ids = [t(words, add_special_tokens=False)["input_ids"] for t in (subject.tokenizer, tokenizer)]
            assert ids[0] == ids[1]
    inputs = subject.prepare(zoo.TEXTS)
    expected = logits(model, inputs)
    torch.testing.assert_close(logits(subject.model, inputs), expected, atol=1e-5, rtol=1e-5)
    shuffled = torch.roll(expected, 1, 0)
    assert (shuffled - expected).abs().max() > 0.1


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "F16", "BF16"])
def test_what_is_unpacked_is_what_the_libraries_unpack(kind, tmp_path):
    """Against gguf's own numbers put into the model, and against transformers' own reading of the file."""
    import gguf as library

    model = made("llama", intermediate_size=64)
    if kind == "F16":  # of BF16 the norms stay as they are: not all numbers fit into a half
        for parameter in model.parameters():
            parameter.data = parameter.half().float()
    path = files.write_model(tmp_path / "model.gguf", model, zoo.byte_tokenizer(), "llama", kind)
    subject = load(path)
    inputs = subject.prepare(zoo.TEXTS)
    got = logits(subject.model, inputs)

    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name)
    torch.testing.assert_close(got, logits(theirs, inputs), atol=1e-5, rtol=1e-5)

    stored = getattr(library.GGMLQuantizationType, kind)
    before = logits(model, inputs)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                # a row is quantised by itself: the order that llama.cpp gives them does not matter
                rounded = library.dequantize(library.quantize(parameter.detach().numpy(), stored), stored)
                parameter.copy_(torch.from_numpy(rounded.reshape(parameter.shape).copy()))
    torch.testing.assert_close(got, logits(model, inputs), atol=1e-5, rtol=1e-5)
    assert torch.equal(got, before) if kind == "F16" else (got - before).abs().max() > 1e-4
    config = json.loads((gguf.converted(path) / "config.json").read_text())
    assert config["dtype"] == ("float16" if kind == "F16" else "float32")
    assert subject.model.dtype == torch.float32


def test_a_sentencepiece_vocabulary(shared_data, tmp_path):
    """The real TinyStories model: the published text, and the tokens of 60 stories."""
    folder = shared_data / "language" / "stories260k"
    original = saelab.load_subject(folder / "hf")
    path = files.write_model(tmp_path / "stories.gguf", original.model, original.tokenizer, "llama")
    subject = load(path)
    text = subject.generate("", max_new_tokens=100)
    assert len(text) > 200
    assert text in (folder / "stories260K.md").read_text()
    corpus = (shared_data / "language" / "text" / "tinystories.txt").read_text()[:100_000]
    stories = [story for story in corpus.split("<|endoftext|>") if story.strip()][:60]
    assert [subject.to_tokens(story) for story in stories] == [original.to_tokens(s) for s in stories]


def test_a_vocabulary_that_its_architectures_class_would_build_anew(tmp_path):
    """GemmaTokenizer takes every vocabulary for sentencepiece when it is loaded; the file's word holds."""
    tokenizer = zoo.byte_tokenizer()
    tokenizer.add_special_tokens({"unk_token": "<|user|>"})
    subject = load(files.write_model(tmp_path / "model.gguf", made("gemma2"), tokenizer, "gemma2"))
    for text in zoo.TEXTS:
        assert subject.to_tokens(text) == [tokenizer.bos_token_id, *tokenizer(text)["input_ids"]]


def test_the_chat_template_is_the_files(tmp_path):
    tokenizer = zoo.byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    subject = load(files.write_model(tmp_path / "model.gguf", made("llama"), tokenizer, "llama"))
    ids, special = subject.chat_tokens([("user", "the dog"), ("tim", "the sky")])
    text = "".join(subject.token_strings(ids))
    assert text == "<|bos|><|user|>user: the dog\n<|user|>tim: the sky\n"
    assert subject.token_strings([i for i, own in zip(ids, special, strict=True) if not own])


# --- positions


def rope(**parameters) -> dict:
    return {"rope_theta": 500000.0, **parameters}


@pytest.mark.parametrize(
    ("parameters", "pairs"),
    [
        (rope(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=8192), {}),
        (rope(rope_type="linear", factor=4.0),
         {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}),
        (rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=64),
         {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0,
          "llama.rope.scaling.original_context_length": 64}),
    ],
    ids=["llama3", "linear", "yarn"],
)  # fmt: skip
def test_positions_are_scaled_as_the_file_says(parameters, pairs, tmp_path):
    """transformers leaves it out: its own reading of the same file differs."""
    changes = {"head_dim": 32, "max_position_embeddings": 256, "rope_parameters": parameters}
    model = made("llama", **changes)
    extra = {}
    if parameters["rope_type"] == "llama3":
        extra["rope_freqs.weight"] = files.llama3_factors(500000.0, 32, 8.0)
    path = tmp_path / "model.gguf"
    files.write_model(path, model, zoo.byte_tokenizer(), "llama", pairs=pairs, extra=extra)
    subject = load(path)
    inputs = subject.prepare(["".join(zoo.TEXTS) * 3])
    expected = logits(model, inputs)
    torch.testing.assert_close(logits(subject.model, inputs), expected, atol=1e-5, rtol=1e-5)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name)
    assert (logits(theirs, inputs) - expected).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("pairs", "extra", "match"),
    [
        ({"llama.rope.scaling.type": "longrope", "llama.rope.scaling.factor": 4.0}, {}, "'longrope' by 4.0"),
        ({"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0}, {}, "'yarn' by 4.0"),
        ({}, {"rope_factors_long.weight": np.ones(4, np.float32)}, "LongRoPE"),
        ({}, {"rope_freqs.weight": np.array([1, 2, 3, 9], np.float32)}, "other factors"),
        ({}, {"rope_freqs.weight": np.ones((2, 2), np.float32)}, "one row of F32"),
    ],
    ids=["longrope", "yarn without its context", "long factors", "other factors", "a matrix"],
)
def test_positions_scaled_in_another_way_are_refused(pairs, extra, match, tmp_path):
    model = made("llama")
    path = tmp_path / "model.gguf"
    files.write_model(path, model, zoo.byte_tokenizer(), "llama", pairs=pairs, extra=extra)
    with pytest.raises(FormatError, match=match):
        load(path)


# --- the cache


@pytest.fixture
def written(tmp_path):
    """A model whose file is old enough for its digest to be noted."""
    path = files.write_model(tmp_path / "model.gguf", made("llama"), zoo.byte_tokenizer(), "llama")
    os.utime(path, (time.time() - 10, time.time() - 10))
    return path


@pytest.fixture
def conversions(monkeypatch):
    """The digests of what is converted, in order."""
    found, real = [], convert.convert

    def counting(header, folder, sha256, progress):
        found.append(sha256)
        real(header, folder, sha256, progress)

    monkeypatch.setattr(convert, "convert", counting)
    return found


def test_a_file_is_converted_once_and_known_by_its_content(written, conversions, tmp_path, monkeypatch):
    first = load(written)
    place = cache.user_folder("cache") / "gguf" / hashlib.sha256(written.read_bytes()).hexdigest()
    told = json.loads((place / "provenance.json").read_text())
    assert (told["source"], told["architecture"], told["sha256"]) == (str(written), "llama", place.name)
    assert told["tensors"] == {"F32": 30}
    copy = tmp_path / "other" / "renamed.bin"
    copy.parent.mkdir()
    copy.write_bytes(written.read_bytes())
    assert load(copy).fingerprint() == first.fingerprint()
    assert load(tmp_path / "other" / "renamed.bin").fingerprint() == first.fingerprint()
    monkeypatch.setitem(sys.modules, "gguf", None)  # not needed any more
    assert load(written).fingerprint() == first.fingerprint()
    assert conversions == [place.name]


def test_a_file_that_changed_is_another_model(written, conversions):
    first = load(written).fingerprint()
    data = bytearray(written.read_bytes())
    data[-3] ^= 1
    written.write_bytes(data)
    assert load(written).fingerprint() != first
    assert len(set(conversions)) == 2
    assert conversions[-1] == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("damage", ["truncated", "flipped", "lost", "no manifest", "left halfway"])
def test_a_damaged_cache_is_made_anew(damage, written, conversions):
    first = load(written).fingerprint()
    place = gguf.converted(written, progress=False)
    weights = place / "model.safetensors"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-4])
    elif damage == "flipped":
        data = bytearray(weights.read_bytes())
        data[-2] ^= 64
        time.sleep(0.02)  # a tick of the file system's clock
        weights.write_bytes(data)
    elif damage == "lost":
        (place / "tokenizer.json").unlink()
    elif damage == "no manifest":
        (place / "manifest.json").unlink()
    else:
        place.rename(place.with_name(f".{place.name}-building"))
    assert load(written).fingerprint() == first
    assert len(conversions) == 2
    assert sorted(p.name for p in place.parent.iterdir()) == sorted([place.name, "seen"])


def test_a_failed_conversion_leaves_nothing(written, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(convert, "_unquantised", full)
    with pytest.raises(SubjectError, match="No space left"):
        load(written)
    assert [p.name for p in (cache.user_folder("cache") / "gguf").iterdir()] == ["seen"]


def test_no_room_and_no_writable_cache_are_said(written, monkeypatch, tmp_path):
    monkeypatch.setattr(convert.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(SubjectError, match=r"needs [\d,]+ bytes. Got 1,000 free"):
        load(written)
    (tmp_path / "a file").write_text("")
    monkeypatch.setenv("SAELAB_CACHE", str(tmp_path / "a file"))
    with pytest.raises(SubjectError, match="cache must be writable"):
        load(written)


def test_two_processes_convert_once(written, tmp_path):
    """Both start at once; the second waits and takes what the first made."""
    program = (
        "import sys, time; from saelab.subjects import gguf; from saelab.subjects.gguf import convert\n"
        "real = convert.convert\n"
        "def slow(*a):\n"
        "    open(sys.argv[2], 'a').write('x'); time.sleep(1); real(*a)\n"
        "convert.convert = slow\n"
        "print(gguf.converted(gguf.find(sys.argv[1]), progress=False))\n"
    )
    notes = tmp_path / "notes"
    both = [Forked(program, written, notes) for _ in range(2)]
    places = [process.communicate(timeout=300)[0].strip() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert places[0] == places[1]
    assert places[0].startswith(str(tmp_path / "cache"))
    assert notes.read_text() == "x"


def test_progress_is_shown_or_not(written, capfd):
    load(written)
    assert capfd.readouterr().err == ""
    written.write_bytes(written.read_bytes() + b"\0")  # another file
    saelab.load_subject(written)
    shown = capfd.readouterr().err
    assert "converting model.gguf: 100%" in shown
    assert "de-quantizing" not in shown


# --- names


def test_a_folder_with_one_file_and_one_with_several(written, tmp_path):
    assert gguf.find(tmp_path) == written
    (tmp_path / "b.gguf").write_bytes(b"GGUF")
    with pytest.raises(SubjectError, match=r"Got 2 in .*: b.gguf, model.gguf. Pass the path of one"):
        load(tmp_path)
    (tmp_path / "config.json").write_text("{}")  # a Hugging Face folder, whatever else it holds
    assert gguf.find(tmp_path) is None


def ollama_folder(root, source, parts=("registry.ollama.ai", "library", "tiny", "1b"), **changes):
    """A file in Ollama's layout."""
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    blob = root / "blobs" / f"sha256-{digest}"
    blob.parent.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(source.read_bytes())
    manifest = root.joinpath("manifests", *parts)
    manifest.parent.mkdir(parents=True, exist_ok=True)
    model = {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{digest}",
             "size": source.stat().st_size, **changes}  # fmt: skip
    license = {"mediaType": "application/vnd.ollama.image.license", "digest": "sha256:" + "0" * 64, "size": 3}
    manifest.write_text(json.dumps({"schemaVersion": 2, "layers": [license, model]}))
    return manifest, blob


def test_ollamas_names(written, conversions, tmp_path, monkeypatch):
    models = tmp_path / "models"
    _, blob = ollama_folder(models, written)
    expected = load(written).fingerprint()
    for name in (
        "ollama:tiny:1b",
        "ollama:library/tiny:1b",
        "ollama:registry.ollama.ai/library/tiny:1b",
        blob,
    ):
        assert load(name).fingerprint() == expected, name
    ollama_folder(models, written, ("registry.ollama.ai", "ann", "own", "latest"))
    ollama_folder(models, written, ("hf.co", "ann", "own-GGUF", "Q4_K_M"))
    assert load("ollama:ann/own").fingerprint() == expected
    assert load("ollama:hf.co/ann/own-GGUF:Q4_K_M").fingerprint() == expected
    assert len(conversions) == 1
    assert set(ollama.names(models)) == {"tiny:1b", "ann/own:latest", "hf.co/ann/own-GGUF:Q4_K_M"}
    with pytest.raises(
        SubjectError, match=r"'ollama:tiny'.*Did you mean 'tiny:1b'\? There are: ann/own:late"
    ):
        load("ollama:tiny")
    with pytest.raises(SubjectError, match="pass 'ollama:tiny:1b'"):
        load("tiny:1b")
    monkeypatch.delenv("OLLAMA_MODELS")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert ollama.models_folder() == tmp_path / ".ollama" / "models"
    with pytest.raises(SubjectError, match="ollama pull"):
        load("ollama:tiny:1b")


@pytest.mark.parametrize(
    "name", ["ollama:", "ollama:../x", "ollama:a/../b:c", "ollama:a/b/c/d", "ollama:a:../b"]
)
def test_what_is_no_name_of_ollamas(name):
    with pytest.raises(SubjectError, match="named"):
        load(name)


def test_manifests_that_lead_elsewhere(written, tmp_path):
    models, outside = tmp_path / "models", tmp_path / "outside.gguf"
    outside.write_bytes(written.read_bytes())

    def refused(match, **changes):
        ollama_folder(models, written, **changes)
        with pytest.raises(FormatError, match=match):
            load("ollama:tiny:1b")

    refused("sha256 digest", digest="sha256:../../outside")
    refused("sha256 digest", digest="sha256:" + "A" * 64)
    refused("must lead to a file", digest="sha256:" + "1" * 64)
    refused("must lead to a file of 7 bytes", size=7)
    refused("its mediaType", size="7")
    refused("Got 0 .its layers: .license, tensor", mediaType="application/vnd.ollama.image.tensor")
    refused("an adapter on it", mediaType="application/vnd.ollama.image.adapter")
    manifest, blob = ollama_folder(models, written)
    for text in ("", "[" * 100_000, '{"layers": 3}', '{"layers": [3]}', "\0" * 5, "x" * 2**21):
        manifest.write_text(text)
        with pytest.raises(FormatError, match=r"Fetch it again|at most 1,048,576 bytes"):
            load("ollama:tiny:1b")
    manifest, blob = ollama_folder(models, written)
    blob.unlink()
    blob.symlink_to(outside)
    with pytest.raises(FormatError, match=r"a link to .*outside.gguf"):
        load("ollama:tiny:1b")
    blob.unlink()
    damaged = bytearray(written.read_bytes())
    damaged[-1] ^= 1
    blob.write_bytes(damaged)
    with pytest.raises(FormatError, match="must have the digest of its name"):
        load("ollama:tiny:1b")


def test_without_the_library(written, monkeypatch):
    from saelab.subjects.gguf import library

    library.blocks.cache_clear()
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingDependency, match=r"needs gguf .* pip install 'saelab\[gguf\]'"):
        load(written)
