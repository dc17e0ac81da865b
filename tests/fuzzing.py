"""Wrong arguments for every public function, and damaged files of every kind: an answer or a SaelabError,
nothing else. Seeded, so that what is found is found again."""

from __future__ import annotations

import inspect
import math
import random
import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mutations
import numpy as np
import torch
from fuzzed import Things

import saelab
from saelab.stores import ActivationStore, FeatureStore, merge
from saelab.training import Run
from saelab.types import SaelabError

HUGE = (2**31, 2**63, 2**70, np.int64(2**62), 1e308)
LONG = (
    "steps", "tokens", "batch_size", "log_every", "checkpoint_every", "d_sae", "d_in", "dead_after", "epochs",
    "n_features", "n_rows", "max_new_tokens", "buffer_rows", "n_documents", "draws",
    "Synthetic.rows(n", "Synthetic.batches(size",
)  # fmt: skip
"""Arguments that may be huge, and then take long or much."""


class World(Things):
    """What is passed for right and wrong arguments."""

    def values(self) -> list[Any]:
        """What somebody may pass for anything."""
        return [
            None, True, False, -1, 0, 1, 3, *HUGE, -(2**70), 1.5, -0.5, math.nan, math.inf, "", "x", "a\0b",
            "\ud800", "x" * 5000, "../..", "topk", b"x", [], [None], ["h", "\ud800"], {}, {1: 5}, {"x": 1},
            {True: "x"}, (), (1, 2), (0, 0), (-1, 2), (1.5, 2), set(), object(), int, print, np.int64(2),
            np.float32(1), np.bool_(True), np.ones(3), np.ones((2, 6), np.float16), np.full(6, np.nan),
            np.array(["x"]), torch.ones(6), torch.ones(0), torch.full((2, 6), math.inf), torch.tensor(1),
            Path("\0"), Path(), self.folder / "loop", self.folder / "loop" / "x", self.folder / "file",
            self.folder / "file" / "x", self.folder / "none", self.folder / ("n" * 300), self.subject,
            self.sae, self.store, self.acts, self.config, range(3), iter([]), ["a", 3], ["\ud800"], [[1, 2]],
            [[1], [2, 3]], [["x"]], [{"role": "user"}], [("user", 3)], "blocks.0.hook_resid_pre", self.model,
            self.model_sae, self.edit, [self.edit], self.model.prepare(["a"]), self.net, ["blocks.9"], torch,
            torch.float16, "bfloat16", "cuda:99", torch.device("meta"), "train", "h@3", "line", 2**31 - 1,
            np.zeros((2, 2, 3), np.uint8), torch.ones(2, 6, dtype=torch.complex64), torch.ones(2, 6, 6),
            {"h": torch.ones(2, 6)}, {"h": "x"}, [torch.ones(6)], self.run, Exception, lambda *a, **k: None,
        ]  # fmt: skip


def argument(world: World, out: Path, seed: int, name: str | None = None) -> str | None:
    """A wrong argument for a function (one of all, or that of this name): what was passed where something
    else than a SaelabError came of it."""
    rng = random.Random(f"{name}{seed}" if name else seed)
    shutil.rmtree(out, ignore_errors=True)
    cases = world.cases(out / "out")
    name = name or rng.choice(sorted(cases))
    call, given, also = cases[name]
    found = inspect.signature(call).parameters.values()
    named = [p.name for p in found if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    where = rng.choice(sorted({*named, *given, *also}))
    value = rng.choice(world.values())
    if (
        (where in LONG or f"{name}({where}" in LONG)
        and isinstance(value, int | float | np.number)
        and abs(value) > 1000
    ):
        return None
    said = f"seed {seed}: {name}({where}={value!r:.80})"
    return _fault(said, lambda: call(**{**given, where: value}))


READERS: dict[str, Callable[[Path, World], Any]] = {}
"""Kind of file -> what reads it. GGUF, which is kept in a cache once it is read, is damaged in
tests/unit/test_gguf_refusals.py."""


def _reader(name: str) -> Callable[[Callable[[Path, World], Any]], None]:
    def add(read: Callable[[Path, World], Any]) -> None:
        READERS[name] = read

    return add


@_reader("store")
def _(path: Path, world: World) -> None:
    store = FeatureStore.open(path)
    asked: list[Callable[[], Any]] = [
        store.latents, store.labels, store.top_names, store.verify, lambda: store.directions,
        lambda: saelab.Lab(world.subject, world.sae, store).feature(1),
        lambda: saelab.Lab(world.subject, world.sae, store).features(),
        lambda: store.search(example="a"), lambda: store.search(latent=1), lambda: store.search(token="a"),
        lambda: store.search(label="one"), lambda: store.attach_labels({2: "x"}),
        lambda: merge([store], path.parent / "merged", overwrite=True), lambda: store.compare(store),
        *(lambda ask=ask: [ask(j) for j in range(3)] for ask in (
            store.latent, store.tokens, store.partners, store.examples, store.codes, store.rows,
            store.document)),
    ]  # fmt: skip
    _each(asked)


@_reader("acts")
def _(path: Path, world: World) -> None:
    store = ActivationStore.open(path)
    how = {"steps": 2, "batch_size": 8, "progress": False}
    _each([store.verify, lambda: list(store.batches(8, seed=0)),
           lambda: saelab.train(world.config, store, **how)])  # fmt: skip


@_reader("sae")
def _(path: Path, world: World) -> None:
    saelab.load_sae(path).encode(torch.ones(2, 6))


@_reader("run")
def _(path: Path, world: World) -> None:
    _each([lambda: Run.load(path), lambda: saelab.load_sae(path), lambda: world.trained(path),
           lambda: Run.load(path).to_frame(), lambda: repr(Run.load(path))])  # fmt: skip


@_reader("half")
def _(path: Path, world: World) -> None:
    world.trained(path)


@_reader("corpus")
def _(path: Path, world: World) -> None:
    read = saelab.corpora
    _each([lambda: list(read.parquet(path / "a.parquet")), lambda: list(read.jsonl(path / "a.jsonl")),
           lambda: list(read.jsonl(path / "a.jsonl", messages="chat")),
           lambda: list(read.text(path / "a.txt", separator="\n"))])  # fmt: skip


@_reader("edits")
def _(path: Path, world: World) -> None:
    (edit,) = saelab.interventions.load(path / "edits.json", world.model_sae)
    world.model.run(world.model.prepare(["a"]), edits=edit)


@_reader("labels")
def _(path: Path, world: World) -> None:
    world.store.attach_labels(path)


@_reader("model")
def _(path: Path, world: World) -> None:
    subject = saelab.load_subject(path, progress=False)
    subject.run(subject.prepare(["a b"]), read=["blocks.0.hook_resid_post"])


@_reader("graph")
def _(path: Path, world: World) -> None:
    graph = saelab.analysis.read_graph(path / "graph.json")
    _each([lambda: str(graph), graph.prune, graph.to_frame, lambda: graph.to_json(path / "again.json")])


@_reader("headvis")
def _(path: Path, world: World) -> None:
    found = saelab.analysis.read_headvis(path)
    _each([lambda: str(found), found.to_frame, *(lambda at=at: str(found.head(*at)) for at in found.known)])


@_reader("formats")
def _(path: Path, world: World) -> None:
    _each([lambda: saelab.formats.list_saes(path), lambda: saelab.formats.sniff(path),
           lambda: saelab.load_sae(path).encode(torch.ones(2, saelab.load_sae(path).d_in))])  # fmt: skip


def file(world: World, out: Path, seed: int, kinds: Sequence[str] | None = None) -> str | None:
    """A damaged file: what was done to it where something else than a SaelabError came of it."""
    rng = random.Random(seed)
    kind = rng.choice(sorted(READERS) if kinds is None else kinds)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    source = rng.choice(mutations.goldens()) if kind == "formats" else world.folder / kind
    done = mutations.mutate(source, out / kind, seed)
    return _fault(f"seed {seed}: {kind}, {done}", lambda: READERS[kind](out / kind, world))


def _each(asked: list[Callable[[], Any]]) -> None:
    """Ask all, whatever becomes of one. Raises the first that is no SaelabError."""
    for ask in asked:
        try:
            ask()
        except SaelabError:
            continue


def _fault(said: str, call: Callable[[], Any]) -> str | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call()
    except SaelabError:
        return None
    except Exception as error:
        at = error.__traceback__
        places = []
        while at is not None:
            places.append(f"{Path(at.tb_frame.f_code.co_filename).name}:{at.tb_lineno}")
            at = at.tb_next
        return f"{said}: {type(error).__name__}: {str(error)[:150]} @ {' '.join(places[-4:])}"
    return None
