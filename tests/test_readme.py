"""The README and the guide are true: the tree is the disk's, commands exist, their Python runs."""

from __future__ import annotations

import ast
import contextlib
import io
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


GUIDE = (ROOT / "docs" / "guide.md").read_text()
MIGRATE = (ROOT / "docs" / "migrate.md").read_text()


def fenced(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


def tree_paths() -> set[str]:
    """Paths that the tree in the README names: two spaces of indent a level, the name first on each line."""
    (block,) = fenced("text")
    paths, stack = set(), []
    for line in block.splitlines():
        if not line.strip():
            continue
        depth = (len(line) - len(line.lstrip())) // 2
        name = line.split()[0]
        stack = [*stack[:depth], name.rstrip("/")]
        paths.add("/".join(stack) + ("/" if name.endswith("/") else ""))
    return paths


def tracked() -> list[str]:
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("needs a git checkout")
    return done.stdout.split("\n")[:-1]


def test_every_path_of_the_tree_is_on_disk():
    for path in tree_paths():
        assert (ROOT / path).is_dir() if path.endswith("/") else (ROOT / path).is_file(), path


def test_every_folder_and_every_part_of_the_package_is_in_the_tree():
    named = {p.rstrip("/") for p in tree_paths()}
    for path in tracked():
        parts = path.split("/")
        if parts[0].startswith("."):
            continue
        if len(parts) > 1:
            assert parts[0] in named, f"folder {parts[0]}/ is not in the README's tree"
        if parts[0] == "saelab" and len(parts) > 1:
            assert "/".join(parts[:2]) in named, f"{'/'.join(parts[:2])} is not in the README's tree"


def test_the_commands_are_targets_of_the_makefile():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    named = set(re.findall(r"\bmake ([a-z]+)", README))
    assert {"demo", "test"} <= named
    assert named <= targets


@pytest.mark.slow
def test_the_python_of_the_tour_runs(tmp_path, monkeypatch):
    """All python blocks, in order, in one namespace, offline, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    assert fenced("python")
    space = {}
    for name, text in (("README.md", README), ("guide.md", GUIDE), ("migrate.md", MIGRATE)):
        for block in fenced("python", text):
            *before, last = ast.parse(block).body
            assert isinstance(last, ast.Expr), f"{name}: a block ends in nothing that is shown:\n{block}"
            exec(compile(ast.Module(before, []), name, "exec"), space)
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                shown = eval(compile(ast.Expression(last.value), name, "eval"), space)
            words = printed.getvalue() if shown is None else repr(shown)
            assert words.strip(), f"{name}: a block shows nothing:\n{block}"
            assert " object at 0x" not in words
            assert len(words.splitlines()) <= 45, words


def test_local_links_lead_somewhere():
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    for page in pages:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
