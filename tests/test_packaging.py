"""What is installed elsewhere holds everything that a checkout has, and nothing more."""

import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PIN = re.compile(r"^([a-z0-9._-]+==[^ ]+)", re.MULTILINE)


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source distribution, and the wheel that was built from that."""
    folder = tmp_path_factory.mktemp("dist")
    # Without isolation, so that no network is needed: the backend is in the development lock.
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def names_in_wheel(folder: Path) -> set[str]:
    (wheel,) = folder.glob("postroom-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def names_in_sdist(folder: Path) -> set[str]:
    (sdist,) = folder.glob("postroom-*.tar.gz")
    with tarfile.open(sdist) as archive:
        return {name.partition("/")[2] for name in archive.getnames()}


def files_of(*folders: str) -> set[str]:
    """Paths of the files in these folders of the checkout, less what Python leaves there."""
    return {
        str(path.relative_to(ROOT))
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix != ".pyc" and "__pycache__" not in path.parts
    }


def test_the_wheel_holds_every_file_of_the_program(distributions: Path) -> None:
    wheel = names_in_wheel(distributions)
    pages = {f"webapp/{name}" for name in files_of("templates", "static")}
    assert files_of("webapp") | pages <= wheel


@pytest.mark.parametrize(
    "file",
    [
        "webapp/migrations/env.py",
        "webapp/translations/zh_Hans/LC_MESSAGES/messages.po",
        "webapp/templates/base.html",
        "webapp/static/app.css",
    ],
)
def test_the_wheel_holds_what_is_not_python_too(distributions: Path, file: str) -> None:
    assert file in names_in_wheel(distributions)


def test_the_wheel_holds_nothing_else(distributions: Path) -> None:
    outside = {name for name in names_in_wheel(distributions) if not name.startswith("webapp/")}
    (top,) = {name.split("/")[0] for name in outside}
    assert top.endswith(".dist-info")
    assert f"{top}/licenses/LICENSE" in outside


def test_no_stored_mail_and_no_key_leaves_the_instance_folder(distributions: Path) -> None:
    everything = names_in_wheel(distributions) | names_in_sdist(distributions)
    assert not {name for name in everything if "instance" in name.split("/")}
    assert not {name for name in everything if name.endswith((".mo", ".db", ".pyc"))}


def test_the_development_lock_holds_every_pin_of_the_run_time_lock() -> None:
    """`./run test` installs the one, `./run` the other, into the same environment."""
    run_time, development = (
        set(PIN.findall((ROOT / name).read_text(encoding="utf-8")))
        for name in ("requirements.lock", "requirements-dev.lock")
    )
    assert run_time
    assert run_time <= development
