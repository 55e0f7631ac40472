"""Waking the delivery worker: a datagram to a socket in `instance/`; a lost one costs a second."""

import hashlib
import os
import socket
import tempfile
from contextlib import suppress
from pathlib import Path


def socket_path(instance: Path) -> Path:
    """Where the worker listens. A socket's path may have 107 bytes; a longer one moves to /tmp."""
    path = instance / "deliver.sock"
    if len(os.fsencode(path)) <= 100:
        return path
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:24]
    return Path(tempfile.gettempdir()) / f"postroom-{os.getuid()}-{digest}.sock"


class Waker:
    """Tells the worker on this host that there is something to do."""

    def __init__(self, instance: Path) -> None:
        self._path = str(socket_path(instance))
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)

    def wake(self) -> None:
        """Never blocks, never fails: the worker also looks by itself every second."""
        with suppress(OSError):
            self._socket.sendto(b"1", self._path)

    def close(self) -> None:
        """Give the socket back."""
        self._socket.close()


class Listener:
    """The worker's end."""

    def __init__(self, instance: Path) -> None:
        path = socket_path(instance)
        with suppress(FileNotFoundError):
            path.unlink()
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        os.chmod(path, 0o600)

    def wait(self) -> None:
        """Block until woken, and swallow the wake-ups that came together."""
        if not self.socket.recv(16):
            raise OSError("closed")
        with suppress(BlockingIOError, TimeoutError):
            while self.socket.recv(16, socket.MSG_DONTWAIT):
                pass

    def close(self) -> None:
        """Close; a `wait` under way ends with OSError."""
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
