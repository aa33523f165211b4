"""The command line of natgate: what its settings come to, and what is said of what is wrong."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from nattools.cli import EXIT_INTERRUPTED, natgate, natgate_serve
from nattools.cli.service import EXIT_CANNOT, EXIT_USAGE
from nattools.endpoint import Endpoint
from nattools.errors import LocalAddressError
from nattools.session.flows import Listener
from nattools.session.server import SessionServer
from nattools.session.settings import EngineName, GateMode, GateSettings

USERS = '[users]\nalice = "secret"\n'


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[GateSettings]:
    """The settings of each natgate that would have been run."""
    settings: list[GateSettings] = []
    monkeypatch.setattr(natgate_serve, "run", settings.append)
    return settings


@pytest.fixture
def users(tmp_path: Path) -> Path:
    path = tmp_path / "users.toml"
    path.write_text(USERS)
    path.chmod(0o600)
    return path


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """The exit code, and the one line on stderr."""
    with pytest.raises(SystemExit) as ended:
        natgate.main(arguments)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert isinstance(ended.value.code, int)
    return ended.value.code, err


def test_two_words_make_a_registrar(ran: list[GateSettings], users: Path) -> None:
    natgate.main(["--registrar", "--users", str(users)])
    assert ran == [GateSettings(registrar=True, users=users)]


def test_every_flag_is_a_setting(ran: list[GateSettings]) -> None:
    words = """
        --upstream sip:pbx.example.org --path --listen 127.0.0.1:5070 --listen tcp:127.0.0.2
        --advertise 198.51.100.7 --domain a.example --domain b.example --certificate c.pem --key k.pem
        --store sqlite:x.db --engine rtpengine --rtp-ports 31000-31999 --rtpengine 127.0.0.1:2224 --ice pass
        --keepalive crlf --metrics 127.0.0.1:9060 --status s.sock --log json
    """
    natgate.main(words.split())
    assert ran == [
        GateSettings.parse(
            """
            upstream = "sip:pbx.example.org"
            path = true
            listen = ["127.0.0.1:5070", "tcp:127.0.0.2"]
            advertise = "198.51.100.7"
            domains = ["a.example", "b.example"]
            certificate = "c.pem"
            key = "k.pem"
            store = "sqlite:x.db"
            engine = "rtpengine"
            rtp_ports = "31000-31999"
            rtpengine = "127.0.0.1:2224"
            ice = "pass"
            keepalive = "crlf"
            metrics = "127.0.0.1:9060"
            status = "s.sock"
            log = "json"
            """
        )
    ]


def test_flags_overrule_the_file_whose_paths_begin_where_it_is(
    ran: list[GateSettings], tmp_path: Path
) -> None:
    config = tmp_path / "natgate.toml"
    config.write_text(
        'registrar = true\nusers = "users.toml"\nkey = "/k.pem"\ncertificate = "c.pem"\n'
        'store = "sqlite:x.db"\nengine = "rtpengine"\nstatus = "s.sock"\n'
    )
    natgate.main(["--config", str(config), "--engine", "kernel", "--status", "own.sock"])
    (settings,) = ran
    assert settings.users == tmp_path / "users.toml"
    assert settings.certificate == tmp_path / "c.pem"
    assert settings.key == Path("/k.pem")
    assert settings.store == f"sqlite:{tmp_path / 'x.db'}"
    assert settings.engine is EngineName.KERNEL
    assert settings.status == Path("own.sock")


def test_an_alg_heeds_the_words_of_bindings_wherever_they_stand(
    ran: list[GateSettings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "natgate.toml"
    config.write_text('alg = true\n[binding]\nkeepalive_interval = 20\nstun_servers = ["192.0.2.8"]\n')
    monkeypatch.setenv("NATTOOLS_METHODS", "stun")
    natgate.main(["--config", str(config), "--stun-server", "192.0.2.9"])
    (settings,) = ran
    assert settings.mode is GateMode.ALG
    assert settings.binding.stun_servers == ("192.0.2.9",)
    assert settings.binding.keepalive_interval == 20
    assert [method.value for method in settings.binding.methods] == ["stun"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("", "--registrar --users FILE"),
        ("--registrar", "--users FILE"),
        ("--registar", "--registrar"),
        ("--upstream pbx", "sip:pbx"),
        ("--upstream sip:a --registrar", "exclude each other"),
        ("--upstream sip:a --engine kernle", "did you mean kernel"),
        ("--upstream sip:a --listen host.example", "not an IP address"),
        ("--alg --rtp-ports 5", "30000-40000"),
        ("--upstream sip:a extra", "extra"),
        ("--upstream sip:a status", "after its name"),
        ("statsu", "status"),
        ("--config nowhere.toml", "nowhere.toml: there is no such settings file"),
        ("--check-config --registrar --users nowhere.toml", "nowhere.toml: there is no such file of users"),
        (
            "--check-config --upstream sip:a --certificate no.pem --key no.pem",
            "no.pem: there is no such certificate",
        ),
        ("--alg --stun-server a:b:c", "stun_servers"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    arguments: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, line = refusal(capsys, *arguments.split())
    assert code == EXIT_USAGE
    assert line.startswith("natgate: ")
    assert said in line


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"listen = ", "not TOML"),
        (b"upstrem = 'sip:a'", "did you mean upstream"),
        (b"\xff", "UTF-8"),
        (b"#" * ((1 << 20) + 1), "no settings file"),
    ],
)
def test_what_is_wrong_in_the_file_is_said_with_its_path(
    data: bytes, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "natgate.toml"
    config.write_bytes(data)
    code, line = refusal(capsys, "--config", str(config))
    assert code == EXIT_USAGE
    assert f"{config}: " in line
    assert said in line


def test_good_settings_are_said_to_be_so(users: Path, capsys: pytest.CaptureFixture[str]) -> None:
    natgate.main(["--check-config", "--registrar", "--users", str(users), "--listen", "127.0.0.1"])
    out, err = capsys.readouterr()
    assert out.startswith("the settings are good: a registrar")
    assert "udp:127.0.0.1:5060, tcp:127.0.0.1:5060" in out
    assert err == ""


def test_what_cannot_be_had_is_one_line_and_another_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def start(_settings: GateSettings) -> SessionServer:
        raise LocalAddressError("cannot listen on 127.0.0.1, UDP port 5060: address already in use")

    monkeypatch.setattr(SessionServer, "start", start)
    code, line = refusal(capsys, "--upstream", "sip:127.0.0.9")
    assert code == EXIT_CANNOT
    assert line == "natgate: cannot listen on 127.0.0.1, UDP port 5060: address already in use\n"


def test_metrics_without_their_library_are_an_error_that_names_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "nattools.session.controller.metrics", None)
    words = ["--upstream", "sip:127.0.0.9", "--listen", "127.0.0.1:0", "--status", str(tmp_path / "s")]
    code, line = refusal(capsys, *words, "--metrics", "127.0.0.1:0")
    assert code == EXIT_USAGE
    assert "pip install 'nattools[server]'" in line


def test_ctrl_c_while_it_starts_is_quiet(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_settings: GateSettings) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(natgate_serve, "run", interrupted)
    with pytest.raises(SystemExit) as ended:
        natgate.main(["--alg"])
    assert ended.value.code == EXIT_INTERRUPTED
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("words", "said", "unsaid"),
    [
        (
            {"registrar": True, "users": "users.toml"},
            [
                "registrar of these addresses, users from users.toml",
                "no TLS",
                "--store",
                "by sockets",
                "2500 streams",
            ],
            ["told as"],
        ),
        (
            {
                "upstream": "sip:pbx",
                "store": "redis://:hunter2@h",
                "certificate": "c",
                "key": "k",
                "engine": "rtpengine",
            },
            ["in front of sip:pbx", "by rtpengine at 127.0.0.1:2223"],
            ["no TLS", "--store", "hunter2", "streams"],
        ),
        (
            {"alg": True, "upstream": "sip:pbx"},
            ["beside the phones, calls by sip:pbx"],
            ["no TLS", "--store"],
        ),
    ],
)
def test_the_first_line_says_what_is_served_and_what_is_not(
    words: dict[str, object], said: list[str], unsaid: list[str]
) -> None:
    listeners = [
        Listener("a", "UDP", Endpoint.of("203.0.113.5", 5060)),
        Listener("b", "TCP", Endpoint.of("203.0.113.5", 5060)),
        Listener("c", "UDP", Endpoint.of("2001:db8::5", 5060)),
    ]
    line = natgate_serve.start_line(GateSettings.of(words), listeners)
    assert line.startswith("serving SIP on 203.0.113.5:5060 (UDP and TCP), [2001:db8::5]:5060 (UDP); ")
    assert all(text in line for text in said)
    assert not any(text in line for text in unsaid)


@pytest.mark.parametrize(
    ("local", "advertised", "is_said"),
    [
        ("192.168.0.7", None, True),
        ("100.64.0.7", None, True),
        ("fd00::7", None, True),
        ("10.0.0.5", "198.51.100.7", False),
        ("203.0.113.5", None, False),
    ],
)
def test_the_first_line_says_where_nobody_outside_can_come_in(
    local: str, advertised: str | None, is_said: bool
) -> None:
    told = None if advertised is None else Endpoint.of(advertised, 5060)
    line = natgate_serve.start_line(
        GateSettings(upstream="sip:pbx"), [Listener("a", "UDP", Endpoint.of(local, 5060), told)]
    )
    assert ("phones of the internet cannot" in line) is is_said


def test_the_first_line_names_the_address_that_others_are_told() -> None:
    listener = Listener("a", "UDP", Endpoint.of("10.0.0.5", 5060), Endpoint.of("198.51.100.7", 5060))
    line = natgate_serve.start_line(GateSettings(alg=True), [listener])
    assert "10.0.0.5:5060 (told as 198.51.100.7:5060) (UDP)" in line
