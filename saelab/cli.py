"""The command line: `saelab demo | harvest | train | index | eval | info | convert | import`. The only
place that prints."""

from __future__ import annotations

import argparse
import json
import os
import sys
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from saelab.commands import flags
from saelab.commands.flags import JOBS
from saelab.errors import SaelabError, nearest

if TYPE_CHECKING:
    from saelab.commands.work import Outcome

COMMANDS = {
    "demo": "train an SAE on the embedded model and write a report",
    "harvest": "run a model over a corpus and keep what flows through its hook points",
    "train": "train one SAE or several, on an activation store or on a model that reads a corpus",
    "index": "write down where every latent of an SAE fires in a corpus",
    "eval": "score an SAE, or all of a folder, beside untrained ones",
    "info": "say what a folder is",
    "convert": "write an SAE in the format of another library",
    "import": "make a feature store of what neuronpedia.org exports of an SAE",
}


def main(arguments: list[str] | None = None) -> int:
    """Run a command. 0: done. 1: an error of the user's, told in one line. 2: a command line that says
    nothing. 130: interrupted; the same command goes on."""
    given = [_spelt(argument) for argument in (sys.argv[1:] if arguments is None else arguments)]
    name = next((argument for argument in given if not argument.startswith("-")), "")
    try:
        options = _parse(given, name)
        _print(_RUN[options.command](options), options)
    except SaelabError as error:
        print(f"saelab {name}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        again = "; the same command goes on" if name in (*JOBS, "import") else ""
        print(f"\nsaelab {name}: interrupted{again}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `saelab info ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _parse(given: list[str], name: str) -> argparse.Namespace:
    """Only the command that is asked for gets its arguments."""
    parser = argparse.ArgumentParser(
        prog="saelab", description="Sparse autoencoders, from a shell.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=version("saelab"))
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    chosen = parser
    for each, line in COMMANDS.items():
        command = commands.add_parser(each, help=line, description=f"{line[0].upper()}{line[1:]}.",
                                      allow_abbrev=False)  # fmt: skip
        if each == name:
            chosen = command
            _ADD[each](command)
    options, unknown = parser.parse_known_args(given)
    if unknown:
        flags = [flag for action in chosen._actions for flag in action.option_strings]
        hint = nearest(unknown[0].split("=")[0], flags)
        chosen.error(f"unknown argument {unknown[0]}. {hint}saelab {name} --help lists them.")
    return options


def _spelt(argument: str) -> str:
    """`--max_rows` is `--max-rows`."""
    flag, equals, value = argument.partition("=")
    return f"{flag.replace('_', '-')}{equals}{value}" if argument.startswith("--") else argument


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", default="demo", help="folder to write into (default: demo)")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same numbers (default: 0)")


def _add_job(parser: argparse.ArgumentParser) -> None:
    command = parser.prog.split()[-1]
    parser.usage = f"{parser.prog} [JOB.toml] [--name VALUE | --flag | --no-flag] ..."
    parser.epilog = "--a.b VALUE is `a.b = VALUE` of the file. A list is given with commas, or by repetition."
    parser.add_argument("job", nargs="?", help="a TOML file with these arguments; flags win over it")
    parser.add_argument("--json", action="store_true", help="tell the result as JSON")
    groups: dict[str, Any] = {}
    for name, listed in flags.of_job(command).items():
        table = name.partition(".")[0] if "." in name else ""
        group = groups.setdefault(table, parser.add_argument_group(f"{table or 'arguments'}"))
        default = f" (default: {listed.default})" if listed.default else ""
        flag = f"--{name.replace('_', '-')}"
        settings: dict[str, Any] = {
            "dest": name,
            "help": f"{listed.line}{default}".replace("%", "%%") or None,
            "default": argparse.SUPPRESS,
        }
        if listed.switch:
            table, _, last = flag[2:].rpartition(".")
            no = f"--{table}.no-{last}" if table else f"--no-{last}"
            group.add_argument(flag, action="store_const", const=["true"], **settings)
            group.add_argument(no, **settings | {"help": argparse.SUPPRESS}, action="store_const",
                               const=["false"])  # fmt: skip
        else:
            group.add_argument(flag, action="append", metavar="VALUE", **settings)


def _add_info(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", help="a store, run, SAE, model, or what an interrupted job has left")
    parser.add_argument("--json", action="store_true", help="tell it as JSON")
    parser.add_argument("--check", action="store_true",
                        help="load an SAE, and try in which formats it can be written")  # fmt: skip
    _add_open_questions(parser)


def _add_convert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="IN", help="an SAE of any format that saelab knows")
    parser.add_argument("out", metavar="OUT", help="a new folder")
    parser.add_argument("--to", required=True, metavar="FORMAT", help=", ".join(flags.written_formats()))
    parser.add_argument("--subfolder", help="of IN, where the SAE is")
    parser.add_argument("--format", help="of IN, where its files leave it open")
    parser.add_argument("--overwrite", action="store_true", help="write into a folder that is not empty")
    parser.add_argument("--json", action="store_true", help="tell the result as JSON")
    _add_open_questions(parser)


def _add_import(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="IN", help="v1/MODEL/SOURCE of its bucket, as it was downloaded")
    parser.add_argument("out", metavar="OUT", help="a new folder")
    line = "tokens that the SAE was run over, where the export does not say it"
    parser.add_argument("--n-rows", metavar="VALUE", help=line)
    parser.add_argument("--skip", action="store_true", help="leave out lines that are not as they must be")
    parser.add_argument("--overwrite", action="store_true", help="put it in place of another store")
    parser.add_argument("--json", action="store_true", help="tell the result as JSON")


def _add_open_questions(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what the files of an SAE may leave open")
    for name, line in flags.of_sae().items():
        flag = f"--{name.replace('_', '-')}"
        group.add_argument(flag, dest=f"sae.{name}", metavar="VALUE", default=argparse.SUPPRESS,
                           help=line.replace("%", "%%"))  # fmt: skip


def _answers(options: argparse.Namespace) -> dict[str, Any]:
    from saelab.commands.arguments import from_flags

    said = {name.removeprefix("sae."): text for name, text in vars(options).items() if name[:4] == "sae."}
    return {name: from_flags([text], Any, name) for name, text in said.items()}


def _demo(options: argparse.Namespace) -> Outcome:
    from saelab.commands.work import Outcome
    from saelab.demo import demo

    result = demo(options.out, seed=options.seed)
    lines = ["", *(f"  {line}" for line in result.lines()), "", f"{result.page}  ({result.seconds:.0f} s)"]
    return Outcome(lines, {})


def _job(options: argparse.Namespace) -> Outcome:
    from saelab.commands import jobs, work

    said = {name: texts for name, texts in vars(options).items() if name not in ("command", "job", "json")}
    given = {} if options.job is None else jobs.read(options.job)
    return work.run(jobs.Job(options.command, jobs.merged(options.command, given, said)))


def _info(options: argparse.Namespace) -> Outcome:
    from saelab.commands import info, work

    told = info.describe(options.folder, _answers(options), check=options.check)
    return work.Outcome(told.lines(), told.data)


def _convert(options: argparse.Namespace) -> Outcome:
    from saelab.commands import work

    o = options
    return work.convert(o.path, o.out, o.to, o.subfolder, o.format, o.overwrite, _answers(o))


def _import(options: argparse.Namespace) -> Outcome:
    from saelab.commands import work
    from saelab.commands.arguments import from_flags

    o = options
    n_rows = None if o.n_rows is None else from_flags([o.n_rows], int | None, "n_rows")
    return work.import_(o.folder, o.out, n_rows=n_rows, skip=o.skip, overwrite=o.overwrite)


def _print(outcome: Outcome, options: argparse.Namespace) -> None:
    if getattr(options, "json", False):
        print(_shown(json.dumps(outcome.data, indent=1, ensure_ascii=False)))
        return
    for line in outcome.lines:
        print(_shown(line))


def _shown(line: str) -> str:
    """What the terminal or file can take of it: under LC_ALL=C there is nothing but ASCII, and the bytes of
    names of files, which come as halves of surrogate pairs and go as they came."""
    encoding, errors = sys.stdout.encoding or "utf-8", sys.stdout.errors or "strict"
    try:
        line.encode(encoding, errors)
    except UnicodeEncodeError:
        return line.encode(encoding, "backslashreplace").decode(encoding)
    return line


_ADD = {"demo": _add_demo, "info": _add_info, "convert": _add_convert, "import": _add_import}
_ADD |= dict.fromkeys(JOBS, _add_job)
_RUN = {"demo": _demo, "info": _info, "convert": _convert, "import": _import} | dict.fromkeys(JOBS, _job)
