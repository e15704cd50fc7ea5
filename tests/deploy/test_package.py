"""What `pip install` puts into an environment: one package, tidecast: the service, the trainer and their data files."""

import subprocess
import sys
import zipfile
from importlib.metadata import version

import pytest

import tidecast
from tests.support.checkout import copy_tree


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The names of the files in a wheel that is built from a copy of this tree."""
    folder = copy_tree(tmp_path_factory.mktemp("tree"))
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", "dist", "."]
    subprocess.run(build, cwd=folder, check=True)
    (path,) = (folder / "dist").iterdir()
    return zipfile.ZipFile(path).namelist()


def test_an_installed_tidecast_takes_no_other_name_in_the_environment(wheel):
    packages = {name.partition("/")[0] for name in wheel if ".dist-info/" not in name}
    assert packages == {"tidecast"}


@pytest.mark.parametrize("name", ["service/cli.py", "training/train.py", "py.typed"])
def test_an_installed_tidecast_has_the_service_and_the_trainer(wheel, name):
    assert f"tidecast/{name}" in wheel


@pytest.mark.parametrize("name", ["service/watch/static/index.html", "training/samples/weather.csv.gz"])
def test_an_installed_tidecast_has_the_live_page_and_the_sample(wheel, name):
    assert f"tidecast/{name}" in wheel


def test_import_tidecast_says_the_installed_version():
    assert tidecast.__version__ == version("tidecast")
