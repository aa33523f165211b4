"""Ready messages for a softphone whose public endpoint has changed."""

from __future__ import annotations

import pytest

from nattools.endpoint import Endpoint
from nattools.errors import DecodeError
from nattools.sip.change import raise_version, register_after_change, reinvite_after_change
from nattools.sip.dialog import Dialog
from nattools.sip.message import SipMessage, compose_request, compose_response
from nattools.sip.sdp import SessionDescription, compose_sdp

OLD = Endpoint.of("198.51.100.1", 40000)
NEW = Endpoint.of("198.51.100.2", 40001)
OLDER = Endpoint.of("198.51.100.3", 5060)


def register(
    *headers: tuple[str, str | bytes], contact: str = f"<sip:alice@{OLD};ob>;q=0.5", via: str = ""
) -> bytes:
    fields: list[tuple[str, str | bytes]] = [
        ("Via", via or f"SIP/2.0/UDP {OLD};rport;branch=z9hG4bKold"),
        ("From", "<sip:alice@example.org>;tag=f"),
        ("To", "<sip:alice@example.org>"),
        ("Call-ID", "c"),
        ("CSeq", "41 REGISTER"),
        *([("Contact", contact)] if contact else []),
        *headers,
    ]
    return compose_request("REGISTER", "sip:example.org", fields)


def renewed(data: bytes) -> bytes:
    return register_after_change(data, OLD, NEW, branch="z9hG4bKnew")


class TestRegister:
    def test_says_the_new_endpoint_and_takes_back_the_old_one(self) -> None:
        lines = renewed(register(("X-Any", "kept  as it is"))).split(b"\r\n")
        assert lines == [
            b"REGISTER sip:example.org SIP/2.0",
            b"Via: SIP/2.0/UDP 198.51.100.2:40001;rport;branch=z9hG4bKnew",
            b"From: <sip:alice@example.org>;tag=f",
            b"To: <sip:alice@example.org>",
            b"Call-ID: c",
            b"CSeq: 42 REGISTER",
            b"Contact: <sip:alice@198.51.100.2:40001;ob>;q=0.5, <sip:alice@198.51.100.1:40000;ob>;expires=0",
            b"X-Any: kept  as it is",
            b"Content-Length: 0",
            b"",
            b"",
        ]

    @pytest.mark.parametrize(
        ("contact", "expected"),
        [
            (f"sip:alice@{OLD};expires=60", f"sip:alice@{NEW};expires=60, <sip:alice@{OLD}>;expires=0"),
            (f"<sip:{OLD}>, <sip:x@192.0.2.1>", f"<sip:{NEW}>, <sip:{OLD}>;expires=0, <sip:x@192.0.2.1>"),
            (f"<sip:x@192.0.2.1>, <sip:{OLD}>", f"<sip:x@192.0.2.1>, <sip:{NEW}>, <sip:{OLD}>;expires=0"),
            (f'"A, <B>" <sip:a@{OLD}?h=v>', f'"A, <B>" <sip:a@{NEW}?h=v>, <sip:a@{OLD}?h=v>;expires=0'),
            (
                f"<sip:{OLD}>,<sip:b@{OLD}>",
                f"<sip:{NEW}>,<sip:b@{NEW}>, <sip:{OLD}>;expires=0, <sip:b@{OLD}>;expires=0",
            ),
            ("<sip:a@host.example.org>", "<sip:a@host.example.org>"),
            ("<tel:+1>", "<tel:+1>"),
        ],
    )
    def test_exchanges_its_own_contacts_only(self, contact: str, expected: str) -> None:
        message = SipMessage.parse(renewed(register(contact=contact)))
        assert message.value(message.header("contact")).decode() == expected

    def test_takes_back_whatever_is_stale(self) -> None:
        data = register_after_change(
            register(), OLD, OLD, branch="z9hG4bKnew", cseq=99, stale=[NEW, OLDER, OLD]
        )
        message = SipMessage.parse(data)
        at = [contact.uri.endpoint() for contact in message.contacts if contact.uri is not None]
        assert at == [OLD, NEW, OLDER]
        assert message.cseq == (99, "REGISTER")

    def test_repeats_only_credentials_that_can_be_repeated(self) -> None:
        plain = 'Digest username="a", realm="r", nonce="n", uri="sip:x", response="0"'
        data = register(("Authorization", f"{plain}, qop=auth"), ("Proxy-Authorization", plain))
        message = SipMessage.parse(renewed(data))
        assert message.header("authorization") is None
        assert message.value(message.header("proxy-authorization")).decode() == plain
        given = register_after_change(data, OLD, NEW, branch="b", credentials=[("Authorization", "Digest x")])
        message = SipMessage.parse(given)
        assert [message.value(header) for header in message.headers_named("authorization")] == [b"Digest x"]
        assert message.header("proxy-authorization") is None

    def test_a_via_without_a_branch_gets_one(self) -> None:
        message = SipMessage.parse(renewed(register(via="SIP/2.0/UDP 192.0.2.77")))
        via = message.top_via
        assert via is not None
        assert (via.host, via.branch) == (b"192.0.2.77", b"z9hG4bKnew")

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            register().replace(b"REGISTER", b"OPTIONS"),
            register().replace(b"Via", b"X"),
            register().replace(b"CSeq: 41", b"CSeq: x"),
            register(contact="<sip:"),
        ],
    )
    def test_what_is_none_is_a_decode_error(self, data: bytes) -> None:
        with pytest.raises(DecodeError):
            renewed(data)


class TestReinvite:
    def test_has_the_new_addresses_and_a_higher_version(self) -> None:
        fields = [
            ("Via", f"SIP/2.0/UDP {OLD};branch=z9hG4bKa"),
            ("From", "<sip:alice@example.org>;tag=f"),
            ("To", "<sip:bob@example.org>"),
            ("Call-ID", "c"),
            ("CSeq", "1 INVITE"),
            ("Contact", f"<sip:alice@{OLD}>"),
        ]
        invite = SipMessage.parse(compose_request("INVITE", "sip:bob@example.org", fields))
        answer = compose_response(invite, 200, "OK", [("Contact", "<sip:bob@192.0.2.9>")], to_tag="t")
        data = reinvite_after_change(
            Dialog.of_caller(invite, SipMessage.parse(answer)),
            compose_sdp(NEW, session_id=1, version=1),
            sent_by=NEW,
            contact=f"<sip:alice@{NEW}>",
            branch="z9hG4bKb",
            cseq=2,
            previous_sdp=compose_sdp(OLD, session_id=1, version=6),
        )
        message = SipMessage.parse(data)
        origin = SessionDescription.parse(message.body).origin
        via, target = message.top_via, message.contacts[0].uri
        assert origin is not None
        assert via is not None
        assert target is not None
        assert (origin.version, message.content_type) == (7, "application/sdp")
        assert (via.ip, via.port, target.endpoint()) == (NEW.ip, NEW.port, NEW)
        assert message.content_length == len(message.body)

    @pytest.mark.parametrize(("version", "before", "after"), [(1, 1, 2), (1, 9, 10), (9, 1, 9), (2, 1, 2)])
    def test_a_version_that_is_high_enough_stays(self, version: int, before: int, after: int) -> None:
        sdp = compose_sdp(NEW, session_id=1, version=version)
        previous = compose_sdp(OLD, session_id=1, version=before)
        assert raise_version(sdp, previous) == compose_sdp(NEW, session_id=1, version=after)

    def test_without_a_description_before_it_stays_too(self) -> None:
        sdp = compose_sdp(NEW, session_id=1, version=1)
        assert raise_version(sdp, b"") == sdp
        with pytest.raises(DecodeError):
            raise_version(sdp, b"no description")
