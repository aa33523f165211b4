"""What an operator can set for stund, and how it is said that something is wrong."""

from __future__ import annotations

import tomllib
from ipaddress import ip_address
from pathlib import Path

import pytest

from nattools.endpoint import Endpoint, IPAddress
from nattools.errors import DecodeError
from nattools.stun.accounts import LongTermAccounts, ShortTermAccounts
from nattools.stun.limiter import Limits, Rate
from nattools.stun.peer import TwoHosts
from nattools.stun.responder import REFLECTOR_PORTS, ServerAddresses
from nattools.stun.settings import (
    WORDS,
    CredentialKind,
    StundSettings,
    parse_limit,
)
from nattools.words import LogForm

DOCS = Path(__file__).parents[3] / "docs" / "stund.md"
IPV6 = ip_address("2001:db8::1")
ONE, OTHER, PUBLIC = (ip_address(text) for text in ("192.0.2.1", "192.0.2.2", "203.0.113.5"))
EVERYTHING = """
addresses = ["192.0.2.1", "2001:db8::1", "192.0.2.2"]
port = 19302
alternate_port = 19303
advertise = { "192.0.2.1" = "203.0.113.5", "192.0.2.2" = "203.0.113.6" }
reflector_ports = [53, 19]
users = "users.toml"
credentials = "short-term"
realm = "here"
workers = 4
metrics = "127.0.0.1:9061"
log = "json"

[limits]
socket = [5.5, 10]
network = [100, 200]
"""
SECRET = bytes(range(32))
USERS = '[users]\nalice = "correct horse"\n"bob" = "battery staple"\n'


def test_without_any_word_every_address_of_both_families_is_served() -> None:
    settings = StundSettings.parse("")
    assert settings.families == (ServerAddresses(ip_address("0.0.0.0")), ServerAddresses(ip_address("::")))
    assert settings.more_ports == ()
    assert settings.reflector_ports == REFLECTOR_PORTS
    assert settings.limits == Limits()
    assert settings.workers == 1


def test_every_word_of_a_file_arrives() -> None:
    settings = StundSettings.parse(EVERYTHING)
    assert settings.families == (
        ServerAddresses(ONE, 19302, OTHER, 19303),
        ServerAddresses(ip_address("2001:db8::1"), 19302, alternate_port=19303),
    )
    assert settings.advertise == {ONE: PUBLIC, OTHER: ip_address("203.0.113.6")}
    assert settings.reflector_ports == {19, 53}
    assert settings.users == Path("users.toml")
    assert settings.credentials is CredentialKind.SHORT_TERM
    assert settings.realm == "here"
    assert settings.workers == 4
    assert settings.metrics == Endpoint.of("127.0.0.1", 9061)
    assert settings.log is LogForm.JSON
    assert settings.limits == Limits(socket=Rate(5.5, 10), network=Rate(100, 200))


def test_settings_can_be_made_of_their_own_values() -> None:
    settings = StundSettings.parse(EVERYTHING)
    assert StundSettings.of({name: getattr(settings, name) for name in WORDS}) == settings


def test_flags_have_lists_of_pairs_for_what_is_a_table_in_the_file() -> None:
    settings = StundSettings.of({"addresses": ("10.0.0.5",), "advertise": ("10.0.0.5=203.0.113.5",)})
    assert settings.advertise == {ip_address("10.0.0.5"): PUBLIC}
    assert parse_limit("socket=20:40") == ("socket", (20.0, 40))
    assert StundSettings.of({"limits": dict([parse_limit("socket=1:2")])}).limits.socket == Rate(1, 2)


@pytest.mark.parametrize(
    ("text", "families"),
    [
        ('["192.0.2.1"]', [(ONE, None, None)]),
        ('["2001:db8::1", "192.0.2.1"]', [(IPV6, None, None), (ONE, None, None)]),
        ('["192.0.2.1", "192.0.2.2", "::"]', [(ONE, OTHER, 3479), (ip_address("::"), None, None)]),
        (
            '["192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2"]',
            [(ONE, OTHER, 3479), (IPV6, ip_address("2001:db8::2"), 3479)],
        ),
    ],
)
def test_each_family_has_the_first_address_and_the_second_as_its_alternate(
    text: str, families: list[tuple[IPAddress, IPAddress | None, int | None]]
) -> None:
    assert StundSettings.parse(f"addresses = {text}").families == tuple(
        ServerAddresses(address, 3478, alternate, alternate_port)
        for address, alternate, alternate_port in families
    )


def test_either_family_may_have_a_peer() -> None:
    text = 'addresses = ["192.0.2.1", "2001:db8::1"]\npeer_key = "key"\n'
    both = StundSettings.parse(text + 'peers = ["192.0.2.2", "2001:db8::2"]')
    assert both.hosts == (TwoHosts(ONE, OTHER), TwoHosts(IPV6, ip_address("2001:db8::2")))
    assert both.families == tuple(hosts.alone for hosts in both.hosts)
    one = StundSettings.parse(text + 'peers = ["192.0.2.2"]')
    assert one.hosts == (TwoHosts(ONE, OTHER),)
    assert one.families == (TwoHosts(ONE, OTHER).alone, ServerAddresses(IPV6))


def test_a_wildcard_may_be_told_as_any_address() -> None:
    settings = StundSettings.parse('advertise = { "10.0.0.5" = "203.0.113.5" }')
    assert settings.advertise == {ip_address("10.0.0.5"): PUBLIC}


def test_a_reflector_has_the_port_of_sip_unless_told_others() -> None:
    assert StundSettings.parse("sip_reflector = true").more_ports == (5060,)
    assert StundSettings.parse("sip_reflector = true\nsip_ports = [5070, 5080]").more_ports == (5070, 5080)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("port = ", "this is not TOML"),
        ("prot = 1", "there is no setting 'prot': did you mean port?"),
        ("xyzzy = 1", "known are addresses, port"),
        ("port = 65536", "port = 65536: expected a port, 0 to 65535"),
        ("port = true", "port = True: expected"),
        ('addresses = ["localhost"]', "addresses = ['localhost'] ('localhost' is not an IP address"),
        ('addresses = "192.0.2.1"', "a list of IP addresses"),
        ('addresses = ["::ffff:192.0.2.1"]', "is an IPv4 address, which is written 192.0.2.1"),
        ('addresses = ["192.0.2.1", "192.0.2.1"]', "the same address"),
        ('addresses = ["::1", "192.0.2.1", "192.0.2.2", "192.0.2.3"]', "two addresses at the most"),
        ('addresses = ["192.0.2.1", "::", "::1"]', "both addresses must be named"),
        ('addresses = ["192.0.2.1"]\npeers = ["192.0.2.2"]', "peers and peer_key belong together"),
        ('addresses = ["192.0.2.1"]\npeer_key = "key"', "peers and peer_key belong together"),
        ('addresses = ["192.0.2.1"]\npeer_key = "key"\npeers = ["::1"]', "the peer ::1 has the second IPv6"),
        ("sip_ports = [5060]", "give that as well"),
        ("sip_reflector = true\nworkers = 2", "wants one process"),
        ("workers = 0", "how many processes"),
        ('advertise = "203.0.113.5"', "expected a table"),
        ('advertise = { "10.0.0.5" = "0.0.0.0" }', "nobody can be told to send there"),
        ('advertise = { "10.0.0.5" = "2001:db8::1" }', "different families"),
        ('addresses = ["10.0.0.5"]\nadvertise = { "10.0.0.6" = "203.0.113.5" }', "not to listen on 10.0.0.6"),
        ('advertise = { "10.0.0.5" = "203.0.113.5", "10.0.0.6" = "203.0.113.5" }', "one public address for"),
        ("reflector_ports = [70000]", "expected a list of ports"),
        ("limits = { sockets = [1, 2] }", "did you mean socket?"),
        ("limits = { socket = 5 }", "per second and at once"),
        ("limits = { socket = [0, 2] }", "both must be positive"),
        ("limits = { socket = [1, nan] }", "per second and at once"),
        ("limits = { socket = [nan, 1] }", "both must be positive"),
        ('credentials = "basic"', "one of long-term, short-term"),
        ('metrics = "9061"', "no port"),
        ('metrics = "127.0.0.1:0"', "a port that stays"),
        ('log = "xml"', "one of text, json"),
        ('users = ""\nrealm = ""', "realm"),
    ],
)
def test_what_is_wrong_is_said_with_what_is_right(text: str, complaint: str) -> None:
    with pytest.raises(DecodeError) as raised:
        StundSettings.parse(text)
    assert complaint in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ["socket", "socket=20", "socket=x:1", "socket=1:1.5", "=:", "socket=1:inf"])
def test_a_limit_that_is_none_shows_how_one_looks(text: str) -> None:
    with pytest.raises(DecodeError, match="socket=20:40"):
        parse_limit(text)


def test_users_are_those_of_the_kind_that_is_set() -> None:
    long_term = StundSettings().accounts(USERS, secret=SECRET)
    assert isinstance(long_term, LongTermAccounts)
    assert long_term.realm == "nattools"
    short_term = StundSettings(credentials=CredentialKind.SHORT_TERM).accounts(USERS, secret=SECRET)
    assert isinstance(short_term, ShortTermAccounts)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[users]",
        "[users]\nalice = 12345",
        '[users]\nalice = ""',
        '[users]\n"" = "hidden"',
        'realm = "hidden"\n[users]\nalice = "hidden"',
        '[users]\nalice = "hidden',
        '[users]\nalice = "hidden\\u0000"',
    ],
)
def test_a_wrong_file_of_users_shows_no_password(text: str) -> None:
    with pytest.raises(DecodeError) as raised:
        StundSettings().accounts(text, secret=SECRET)
    assert "hidden" not in str(raised.value)


def test_a_realm_that_would_make_challenges_large_is_refused() -> None:
    with pytest.raises(DecodeError, match="realm"):
        StundSettings(realm="much-too-long").accounts(USERS, secret=SECRET)


def test_the_page_for_operators_has_every_word_and_a_file_that_is_right() -> None:
    page = DOCS.read_text()
    for name in WORDS:
        assert f"| `{name}` |" in page
    [example] = [part.split("```")[0] for part in page.split("```toml\n")[1:] if "addresses" in part]
    assert set(tomllib.loads(example)) <= set(WORDS)
    StundSettings.parse(example)
