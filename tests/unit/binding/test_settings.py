"""Settings: each word from TOML, the environment and calls, and what is said of those that are wrong."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from nattools.binding.model import DEFAULT_METHODS, Method
from nattools.binding.schedule import KeepaliveKind
from nattools.binding.settings import (
    LEARN,
    WORDS,
    PortRange,
    Settings,
    SettingWords,
    default_path,
    read_settings,
)
from nattools.endpoint import Endpoint
from nattools.errors import DecodeError
from nattools.files import MOST_BYTES

DOCUMENT = Path(__file__).parents[3] / "docs" / "settings.md"
ROUTER = ip_address("192.168.0.1")
SERVERS = ("192.0.2.1", "stun:a.b:9")
PROXY, PROXY_6 = Endpoint.of("192.0.2.1", 5060), Endpoint.of("2001:db8::1", 5060)

# Each word as TOML, as the text of a variable, as a keyword, and the value that all of them give
CASES: list[tuple[str, str, str, Any, object]] = [
    ("methods", '["stun", "pcp"]', "stun, pcp", ["STUN", Method.PCP], (Method.STUN, Method.PCP)),
    ("methods", '"nat-pmp"', "nat-pmp", (Method.NAT_PMP,), (Method.NAT_PMP,)),
    ("side_by_side", "false", "no", False, False),
    ("side_by_side", "true", "1", True, True),
    ("stun_servers", '["192.0.2.1", "stun:a.b:9"]', "192.0.2.1,stun:a.b:9", SERVERS, SERVERS),
    ("stun_servers", "[]", " , ", [], ()),
    ("keepalive_interval", "20", "20", 20, 20.0),
    ("keepalive_interval", "1.5", " 1.5 ", 1.5, 1.5),
    ("keepalive_interval", '"learn"', "Learn", LEARN, LEARN),
    ("keepalive", '"empty"', "Empty", KeepaliveKind.EMPTY, KeepaliveKind.EMPTY),
    ("keepalive", '"stun-request"', "stun-request", "stun-request", KeepaliveKind.STUN_REQUEST),
    ("keepalive_to", '["192.0.2.1:5060"]', "192.0.2.1:5060", [PROXY], (PROXY,)),
    ("keepalive_to", '["[2001:db8::1]:5060"]', "[2001:db8::1]:5060", ["[2001:db8::1]:5060"], (PROXY_6,)),
    ("keepalive_to", '["[::ffff:192.0.2.1]:5060"]', "[::ffff:192.0.2.1]:5060", (PROXY,), (PROXY,)),
    ("static_host", '"sip.example.org"', "sip.example.org", "sip.example.org", "sip.example.org"),
    ("static_host", '"2001:db8::1"', "2001:db8::1", " 2001:db8::1 ", "2001:db8::1"),
    ("static_ports", '"9000-9010"', "9000 - 9010", PortRange(9000, 9010), PortRange(9000, 9010)),
    ("static_ports", "5060", "5060", 5060, PortRange(5060, 5060)),
    ("vpn_interface", '"wg0"', "wg0", "wg0", "wg0"),
    ("vpn_peer", '"10.8.0.1:5060"', "10.8.0.1:5060", "10.8.0.1:5060", "10.8.0.1:5060"),
    ("router_gateway", '"192.168.0.1"', "192.168.0.1", ROUTER, ROUTER),
    ("router_interface", '"eth0"', "eth0", "eth0", "eth0"),
    ("router_lease", "120", "120", 120, 120),
    ("state_directory", '"/var/phone"', "/var/phone", Path("/var/phone"), Path("/var/phone")),
]

# Each wrong value as TOML, and what the error must say beside the word
WRONG = [
    ("methods", "[]", "at least one"),
    ("methods", '["stunn"]', "did you mean stun?"),
    ("methods", '["stun", "STUN"]', "twice"),
    ("methods", "5", "a list of static, vpn, pcp, nat-pmp, upnp, open, stun"),
    ("methods", "[5]", "a list of"),
    ("side_by_side", "1", "true or false"),
    ("side_by_side", '"perhaps"', "true or false"),
    ("stun_servers", '["turn:a.b"]', "stun:host"),
    ("stun_servers", '["stuns:a.b"]', "UDP"),
    ("stun_servers", '["a.b", "a.b"]', "twice"),
    ("stun_servers", '{ host = "a.b" }', "a list of servers"),
    ("keepalive_interval", "0.5", "1 or more"),
    ("keepalive_interval", "nan", "1 or more"),
    ("keepalive_interval", "inf", "1 or more"),
    ("keepalive_interval", "true", "seconds"),
    ("keepalive_interval", "[15]", "seconds"),
    ("keepalive_interval", '"often"', "learn"),
    ("keepalive_interval", "1" + "0" * 400, "1 or more"),
    ("keepalive", '"cr-lf"', "stun-request, stun-indication, empty, crlf"),
    ("keepalive_to", '["sip.example.org:5060"]', "192.0.2.1:5060"),
    ("keepalive_to", '["192.0.2.1"]', "has no port"),
    ("keepalive_to", '["0.0.0.0:5060"]', "nothing can be sent"),
    ("keepalive_to", '["192.0.2.1:0"]', "nothing can be sent"),
    ("static_host", '"sip.example.org:5060"', "static_ports"),
    ("static_host", '"two words"', "host name"),
    ("static_host", "7", "host name"),
    ("static_ports", '"5060-"', "'' is not a port"),
    ("static_ports", '"9010-9000"', "lower port comes first"),
    ("static_ports", '"0-10"', "0 is not a port"),
    ("static_ports", "70000", "70000 is not a port"),
    ("static_ports", "-5", "5060"),
    ("static_ports", "true", "9000-9010"),
    ("vpn_interface", '"wg\\u00000"', "interface"),
    ("vpn_peer", '"10.8.0.1:port"', "not a port"),
    ("router_gateway", '"gateway.example"', "IP address"),
    ("router_gateway", '"224.0.0.1"', "not the address of a router"),
    ("router_interface", "1", "interface"),
    ("router_lease", "0", "whole seconds"),
    ("router_lease", "1.5", "whole seconds"),
    ("router_lease", "true", "whole seconds"),
    ("router_lease", "0x" + "f" * 9000, "something endless"),
    ("state_directory", '"~nobody-of-that-name/x"', "home"),
    ("state_directory", "[]", "directory"),
    ("state_directory." + "a." * 3000 + "a", "1", "a table of ['a']"),
]


@pytest.mark.parametrize(("name", "toml", "text", "keyword", "value"), CASES)
def test_a_word_means_the_same_everywhere(
    name: str, toml: str, text: str, keyword: Any, value: object
) -> None:
    table, _, word = name.partition("_")
    assert getattr(Settings.from_toml(f"{name} = {toml}"), name) == value
    assert getattr(Settings.from_toml(f"[{table}]\n{word} = {toml}" if word else ""), name) == (
        value if word else getattr(Settings(), name)
    )
    assert getattr(Settings().with_environment({f"NATTOOLS_{name.upper()}": text}), name) == value
    words: SettingWords = {name: keyword}  # type: ignore[misc]  # the names are in the table above
    assert getattr(Settings().with_words(**words), name) == value
    assert getattr(Settings.of(dict(words)), name) == value


def test_no_word_is_left_out_of_the_tables() -> None:
    assert {name for name, *_ in CASES} == set(WORDS)
    assert {name.partition(".")[0] for name, *_ in WRONG} == set(WORDS)


@pytest.mark.parametrize(("name", "toml", "said"), WRONG)
def test_a_wrong_value_is_refused_by_name(name: str, toml: str, said: str) -> None:
    with pytest.raises(DecodeError) as refusal:
        Settings.from_toml(f"{name} = {toml}")
    message = str(refusal.value)
    assert message.startswith(f"{name.partition('.')[0]} = ")
    assert said in message
    assert "expected" in message
    assert len(message) < 400


def test_the_words_are_the_same_in_the_class_the_keywords_and_the_document() -> None:
    names = [field.name for field in fields(Settings)]
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \|", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    assert names == list(WORDS)
    assert names == list(SettingWords.__annotations__)
    assert rows == [(name, f"NATTOOLS_{name.upper()}") for name in names]


def test_the_defaults_in_the_document_are_the_defaults() -> None:
    rows = re.findall(r"^\| `(\w+)` .* \| `([^`]+)` \|$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    said = {name: default for name, default in rows if not default.startswith("$")}
    assert len(said) >= 5
    for name, default in said.items():
        assert Settings().with_environment({f"NATTOOLS_{name.upper()}": default}) == Settings()


def test_the_example_in_the_document_is_a_settings_file() -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    settings = Settings.from_toml(example)
    assert settings.static_ports == PortRange(9000, 9010)
    assert settings.keepalive_to == (Endpoint.of("192.0.2.20", 5060),)
    assert settings.router_interface == "eth0"


def test_nothing_set_is_the_defaults() -> None:
    settings = Settings.from_toml("").with_environment({"HOME": "/root"}).with_words()
    assert settings == Settings()
    assert settings.methods == DEFAULT_METHODS
    assert settings.stun_servers == ()  # nobody is asked who was not named
    assert settings.keepalive_interval == 15.0


def test_values_are_checked_when_settings_are_made() -> None:
    with pytest.raises(DecodeError, match="router_lease"):
        Settings(router_lease=0)
    with pytest.raises(DecodeError, match="keepalive_interval"):
        replace(Settings(), keepalive_interval=0.1)


@pytest.mark.parametrize(
    ("toml", "meant"),
    [
        ("stun-servers = []", "stun_servers"),
        ("[static]\nhots = 'a.b'", "static_host"),
        ("[statik]", "static_host"),
        ("keep_alive_interval = 3", "keepalive_interval"),
        ("Methods = ['stun']", "methods"),
        ("router_lease_s = 3", "router_lease"),
    ],
)
def test_a_misspelt_word_is_told_what_it_may_mean(toml: str, meant: str) -> None:
    with pytest.raises(DecodeError, match=rf"did you mean {meant}\?"):
        Settings.from_toml(toml)


def test_a_word_like_no_other_is_told_all() -> None:
    with pytest.raises(DecodeError, match=r"known are methods, side_by_side, .*, state_directory"):
        Settings.of({"xyzzy": 1})
    with pytest.raises(DecodeError, match=r"did you mean static_host\?"):
        Settings().with_words(statichost="a.b")  # type: ignore[call-arg]  # what is tried here


def test_a_word_alone_and_in_a_table_is_set_twice() -> None:
    with pytest.raises(DecodeError, match="static_host is set twice"):
        Settings.from_toml("static_host = 'a.b'\n[static]\nhost = 'c.d'")


def test_an_empty_table_sets_nothing() -> None:
    assert Settings.from_toml("[static]\n[router]") == Settings()


@pytest.mark.parametrize("toml", ["static_host =", "a" * 10, "x = " + "[" * 5000, "x = 1" + "0" * 5000, "\0"])
def test_what_is_no_toml_is_refused(toml: str) -> None:
    with pytest.raises(DecodeError, match="this is not TOML"):
        Settings.from_toml(toml)


class TestEnvironment:
    def test_it_goes_before_the_file_and_a_call_before_it(self) -> None:
        settings = Settings.from_toml("router_lease = 1\nkeepalive_interval = 20\nstatic_host = 'a.b'")
        settings = settings.with_environment({"NATTOOLS_ROUTER_LEASE": "2", "NATTOOLS_STATIC_HOST": "c.d"})
        settings = settings.with_words(static_host="e.f")
        assert (settings.router_lease, settings.keepalive_interval) == (2, 20)
        assert settings.static_host == "e.f"

    def test_an_empty_variable_puts_the_default_back(self) -> None:
        settings = Settings(stun_servers=("a.b",), static_host="a.b", router_lease=1)
        empty = dict.fromkeys(("NATTOOLS_STUN_SERVERS", "NATTOOLS_STATIC_HOST", "NATTOOLS_ROUTER_LEASE"), "")
        assert settings.with_environment(empty) == Settings()

    def test_other_variables_are_not_its_own(self) -> None:
        others = {
            "NATCHECK_SERVER": "a.b",
            "PATH": "/bin",
            "NATTOOLS_SETTINGS": "/x",
            "nattools_methods": "?",
        }
        assert Settings().with_environment(others) == Settings()

    def test_a_misspelt_variable_is_told_what_it_may_mean(self) -> None:
        with pytest.raises(
            DecodeError, match=r"'NATTOOLS_STUN_SERVER': did you mean NATTOOLS_STUN_SERVERS\?"
        ):
            Settings().with_environment({"NATTOOLS_STUN_SERVER": "a.b"})

    def test_a_wrong_value_is_refused_by_the_name_of_its_variable(self) -> None:
        with pytest.raises(DecodeError, match="NATTOOLS_ROUTER_LEASE = 'an hour': expected whole seconds"):
            Settings().with_environment({"NATTOOLS_ROUTER_LEASE": "an hour"})


class TestNoValue:
    def test_none_and_empty_text_unset_what_may_be_unset(self) -> None:
        settings = Settings(static_host="a.b", vpn_peer="10.8.0.1", static_ports=PortRange(1, 2))
        assert settings.with_words(static_host=None, vpn_peer="", static_ports=None) == Settings()
        assert Settings.from_toml("[static]\nhost = ''") == Settings()

    @pytest.mark.parametrize("name", ["methods", "keepalive", "keepalive_interval", "router_lease"])
    def test_what_is_always_needed_cannot_be_unset(self, name: str) -> None:
        with pytest.raises(DecodeError, match=f"{name} = None"):
            Settings.of({name: None})


class TestFile:
    @pytest.fixture(autouse=True)
    def _no_file_of_the_users(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("nattools.binding.settings.default_path", lambda: tmp_path / "default.toml")

    def test_a_named_file_is_read_and_the_environment_goes_over_it(self, tmp_path: Path) -> None:
        path = tmp_path / "phone.toml"
        path.write_text("router_lease = 7\n[static]\nhost = 'a.b'\n")
        settings = read_settings(path, {"NATTOOLS_ROUTER_LEASE": "8", "NATTOOLS_SETTINGS": "/no/such/file"})
        assert settings == Settings(router_lease=8, static_host="a.b")

    def test_a_variable_names_the_file(self, tmp_path: Path) -> None:
        (tmp_path / "default.toml").write_text("router_lease = 6")
        (tmp_path / "phone.toml").write_text("router_lease = 7")
        assert read_settings(None, {"NATTOOLS_SETTINGS": str(tmp_path / "phone.toml")}).router_lease == 7
        assert read_settings(None, {"NATTOOLS_SETTINGS": ""}).router_lease == 6
        assert read_settings(None, {}).router_lease == 6

    def test_the_default_file_need_not_be_there(self) -> None:
        assert read_settings(None, {}) == Settings()

    def test_it_is_looked_for_where_the_user_has_such_files(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XDG_CONFIG_HOME", "/home/phone/.config")
        assert default_path().parts[-2:] == ("nattools", "nattools.toml")

    def test_a_named_file_must_be_there(self, tmp_path: Path) -> None:
        missing = tmp_path / "missing.toml"
        for path, environ in ((missing, {}), (None, {"NATTOOLS_SETTINGS": str(missing)})):
            with pytest.raises(DecodeError, match=re.escape(f"{missing}: there is no such settings file")):
                read_settings(path, environ)

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (b"# a\nrouter_lease 5\n", "line 2"),
            (b"# a\n\nstatic_host = 'M\xfcnchen.example'\n", "line 3: not UTF-8"),
            (b"#" * (MOST_BYTES + 1), "over 1048576 bytes"),
            (b"router_leese = 5", "did you mean router_lease?"),
            (b"router_lease = '?'", "expected whole seconds"),
        ],
    )
    def test_a_wrong_file_is_refused_by_its_path(self, content: bytes, said: str, tmp_path: Path) -> None:
        path = tmp_path / "phone.toml"
        path.write_bytes(content)
        with pytest.raises(DecodeError, match=re.escape(said)) as refusal:
            read_settings(path, {})
        assert str(path) in str(refusal.value)

    def test_what_cannot_be_read_is_refused_by_its_path(self, tmp_path: Path) -> None:
        with pytest.raises(DecodeError, match=re.escape(f"{tmp_path}: the settings file cannot be read: ")):
            read_settings(tmp_path, {})
        with pytest.raises(DecodeError, match="null byte"):
            read_settings(Path("a\0b"), {})

    def test_a_file_of_a_windows_editor_is_read(self, tmp_path: Path) -> None:
        path = tmp_path / "phone.toml"
        path.write_bytes(b"\xef\xbb\xbfrouter_lease = 7\r\nside_by_side = false\r\n")
        assert read_settings(path, {}) == Settings(router_lease=7, side_by_side=False)


class TestPortRange:
    @pytest.mark.parametrize("text", ["5060", "9000-9010", "1-65535"])
    def test_it_survives_text(self, text: str) -> None:
        assert str(PortRange.parse(text)) == text

    def test_it_contains_its_ends(self) -> None:
        ports = PortRange(9000, 9010)
        assert [port for port in (8999, 9000, 9010, 9011) if port in ports] == [9000, 9010]
        assert "9000" not in ports

    def test_its_pairs_are_even_ports_whose_next_is_in_it(self) -> None:
        for first in range(9000, 9004):
            for last in range(first, first + 5):
                ports = PortRange(first, last)
                pairs = [
                    port
                    for port in range(8990, 9020)
                    if port % 2 == 0 and {port, port + 1} <= {*range(first, last + 1)}
                ]
                assert list(ports.even_ports) == pairs

    @pytest.mark.parametrize("text", ["", "-", "a", "5060-a", "1-2-3", "+5", "0", "65536", "٣"])
    def test_other_text_is_no_range(self, text: str) -> None:
        with pytest.raises(DecodeError):
            PortRange.parse(text)
