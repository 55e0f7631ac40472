"""The supervisor: runs the three parts as children, restarts what dies, stops them in order.

Children are forked after everything is imported and before anything is opened: they start at once
and share memory. Each lives in a session of its own and holds the end of a pipe; when the
supervisor is gone, however it went, the pipe closes and the child stops by itself.
"""

import gc
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import FrameType

import structlog

log = structlog.get_logger(__name__)

DRAIN_SECONDS = 40.0
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 30.0
STEADY_SECONDS = 60.0
"""A child that lived this long starts again without a pause."""

HANDLED = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}


@dataclass
class Child:
    """One part and the process that runs it now."""

    name: str
    run: Callable[[], None]
    pid: int = 0
    started: float = 0.0
    pause: float = 0.0
    due: float = 0.0


class Supervisor:
    """Runs the parts until SIGTERM or SIGINT."""

    def __init__(self, parts: Mapping[str, Callable[[], None]]) -> None:
        self._children = [Child(name, run) for name, run in parts.items()]
        self._read, self._write = os.pipe()

    def run(self) -> int:
        """Returns the exit code: 0 after an orderly stop, 1 when a child had to be killed."""
        signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
        gc.freeze()
        while True:
            self._start_due()
            received = signal.sigtimedwait(HANDLED, self._patience())
            self._reap()
            if received is not None and received.si_signo in {signal.SIGTERM, signal.SIGINT}:
                return self._stop()

    def _patience(self) -> float:
        waiting = [child.due - time.monotonic() for child in self._children if not child.pid]
        return max(0.0, min(waiting, default=3600.0))

    def _start_due(self) -> None:
        for child in self._children:
            if not child.pid and child.due <= time.monotonic():
                self._start(child)

    def _start(self, child: Child) -> None:
        child.started = time.monotonic()
        pid = os.fork()
        if pid == 0:
            self._become(child)
        child.pid = pid
        log.info("part started", part=child.name, pid=pid)

    def _become(self, child: Child) -> None:
        """In the child: never returns."""
        code = 70
        try:
            os.setsid()
            os.close(self._write)
            for number in HANDLED:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
            follow_parent(self._read)
            child.run()
            code = 0
        except SystemExit as leaving:
            code = leaving.code if isinstance(leaving.code, int) else 1
        except Exception:  # the edge of the process: log it, and let the supervisor restart it
            log.exception("part ended by an error", part=child.name)
        finally:
            # Without the interpreter's own shutdown: it would wait for threads on the network.
            os._exit(code)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for child in self._children:
                if child.pid == pid:
                    self._note_end(child, status)

    def _note_end(self, child: Child, status: int) -> None:
        child.pid = 0
        lived = time.monotonic() - child.started
        doubled = min(LONGEST_PAUSE, child.pause * 2) if child.pause else FIRST_PAUSE
        child.pause = FIRST_PAUSE if lived > STEADY_SECONDS else doubled
        child.due = time.monotonic() + child.pause
        code = os.waitstatus_to_exitcode(status)
        log.warning("part ended, starting it again", part=child.name, code=code)

    def _stop(self) -> int:
        """Tell everybody, wait for them, and end by force what does not listen."""
        log.info("stopping")
        running = [child for child in self._children if child.pid]
        for child in running:
            os.kill(child.pid, signal.SIGTERM)
        until = time.monotonic() + DRAIN_SECONDS
        while any(child.pid for child in running) and time.monotonic() < until:
            signal.sigtimedwait({signal.SIGCHLD}, 0.5)
            for child in running:
                if child.pid and os.waitpid(child.pid, os.WNOHANG)[0]:
                    child.pid = 0
        stubborn = [child for child in running if child.pid]
        for child in stubborn:
            log.warning("part did not stop in time", part=child.name)
            os.kill(child.pid, signal.SIGKILL)
            os.waitpid(child.pid, 0)
        return 1 if stubborn else 0


def follow_parent(descriptor: int) -> None:
    """Ask this process to stop once nobody holds the other end of the pipe any more."""

    def wait() -> None:
        os.read(descriptor, 1)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(DRAIN_SECONDS)
        os._exit(1)

    threading.Thread(target=wait, name="parent", daemon=True).start()


def on_stop(action: Callable[[], None]) -> None:
    """Call `action` on SIGTERM and SIGINT."""

    def handle(number: int, frame: FrameType | None) -> None:
        action()

    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGINT, handle)
