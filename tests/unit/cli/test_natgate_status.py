"""`natgate status`, as its user sees it: on terminals wide and narrow, as JSON, and with nobody to ask."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from nattools.cli import natgate, natgate_status
from nattools.cli.natgate_page import duration, show_page
from nattools.cli.service import EXIT_CANNOT
from nattools.errors import TransportError
from nattools.session.settings import EngineName
from nattools.session.status import GateStatus
from tests.unit.session.gate_status import STATUS


def page(status: GateStatus, *, width: int, most_lines: int | None = None) -> list[str]:
    written = io.StringIO()
    console = Console(file=written, width=width, highlight=False, soft_wrap=True, emoji=False)
    show_page(status, console=console, most_lines=most_lines)
    return written.getvalue().splitlines()


def test_a_wide_page_has_a_table_of_media_for_each_call() -> None:
    lines = page(STATUS, width=110)
    assert lines[0].startswith("natgate        1.2.3, registrar, engine kernel, up ")
    assert (
        lines[1] == "serves         udp:203.0.113.5:5060 (told as 198.51.100.7:5060), tls:[2001:db8::5]:5061"
    )
    assert lines[2] == "counted        malformed 3, media packets 3100"
    assert "Calls: 2" in lines
    assert "  sip:alice@example.org -> sip:bob@example.org  answered 1:02" in lines
    rows = [line.split() for line in lines if line.startswith("audio")]
    assert rows == [
        [
            "audio",
            "caller",
            "(kernel)",
            "203.0.113.1:40000",
            "3100",
            "3",
            "(0.1",
            "%)",
            "1.2",
            "ms",
            "2",
            "0",
            "0",
            "s",
            "ago",
        ],
        ["audio", "callee", "(kernel)", "nobody", "yet", "0", "?", "?", "0", "0", "never"],
    ]
    assert "  sip:eve@example.org -> sip:bob@example.org  ringing 0:03" in lines
    assert lines[-1].split() == ["bob@example.org", "sip:bob@203.0.113.9", "there", "0:42"]


@pytest.mark.parametrize("width", [40, 60, 79])
def test_a_narrow_page_says_the_same_in_words(width: int) -> None:
    lines = page(STATUS, width=width)
    text = " ".join(" ".join(lines).split())
    assert max(map(len, lines)) <= width
    assert (
        "audio caller (kernel), 203.0.113.1:40000: 3100 packets, 3 (0.1 %) lost, jitter 1.2 ms, 2 foreign"
        in text
    )
    assert "nobody yet: 0 packets, ? lost, jitter ?, heard never" in text


def test_what_phones_wrote_cannot_draw() -> None:
    call = replace(STATUS.calls[0], caller="sip:\x1b[2J[bold]x@h", streams=())
    registration = replace(STATUS.registrations[0], contact="sip:a\nb@h")
    lines = page(replace(STATUS, calls=(call,), registrations=(registration,)), width=120)
    assert all(line.isprintable() for line in lines)
    assert "  sip:\\x1b[2J[bold]x@h -> sip:bob@example.org  answered 1:02" in lines


def test_what_does_not_fit_a_terminal_is_counted() -> None:
    many = replace(STATUS, calls=STATUS.calls[1:] * 500, registrations=STATUS.registrations * 500)
    lines = page(many, width=110, most_lines=24)
    assert len(lines) <= 30
    assert "Calls: 500" in lines
    assert sum("more" in line for line in lines) == 2
    assert len(page(many, width=110)) > 1500


def test_the_end_and_nothing_at_all_are_said() -> None:
    empty = replace(STATUS, calls=(), registrations=(), counters={"malformed": 0}, draining=True)
    lines = page(empty, width=80)
    assert "counted        nothing yet" in lines
    assert any(line.startswith("ending         no new calls") for line in lines)
    assert "Calls: 0" in lines
    assert lines[-1] == "Registrations: 0"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (59.9, "0:59"), (725, "12:05"), (11_525, "3:12:05"), (86_400 * 2 + 60, "2 d 0:01:00")],
)
def test_times_are_short(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> dict[Path, GateStatus]:
    """What is told at which socket."""
    told: dict[Path, GateStatus] = {}

    def read(path: Path) -> GateStatus:
        if path not in told:
            raise TransportError(f"cannot read from {path}: no such file or directory")
        return told[path]

    monkeypatch.setattr(natgate_status, "read_status", read)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    return told


def test_the_document_is_printed_as_it_is(
    answers: dict[Path, GateStatus], capsys: pytest.CaptureFixture[str]
) -> None:
    answers[Path("own.sock")] = STATUS
    natgate.main(["status", "--json", "--socket", "own.sock"])
    assert json.loads(capsys.readouterr().out) == STATUS.as_json()


def test_both_usual_places_are_looked_at(
    answers: dict[Path, GateStatus], capsys: pytest.CaptureFixture[str]
) -> None:
    answers[Path("/run/nattools/natgate.sock")] = replace(STATUS, engine=EngineName.SOCKETS)
    natgate.main(["status"])
    assert "engine sockets" in capsys.readouterr().out
    answers[Path("/run/user/7/nattools/natgate.sock")] = STATUS
    natgate.main(["status", "--once"])
    assert "engine kernel" in capsys.readouterr().out


def test_where_nobody_is_to_be_asked_both_places_are_named(
    answers: dict[Path, GateStatus], capsys: pytest.CaptureFixture[str]
) -> None:
    assert not answers
    with pytest.raises(SystemExit) as ended:
        natgate.main(["status"])
    assert ended.value.code == EXIT_CANNOT
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith(
        "natgate status: no natgate is there to ask: cannot read from /run/user/7/nattools/"
    )
    assert "/run/nattools/natgate.sock" in err
