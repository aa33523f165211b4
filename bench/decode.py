"""How long it takes to decode and encode one STUN reply of five attributes, beside aioice.

Asked: at most 10 µs for decoding. It is processor time, and the contestants take turns in every round, so
that they share the machine's moods; the ratio is aioice's median over that of nattools for the same work.
aioice reads every value while it parses, nattools when it is asked for it: hence the two rows of parsing.
Both encode from values.

    python -m bench.decode [--rounds 40]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from statistics import median
from time import process_time
from timeit import timeit

import aioice.stun
from rich.console import Console
from rich.table import Table

from nattools.endpoint import Endpoint
from nattools.stun.attributes import (
    MAPPED_ADDRESS,
    OTHER_ADDRESS,
    RESPONSE_ORIGIN,
    SOFTWARE,
    XOR_MAPPED_ADDRESS,
)
from nattools.stun.message import MAGIC_COOKIE, Message, MessageClass, Method

ASKED_US = 10.0
CALLS_A_ROUND = 2000

TRANSACTION_ID = bytes.fromhex("b7e7a701bc34d686fa87dfae")
MAPPED = Endpoint.of("192.0.2.1", 32853)
ORIGIN = Endpoint.of("198.51.100.1", 3478)
OTHER = Endpoint.of("203.0.113.1", 3479)
PROGRAM = "Citrix-3.2.4.5 'Marshal West'"  # as long as a real server's


def reply() -> Message:
    """The reply of an RFC 5780 server, made from its values."""
    attributes = (
        XOR_MAPPED_ADDRESS.of(MAPPED, MAGIC_COOKIE + TRANSACTION_ID),
        MAPPED_ADDRESS.of(MAPPED),
        RESPONSE_ORIGIN.of(ORIGIN),
        OTHER_ADDRESS.of(OTHER),
        SOFTWARE.of(PROGRAM),
    )
    return Message(Method.BINDING, MessageClass.SUCCESS, TRANSACTION_ID, attributes)


def aioice_reply() -> aioice.stun.Message:
    """The same by aioice."""
    attributes = {
        "XOR-MAPPED-ADDRESS": (str(MAPPED.ip), MAPPED.port),
        "MAPPED-ADDRESS": (str(MAPPED.ip), MAPPED.port),
        "RESPONSE-ORIGIN": (str(ORIGIN.ip), ORIGIN.port),
        "OTHER-ADDRESS": (str(OTHER.ip), OTHER.port),
        "SOFTWARE": PROGRAM,
    }
    return aioice.stun.Message(
        aioice.stun.Method.BINDING, aioice.stun.Class.RESPONSE, TRANSACTION_ID, attributes
    )


DATA = reply().encode()


def parse_and_read() -> tuple[object, ...]:
    """Decode the reply and every value in it, which aioice does at once."""
    message = Message.parse(DATA)
    return (
        message.get(XOR_MAPPED_ADDRESS),
        message.get(MAPPED_ADDRESS),
        message.get(RESPONSE_ORIGIN),
        message.get(OTHER_ADDRESS),
        message.get(SOFTWARE),
    )


CONTESTANTS: dict[str, Callable[[], object]] = {
    "nattools, parse": lambda: Message.parse(DATA),
    "nattools, parse and read": parse_and_read,
    "aioice, parse_message": lambda: aioice.stun.parse_message(DATA),
    "nattools, encode": lambda: reply().encode(),
    "aioice, encode": lambda: bytes(aioice_reply()),
}
RIVALS = {
    "nattools, parse": "aioice, parse_message",
    "nattools, parse and read": "aioice, parse_message",
    "nattools, encode": "aioice, encode",
}


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.decode", description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    rounds = parser.parse_args().rounds
    assert bytes(aioice_reply()) == DATA
    times: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    for _ in range(rounds):
        for name, call in CONTESTANTS.items():
            seconds = timeit(call, timer=process_time, number=CALLS_A_ROUND)
            times[name].append(seconds / CALLS_A_ROUND * 1e6)
    table = Table(title=f"One reply of {len(DATA)} bytes, {rounds} rounds of {CALLS_A_ROUND} calls, µs")
    for column in ("", "asked", "median", "fastest round", "aioice / nattools"):
        table.add_column(column, justify="right" if column else "left")
    for name, measured in times.items():
        asked = f"{ASKED_US:.0f}" if name.startswith("nattools, parse") else ""
        rival = RIVALS.get(name)
        ratio = f"{median(times[rival]) / median(measured):.2f}" if rival else ""
        table.add_row(name, asked, f"{median(measured):.2f}", f"{min(measured):.2f}", ratio)
    Console().print(table)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
