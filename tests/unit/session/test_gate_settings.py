"""The settings of natgate: what may be said, what is said of the rest, and what belongs together."""

from __future__ import annotations

from dataclasses import fields, replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from nattools.binding.model import Method
from nattools.endpoint import Endpoint
from nattools.errors import DecodeError
from nattools.session.nat_tests import ContactFix, NatTest
from nattools.session.settings import (
    EVERY_ADDRESS,
    WORDS,
    EngineName,
    GateMode,
    GateSettings,
    IceHandling,
    ListenAddress,
    PingKind,
    parse_listen,
)
from nattools.words import LogForm

EVERYTHING = """
listen = ["203.0.113.5", "udp:[2001:db8::1]:5070", "tls:203.0.113.5:5061"]
advertise = "198.51.100.7"
certificate = "cert.pem"
key = "key.pem"
domains = ["SIP.example.org.", "example.org"]
registrar = true
users = "users.toml"
realm = "the office"
store = "sqlite:natgate.db"
strangers = true
nat_tests = 515
contact_fix = "rewrite"
engine = "kernel"
rtp_ports = "31000-32000"
rtpengine = "127.0.0.1:2224"
ice = "pass"
media_timeout_s = 30
hold_timeout_s = 900.5
keepalive = "crlf"
keepalive_s = 20
dead_after = 5
least_expires_s = 30
default_expires_s = 600
most_expires_s = 900
contacts_per_user = 3
users_per_source = 40
most_calls = 100
calls_per_user = 2
calls_per_source = 10
requests_per_second = 12.5
most_message_bytes = 8192
most_connections = 50
connections_per_source = 5
scanners = ["friendly-scanner"]
metrics = "127.0.0.1:9060"
status = "natgate.sock"
log = "json"
drain_s = 0
"""


def test_every_word_of_a_file_is_read() -> None:
    settings = GateSettings.parse(EVERYTHING)
    assert settings.listen == (
        ListenAddress("UDP", Endpoint.of("203.0.113.5", 5060)),
        ListenAddress("TCP", Endpoint.of("203.0.113.5", 5060)),
        ListenAddress("UDP", Endpoint.of("2001:db8::1", 5070)),
        ListenAddress("TLS", Endpoint.of("203.0.113.5", 5061)),
    )
    assert settings.advertise == ip_address("198.51.100.7")
    assert (settings.certificate, settings.key) == (Path("cert.pem"), Path("key.pem"))
    assert settings.domains == ("sip.example.org", "example.org")
    assert settings.mode is GateMode.REGISTRAR
    assert settings.users == Path("users.toml")
    assert settings.nat_tests is NatTest.CONTACT_INSIDE | NatTest.RECEIVED_DIFFERS | NatTest.TARGET_INSIDE
    assert settings.contact_fix is ContactFix.REWRITE
    assert settings.engine is EngineName.KERNEL
    assert settings.rtp_ports == (31000, 32000)
    assert settings.rtpengine == Endpoint.of("127.0.0.1", 2224)
    assert settings.ice is IceHandling.PASS
    assert (settings.media_timeout_s, settings.hold_timeout_s) == (30, 900.5)
    assert (settings.keepalive, settings.keepalive_s, settings.dead_after) == (PingKind.CRLF, 20, 5)
    assert settings.registrations.users_per_source == 40
    assert settings.registrations.least_expires_s == 30
    assert settings.metrics == Endpoint.of("127.0.0.1", 9060)
    assert settings.log is LogForm.JSON
    assert settings.drain_s == 0
    assert settings == replace(settings)


def test_an_alg_has_the_words_of_bindings_in_a_table() -> None:
    settings = GateSettings.parse(
        'alg = true\noutside = "192.168.0.7:5062"\n[binding]\nmethods = ["stun"]\nstun.servers = "192.0.2.9"'
    )
    assert settings.mode is GateMode.ALG
    assert settings.outside == Endpoint.of("192.168.0.7", 5062)
    assert settings.binding.methods == (Method.STUN,)
    assert settings.binding.stun_servers == ("192.0.2.9",)


def test_each_setting_has_a_word_and_a_default() -> None:
    assert {field.name for field in fields(GateSettings)} == set(WORDS)
    assert GateSettings().listen == EVERY_ADDRESS == GateSettings(listen=()).listen
    assert {str(address) for address in EVERY_ADDRESS} == {
        "udp:0.0.0.0:5060",
        "tcp:0.0.0.0:5060",
        "udp:[::]:5060",
        "tcp:[::]:5060",
    }


def test_each_word_is_in_the_documentation() -> None:
    text = (Path(__file__).parents[3] / "docs" / "natgate.md").read_text(encoding="utf-8")
    table = "".join(line.split("|")[1] for line in text.splitlines() if line.startswith("| `"))
    assert [word for word in WORDS if f"`{word}`" not in table and f"`[{word}]`" not in table] == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("203.0.113.5", ["udp:203.0.113.5:5060", "tcp:203.0.113.5:5060"]),
        ("203.0.113.5:0", ["udp:203.0.113.5:0", "tcp:203.0.113.5:0"]),
        ("2001:db8::1", ["udp:[2001:db8::1]:5060", "tcp:[2001:db8::1]:5060"]),
        ("tcp:[2001:db8::1]:5070", ["tcp:[2001:db8::1]:5070"]),
        (" TLS:203.0.113.5 ", ["tls:203.0.113.5:5061"]),
        ("udp:203.0.113.5", ["udp:203.0.113.5:5060"]),
    ],
)
def test_an_address_to_listen_on_is_for_udp_and_tcp_unless_it_says_otherwise(
    text: str, expected: list[str]
) -> None:
    assert [str(address) for address in parse_listen(text)] == expected


def test_a_certificate_brings_tls_on_the_same_addresses() -> None:
    settings = GateSettings.of(
        {"certificate": "c", "key": "k", "listen": ["127.0.0.1:5070", "udp:127.0.0.2"]}
    )
    assert [str(address) for address in settings.listen] == [
        "udp:127.0.0.1:5070",
        "tcp:127.0.0.1:5070",
        "udp:127.0.0.2:5060",
        "tls:127.0.0.1:5061",
        "tls:127.0.0.2:5061",
    ]
    assert replace(settings, realm="x").listen == settings.listen


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("listen = ['host.example.org']", "not an IP address"),
        ("listen = ['sctp:203.0.113.5']", "expected a list of addresses"),
        ("listen = ['203.0.113.5', 'udp:203.0.113.5:5060']", "twice"),
        ("listen = ['tls:203.0.113.5']", "without a certificate"),
        ("listen = 5060", "expected a list of addresses"),
        ("certificate = 'c'", "belong together"),
        ("advertise = '0.0.0.0'", "nobody can be told"),
        ("advertise = '2001:db8::1'\nlisten = ['203.0.113.5']", "another IP version"),
        ("advertise = 'host.example.org'", "an IP address"),
        ("domains = ['example.org:5060']", "a host name alone"),
        ("domains = ['a b']", "cannot|not a URI|a list of host names"),
        ("upstream = 'pbx.example.org'", "sip:pbx.example.org"),
        ("upstream = 'sip:alice@pbx.example.org'", "without a user"),
        ("upstream = 'sip:pbx.example.org;transport=sctp'", "udp, tcp or tls"),
        ("upstream = 'sip:pbx.example.org;lr'", "no parameter but transport"),
        ("upstream = 'tel:+4930123456'", "scheme"),
        ("upstream = 'sips:pbx.example.org'", "certificate"),
        ("upstream = 'sip:pbx.example.org;transport=TLS'", "certificate"),
        ("upstream = 'sip:a'\nregistrar = true", "exclude each other"),
        ("alg = true\nregistrar = true", "exclude each other"),
        ("alg = true\nengine = 'rtpengine'", "exclude each other"),
        ("upstream = 'sip:a'\nusers = 'u'", "those of registrar"),
        ("registrar = 'yes'", "true or false"),
        ("store = 'mysql:x'", "memory, sqlite:PATH, redis:"),
        ("store = 'sqlite:'", "memory, sqlite:PATH, redis:"),
        ("engine = 'kernle'", "did you mean kernel"),
        ("engine = 'xyz'", "one of sockets, kernel, rtpengine"),
        ("engine = true", "one of sockets, kernel, rtpengine"),
        ("rtp_ports = '40000-30000'", "the lower port comes first"),
        ("rtp_ports = '40000-40002'", "two even ports from 1024 on"),
        ("rtp_ports = '80-90'", "1024"),
        ("rtp_ports = '30001-30001'", "even port"),
        ("rtp_ports = [30000]", "a range of ports"),
        ("rtpengine = '0.0.0.0:2223'", "nothing can be sent"),
        ("media_timeout_s = 0.5", "1 or more"),
        ("media_timeout_s = inf", "1 or more"),
        ("keepalive_s = true", "1 or more"),
        ("dead_after = 0", "1 or more"),
        ("least_expires_s = 4000", "least <= default <= most"),
        ("nat_tests = 1024", "a sum of the numbers 1, 2, 4 ... 512"),
        ('contact_fix = "alais"', "did you mean alias"),
        ("most_message_bytes = 100", "1024 to 65535"),
        ("scanners = ['']", "a list of words"),
        ("metrics = '127.0.0.1'", "has no port"),
        ('realm = "a\\nb"', "expected text"),
        ("binding = 'stun'", "a table"),
        ("[binding]\nmethod = ['stun']", "did you mean methods"),
        ("upstrem = 'sip:a'", "did you mean upstream"),
        ("rtp-ports = '30000-40000'", "did you mean rtp_ports"),
        ("zzz = 1", "known are listen"),
        ("listen = ", "not TOML"),
        ("listen = " + "[" * 100_000, "not TOML"),
    ],
)
def test_what_is_wrong_is_named_and_what_is_right_is_shown(text: str, said: str) -> None:
    with pytest.raises(DecodeError, match=said):
        GateSettings.parse(text)


def test_a_password_in_a_store_is_not_shown() -> None:
    with pytest.raises(DecodeError) as caught:
        GateSettings(store="redsi://user:hunter2@host")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "mode"),
    [
        ({"registrar": True, "users": "u"}, GateMode.REGISTRAR),
        ({"alg": True, "users": "u"}, GateMode.ALG),
        ({"upstream": "sip:pbx.example.org:5070;transport=tcp"}, GateMode.UPSTREAM),
        ({"alg": True}, GateMode.ALG),
        ({"alg": True, "upstream": "sip:pbx.example.org"}, GateMode.ALG),
    ],
)
def test_what_it_is_follows_from_what_is_said(words: dict[str, object], mode: GateMode) -> None:
    assert GateSettings.of(words).mode is mode


@pytest.mark.parametrize(("words", "said"), [({}, "--upstream"), ({"registrar": True}, "--users FILE")])
def test_what_is_not_said_is_asked_for_when_it_is_needed(words: dict[str, object], said: str) -> None:
    settings = GateSettings.of(words)
    with pytest.raises(DecodeError, match=said):
        _ = settings.mode
