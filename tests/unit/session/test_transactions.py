"""When a server transaction answers again, and when it is over; and what wants the time next."""

from __future__ import annotations

import pytest

from nattools.errors import DecodeError
from nattools.session.transactions import Alarms, ServerTransaction, server_key
from nattools.sip.message import SipMessage
from tests.unit.session.proxy_desk import ALICE, BOB, request


def message(method: str = "INVITE", **more: int) -> SipMessage:
    return SipMessage.parse(request(method, cseq=more.get("cseq", 1)))


def run(transaction: ServerTransaction, until: float) -> list[float]:
    """Let the time pass; when something was sent."""
    times = [0.0] * len(transaction.responses())
    while (due := transaction.timeout_at()) is not None and due <= until:
        transaction.handle_timeout(now=due)
        times += [due] * len(transaction.responses())
    return times


def test_a_refusal_is_sent_again_for_32_seconds() -> None:
    transaction = ServerTransaction(message(), is_reliable=False)
    assert transaction.timeout_at() is None
    transaction.respond(b"no", 486, now=0)
    assert run(transaction, 100) == [0, 0.5, 1.5, 3.5, 7.5, 11.5, 15.5, 19.5, 23.5, 27.5, 31.5]
    assert transaction.is_over


def test_its_ack_ends_that_and_is_absorbed_for_5_seconds() -> None:
    transaction = ServerTransaction(message(), is_reliable=False)
    transaction.respond(b"no", 486, now=0)
    assert transaction.receive(message("ACK"), now=1)
    assert transaction.receive(message("ACK"), now=2)
    assert run(transaction, 5.9) == [0]
    assert not transaction.is_over
    assert run(transaction, 6) == []
    assert transaction.is_over


def test_over_a_stream_nothing_is_sent_twice() -> None:
    transaction = ServerTransaction(message(), is_reliable=True)
    transaction.respond(b"no", 486, now=0)
    assert run(transaction, 31) == [0]
    transaction.receive(message("ACK"), now=31)
    assert transaction.is_over
    other = ServerTransaction(message("BYE"), is_reliable=True)
    other.respond(b"ok", 200, now=0)
    assert other.is_over


@pytest.mark.parametrize("method", ["INVITE", "BYE"])
def test_a_request_that_comes_again_gets_the_latest_response(method: str) -> None:
    transaction = ServerTransaction(message(method), is_reliable=False)
    assert transaction.receive(message(method), now=0)
    assert transaction.responses() == []
    for code in (100, 180, 486):
        transaction.respond(b"%d" % code, code, now=0)
        assert transaction.receive(message(method), now=0)
        assert transaction.responses() == [b"%d" % code] * 2


def test_after_a_2xx_an_invite_is_absorbed_and_each_further_2xx_sent() -> None:
    transaction = ServerTransaction(message(), is_reliable=False)
    assert transaction.respond(b"ok", 200, now=0)
    assert transaction.receive(message(), now=1)
    assert transaction.respond(b"ok too", 200, now=2)
    assert not transaction.respond(b"late", 180, now=2)
    assert not transaction.respond(b"late", 486, now=2)
    assert transaction.responses() == [b"ok", b"ok too"]
    assert not transaction.receive(message("ACK"), now=3)
    assert run(transaction, 31) == []
    assert not transaction.is_over
    run(transaction, 32)
    assert transaction.is_over


def test_an_ack_of_another_invite_is_not_absorbed() -> None:
    transaction = ServerTransaction(message(), is_reliable=False)
    transaction.respond(b"no", 486, now=0)
    assert not transaction.receive(message("ACK", cseq=2), now=1)
    assert run(transaction, 1) == [0, 0.5]


def test_what_is_abandoned_stays_silent() -> None:
    transaction = ServerTransaction(message(), is_reliable=False)
    transaction.respond(b"trying", 100, now=0)
    transaction.responses()
    transaction.abandon(now=0)
    assert transaction.receive(message(), now=1)
    assert not transaction.respond(b"ok", 200, now=1)
    assert run(transaction, 31) == []
    run(transaction, 32)
    assert transaction.is_over


def key(data: bytes, method: str = "") -> object:
    return server_key(SipMessage.parse(data), method=method)


def test_a_transaction_is_named_by_branch_sent_by_number_and_method() -> None:
    invite = key(request())
    assert key(request(call_id="x", from_tag="x")) == invite
    assert key(request("ACK", to_tag="x")) == invite
    assert key(request("CANCEL"), "INVITE") == invite
    others = [
        request("CANCEL"),
        request(cseq=2),  # pyVoIP 1.6 answers a challenge on the branch that was challenged
        request(via=[f"SIP/2.0/UDP {ALICE};branch=z9hG4bKb"]),
        request(via=[f"SIP/2.0/UDP {BOB};branch=z9hG4bKa"]),
    ]
    assert invite not in [key(data) for data in others]


def test_nobody_else_sends_again_or_cancels_what_one_has_sent() -> None:
    for via in ([f"SIP/2.0/UDP {ALICE};branch=z9hG4bKa"], [f"SIP/2.0/UDP {ALICE}"]):
        invite, cancel = (SipMessage.parse(request(method, via=via)) for method in ("INVITE", "CANCEL"))
        assert server_key(cancel, ALICE.ip, "INVITE") == server_key(invite, ALICE.ip)
        assert server_key(cancel, BOB.ip, "INVITE") != server_key(invite, ALICE.ip)


def test_without_the_cookie_the_headers_name_it() -> None:
    via = [f"SIP/2.0/UDP {ALICE}"]
    invite = key(request(via=via))
    assert key(request("ACK", via=via, to_tag="x")) == invite
    assert invite not in [key(request(via=via, **{name: value})) for name, value in DIFFERENT]  # type: ignore[arg-type] # each of its own type


DIFFERENT: list[tuple[str, object]] = [("call_id", "x"), ("cseq", 2), ("from_tag", "x")]


def test_a_request_without_a_via_has_no_name() -> None:
    with pytest.raises(DecodeError):
        key(request(via=[]))


def test_alarms_go_off_in_their_order_and_the_last_setting_counts() -> None:
    alarms = Alarms()
    assert alarms.next() is None
    for name, when in (("a", 3.0), ("b", 1.0), ("c", 2.0), ("a", 0.5), ("b", 4.0)):
        alarms.set(name, when)
    assert alarms.next() == 0.5
    alarms.set("c", None)
    assert list(alarms.due(now=3)) == ["a"]
    assert alarms.next() == 4
    assert list(alarms.due(now=4)) == ["b"]
    assert alarms.next() is None
