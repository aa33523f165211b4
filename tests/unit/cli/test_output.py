"""Pages of text on terminals of any width."""

from __future__ import annotations

import pytest

from nattools.cli.output import Page

HEADINGS = ("Port", "Owner", "Description")
ROWS = [
    ("5060/udp", "this machine, kept by process 1234", "nattools"),
    ("40000/tcp", "192.168.0.20", "a game [bold]that[/bold] is played by many :ab:"),
]


def printed(width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[str]:
    monkeypatch.setenv("COLUMNS", str(width))
    Page(label_width=12).table(HEADINGS, ROWS)
    return capsys.readouterr().out.splitlines()[1:]


def test_a_table_that_fits_has_a_line_for_each_row(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert printed(100, monkeypatch, capsys) == [
        "Port       Owner                               Description",
        "5060/udp   this machine, kept by process 1234  nattools",
        "40000/tcp  192.168.0.20                        a game [bold]that[/bold] is played by many :ab:",
    ]


def test_a_table_that_does_not_fit_wraps_its_widest_cells_at_spaces(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert printed(60, monkeypatch, capsys) == [
        "Port       Owner                    Description",
        "5060/udp   this machine, kept by    nattools",
        "           process 1234",
        "40000/tcp  192.168.0.20             a game [bold]that[/bold]",
        "                                    is played by many :ab:",
    ]


def test_where_words_are_too_long_for_columns_each_row_is_a_block(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert printed(40, monkeypatch, capsys) == [
        "Port        5060/udp",
        "Owner       this machine, kept by",
        "            process 1234",
        "Description nattools",
        "",
        "Port        40000/tcp",
        "Owner       192.168.0.20",
        "Description a game [bold]that[/bold] is",
        "            played by many :ab:",
    ]


@pytest.mark.parametrize("width", range(1, 101, 3))
def test_no_line_is_wider_than_the_terminal(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = printed(width, monkeypatch, capsys)
    assert max(map(len, lines)) <= max(width, 24)
    assert not any(line.endswith(" ") for line in lines)


def test_an_ipv6_address_is_not_a_picture(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = Page(label_width=8)
    page.row("Address", "fe80::a:1")
    page.item("2001:db8:ab:1::b:2")
    assert capsys.readouterr().out == "Address fe80::a:1\n  2001:db8:ab:1::b:2\n"
