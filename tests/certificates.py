"""Certificates for servers of tests, in the files that a `ServerCertificate` reads."""

from __future__ import annotations

import ssl
from pathlib import Path

import trustme

NAME = "stun.test"


def write_certificate(authority: trustme.CA, directory: Path, *names: str) -> tuple[Path, Path]:
    """A new certificate, for `NAME` unless others are given, and its key, in the same two files each time."""
    issued = authority.issue_cert(*(names or (NAME,)))
    certificate, key = directory / "cert.pem", directory / "key.pem"
    certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    key.touch(mode=0o600)
    key.write_bytes(issued.private_key_pem.bytes())
    return certificate, key


def trust_in(authority: trustme.CA) -> ssl.SSLContext:
    """What a client takes the authority's certificates with."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context
