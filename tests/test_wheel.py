"""A wheel holds what the package needs where there is no checkout, and no more."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    out = tmp_path_factory.mktemp("wheel")
    # the build backend is at hand: no isolation, so no network
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (path,) = out.glob("*.whl")
    return zipfile.ZipFile(path)


def test_every_module_is_inside(wheel):
    names = set(wheel.namelist())
    for path in [*ROOT.glob("saelab/**/*.py"), *ROOT.glob("saelab/**/*.pyi")]:
        assert str(path.relative_to(ROOT)) in names


def test_the_browser_side_is_inside(wheel):
    names = set(wheel.namelist())
    sources = [p for folder in ("shared", "views") for p in (ROOT / "widgets" / folder).iterdir()]
    assert {p.suffix for p in sources} == {".js", ".css"}
    inside = {name for name in names if name.startswith("saelab/widgets/static/")}
    assert inside == {f"saelab/widgets/static/{p.relative_to(ROOT / 'widgets')}" for p in sources}


def test_the_embedded_assets_are_inside(wheel):
    names = set(wheel.namelist())
    assets = [p for p in (ROOT / "saelab/embedded/assets").rglob("*") if p.is_file()]
    assert assets
    for path in assets:
        assert str(path.relative_to(ROOT)) in names
        assert wheel.getinfo(str(path.relative_to(ROOT))).file_size == path.stat().st_size


def test_nothing_else_is_inside(wheel):
    for name in wheel.namelist():
        assert name.startswith("saelab"), name
        assert not {"node_modules", "__pycache__"} & set(Path(name).parts), name


@pytest.mark.slow
def test_it_runs_where_there_is_no_checkout(wheel, tmp_path):
    """Unpacked into an empty folder, with the repository off the path, the embedded Lab opens and a page
    is written.
    """
    site = tmp_path / "site"
    wheel.extractall(site)
    code = (
        "import saelab, pathlib\n"
        f"assert pathlib.Path(saelab.__file__).is_relative_to({str(site)!r}), saelab.__file__\n"
        "lab = saelab.Lab.embedded()\n"
        "lab.tokens('Mary gave the book to John').export('page.html')\n"
        "assert '<script' in pathlib.Path('page.html').read_text()\n"
    )
    environment = {
        "PYTHONPATH": str(site),
        "HF_HUB_OFFLINE": "1",
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path),
    }
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
