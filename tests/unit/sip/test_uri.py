"""SIP URIs: each part and where it stands; what is none; what an odd one may not be taken for."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from nattools.endpoint import Endpoint
from nattools.errors import DecodeError
from nattools.sip.uri import SipUri, Span, read_ip
from tests.unit.sip.hostile import DEADLINE_S, HOSTILE_BYTES, within_s


def cut(data: bytes, span: Span | None) -> bytes | None:
    return None if span is None else data[slice(*span)]


class TestParts:
    @pytest.mark.parametrize(
        ("text", "scheme", "user", "host", "port"),
        [
            (b"sip:192.0.2.7", "sip", None, b"192.0.2.7", None),
            (b"sip:alice@192.0.2.7:5062", "sip", b"alice", b"192.0.2.7", 5062),
            (b"SIPS:Bob@Example.COM", "sips", b"Bob", b"Example.COM", None),
            (
                b"sip:+358-555-1234;postd=pp22@gw.test;user=phone",
                "sip",
                b"+358-555-1234;postd=pp22",
                b"gw.test",
                None,
            ),
            (b"sip:alice:secret@a.test:0", "sip", b"alice:secret", b"a.test", 0),
            (b"sip:user?with=odd/signs&more=$@a.test", "sip", b"user?with=odd/signs&more=$", b"a.test", None),
            (b"sip:%40%00x@a.test", "sip", b"%40%00x", b"a.test", None),
            (b"sip:@a.test", "sip", b"", b"a.test", None),
            (b"sip:caf\xe9@a.test", "sip", b"caf\xe9", b"a.test", None),
            (b"sip:[2001:db8::1]", "sip", None, b"2001:db8::1", None),
            (b"sip:u@[2001:db8::1]:65535;lr", "sip", b"u", b"2001:db8::1", 65535),
            (b"sip:u@a.test:05060", "sip", b"u", b"a.test", 5060),
            (b"sip:u@under_score.test.?Subject=x@y", "sip", b"u", b"under_score.test.", None),
        ],
    )
    def test_are_read(
        self, text: bytes, scheme: str, user: bytes | None, host: bytes, port: int | None
    ) -> None:
        uri = SipUri.parse(text)
        assert (uri.scheme, uri.user, uri.host, uri.port) == (scheme, user, host, port)

    @pytest.mark.parametrize(
        ("text", "user", "host", "port", "host_port"),
        [
            (b"sip:alice@192.0.2.7:5062;lr", b"alice", b"192.0.2.7", b"5062", b"192.0.2.7:5062"),
            (b"sips:[::1]:05?x=y", None, b"[::1]", b"05", b"[::1]:05"),
            (b"sip:@host", b"", b"host", None, b"host"),
            (b"sip:u@[::1]", b"u", b"[::1]", None, b"[::1]"),
        ],
    )
    def test_have_spans(
        self, text: bytes, user: bytes | None, host: bytes, port: bytes | None, host_port: bytes
    ) -> None:
        data = b"<" + text + b">;tag=1"
        uri = SipUri.parse(data, Span(1, 1 + len(text)))
        assert cut(data, uri.span) == text
        assert cut(data, uri.user_span) == user
        assert cut(data, uri.host_span) == host
        assert cut(data, uri.port_span) == port
        assert cut(data, uri.host_port_span) == host_port

    def test_params_have_a_name_in_lower_case_and_their_own_value(self) -> None:
        data = b"sip:a@b.test;Transport=TCP;LR;;ob=;x=a=b?Subject=hi;no=param"
        uri = SipUri.parse(data)
        assert [(p.name, p.value) for p in uri.params] == [
            ("transport", b"TCP"),
            ("lr", None),
            ("ob", b""),
            ("x", b"a=b"),
        ]
        for param in uri.params:
            assert (cut(data, param.name_span) or b"").lower() == param.name.encode()
            assert cut(data, param.value_span) == param.value
        assert uri.param("transport") is uri.params[0]
        assert uri.param("no") is None

    def test_of_another_scheme_are_the_scheme_alone(self) -> None:
        for text, scheme in (
            (b"tel:+15551234;phone-context=example.com", "tel"),
            (b"MailTo:bob@biloxi.example.com", "mailto"),
            (b"urn:service:sos", "urn"),
            (b"http://192.0.2.7:5060/", "http"),
        ):
            uri = SipUri.parse(text)
            assert (uri.scheme, uri.user, uri.host, uri.port, uri.params) == (scheme, None, b"", None, ())
            assert uri.ip is None
            assert uri.endpoint() is None
            assert cut(text, uri.host_port_span) == b""


class TestNoUri:
    @pytest.mark.parametrize(
        "text",
        [
            b"",
            b"sip",
            b"sip:",
            b"sip:a@",
            b"sip:a@b@c",  # which of them is the host cannot be told
            b"sip:a@b.test:",
            b"sip:a@b.test:x",
            b"sip:a@b.test:65536",
            b"sip:a@b.test:123456",
            b"sip:a@b.test x",
            b"sip:a b@c.test",
            b" sip:a@b.test",
            b"sip:[2001:db8::1",
            b"sip:2001:db8::1",
            b"sip:[host]",
            b"sip:[2001:db8::5[]",
            b"sip:[::1,]",
            b"sip:[::1]x",
            b"sip:a@b.test; lr",
            b"sip:a@b.test;=x",
            b"sip:a@b.test;x=<y>",
            b"sip:a@b.test/x",
            b"alice@b.test",
            b"1tel:5",
            b"tel:",
            b"tel:1 2",
            b"sip:a\r\nb@c.test",
        ],
    )
    def test_is_refused(self, text: bytes) -> None:
        with pytest.raises(DecodeError):
            SipUri.parse(text)

    @pytest.mark.parametrize(
        ("start", "filler", "end"),
        [
            (b"sip:", b"a", b" "),
            (b"sip:", b"a", b"@"),
            (b"sip:", b"@", b" "),
            (b"sip:", b"[", b" "),
            (b"sip:[", b":", b" "),
            (b"sip:[", b"a", b":"),
            (b"sip:h", b";", b" "),
            (b"sip:h;", b"=", b" "),
            (b"", b"a", b" "),
            (b"tel:", b"a", b" "),
            (b"sip:h:", b"1", b" "),
        ],
    )
    def test_of_any_size_takes_no_longer_than_its_size(self, start: bytes, filler: bytes, end: bytes) -> None:
        with within_s(DEADLINE_S), pytest.raises(DecodeError):
            SipUri.parse(start + filler * HOSTILE_BYTES + end)


class TestAddress:
    @pytest.mark.parametrize(
        ("host", "ip"),
        [
            (b"192.0.2.7", "192.0.2.7"),
            (b"[2001:db8::1]", "2001:db8::1"),
            (b"2001:DB8::1", "2001:db8::1"),
            (b"::ffff:192.0.2.7", "::ffff:192.0.2.7"),
        ],
    )
    def test_is_read_with_brackets_or_without(self, host: bytes, ip: str) -> None:
        assert read_ip(host) == ip_address(ip)

    @pytest.mark.parametrize(
        "host",
        [
            b"",
            b"a.test",
            b"192.0.2",
            b"192.000.002.007",
            b"fe80::1%eth0",
            b"[::1",
            b"\xd9\xa1.2.3.4",
            b"1" * 99,
        ],
    )
    def test_is_none_for_anything_else(self, host: bytes) -> None:
        assert read_ip(host) is None

    def test_has_the_port_that_is_meant_where_none_is_written(self) -> None:
        assert SipUri.parse(b"sip:192.0.2.7").endpoint() == Endpoint.of("192.0.2.7", 5060)
        assert SipUri.parse(b"sips:192.0.2.7").endpoint(5061) == Endpoint.of("192.0.2.7", 5061)
        assert SipUri.parse(b"sip:192.0.2.7:0").endpoint() == Endpoint.of("192.0.2.7", 0)
        assert SipUri.parse(b"sip:[::1]:7").endpoint() == Endpoint.of("::1", 7)
        assert SipUri.parse(b"sip:a.test:7").endpoint() is None
