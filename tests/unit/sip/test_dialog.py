"""What a dialog is, read off an INVITE and its response, and the requests that are spoken in it."""

from __future__ import annotations

import pytest

from nattools.endpoint import Endpoint
from nattools.errors import DecodeError
from nattools.sip.dialog import Body, CSeqShift, Dialog
from nattools.sip.message import SipMessage, compose_request, compose_response

PHONE = Endpoint.of("192.0.2.1", 5060)
ROUTE = ("<sip:p1.example.org;lr>", "<sip:198.51.100.2:5080;lr>")


def invite(routes: tuple[str, ...] = (), contact: str = "<sip:alice@192.0.2.1>") -> SipMessage:
    fields = [
        ("Via", "SIP/2.0/UDP 192.0.2.1;branch=z9hG4bKa"),
        *[("Record-Route", route) for route in routes],
        ("From", 'A <sip:alice@example.org>;tag="quoted;x"'),
        ("To", "B <sip:bob@example.org>"),
        ("Call-ID", "c"),
        ("CSeq", "3 INVITE"),
        ("Contact", contact),
        ("Allow", "INVITE, BYE"),
        ("User-Agent", "A"),
    ]
    return SipMessage.parse(compose_request("INVITE", "sip:bob@example.org", fields))


def answer(
    request: SipMessage, code: int = 200, contact: str = "<sip:bob@192.0.2.9:5070;x=y>;q=1"
) -> SipMessage:
    fields = [("Contact", contact), ("User-Agent", "B")]
    return SipMessage.parse(compose_response(request, code, "OK", fields, to_tag="t"))


def bye(dialog: Dialog) -> SipMessage:
    return SipMessage.parse(dialog.compose("BYE", cseq=4, via="SIP/2.0/UDP 192.0.2.1;branch=z9hG4bKb"))


def routes(message: SipMessage) -> list[bytes]:
    return [message.data[slice(*span)] for span in message.values("route")]


class TestWhoSpeaks:
    def test_the_caller_takes_the_route_backwards(self) -> None:
        request = invite(ROUTE)
        message = bye(Dialog.of_caller(request, answer(request)))
        assert routes(message) == [route.encode() for route in reversed(ROUTE)]
        assert message.data.startswith(b"BYE sip:bob@192.0.2.9:5070;x=y SIP/2.0\r\n")
        assert message.value(message.header("from")) == b'A <sip:alice@example.org>;tag="quoted;x"'
        assert message.value(message.header("to")) == b"B <sip:bob@example.org>;tag=t"
        assert (message.call_id, message.cseq) == (b"c", (4, "BYE"))
        assert message.value(message.header("user-agent")) == b"A"
        assert message.value(message.header("max-forwards")) == b"70"

    def test_the_callee_takes_it_as_it_stands(self) -> None:
        request = invite(ROUTE)
        message = bye(Dialog.of_callee(request, answer(request)))
        assert routes(message) == [route.encode() for route in ROUTE]
        assert message.data.startswith(b"BYE sip:alice@192.0.2.1 SIP/2.0\r\n")
        assert message.value(message.header("from")) == b"B <sip:bob@example.org>;tag=t"
        assert message.value(message.header("to")) == b'A <sip:alice@example.org>;tag="quoted;x"'
        assert message.value(message.header("user-agent")) == b"B"

    def test_a_strict_router_gets_what_it_wants(self) -> None:
        request = invite((*ROUTE, "<sip:198.51.100.9>"))
        message = bye(Dialog.of_caller(request, answer(request)))
        assert message.data.startswith(b"BYE sip:198.51.100.9 SIP/2.0\r\n")
        assert routes(message)[-1] == b"<sip:bob@192.0.2.9:5070;x=y>"
        assert len(routes(message)) == 3

    @pytest.mark.parametrize(("code", "is_early"), [(101, True), (199, True), (200, False), (299, False)])
    def test_it_is_early_until_a_2xx(self, code: int, is_early: bool) -> None:
        request = invite()
        assert Dialog.of_caller(request, answer(request, code)).is_early is is_early
        assert Dialog.of_callee(request, answer(request, code)).is_early is is_early

    def test_without_a_tag_or_a_contact_there_is_none(self) -> None:
        request = invite()
        untagged = SipMessage.parse(
            compose_response(request, 200, "OK", [("Contact", "<sip:bob@192.0.2.9>")])
        )
        bare = SipMessage.parse(compose_response(request, 200, "OK", to_tag="t"))
        with pytest.raises(DecodeError, match="To tag"):
            Dialog.of_caller(request, untagged)
        with pytest.raises(DecodeError, match="no Contact"):
            Dialog.of_caller(request, bare)
        with pytest.raises(DecodeError, match="To tag"):
            Dialog.of_callee(request, untagged)

    def test_a_body_takes_its_description_along(self) -> None:
        request = invite()
        body = Body(b"--x\r\n", (("Content-Type", b"multipart/mixed;boundary=x"), ("MIME-Version", b"1.0")))
        data = Dialog.of_caller(request, answer(request)).compose(
            "INVITE",
            cseq=9,
            via="SIP/2.0/UDP 192.0.2.1;branch=z9hG4bKb",
            contact="<sip:a@192.0.2.1>",
            body=body,
        )
        message = SipMessage.parse(data)
        assert Body.of(message) == body
        assert message.content_type == "multipart/mixed"
        assert Body.of(request) is None


@pytest.mark.parametrize(
    ("contact", "endpoint"),
    [
        ("<sip:bob@192.0.2.9>", Endpoint.of("192.0.2.9", 5060)),
        ("<sip:bob@[2001:db8::9]:5080>", Endpoint.of("2001:db8::9", 5080)),
        ("<sip:bob@192.0.2.9;transport=UDP>", Endpoint.of("192.0.2.9", 5060)),
        ("<sip:bob@192.0.2.9;transport=tcp>", None),
        ("<sip:bob@192.0.2.9;maddr=192.0.2.8>", None),
        ("<sips:bob@192.0.2.9>", None),
        ("<sip:bob@host.example.org>", None),
        ("<tel:+1>", None),
    ],
)
def test_where_the_next_request_goes(contact: str, endpoint: Endpoint | None) -> None:
    request = invite()
    assert Dialog.of_caller(request, answer(request, contact=contact)).next_hop() == endpoint


def test_a_route_goes_before_the_target() -> None:
    request = invite(ROUTE)
    assert Dialog.of_caller(request, answer(request)).next_hop() == Endpoint.of("198.51.100.2", 5080)
    assert Dialog.of_callee(request, answer(request)).next_hop() is None  # a name


class TestNumbers:
    def test_are_the_phones_own_until_we_speak(self) -> None:
        shift = CSeqShift()
        assert [shift.outgoing(number) for number in (5, 6, 5)] == [5, 6, 5]
        assert [shift.incoming(number) for number in (5, 6)] == [5, 6]

    def test_leave_room_for_ours(self) -> None:
        shift = CSeqShift()
        sent = [
            shift.outgoing(1),
            shift.take(),
            shift.take(),
            shift.outgoing(2),
            shift.take(),
            shift.outgoing(3),
        ]
        assert sent == [1, 2, 3, 4, 5, 6]
        assert [shift.outgoing(number) for number in (1, 2, 3)] == [1, 4, 6]
        assert [shift.incoming(number) for number in (1, 4, 6)] == [1, 2, 3]

    def test_begin_at_one_where_the_phone_has_not_spoken(self) -> None:
        shift = CSeqShift()
        assert shift.take() == 1
        assert [shift.outgoing(number) for number in (1, 500)] == [2, 501]
        assert shift.take() == 502

    def test_stay_below_what_a_number_may_be(self) -> None:
        shift = CSeqShift()
        shift.take()
        assert shift.outgoing(2**31 - 1) == 2**31 - 1

    def test_keep_rising_over_many_of_ours(self) -> None:
        shift = CSeqShift()
        last = 0
        for number in range(1, 200):
            for sent in (shift.outgoing(number), shift.take()):
                assert sent > last
                last = sent
            assert shift.incoming(shift.outgoing(number)) == number
        assert len(shift._from) <= 33
