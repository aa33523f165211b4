"""What a registrar answers, step by step of RFC 3261 §10.3."""

from __future__ import annotations

import asyncio

import pytest

from nattools.endpoint import Endpoint
from nattools.session.registrar import RegistrarSettings
from nattools.sip.headers import Via
from nattools.sip.message import SipMessage, compose_request
from tests.unit.session.registering import (
    SOURCE,
    Phone,
    contacts,
    register,
    registrar,
    values,
)

CONTACT = "<sip:alice@192.168.1.10:5060>"
URI = "sip:alice@192.168.1.10:5060"


class TestWhose:
    @pytest.mark.parametrize(
        ("uri", "expected"),
        [
            ("sip:example.com", True),
            ("sips:EXAMPLE.com:5061;transport=tcp", True),
            ("sip:203.0.113.7", True),
            ("sip:example.org", False),
            ("tel:+4930", False),
            ("sip:a@b@c", False),
        ],
    )
    def test_a_register_to_one_of_its_domains_is_its_own(self, uri: str, expected: bool) -> None:
        assert registrar().is_responsible(SipMessage.parse(register(uri=uri))) is expected

    def test_other_requests_and_responses_are_not(self) -> None:
        for data in (compose_request("OPTIONS", "sip:example.com", ()), b"SIP/2.0 200 OK\r\nTo: a\r\n\r\n"):
            assert not registrar().is_responsible(SipMessage.parse(data))


class TestWho:
    def test_without_credentials_it_asks_for_what_every_phone_knows_and_binds_nothing(self) -> None:
        phone = Phone(registrar())
        response = asyncio.run(phone.ask(register(CONTACT)))
        assert (response.status_code, response.reason) == (401, b"Unauthorized")
        # baresip 1.0 gives up at any challenge that is not MD5, be there others beside it.
        assert [value.rpartition("=")[2] for value in values(response, "www-authenticate")] == ["MD5"]
        assert response.to_tag
        assert not contacts(response)
        assert phone.bindings() == ()

    def test_with_the_password_it_is_bound(self) -> None:
        phone = Phone(registrar())
        response = phone.run(register(CONTACT))
        assert response.status_code == 200
        assert contacts(response) == {URI: 3600}
        (binding,) = phone.bindings()
        assert (binding.contact, binding.expires_at, binding.call_id, binding.cseq) == (
            URI.encode(),
            3600.0,
            b"call-1",
            1,
        )
        assert binding.flow == "udp-1"

    def test_a_wrong_password_is_asked_for_again(self) -> None:
        phone = Phone(registrar(), password="wrong")
        response = phone.run(register(CONTACT))
        assert response.status_code == 401
        assert "stale" not in "".join(values(response, "www-authenticate"))
        assert phone.bindings() == ()

    def test_an_old_nonce_is_called_stale(self) -> None:
        phone = Phone(registrar())
        phone.run(register(CONTACT))
        response = asyncio.run(phone.ask(phone.signed(register(CONTACT, cseq=2)), now=301.0))
        assert response.status_code == 401
        assert all("stale=true" in value for value in values(response, "www-authenticate"))

    def test_a_request_that_was_overheard_is_not_taken_twice(self) -> None:
        phone = Phone(registrar())
        phone.run(register(CONTACT))
        data = phone.signed(register("<sip:alice@192.168.1.11>", cseq=2))
        assert asyncio.run(phone.ask(data)).status_code == 200
        assert asyncio.run(phone.ask(data)).status_code == 401

    def test_nobody_registers_for_another(self) -> None:
        phone = Phone(registrar(), user="bob")
        assert phone.run(register(CONTACT, user="alice")).status_code == 403
        assert phone.bindings("alice") == phone.bindings("bob") == ()

    def test_whether_there_is_such_a_user_is_told_to_nobody(self) -> None:
        answers = [
            Phone(registrar(), user=user, password="x").run(register(CONTACT, user=to))
            for user, to in (("alice", "alice"), ("bob", "nobody"), ("bob", "alice"))
        ]
        assert [answer.status_code for answer in answers] == [401, 401, 401]

    def test_a_user_of_another_domain_is_not_found(self) -> None:
        assert Phone(registrar()).run(register(CONTACT, to="<sip:alice@example.org>")).status_code == 404

    def test_all_names_of_the_domain_and_both_schemes_have_the_same_users(self) -> None:
        phone = Phone(registrar())
        for number, to in enumerate(("sips:alice@example.com:5061", "sip:%61lice@203.0.113.7;x=y"), 1):
            contact = f"<sip:alice@192.168.1.{number}>"
            assert phone.run(register(contact, to=f"<{to}>", cseq=number)).status_code == 200
        assert len(phone.bindings()) == 2

    def test_users_with_blanks_are_found_by_their_escapes(self) -> None:
        phone = Phone(registrar(), user="a b")
        assert phone.run(register(CONTACT, user="a%20b")).status_code == 200
        assert len(phone.bindings("a b")) == 1


class TestForm:
    def test_an_extension_that_is_not_known_is_named(self) -> None:
        headers = [("Require", "path, foo"), ("Require", "bar")]
        response = Phone(registrar()).run(register(CONTACT, headers=headers))
        assert response.status_code == 420
        assert values(response, "unsupported") == ["foo, bar"]

    def test_extensions_that_are_known_may_be_required(self) -> None:
        assert (
            Phone(registrar())
            .run(register(CONTACT, headers=[("Require", "gruu, Outbound, path")]))
            .status_code
            == 200
        )

    @pytest.mark.parametrize(
        "data",
        [
            register("<sip:a b>"),
            register(CONTACT).replace(b"CSeq: 1 REGISTER\r\n", b""),
            register(CONTACT).replace(b"Call-ID: call-1\r\n", b""),
            register(CONTACT).replace(b"To: <sip:alice@example.com>\r\n", b""),
            register(CONTACT, to="<sip:alice@@>"),
            register("*"),
            register("*", headers=[("Expires", "60")]),
            register("*", CONTACT, headers=[("Expires", "0")]),
            register("<sip:" + "a" * 1100 + "@192.168.1.10>"),
            register("<sip:alice@192.168.1.10?x=a\t b>"),
            register(CONTACT, headers=[("Path", "<sip:" + "p" * 3000 + ">")]),
            register(CONTACT, via="no Via at all"),
        ],
    )
    def test_what_cannot_be_read_is_a_bad_request(self, data: bytes) -> None:
        phone = Phone(registrar())
        assert phone.run(data).status_code == 400
        assert phone.bindings() == ()

    @pytest.mark.parametrize("contact", ["<sip:alice@example.com>", "<sip:x@EXAMPLE.com:5060;gr=urn:uuid:1>"])
    def test_a_contact_that_would_go_round_is_refused(self, contact: str) -> None:
        assert Phone(registrar()).run(register(contact)).status_code == 403

    def test_a_phone_on_the_host_of_the_registrar_is_none_that_goes_round(self) -> None:
        assert Phone(registrar()).run(register("<sip:alice@203.0.113.7:5070>")).status_code == 200


class TestTime:
    @pytest.mark.parametrize(
        ("contact", "header", "granted"),
        [
            (CONTACT, None, 3600),
            (CONTACT, "120", 120),
            (f"{CONTACT};expires=90", "120", 90),
            (f"{CONTACT};expires=60", None, 60),
            (f"{CONTACT};expires=99999999999999", None, 7200),
            (f"{CONTACT};expires=4294967295", None, 7200),
            (f"{CONTACT};expires=soon", None, 3600),
            (f"{CONTACT};expires=-1", "120", 120),
            (f"{CONTACT};expires", "120", 120),
            (CONTACT, "Thu, 01 Dec 1994 16:00:00 GMT", 3600),
        ],
    )
    def test_it_is_what_was_asked_for_within_bounds(
        self, contact: str, header: str | None, granted: int
    ) -> None:
        headers = [] if header is None else [("Expires", header)]
        response = Phone(registrar()).run(register(contact, headers=headers))
        assert contacts(response) == {URI: granted}

    def test_too_short_is_refused_with_the_shortest(self) -> None:
        phone = Phone(registrar())
        response = phone.run(register("<sip:alice@192.168.1.9>", f"{CONTACT};expires=59"))
        assert (response.status_code, values(response, "min-expires")) == (423, ["60"])
        assert phone.bindings() == ()

    def test_what_remains_is_told_and_then_it_is_gone(self) -> None:
        phone = Phone(registrar())
        phone.run(register(CONTACT, headers=[("Expires", "100")]))
        assert contacts(phone.run(register(cseq=2), now=60.0)) == {URI: 40}
        assert contacts(phone.run(register(cseq=3), now=99.9)) == {URI: 1}
        assert contacts(phone.run(register(cseq=4), now=100.0)) == {}

    def test_a_refresh_starts_anew(self) -> None:
        phone = Phone(registrar())
        phone.run(register(CONTACT))
        assert contacts(phone.run(register(CONTACT, cseq=2), now=1000.0)) == {URI: 3600}

    @pytest.mark.parametrize(
        "settings",
        [
            {"least_expires_s": 0},
            {"least_expires_s": 3601, "default_expires_s": 4000},
            {"default_expires_s": 59},
            {"most_expires_s": 100},
            {"contacts_per_user": 0},
            {"users_per_source": 0},
        ],
    )
    def test_settings_that_cannot_be_are_refused(self, settings: dict[str, int]) -> None:
        with pytest.raises(ValueError, match=r"expected|hour|limit"):
            RegistrarSettings(**settings)


class TestUpdate:
    def test_a_contact_is_taken_away_by_itself(self) -> None:
        phone = Phone(registrar())
        phone.run(register(CONTACT, "<sip:alice@192.168.1.11>"))
        response = phone.run(register(f"{CONTACT};expires=0", cseq=2))
        assert contacts(response) == {"sip:alice@192.168.1.11": 3600}

    def test_one_register_exchanges_an_old_contact_for_a_new_one(self) -> None:
        phone = Phone(registrar(contacts_per_user=1))
        phone.run(register(CONTACT))
        response = phone.run(register("<sip:alice@192.168.1.11>", f"{CONTACT};expires=0", cseq=2))
        assert contacts(response) == {"sip:alice@192.168.1.11": 3600}

    def test_a_star_takes_all_away(self) -> None:
        phone = Phone(registrar())
        phone.run(register(CONTACT, "<sip:alice@192.168.1.11>"))
        phone.run(register("<sip:alice@192.168.1.12>", call_id="other", cseq=9))
        response = phone.run(register("*", cseq=2, headers=[("Expires", "0")]))
        assert (response.status_code, contacts(response)) == (200, {})
        assert phone.bindings() == ()

    def test_the_same_contact_in_other_words_is_the_same(self) -> None:
        phone = Phone(registrar())
        phone.run(register("<sip:alice@Phone.example.org;transport=tcp>"))
        response = phone.run(register("<sip:%61lice@phone.example.org;transport=TCP>", cseq=2))
        assert contacts(response) == {"sip:%61lice@phone.example.org;transport=TCP": 3600}

    @pytest.mark.parametrize("contact", [CONTACT, f"{CONTACT};expires=0", "*"])
    @pytest.mark.parametrize("cseq", [4, 5])
    def test_what_comes_too_late_changes_nothing(self, contact: str, cseq: int) -> None:
        phone = Phone(registrar())
        phone.run(register(CONTACT, cseq=5))
        before = phone.bindings()
        headers = [("Expires", "0")] if contact == "*" else []
        others = [] if contact == "*" else ["<sip:alice@192.168.1.11>"]
        response = phone.run(register(*others, contact, cseq=cseq, headers=headers))
        assert response.status_code == 500
        assert phone.bindings() == before

    def test_another_call_id_has_another_count(self) -> None:
        phone = Phone(registrar())
        phone.run(register(CONTACT, cseq=5))
        assert phone.run(register(CONTACT, cseq=1, call_id="after a restart")).status_code == 200
        (binding,) = phone.bindings()
        assert (binding.call_id, binding.cseq) == (b"after a restart", 1)

    def test_one_contact_twice_in_a_request_counts_once(self) -> None:
        response = Phone(registrar()).run(register(f"{CONTACT};q=0.1", f"{CONTACT};q=0.5"))
        assert values(response, "contact") == [f"{CONTACT};q=0.5;expires=3600"]

    def test_a_query_changes_nothing(self) -> None:
        phone = Phone(registrar())
        phone.run(register(CONTACT, cseq=5))
        response = phone.run(register(cseq=1))
        assert (response.status_code, contacts(response)) == (200, {URI: 3600})

    @pytest.mark.parametrize(
        ("q", "kept", "written"),
        [("0", 0.0, ";q=0"), ("0.75", 0.75, ";q=0.75"), ("1.000", 1.0, ""), ("2", 1.0, ""), ("x", 1.0, "")],
    )
    def test_q_is_kept(self, q: str, kept: float, written: str) -> None:
        phone = Phone(registrar())
        response = phone.run(register(f"{CONTACT};q={q}"))
        assert phone.bindings()[0].q == kept
        assert values(response, "contact") == [f"{CONTACT}{written};expires=3600"]

    def test_other_parameters_come_back(self) -> None:
        contact = f'"Al" {CONTACT};methods="INVITE, BYE";+sip.x;pub-gruu="sip:evil"'
        response = Phone(registrar()).run(register(contact))
        assert values(response, "contact") == [f'{CONTACT};methods="INVITE, BYE";+sip.x;expires=3600']

    def test_folds_in_parameters_do_not_come_back(self) -> None:
        data = register(f'{CONTACT};methods="INVITE, BYE"').replace(b", BYE", b",\r\n BYE")
        response = Phone(registrar()).run(data)
        assert response.value(response.header("contact")) == (
            f'{CONTACT};methods="INVITE, BYE";expires=3600'.encode()
        )

    def test_other_schemes_are_kept_as_they_are(self) -> None:
        response = Phone(registrar()).run(register("mailto:alice@example.org"))
        assert contacts(response) == {"mailto:alice@example.org": 3600}


class TestLimits:
    def test_a_user_has_only_so_many_contacts(self) -> None:
        phone = Phone(registrar(contacts_per_user=2))
        phone.run(register("<sip:a@192.0.2.1>", "<sip:a@192.0.2.2>"))
        assert phone.run(register("<sip:a@192.0.2.3>", cseq=2)).status_code == 403
        assert phone.run(register("<sip:a@192.0.2.1>", cseq=3)).status_code == 200
        assert phone.run(register("<sip:a@192.0.2.1>;expires=0", cseq=4)).status_code == 200
        assert phone.run(register("<sip:a@192.0.2.3>", cseq=5)).status_code == 200

    def test_who_has_more_than_a_new_limit_keeps_them_and_gets_no_more(self) -> None:
        phone = Phone(registrar())
        phone.run(register("<sip:a@192.0.2.1>", "<sip:a@192.0.2.2>"))
        limited = Phone(registrar(contacts_per_user=1), phone.location)
        assert limited.run(register("<sip:a@192.0.2.1>", cseq=2)).status_code == 200
        assert limited.run(register("<sip:a@192.0.2.3>", cseq=3)).status_code == 403

    def test_where_too_many_are_one_may_still_leave(self) -> None:
        server, elsewhere = registrar(users_per_source=1), Endpoint.parse("203.0.113.2:40000")
        alice = Phone(server, source=elsewhere)
        alice.run(register(CONTACT))
        Phone(server, user="bob").run(register(CONTACT, user="bob"))
        alice.source = SOURCE
        assert alice.run(register(CONTACT, cseq=2)).status_code == 403
        assert alice.run(register(f"{CONTACT};expires=0", cseq=3)).status_code == 200
        assert alice.bindings() == ()

    def test_more_contacts_than_ever_fit_are_not_looked_at(self) -> None:
        many = [f"<sip:a@192.0.2.{number}>;expires=0" for number in range(200)]
        assert Phone(registrar()).run(register(*many)).status_code == 403

    def test_a_source_has_only_so_many_users(self) -> None:
        server = registrar(users_per_source=1)
        alice, bob = Phone(server), Phone(server, user="bob")
        assert alice.run(register(CONTACT)).status_code == 200
        assert bob.run(register(CONTACT, user="bob")).status_code == 403
        assert alice.run(register(CONTACT, cseq=2)).status_code == 200
        alice.run(register("*", cseq=3, headers=[("Expires", "0")]))
        assert bob.run(register(CONTACT, user="bob")).status_code == 200
        assert alice.run(register(CONTACT, cseq=4), now=3599.0).status_code == 403
        assert alice.run(register(CONTACT, cseq=5), now=3600.0).status_code == 200


class TestReceived:
    @pytest.mark.parametrize(
        ("contact", "via", "is_received"),
        [
            ("<sip:alice@192.168.1.10:5060>", "UDP 192.168.1.10:5060;rport", True),
            ("<sip:alice@192.168.1.10:5060>", "UDP 192.168.1.10:5060", True),
            ("<sip:alice@phone.invalid>", "UDP phone.invalid", True),
            ("<sip:alice@100.64.0.9:5060>", "UDP 203.0.113.1:40000", True),
            ("<sip:alice@[fe80::1]:5060>", "UDP 203.0.113.1:40000", True),
            (f"<sip:alice@{SOURCE}>", f"UDP {SOURCE};rport", False),
            (f"<sip:alice@{SOURCE.ip}:5060>", f"UDP {SOURCE.ip}:5060;rport", True),
            (f"<sip:alice@{SOURCE.ip}:5060>", f"UDP {SOURCE.ip}:5060", False),
            (f"<sip:alice@{SOURCE.ip}:5060;transport=tcp>", f"TCP {SOURCE.ip}:5060", True),
            (f"<sip:alice@{SOURCE};transport=tcp>", f"TCP {SOURCE}", True),
            ("<sip:alice@192.0.2.99>", "UDP 192.168.1.10:5060;rport", False),
            ("mailto:alice@192.168.1.10", "UDP 192.168.1.10:5060;rport", False),
        ],
    )
    def test_it_is_stored_where_the_contact_is_the_phones_own_mistake(
        self, contact: str, via: str, is_received: bool
    ) -> None:
        phone = Phone(registrar())
        phone.run(register(contact, via=f"SIP/2.0/{via};branch=z9hG4bKa"))
        assert phone.bindings()[0].received == (SOURCE if is_received else None)

    def test_behind_another_proxy_nobody_can_say(self) -> None:
        data = register(CONTACT, via="SIP/2.0/UDP 192.0.2.9;branch=z9hG4bKb")
        second = b"Via: SIP/2.0/UDP 192.168.1.10:5060;branch=z9hG4bKa\r\nMax-Forwards"
        for behind in (
            data.replace(b"Max-Forwards", second),
            register(CONTACT, headers=[("Path", "<sip:p>")]),
        ):
            phone = Phone(registrar())
            phone.run(behind)
            assert phone.bindings()[0].received is None


class TestResponse:
    def test_it_goes_back_as_it_came(self) -> None:
        response = Phone(registrar()).run(register(CONTACT))
        via = response.top_via
        assert isinstance(via, Via)
        assert via.branch == b"z9hG4bKa"
        assert response.cseq == (1, "REGISTER")
        assert response.call_id == b"call-1"
        assert response.from_tag == b"f"
        assert values(response, "supported") == ["gruu, outbound, path"]
