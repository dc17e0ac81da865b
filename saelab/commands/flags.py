"""The flags of every command, as `flags.json` lists them, so that help and a mistyped flag need neither torch
nor what the commands call.

    python -m saelab.commands.flags

writes that list anew, out of the functions' signatures and docstrings; a test compares the two.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from saelab.files import read_json, write_json

LISTED = Path(__file__).with_name("flags.json")
JOBS = ("harvest", "train", "index", "eval")


class Flag(NamedTuple):
    """What help says of a flag."""

    line: str
    """What it is."""
    default: str
    """As text; "" where there is none worth saying."""
    switch: bool
    """Whether it takes no value: `--name` or `--no-name`."""


def of_job(command: str) -> dict[str, Flag]:
    """Every flag of a job by its dotted name."""
    return {name: Flag(*listed) for name, listed in read_json(LISTED)[command].items()}


def of_sae() -> dict[str, str]:
    """What files of SAEs may leave open: name -> what it is."""
    return read_json(LISTED)["sae"]


def written_formats() -> list[str]:
    """The formats that an SAE can be written in."""
    return read_json(LISTED)["formats"]


def derived() -> dict[str, Any]:
    """The list, out of what the commands call."""
    from saelab.commands.arguments import NEEDED, is_flag
    from saelab.commands.jobs import flag_arguments, open_questions
    from saelab.formats import names

    jobs = {
        command: {
            name: [
                argument.line,
                "" if argument.default in (NEEDED, None, ()) else str(argument.default),
                is_flag(argument.hint),
            ]
            for name, argument in flag_arguments(command).items()
        }
        for command in JOBS
    }
    questions = {name: argument.line for name, argument in open_questions().items()}
    return {**jobs, "sae": questions, "formats": names(writing=True)}


if __name__ == "__main__":
    write_json(LISTED, derived())
