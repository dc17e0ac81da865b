"""Wrong arguments for every public function, and damaged files of every kind: an answer or a SaelabError,
nothing else. Seeded, so that what is found is found again."""

from __future__ import annotations

import inspect
import itertools
import math
import random
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import mutations
import numpy as np
import torch
from letters import TEXTS, Letters, Planted

import saelab
from saelab.stores import ActivationStore, FeatureStore, merge
from saelab.training import Run
from saelab.types import SaelabError

HUGE = (2**31, 2**63, 2**70, np.int64(2**62), 1e308)
LONG = ("steps", "tokens", "batch_size", "log_every", "checkpoint_every", "d_sae", "d_in", "dead_after")
"""Arguments that may be huge, and then take long or much."""


class Case(NamedTuple):
    """A function that may be called."""

    call: Callable[..., Any]
    given: dict[str, Any]
    """Right arguments, by name."""
    also: tuple[str, ...] = ()
    """Others that it takes."""


class World:
    """A folder with one of each kind of file, and what reads them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.subject, self.sae = Letters(), Planted()
        self.store = saelab.index(self.subject, self.sae, TEXTS[:6], folder / "store", progress=False)
        self.store.attach_labels({1: "one", 3: "three"})
        self.acts = saelab.harvest(self.subject, TEXTS[:6], ["h"], folder / "acts", progress=False)
        self.config = saelab.recipe("topk", d_in=6, d_sae=12, k=2, hook="h")
        self.rows = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
        self.run = self.trained(folder / "run")
        self.trained(folder / "half", stop=3)
        self.run.sae.save(folder / "sae")
        (folder / "loop").symlink_to(folder / "loop")
        (folder / "file").write_text("x")

    def trained(self, out: Path, stop: int | None = None) -> Run:
        """A run of some steps, interrupted after `stop` of them."""

        def callback(event: Any) -> None:
            if event.name == "log" and event.step == stop:
                raise KeyboardInterrupt

        how = {"steps": 6, "batch_size": 16, "checkpoint_every": 2, "log_every": 1, "seed": 0}
        return saelab.train(self.config, self.rows, out=out, progress=False, callbacks=[callback], **how)

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
        ]  # fmt: skip

    def cases(self, out: Path) -> dict[str, Case]:
        """Every public function with right arguments; `out` is a place to write to."""
        store, lab = FeatureStore.open(self.folder / "store"), saelab.Lab(self.subject, self.sae, self.store)
        fit = {"acts": self.rows, "steps": 2, "batch_size": 8, "progress": False}
        small = {"subject": self.subject, "corpus": TEXTS[:2], "progress": False}
        found = {
            "recipe": Case(saelab.recipe, {"name": "topk", "d_in": 6, "d_sae": 12, "k": 2}),
            "SAE": Case(saelab.SAE, {"config": self.config}),
            "HookPoint": Case(saelab.HookPoint, {"name": "h"}),
            "load_sae": Case(saelab.load_sae, {"path": self.folder / "sae"}),
            "save_sae": Case(saelab.save_sae, {"sae": self.run.sae, "folder": out, "format": "saelab"}),
            "load_subject": Case(saelab.load_subject, {"name": str(self.folder / "sae")}),
            "train": Case(saelab.train, {"config": self.config, "out": out, **fit}),
            "harvest": Case(saelab.harvest, {"hooks": ["h"], "out": out, **small}),
            "index": Case(saelab.index, {"sae": self.sae, "out": out, **small}),
            "Lab": Case(saelab.Lab, {"subject": self.subject, "saes": self.sae, "stores": store}),
            "FeatureStore.open": Case(FeatureStore.open, {"folder": self.folder / "store"}),
            "ActivationStore.open": Case(ActivationStore.open, {"folder": self.folder / "acts"}),
            "Run.load": Case(Run.load, {"folder": self.folder / "run"}),
            "merge": Case(merge, {"stores": [store], "out": out}),
            "encode": Case(self.run.sae.encode, {"x": torch.ones(2, 6)}),
            "sae.save": Case(self.run.sae.save, {"folder": out}),
            "batches": Case(lambda **how: next(iter(self.acts.batches(**how)), None), {"size": 3},
                            ("seed", "hook", "shard")),
            "list_saes": Case(saelab.formats.list_saes, {"repository_or_folder": self.folder / "sae"}),
            "corpora.text": Case(lambda **how: list(saelab.corpora.text(**how)),
                                 {"paths": self.folder / "file"}, ("separator", "encoding")),
            "corpora.jsonl": Case(lambda **how: list(saelab.corpora.jsonl(**how)),
                                  {"paths": self.folder / "file"}, ("column", "messages", "encoding")),
            "corpora.world": Case(lambda **how: list(itertools.islice(saelab.corpora.world(**how), 9)),
                                  {"n_documents": 2}, ("seed",)),
        }  # fmt: skip
        by_latent = ("latent", "tokens", "firings", "partners", "examples", "codes")
        asked: dict[str, dict[str, Any]] = {name: {"latent": 1} for name in by_latent}
        asked |= {
            "rows": {"row": 1}, "document": {"document": 1}, "query": {"sql": "from latents"},
            "search": {"example": "a"}, "compare": {"other": store}, "attach_labels": {"labels": {}},
            "check": {"part": self.sae},
        }  # fmt: skip
        found |= {f"store.{name}": Case(getattr(store, name), given) for name, given in asked.items()}
        found["lab.feature"] = Case(lab.feature, {"latent": 1})
        found["lab.search"] = Case(lab.search, {"label": "a"})
        found["lab.label"] = Case(lab.label, {"latent": 1, "text": "x"})
        return found


def argument(world: World, out: Path, seed: int) -> str | None:
    """A wrong argument for a function: what was passed where something else than a SaelabError came of it."""
    rng = random.Random(seed)
    shutil.rmtree(out, ignore_errors=True)
    cases = world.cases(out / "out")
    name = rng.choice(sorted(cases))
    call, given, also = cases[name]
    found = inspect.signature(call).parameters.values()
    named = [p.name for p in found if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    where = rng.choice(sorted({*named, *given, *also}))
    value = rng.choice(world.values())
    if where in LONG and isinstance(value, int | float | np.number) and abs(value) > 1000:
        return None
    said = f"seed {seed}: {name}({where}={value!r:.80})"
    return _fault(said, lambda: call(**{**given, where: value}))


READERS: dict[str, Callable[[Path, World], Any]] = {}


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


def file(world: World, out: Path, seed: int) -> str | None:
    """A damaged file: what was done to it where something else than a SaelabError came of it."""
    kind = random.Random(seed).choice(sorted(READERS))
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    done = mutations.mutate(world.folder / kind, out / kind, seed)
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
