"""The rules of rewriting, one after the other, each on a message that a careless rewriter breaks."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from nattools.sip.rewriter import MOST_UDP_BYTES, Rewriter, TooLarge, Unedited
from tests.unit.sip.bound import LOCAL, PUBLIC, REGISTRAR, Binding, at, bound, changed_lines, events, wire

BOB = at("198.51.100.9:5060")


def rewriter() -> Rewriter:
    made = Rewriter(Binding(LOCAL, PUBLIC))
    made.add_media(
        bound("192.168.0.111:10002", "203.0.113.1:41002"), bound("192.168.0.111:10003", "203.0.113.1:41777")
    )
    return made


def register(contact: str, *, via: str = "SIP/2.0/UDP 192.168.0.111:5060;rport;branch=z9hG4bKa") -> bytes:
    return wire(f"""
REGISTER sip:203.0.113.7 SIP/2.0
Via: {via}
From: <sip:alice@192.168.0.111>;tag=1
To: <sip:alice@192.168.0.111>
Call-ID: c1@192.168.0.111
CSeq: 1 REGISTER
Contact: {contact}
Content-Length: 0
""")


def sent(message: bytes) -> list[tuple[bytes, bytes]]:
    return changed_lines(message, rewriter().outgoing(message, REGISTRAR))


def sent_contact(contact: str) -> str:
    """What becomes of a Contact; nothing but that and the Via may change."""
    lines = sent(register(contact))
    assert all(old.startswith((b"Via:", b"Contact:")) for old, _ in lines)
    contacts = [new for old, new in lines if old.startswith(b"Contact:")]
    return contacts[0].decode().removeprefix("Contact: ") if contacts else contact


class TestOnlySpansAreEdited:  # R1
    def test_odd_spacing_folds_case_and_bytes_that_are_no_text_stay(self) -> None:
        message = (
            b"OPTIONS sip:b\xfcb@198.51.100.9 SIP/2.0\r\n"
            b"vIA \t:  SIP / 2.0 / UDP\r\n   192.168.0.111 : 5060 ; branch = z9hG4bKx ; RPORT\r\n"
            b"X-Odd:\xff\xfe\x00 192.168.0.111:5060\r\n"
            b'f: "\xe9" <sip:a@192.168.0.111:5060> ; tag=1\r\n'
            b"M:<sip:a@192.168.0.111:5060>  ;  q = 0.5\r\n"
            b"T:<sip:b@198.51.100.9>\r\nI:1\r\nCSeq:  1   OPTIONS\r\n\r\nbody 192.168.0.111:5060"
        )
        expected = message.replace(b"192.168.0.111 : 5060", b"203.0.113.1:40000", 1)
        expected = expected.replace(b"M:<sip:a@192.168.0.111:5060>", b"M:<sip:a@203.0.113.1:40000>", 1)
        assert rewriter().outgoing(message, BOB) == expected

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"\r\n\r\n",
            b"\0" * 20,
            b"\x00\x01\x00\x00\x21\x12\xa4\x42" + b"x" * 12,
            b"GET / HTTP/1.1\r\n\r\n",
        ],
    )
    def test_what_is_no_sip_comes_back_as_it_was(self, data: bytes) -> None:
        assert rewriter().outgoing(data, BOB) == data
        assert rewriter().incoming(data, BOB) == data
        assert rewriter().media_needed(data) == ()


class TestNames:  # R2
    def test_compact_names_in_any_case_are_understood(self) -> None:
        message = wire(
            """
INVITE sip:bob@198.51.100.9 SIP/2.0
V: SIP/2.0/UDP 192.168.0.111:5060;branch=z9hG4bKx;rport
f: <sip:a@h>;tag=1
t: <sip:bob@h>
i: 1
CSeq: 1 INVITE
m: <sip:a@192.168.0.111>
C: Application/SDP
L: 98
""",
            """
v=0
o=- 1 1 IN IP4 192.168.0.111
s=-
c=IN IP4 192.168.0.111
t=0 0
m=audio 10002 RTP/AVP 0
""",
        )
        length = len(message.partition(b"\r\n\r\n")[2])
        message = message.replace(b"L: 98", b"L: %d" % length)
        changes = dict(changed_lines(message, self.without_rtcp(message)))
        assert len(changes) == 7
        assert changes[b"m: <sip:a@192.168.0.111>"] == b"m: <sip:a@203.0.113.1:40000>"
        assert changes[b"m=audio 10002 RTP/AVP 0"] == b"m=audio 41002 RTP/AVP 0"
        assert changes[b"L: %d" % length] == b"L: %d" % (length - 4)

    @staticmethod
    def without_rtcp(message: bytes) -> bytes:
        made = Rewriter(Binding(LOCAL, PUBLIC))
        made.add_media(bound("192.168.0.111:10002", "203.0.113.1:41002"))
        return made.outgoing(message, BOB)

    def test_a_comma_in_quotes_or_brackets_or_a_comment_does_not_split(self) -> None:
        contact = '"A, <sip:x@192.168.0.111:5060>" <sip:a,b@192.168.0.111:5060>, <sip:c@192.168.0.111:5060>'
        assert sent_contact(contact) == (
            '"A, <sip:x@192.168.0.111:5060>" <sip:a,b@203.0.113.1:40000>, <sip:c@203.0.113.1:40000>'
        )


class TestVia:  # R3
    @pytest.mark.parametrize(
        ("via", "becomes"),
        [
            ("192.168.0.111:5060;branch=z9hG4bKa", "203.0.113.1:40000;rport;branch=z9hG4bKa"),
            ("192.168.0.111;rport;branch=z9hG4bKa", "203.0.113.1:40000;rport;branch=z9hG4bKa"),
            ("192.168.0.111", "203.0.113.1:40000;rport"),
            ("192.168.0.111:5062;branch=z9hG4bKa", None),  # another socket's
            ("192.168.0.112:5060;branch=z9hG4bKa", None),  # another machine's
            ("phone.example.com:5060;branch=z9hG4bKa", None),
            ("203.0.113.1:40000;branch=z9hG4bKa", "203.0.113.1:40000;rport;branch=z9hG4bKa"),
            ("", None),
        ],
    )
    def test_the_top_via_of_a_request(self, via: str, becomes: str | None) -> None:
        message = register("*", via=f"SIP/2.0/UDP {via}")
        lines = [(f"Via: SIP/2.0/UDP {via}".encode(), f"Via: SIP/2.0/UDP {becomes}".encode())]
        assert sent(message) == ([] if becomes is None else lines)

    def test_lower_vias_stay(self) -> None:
        second = b", SIP/2.0/UDP 192.168.0.111:5060;branch=z9hG4bKb"
        message = register("*").replace(b"z9hG4bKa", b"z9hG4bKa" + second)
        message = message.replace(b"From:", b"Via: SIP/2.0/UDP 192.168.0.111:5060\r\nFrom:", 1)
        ((_, new),) = sent(message)
        assert new == b"Via: SIP/2.0/UDP 203.0.113.1:40000;rport;branch=z9hG4bKa" + second

    def test_no_via_of_a_response_that_is_sent_is_touched(self) -> None:
        message = wire("""
SIP/2.0 200 OK
Via: SIP/2.0/UDP 192.168.0.111:5060;branch=z9hG4bKa
Via: SIP/2.0/UDP 198.51.100.9:5060;branch=z9hG4bKb
From: <sip:b@h>;tag=1
To: <sip:a@h>;tag=2
Call-ID: 1
CSeq: 1 OPTIONS
Contact: <sip:a@192.168.0.111:5060>
""")
        assert sent(message) == [
            (b"Contact: <sip:a@192.168.0.111:5060>", b"Contact: <sip:a@203.0.113.1:40000>")
        ]

    def test_no_port_means_5061_with_tls(self) -> None:
        made = Rewriter(bound("192.168.0.111:5061", "203.0.113.1:5061"), transport="TLS")
        message = register("<sips:a@192.168.0.111>", via="SIP/2.0/TLS 192.168.0.111;rport")
        assert changed_lines(message, made.outgoing(message)) == [
            (b"Via: SIP/2.0/TLS 192.168.0.111;rport", b"Via: SIP/2.0/TLS 203.0.113.1;rport"),
            (b"Contact: <sips:a@192.168.0.111>", b"Contact: <sips:a@203.0.113.1>"),
        ]


class TestBothWays:  # R4
    def answered(
        self, made: Rewriter, status: str, *extra: str, seen: bytes = b"203.0.113.1"
    ) -> tuple[bytes, bytes]:
        """A REGISTER, and what the phone gets to see of its answer."""
        message = register(
            "<sip:a@192.168.0.111>;expires=60", via="SIP/2.0/UDP 192.168.0.111;branch=z9hG4bKa"
        )
        answer = made.outgoing(message, REGISTRAR).replace(
            b"REGISTER sip:203.0.113.7 SIP/2.0", f"SIP/2.0 {status}".encode()
        )
        for line in extra:
            answer = answer.replace(b"Content-Length", line.encode() + b"\r\nContent-Length")
        answer = answer.replace(b";rport;", b";rport=40000;received=%b;" % seen)
        return message, made.incoming(answer, REGISTRAR)

    def test_an_answer_to_a_registration_names_what_the_phone_wrote(self) -> None:
        message, heard = self.answered(rewriter(), "200 OK", "Contact: <sip:a@198.51.100.4:5060>;expires=5")
        assert heard == (
            message.replace(b"REGISTER sip:203.0.113.7 SIP/2.0", b"SIP/2.0 200 OK")
            .replace(b";branch", b";rport=5060;received=192.168.0.111;branch")
            .replace(b"Content-Length", b"Contact: <sip:a@198.51.100.4:5060>;expires=5\r\nContent-Length")
        )

    def test_a_refusal_gets_its_via_back_only(self) -> None:
        _, heard = self.answered(rewriter(), "302 Moved")
        assert b"Via: SIP/2.0/UDP 192.168.0.111;rport=5060;received=192.168.0.111;branch" in heard
        assert b"Contact: <sip:a@203.0.113.1:40000>" in heard

    def test_after_a_change_the_contact_of_today_is_given_back_and_the_old_one_is_not(self) -> None:
        binding = Binding(LOCAL, PUBLIC)
        made = Rewriter(binding)
        made.outgoing(register("<sip:a@192.168.0.111:5060>"), REGISTRAR)
        binding.endpoint = at("203.0.113.2:40000")
        _, heard = self.answered(
            made, "200 OK", "Contact: <sip:a@203.0.113.1:40000>;expires=3000", seen=b"203.0.113.2"
        )
        assert b"Contact: <sip:a@192.168.0.111>;expires=60" in heard
        assert b"Contact: <sip:a@203.0.113.1:40000>;expires=3000" in heard

    def test_an_answer_to_what_was_sent_before_the_change_is_still_the_phones(self) -> None:
        binding = Binding(LOCAL, PUBLIC)
        made = Rewriter(binding)
        message = register("<sip:a@192.168.0.111:5060>")
        answer = made.outgoing(message, REGISTRAR).replace(
            b"REGISTER sip:203.0.113.7 SIP/2.0", b"SIP/2.0 200 OK"
        )
        binding.endpoint = at("203.0.113.2:40000")
        assert made.incoming(answer, REGISTRAR).partition(b"\r\n")[2] == message.partition(b"\r\n")[2]

    @pytest.mark.parametrize(
        ("uri", "seen"),
        [
            ("sip:a@203.0.113.1:40000", "sip:a@192.168.0.111"),
            ("sip:a@203.0.113.1:40000;transport=udp", "sip:a@192.168.0.111;transport=udp"),
            ("sip:203.0.113.1:40000", "sip:192.168.0.111"),
            ("sip:a@203.0.113.1", None),
            ("sip:a@example.com:40000", None),
            ("tel:+12015550123", None),
            ("sip:a@[::", None),
        ],
    )
    def test_the_request_uri_is_what_the_phone_wrote_in_its_contact(self, uri: str, seen: str | None) -> None:
        made = rewriter()
        made.outgoing(register("<sip:a@192.168.0.111>"), REGISTRAR)
        message = wire(f"INVITE {uri} SIP/2.0\nVia: SIP/2.0/UDP 203.0.113.7;branch=z9hG4bKp\nTo: <{uri}>")
        expected = message if seen is None else message.replace(uri.encode(), seen.encode(), 1)
        assert made.incoming(message, REGISTRAR) == expected

    def test_a_phone_that_was_restarted_is_still_called_by_its_address(self) -> None:
        message = wire(
            "OPTIONS sip:a@203.0.113.1:40000 SIP/2.0\nVia: SIP/2.0/UDP 203.0.113.7;branch=z9hG4bKp"
        )
        assert b"OPTIONS sip:a@192.168.0.111:5060 SIP/2.0" in rewriter().incoming(message, REGISTRAR)

    def test_a_phone_that_writes_its_public_address_itself_gets_that_back(self) -> None:
        made = rewriter()
        message = register(
            "<sip:a@203.0.113.1:40000>", via="SIP/2.0/UDP 203.0.113.1:40000;rport;branch=z9hG4bKa"
        )
        assert made.outgoing(message, REGISTRAR) == message
        answer = message.replace(b"REGISTER sip:203.0.113.7 SIP/2.0", b"SIP/2.0 200 OK").replace(
            b"rport", b"rport=40000"
        )
        assert made.incoming(answer, REGISTRAR) == answer
        call = wire("INVITE sip:a@203.0.113.1:40000 SIP/2.0\nVia: SIP/2.0/UDP 203.0.113.7;branch=z9hG4bKp")
        assert made.incoming(call, REGISTRAR) == call

    def test_answers_to_others_stay(self) -> None:
        message = register("<sip:a@192.168.0.111>", via="SIP/2.0/UDP 198.51.100.4;branch=z9hG4bKz")
        answer = message.replace(b"REGISTER sip:203.0.113.7 SIP/2.0", b"SIP/2.0 200 OK")
        assert rewriter().incoming(answer, REGISTRAR) == answer
        without_via = answer.replace(b"Via:", b"X:")
        assert rewriter().incoming(without_via, REGISTRAR) == without_via


class TestContact:  # R5
    @pytest.mark.parametrize(
        ("contact", "becomes"),
        [
            ("<sip:a@192.168.0.111:5060>", "<sip:a@203.0.113.1:40000>"),
            ("sip:a@192.168.0.111;expires=60", "sip:a@203.0.113.1:40000;expires=60"),
            (
                '"A" <sip:a:p@192.168.0.111:5060;transport=UDP;x=y?z=1>;q=0.7;expires=60;+x="<u:1>";reg-id=1',
                '"A" <sip:a:p@203.0.113.1:40000;transport=UDP;x=y?z=1>;q=0.7;expires=60;+x="<u:1>";reg-id=1',
            ),
            (
                "<sip:a@192.168.0.111:5060>;q=1, <sip:b@198.51.100.4>, <sip:c@192.168.0.111>;expires=0",
                "<sip:a@203.0.113.1:40000>;q=1, <sip:b@198.51.100.4>, <sip:c@203.0.113.1:40000>;expires=0",
            ),
            ("*", None),
            ("<sip:a@192.168.0.111:5062>", None),
            ("<sip:a@192.168.0.11:5060>", None),
            ("<sip:a@phone.example.com:5060>", None),
            ("<sip:a@192.168.0.111:5060;gr=urn:uuid:1>", None),
            ("<sip:a@192.168.0.111:5060;ob>", None),
            ("<sip:a@192.168.0.111:5060;transport=tcp>", None),
            ("<sips:a@192.168.0.111>", None),
            ("<tel:+12015550123>", None),
            ("<mailto:a@192.168.0.111>", None),
            ("<sip:a@203.0.113.1:39999>;expires=0", None),
            ("<<<", None),
            ("<sip:a@192.168.0.111:99999>", None),
        ],
    )  # fmt: skip
    def test_the_contacts_of_this_socket_follow_and_no_other(self, contact: str, becomes: str | None) -> None:
        assert sent_contact(contact) == (contact if becomes is None else becomes)

    def test_a_long_contact_follows_as_well(self) -> None:
        end = f";x={'y' * 2000}>;q=1"
        assert sent_contact(f"<sip:a@192.168.0.111{end}") == f"<sip:a@203.0.113.1:40000{end}"

    @pytest.mark.parametrize(
        ("contact", "is_own"),
        [
            ("<sips:a@192.168.0.111>", True),
            ("<sips:a@192.168.0.111;transport=tcp>", True),
            ("<sip:a@192.168.0.111;transport=TLS>", True),
            ("<sip:a@192.168.0.111:5061>", True),
            ("<sip:a@192.168.0.111:5061;transport=tcp>", False),
            ("<sip:a@192.168.0.111>", False),
            ("<sips:a@192.168.0.111;transport=sctp>", False),
        ],
    )
    def test_over_tls_it_is_tls_in_both_its_names(self, contact: str, is_own: bool) -> None:
        made = Rewriter(bound("192.168.0.111:5061", "203.0.113.1:40000"), transport="TLS")
        message = register(contact, via="SIP/2.0/TLS 203.0.113.1:40000;rport")
        assert (made.outgoing(message, REGISTRAR) != message) is is_own

    def test_a_contact_that_cannot_be_read_does_not_keep_the_others_private(self) -> None:
        assert sent_contact("<sip:x@@>, <sip:a@192.168.0.111:5060>") == "<sip:x@@>, <sip:a@203.0.113.1:40000>"

    def test_each_of_several_headers_follows(self) -> None:
        message = register("<sip:a@192.168.0.111:5060>").replace(b"CSeq", b"m: <sip:b@192.168.0.111>\r\nCSeq")
        new = [line for _, line in sent(message)]
        assert b"m: <sip:b@203.0.113.1:40000>" in new
        assert b"Contact: <sip:a@203.0.113.1:40000>" in new

    @pytest.mark.parametrize(
        ("written", "public", "becomes"),
        [
            ("192.168.0.111", "203.0.113.1:5060", "203.0.113.1"),
            ("192.168.0.111:5060", "203.0.113.1:5060", "203.0.113.1:5060"),
            ("192.168.0.111", "203.0.113.1:5061", "203.0.113.1:5061"),
            ("192.168.0.111", "[2001:db8::1]:5060", "[2001:db8::1]"),
            ("192.168.0.111:5060", "[2001:db8::1]:5060", "[2001:db8::1]:5060"),
        ],
    )
    def test_a_port_is_written_where_there_was_one_or_one_is_needed(
        self, written: str, public: str, becomes: str
    ) -> None:
        made = Rewriter(Binding(LOCAL, at(public)))
        message = register(f"<sip:a@{written}>")
        assert f"Contact: <sip:a@{becomes}>\r\n".encode() in made.outgoing(message, REGISTRAR)

    @pytest.mark.parametrize("written", ["[2001:db8:0:0::5]:5060", "[2001:DB8::5]"])
    def test_ipv6_is_known_in_whatever_form(self, written: str) -> None:
        made = Rewriter(bound("[2001:db8::5]:5060", "[2001:db8::1]:6000"))
        message = register(f"<sip:a@{written}>", via=f"SIP/2.0/UDP {written};rport")
        answer = made.outgoing(message, REGISTRAR)
        assert b"Contact: <sip:a@[2001:db8::1]:6000>" in answer
        answer = answer.replace(b"REGISTER sip:203.0.113.7 SIP/2.0", b"SIP/2.0 200 OK")
        assert made.incoming(answer, REGISTRAR).partition(b"\r\n")[2] == message.partition(b"\r\n")[2]

    @pytest.mark.parametrize(
        "method", ["INVITE", "UPDATE", "SUBSCRIBE", "NOTIFY", "REFER", "PRACK", "OPTIONS"]
    )
    def test_every_request_that_has_one(self, method: str) -> None:
        message = register("<sip:a@192.168.0.111:5060>").replace(b"REGISTER", method.encode())
        assert b"Contact: <sip:a@203.0.113.1:40000>" in rewriter().outgoing(message, BOB)

    @pytest.mark.parametrize(
        "status", ["180 Ringing", "183 Session Progress", "200 OK", "302 Moved Temporarily"]
    )
    def test_every_response_that_has_one_and_a_redirection_elsewhere_stays(self, status: str) -> None:
        message = wire(f"""
SIP/2.0 {status}
Via: SIP/2.0/UDP 198.51.100.9;branch=z9hG4bKb
CSeq: 1 INVITE
Contact: <sip:a@192.168.0.111:5060>, <sip:a@192.168.0.112:5060>, <sip:a@voicemail.example.com>
""")
        ((_, new),) = sent(message)
        assert new == (
            b"Contact: <sip:a@203.0.113.1:40000>, <sip:a@192.168.0.112:5060>, <sip:a@voicemail.example.com>"
        )

    def test_other_addresses_of_the_machine_only_where_they_are_named(self) -> None:
        message = register("<sip:a@0.0.0.0:5060>", via="SIP/2.0/UDP 10.0.0.5:5060;rport")
        assert sent(message) == []
        made = Rewriter(Binding(LOCAL, PUBLIC), also_local=(ip_address("0.0.0.0"), ip_address("10.0.0.5")))
        answer = made.outgoing(message, REGISTRAR)
        assert b"Via: SIP/2.0/UDP 203.0.113.1:40000;rport\r\n" in answer
        assert b"Contact: <sip:a@203.0.113.1:40000>" in answer
        answer = answer.replace(b"REGISTER sip:203.0.113.7 SIP/2.0", b"SIP/2.0 200 OK")
        assert made.incoming(answer, REGISTRAR).partition(b"\r\n")[2] == message.partition(b"\r\n")[2]


class TestWhatIsNeverTouched:  # R7, R8 as far as a phone is concerned
    HEADERS = """
INVITE sip:bob@192.168.0.111:5060 SIP/2.0
Via: SIP/2.0/UDP 203.0.113.1:40000;rport;branch=z9hG4bKa
Route: <sip:192.168.0.111:5060;lr>
Record-Route: <sip:192.168.0.111:5060;lr>
Path: <sip:192.168.0.111:5060;lr>
Service-Route: <sip:192.168.0.111:5060;lr>
From: <sip:alice@192.168.0.111:5060>;tag=1
To: <sip:bob@192.168.0.111:5060>
Call-ID: 1@192.168.0.111:5060
CSeq: 1 INVITE
Authorization: Digest username="a", uri="sip:bob@192.168.0.111:5060", response="0"
Proxy-Authorization: Digest username="a", uri="sip:bob@192.168.0.111:5060", response="0", qop=auth
Identity: 192.168.0.111:5060
Date: Thu, 21 Feb 2002 13:02:03 GMT
P-Asserted-Identity: <sip:alice@192.168.0.111:5060>
P-Preferred-Identity: <sip:alice@192.168.0.111:5060>
Replaces: 1@192.168.0.111:5060;from-tag=1;to-tag=2
Refer-To: <sip:carol@192.168.0.111:5060>
Referred-By: <sip:alice@192.168.0.111:5060>
Reply-To: <sip:alice@192.168.0.111:5060>
Subject: 192.168.0.111:5060
X-Contact: <sip:alice@192.168.0.111:5060>
"""

    def test_a_request_keeps_everything_but_via_contact_and_description(self) -> None:
        message = wire(self.HEADERS)
        assert rewriter().outgoing(message, BOB) == message

    def test_a_response_keeps_routes(self) -> None:
        message = wire(self.HEADERS.replace("INVITE sip:bob@192.168.0.111:5060 SIP/2.0", "SIP/2.0 200 OK"))
        assert rewriter().outgoing(message, BOB) == message

    def test_what_comes_in_keeps_everything_but_via_and_request_uri(self) -> None:
        headers = self.HEADERS.replace("192.168.0.111:5060", "203.0.113.1:40000")
        message = wire(headers)
        ((old, new),) = changed_lines(message, rewriter().incoming(message, BOB))
        assert old.startswith(b"INVITE")
        assert new == b"INVITE sip:bob@192.168.0.111:5060 SIP/2.0"


class TestLength:  # R13
    @pytest.mark.parametrize(
        "length",
        ["Content-Length: 5000", "Content-Length: 0\nl: 4", "Content-Length: x", "Content-Length: -1"],
    )
    def test_a_message_whose_length_cannot_be_true_goes_on_as_it_came(self, length: str) -> None:
        message = register("<sip:a@192.168.0.111:5060>").replace(
            b"Content-Length: 0", length.replace("\n", "\r\n").encode()
        )
        made = rewriter()
        assert made.outgoing(message, REGISTRAR) == message
        (event,) = events(made)
        assert isinstance(event, Unedited)
        assert "Content-Length" in event.reason
        assert made.media_needed(message) == ()
        made.outgoing(register("<sip:a@192.168.0.111:5060>"), REGISTRAR)
        answer = message.replace(b"REGISTER sip:203.0.113.7 SIP/2.0", b"SIP/2.0 200 OK")
        assert made.incoming(answer, REGISTRAR) == answer

    def test_what_follows_the_body_stays_where_it_is(self) -> None:
        message = register("<sip:a@192.168.0.111:5060>") + b"INVITE sip:a@192.168.0.111:5060 SIP/2.0\r\n\r\n"
        assert (
            rewriter()
            .outgoing(message, REGISTRAR)
            .endswith(b"\r\n\r\nINVITE sip:a@192.168.0.111:5060 SIP/2.0\r\n\r\n")
        )

    def test_a_length_stays_as_it_is_written_while_the_body_does(self) -> None:
        message = register("<sip:a@192.168.0.111:5060>").replace(b"Content-Length: 0", b"l :  000")
        assert b"\r\nl :  000\r\n" in rewriter().outgoing(message, REGISTRAR)


class TestSize:  # R15
    def test_more_than_a_path_may_carry_is_told_and_never_cut(self) -> None:
        message = register("<sip:a@192.168.0.111:5060>")
        padding = MOST_UDP_BYTES - len(rewriter().outgoing(message, REGISTRAR))
        fits = message.replace(b"CSeq", b"X: " + b"x" * (padding - 5) + b"\r\nCSeq")
        made = rewriter()
        assert len(made.outgoing(fits, REGISTRAR)) == MOST_UDP_BYTES
        assert events(made) == []
        large = fits.replace(b"X: ", b"X: x")
        assert len(made.outgoing(large, REGISTRAR)) == MOST_UDP_BYTES + 1
        assert events(made) == [TooLarge(MOST_UDP_BYTES + 1)]

    def test_a_stream_carries_any_size(self) -> None:
        made = Rewriter(Binding(LOCAL, PUBLIC), transport="TCP")
        message = register("<sip:a@192.168.0.111:5060>").replace(b"CSeq", b"X: " + b"x" * 2000 + b"\r\nCSeq")
        assert b"203.0.113.1:40000" in made.outgoing(message, REGISTRAR)
        assert events(made) == []
