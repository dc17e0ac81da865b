"""English that every machine has: the documentation of Python's standard library, read from the
interpreter.
"""

from __future__ import annotations

import ast
import re
import sysconfig
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path

from saelab.corpora.documents import Corpus, Document
from saelab.corpora.world_lexicon import forbidden_words, like_held_out_year

SKIPPED = {"test", "tests", "idle_test", "site-packages", "lib2to3", "__pycache__", "turtledemo", "idlelib"}
MIN_CHARACTERS = 60


def natural() -> Corpus:
    """Paragraphs of the standard library's documentation topics and docstrings, in a fixed order.

    Nothing is imported or run: sources are parsed. Paragraphs with words or years that the synthetic world
    holds out are left out. The content differs between Python versions, and so does the fingerprint.
    """
    return Corpus(_paragraphs, "the Python standard library's documentation")


def _paragraphs() -> Iterator[Document]:
    root = Path(sysconfig.get_path("stdlib"))
    seen: set[str] = set()
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if SKIPPED & set(relative.parts):
            continue
        for i, text in enumerate(_texts(path, relative)):
            for j, paragraph in enumerate(re.split(r"\n\s*\n", text)):
                paragraph = textwrap.dedent(paragraph).strip()
                if len(paragraph) < MIN_CHARACTERS or paragraph in seen or not _allowed(paragraph):
                    continue
                seen.add(paragraph)
                yield Document(f"stdlib-{relative.as_posix()}-{i}-{j}", paragraph, kind="natural")


def _texts(path: Path, relative: Path) -> list[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old escapes in the sources are not ours to report
            tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError, ValueError):
        return []
    if relative.as_posix() == "pydoc_data/topics.py":
        strings = (n.value for n in ast.walk(tree) if isinstance(n, ast.Constant))
        return [s for s in strings if isinstance(s, str) and len(s) > 200]
    holders = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return [doc for n in ast.walk(tree) if isinstance(n, holders) and (doc := ast.get_docstring(n))]


def _allowed(text: str) -> bool:
    words = re.findall(r"[A-Za-z_]+|\d+", text)
    return not any(
        w in forbidden_words() or (w.isdigit() and len(w) == 4 and like_held_out_year(int(w))) for w in words
    )
