"""A REGISTER on its way to another registrar, and back: what is exchanged, what stays, what is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nattools.endpoint import Endpoint
from nattools.errors import DecodeError
from nattools.session.flows import Flow, Flows, Listener
from nattools.session.location import Bindings, ContactBinding
from nattools.session.upstream import (
    Exchange,
    Ticket,
    Upstream,
    address_of_record,
    binding_in_dialog,
    binding_of,
    flow_to_phone,
)
from nattools.sip.message import SipMessage, compose_response
from nattools.sip.uri import SipUri
from tests.unit.session.proxy_desk import counting
from tests.unit.session.registering import register

GATE = Endpoint.of("203.0.113.5", 5060)
MOVED = Endpoint.of("203.0.113.6", 5060)
NAT = Endpoint.of("203.0.113.1", 40000)
OTHER_NAT = Endpoint.of("203.0.113.2", 40000)
AOR = "alice@example.com"
INSIDE = "sip:alice@192.168.1.10:5060"
INSTANCE = '+sip.instance="<urn:uuid:00000000-0000-1000-8000-000A95A0E128>"'
TOKEN = "000000000000000000000001"
OUTSIDE = f"sip:alice@{GATE};natgate={TOKEN}~example.com"
FLOWS = Flows([Listener("u", "UDP", GATE), Listener("t", "TCP", GATE)], {b"gate.test"})


def exchange(
    *contacts: str,
    bindings: Bindings = (),
    source: Endpoint = NAT,
    call_id: str = "call-1",
    headers: Iterable[tuple[str, str]] = (),
    by_path: bool = False,
    entropy: Callable[[int], bytes] | None = None,
    via: str = "SIP/2.0/UDP 192.168.1.10:5060;rport;branch=z9hG4bKa",
) -> tuple[Exchange, SipMessage]:
    """The exchange of a REGISTER, and how it goes on."""
    request = SipMessage.parse(register(*contacts, call_id=call_id, headers=headers, via=via))
    made = Exchange(request, Flow("u", source), AOR, bindings, entropy=entropy or counting(), by_path=by_path)
    onward = request.unedited()
    made.edit_request(onward, GATE, "UDP")
    return made, SipMessage.parse(onward.encode())


def answer(request: SipMessage, *contacts: str, headers: Iterable[tuple[str, str]] = ()) -> SipMessage:
    fields = [*(("Contact", contact) for contact in contacts), *headers]
    return SipMessage.parse(compose_response(request, 200, "OK", fields, to_tag="t"))


def values(message: SipMessage, name: str = "contact") -> list[str]:
    return [message.data[slice(*span)].decode() for span in message.values(name)]


def kept(made: Exchange, response: SipMessage, before: Bindings = ()) -> Bindings | None:
    return made.kept(response, before, now=1000.0).bindings


def bound(
    contact: str = INSIDE,
    *,
    token: str = TOKEN,
    received: Endpoint | None = NAT,
    instance: str = "",
    reg_id: int | None = None,
    call_id: bytes = b"other",
    at: Endpoint = GATE,
    flow: str = "u",
) -> ContactBinding:
    return ContactBinding(
        contact.encode(), 5000.0, call_id, 1, b"", 1.0, (), received, flow, instance, reg_id,
        Ticket(AOR, token).uri(at, "UDP"),
    )  # fmt: skip


class TestTheRequest:
    @pytest.mark.parametrize(
        ("written", "sent"),
        [
            (f"<{INSIDE}>;expires=60", f"<{OUTSIDE}>;expires=60"),
            (f"{INSIDE};expires=60;q=0.5", f"<{OUTSIDE}>;expires=60;q=0.5"),
            (f'"A, B" < {INSIDE} >;x="y,z"', f'"A, B" < {OUTSIDE} >;x="y,z"'),
            (
                f"<{INSIDE};ob>;{INSTANCE};reg-id=1;expires=60",
                f"<{OUTSIDE}>;{INSTANCE};reg-id=1;expires=60",
            ),
            ("<sip:alice@host.invalid;transport=ws>", f"<{OUTSIDE}>"),
            ("<sip:alice@203.0.113.1:1>", f"<{OUTSIDE}>"),
        ],
    )
    def test_a_contact_of_the_phone_is_exchanged_and_nothing_else(self, written: str, sent: str) -> None:
        via = "SIP/2.0/UDP host.invalid;rport;branch=z9hG4bKa"
        _, onward = exchange(written, via=via)
        assert values(onward) == [sent]

    @pytest.mark.parametrize(
        "contact",
        [
            "<sip:alice@voicemail.test>",
            "<sip:alice@198.51.100.3>",
            "<tel:+4930>",
            "<sip:alice@192.168.1.10;gr=urn:a>",
        ],
    )
    def test_other_places_are_left_alone_and_not_kept(self, contact: str) -> None:
        made, onward = exchange(contact)
        assert values(onward) == [contact]
        assert kept(made, answer(onward, f"{contact};expires=60")) is None

    def test_what_another_proxy_has_passed_on_is_left_alone(self) -> None:
        both = "SIP/2.0/UDP 198.51.100.9;branch=z9hG4bKp, SIP/2.0/UDP 192.168.1.10;branch=z9hG4bKa"
        _, onward = exchange(f"<{INSIDE}>", via=both)
        assert values(onward) == [f"<{INSIDE}>"]

    def test_each_contact_has_a_ticket_of_its_own_and_keeps_it(self) -> None:
        old, new = "sip:alice@192.168.1.10:1", "sip:alice@192.168.1.10:2"
        _, onward = exchange(f"<{new}>;expires=60", f"<{old}>;expires=0", bindings=(bound(old),))
        new_token = Ticket.read(SipUri.parse(values(onward)[0].encode()[1:-12]))
        assert new_token is not None
        assert new_token.token == TOKEN  # the first that entropy gives
        assert values(onward)[1] == f"<{OUTSIDE}>;expires=0"

    def test_a_phone_that_moved_is_known_by_its_instance(self) -> None:
        before = (bound("sip:alice@10.0.0.1", instance="urn:a"),)
        _, onward = exchange('<sip:alice@192.168.1.10>;+sip.instance="<urn:a>"', bindings=before)
        assert values(onward) == [f'<{OUTSIDE}>;+sip.instance="<urn:a>"']

    def test_its_old_contact_beside_the_new_one_keeps_the_ticket_to_itself(self) -> None:
        instance = '+sip.instance="<urn:a>"'
        before = (bound("sip:alice@10.0.0.1", instance="urn:a", token="aa"),)
        _, onward = exchange(
            f"<{INSIDE}>;{instance}", f"<sip:alice@10.0.0.1>;{instance};expires=0", bindings=before
        )
        first, second = values(onward)
        assert f"natgate={TOKEN}~" in first
        assert "natgate=aa~" in second

    def test_the_same_private_address_in_another_network_is_another_phone(self) -> None:
        numbers = count(7)
        _, onward = exchange(
            f"<{INSIDE}>",
            bindings=(bound(),),
            source=OTHER_NAT,
            entropy=lambda size: bytes([next(numbers)] * size),
        )
        assert TOKEN not in values(onward)[0]
        _, onward = exchange(f"<{INSIDE}>", bindings=(bound(call_id=b"call-1"),), source=OTHER_NAT)
        assert TOKEN in values(onward)[0]

    def test_a_new_address_of_natgate_takes_the_old_contact_away_in_the_same_request(self) -> None:
        before = (bound(at=MOVED),)
        _, onward = exchange(f"<{INSIDE}>;expires=60", bindings=before)
        moved = OUTSIDE.replace(str(GATE), str(MOVED))
        assert values(onward) == [f"<{OUTSIDE}>;expires=60", f"<{moved}>;expires=0"]

    def test_by_a_path_the_contact_stays(self) -> None:
        _, onward = exchange(
            f"<{INSIDE}>", by_path=True, headers=[("Supported", "outbound"), ("Path", "<sip:p;lr>")]
        )
        assert values(onward) == [f"<{INSIDE}>"]
        assert values(onward, "path") == [f"<{OUTSIDE};lr;ob>", "<sip:p;lr>"]
        assert sorted(values(onward, "supported")) == ["outbound", "path"]
        _, onward = exchange(f"<{INSIDE}>", by_path=True, headers=[("Supported", "path")])
        assert values(onward, "path") == [f"<{OUTSIDE};lr>"]
        assert values(onward, "supported") == ["path"]

    @pytest.mark.parametrize(
        "contact", ["<sip:alice@[>", f"<{INSIDE}", "<sip:" + 2000 * "a" + "@192.168.1.1>"]
    )
    def test_what_cannot_be_read_is_refused(self, contact: str) -> None:
        with pytest.raises(DecodeError):
            exchange(contact)


class TestTheAnswer:
    def test_the_phone_finds_its_contact_and_others_stay(self) -> None:
        made, onward = exchange(f"<{INSIDE};ob>;expires=60")
        other = OUTSIDE.replace(TOKEN, "ff")
        response = answer(
            onward, f"<{other}>;expires=9", f'"x" <{OUTSIDE}>;expires=55;pub-gruu="sip:a@b;gr=c"'
        )
        made.edit_response(response)
        shown = values(SipMessage.parse(response.encode()))
        assert shown == [f"<{other}>;expires=9", f'"x" <{INSIDE};ob>;expires=55;pub-gruu="sip:a@b;gr=c"']
        (binding,) = kept(made, response) or ()
        assert (binding.contact, binding.expires_at) == (f"{INSIDE};ob".encode(), 1055.0)
        assert (binding.outside, binding.received, binding.flow) == (OUTSIDE.encode(), NAT, "u")

    def test_one_that_only_asks_sees_its_own_contact_by_its_call_id(self) -> None:
        made, onward = exchange(bindings=(bound(call_id=b"call-1"), bound("sip:b@10.0.0.2", token="bb")))
        other = OUTSIDE.replace(TOKEN, "bb")
        response = answer(onward, f"<{OUTSIDE}>;expires=55", f"<{other}>;expires=55")
        made.edit_response(response)
        assert values(SipMessage.parse(response.encode())) == [
            f"<{INSIDE}>;expires=55",
            f"<{other}>;expires=55",
        ]
        assert kept(made, response) is None

    @pytest.mark.parametrize(
        ("contacts", "headers", "expires_at"),
        [
            ([f"<{OUTSIDE}>;expires=30"], [], 1030.0),
            ([f"<{OUTSIDE}>"], [("Expires", "40")], 1040.0),
            ([f"<{OUTSIDE}>"], [], 1060.0),
            ([f"<{OUTSIDE.replace('203.0.113.5', 'gate.test').upper()}>;expires=30"], [], 1030.0),
            ([], [("Expires", "40")], 1040.0),
            ([], [], 1060.0),
            (["<sip:bob@192.0.2.9>;expires=30"], [], None),
            ([f"<{OUTSIDE}>;expires=0"], [], None),
        ],
    )
    def test_it_is_kept_for_as_long_as_the_registrar_says(
        self, contacts: list[str], headers: list[tuple[str, str]], expires_at: float | None
    ) -> None:
        made, onward = exchange(f"<{INSIDE}>;expires=60")
        after = kept(
            made, answer(onward, *(it.replace("SIP:ALICE", "sip:alice") for it in contacts), headers=headers)
        )
        assert [binding.expires_at for binding in after or ()] == ([] if expires_at is None else [expires_at])

    def test_what_is_taken_away_is_gone_and_others_stay(self) -> None:
        before = (bound(), bound("sip:b@10.0.0.2", token="bb"))
        made, onward = exchange(f"<{INSIDE}>;expires=0", bindings=before)
        assert kept(made, answer(onward), before) == before[1:]
        made, onward = exchange("*", headers=[("Expires", "0")], bindings=before)
        assert kept(made, answer(onward), before) == ()

    @pytest.mark.parametrize(("sent_by", "received"), [("192.168.1.10:5060", NAT), (str(NAT), None)])
    def test_a_phone_that_knows_its_public_endpoint_is_behind_a_nat_all_the_same(
        self, sent_by: str, received: Endpoint | None
    ) -> None:
        contact = f"<sip:alice@{NAT}>"
        made, onward = exchange(contact, via=f"SIP/2.0/UDP {sent_by};rport;branch=z9hG4bKa")
        (binding,) = kept(made, answer(onward)) or ()
        assert binding.received == received
        assert flow_to_phone(binding, FLOWS) == Flow("u", NAT)

    def test_a_registrar_without_path_is_noticed(self) -> None:
        made, onward = exchange(f"<{INSIDE}>;expires=60", by_path=True)
        response = answer(onward, f"<{INSIDE}>;expires=60")
        assert made.lacks_path(response)
        assert not made.lacks_path(answer(onward, headers=[("Path", values(onward, "path")[0])]))
        (binding,) = kept(made, response) or ()
        assert (binding.contact, binding.outside) == (INSIDE.encode(), OUTSIDE.encode())


class TestWhoIsMeant:
    def test_a_ticket_is_of_one_user_and_one_token(self) -> None:
        uri = SipUri.parse(OUTSIDE.encode())
        assert Ticket.read(uri) == Ticket(AOR, TOKEN)
        assert Ticket.read(SipUri.parse(b"sip:alice@203.0.113.5;natgate")) is None
        assert Ticket.read(None) is None
        binding = bound()
        assert binding_of(Ticket(AOR, TOKEN), (binding,)) is binding
        assert binding_of(Ticket(AOR, ""), (binding, ContactBinding(b"sip:x", 1.0, b"", 1))) is None
        assert binding_of(Ticket("bob@example.com", TOKEN), (binding,)) is None

    def test_of_several_that_came_by_one_path_the_contact_tells(self) -> None:
        first, second = bound("sip:alice@10.0.0.1"), bound("sip:alice@10.0.0.2")
        assert binding_of(Ticket(AOR, TOKEN), (first, second), b"sip:alice@10.0.0.1") is first
        assert binding_of(Ticket(AOR, TOKEN), (first, second), b"sip:alice@10.0.0.9") is second

    def test_in_a_dialog_it_is_the_phone_of_the_alias_the_gruu_or_the_contact(self) -> None:
        first = bound("sip:alice@10.0.0.1", instance="urn:a")
        second = bound("sip:alice@10.0.0.2", received=OTHER_NAT)
        both = (first, second)
        assert binding_in_dialog(both, f"sip:a@10.0.0.9;alias={NAT.ip}~{NAT.port}~1".encode()) is first
        assert binding_in_dialog(both, b"sip:alice@example.com;gr=urn:a") is first
        assert binding_in_dialog(both, b"sip:alice@10.0.0.2") is second
        assert binding_in_dialog(both, b"sip:alice@10.0.0.3") is None
        assert binding_in_dialog((first,), b"sip:alice@10.0.0.3") is first
        assert binding_in_dialog((), b"sip:alice@10.0.0.3") is None

    def test_a_phone_is_reached_as_it_was_heard_while_that_lasts(self) -> None:
        assert flow_to_phone(bound(), FLOWS) == Flow("u", NAT)
        assert flow_to_phone(bound(flow="t#1"), FLOWS) is None
        public = bound("sip:alice@203.0.113.9:5070;transport=tcp", received=None, flow="t#1")
        assert flow_to_phone(public, FLOWS) == Flow("t", Endpoint.of("203.0.113.9", 5070))
        assert flow_to_phone(bound("sip:alice@host.invalid", received=None), FLOWS) is None

    @pytest.mark.parametrize(
        ("to", "expected"),
        [
            ("<sip:alice@Example.COM.>", "alice@example.com"),
            ("<sip:%61lice:pw@example.com;x=y>;tag=1", "alice@example.com"),
            ("<sip:alice@203.0.113.5>", "alice@pbx.test"),
            ("<sip:alice@gate.test>", "alice@pbx.test"),
            ("<sips:alice@[2001:DB8::1]>", "alice@2001:db8::1"),
            ("<sip:example.com>", None),
            ("<tel:+4930>", None),
        ],
    )
    def test_a_user_is_called_by_one_name(self, to: str, expected: str | None) -> None:
        request = SipMessage.parse(register(to=to))
        assert address_of_record(request, FLOWS, b"pbx.test") == expected


class TestTheUpstream:
    @pytest.mark.parametrize(
        ("text", "uri", "expected"),
        [
            ("sip:pbx.test", "sip:bob@203.0.113.5:5060;transport=tcp;x=y;lr", "sip:bob@pbx.test;x=y"),
            ("sip:pbx.test:5070", "sip:203.0.113.5", "sip:pbx.test:5070"),
            ("sip:[2001:db8::1]:5070;transport=tcp", "sips:b@gate.test?h=1", "sips:b@[2001:db8::1]:5070"),
        ],
    )
    def test_what_names_natgate_names_the_upstream(self, text: str, uri: str, expected: str) -> None:
        assert Upstream.parse(text).address(uri.encode()) == expected.encode()

    def test_it_says_where_it_is(self) -> None:
        assert str(Upstream.parse("sip:[2001:db8::1]:5070;transport=tcp")) == "[2001:db8::1]:5070 (TCP)"
        assert Upstream.parse("sips:pbx.test").transport == "TLS"

    @pytest.mark.parametrize("text", ["tel:+4930", "sip:pbx.test;transport=sctp", "pbx"])
    def test_what_is_no_server_is_refused(self, text: str) -> None:
        with pytest.raises(DecodeError):
            Upstream.parse(text)


@given(
    user=st.text(min_size=1, max_size=20).filter(lambda text: text.isprintable()),
    domain=st.sampled_from(["example.com", "2001:db8::7", "203.0.113.20"]),
    transport=st.sampled_from(["UDP", "TCP", "TLS"]),
)
def test_every_ticket_is_read_out_of_its_uri(user: str, domain: str, transport: str) -> None:
    ticket = Ticket(f"{user}@{domain}", TOKEN)
    uri = SipUri.parse(ticket.uri(GATE, transport))
    assert Ticket.read(uri) == ticket
    assert uri.endpoint() == GATE
