"""The command line: `saelab demo`. The only place that prints."""

from __future__ import annotations

import argparse
import sys
from importlib.metadata import version

from saelab.types import SaelabError


def main(arguments: list[str] | None = None) -> int:
    """Run a command; 0 on success, 1 on an error of the user's (told in one line), 130 when interrupted."""
    parser = argparse.ArgumentParser(prog="saelab", description="Sparse autoencoders from a notebook.")
    parser.add_argument("--version", action="version", version=version("saelab"))
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser("demo", help="train an SAE on the embedded model and write a report")
    demo.add_argument("--out", default="demo", help="folder to write into (default: demo)")
    demo.add_argument("--seed", type=int, default=0, help="same seed, same numbers (default: 0)")
    demo.set_defaults(run=_demo)

    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except SaelabError as error:
        print(f"saelab {options.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"saelab {options.command}: interrupted", file=sys.stderr)
        return 130
    return 0


def _demo(options: argparse.Namespace) -> None:
    from saelab.demo import demo

    result = demo(options.out, seed=options.seed)
    print()
    for line in result.lines():
        print(f"  {line}")
    print(f"\n{result.page}  ({result.seconds:.0f} s)")
