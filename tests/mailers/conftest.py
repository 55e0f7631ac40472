"""Certificates for servers on loopback."""

import ssl
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme


@dataclass(frozen=True, kw_only=True)
class Trust:
    """A CA in a file, a server with its certificate, and one that calls itself something else."""

    ca_file: str
    server: ssl.SSLContext
    elsewhere: ssl.SSLContext


@pytest.fixture(scope="session")
def trust(tmp_path_factory: pytest.TempPathFactory) -> Trust:
    ca = trustme.CA()
    path: Path = tmp_path_factory.mktemp("trust") / "ca.pem"
    ca.cert_pem.write_to_path(path)
    return Trust(
        ca_file=str(path),
        server=_context(ca, "127.0.0.1", "localhost"),
        elsewhere=_context(ca, "elsewhere.example"),
    )


def _context(ca: trustme.CA, *names: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert(*names).configure_cert(context)
    return context
