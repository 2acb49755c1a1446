"""The wheel: what lies in it, that nothing lands beside `sppo`, and that it works away from the tree."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

LAYERS = ("envs", "agents", "llm", "experiments")
DATA = {".safetensors", ".json", ".html", ".css", ".js", ".typed"}


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that the tree gets no build folder and an old one cannot leak into the wheel."""
    copy = tmp_path_factory.mktemp("tree")
    for layer in LAYERS:
        shutil.copytree(root / layer, copy / layer, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, copy)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", copy / "dist", copy, cwd=copy)
    (built,) = (copy / "dist").glob("*.whl")
    return built


def test_wheel_holds_the_sources_and_their_data(wheel: Path, root: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    files = [path for layer in LAYERS for path in (root / layer).rglob("*") if "__pycache__" not in path.parts]
    wanted = {f"sppo/{path.relative_to(root).as_posix()}" for path in files if path.suffix in {".py"} | DATA}
    packed = {name for name in names if name.startswith("sppo/")}
    # A sub-package that setup.cfg does not list shows here.
    assert wanted == packed
    assert {f"sppo/{layer}/py.typed" for layer in LAYERS} <= packed


def test_nothing_lands_beside_sppo(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    tops = {name.split("/")[0] for name in archive.namelist()}
    (info,) = (top for top in tops if top.endswith(".dist-info"))
    assert tops == {"sppo", info}
    # a namespace: other distributions may add to it
    assert "sppo/__init__.py" not in archive.namelist()
    assert "sppo = sppo.experiments.cli:main" in archive.read(f"{info}/entry_points.txt").decode()
    metadata = archive.read(f"{info}/METADATA").decode()
    assert "Name: sppo\n" in metadata
    assert "License-Expression: Apache-2.0" in metadata


def test_installed_wheel_works_from_another_directory(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    away = tmp_path / "away"
    away.mkdir()
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
    run(*pip, "install", "--no-deps", "--no-index", "--target", site, wheel, cwd=away)
    assert {path.name for path in site.iterdir() if not path.name.endswith(".dist-info")} <= {"sppo", "bin"}
    # -S leaves the editable install of the tree out; the dependencies are then added by hand.
    code = (
        f"import sys; sys.path[:0] = [{str(site)!r}]; sys.path += {[sysconfig.get_path('purelib')]!r}\n"
        "import sppo.envs, sppo.agents, sppo.llm, sppo.experiments.report\n"
        "from importlib import resources\n"
        "assert resources.files('sppo.experiments').joinpath('report.html').is_file()\n"
        "import gymnasium; env = gymnasium.make('sppo/PrecisionCartPole-v0'); env.reset(seed=0); env.step(0)\n"
        "print(sppo.envs.__file__, sppo.agents.__file__, sep='\\n')"
    )
    printed = run(sys.executable, "-S", "-c", code, cwd=away).splitlines()[-2:]
    assert all(Path(line).is_relative_to(site) for line in printed), printed
