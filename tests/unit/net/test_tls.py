"""A certificate and its key: what is taken, what is refused in one line, what reading it again changes."""

from __future__ import annotations

import ssl
from contextlib import suppress
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives import serialization as form

from nattools.errors import DecodeError
from nattools.net.tls import ServerCertificate
from tests.certificates import trust_in, write_certificate


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def name_shown(server: ssl.SSLContext, authority: trustme.CA) -> str:
    """Shake hands in memory, and read the name in the certificate."""
    trusting = trust_in(authority)
    trusting.check_hostname = False
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = trusting.wrap_bio(to_client, to_server)
    other = server.wrap_bio(to_server, to_client, server_side=True)
    for end in (client, other, client, other):
        with suppress(ssl.SSLWantReadError):
            end.do_handshake()
    certificate = client.getpeercert()
    assert certificate is not None
    assert client.compression() is None
    assert client.version() == "TLSv1.3"
    return str(certificate["subjectAltName"][0][1])


def test_old_versions_compression_and_renegotiation_are_off(authority: trustme.CA, tmp_path: Path) -> None:
    context = ServerCertificate(*write_certificate(authority, tmp_path)).context
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
    for option in (ssl.OP_NO_COMPRESSION, ssl.OP_NO_RENEGOTIATION):
        assert context.options & option
    assert context.verify_mode is ssl.CERT_NONE  # clients have none


def test_what_is_read_again_is_shown_by_the_same_context(authority: trustme.CA, tmp_path: Path) -> None:
    certificate = ServerCertificate(*write_certificate(authority, tmp_path))
    assert name_shown(certificate.context, authority) == "stun.test"
    write_certificate(authority, tmp_path, "new.test")
    certificate.reload()
    assert name_shown(certificate.context, authority) == "new.test"


@pytest.mark.parametrize("wrong", ["key of another", "no certificate", "nothing"])
def test_what_is_wrong_later_leaves_what_was_there(authority: trustme.CA, tmp_path: Path, wrong: str) -> None:
    certificate = ServerCertificate(*write_certificate(authority, tmp_path))
    old_key = certificate.key.read_bytes()
    write_certificate(authority, tmp_path, "new.test")
    if wrong == "key of another":
        certificate.key.write_bytes(old_key)
    elif wrong == "no certificate":
        certificate.certificate.write_bytes(b"")
    else:
        certificate.key.unlink()
    with pytest.raises(DecodeError):
        certificate.reload()
    assert name_shown(certificate.context, authority) == "stun.test"


def test_each_thing_wrong_is_one_line_that_names_the_file(authority: trustme.CA, tmp_path: Path) -> None:
    certificate, key = write_certificate(authority, tmp_path)
    (tmp_path / "other").mkdir()
    _, other_key = write_certificate(authority, tmp_path / "other")
    junk = tmp_path / "junk.pem"
    junk.write_bytes(b"\xff\0\n")
    for pair, expected in {
        (tmp_path / "none", key): "none: there is no such certificate",
        (certificate, tmp_path / "none"): "none: there is no such key",
        (tmp_path, key): "the certificate cannot be read",
        (certificate, other_key): "cannot be used: KEY_VALUES_MISMATCH",
        (certificate, junk): f"the certificate {certificate} and the key {junk} cannot be used",
        (junk, key): "both are PEM files",
        (tmp_path / "a\0b", key): "the certificate cannot be read",
    }.items():
        with pytest.raises(DecodeError) as caught:
            ServerCertificate(*pair)
        assert expected in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_key_with_a_password_is_refused_and_nobody_is_asked_for_it(
    authority: trustme.CA, tmp_path: Path
) -> None:
    certificate, key = write_certificate(authority, tmp_path)
    private = form.load_pem_private_key(key.read_bytes(), None)
    locked = form.BestAvailableEncryption(b"secret")
    key.write_bytes(private.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, locked))
    with pytest.raises(DecodeError, match="the key without a password"):
        ServerCertificate(certificate, key)
