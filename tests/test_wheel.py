"""What users install: the wheel, unpacked and used away from the repository."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email.parser import BytesParser
from pathlib import Path

import pytest

from tests.command_line import clean_environment

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDERS = PROJECT["tool"]["setuptools"]["package-dir"]
DATA = {"quantascope/py.typed", *(f"quantascope/api/report/{n}" for n in ("template.html", "bundle.js", "bundle.css"))}
ENTRY = """
import sys
from pathlib import Path
import quantascope
from quantascope.api import cli
for module in (quantascope, cli):
    assert Path(module.__file__).is_relative_to(sys.argv[1]), module.__file__
del sys.argv[1]
cli.main()
"""


def files(pattern):
    """Files of the packages by their name in the wheel."""
    return {
        f"{package.replace('.', '/')}/{path.relative_to(ROOT / folder).as_posix()}"
        for package, folder in FOLDERS.items()
        for path in (ROOT / folder).rglob(pattern)
        if "node_modules" not in path.parts and "__pycache__" not in path.parts
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy: a build leaves files beside its sources."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for folder in FOLDERS.values():
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("node_modules", "__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, source]
    subprocess.run(command, check=True, capture_output=True, env=clean_environment())
    (found,) = out.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The wheel's files in a folder of their own."""
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as opened:
        opened.extractall(folder)
    return folder


def test_every_package_folder_is_named_once():
    named = PROJECT["tool"]["setuptools"]["packages"]
    assert len(named) == len(set(named))
    assert {name.removesuffix("/__init__.py").replace("/", ".") for name in files("__init__.py")} == set(named)


def test_the_wheel_holds_the_packages_and_their_data_alone(wheel):
    with zipfile.ZipFile(wheel) as opened:
        names = {name for name in opened.namelist() if ".dist-info/" not in name}
    assert names == files("*.py") | DATA
    assert not any("/web/" in name for name in names)


def test_the_metadata_says_what_is_needed(installed):
    (folder,) = installed.glob("*.dist-info")
    metadata = BytesParser().parsebytes((folder / "METADATA").read_bytes())
    needed = metadata.get_all("Requires-Dist")
    always = {re.match(r"[\w-]+", line)[0]: line for line in needed if "extra ==" not in line}
    assert not any("faiss" in name for name in always)
    assert re.search(r">=2", always["torch"])
    assert "<3" in always["torch"]
    assert {"cpu", "gpu"} <= set(metadata.get_all("Provides-Extra"))
    for extra in ("cpu", "gpu"):
        assert [line for line in needed if line.startswith(f"faiss-{extra}") and f'extra == "{extra}"' in line]
    assert "quantascope = quantascope.api.cli:main" in (folder / "entry_points.txt").read_text()
    assert list(folder.rglob("LICENSE"))


def test_the_installed_files_work_without_the_repository(installed, clustered_run, tmp_path):
    environment = clean_environment(PYTHONPATH=str(installed))

    def call(*arguments):
        command = [sys.executable, "-P", "-c", ENTRY, installed, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path, env=environment).stdout

    assert "200 units" in call("info", clustered_run)
    assert "report.html" in call("report", clustered_run)
    assert "</html>" in (tmp_path / "report.html").read_text()
