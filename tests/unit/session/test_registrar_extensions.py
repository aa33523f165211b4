"""Path (RFC 3327), outbound (RFC 5626) and public GRUUs (RFC 5627) at the registrar."""

from __future__ import annotations

import pytest

from nattools.session.domains import Domains
from nattools.session.location import instance_of, targets
from nattools.sip.headers import NameAddress
from nattools.sip.uri import SipUri
from tests.unit.session.registering import Phone, contacts, register, registrar, values

CONTACT = "<sip:alice@192.168.1.10:5060>"
URN = "urn:uuid:00000000-0000-1000-8000-000A95A0E128"
INSTANCE = f'+sip.instance="<{URN}>"'
OUTBOUND = [("Supported", "path, outbound")]
GRUU = [("Supported", "gruu")]


def flow(number: int, host: int = 10, *, expires: str = "") -> str:
    return f"<sip:alice@192.168.1.{host}>;{INSTANCE};reg-id={number}{expires}"


class TestPath:
    def test_it_is_kept_in_its_order_and_told_back(self) -> None:
        phone = Phone(registrar())
        path = [("Path", "<sip:p2.example.com;lr>, <sip:p1.example.com;lr;ob>"), ("Path", "<sip:p0;lr>")]
        response = phone.run(register(CONTACT, headers=[*path, ("Supported", "path")]))
        kept = (b"<sip:p2.example.com;lr>", b"<sip:p1.example.com;lr;ob>", b"<sip:p0;lr>")
        assert phone.bindings()[0].path == kept
        assert values(response, "path") == [value.decode() for value in kept]

    @pytest.mark.parametrize("path", ["<tel:+4930>", "no address", "*", "<sip:a b>"])
    def test_one_that_no_request_can_go_by_is_refused(self, path: str) -> None:
        phone = Phone(registrar())
        assert phone.run(register(CONTACT, headers=[("Path", path)])).status_code == 400
        assert phone.bindings() == ()

    def test_a_new_path_takes_the_place_of_the_old_one(self) -> None:
        phone = Phone(registrar())
        phone.run(register(CONTACT, headers=[("Path", "<sip:p1;lr>")]))
        phone.run(register(CONTACT, cseq=2))
        assert phone.bindings()[0].path == ()


class TestOutbound:
    def test_two_flows_of_one_phone_are_two_bindings_of_one_contact(self) -> None:
        phone = Phone(registrar())
        first = phone.run(register(flow(1), headers=OUTBOUND))
        phone.run(register(flow(2), cseq=1, call_id="second", headers=OUTBOUND))
        assert values(first, "require") == ["outbound"]
        assert [binding.reg_id for binding in phone.bindings()] == [1, 2]
        assert {binding.instance for binding in phone.bindings()} == {URN}

    def test_a_flow_that_comes_anew_replaces_itself_from_elsewhere_too(self) -> None:
        phone = Phone(registrar())
        phone.run(register(flow(1), headers=OUTBOUND))
        response = phone.run(register(flow(1, host=77), call_id="after a restart", headers=OUTBOUND))
        assert list(contacts(response)) == ["sip:alice@192.168.1.77"]

    def test_flows_of_two_phones_are_two(self) -> None:
        phone = Phone(registrar())
        phone.run(register(flow(1), headers=OUTBOUND))
        other = flow(1, host=11).replace(URN, "urn:uuid:other")
        phone.run(register(other, call_id="other", headers=OUTBOUND))
        assert len(phone.bindings()) == 2

    def test_a_flow_is_taken_away_alone(self) -> None:
        phone = Phone(registrar())
        phone.run(register(flow(1), headers=OUTBOUND))
        phone.run(register(flow(2), cseq=2, headers=OUTBOUND))
        phone.run(register(flow(1, expires=";expires=0"), cseq=3, headers=OUTBOUND))
        assert [binding.reg_id for binding in phone.bindings()] == [2]

    @pytest.mark.parametrize(
        ("contact", "headers"),
        [
            (flow(1), []),
            (flow(1).replace(INSTANCE, "x=y"), OUTBOUND),
            (flow(0), OUTBOUND),
            (flow(2**31), OUTBOUND),
        ],
    )
    def test_without_all_that_it_needs_a_flow_is_a_plain_contact(
        self, contact: str, headers: list[tuple[str, str]]
    ) -> None:
        phone = Phone(registrar())
        response = phone.run(register(contact, headers=headers))
        assert response.status_code == 200
        assert values(response, "require") == []
        assert phone.bindings()[0].reg_id is None

    def test_two_flows_in_one_request_are_refused(self) -> None:
        assert Phone(registrar()).run(register(flow(1), flow(2), headers=OUTBOUND)).status_code == 400
        taken_away = flow(2, expires=";expires=0")
        assert Phone(registrar()).run(register(flow(1), taken_away, headers=OUTBOUND)).status_code == 200

    @pytest.mark.parametrize(
        ("path", "status_code"),
        [
            ("<sip:edge.example.com;lr;ob>", 200),
            ("<sip:inner.example.com;lr>, <sip:edge.example.com;lr;ob>", 200),
            ("<sip:inner.example.com;lr;ob>, <sip:edge.example.com;lr>", 439),
            ("<sip:edge.example.com;lr>", 439),
            (None, 439),
        ],
    )
    def test_a_proxy_next_to_the_phone_must_keep_flows_as_well(
        self, path: str | None, status_code: int
    ) -> None:
        headers = [*OUTBOUND, ("Via", "SIP/2.0/UDP 192.168.1.10;branch=z9hG4bKb")]
        headers += [] if path is None else [("Path", path)]
        assert Phone(registrar()).run(register(flow(1), headers=headers)).status_code == status_code


class TestGruu:
    def test_a_phone_that_knows_them_is_told_its_own(self) -> None:
        phone = Phone(registrar())
        response = phone.run(register(f"{CONTACT};{INSTANCE}", headers=GRUU))
        (contact,) = response.contacts
        gruu = contact.param("pub-gruu")
        assert gruu is not None
        assert gruu.value == f'"sip:alice@example.com;gr={URN}"'.encode()

    def test_others_are_not(self) -> None:
        phone = Phone(registrar())
        phone.run(register(f"{CONTACT};{INSTANCE}", headers=GRUU))
        assert "gruu" not in values(phone.run(register(cseq=2)), "contact")[0]
        plain = phone.run(register("<sip:alice@192.168.1.11>", cseq=3, headers=GRUU))
        assert [("pub-gruu" in value) for value in values(plain, "contact")] == [True, False]

    def test_it_leads_to_the_phone_and_stays_when_the_phone_moves(self) -> None:
        phone = Phone(registrar())
        phone.run(register("<sip:alice@192.168.1.99>", headers=GRUU))
        response = phone.run(register(f"{CONTACT};{INSTANCE}", cseq=2, headers=GRUU))
        gruu = response.contacts[-1].param("pub-gruu")
        assert gruu is not None
        assert gruu.value is not None
        phone.run(register(f"<sip:alice@192.168.1.77>;{INSTANCE}", call_id="moved", headers=GRUU))
        uri = SipUri.parse(gruu.value.strip(b'"'))
        name = Domains(["example.com"]).address_of_record(uri)
        assert name == "alice@example.com"
        (group,) = targets(phone.bindings(), instance=instance_of(uri))
        assert [binding.contact for binding in group] == [b"sip:alice@192.168.1.77"]

    def test_what_a_uri_cannot_hold_is_escaped(self) -> None:
        phone = Phone(registrar(domains=["[2001:db8::7]"]), user="a b")
        request = register(
            '<sip:x@192.168.1.1>;+sip.instance="<urn:x;y=ä>"',
            uri="sip:[2001:db8::7]",
            to="<sip:a%20b@[2001:db8::7]>",
            headers=GRUU,
        )
        gruu = phone.run(request).contacts[0].param("pub-gruu")
        assert gruu is not None
        assert gruu.value == b'"sip:a%20b@[2001:db8::7];gr=urn:x%3By%3D%C3%A4"'
        assert instance_of(SipUri.parse(gruu.value.strip(b'"'))) == "urn:x;y=ä"

    @pytest.mark.parametrize("uri", [b"sip:a@example.com", b"sip:a@example.com;gr", b"tel:+4930"])
    def test_other_uris_mean_no_phone_of_many(self, uri: bytes) -> None:
        assert instance_of(SipUri.parse(uri)) == ""

    def test_an_instance_that_is_none_is_no_instance(self) -> None:
        phone = Phone(registrar())
        for number, value in enumerate((URN, f'"{URN}"', '"<>"', '""'), 1):
            contact = f"{CONTACT};+sip.instance={value}"
            assert phone.run(register(contact, cseq=number, headers=GRUU)).status_code == 200
            assert phone.bindings()[0].instance == ""

    def test_the_parameter_stays_readable(self) -> None:
        response = Phone(registrar()).run(register(f"{CONTACT};{INSTANCE};q=0.5", headers=GRUU))
        parsed = NameAddress.parse(values(response, "contact")[0].encode())
        assert [param.name for param in parsed.params] == ["+sip.instance", "q", "pub-gruu", "expires"]
