"""Where a request goes next, by its Route, its Request-URI and its dialog."""

from __future__ import annotations

import pytest

from nattools.endpoint import Endpoint
from nattools.errors import DecodeError
from nattools.session.dialogs import Dialogs, Party
from nattools.session.flows import Flow, Flows, Listener
from nattools.session.routing import Itinerary, NextHop, apply, leads_to, plan, remove_first_values
from nattools.sip.message import SipMessage
from nattools.sip.uri import SipUri
from tests.unit.session.proxy_desk import ALICE, BOB, CAROL, PROXY, request, texts

SIX = Endpoint.of("2001:db8::7", 5060)
OWN = f"<sip:{PROXY};lr>"
ARRIVED = Flow("u", ALICE)


def flows() -> Flows:
    listeners = [
        Listener("u", "UDP", PROXY),
        Listener("t", "TCP", PROXY),
        Listener("s", "TLS", PROXY.with_port(5061)),
        Listener("six", "UDP", SIX),
    ]
    return Flows(listeners, {b"example.com"})


def planned(uri: str, *routes: str) -> tuple[Itinerary, SipMessage]:
    """The itinerary of an INVITE, and the INVITE as it is changed by it."""
    message = SipMessage.parse(request(uri=uri, headers=[("Route", route) for route in routes]))
    known = flows()
    itinerary = plan(message, ARRIVED, known, Dialogs(known))
    apply(itinerary, message)
    return itinerary, SipMessage.parse(message.encode())


def leads(itinerary: Itinerary) -> str:
    hop = itinerary.hop
    return "nowhere" if hop is None or hop.flow is None else f"{hop.flow.socket} {hop.flow.remote}"


@pytest.mark.parametrize(
    ("uri", "route", "flow", "does"),
    [
        (f"sip:bob@{BOB}", "", None, True),
        (f"sip:bob@{BOB}", "", f"{BOB}", True),
        ("sip:bob@10.0.0.1", "", f"{CAROL}", True),  # by the NAT that it is heard from
        (f"sip:bob@{ALICE}", "", None, False),
        (f"sip:bob@{ALICE}", "", f"{ALICE}", False),
        ("sip:bob@Reached.Example", "", None, True),  # as its INVITE was sent
        (f"sip:bob@{ALICE}", f"<sip:{ALICE};lr>", None, True),
        (f"sip:bob@{ALICE}", "<sip:[::1", None, False),
    ],
)
def test_a_hop_leads_to_a_party_or_to_somebody_else(
    uri: str, route: str, flow: str | None, does: bool
) -> None:
    party = Party(
        b"t",
        b"<sip:bob@example.com>;tag=t",
        b"sip:bob@%b" % str(BOB).encode(),
        (route.encode(),) if route else (),
        Flow("u", CAROL),
        sent_to=b"sip:bob@reached.example",
    )
    parsed = SipUri.parse(uri.encode())
    hop = NextHop(parsed.host, parsed.port, "UDP", None if flow is None else Flow("u", Endpoint.parse(flow)))
    assert leads_to(hop, party) is does


@pytest.mark.parametrize(
    ("uri", "where"),
    [
        (f"sip:bob@{BOB}", f"u {BOB}"),
        ("sip:bob@203.0.113.11", "u 203.0.113.11:5060"),
        (f"sip:bob@{BOB};transport=tcp", f"t {BOB}"),
        (f"sip:bob@{BOB};transport=TLS", f"s {BOB}"),
        ("sips:bob@203.0.113.11", "s 203.0.113.11:5061"),
        ("sip:bob@[2001:db8::9]", "six [2001:db8::9]:5060"),
        ("sip:bob@[2001:db8::9];transport=tcp", "nowhere"),
        (f"sip:bob@{BOB};transport=sctp", "nowhere"),
        ("sip:bob@203.0.113.11:0", "nowhere"),
        ("sip:bob@elsewhere.test", "nowhere"),
        ("sip:bob@10.0.0.1;alias=203.0.113.1~2753~1", "u 203.0.113.1:2753"),
        ("tel:123", "nowhere"),
    ],
)
def test_without_a_route_the_request_uri_leads(uri: str, where: str) -> None:
    itinerary, _ = planned(uri)
    assert leads(itinerary) == where
    assert itinerary.hop is not None


@pytest.mark.parametrize(
    "uri",
    [
        "sip:bob@example.com",
        "sip:bob@EXAMPLE.com.",
        "sip:bob@example.com:5060",
        f"sip:bob@{PROXY}",
        "sip:203.0.113.7",
        "sip:bob@[2001:db8::7]",
    ],
)
def test_who_is_addressed_here_is_known_to_a_registrar(uri: str) -> None:
    assert planned(uri)[0].hop is None


@pytest.mark.parametrize(
    "uri", ["sip:bob@example.com:5070", "sip:bob@203.0.113.7:5070", "sip:bob@example.org"]
)
def test_another_port_or_name_is_somebody_else(uri: str) -> None:
    assert planned(uri)[0].hop is not None


def test_the_own_route_is_taken_off_and_the_next_one_leads() -> None:
    itinerary, message = planned(f"sip:bob@{BOB}", f"{OWN}, <sip:{CAROL};lr>", "<sip:last.test;lr>")
    assert leads(itinerary) == f"u {CAROL}"
    assert texts(message, "route") == [f"<sip:{CAROL};lr>", "<sip:last.test;lr>"]


def test_all_own_routes_are_taken_off() -> None:
    itinerary, message = planned(f"sip:bob@{BOB}", f"<sip:{PROXY};transport=tcp;lr>", OWN)
    assert leads(itinerary) == f"u {BOB}"
    assert texts(message, "route") == []


def test_a_strict_router_becomes_the_request_uri() -> None:
    itinerary, message = planned(f"sip:bob@{BOB}", OWN, f"<sip:{CAROL}>", "<sip:last.test;lr>")
    assert leads(itinerary) == f"u {CAROL}"
    assert message.data.startswith(f"INVITE sip:{CAROL} SIP/2.0".encode())
    assert texts(message, "route") == ["<sip:last.test;lr>", f"<sip:bob@{BOB}>"]


def test_what_comes_from_a_strict_router_has_its_target_at_the_end() -> None:
    itinerary, message = planned(f"sip:{PROXY};lr", f"<sip:{CAROL};lr>", f"<sip:bob@{BOB}>")
    assert leads(itinerary) == f"u {CAROL}"
    assert message.data.startswith(f"INVITE sip:bob@{BOB} SIP/2.0".encode())
    assert texts(message, "route") == [f"<sip:{CAROL};lr>"]
    itinerary, message = planned(f"sip:{PROXY};lr", f"<sip:bob@{BOB}>")
    assert leads(itinerary) == f"u {BOB}"
    assert texts(message, "route") == []


@pytest.mark.parametrize("route", ["*", "<sip:@@>", "<>"])
def test_a_route_that_is_none_is_refused(route: str) -> None:
    message = SipMessage.parse(request(headers=[("Route", route)]))
    known = flows()
    if route == "*":
        assert plan(message, ARRIVED, known, Dialogs(known)).hop is None
        return
    with pytest.raises(DecodeError):
        plan(message, ARRIVED, known, Dialogs(known))


def test_values_that_stay_are_left_as_they_were_written() -> None:
    folded = b"Route: <sip:a;lr>,\r\n\t<sip:b;lr> , <sip:c;lr>\r\nroute :<sip:d;lr>\r\n"
    data = request().replace(b"From:", folded + b"From:")
    for number, left in ((0, folded), (1, b"Route: <sip:b;lr> , <sip:c;lr>\r\nroute :<sip:d;lr>\r\n")):
        message = SipMessage.parse(data)
        remove_first_values(message, "route", number)
        assert message.encode() == data.replace(folded, left)
    for number, left in ((3, b"route :<sip:d;lr>\r\n"), (4, b""), (9, b"")):
        message = SipMessage.parse(data)
        remove_first_values(message, "route", number)
        assert message.encode() == data.replace(folded, left)


def test_an_itinerary_to_another_target_keeps_the_rest() -> None:
    itinerary = Itinerary(b"sip:a@b", None, 1, (b"<sip:c;lr>",))
    assert itinerary.to(b"sip:d@e", (b"<sip:f;lr>",)) == Itinerary(
        b"sip:d@e", None, 1, (b"<sip:f;lr>", b"<sip:c;lr>")
    )
