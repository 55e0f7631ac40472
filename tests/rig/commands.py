"""`postroom` commands run inside this process: what a process of its own says, at a tenth of the
time that its start takes."""

import contextlib
import io
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from unittest import mock

from webapp.cli import main


@dataclass(frozen=True, kw_only=True)
class Done:
    """How a command ended."""

    returncode: int
    stdout: bytes
    stderr: bytes


def run_here(arguments: Sequence[str], environment: Mapping[str, str], stdin: bytes = b"") -> Done:
    """Run one command with exactly this environment."""
    said, complained = io.BytesIO(), io.BytesIO()
    code: object = 0
    with (
        mock.patch.dict(os.environ, environment, clear=True),
        mock.patch.object(sys, "argv", ["postroom", *arguments]),
        mock.patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin))),
        contextlib.redirect_stdout(io.TextIOWrapper(said, write_through=True)) as out,
        contextlib.redirect_stderr(io.TextIOWrapper(complained, write_through=True)) as errors,
    ):
        try:
            main()
        except SystemExit as ended:
            code = ended.code
        finally:
            out.detach()
            errors.detach()
    assert isinstance(code, int)
    return Done(returncode=code, stdout=said.getvalue(), stderr=complained.getvalue())
