"""What `natgate status` shows people: the calls, their media, the registrations, and what was counted."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from nattools.cli.output import Page
from nattools.session.status import (
    CallStatus,
    GateStatus,
    ListenerStatus,
    RegistrationStatus,
    SideStatus,
    StreamStatus,
)
from nattools.words import printable

if TYPE_CHECKING:
    from rich.console import Console

_LABEL_WIDTH = 15
_STREAM_HEADINGS = ("stream", "from", "packets", "lost", "jitter", "foreign", "held", "heard")
_REGISTRATION_HEADINGS = ("user", "contact", "heard from", "expires in")
_WIDTH_OF_TABLE = 84
_LINES_OF_FRAME = 12
_LINES_OF_CALL = 6


def show_page(status: GateStatus, *, console: Console | None = None, most_lines: int | None = None) -> None:
    """Print the page; with `most_lines` as many calls and registrations as about fit there."""
    page = Page(label_width=_LABEL_WIDTH, console=console)
    _show_head(page, status)
    room = None if most_lines is None else max(most_lines - _LINES_OF_FRAME, _LINES_OF_CALL)
    most_calls = None if room is None else max(1, room // _LINES_OF_CALL)
    calls = status.calls[:most_calls]
    page.heading(f"Calls: {len(status.calls)}")
    for number, call in enumerate(calls):
        if number:
            page.gap()
        _show_call(page, call)
    _show_rest(page, len(status.calls) - len(calls))
    most = None if room is None else max(1, room - _LINES_OF_CALL * len(calls))
    registrations = status.registrations[:most]
    page.heading(f"Registrations: {len(status.registrations)}")
    if registrations:
        page.table(_REGISTRATION_HEADINGS, [_registration_row(each) for each in registrations])
    _show_rest(page, len(status.registrations) - len(registrations))


def _show_head(page: Page, status: GateStatus) -> None:
    up = duration(max(0.0, time.time() - status.started_s))
    page.row("natgate", f"{status.version}, {status.mode}, engine {status.engine}, up {up}")
    page.row("serves", ", ".join(_place(each) for each in status.listeners))
    if status.draining:
        page.row("ending", "no new calls; it ends when these have", style="bold yellow")
    counted = [f"{name.replace('_', ' ')} {count}" for name, count in status.counters.items() if count]
    page.row("counted", ", ".join(counted) or "nothing yet")


def _show_call(page: Page, call: CallStatus) -> None:
    who = f"{printable(call.caller)} -> {printable(call.callee)}"
    page.item(f"{who}  {call.state} {duration(call.duration_s)}")
    rows = [row for stream in call.streams for row in _stream_rows(stream)]
    if rows and page.width >= _WIDTH_OF_TABLE:
        page.table(_STREAM_HEADINGS, rows)
        return
    for row in rows:
        page.item(_in_words(row))


def _show_rest(page: Page, count: int) -> None:
    if count > 0:
        page.item(f"and {count} more")


def _stream_rows(stream: StreamStatus) -> Iterator[Sequence[str]]:
    carrier = " (kernel)" if stream.in_kernel else ""
    for who, side in (("caller", stream.a), ("callee", stream.b)):
        yield (
            f"{printable(stream.kind)} {who}{carrier}",
            "nobody yet" if side.source is None else str(side.source),
            str(side.packets),
            _lost(side),
            "?" if side.jitter_ms is None else f"{side.jitter_ms:.1f} ms",
            str(side.foreign),
            str(side.held),
            "never" if side.heard_ago_s is None else f"{side.heard_ago_s:.0f} s ago",
        )


def _in_words(row: Sequence[str]) -> str:
    """A row of the table where there is no room for a table."""
    stream, source, packets, lost, jitter, foreign, held, heard = row
    dropped = "".join(
        f", {count} {what}" for count, what in ((foreign, "foreign"), (held, "held")) if count != "0"
    )
    return f"{stream}, {source}: {packets} packets, {lost} lost, jitter {jitter}{dropped}, heard {heard}"


def _lost(side: SideStatus) -> str:
    if side.lost is None:
        return "?"
    sent = side.packets + side.lost
    return f"{side.lost} ({100 * side.lost / sent:.1f} %)" if side.lost > 0 and sent else str(side.lost)


def _registration_row(registration: RegistrationStatus) -> Sequence[str]:
    received = registration.received
    return (
        printable(registration.address_of_record),
        printable(registration.contact),
        "there" if received is None else str(received),
        duration(registration.expires_in_s),
    )


def _place(listener: ListenerStatus) -> str:
    told = listener.advertised
    told_as = "" if told is None or told == listener.local else f" (told as {told})"
    return f"{listener.transport.lower()}:{listener.local}{told_as}"


def duration(seconds: float) -> str:
    """`0:42`, `12:05` or `3:12:05`, and days where there are some."""
    minutes, whole = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    clock = f"{hours}:{minutes:02}:{whole:02}" if hours or days else f"{minutes}:{whole:02}"
    return f"{days} d {clock}" if days else clock
