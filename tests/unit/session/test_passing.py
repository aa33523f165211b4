"""What the proxy writes into a message that it passes on, or cancels."""

from __future__ import annotations

import pytest

from nattools.endpoint import Endpoint
from nattools.errors import DecodeError
from nattools.session import passing
from nattools.session.acceptance import branch, is_loop, mark, max_forwards
from nattools.session.flows import Flows, Listener
from nattools.sip.message import SipMessage
from tests.unit.session.proxy_desk import ALICE, BOB, NAT, PROXY, request, texts


@pytest.mark.parametrize(
    ("via", "marked", "reply"),
    [
        ("203.0.113.1:2753;branch=b", "203.0.113.1:2753;branch=b", 2753),
        ("203.0.113.1;branch=b", "203.0.113.1;branch=b", 5060),
        ("203.0.113.1;rport", "203.0.113.1;rport=2753;received=203.0.113.1", 2753),
        ("203.0.113.1;rport;branch=b", "203.0.113.1;rport=2753;branch=b;received=203.0.113.1", 2753),
        ("10.0.0.1;branch=b", "10.0.0.1;branch=b;received=203.0.113.1;rport=2753", 2753),
        ("10.0.0.1;rport=9;received", "10.0.0.1;rport=2753;received=203.0.113.1", 2753),
        ("phone.test:5070;branch=b", "phone.test:5070;branch=b;received=203.0.113.1", 5070),
        ("203.0.113.1:5070;received=8.8.8.8", "203.0.113.1:5070;received=203.0.113.1", 5070),
    ],
)
def test_the_top_via_says_where_the_request_came_from(via: str, marked: str, reply: int) -> None:
    message = SipMessage.parse(request(via=[f"SIP/2.0/UDP {via}", "SIP/2.0/UDP 10.0.0.2;rport"]))
    after = passing.mark_source(message, NAT)
    assert texts(after, "via") == [f"SIP/2.0/UDP {marked}", "SIP/2.0/UDP 10.0.0.2;rport"]
    assert passing.reply_endpoint(after, NAT) == NAT.with_port(reply)
    again = passing.mark_source(SipMessage.parse(after.data), NAT)
    assert again.data == after.data


def test_an_ipv6_source_is_written_bare() -> None:
    message = SipMessage.parse(request(via=["SIP/2.0/UDP [fd00::1]:5060;rport;branch=b"]))
    after = passing.mark_source(message, Endpoint.of("2001:db8::1", 40000))
    (via,) = texts(after, "via")
    assert via == "SIP/2.0/UDP [fd00::1]:5060;rport=40000;branch=b;received=2001:db8::1"


def test_a_request_without_a_via_cannot_be_answered() -> None:
    with pytest.raises(DecodeError):
        passing.mark_source(SipMessage.parse(request(via=[])), NAT)


@pytest.mark.parametrize(
    ("listener", "count"), [(Listener("t", "TCP", PROXY), 2), (Listener("v", "UDP", PROXY), 1)]
)
def test_two_sides_that_differ_are_both_recorded(listener: Listener, count: int) -> None:
    message = SipMessage.parse(request(headers=[("Record-Route", f"<sip:{BOB};lr>")]))
    passing.push_record_route(message, Listener("u", "UDP", PROXY), listener, is_sips=False)
    values = texts(SipMessage.parse(message.encode()), "record-route")
    both = [f"<sip:{PROXY};transport=tcp;lr>", f"<sip:{PROXY};lr>"]
    assert values == [*both[2 - count :], f"<sip:{BOB};lr>"]


def test_how_far_a_request_may_fork_is_shared() -> None:
    message = SipMessage.parse(request(headers=[("Max-Breadth", "7")]))
    assert passing.breadth(message) == 7
    passing.limit_breadth(message, 3)
    assert texts(SipMessage.parse(message.encode()), "max-breadth") == ["2"]
    plain = SipMessage.parse(request())
    assert passing.breadth(plain) == 60
    passing.limit_breadth(plain, 1)
    assert not plain.is_edited
    passing.limit_breadth(plain, 4)
    assert texts(SipMessage.parse(plain.encode()), "max-breadth") == ["15"]
    assert passing.breadth(SipMessage.parse(request(headers=[("Max-Breadth", "0")]))) == 1
    assert passing.breadth(SipMessage.parse(request(headers=[("Max-Breadth", "x")]))) == 60


def test_a_cancel_repeats_what_names_the_request() -> None:
    headers = [("Route", "<sip:a.test;lr>"), ("Max-Forwards", "9")]
    sent = SipMessage.parse(
        request(via=[f"SIP/2.0/UDP {PROXY};branch=z9hG4bKx", f"SIP/2.0/UDP {ALICE}"], headers=headers)
    )
    cancel = SipMessage.parse(passing.compose_cancel(sent, b"SIP;cause=200"))
    assert texts(cancel, "via") == [f"SIP/2.0/UDP {PROXY};branch=z9hG4bKx"]
    assert texts(cancel, "route") == ["<sip:a.test;lr>"]
    assert cancel.cseq == (1, "CANCEL")
    assert cancel.data.startswith(b"CANCEL sip:bob@example.com SIP/2.0\r\n")
    for name in ("from", "to", "call-id"):
        assert cancel.first_value(name) == sent.first_value(name)
    assert cancel.first_value("reason") == b"SIP;cause=200"
    with pytest.raises(DecodeError):
        passing.compose_cancel(SipMessage.parse(request(via=[])), b"")


@pytest.mark.parametrize(
    ("value", "hops"), [("70", 70), ("0", 0), ("255", 255), ("256", None), ("-1", None), ("", None)]
)
def test_hops_are_a_number_up_to_255(value: str, hops: int | None) -> None:
    assert max_forwards(SipMessage.parse(request(headers=[("Max-Forwards", value)]))) == hops


def test_the_mark_of_a_request_is_of_what_says_where_it_goes() -> None:
    first = mark(SipMessage.parse(request()))
    assert mark(SipMessage.parse(request(via=["SIP/2.0/UDP x"], headers=[("Max-Forwards", "3")]))) == first
    others = [
        request(uri="sip:carol@example.com"),
        request(cseq=2),
        request(call_id="x"),
        request(headers=[("Route", "<sip:x;lr>")]),
        request(to_tag="x"),
        request(from_tag="x"),
    ]
    assert first not in [mark(SipMessage.parse(data)) for data in others]


def test_a_loop_is_told_by_an_own_via_alone() -> None:
    flows = Flows([Listener("u", "UDP", PROXY)])
    own = branch(SipMessage.parse(request()), bytes(8))
    for sent_by, looped in ((PROXY, True), (BOB, False)):
        vias = [f"SIP/2.0/UDP {ALICE};branch=z9hG4bKa", "broken", f"SIP/2.0/UDP {sent_by};branch={own}"]
        assert is_loop(SipMessage.parse(request(via=vias)), flows) is looped
