"""Which URIs are the same, by the examples of RFC 3261 §19.1.4 and by what it says of each part."""

from __future__ import annotations

import pytest

from nattools.sip.comparison import canonical_host, is_same_uri, unescaped

SAME = [
    ("sip:%61lice@atlanta.com;transport=TCP", "sip:alice@AtLanTa.CoM;Transport=tcp"),
    ("sip:carol@chicago.com", "sip:carol@chicago.com;newparam=5"),
    ("sip:carol@chicago.com", "sip:carol@chicago.com;security=on"),
    ("sip:biloxi.com;transport=tcp;method=REGISTER?to=sip:bob%40biloxi.com",) * 2,
    (
        "sip:biloxi.com;transport=tcp;method=REGISTER?to=sip:bob%40biloxi.com",
        "sip:biloxi.com;method=REGISTER;transport=tcp?to=sip:bob%40biloxi.com",
    ),
    (
        "sip:alice@atlanta.com?subject=project%20x&priority=urgent",
        "sip:alice@atlanta.com?priority=urgent&subject=project%20x",
    ),
    ("SIP:alice@atlanta.com", "sip:alice@atlanta.com."),
    ("sip:a@[2001:db8::1]", "sip:a@[2001:0DB8:0::1]"),
    ("mailto:bob@biloxi.com", "mailto:bob@biloxi.com"),
    ("not a URI", "not a URI"),
]
OTHERS = [
    ("SIP:ALICE@AtLanTa.CoM;Transport=udp", "sip:alice@AtLanTa.CoM;Transport=UDP"),
    ("sip:bob@biloxi.com", "sip:bob@biloxi.com:5060"),
    ("sip:bob@biloxi.com", "sip:bob@biloxi.com;transport=udp"),
    ("sip:bob@biloxi.com", "sip:bob@biloxi.com:6000;transport=tcp"),
    ("sip:carol@chicago.com", "sip:carol@chicago.com?Subject=next%20meeting"),
    ("sip:bob@phone21.boxesbybob.com", "sip:bob@192.0.2.4"),
    ("sip:carol@chicago.com;security=on", "sip:carol@chicago.com;security=off"),
    ("sip:bob@biloxi.com", "sips:bob@biloxi.com"),
    ("sip:bob@biloxi.com", "sip:biloxi.com"),
    ("sip:bob@biloxi.com", "sip:bob@biloxi.com;gr=urn:uuid:1"),
    ("sip:bob@biloxi.com;gr=A", "sip:bob@biloxi.com;gr=a"),
    ("sip:bob@biloxi.com", "sip:bob@biloxi.com;ob"),
    ("mailto:bob@biloxi.com", "mailto:BOB@biloxi.com"),
    ("sip:bob@biloxi.com", "not a URI"),
    *(("sip:b@c", f"sip:b@c;{name}=1") for name in ("user", "ttl", "method", "maddr", "transport")),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_the_same(one: str, other: str) -> None:
    assert is_same_uri(one.encode(), other.encode())
    assert is_same_uri(other.encode(), one.encode())


@pytest.mark.parametrize(("one", "other"), OTHERS)
def test_another(one: str, other: str) -> None:
    assert not is_same_uri(one.encode(), other.encode())
    assert not is_same_uri(other.encode(), one.encode())


def test_sameness_is_not_handed_on() -> None:
    one, between, other = b"sip:c@d;security=on", b"sip:c@d", b"sip:c@d;security=off"
    assert is_same_uri(one, between)
    assert is_same_uri(between, other)
    assert not is_same_uri(one, other)


@pytest.mark.parametrize(
    ("text", "expected"), [(b"%61%2f%zz%", b"a/%zz%"), (b"", b""), (None, None), (b"%C3%A4", b"\xc3\xa4")]
)
def test_escapes_are_undone_and_what_is_none_stays(text: bytes | None, expected: bytes | None) -> None:
    assert unescaped(text) == expected


@pytest.mark.parametrize(
    ("host", "expected"),
    [(b"EXAMPLE.com.", b"example.com"), (b"2001:DB8:0:0::1", b"2001:db8::1"), (b"192.0.2.1", b"192.0.2.1")],
)
def test_hosts_are_compared_in_one_form(host: bytes, expected: bytes) -> None:
    assert canonical_host(host) == expected
