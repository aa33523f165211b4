"""Which messages come from behind a NAT, and how their Contacts are mended."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from nattools.endpoint import Endpoint
from nattools.session.nat_tests import (
    USUAL_TESTS,
    ContactFix,
    NatTest,
    find_signs,
    fix_contacts,
    is_inside,
    is_neighbour,
    read_alias,
    without_alias,
)
from nattools.sip.message import SipMessage, compose_response
from nattools.sip.uri import SipUri, read_ip
from tests.unit.session.proxy_desk import ALICE, BODY, NAT, PRIVATE, PROXY, request

ALL = NatTest(1023)
PUBLIC_BODY = BODY.replace(b"192.168.0.108", str(ALICE.ip).encode())


@pytest.mark.parametrize(
    ("data", "source", "signs"),
    [
        (request(body=PUBLIC_BODY), ALICE, NatTest(0)),
        (request(via=[f"SIP/2.0/UDP {PRIVATE};branch=b"]), NAT, 2 | 4 | 16 | 128),
        (request(contact=f"<sip:a@{PRIVATE}>"), ALICE, 1),
        (request(contact="<sip:a@203.0.113.9:5070>"), ALICE, 128),
        (request(contact="<sip:a@100.64.1.1>"), ALICE, 1),
        (request(contact="<sip:a@192.0.0.5>"), ALICE, 1),
        (request(contact="<sip:a@[fd00::1]>"), ALICE, 1),
        (request(contact="<sip:a@phone.test>"), ALICE, 0),
        (request(contact="*"), ALICE, 0),
        (request(contact="<tel:123>"), ALICE, 0),
        (request(contact="<sip:@@>"), ALICE, 0),
        (request(via=["SIP/2.0/UDP 203.0.113.9;branch=b"]), ALICE, 0),
        (request(via=["SIP/2.0/UDP 203.0.113.9:5070;branch=b"]), ALICE, 16),
        (request(via=["SIP/2.0/TCP 203.0.113.9:5070;branch=b"]), ALICE, 0),
        (request(via=["SIP/2.0/UDP phone.test;branch=b"]), ALICE, 0),
        (request(via=["SIP/2.0/WS x.invalid;branch=b"]), ALICE, 64),
        (request(body=BODY), ALICE, 8 | 256),
        (request(body=PUBLIC_BODY.replace(b"113.9", b"113.10")), ALICE, 256),
        (request(body=BODY.replace(b"192.168.0.108", b"0.0.0.0")), ALICE, 0),
        (request(body=b"no SDP"), ALICE, 0),
        (request(uri="sip:bob@10.0.0.1"), ALICE, 512),
    ],
)
def test_each_sign_is_found_and_no_other(data: bytes, source: Endpoint, signs: int) -> None:
    message = SipMessage.parse(data)
    assert find_signs(message, source, ALL) == NatTest(signs)
    for one in NatTest:
        assert find_signs(message, source, one) == NatTest(signs) & one


def test_a_private_source_is_a_sign_of_its_own() -> None:
    via, contact = [f"SIP/2.0/UDP {PRIVATE};branch=b"], f"<sip:a@{PRIVATE}>"
    message = SipMessage.parse(request(via=via, contact=contact))
    assert find_signs(message, PRIVATE, ALL) == NatTest(1 | 4 | 32)


def test_a_response_is_not_judged_by_its_via() -> None:
    invite = SipMessage.parse(request(via=[f"SIP/2.0/UDP {PROXY};branch=b"], uri="sip:b@10.0.0.1"))
    response = SipMessage.parse(compose_response(invite, 200, "OK", [("Contact", f"<sip:b@{NAT}>")]))
    assert find_signs(response, NAT, ALL) == NatTest(0)
    assert find_signs(response, NAT, USUAL_TESTS) == NatTest(0)


@pytest.mark.parametrize(
    ("contact", "mended"),
    [
        ("<sip:a@192.168.0.108>", "<sip:a@192.168.0.108;alias=203.0.113.1~2753~1>"),
        ("sip:a@192.168.0.108", "<sip:a@192.168.0.108;alias=203.0.113.1~2753~1>"),
        ("sip:a@192.168.0.108;q=1", "<sip:a@192.168.0.108;alias=203.0.113.1~2753~1>;q=1"),
        ('"A" <sip:a@10.0.0.1;ob>;x=1', '"A" <sip:a@10.0.0.1;ob;alias=203.0.113.1~2753~1>;x=1'),
        ("< sip:a@10.0.0.1 >", "< sip:a@10.0.0.1;alias=203.0.113.1~2753~1 >"),
        ("<sip:a@10.0.0.1?x=y>", "<sip:a@10.0.0.1;alias=203.0.113.1~2753~1?x=y>"),
        ("<sip:a@10.0.0.1;alias=1.1.1.1~2~3>", "<sip:a@10.0.0.1;alias=203.0.113.1~2753~1>"),
        ("<sip:a@10.0.0.1;alias>", "<sip:a@10.0.0.1;alias=203.0.113.1~2753~1>"),
        ("<sip:a@203.0.113.1:2753;alias=1.1.1.1~2~3>", "<sip:a@203.0.113.1:2753;alias=203.0.113.1~2753~1>"),
    ],
)
def test_a_contact_gets_an_alias(contact: str, mended: str) -> None:
    message = SipMessage.parse(request(contact=contact))
    assert fix_contacts(message, NAT, "UDP", ContactFix.ALIAS)
    after = SipMessage.parse(message.encode())
    assert after.first_value("contact").decode() == mended
    (address,) = after.contacts
    assert address.uri is not None
    assert read_alias(address.uri) == (NAT, "UDP")


@pytest.mark.parametrize(
    "contact", ["*", "<tel:1>", f"<sip:a@{NAT}>", "<sip:@@>", "<sip:a@203.0.113.1:2753;transport=udp>"]
)
def test_a_contact_that_needs_nothing_or_cannot_be_mended_stays(contact: str) -> None:
    message = SipMessage.parse(request(contact=contact))
    assert not fix_contacts(message, NAT, "UDP", ContactFix.ALIAS)
    assert not message.is_edited


def test_an_alias_names_the_transport_and_ipv6_in_brackets() -> None:
    source = Endpoint.of("2001:db8::1", 40000)
    message = SipMessage.parse(request(contact="<sip:a@[fd00::1];transport=tcp>"))
    assert fix_contacts(message, source, "TCP", ContactFix.ALIAS)
    value = SipMessage.parse(message.encode()).first_value("contact")
    assert value == b"<sip:a@[fd00::1];transport=tcp;alias=[2001:db8::1]~40000~2>"
    uri = SipUri.parse(value[1:-1])
    assert read_alias(uri) == (source, "TCP")
    assert without_alias(value[1:-1], uri) == b"sip:a@[fd00::1];transport=tcp"


def test_a_contact_can_be_rewritten_or_left_alone_instead() -> None:
    message = SipMessage.parse(request(contact="<sip:a@10.0.0.1>"))
    assert not fix_contacts(message, NAT, "UDP", ContactFix.NONE)
    assert fix_contacts(message, NAT, "UDP", ContactFix.REWRITE)
    assert b"Contact: <sip:a@203.0.113.1:2753>\r\n" in message.encode()


@pytest.mark.parametrize(
    "alias", ["", "1.1.1.1~5060", "1.1.1.1~0~1", "1.1.1.1~99999~1", "a~1~1", "1.1.1.1~1~4", "1.1.1.999~1~1"]
)
def test_an_alias_that_leads_nowhere_is_none(alias: str) -> None:
    assert read_alias(SipUri.parse(f"sip:a@b;alias={alias}".encode())) is None


@pytest.mark.parametrize(
    ("host", "inside"),
    [
        (b"172.31.0.1", True),
        (b"172.32.0.1", False),
        (b"169.254.0.1", True),
        (b"192.0.0.8", False),
        (b"x", False),
    ],
)
def test_which_addresses_are_inside(host: bytes, inside: bool) -> None:
    assert is_inside(read_ip(host)) is inside


@pytest.mark.parametrize(
    ("remote", "local", "is_near"),
    [
        ("192.168.0.108", "192.168.0.1", True),
        ("10.0.0.1", "192.168.0.1", True),
        ("127.0.0.1", "127.0.0.1", True),
        ("169.254.1.1", "169.254.1.2", True),
        ("203.0.113.1", "203.0.113.1", True),
        ("203.0.113.2", "203.0.113.1", False),
        ("100.64.0.2", "100.64.0.1", False),
        ("2001:db8:0:1::2", "2001:db8:0:1::1", True),
        ("2001:db8:0:2::2", "2001:db8:0:1::1", False),
        ("fd00::1", "2001:db8:0:1::1", True),
        ("203.0.113.2", "2001:db8::1", False),
    ],
)
def test_a_neighbour_is_surely_not_on_the_internet(remote: str, local: str, is_near: bool) -> None:
    assert is_neighbour(ip_address(remote), ip_address(local)) is is_near
