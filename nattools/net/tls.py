"""A server's certificate, in files that may change while it runs."""

from __future__ import annotations

import ssl
from pathlib import Path

from nattools.errors import DecodeError
from nattools.files import read_bytes


class ServerCertificate:
    """A certificate with its key, and the TLS of the servers that show it."""

    def __init__(self, certificate: Path, key: Path) -> None:
        """Read both PEM files. Raises `DecodeError` for what is none, or a key of another certificate."""
        self.certificate = certificate
        self.key = key
        self.context = self._read()
        """For connections that are accepted: TLS 1.2 or later, without compression or renegotiation."""

    def reload(self) -> None:
        """Read both again, for connections that are still to come.

        Raises `DecodeError` as at the first time; then what was read before stays.
        """
        self._read()  # on trial: of a pair that does not match, one would be kept
        self._load(self.context)

    def _read(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_2  # Debian's Python has it in a file of OpenSSL
        context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
        self._load(context)
        return context

    def _load(self, context: ssl.SSLContext) -> None:
        for path, what in ((self.certificate, "certificate"), (self.key, "key")):
            read_bytes(path, what)  # OpenSSL does not say which of them is missing
        try:
            context.load_cert_chain(self.certificate, self.key, password="")  # never ask on the terminal
        except OSError as error:  # `ssl.SSLError` is one
            reason = getattr(error, "reason", None) or error.strerror or error
            raise DecodeError(
                f"the certificate {self.certificate} and the key {self.key} cannot be used: {reason}; both"
                " are PEM files, the key without a password and of that certificate"
            ) from error
