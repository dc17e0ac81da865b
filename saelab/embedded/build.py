"""Make the embedded assets anew: tokenizer, language model, SAEs, feature store.

    python -m saelab.embedded.build [--work DIR] [--stage tokenizer|model|saes|store|all] [--tokens N]
    [--device D]

Everything follows from seeds. An interrupted build goes on from its checkpoints in the work folder when
started again.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from saelab.corpora import world
from saelab.embedded import tokenizer as tokenizers

ASSETS = Path(__file__).parent / "assets"
DEFAULT_TOKENS = 60_000_000


def build_tokenizer(work: Path) -> None:
    """Learn the tokenizer from training texts and save it into work/tokenizer."""
    from saelab.embedded.data import natural_split

    folder = work / "tokenizer"
    if folder.exists():
        return
    texts = [d.text for d in world(seed=0, n_documents=60_000)]
    tokenizers.train_tokenizer(texts + natural_split(held_out=False)).save_pretrained(folder)


def build_model(work: Path, tokens: int, seed: int, device: str) -> None:
    """Train the language model; ends in work/model."""
    from transformers import AutoTokenizer

    from saelab.embedded.data import natural_split
    from saelab.embedded.training import Plan, train_model

    tokenizer = AutoTokenizer.from_pretrained(work / "tokenizer")
    plan = Plan(tokens, seed)
    train_model(tokenizer, natural_split(held_out=False), work, plan, device=device, report=_say)


def _say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("embedded-build"), help="checkpoints live here")
    parser.add_argument("--stage", choices=["tokenizer", "model", "saes", "store", "all"], default="all")
    parser.add_argument("--tokens", type=int, default=DEFAULT_TOKENS, help="to train the language model on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    if options.stage in ("tokenizer", "all"):
        build_tokenizer(options.work)
    if options.stage in ("model", "all"):
        build_model(options.work, options.tokens, options.seed, options.device)


if __name__ == "__main__":
    main()
