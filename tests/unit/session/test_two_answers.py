"""Phones that answer in the same instant, and callers that take the first answer alone."""

from __future__ import annotations

import pytest

from nattools.session.events import CallEnded, CallStarted
from nattools.sip.message import SipMessage
from tests.unit.session.proxy_desk import (
    ALICE,
    BOB,
    BOB_TARGET,
    CAROL,
    CAROL_TARGET,
    Desk,
    lines,
    request,
)

_TAGS = {BOB: "b", CAROL: "c"}
_ALL_KNOWN_S = 64 * 0.5
"""By then the caller has seen all phones that have answered (RFC 3261 §13.2.2.4)."""


def both_answer() -> tuple[Desk, list[SipMessage]]:
    """Alice calls, Bob and Carol answer; the INVITEs that they got."""
    desk = Desk()
    invites = desk.invite(BOB_TARGET, CAROL_TARGET)
    for invite, source in zip(invites, (BOB, CAROL), strict=True):
        contact = f"<sip:{_TAGS[source]}@{source}>"
        desk.respond(invite, 200, source, tag=_TAGS[source], contact=contact)
        desk.event(CallStarted)
    return desk, invites


def acknowledge(desk: Desk, *tags: str) -> None:
    for tag in tags:
        via = [f"SIP/2.0/UDP {ALICE};branch=z9hG4bKack{tag}"]
        desk.put(request("ACK", via=via, to_tag=tag))
        assert desk.forward()


def byes(desk: Desk, seconds: float) -> list[str]:
    """Where BYEs go within that time, the first of each."""
    sent = lines(one for _, one in desk.wait(seconds) if one.data.startswith(b"BYE"))
    return list(dict.fromkeys(sent))


@pytest.mark.parametrize(("taken", "left"), [("b", CAROL), ("c", BOB)], ids=["first", "second"])
def test_who_gets_no_ack_while_another_does_is_told_that_it_is_over(taken: str, left: object) -> None:
    desk, _ = both_answer()
    acknowledge(desk, taken)
    assert byes(desk, _ALL_KNOWN_S - 0.1) == []
    to = "c" if taken == "b" else "b"
    assert byes(desk, 0.2) == [f"BYE sip:{to}@{left} -> {left}"]
    ended = desk.event(CallEnded)
    assert ended.call.callee.tag == to.encode()
    assert ended.why == "the caller has taken another phone's answer"
    assert desk.has_no_event()
    assert desk.proxy.dialogs.find(SipMessage.parse(request("BYE", to_tag=taken))) is not None


def test_it_is_told_as_by_the_caller_and_with_a_number_of_his() -> None:
    desk, _ = both_answer()
    acknowledge(desk, "b")
    bye = next(
        SipMessage.parse(one.data) for _, one in desk.wait(_ALL_KNOWN_S) if one.data.startswith(b"BYE")
    )
    assert (bye.from_tag, bye.to_tag, bye.cseq) == (b"a", b"c", (2, "BYE"))
    assert desk.respond(bye, 200, CAROL, tag="c") == []
    assert byes(desk, 100) == []


@pytest.mark.parametrize("tags", [("b", "c"), ()], ids=["both are acknowledged", "the ACKs go another way"])
def test_a_caller_that_may_know_of_both_is_left_alone(tags: tuple[str, ...]) -> None:
    desk, _ = both_answer()
    acknowledge(desk, *tags)
    assert byes(desk, 200) == []
    assert desk.has_no_event()


def test_nor_is_there_a_second_bye_where_the_caller_sends_his_own() -> None:
    desk, _ = both_answer()
    acknowledge(desk, "b")
    via = [f"SIP/2.0/UDP {ALICE};branch=z9hG4bKbye"]
    desk.put(request("BYE", f"sip:c@{CAROL}", via=via, to_tag="c", cseq=2))
    (bye,) = desk.forward()
    desk.respond(SipMessage.parse(bye.data), 200, CAROL, tag="c")
    assert desk.event(CallEnded).why == ""
    assert byes(desk, 200) == []


def test_a_call_that_began_alone_is_not_ended_for_want_of_an_ack() -> None:
    desk = Desk()
    (invite,) = desk.invite()
    desk.respond(invite, 200)
    desk.event(CallStarted)
    assert byes(desk, 200) == []
    assert desk.has_no_event()
