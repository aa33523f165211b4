"""Event subscriptions: headers out, replies and events in, and whether an event was lost."""

from __future__ import annotations

import pytest

from nattools.endpoint import Endpoint
from nattools.errors import DecodeError, UpnpError
from nattools.upnp.gena import (
    MOST_PROPERTIES,
    Event,
    PreconditionFailedError,
    Subscription,
    parse_event,
    parse_subscription,
    parse_timeout,
    renew_headers,
    subscribe_headers,
    unsubscribe_headers,
)

SID = "uuid:6c5b8f2e-0001"


def test_a_subscription_is_asked_for_like_this() -> None:
    assert subscribe_headers(Endpoint.of("192.168.1.20", 40000), "/events/1") == (
        ("CALLBACK", "<http://192.168.1.20:40000/events/1>"),
        ("NT", "upnp:event"),
        ("TIMEOUT", "Second-1800"),
    )
    assert renew_headers(SID, timeout_s=300) == (("SID", SID), ("TIMEOUT", "Second-300"))
    assert unsubscribe_headers(SID) == (("SID", SID),)


def test_the_callback_to_an_ipv6_address_has_brackets_and_no_zone() -> None:
    headers = dict(subscribe_headers(Endpoint.of("fe80::1%eth0", 40000)))
    assert headers["CALLBACK"] == "<http://[fe80::1]:40000/>"


@pytest.mark.parametrize(
    ("text", "timeout_s"),
    [
        ("Second-300", 300),
        ("second-300", 300),
        (" SECOND-1801 ", 1801),
        ("infinite", 1800),
        ("Second-infinite", 1800),
        ("", 1800),
        ("300", 1800),
        ("Second--5", 1800),
        ("Second-٣٠٠", 1800),
        ("Second-" + "9" * 5000, 1800),
        ("Second-0", 30),
        ("Second-4294967295", 86400),
    ],
)
def test_the_timeout_is_read_or_else_half_an_hour(text: str, timeout_s: int) -> None:
    assert parse_timeout(text) == timeout_s


def test_a_granted_subscription_is_renewed_at_half_its_time() -> None:
    headers = [("sid", SID), ("Timeout", "Second-300")]
    assert parse_subscription(200, headers, now=10) == Subscription(SID, 300, 160.0)
    assert parse_subscription(200, [("SID", SID)], now=10) == Subscription(SID, 1800, 910.0)


def test_a_renewal_goes_on_counting_events() -> None:
    old = Subscription(SID, 300, 160.0, sequence=7)
    assert parse_subscription(200, [("SID", SID)], now=160, renewed=old) == Subscription(SID, 1800, 1060, 7)
    renewed = parse_subscription(200, [("TIMEOUT", "Second-60")], now=160, renewed=old)
    assert renewed == Subscription(SID, 60, 190.0, 7)
    other = parse_subscription(200, [("SID", "uuid:other")], now=160, renewed=old)
    assert other == Subscription("uuid:other", 1800, 1060.0, None)


def test_a_refused_subscription_says_which_of_two_things_412_means() -> None:
    with pytest.raises(PreconditionFailedError, match="refuses to send events") as caught:
        parse_subscription(412, [], now=0)
    assert caught.value.code == 412
    with pytest.raises(PreconditionFailedError, match="subscribe again"):
        parse_subscription(412, [], now=0, renewed=Subscription(SID, 300, 160.0))


@pytest.mark.parametrize("status", [302, 400, 404, 500, 503])
def test_a_refused_subscription_has_the_status_for_a_code(status: int) -> None:
    with pytest.raises(UpnpError, match=str(status)) as caught:
        parse_subscription(status, [("SID", SID)], now=0)
    assert (type(caught.value), caught.value.code) == (UpnpError, status)


@pytest.mark.parametrize("sid", ["", " ", "uuid:\r\nHost: x", "uuid:é", "u" * 257])
def test_an_id_that_cannot_go_into_a_header_is_refused(sid: str) -> None:
    with pytest.raises(DecodeError, match="subscription id"):
        parse_subscription(200, [("SID", sid)], now=0)


def test_a_reply_without_an_id_is_refused() -> None:
    with pytest.raises(DecodeError):
        parse_subscription(200, [], now=0)


HEADERS = [
    ("HOST", "192.168.1.20"),
    ("NT", "upnp:event"),
    ("NTS", "upnp:propchange"),
    ("SID", SID),
    ("SEQ", "0"),
]
# as miniupnpd writes it
BODY = (
    b'<e:propertyset xmlns:e="urn:schemas-upnp-org:event-1-0" xmlns:s="urn:x">'
    b"<e:property><ExternalIPAddress>11.22.33.2</ExternalIPAddress></e:property>"
    b"<e:property><ConnectionStatus>Connected</ConnectionStatus></e:property></e:propertyset>\r\n\r\n"
)
PROPERTIES = {"externalipaddress": "11.22.33.2", "connectionstatus": "Connected"}


def changed(name: str, value: str | None) -> list[tuple[str, str]]:
    rest = [(key, text) for key, text in HEADERS if key != name]
    return rest if value is None else [*rest, (name, value)]


def test_an_event_has_all_its_properties() -> None:
    assert parse_event(HEADERS, BODY) == Event(SID, 0, PROPERTIES)
    lower = [(name.lower(), value) for name, value in HEADERS]
    assert parse_event(lower, BODY) == Event(SID, 0, PROPERTIES)


@pytest.mark.parametrize(
    "body",
    [
        BODY.replace(b"e:", b"").replace(b":e=", b"="),
        b"<propertyset><property><ExternalIPAddress>11.22.33.2</ExternalIPAddress><ConnectionStatus>Connected"
        b"</ConnectionStatus></property></propertyset>",
    ],
)
def test_an_event_may_be_spelled_like_this(body: bytes) -> None:
    assert parse_event(HEADERS, body).properties == PROPERTIES


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        (changed("NTS", None), BODY),
        (changed("NTS", "ssdp:alive"), BODY),
        (changed("SID", None), BODY),
        (changed("SEQ", None), BODY),
        (changed("SEQ", "-1"), BODY),
        (changed("SEQ", "4294967296"), BODY),
        (HEADERS, b""),
        (HEADERS, b"<a/>"),
        (HEADERS, b"<!DOCTYPE a><a/>"),
        (HEADERS, BODY[:-30]),
        (
            HEADERS,
            b"<a>"
            + b"".join(b"<property><a%d/></property>" % n for n in range(MOST_PROPERTIES + 1))
            + b"</a>",
        ),
    ],
)
def test_what_is_no_event_is_refused(headers: list[tuple[str, str]], body: bytes) -> None:
    with pytest.raises(DecodeError):
        parse_event(headers, body)


@pytest.mark.parametrize(
    ("last", "sequence", "lost"),
    [
        (None, 0, False),
        (None, 5, False),
        (0, 1, False),
        (0, 2, True),
        (5, 5, False),  # sent again
        (5, 4, True),
        (5, 0, True),  # the router has started over
        (4294967295, 1, False),
        (4294967295, 0, True),
    ],
)
def test_a_gap_in_the_numbers_is_a_lost_event(last: int | None, sequence: int, lost: bool) -> None:
    subscription = Subscription(SID, 300, 150.0, last)
    event = Event(SID, sequence, {})
    assert subscription.has_lost_events_before(event) is lost
    assert subscription.after(event) == Subscription(SID, 300, 150.0, sequence)
