"""A rewriter whose bindings come, go and change, and what it still understands then."""

from __future__ import annotations

from nattools.sip.rewriter import MOST_EVENTS, MediaUnbound, Rewriter, Unedited
from tests.unit.sip.bound import (
    AUDIO,
    LOCAL,
    PUBLIC,
    REGISTRAR,
    RTP,
    Binding,
    at,
    bound,
    events,
    invite,
    wire,
)


def test_a_lost_binding_is_told_and_followed_when_it_is_back() -> None:
    binding = Binding(LOCAL, None)
    made = Rewriter(binding)
    message = wire(
        "OPTIONS sip:a@h SIP/2.0\nVia: SIP/2.0/UDP 192.168.0.111:5060\nContact: <sip:a@192.168.0.111>"
    )
    assert made.public_for(REGISTRAR) is None
    assert made.outgoing(message, REGISTRAR) == message
    assert {type(event) for event in events(made)} == {Unedited}
    answer = b"SIP/2.0 200 OK\r\n" + message.partition(b"\r\n")[2]
    assert made.incoming(answer, REGISTRAR) == answer
    binding.endpoint = PUBLIC
    assert made.outgoing(message, REGISTRAR).count(b"203.0.113.1:40000") == 2
    assert events(made) == []


def test_another_binding_takes_over() -> None:
    made = Rewriter(Binding(LOCAL, PUBLIC))
    made.set_signalling(bound("192.168.0.111:5062", "203.0.113.1:5062"))
    message = wire("OPTIONS sip:a@h SIP/2.0\nVia: SIP/2.0/UDP 192.168.0.111:5062;rport")
    assert b"203.0.113.1:5062" in made.outgoing(message, REGISTRAR)
    old = wire("OPTIONS sip:a@203.0.113.1:40000 SIP/2.0\nVia: SIP/2.0/UDP 203.0.113.7")
    assert made.incoming(old, REGISTRAR).startswith(b"OPTIONS sip:a@192.168.0.111:5062 SIP/2.0")


def test_another_local_address_is_followed() -> None:
    binding = Binding(LOCAL, PUBLIC)
    made = Rewriter(binding)
    binding.local = at("10.0.0.9:5060")
    message = wire("OPTIONS sip:a@h SIP/2.0\nVia: SIP/2.0/UDP 10.0.0.9:5060;rport")
    assert b"203.0.113.1:40000" in made.outgoing(message, REGISTRAR)


def test_a_phone_that_is_slow_to_notice_its_new_address_is_still_understood() -> None:
    binding = Binding(LOCAL, PUBLIC)
    made = Rewriter(binding)
    media = Binding(RTP.local, RTP.endpoint)
    made.add_media(media)
    message = wire("OPTIONS sip:a@h SIP/2.0\nVia: SIP/2.0/UDP 192.168.0.111:5060;rport;branch=z9hG4bKa")
    binding.local, media.local = at("10.0.0.9:5060"), at("10.0.0.9:10002")
    sent = made.outgoing(message, REGISTRAR)
    assert b"Via: SIP/2.0/UDP 203.0.113.1:40000;rport" in sent
    answer = sent.replace(b"OPTIONS sip:a@h SIP/2.0", b"SIP/2.0 200 OK")
    assert made.incoming(answer, REGISTRAR).partition(b"\r\n")[2] == message.partition(b"\r\n")[2]
    assert b"m=audio 41002 RTP/AVP 0" in made.outgoing(invite(), REGISTRAR)


def test_addresses_of_long_ago_are_somebody_elses_by_now() -> None:
    binding = Binding(LOCAL, PUBLIC)
    made = Rewriter(binding)
    for number in range(5):
        binding.local = at(f"10.0.0.{number}:5060")
        made.public_for(None)
    for host, is_known in (("192.168.0.111", False), ("10.0.0.1", True)):
        message = wire(f"OPTIONS sip:a@h SIP/2.0\nVia: SIP/2.0/UDP {host}:5060;rport")
        assert (made.outgoing(message, REGISTRAR) != message) is is_known


def test_more_texts_than_are_remembered_change_nothing() -> None:
    made = Rewriter(Binding(LOCAL, PUBLIC))
    for number in range(1000):
        message = wire(
            f"OPTIONS sip:a@10.1.{number % 200}.{number // 200}:7 SIP/2.0\nVia: SIP/2.0/UDP 10.2.0.1"
        )
        assert made.incoming(message, REGISTRAR) == message
    message = wire("OPTIONS sip:a@203.0.113.1:40000 SIP/2.0\nVia: SIP/2.0/UDP 203.0.113.7")
    assert made.incoming(message, REGISTRAR) != message


def test_events_nobody_takes_are_bounded() -> None:
    made = Rewriter(Binding(LOCAL, PUBLIC))
    for number in range(MOST_EVENTS + 10):
        made.outgoing(invite(AUDIO.replace("10002", str(10002 + 2 * number))), REGISTRAR)
    found = events(made)
    assert len(found) == MOST_EVENTS
    assert isinstance(found[-1], MediaUnbound)
    assert found[-1].ports[0].local.port == 10002 + 2 * (MOST_EVENTS + 9)


def test_endpoints_of_long_ago_are_somebody_elses_by_now() -> None:
    binding = Binding(LOCAL, PUBLIC)
    made = Rewriter(binding)
    for port in range(20):
        binding.endpoint = at(f"203.0.113.1:{50000 + port}")
        made.public_for(None)
    for uri, is_known in (("203.0.113.1:40000", False), ("203.0.113.1:50010", True)):
        message = wire(f"OPTIONS sip:a@{uri} SIP/2.0\nVia: SIP/2.0/UDP 203.0.113.7")
        assert (made.incoming(message) != message) is is_known
