"""What it costs to index every latent and to write them all as one page, beside SAEDashboard.

benchmarks/peers/install_dashboard.sh            # once, for the peer; without it only saelab is measured
python benchmarks/dashboard.py [--rounds 5] [--features 2048] [--threads 1] [--profile] [--record]

Both read 65,536 tokens through a random model of 4 layers (d_model 128, 4 heads, 512 words) and a ReLU SAE of
2,048 latents at block 2 that fire on 1 % of the rows. saelab indexes all latents and writes them as one page
of cards; SAEDashboard (peers/dashboard_worker.py) does as many (`--features`) in one batch, which is where it
is fastest, and one page. All take turns in processes of their own. The yardstick is one forward pass, which
stops at block 2, with one dense encoding; theirs is also given with the pass of their own library, which does
not stop. Seconds are medians over rounds, on one thread of CPU time; ranges are those of all rounds.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from results import record
from tokenizers import Tokenizer, models, pre_tokenizers

import saelab
from saelab.sae import SAE
from saelab.subjects import LanguageModel

ROOT = Path(__file__).resolve().parent.parent
PEER = ROOT / ".venv-dashboard" / "bin" / "python"
DOCUMENTS, LENGTH, WORDS, WIDTH, LATENTS = 512, 128, 512, 128, 2048
HOOK = "blocks.2.hook_resid_post"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--features", type=int, default=LATENTS, help="latents that SAEDashboard does, in one batch"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--profile", action="store_true", help="where the time of our index and page goes")
    parser.add_argument("--record", action="store_true", help="keep the figures")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        ours = Ours(Path(folder), options.threads)
        if options.profile:
            profile(ours)
            return
        peer = Peer(Path(folder), options.features, options.threads) if PEER.is_file() else None
        figures = measure(ours, peer, options.rounds)
    rows = report(figures)
    if options.record:
        pins = (ROOT / "benchmarks/peers/install_dashboard.sh").read_text().split()
        peers = dict(pin.split("==") for pin in pins if "==" in pin) if peer else {}
        facts = {"rounds": options.rounds, "features": options.features, "threads": options.threads}
        record("dashboard", rows, **facts, versions=peers)


class Ours:
    """saelab's side: the same number of tokens as rows, so each text is a BOS longer."""

    def __init__(self, folder: Path, threads: int) -> None:
        self.folder, self.n = folder, 0
        self.clock = time.process_time if threads == 1 else time.perf_counter
        self.subject = make_subject()
        random = np.random.default_rng(0)
        # word 0 is BOS
        self.ids = random.integers(1, WORDS, (DOCUMENTS, LENGTH))
        self.texts = [" ".join(f"w{i}" for i in row) for row in self.ids]
        self.batches = [
            self.subject.prepare_tokens([[0, *row] for row in self.ids[i : i + 16].tolist()])
            for i in range(0, DOCUMENTS, 16)
        ]
        self.sae = make_sae(self.acts())
        np.save(folder / "ids.npy", self.ids)
        self.subject.tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))

    def acts(self) -> torch.Tensor:
        """[rows WIDTH] of all texts."""
        parts = [self.subject.run(x, read=[HOOK], output=False).acts[HOOK][:, 1:] for x in self.batches]
        return torch.cat(parts).reshape(-1, WIDTH)

    def turn(self) -> dict[str, float]:
        """Seconds of a forward pass with encoding, of the index, of the page; bytes and latents."""
        self.n += 1
        store, page = self.folder / f"store{self.n}", self.folder / f"page{self.n}.html"
        passed = self.seconds(self.forward_and_encode)
        indexed = self.seconds(lambda: self.index(store))
        exported = self.seconds(lambda: self.page(store, page))
        return {
            "forward and encode": passed,
            "index": indexed,
            "page": exported,
            "page bytes": page.stat().st_size,
            "latents": LATENTS,
        }

    def forward_and_encode(self) -> None:
        for x in self.batches:
            self.sae.encode(self.subject.run(x, read=[HOOK], output=False).acts[HOOK])

    def index(self, out: Path) -> None:
        saelab.index(self.subject, self.sae, self.texts, out, progress=False)

    def page(self, store: Path, out: Path) -> None:
        saelab.Lab(self.subject, self.sae, store).features().export(out)

    def seconds(self, call: Callable[[], object]) -> float:
        start = self.clock()
        with torch.no_grad():
            call()
        return self.clock() - start


class Peer:
    """SAEDashboard in its process; what it says on stderr is shown where it fails."""

    def __init__(self, folder: Path, features: int, threads: int) -> None:
        self.log = (folder / "peer.log").open("w+")
        worker = Path(__file__).parent / "peers" / "dashboard_worker.py"
        command = [str(PEER), str(worker), str(folder), str(features), str(threads)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True
        )
        self.turn()  # warms it up

    def turn(self) -> dict[str, float]:
        """As `Ours.turn`. Raises ChildProcessError where it fails."""
        assert self.process.stdin
        assert self.process.stdout
        if self.process.poll() is None:
            self.process.stdin.write("\n")
            self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            self.log.seek(0)
            raise ChildProcessError(self.log.read())
        return json.loads(line)


def measure(ours: Ours, peer: Peer | None, rounds: int) -> dict[str, Any]:
    """Figures of every round, by side."""
    ours.turn()
    turns: dict[str, list[dict[str, float]]] = {"saelab": [], "SAEDashboard": []}
    for _ in range(rounds):
        turns["saelab"].append(ours.turn())
        if peer:
            turns["SAEDashboard"].append(peer.turn())
    return turns


def report(turns: dict[str, list[dict[str, float]]]) -> list[dict[str, Any]]:
    """Medians; ratios are of one round each."""
    ours, theirs = turns["saelab"], turns["SAEDashboard"]
    rows: list[dict[str, Any]] = []

    def line(name: str, values: list[float], unit: str) -> None:
        spread = f"[{min(values):,.2f} .. {max(values):,.2f}]"
        print(f"{name:58} {statistics.median(values):10,.2f} {unit:12} {spread}")
        middle, least, most = statistics.median(values), min(values), max(values)
        rows.append({"what": name, "unit": unit, "median": middle, "least": least, "most": most})

    for side, rounds in turns.items():
        for name in ("forward and encode", "index", "page"):
            if rounds:
                line(f"{side}: {name}", [r[name] for r in rounds], "s")
        if rounds:
            line(f"{side}: latents", [r["latents"] for r in rounds], "")
            line(f"{side}: latents indexed", [r["latents"] / r["index"] for r in rounds], "a second")
            line(f"{side}: latents on the page", [r["latents"] / r["page"] for r in rounds], "a second")
            line(f"{side}: page", [r["page bytes"] / r["latents"] / 1000 for r in rounds], "kB a latent")
    line(
        "our index / our forward and encode",
        [r["index"] / r["forward and encode"] for r in ours],
        "x  (<= 1.3)",
    )
    if not theirs:
        return rows
    pairs = list(zip(ours, theirs, strict=True))
    line(
        "our index / their forward and encode", [a["index"] / b["forward and encode"] for a, b in pairs], "x"
    )
    for name, target in (("index", ""), ("page", "  (>= 20)")):
        rates = [(a["latents"] / a[name]) / (b["latents"] / b[name]) for a, b in pairs]
        line(f"our latents a second / theirs, {name}", rates, f"x{target}")
    both = [
        (a["latents"] / (a["index"] + a["page"])) / (b["latents"] / (b["index"] + b["page"]))
        for a, b in pairs
    ]
    line("our latents a second / theirs, index and page", both, "x")
    return rows


def profile(ours: Ours) -> None:
    """Prints what takes our index and page their time, after a warm-up."""
    ours.turn()
    for name, call in (
        ("index", lambda: ours.index(ours.folder / "profiled")),
        ("page", lambda: ours.page(ours.folder / "profiled", ours.folder / "profiled.html")),
    ):
        print(f"\n{name}: {ours.seconds(ours.forward_and_encode):.2f} s for forward and encode beside it")
        profiler = cProfile.Profile(time.process_time)
        with torch.no_grad():
            profiler.runcall(call)
        pstats.Stats(profiler, stream=sys.stdout).sort_stats("cumulative").print_stats(40)


def make_subject() -> LanguageModel:
    """4 layers of width 128 over 512 words, the first of which is BOS."""
    torch.manual_seed(0)
    backend = Tokenizer(models.WordLevel({f"w{i}": i for i in range(WORDS)}, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="w0", eos_token="w0")
    config = transformers.GPT2Config(
        vocab_size=WORDS, n_embd=WIDTH, n_layer=4, n_head=4, n_positions=LENGTH + 1,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return LanguageModel(transformers.GPT2LMHeadModel(config).eval(), tokenizer)


def make_sae(acts: torch.Tensor) -> SAE:
    """Random unit directions that fire on 1 % of the rows."""
    sae = SAE.create(saelab.recipe("relu", d_in=WIDTH, d_sae=LATENTS, hook=HOOK)).eval()
    with torch.no_grad():
        directions = torch.nn.functional.normalize(torch.randn(LATENTS, WIDTH), dim=1)
        sae.W_dec.copy_(directions)
        sae.W_enc.copy_(directions.T)
        sae.b_dec.zero_()
        sae.b_enc.zero_()
        sae.b_enc.copy_(-torch.quantile(acts[:4096] @ directions.T, 0.99, dim=0))
    return sae


if __name__ == "__main__":
    main()
