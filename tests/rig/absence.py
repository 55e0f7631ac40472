"""What a test does when something outside Python is not on this machine."""

import os
from typing import NoReturn

import pytest


def on_ci() -> bool:
    return os.environ.get("CI", "").lower() not in ("", "0", "false")


def absent(what: str, *, remedy: str, required: bool) -> NoReturn:
    """Skip the test and name the command that would help; where it is required, fail instead."""
    message = f"{what}: {remedy}"
    if required:
        pytest.fail(message, pytrace=False)
    pytest.skip(message)
