"""Ports are free and never handed out twice; and no browser's event loop is left running."""

import asyncio
import socket
from collections.abc import Callable

from tests.rig import ports


def test_a_port_can_be_bound(free_port: Callable[[], int]) -> None:
    with socket.create_server(("127.0.0.1", free_port())) as server:
        assert server.getsockname()[1] < 32_768


def test_no_port_is_given_twice(free_port: Callable[[], int]) -> None:
    given = [free_port() for _ in range(50)]
    assert len(set(given)) == 50


def test_a_port_that_is_taken_is_passed_over(free_port: Callable[[], int]) -> None:
    with socket.create_server(("127.0.0.1", free_port())) as server:
        assert not ports._is_free(server.getsockname()[1])


def test_an_event_loop_can_be_run_after_the_browser_is_closed() -> None:
    async def answer() -> str:
        return "ran"

    assert asyncio.run(answer()) == "ran"
