"""What the sandbox keeps on disk: a throw-away CA and certificate, the signing key, its memory.

The key of the CA is forgotten as soon as the one certificate is signed: nobody can make another.
"""

import ipaddress
import json
import os
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

LASTS = timedelta(days=30)
RENEWED_BEFORE = timedelta(days=7)


class Folder:
    """The files of one sandbox; made when they are missing."""

    def __init__(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.ca = path / "ca.pem"
        self._server = path / "server.pem"
        self._signing = path / "signing-key.pem"
        self._memory = path / "memory.json"

    def tls(self) -> ssl.SSLContext:
        """A server's context. The CA stays the same while it is good for another week."""
        if not self._is_good():
            self._make_certificates()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._server)
        return context

    def _is_good(self) -> bool:
        try:
            ca = x509.load_pem_x509_certificate(self.ca.read_bytes())
            self._server.read_bytes()
        except (OSError, ValueError):
            return False
        return ca.not_valid_after_utc - datetime.now(UTC) > RENEWED_BEFORE

    def _make_certificates(self) -> None:
        now = datetime.now(UTC)
        ca_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
        ca_name = _name(f"Postroom sandbox {now:%Y-%m-%d %H:%M}, not Microsoft")
        ca = _certificate(ca_name, ca_name, ca_key, ca_key, now, is_ca=True)
        leaf = _certificate(_name("localhost"), ca_name, key, ca_key, now, is_ca=False)
        _write(self._server, _pem(key) + leaf.public_bytes(serialization.Encoding.PEM))
        _write(self.ca, ca.public_bytes(serialization.Encoding.PEM))

    def signing_key(self) -> rsa.RSAPrivateKey:
        """The key that signs tokens; the same after a restart."""
        if not self._signing.exists():
            _write(self._signing, _pem(rsa.generate_private_key(65537, 2048)))
        key = serialization.load_pem_private_key(self._signing.read_bytes(), password=None)
        assert isinstance(key, rsa.RSAPrivateKey)
        return key

    def read_memory(self) -> dict[str, Any]:
        """What the last run knew; empty at first."""
        if not self._memory.exists():
            return {}
        found: dict[str, Any] = json.loads(self._memory.read_text(encoding="utf-8"))
        return found

    def write_memory(self, memory: dict[str, Any]) -> None:
        """Replace what is known."""
        _write(self._memory, json.dumps(memory, ensure_ascii=False).encode())


def _write(path: Path, content: bytes) -> None:
    fresh = path.with_name(f"{path.name}.new")
    with open(fresh, "wb", opener=_private) as file:
        file.write(content)
    fresh.replace(path)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _certificate(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    signer: ec.EllipticCurvePrivateKey,
    now: datetime,
    *,
    is_ca: bool,
) -> x509.Certificate:
    """Extensions as strict verifiers (Python 3.13 and later) want them."""
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + LASTS)
        .add_extension(
            x509.BasicConstraints(ca=is_ca, path_length=0 if is_ca else None), critical=True
        )
        .add_extension(_usage(is_ca=is_ca), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
    )
    if not is_ca:
        names = [
            x509.DNSName("localhost"),
            x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
            x509.IPAddress(ipaddress.ip_address("::1")),
        ]
        builder = builder.add_extension(
            x509.SubjectAlternativeName(names), critical=False
        ).add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    return builder.sign(signer, hashes.SHA256())


def _usage(*, is_ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_ca,
        key_cert_sign=is_ca,
        crl_sign=is_ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
