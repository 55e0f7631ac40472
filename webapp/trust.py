"""Which certificates are trusted: certifi's, the environment's and the operator's, in one file.

Libraries differ in what they read; one file for all of them leaves no room for surprises.
"""

import os
from pathlib import Path

import certifi

from webapp.config import Settings, environment_certificates


def bundle(settings: Settings) -> Path:
    """The joined file under `instance/`, written anew when a part of it changed."""
    parts = [Path(certifi.where()), *environment_certificates()]
    if settings.ca_bundle is not None:
        parts.append(settings.ca_bundle)
    joined = b"\n".join(part.read_bytes() for part in dict.fromkeys(parts) if part.is_file())
    target = settings.instance / "trusted.pem"
    if not target.exists() or target.read_bytes() != joined:
        fresh = target.with_suffix(f".{os.getpid()}")
        fresh.write_bytes(joined)
        fresh.replace(target)
    return target
