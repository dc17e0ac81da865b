"""The architecture: each package imports only from those before it, and `import saelab` stays light."""

from __future__ import annotations

import ast
import functools
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

ORDER = (
    "errors seeds progress devices files config layout types capabilities arguments tensors dist stores sae "
    "corpora subjects embedded formats compat interventions harvesting scale training analysis autointerp "
    "widgets lab demo commands cli"
).split()
ROOT = Path(__file__).parents[1]
FILES = sorted(ROOT.glob("saelab/**/*.py"))


def package_of(module: str) -> str | None:
    """`saelab.sae.model` -> `sae`; None for saelab itself and for foreign modules."""
    parts = module.split(".")
    return parts[1] if parts[0] == "saelab" and len(parts) > 1 else None


@functools.cache
def import_nodes(source: str) -> list[tuple[ast.Import | ast.ImportFrom, bool]]:
    """Every import of a file, in functions too, and whether it is for types only."""
    found = []

    def look(node: ast.AST, types: bool) -> None:
        if isinstance(node, ast.Import | ast.ImportFrom):
            found.append((node, types))
        elif isinstance(node, ast.If):
            own = ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
            for part, typed in ((node.body, types or own), (node.orelse, types)):
                for each in part:
                    look(each, typed)
        elif not isinstance(node, ast.expr):  # which hold no statements
            for each in ast.iter_child_nodes(node):
                look(each, types)

    look(ast.parse(source), types=False)
    return found


def saelab_imports(source: str) -> list[str]:
    """Every saelab module that a file imports at run time, in functions too; not those for types only."""
    found = []
    for node, types in import_nodes(source):
        if types:
            continue
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import at line {node.lineno}"
            found += [
                f"{node.module}.{a.name}" if node.module == "saelab" else node.module for a in node.names
            ]
    return [name for name in found if name.split(".")[0] == "saelab"]


@pytest.mark.parametrize("path", FILES, ids=[str(f.relative_to(ROOT)) for f in FILES])
def test_imports_point_downwards(path):
    relative = path.relative_to(ROOT)
    if str(relative) == "saelab/__init__.py":
        return
    own = relative.parts[1].removesuffix(".py")
    assert own in ORDER, f"{own} has no place in the order"
    for module in saelab_imports(path.read_text()):
        other = package_of(module)
        assert other is not None, f"{relative} imports saelab itself"
        assert other in ORDER, f"{relative} imports unknown {module}"
        assert ORDER.index(other) <= ORDER.index(own), (
            f"{relative} ({own}) imports {module}, which comes later"
        )


@pytest.mark.parametrize("path", sorted(ROOT.glob("saelab/widgets/*.py")), ids=lambda p: p.name)
def test_widgets_know_results_not_models(path):
    known = "types errors arguments files layout stores analysis.results analysis.panels widgets".split()
    allowed = tuple(f"saelab.{name}" for name in known)
    for module in saelab_imports(path.read_text()):
        assert module.startswith(allowed), f"{path.name} imports {module}"


def graph(sources: dict[str, str]) -> dict[str, set[str]]:
    """Module -> the modules that it imports anywhere: on top, in functions, for types alone. What a package
    imports in its `__init__` is not counted for its modules."""
    found = {}
    for name, source in sources.items():
        nodes = [node for node, _ in import_nodes(source)]
        imported = {a.name for node in nodes if isinstance(node, ast.Import) for a in node.names}
        for node in nodes:
            if isinstance(node, ast.Import):
                continue
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            imported |= (inner & set(sources)) or {str(node.module)}
        found[name] = (imported & set(sources)) - {name}
    return found


def circle(imports: dict[str, set[str]]) -> list[str]:
    """A circle of modules, or []."""
    try:
        graphlib.TopologicalSorter(imports).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def test_there_are_no_import_circles():
    """Neither through functions nor for types: what is imported late to break a circle is still one."""
    names = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in FILES}
    found = graph({name.removesuffix(".__init__"): path.read_text() for path, name in names.items()})
    assert circle(found) == []


@pytest.mark.parametrize(
    "back",
    [
        "from saelab.a import f",
        "def g():\n    import saelab.a",
        "if TYPE_CHECKING:\n    from saelab import a",
    ],
)
def test_the_check_sees_circles(back):
    sources = {"saelab.a": "from saelab.b import x", "saelab.b": "import saelab.c", "saelab.c": "import os"}
    assert circle(graph(sources)) == []
    sources["saelab.c"] = back
    assert set(circle(graph(sources))) == {"saelab.a", "saelab.b", "saelab.c"}


def test_the_check_sees_through_functions():
    assert saelab_imports("def f():\n    from saelab.lab import Lab\n") == ["saelab.lab"]
    assert (
        saelab_imports(
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from saelab.lab import Lab\n"
        )
        == []
    )


def loaded_by(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint('\\n'.join(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(result.stdout.split())


HEAVY = {"torch", "transformers", "transformer_lens", "matplotlib", "plotly", "pandas", "umap", "sklearn"}


def test_import_saelab_is_light():
    """Of all that is installed it loads lazy-loader alone, whatever the interpreter loads by itself."""
    added = loaded_by("import saelab") - loaded_by("import packaging, ast, typing, inspect")
    foreign = {module.split(".")[0] for module in added} - set(sys.stdlib_module_names)
    assert foreign == {"saelab", "lazy_loader"}
    for subpackage in ("stores", "training", "analysis"):
        assert not HEAVY & loaded_by(f"import saelab; saelab.{subpackage}.__all__")


def test_a_feature_store_opens_without_torch():
    assert "torch" not in loaded_by("from saelab.stores import FeatureStore")
    assert "torch" not in loaded_by("import saelab.analysis.results")


def test_a_card_of_a_store_that_keeps_its_lenses_needs_no_model():
    shown = "import saelab; lab = saelab.Lab.embedded(); assert lab.card(3).lens; lab.feature(7)"
    assert not {"torch", "transformers"} & loaded_by(shown)


def test_public_names_resolve():
    import saelab

    for name in saelab.__all__:
        assert getattr(saelab, name) is not None, name
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = saelab.no_such_name


FIRST_USE = """
import importlib, os, sys
import duckdb, pandas, pyarrow.parquet, scipy.sparse, torch  # once for all
for module, said in SAID.items():
    child = os.fork()
    if not child:
        ended = 1
        try:
            found = importlib.import_module(module)
            assert sorted(found.__all__) == sorted(said)
            for name in found.__all__:
                getattr(found, name)
            ended = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        sys.stderr.flush()
        os._exit(ended)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, module
"""


def test_what_loads_on_first_use_is_what_the_stubs_say():
    """Each in a process that has imported nothing else of saelab, so that no name is there by accident."""
    said = {}
    for module in ("saelab", "saelab.analysis", "saelab.stores", "saelab.training"):
        stub = ast.parse((ROOT / module.replace(".", "/") / "__init__.pyi").read_text())
        (names,) = (node.value for node in stub.body if isinstance(node, ast.Assign))
        said[module] = ast.literal_eval(names)
    code = f"SAID = {said!r}\n{FIRST_USE}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_files_stay_small():
    for path in FILES:
        assert len(path.read_text().splitlines()) <= 520, f"{path.relative_to(ROOT)} is longer than 520 lines"


def edges_between_packages() -> dict[str, set[str]]:
    """Package -> the packages that it imports, without those that follow from others."""
    direct: dict[str, set[str]] = {}
    for path in FILES:
        relative = path.relative_to(ROOT)
        if str(relative) == "saelab/__init__.py":
            continue
        own = relative.parts[1].removesuffix(".py")
        found = {package_of(module) for module in saelab_imports(path.read_text())}
        direct.setdefault(own, set()).update(other for other in found if other and other != own)

    @functools.cache
    def below(package: str) -> set[str]:
        return set().union(*({other} | below(other) for other in direct[package]))

    return {
        own: {other for other in others if not any(other in below(each) for each in others)}
        for own, others in direct.items()
    }


def test_the_picture_of_the_house_is_that_of_the_imports():
    text = (ROOT / "docs" / "architecture.md").read_text()
    picture = text.split("```mermaid")[1].split("```")[0]
    shown = [tuple(line.strip().split(" --> ")) for line in picture.splitlines() if "-->" in line]
    real = [(own, other) for own, others in edges_between_packages().items() for other in others]
    assert sorted(shown) == sorted(real)
