"""Values of headers: Via, names and addresses, comma lists; read where they stand, and written."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from sipmessage import Address as TheirAddress
from sipmessage import Via as TheirVia

from nattools.endpoint import Endpoint
from nattools.errors import DecodeError, EncodeError
from nattools.sip.headers import (
    NameAddress,
    Via,
    canonical_name,
    compose_contact,
    compose_via,
    format_sent_by,
    split_list,
)
from nattools.sip.uri import Span
from tests.unit.sip.hostile import DEADLINE_S, HOSTILE_BYTES, within_s

V4 = Endpoint.of("192.0.2.7", 5060)
V6 = Endpoint.of("2001:db8::7", 5062)


def cut(data: bytes, span: Span | None) -> bytes | None:
    return None if span is None else data[slice(*span)]


def elements(data: bytes) -> list[bytes]:
    return [data[slice(*span)] for span in split_list(data)]


class TestVia:
    @pytest.mark.parametrize(
        ("text", "transport", "host", "port", "host_port"),
        [
            (
                b"SIP/2.0/UDP 192.168.0.111:5060;branch=z9hG4bKa",
                "UDP",
                b"192.168.0.111",
                5060,
                b"192.168.0.111:5060",
            ),
            (b"SIP/2.0/TLS a.test", "TLS", b"a.test", None, b"a.test"),
            (b"SIP/2.0/WSS x.invalid;branch=1", "WSS", b"x.invalid", None, b"x.invalid"),
            (b"sip/2.0/udp a.test;lr", "UDP", b"a.test", None, b"a.test"),
            (b"SIP / 2.0 / UDP  host : 5060", "UDP", b"host", 5060, b"host : 5060"),
            (
                b"SIP /\t2.0\r\n / TCP\r\n  host\r\n :\r\n 5060 ; branch = x",
                "TCP",
                b"host",
                5060,
                b"host\r\n :\r\n 5060",
            ),
            (b"SIP/2.0/UDP [2001:db8::9]:5070;rport", "UDP", b"2001:db8::9", 5070, b"[2001:db8::9]:5070"),
            (b"SIP/2.0/UDP [2001:db8::9]", "UDP", b"2001:db8::9", None, b"[2001:db8::9]"),
            (b"SIP/2.0/NEW-one! a.test:1", "NEW-ONE!", b"a.test", 1, b"a.test:1"),
        ],
    )
    def test_is_read(
        self, text: bytes, transport: str, host: bytes, port: int | None, host_port: bytes
    ) -> None:
        data = b"Via: " + text + b"\r\n"
        via = Via.parse(data, Span(5, 5 + len(text)))
        assert (via.protocol, via.transport, via.host, via.port) == ("SIP/2.0", transport, host, port)
        assert cut(data, via.host_port_span) == host_port
        assert (cut(data, via.host_span) or b"").strip(b"[]") == host
        assert int(cut(data, via.port_span) or 0) == (port or 0)
        assert cut(data, via.span) == text

    def test_other_versions_and_protocols_are_told(self) -> None:
        assert Via.parse(b"sip/3.0/UDP a").protocol == "SIP/3.0"
        assert Via.parse(b"X / 1 / Y a").protocol == "X/1"

    @pytest.mark.parametrize(
        ("params", "branch", "has_rport", "rport"),
        [
            (b"", None, False, None),
            (b";branch=z9hG4bK1", b"z9hG4bK1", False, None),
            (b";rport;branch=z9hG4bK1", b"z9hG4bK1", True, None),
            (b";BRANCH=z9hG4bK1;RPort=1038", b"z9hG4bK1", True, 1038),
            (b" ; branch = z9hG4bK1 ;; rport = 1038 ", b"z9hG4bK1", True, 1038),
            (b";branch", None, False, None),
            (b";branch=", b"", False, None),
            (b";rport=0", None, True, None),
            (b";rport=65536", None, True, None),
            (b";rport=", None, True, None),
            (b";rport=-1", None, True, None),
            (b";rport=" + b"9" * 5000, None, True, None),
            (b';x=";rport=5;branch=no"', None, False, None),
        ],
    )
    def test_params(self, params: bytes, branch: bytes | None, has_rport: bool, rport: int | None) -> None:
        via = Via.parse(b"SIP/2.0/UDP 192.0.2.7:5060" + params)
        assert (via.branch, via.has_rport, via.rport) == (branch, has_rport, rport)

    @pytest.mark.parametrize(
        ("value", "ip"),
        [
            (b"203.0.113.9", "203.0.113.9"),
            (b"203.0.113.9:1038", "203.0.113.9"),
            (b"2001:db8::9", "2001:db8::9"),
            (b"[2001:db8::9]", "2001:db8::9"),
            (b"[2001:db8::9]:1038", "2001:db8::9"),
            (b'"203.0.113.9"', "203.0.113.9"),
        ],
    )
    def test_received_is_read_as_it_is_met(self, value: bytes, ip: str) -> None:
        assert Via.parse(b"SIP/2.0/UDP a.test;received=" + value).received == ip_address(ip)
        assert Via.parse(b"SIP/2.0/UDP a.test ; received = " + value + b" ;x").received == ip_address(ip)

    @pytest.mark.parametrize(
        "params", [b"", b";received", b";received=", b";received=a.test", b";received=:5"]
    )
    def test_received_that_is_no_address_is_none(self, params: bytes) -> None:
        assert Via.parse(b"SIP/2.0/UDP a.test" + params).received is None

    def test_a_param_is_added_at_its_end(self) -> None:
        for text in (b"SIP/2.0/UDP a;branch=1 \r\n ", b"SIP/2.0/UDP a \t", b"SIP / 2.0 / UDP a ;x = 1 "):
            via = Via.parse(text)
            assert Via.parse(text[: via.span.end] + b";rport" + text[via.span.end :]).has_rport

    @pytest.mark.parametrize(
        "params", [b"", b";branch=z9hG4bK1", b" ; branch = z9hG4bK1", b';branch=z9hG4bK1;x="("']
    )
    @pytest.mark.parametrize("comment", [b" (Acme, (old) server)", b"\r\n ()  ", b" ( ;rport=9 ) "])
    def test_a_comment_may_follow(self, params: bytes, comment: bytes) -> None:
        text = b"SIP/2.0/UDP a.test:5060" + params + comment
        via = Via.parse(text)
        assert (via.branch, via.has_rport) == (b"z9hG4bK1" if params else None, False)
        assert text[via.span.end :] == comment

    @pytest.mark.parametrize(
        "text",
        [
            b"",
            b"SIP/2.0/UDP a.test (open",
            b"SIP/2.0/UDP a.test (one);rport",
            b"SIP/2.0/UDP",
            b"SIP/2.0/UDP ",
            b"SIP/2.0 a.test",
            b"SIP/2.0/UDPa.test",
            b"SIP/2.0/UDP :5060",
            b"SIP/2.0/UDP a.test:",
            b"SIP/2.0/UDP a.test:70000",
            b"SIP/2.0/UDP a.test:123456",
            b"SIP/2.0/UDP 2001:db8::9:5060",
            b"SIP/2.0/UDP [::1",
            b"SIP/2.0/UDP a.test b.test",
            b"SIP/2.0/UDP a.test;a b",
            b"SIP/2.0/UDP a.test;=5",
            b'SIP/2.0/UDP a.test;x="open',
            b"SIP/2.0/UDP <a.test>",
            b"SIP/2.0/UDP \xff\xfe:5060;\xff, SIP/2.0/UDP b",
        ],
    )
    def test_is_refused(self, text: bytes) -> None:
        with pytest.raises(DecodeError):
            Via.parse(text)


class TestNameAddress:
    @pytest.mark.parametrize(
        ("text", "display", "uri", "params"),
        [
            (b"<sip:a@b.test>", None, b"sip:a@b.test", {}),
            (b"Alice <sip:a@b.test>;tag=9fx", b"Alice", b"sip:a@b.test", {"tag": b"9fx"}),
            (b"Alice  B.\tSmith<sip:a@b.test>", b"Alice  B.\tSmith", b"sip:a@b.test", {}),
            (b'"A, \\"B\\" <x>" <sip:a@b.test>;q=0.5', b'"A, \\"B\\" <x>"', b"sip:a@b.test", {"q": b"0.5"}),
            (b'"J \\\\"\r\n  <sip:a@b.test>\r\n  ;  tag = 98', b'"J \\\\"', b"sip:a@b.test", {"tag": b"98"}),
            (b'""<sip:a@b.test>', b'""', b"sip:a@b.test", {}),
            (b"sip:a@b.test;tag=1;x", None, b"sip:a@b.test", {"tag": b"1", "x": None}),
            (b"sip:a@b.test:5061", None, b"sip:a@b.test:5061", {}),
            (b"  sip:a@b.test ; expires = 3 ", None, b"sip:a@b.test", {"expires": b"3"}),
            (b"<sip:a@b.test;lr?x=y>;expires=0", None, b"sip:a@b.test;lr?x=y", {"expires": b"0"}),
            (b"<sip:user;par=u%40example.net@b.test>", None, b"sip:user;par=u%40example.net@b.test", {}),
            (b'< sip:a@b.test >;+me="<urn:uuid:0>"', None, b"sip:a@b.test", {"+me": b'"<urn:uuid:0>"'}),
            (b"<mailto:bob@b.test>;expires=42949672", None, b"mailto:bob@b.test", {"expires": b"42949672"}),
            (b'"caf\xe9 \xff" <sip:a@b.test>', b'"caf\xe9 \xff"', b"sip:a@b.test", {}),
            (b'<sip:a@b.test>;x="a;b=\\"c,d"', None, b"sip:a@b.test", {"x": b'"a;b=\\"c,d"'}),
        ],
    )  # fmt: skip
    def test_is_read(
        self, text: bytes, display: bytes | None, uri: bytes, params: dict[str, bytes | None]
    ) -> None:
        data = b"To:" + text + b"\r\n"
        address = NameAddress.parse(data, Span(3, 3 + len(text)))
        assert not address.is_star
        assert cut(data, address.display_span) == display
        assert address.uri is not None
        assert cut(data, address.uri.span) == uri
        assert {param.name: param.value for param in address.params} == params
        for param in address.params:
            assert cut(data, param.value_span) == param.value
            assert (cut(data, param.name_span) or b"").lower().decode() == param.name

    def test_a_star_has_no_uri(self) -> None:
        for text in (b"*", b" * "):
            star = NameAddress.parse(text)
            assert (star.is_star, star.uri, star.params) == (True, None, ())
        with pytest.raises(DecodeError):
            NameAddress.parse(b"*x")

    @pytest.mark.parametrize(
        "text",
        [
            b"",
            b" ",
            b"<>",
            b"<sip:a@b.test",
            b"sip:a@b.test>",
            b'"Alice <sip:a@b.test>',
            b"Alice",
            b"Alice sip:a@b.test",
            b"<sip:a@b.test> x",
            b"<sip:a@b.test><sip:c@d.test>",
            b"<sip:a@b.test>tag=1",
            b"<sip:a@b.test>;=1",
            b"<sip:a@b.test>;tag=<x>",
            b"Bell, Alexander <sip:a@b.test>",
            b"<<sip:a@b.test>>",
            b"<sip:a@b.test:99999>",
        ],
    )
    def test_is_refused(self, text: bytes) -> None:
        with pytest.raises(DecodeError):
            NameAddress.parse(text)


class TestList:
    @pytest.mark.parametrize(
        ("text", "found"),
        [
            (b"", []),
            (b" \t", []),
            (b"a", [b"a"]),
            (b" a ", [b"a"]),
            (b"a,b", [b"a", b"b"]),
            (b"a ,\r\n b\t,c ", [b"a", b"b", b"c"]),
            (b",a,,b,", [b"a", b"b"]),
            (b'"x, y" <sip:a>, <sip:b>', [b'"x, y" <sip:a>', b"<sip:b>"]),
            (b'"\\", \\\\" <sip:a>,b', [b'"\\", \\\\" <sip:a>', b"b"]),
            (b"<sip:a,b@c>;x=1,<sip:d>", [b"<sip:a,b@c>;x=1", b"<sip:d>"]),
            (b"SIP/2.0/UDP a (one, (two, three), \\) four), SIP/2.0/UDP b", [
                b"SIP/2.0/UDP a (one, (two, three), \\) four)", b"SIP/2.0/UDP b",
            ]),
            (b"sip:(a@b, sip:c@d", [b"sip:(a@b", b"sip:c@d"]),
            (b"sip:)a@b, sip:(c@d, (e, f)", [b"sip:)a@b", b"sip:(c@d", b"(e, f)"]),
            (b'a, "never closed, b', [b"a", b'"never closed, b']),
            (b"a, <never closed, b", [b"a", b"<never closed, b"]),
        ],
    )  # fmt: skip
    def test_is_split_where_a_comma_counts(self, text: bytes, found: list[bytes]) -> None:
        assert elements(text) == found

    def test_only_inside_its_span(self) -> None:
        data = b"a,b,c,d"
        assert [cut(data, span) for span in split_list(data, Span(2, 5))] == [b"b", b"c"]

    @pytest.mark.parametrize(
        "filler", [b",", b"(", b")", b'"', b"<", b"\\", b"(,", b"(),", b" ", b'"\\', b"<>,"]
    )
    def test_of_any_text_takes_no_longer_than_its_size(self, filler: bytes) -> None:
        text = filler * (HOSTILE_BYTES // len(filler)) + b",a"
        with within_s(DEADLINE_S):
            assert sum(map(len, elements(text))) <= len(text)


class TestHostileValue:
    @pytest.mark.parametrize(
        "filler",
        [b" ", b";", b"a", b"/", b";a=", b'"', b"<", b";a ", b"\r\n ", b';a="\\', b"a ", b": ", b"[", b"("],
    )
    @pytest.mark.parametrize(
        "start", [b"", b"SIP/2.0/UDP ", b"SIP/2.0/UDP a", b"<sip:a@b", b"<sip:a@b>", b'"', b"sip:a"]
    )
    def test_takes_no_longer_than_its_size(self, start: bytes, filler: bytes) -> None:
        text = start + filler * (HOSTILE_BYTES // len(filler)) + b"<"
        with within_s(DEADLINE_S):
            for parse in (Via.parse, NameAddress.parse):
                with pytest.raises(DecodeError):
                    parse(text)


class TestName:
    @pytest.mark.parametrize(
        ("line", "name"),
        [
            (b"Via: x", "via"),
            (b"v: x", "via"),
            (b"V \t: x", "via"),
            (b"cALL-iD:", "call-id"),
            (b"X-Own\xe9: 1", "x-own\xe9"),
            (b"Sip_odd name: 1", "sip_odd name"),
            (b": x", ""),
        ],
    )
    def test_is_in_lower_case_and_in_full(self, line: bytes, name: str) -> None:
        assert canonical_name(line) == name

    @pytest.mark.parametrize("line", [b"Via", b" Via: x", b"\tx:", b""])
    def test_needs_a_colon_and_no_blank_before_it(self, line: bytes) -> None:
        with pytest.raises(DecodeError):
            canonical_name(line)


class TestComposed:
    def test_via_is_read_back_here_and_elsewhere(self) -> None:
        text = compose_via(V4, branch="z9hG4bK77ef", transport="UDP")
        assert text == "SIP/2.0/UDP 192.0.2.7:5060;rport;branch=z9hG4bK77ef"
        assert compose_via(V6, branch="z9hG4bK1", transport="TCP", rport=False) == (
            "SIP/2.0/TCP [2001:db8::7]:5062;branch=z9hG4bK1"
        )
        via = Via.parse(text.encode())
        assert (via.ip, via.port, via.branch, via.has_rport) == (V4.ip, V4.port, b"z9hG4bK77ef", True)
        theirs = TheirVia.parse(text)
        assert (theirs.host, theirs.port, theirs.parameters["branch"]) == ("192.0.2.7", 5060, "z9hG4bK77ef")

    def test_sent_by_has_its_port_and_brackets(self) -> None:
        assert format_sent_by(V4) == b"192.0.2.7:5060"
        assert format_sent_by(V6) == b"[2001:db8::7]:5062"

    @pytest.mark.parametrize(
        ("branch", "transport"), [("a b", "UDP"), ("", "UDP"), ("a", "U/D"), ("a\r\nX:", "UDP")]
    )
    def test_via_refuses_what_is_no_token(self, branch: str, transport: str) -> None:
        with pytest.raises(EncodeError):
            compose_via(V4, branch=branch, transport=transport)

    def test_contact_is_read_back_here_and_elsewhere(self) -> None:
        text = compose_contact(
            V6,
            user="alice",
            display_name='A "B" \\',
            uri_params=["transport=tcp", "ob"],
            params=["expires=60"],
        )
        assert text == '"A \\"B\\" \\\\" <sip:alice@[2001:db8::7]:5062;transport=tcp;ob>;expires=60'
        address = NameAddress.parse(text.encode())
        assert address.uri is not None
        assert (address.uri.user, address.uri.endpoint()) == (b"alice", V6)
        assert TheirAddress.parse(text).parameters["expires"] == "60"

    def test_contact_may_be_its_address_alone(self) -> None:
        assert compose_contact(V4) == "<sip:192.0.2.7:5060>"
        assert compose_contact(V4, scheme="sips") == "<sips:192.0.2.7:5060>"

    @pytest.mark.parametrize(
        ("user", "written"),
        [
            ("al ice", "al%20ice"),
            ("a@b", "a%40b"),
            ("caf\xe9", "caf%C3%A9"),
            ("a%20b", "a%20b"),
            ("50%", "50%25"),
            ("+1;x=y:z", "+1;x=y:z"),
            ("<>\r\n", "%3C%3E%0D%0A"),
        ],
    )
    def test_contact_escapes_what_a_user_cannot_hold(self, user: str, written: str) -> None:
        text = compose_contact(V4, user=user)
        assert text == f"<sip:{written}@192.0.2.7:5060>"
        uri = NameAddress.parse(text.encode()).uri
        assert uri is not None
        assert uri.user == written.encode()

    def test_contact_refuses_what_would_break_out(self) -> None:
        with pytest.raises(EncodeError):
            compose_contact(V4, uri_params=["x>;y"])
        with pytest.raises(EncodeError):
            compose_contact(V4, params=["x,<sip:c@d.test>"])
        with pytest.raises(EncodeError):
            compose_contact(V4, params=['x="open'])
        with pytest.raises(EncodeError):
            compose_contact(V4, scheme="tel")
        with pytest.raises(EncodeError):
            compose_contact(V4, display_name="a\r\nVia: x")
        assert compose_contact(V4, params=['+sip.instance="<urn:uuid:1>"']).endswith('="<urn:uuid:1>"')
