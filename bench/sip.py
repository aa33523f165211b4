"""How many SIP messages with session descriptions one core rewrites, beside sipmessage with sdp-transform.

Asked: three times as many as those two parse and print again without changing anything, and 20,000 a second,
of the INVITE and its 200 in both directions. They come with the short description of RFC 3665's calls, and
with that of a phone of five codecs. It is processor time of one thread, and both take turns with the same
messages in every round, so that they share the machine's moods.

    python -m bench.sip [--rounds 50]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import mean, median
from time import process_time
from timeit import timeit

import sdp_transform
import sipmessage
from rich.console import Console
from rich.table import Table

from nattools.binding.model import Method, PublicBinding, Reach, Reachability
from nattools.endpoint import Endpoint
from nattools.sip.message import SipMessage, compose_request
from nattools.sip.rewriter import Rewriter

LEAST_RATIO = 3.0
LEAST_A_SECOND = 20_000
CALLS_A_ROUND = 200

SIGNALLING = Endpoint.of("192.168.0.111", 5060), Endpoint.of("140.113.131.89", 53404)
RTP = Endpoint.of("192.168.0.111", 10002), Endpoint.of("140.113.131.89", 13016)
RTCP = Endpoint.of("192.168.0.111", 10003), Endpoint.of("140.113.131.89", 13017)
PROXY = Endpoint.of("140.113.131.7", 5060)

SHORT = ("a=rtpmap:0 PCMU/8000",)
LONG = (
    "a=rtpmap:18 G729/8000",
    "a=rtpmap:3 GSM/8000",
    "a=rtpmap:0 PCMU/8000",
    "a=rtpmap:8 PCMA/8000",
    "a=rtpmap:101 telephone-event/8000",
    "a=fmtp:101 0-15",
    "a=sendrecv",
)
SIZES = {"short": SHORT, "long": LONG}


@dataclass(frozen=True, slots=True)
class Case:
    """One message, and what a phone's rewriter does with it."""

    name: str
    size: str
    data: bytes
    rewrite: Callable[[bytes, Endpoint], bytes]
    must_have: bytes
    """What only the rewritten message has."""


def description(receiver: Endpoint, attributes: tuple[str, ...]) -> bytes:
    """A description of one audio stream, with as many formats as the attributes have."""
    formats = " ".join(it[9:].split()[0] for it in attributes if it.startswith("a=rtpmap:"))
    lines = (
        "v=0",
        f"o=root 1605530967 1605530967 IN IP4 {receiver.ip}",
        "s=call",
        f"c=IN IP4 {receiver.ip}",
        "t=0 0",
        f"m=audio {receiver.port} RTP/AVP {formats}",
        *attributes,
    )
    return "".join(f"{line}\r\n" for line in lines).encode()


def invite(caller: Endpoint, callee: str, body: bytes, *more_vias: str) -> bytes:
    """An INVITE as phones send it."""
    vias = (*more_vias, f"SIP/2.0/UDP {caller};branch=z9hG4bK-4a6f-8d2e")
    return compose_request(
        "INVITE",
        callee,
        [
            *(("Via", via) for via in vias),
            ("Max-Forwards", "70"),
            ("From", f'"Alice" <sip:alice@{PROXY.ip}>;tag=9fxced76sl'),
            ("To", f"<sip:bob@{PROXY.ip}>"),
            ("Call-ID", "3848276298220188511@192.168.0.111"),
            ("CSeq", "1 INVITE"),
            ("Contact", f"<sip:alice@{caller};transport=udp>"),
            ("Allow", "INVITE, ACK, BYE, CANCEL, OPTIONS, REFER, NOTIFY"),
            ("User-Agent", "phone 1.2"),
            ("Content-Type", "application/sdp"),
        ],
        body,
    )


def ok(request: bytes, contact: Endpoint, body: bytes) -> bytes:
    """The 200 that answers it."""
    asked = SipMessage.parse(request)
    copied = [
        f"{name}: {asked.value(asked.header(name.lower())).decode()}" for name in ("From", "To", "Call-ID")
    ]
    vias = [f"Via: {asked.value(it).decode()}" for it in asked.headers_named("via")]
    lines = (
        "SIP/2.0 200 OK",
        *vias,
        *copied,
        "CSeq: 1 INVITE",
        f"Contact: <sip:bob@{contact}>",
        "Server: phone 1.2",
        "Content-Type: application/sdp",
        f"Content-Length: {len(body)}",
        "",
        "",
    )
    return "\r\n".join(lines).encode() + body


def cases(size: str, attributes: tuple[str, ...]) -> list[Case]:
    """The four messages of a call from the phone, and of one to it, that have descriptions."""
    rewriter = Rewriter(binding(*SIGNALLING))
    rewriter.add_media(binding(*RTP), binding(*RTCP))
    local, public = SIGNALLING
    peer, peer_rtp = Endpoint.of("203.0.113.9", 5060), Endpoint.of("203.0.113.9", 49172)
    sent = invite(local, f"sip:bob@{PROXY.ip}", description(RTP[0], attributes))
    answer = ok(rewriter.outgoing(sent, PROXY), peer, description(peer_rtp, attributes))
    got = invite(
        peer,
        f"sip:alice@{public}",
        description(peer_rtp, attributes),
        f"SIP/2.0/UDP {PROXY};branch=z9hG4bK-1f-0",
    )
    own_answer = ok(got, local, description(RTP[0], attributes))
    inside, outside = str(local).encode(), str(public).encode()
    return [
        Case(f"INVITE out, {size}", size, sent, rewriter.outgoing, outside),
        Case(f"its 200 in, {size}", size, answer, rewriter.incoming, inside),
        Case(f"INVITE in, {size}", size, got, rewriter.incoming, inside),
        Case(f"its 200 out, {size}", size, own_answer, rewriter.outgoing, outside),
    ]


def binding(local: Endpoint, public: Endpoint) -> PublicBinding:
    """A binding as STUN finds it."""
    return PublicBinding(local, public, Method.STUN, Reachability(Reach.ANYONE))


def parse_and_print(data: bytes) -> bytes:
    """What the two libraries do with a message that nobody changes."""
    message = sipmessage.Message.parse(data)
    session = sdp_transform.parse(message.body.decode())
    message.body = sdp_transform.write(session).encode()
    return bytes(message)


def check(case: Case) -> None:
    """What is measured is done: the rewriter edits, and the libraries print the whole message."""
    assert case.must_have not in case.data
    assert case.must_have in case.rewrite(case.data, PROXY)
    assert sorted(parse_and_print(case.data).split(b"\r\n")) == sorted(case.data.split(b"\r\n"))


def measure(all_cases: list[Case], rounds: int) -> list[tuple[float, float]]:
    """Microseconds for each case, rewritten, and parsed and printed: medians of the rounds."""
    own: list[list[float]] = [[] for _ in all_cases]
    theirs: list[list[float]] = [[] for _ in all_cases]
    for _ in range(rounds):
        for case, own_s, their_s in zip(all_cases, own, theirs, strict=True):
            for work, seconds in (
                (partial(case.rewrite, case.data, PROXY), own_s),
                (partial(parse_and_print, case.data), their_s),
            ):
                seconds.append(timeit(work, timer=process_time, number=CALLS_A_ROUND))
    return [
        (median(own_s) / CALLS_A_ROUND * 1e6, median(their_s) / CALLS_A_ROUND * 1e6)
        for own_s, their_s in zip(own, theirs, strict=True)
    ]


def _row(own_us: float, their_us: float) -> tuple[str, str, str, str]:
    return f"{own_us:.1f}", f"{1e6 / own_us:,.0f}", f"{1e6 / their_us:,.0f}", f"{their_us / own_us:.1f}"


def main() -> int:
    """Print the table; 1 when less was reached than is asked."""
    parser = argparse.ArgumentParser(prog="python -m bench.sip", description=__doc__)
    parser.add_argument("--rounds", type=int, default=50)
    rounds = parser.parse_args().rounds
    all_cases = [case for size, attributes in SIZES.items() for case in cases(size, attributes)]
    for case in all_cases:
        check(case)
    table = Table(title=f"Messages a second on one core, median of {rounds} rounds of {CALLS_A_ROUND}")
    for column in ("", "bytes", "µs", "nattools", "sipmessage + sdp-transform", "ratio"):
        table.add_column(column, justify="right" if column else "left")
    is_enough = True
    measured = list(zip(all_cases, measure(all_cases, rounds), strict=True))
    for size in SIZES:
        of_size = [(case, own_us, their_us) for case, (own_us, their_us) in measured if case.size == size]
        for case, own_us, their_us in of_size:
            table.add_row(case.name, str(len(case.data)), *_row(own_us, their_us))
        own_us = mean(own_us for _, own_us, _ in of_size)
        their_us = mean(their_us for _, _, their_us in of_size)
        table.add_row(f"all four, {size}", "", *_row(own_us, their_us), end_section=True)
        is_enough &= 1e6 / own_us >= LEAST_A_SECOND and their_us / own_us >= LEAST_RATIO
    table.add_row("asked", "", "", f"{LEAST_A_SECOND:,}", "", f"{LEAST_RATIO:.1f}")
    Console(width=118).print(table)
    return 0 if is_enough else 1


if __name__ == "__main__":
    raise SystemExit(main())
