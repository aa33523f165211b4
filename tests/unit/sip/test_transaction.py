"""When a request is sent again, and what becomes of its responses."""

from __future__ import annotations

import pytest

from nattools.endpoint import Endpoint
from nattools.errors import DecodeError
from nattools.sip.message import SipMessage, compose_request, compose_response
from nattools.sip.transaction import ClientTransaction

SERVER = Endpoint.of("203.0.113.7", 5060)


def request(method: str = "INVITE") -> bytes:
    fields = [
        ("Via", "SIP/2.0/UDP 192.0.2.1;rport;branch=z9hG4bKa"),
        ("Max-Forwards", "70"),
        ("Route", "<sip:203.0.113.7;lr>"),
        ("f", "<sip:alice@example.org>;tag=f"),
        ("To", "<sip:bob@example.org>"),
        ("Call-ID", "c"),
        ("CSeq", f"7 {method}"),
        ("Contact", "<sip:alice@192.0.2.1>"),
        ("Proxy-Authorization", 'Digest username="a"'),
    ]
    return compose_request(method, "sip:bob@example.org", fields, b"body")


def response(code: int, method: str = "INVITE") -> SipMessage:
    return SipMessage.parse(compose_response(SipMessage.parse(request(method)), code, "Word", to_tag="t"))


def run(transaction: ClientTransaction, until: float) -> list[float]:
    """Let the time pass; when something was sent."""
    times = [0.0] * len(transaction.transmits())
    while not transaction.is_over and (due := transaction.timeout_at()) <= until:
        transaction.handle_timeout(now=due)
        times += [due] * len(transaction.transmits())
    return times


def codes(transaction: ClientTransaction) -> list[int | None]:
    """The responses that come out."""
    found = []
    while (taken := transaction.next_response()) is not None:
        found.append(taken.status_code)
    return found


@pytest.mark.parametrize(
    ("method", "times"),
    [
        ("INVITE", [0, 0.5, 1.5, 3.5, 7.5, 15.5, 31.5]),
        ("REGISTER", [0, 0.5, 1.5, 3.5, 7.5, 11.5, 15.5, 19.5, 23.5, 27.5, 31.5]),
    ],
)
def test_it_is_sent_again_until_32_seconds_are_over(method: str, times: list[float]) -> None:
    transaction = ClientTransaction(request(method), SERVER, now=0)
    assert run(transaction, 100) == times
    assert transaction.has_timed_out
    transaction.receive(response(200, method), now=40)
    assert codes(transaction) == []


def test_an_invite_that_rings_is_not_sent_again_and_waits_three_minutes() -> None:
    transaction = ClientTransaction(request(), SERVER, now=0)
    transaction.receive(response(180), now=0.2)
    assert run(transaction, 180) == [0]
    assert not transaction.is_over
    transaction.receive(response(200), now=180)
    assert codes(transaction) == [180, 200]
    assert transaction.is_over


def test_nobody_rings_for_ever() -> None:
    transaction = ClientTransaction(request(), SERVER, now=0)
    transaction.receive(response(100), now=1)
    transaction.handle_timeout(now=181)
    assert transaction.has_timed_out


def test_another_request_goes_on_every_four_seconds_after_a_provisional_response() -> None:
    transaction = ClientTransaction(request("BYE"), SERVER, now=0)
    transaction.receive(response(100, "BYE"), now=0.2)
    assert run(transaction, 100) == [0, 0.5, 4.5, 8.5, 12.5, 16.5, 20.5, 24.5, 28.5]


def test_each_refusal_of_an_invite_gets_the_same_ack() -> None:
    transaction = ClientTransaction(request(), SERVER, now=0)
    transaction.transmits()
    for now in (1, 2, 3):
        transaction.receive(response(486), now=now)
    acks = transaction.transmits()
    assert len(acks) == 3
    assert {ack.destination for ack in acks} == {SERVER}
    [data] = {ack.data for ack in acks}
    assert codes(transaction) == [486]
    message, sent = SipMessage.parse(data), SipMessage.parse(request())
    assert data.startswith(b"ACK sip:bob@example.org SIP/2.0\r\n")
    assert (message.branch, message.call_id, message.cseq) == (b"z9hG4bKa", b"c", (7, "ACK"))
    assert (message.from_tag, message.to_tag, message.body) == (b"f", b"t", b"")
    for name in ("via", "route", "from", "proxy-authorization"):
        assert message.value(message.header(name)) == sent.value(sent.header(name))


def test_each_2xx_of_an_invite_comes_out() -> None:
    transaction = ClientTransaction(request(), SERVER, now=0)
    for now in (1, 2, 3):
        transaction.receive(response(200), now=now)
    transaction.receive(response(486), now=4)
    assert codes(transaction) == [200] * 3
    assert len(transaction.transmits()) == 1


def test_of_another_request_only_the_first_final_response_comes_out() -> None:
    transaction = ClientTransaction(request("BYE"), SERVER, now=0)
    for code in (481, 481, 200):
        transaction.receive(response(code, "BYE"), now=1)
    assert codes(transaction) == [481]
    assert len(transaction.transmits()) == 1


def test_a_response_to_another_method_is_passed_over() -> None:
    transaction = ClientTransaction(request(), SERVER, now=0)
    transaction.receive(response(200, "CANCEL"), now=1)
    assert codes(transaction) == []


def test_what_is_abandoned_is_not_sent_again_but_may_be_answered() -> None:
    transaction = ClientTransaction(request(), SERVER, now=0)
    transaction.abandon(now=1)
    assert run(transaction, 30) == [0]
    transaction.receive(response(200), now=30)
    assert codes(transaction) == [200]


def test_without_a_branch_there_is_no_transaction() -> None:
    with pytest.raises(DecodeError, match="branch"):
        ClientTransaction(request().replace(b"branch", b"other"), SERVER, now=0)


@pytest.mark.parametrize("method", ["INVITE", "REGISTER"])
def test_over_a_stream_it_is_sent_once(method: str) -> None:
    transaction = ClientTransaction(request(method), SERVER, now=0, is_reliable=True)
    assert run(transaction, 100) == [0]
    assert transaction.has_timed_out


def test_what_the_driver_knows_is_not_read_again() -> None:
    transaction = ClientTransaction(b"never looked at", SERVER, now=0, known=(b"z9hG4bKa", "BYE"))
    assert (transaction.branch, transaction.method) == (b"z9hG4bKa", "BYE")
    assert [transmit.data for transmit in transaction.transmits()] == [b"never looked at"]
