"""Whatever happens to a phone's SIP is told in a sentence."""

from __future__ import annotations

import pytest

from nattools.endpoint import Endpoint
from nattools.sip.learning import AlgSuspected, Learned
from nattools.sip.news import in_words, is_trouble
from nattools.sip.renewal import CallMoved, NeedsPhone, NotRenewed, Registered, RenewalEvent
from nattools.sip.rewriter import MediaPort, MediaUnbound, RewriterEvent, TooLarge, Unedited

SERVER, PUBLIC = Endpoint.of("203.0.113.20", 5060), Endpoint.of("203.0.113.1", 5060)
LOCAL = Endpoint.of("192.168.0.111", 9000)

EVENTS: list[tuple[RewriterEvent | RenewalEvent, bool, str]] = [
    (
        Learned(PUBLIC, LOCAL, SERVER),
        False,
        "203.0.113.20:5060 sees the phone at 203.0.113.1:5060, not at 192.",
    ),
    (Learned(PUBLIC, LOCAL), False, "the server sees"),
    (AlgSuspected(LOCAL, PUBLIC, SERVER), True, "SIP ALG"),
    (MediaUnbound((MediaPort(LOCAL),)), True, "will not arrive at 192.168.0.111:9000"),
    (Unedited("it is signed"), False, "it is signed"),
    (TooLarge(1400), False, "1400 bytes"),
    (Registered("sip:a@b", SERVER), False, "sip:a@b is registered at 203.0.113.20:5060"),
    (CallMoved(b"\xffid", False), False, "goes on"),
    (CallMoved(b"id", True), False, "the other side has moved"),
    (NeedsPhone("REGISTER", b"id", SERVER, "401"), True, "REGISTER: 401. Set credentials"),
    (NotRenewed("INVITE", b"id", SERVER, "refused: 500", 500), True, "INVITE: refused: 500"),
]


@pytest.mark.parametrize(("event", "bad", "words"), EVENTS, ids=lambda value: type(value).__name__)
def test_an_event_is_told(event: RewriterEvent | RenewalEvent, bad: bool, words: str) -> None:
    assert words in in_words(event)
    assert is_trouble(event) is bad
