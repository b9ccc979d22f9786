"""Certificates for a server of a cell: a good one, and one for each way in which TLS can be wrong."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

NAME = "w1.elevate.invalid"  # no name server knows it
CERTIFICATES = {
    "good": ("localhost", 1),  # and for NAME
    "expired": ("localhost", -1),
    "of another host": ("other.invalid", 1),
    "self-signed": ("localhost", 1),
}
"""The host of each, and for how many days it is valid. ``authorities.pem`` has all but the self-signed one."""


def make_certificates(folder: Path) -> ssl.SSLContext:
    """Write all of them to *folder*, with their keys, and return a server's TLS with the good one."""
    with (folder / "authorities.pem").open("ab") as trusted:
        for name, (host, days) in CERTIFICATES.items():
            key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
            subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host)])
            made = x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
            made = made.not_valid_before(now - timedelta(days=9)).not_valid_after(now + timedelta(days=days))
            made = made.add_extension(
                x509.SubjectAlternativeName([x509.DNSName(host), x509.DNSName(NAME)]), critical=False
            )
            pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
            private = key.private_bytes(pem, form, serialization.NoEncryption())
            public = made.sign(key, hashes.SHA256()).public_bytes(pem)
            (folder / f"{name}.pem").write_bytes(public + private)
            trusted.write(public if name != "self-signed" else b"")
    return present(folder, "good")


def present(folder: Path, name: str) -> ssl.SSLContext:
    """Return a server's TLS with the certificate *name*."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(folder / f"{name}.pem")
    return made
