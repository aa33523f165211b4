"""`stund` over TLS as its operator sees it: certificate, shared secrets, limits on connections."""

from __future__ import annotations

import signal
import socket
import ssl
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
import trustme

from nattools.cli import stund
from nattools.cli.stund_equipment import Equipment
from nattools.endpoint import Endpoint
from nattools.stun.connections import ConnectionLimits
from nattools.stun.settings import StundSettings
from tests.certificates import NAME, trust_in, write_certificate
from tests.fakes.classic_phone import ClassicPhone
from tests.ports import free_ports
from tests.unit.cli.test_stund import BINDING, TIME_LIMIT_S, finished, running, start_line

CLIENT = Endpoint.of("203.0.113.7", 40_000)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def connect(port: int, authority: trustme.CA, name: str = NAME) -> ssl.SSLSocket:
    plain = socket.create_connection(("127.0.0.1", port), TIME_LIMIT_S)
    return trust_in(authority).wrap_socket(plain, server_hostname=name)


def ask(connection: socket.socket) -> bytes:
    connection.sendall(BINDING)
    return connection.recv(2048)


@pytest.mark.skipif(sys.platform != "linux", reason="several workers need Linux")
def test_all_workers_show_the_certificate_read_it_again_and_know_each_others_secrets(
    authority: trustme.CA, tmp_path: Path
) -> None:
    certificate, key = write_certificate(authority, tmp_path)
    port, tls_port = free_ports(2)
    ports = ("--port", str(port), "--tls-port", str(tls_port))
    tls = ("--certificate", str(certificate), "--key", str(key), "--shared-secrets")
    with running("127.0.0.1", *ports, *tls, "--workers", "2") as process:
        expected = f"; TLS on port {tls_port} of each address, where shared secrets are handed out; "
        assert expected in start_line(process)
        phone = ClassicPhone(("127.0.0.1", port), trust_in(authority), NAME)
        username, password = phone.fetch_secret()
        # whichever worker has made it: all ten sockets are one's by chance once in 512 times
        assert [phone.ask(username, password) for _ in range(10)] == [0] * 10
        with closing(connect(tls_port, authority)) as before:
            assert len(ask(before)) == 44
            write_certificate(authority, tmp_path, "new.test")
            process.send_signal(signal.SIGHUP)
            assert start_line(process) == "stund: the settings were read again\n"
            shown = 0
            deadline = time.monotonic() + TIME_LIMIT_S
            while shown < 10:  # in a row: the workers hear of it a moment later
                assert time.monotonic() < deadline
                try:
                    with closing(connect(tls_port, authority, "new.test")) as after:
                        assert len(ask(after)) == 44
                    shown += 1
                except ssl.SSLCertVerificationError:
                    shown = 0
                    time.sleep(0.2)
            key.write_text("no key")
            process.send_signal(signal.SIGHUP)
            assert start_line(process).startswith("stund: all stays as it was: the certificate ")
            assert len(ask(before)) == 44
        process.terminate()
        code, _, err = finished(process)
        assert code == 0
        assert "stund: stopped: " in err


CERTIFICATE = ("--certificate", "cert.pem", "--key", "key.pem")


@pytest.mark.parametrize(
    ("text", "arguments", "complaint"),
    [
        ("", CERTIFICATE[:2], "certificate and key belong together"),
        ("", CERTIFICATE[2:], "certificate and key belong together"),
        ("", ("--certificate", "none.pem", "--key", "key.pem"), "none.pem: there is no such certificate"),
        ("", ("--certificate", "key.pem", "--key", "key.pem"), "the certificate key.pem and the key key.pem"),
        ("", ("--shared-secrets",), "shared_secrets is for TLS, which wants a certificate"),
        ("", ("--tls-port", "5349"), "tls_port is for TLS, which wants a certificate"),
        ("", (*CERTIFICATE, "--tls-port", "0"), "0 is not in the range"),
        ("", (*CERTIFICATE, "--tls-port", "3478"), "tls_port 3478 is a port of STUN as it is, too"),
        ('certificate = "cert.pem"', (), "certificate and key belong together"),
        ("idle_s = 0", (), "idle_s = 0: expected seconds, 1 or more"),
        ("idle_s = inf", (), "idle_s = inf"),
        ("most_connections = 0", (), "most_connections = 0: expected how many, 1 to 1000000"),
        ('connections_per_source = "3"', (), "connections_per_source = '3'"),
        ("connection_per_source = 3", (), "did you mean connections_per_source?"),
    ],
)
def test_what_is_wrong_is_one_line(
    text: str,
    arguments: tuple[str, ...],
    complaint: str,
    authority: trustme.CA,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_certificate(authority, tmp_path)
    (tmp_path / "stund.toml").write_text(text)
    with pytest.raises(SystemExit) as raised:
        stund.main(["--config", "stund.toml", *arguments, "--check-config"])
    captured = capsys.readouterr()
    assert (raised.value.code, captured.out) == (2, "")
    assert captured.err.count("\n") == 1
    assert complaint in captured.err


def test_paths_in_a_file_are_relative_to_it_and_what_is_good_is_said(
    authority: trustme.CA, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_certificate(authority, tmp_path)
    config = tmp_path / "stund.toml"
    config.write_text('addresses = ["127.0.0.1"]\ncertificate = "cert.pem"\nkey = "key.pem"\n')
    stund.main(["--config", str(config), "--check-config"])
    captured = capsys.readouterr()
    assert captured.out == "the settings are good: 127.0.0.1:3478; TLS on port 5349 of each address\n"
    assert captured.err == ""
    (tmp_path / "key.pem").chmod(0o644)
    stund.main(["--config", str(config), "--check-config"])
    assert "key.pem: other users of this machine can read the secrets in it" in capsys.readouterr().err


def test_the_limits_on_connections_are_settings() -> None:
    settings = StundSettings.parse("most_connections = 9\nconnections_per_source = 3\nidle_s = 2.5\n")
    assert settings.connection_limits == ConnectionLimits(9, 3, 2.5)
    assert StundSettings().connection_limits == ConnectionLimits()


def test_two_machines_hand_out_what_both_know(authority: trustme.CA, tmp_path: Path) -> None:
    certificate, key = write_certificate(authority, tmp_path)
    peer_key = tmp_path / "peer.key"
    peer_key.touch(mode=0o600)
    peer_key.write_text("sixteen bytes it is, and more\n")

    def equipment(own: str, other: str) -> Equipment:
        words = {"certificate": certificate, "key": key, "shared_secrets": True, "peer_key": peer_key}
        return Equipment.of(StundSettings.of({**words, "addresses": [own], "peers": [other]}))

    one, two = equipment("192.0.2.1", "192.0.2.2"), equipment("192.0.2.2", "192.0.2.1")
    assert one.secrets is not None
    assert two.secrets is not None
    now = time.monotonic()
    secret = one.secrets.issue(CLIENT, now=now)
    assert two.secrets.knows(secret.username, CLIENT, now=now)


def test_each_start_without_a_peer_has_secrets_of_its_own(authority: trustme.CA, tmp_path: Path) -> None:
    certificate, key = write_certificate(authority, tmp_path)
    settings = StundSettings.of({"certificate": certificate, "key": key, "shared_secrets": True})
    one, two = (Equipment.of(settings).secrets for _ in range(2))
    assert one is not None
    assert two is not None
    now = time.monotonic()
    assert not two.knows(one.issue(CLIENT, now=now).username, CLIENT, now=now)
