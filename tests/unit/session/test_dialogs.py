"""Calls that a proxy knows, and the ways to their two sides."""

from __future__ import annotations

from nattools.session.dialogs import Call, Dialogs, refresh
from nattools.session.flows import Flow, Flows, Listener
from nattools.sip.message import SipMessage, compose_response
from tests.unit.session.proxy_desk import ALICE, BOB, PROXY, request, texts

FLOWS = Flows([Listener("u", "UDP", PROXY)], {b"example.com"})
ROUTES = [
    ("Record-Route", "<sip:d2.test;lr>, <sip:d1.test;lr>"),
    ("Record-Route", f"<sip:{PROXY};lr>"),
    ("Record-Route", "<sip:p1.test;lr>"),
    ("Record-Route", "<sip:p0.test;lr>"),
]


def begun(dialogs: Dialogs, *, tag: str = "b", call_id: str = "call") -> Call:
    """A call between Alice and Bob, with two other proxies on each side."""
    invite = SipMessage.parse(request(call_id=call_id))
    headers = [*ROUTES, ("Contact", f"<sip:bob@{BOB};alias=10.0.0.1~1~1>")]
    response = SipMessage.parse(compose_response(invite, 200, "OK", headers, to_tag=tag))
    call = dialogs.begin(invite, Flow("u", ALICE), response, Flow("u", BOB), b"sip:bob@x")
    assert call is not None
    refresh(call.callee, response)
    return call


def test_each_side_has_its_own_route() -> None:
    call = begun(Dialogs(FLOWS))
    assert call.caller.route == (b"<sip:p1.test;lr>", b"<sip:p0.test;lr>")
    assert call.callee.route == (b"<sip:d1.test;lr>", b"<sip:d2.test;lr>")
    assert call.caller.target == f"sip:alice@{ALICE}".encode()
    assert call.callee.target == f"sip:bob@{BOB}".encode()


def test_a_request_of_either_side_is_found() -> None:
    dialogs = Dialogs(FLOWS)
    call = begun(dialogs)
    assert dialogs.find(SipMessage.parse(request("BYE", to_tag="b"))) == (call, call.callee)
    assert dialogs.find(SipMessage.parse(request("BYE", from_tag="b", to_tag="a"))) == (call, call.caller)
    for other in (request("BYE"), request("BYE", to_tag="x"), request("BYE", to_tag="b", call_id="x")):
        assert dialogs.find(SipMessage.parse(other)) is None
    dialogs.forget(call)
    assert dialogs.find(SipMessage.parse(request("BYE", to_tag="b"))) is None


def test_a_response_without_a_tag_makes_no_call() -> None:
    dialogs = Dialogs(FLOWS)
    invite = SipMessage.parse(request())
    response = SipMessage.parse(compose_response(invite, 180, "Ringing"))
    assert dialogs.begin(invite, Flow("u", ALICE), response, Flow("u", BOB), b"") is None
    assert len(dialogs) == 0


def test_the_same_response_makes_one_call() -> None:
    dialogs = Dialogs(FLOWS)
    assert begun(dialogs) is begun(dialogs)
    assert begun(dialogs, tag="c") is not begun(dialogs)
    assert len(dialogs) == 2


def test_of_too_many_the_oldest_is_forgotten() -> None:
    dialogs = Dialogs(FLOWS, most=2)
    for number in range(4):
        begun(dialogs, call_id=f"call{number}")
    assert len(dialogs) == 2
    assert dialogs.find(SipMessage.parse(request("BYE", to_tag="b", call_id="call3"))) is not None


def test_a_request_to_one_side_looks_like_one_of_the_other() -> None:
    call = begun(Dialogs(FLOWS))
    numbers = []
    for _ in range(2):
        bye = SipMessage.parse(call.request_to(call.callee, "BYE", "SIP/2.0/UDP x;branch=z9hG4bKx"))
        numbers.append(bye.cseq)
        assert (bye.from_tag, bye.to_tag) == (b"a", b"b")
        assert texts(bye, "route") == ["<sip:d1.test;lr>", "<sip:d2.test;lr>"]
        assert bye.data.startswith(f"BYE sip:bob@{BOB} SIP/2.0".encode())
    assert numbers == [(2, "BYE"), (3, "BYE")]


def test_a_gruu_of_this_domain_leads_back_here() -> None:
    dialogs = Dialogs(FLOWS)
    call = begun(dialogs)
    assert dialogs.leads_elsewhere(call.callee)
    for target in (b"sip:bob@example.com;gr=1", b"", b"sip:@@"):
        call.callee.target = target
        assert not dialogs.leads_elsewhere(call.callee)
