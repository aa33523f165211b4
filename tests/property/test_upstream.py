"""Registrations by way of natgate against what the registrar behind it keeps, and against nonsense."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from nattools.endpoint import Endpoint
from nattools.errors import DecodeError
from nattools.session.flows import Flow
from nattools.session.upstream import Exchange, ticket_of
from nattools.sip.message import SipMessage
from tests.unit.session.controller.upstream_world import DOMAIN, World

NAT = Endpoint.of("203.0.113.1", 40000)
AOR = f"alice@{DOMAIN}"


@dataclass(frozen=True)
class Step:
    """One REGISTER of one of the phones of a user; an `expires` of None takes all away."""

    phone: int
    port: int
    expires: int | None


STEPS = st.lists(
    st.builds(Step, st.integers(0, 2), st.integers(5060, 5061), st.sampled_from([0, 60, 600, None])),
    max_size=12,
)


@given(steps=STEPS, by_path=st.booleans())
@settings(deadline=None)
def test_natgate_knows_what_the_registrar_knows(steps: list[Step], by_path: bool) -> None:
    async def play() -> None:
        world = await World.begin(path=by_path)
        phones = [
            world.phone("alice", number, local=Endpoint.of(f"192.168.0.{number + 1}", 5060))
            for number in range(3)
        ]
        for cseq, step in enumerate(steps):
            phone = phones[step.phone]
            contact = f"<sip:alice@{phone.local.ip}:{step.port}>;expires={step.expires}"
            answer = await world.register(phone, "*" if step.expires is None else contact, cseq=cseq + 1)
            assert answer.status_code == 200
            there = await world.location.bindings(AOR, now=0)
            here = await world.gate.location.bindings(AOR, now=0)
            assert [it.expires_at for it in here] == [it.expires_at for it in there]
            if by_path:
                assert [it.contact for it in here] == [it.contact for it in there]
                assert [(b"<%b;lr>" % it.outside,) for it in here] == [it.path for it in there]
            else:
                assert [it.outside for it in here] == [it.contact for it in there]
                assert len({ticket_of(it) for it in here}) == len(here)
            if step.expires:
                assert contact.partition(";")[0].encode() in answer.data

    asyncio.run(play())


WORDS = rb"""< > sip: alice @ 192.168.0.9 ; = , " natgate ~ expires * 0 %41 [::1] q reg-id gr alias"""
PIECES = st.lists(st.sampled_from([*WORDS.split(), b" ", b"\xff", b"\r\n "]), max_size=14).map(b"".join)


@given(asked=PIECES, told=PIECES, by_path=st.booleans())
def test_nonsense_is_refused_or_passed(asked: bytes, told: bytes, by_path: bool) -> None:
    def message(first: bytes, contact: bytes) -> SipMessage:
        return SipMessage.parse(
            first
            + b"\r\nVia: SIP/2.0/UDP 192.168.0.9;rport;branch=z9hG4bKa\r\nFrom: <sip:alice@example.com>\r\n"
            b"To: <sip:alice@example.com>\r\nCall-ID: c\r\nCSeq: 1 REGISTER\r\nContact: "
            + contact
            + b"\r\n\r\n"
        )

    try:
        request = message(b"REGISTER sip:example.com SIP/2.0", asked)
        exchange = Exchange(request, Flow("u", NAT), AOR, (), entropy=secrets.token_bytes, by_path=by_path)
    except DecodeError:
        return
    onward = request.unedited()
    exchange.edit_request(onward, NAT, "UDP")
    SipMessage.parse(onward.encode())
    try:
        response = message(b"SIP/2.0 200 OK", told)
        exchange.edit_response(response)
        SipMessage.parse(response.encode())
        exchange.kept(response, (), now=0.0)
    except DecodeError:
        return
