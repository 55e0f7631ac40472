"""Ports for servers that cannot start on port 0 and report back."""

import os
import random
import socket
from collections.abc import Iterator

# Below the range from which Linux picks the source ports of outgoing connections: a port from there
# could be taken by any client between our choice and the server's bind.
_LOWEST, _BEYOND = 20_000, 32_000


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nobody listens on, and never the same one twice in a process."""
    for port in _candidates:
        if _is_free(port):
            return port
    raise RuntimeError("no free port left for the tests")


def _candidates_for_this_process() -> Iterator[int]:
    ports = list(range(_LOWEST, _BEYOND))
    random.Random(os.getpid()).shuffle(ports)  # parallel workers rarely try the same ones
    yield from ports


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


_candidates = _candidates_for_this_process()
