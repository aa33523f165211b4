"""Which URIs are of a domain, and whom they name."""

from __future__ import annotations

import pytest

from nattools.session.domains import Domains
from nattools.sip.uri import SipUri

DOMAINS = Domains(["Example.COM", "203.0.113.7", "[2001:db8::7]"])


@pytest.mark.parametrize("host", [b"example.com", b"EXAMPLE.com.", b"203.0.113.7", b"2001:0DB8::7"])
def test_its_hosts_are_its_own_in_all_spellings(host: bytes) -> None:
    assert host in DOMAINS


@pytest.mark.parametrize("host", [b"", b"example.org", b"www.example.com", b"203.0.113.77"])
def test_others_are_not(host: bytes) -> None:
    assert host not in DOMAINS


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("sip:alice@example.com", "alice@example.com"),
        ("sips:alice@EXAMPLE.com:5061;transport=tls?x=y", "alice@example.com"),
        ("sip:al%69ce:secret@203.0.113.7", "alice@example.com"),
        ("sip:Alice@[2001:db8:0::7]", "Alice@example.com"),
        ("sip:+4930;phone-context=x@example.com;user=phone", "+4930;phone-context=x@example.com"),
        ("sip:%C3%A4@example.com", "ä@example.com"),
        ("sip:%ff@example.com", "\udcff@example.com"),
        ("sip:example.com", None),
        ("sip::secret@example.com", None),
        ("sip:alice@example.org", None),
        ("tel:+4930", None),
    ],
)
def test_a_user_has_one_address_of_record(uri: str, expected: str | None) -> None:
    assert DOMAINS.address_of_record(SipUri.parse(uri.encode())) == expected


def test_the_first_is_its_name() -> None:
    assert (DOMAINS.name, DOMAINS.host) == ("example.com", "example.com")
    assert (Domains(["2001:DB8::7"]).name, Domains(["2001:DB8::7"]).host) == ("2001:db8::7", "[2001:db8::7]")


def test_there_is_one_at_least() -> None:
    with pytest.raises(ValueError, match="without a domain"):
        Domains([])
