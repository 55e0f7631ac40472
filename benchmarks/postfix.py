"""A Postfix of our own to compare with: its folders below /tmp, its own port, no system service.

Its durability is its normal one: each mail is a file, synced before it is answered. What it takes
goes to its discard transport.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from machine import Process, family, free_port

INSTALL = "apt-get install --no-install-recommends postfix"

MAIN = """\
compatibility_level = 3.6
queue_directory = {folder}/spool
data_directory = {folder}/data
command_directory = {commands}
daemon_directory = {daemons}
mail_owner = postfix
setgid_group = postdrop
myhostname = bench.example
mydestination =
mynetworks = 127.0.0.0/8
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
smtpd_relay_restrictions = permit_mynetworks, reject
default_transport = discard:
local_transport = discard:
alias_maps =
alias_database =
maillog_file =
"""

HELD = "smtpd_client_restrictions = check_client_access static:HOLD\n"
"""What it takes stays in its queue, as with our delivery worker stopped."""

MASTER = """\
127.0.0.1:{port} inet n - n - 100 smtpd
pickup    unix  n - n 60 1 pickup
cleanup   unix  n - n - 0 cleanup
qmgr      unix  n - n 300 1 qmgr
rewrite   unix  - - n - - trivial-rewrite
bounce    unix  - - n - 0 bounce
defer     unix  - - n - 0 bounce
trace     unix  - - n - 0 bounce
verify    unix  - - n - 1 verify
flush     unix  n - n 1000? 0 flush
proxymap  unix  - - n - - proxymap
showq     unix  n - n - - showq
error     unix  - - n - - error
retry     unix  - - n - - error
discard   unix  - - n - - discard
anvil     unix  - - n - 1 anvil
scache    unix  - - n - 1 scache
"""


@dataclass(frozen=True, kw_only=True)
class Postfix:
    """A running one."""

    address: tuple[str, int]
    process: Process
    version: str


def why_not() -> str:
    """Why Postfix cannot be compared with; empty when it can."""
    if not _postfix():
        return f"not compared: Postfix is not installed ({INSTALL})"
    if os.geteuid() != 0:
        return "not compared: only root can start Postfix"
    return ""


@contextlib.contextmanager
def a_postfix(*, is_held: bool = False) -> Iterator[Postfix]:
    """A running Postfix, delivering or not; everything of it is gone afterwards."""
    command = _postfix()
    daemons, version = _setting("daemon_directory"), _setting("mail_version")
    folder = Path(tempfile.mkdtemp(prefix="postroom-postfix-"))
    folder.chmod(0o755)  # its daemons run as another user
    port = free_port()
    try:
        for name in ("etc", "spool", "data"):
            (folder / name).mkdir()
        shutil.chown(folder / "data", "postfix", "postfix")
        main = MAIN.format(folder=folder, commands=Path(command).parent, daemons=daemons)
        (folder / "etc/main.cf").write_text(main + HELD * is_held)
        (folder / "etc/master.cf").write_text(MASTER.format(port=port))
        process = Process([command, "-c", str(folder / "etc"), "start-fg"], log=folder / "log")
        try:
            process.wait_for_port(("127.0.0.1", port))
            yield Postfix(address=("127.0.0.1", port), process=process, version=version)
        finally:
            _stop(process)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def by_smtp_source(
    address: tuple[str, int], *, sessions: int, mails: int, size: int, is_reused: bool
) -> float | None:
    """Mails a second as Postfix's own load generator finds it; None where that is missing."""
    command = shutil.which("smtp-source", path=_path())
    if command is None:
        return None
    begin = time.monotonic()
    options = ["-d"] if is_reused else []
    options += ["-s", str(sessions), "-m", str(mails), "-l", str(size)]
    options += ["-f", "shop@shop.example", "-t", "kunde@mail.example"]
    place = f"inet:{address[0]}:{address[1]}"
    subprocess.run([command, *options, place], check=True, capture_output=True, timeout=120)
    return mails / (time.monotonic() - begin)


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"


def _postfix() -> str:
    return shutil.which("postfix", path=_path()) or ""


def _setting(name: str) -> str:
    done = subprocess.run(
        ["postconf", "-d", "-h", name],
        env={"PATH": _path()},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def _stop(process: Process) -> None:
    """Its start script does not pass a signal on, so that each process gets its own."""
    pids = family(process.pid)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    until = time.monotonic() + 10
    while any(_lives(pid) for pid in pids[1:]) and time.monotonic() < until:
        time.sleep(0.05)
    process.stop()


def _lives(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()
