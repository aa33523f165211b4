"""What holds for any loss and any moment of answer, CANCEL and BYE, and for any bytes that come."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from nattools.session.events import CallEnded, CallFailed, CallStarted, Received
from nattools.session.flows import Flow
from nattools.session.forking import Target
from nattools.sip.message import SipMessage
from tests.unit.session.proxy_desk import ALICE, BOB, BODY, NAT, PROXY, Desk, request
from tests.unit.session.proxy_world import Plan, World

CODES = (200, 200, 200, 486, 603, 401, 0)

plans = st.integers(1, 3).flatmap(
    lambda phones: st.builds(
        Plan,
        phones=st.just(phones),
        answers=st.tuples(*[st.sampled_from(CODES)] * phones),
        answers_after_s=st.tuples(*[st.sampled_from((0.0, 0.4, 1.0, 2.0, 3.0))] * phones),
        cancels_after_s=st.none() | st.sampled_from((0.1, 0.5, 1.0, 2.0, 4.0)),
        hangs_up_after_s=st.sampled_from((0.0, 0.2, 1.0, 5.0)),
        ignores_route=st.booleans(),
        knows_one_call=st.booleans(),
        loss=st.sampled_from((0.0, 0.2, 0.6)),
        duplication=st.sampled_from((0.0, 0.5)),
        delay_s=st.sampled_from((0.01, 0.4)),
    )
)


@settings(max_examples=40, deadline=None)
@given(plans, st.integers(0, 2**32))
def test_every_call_comes_to_an_end_that_both_sides_know(plan: Plan, seed: int) -> None:
    world = World(plan, seed)
    world.run()
    caller, phones = world.caller, world.phones
    finals = [code for code in caller.codes if code >= 200]
    accepted = [phone for phone in phones if phone.has_accepted]
    assert finals or world.has_given_up, "the caller waits for ever"
    assert bool(accepted) == any(code < 300 for code in finals)
    assert all(phone.is_ended for phone in accepted)
    taken = accepted[:1] if plan.knows_one_call else accepted
    assert plan.loss or sum(phone.is_acknowledged for phone in accepted) == len(taken)
    assert len(caller.established) == len(taken) == caller.ended
    assert all(len(phone.invites) <= 1 for phone in phones), "a retransmission went on as a new request"
    assert all(phone.is_cancelled or phone.invite is None or phone.invite.is_answered for phone in phones), (
        "a phone rings for ever"
    )
    assert world.happened(CallStarted) == world.happened(CallEnded) == len(accepted)
    assert world.happened(CallFailed) == (not accepted)
    assert world.proxy.timeout_at() is None, "something is kept for ever"
    assert len(world.proxy.dialogs) == 0


VIA = (f"SIP/2.0/UDP {ALICE};branch=z9hG4bKa",)
SEEDS = (
    request(body=BODY),
    request("CANCEL"),
    request("ACK", to_tag="b"),
    request("BYE", f"sip:bob@{BOB};alias=203.0.113.1~2753~1", to_tag="b"),
    request("REGISTER", headers=[("Route", f"<sip:{PROXY};lr>, <sip:x.test>"), ("Max-Breadth", "2")]),
    request(via=[f"SIP/2.0/UDP {PROXY};branch=z9hG4bK{'0' * 16}.{'1' * 16}", *VIA]),
    request("SUBSCRIBE", "sips:bob@[2001:db8::1]", contact="sip:a@10.0.0.1;q=1, <sip:b@10.0.0.2?x=y>"),
)
mutated = st.builds(
    lambda seed, at, size, new: seed[: at % len(seed)] + new + seed[at % len(seed) + size :],
    st.sampled_from(SEEDS),
    st.integers(0, 5000),
    st.integers(0, 12),
    st.binary(max_size=6)
    | st.sampled_from((b"\r\n", b"<", b">", b'"', b";tag=", b",", b";lr", b";rport", b"0", b"99999999999")),
)
messages = st.sampled_from(SEEDS) | mutated | mutated | st.binary(max_size=60)


@settings(max_examples=100, deadline=None)
@given(st.lists(messages, min_size=1, max_size=6), st.lists(mutated, max_size=3), st.booleans())
def test_whatever_comes_it_answers_or_passes_on_what_can_be_read(
    requests: list[bytes], patches: list[bytes], decides: bool
) -> None:
    desk = Desk()
    for data in requests:
        sent = desk.put(data, NAT)
        while (event := desk.proxy.next_event()) is not None:
            if isinstance(event, Received) and decides and event.next_hop is not None:
                desk.proxy.forward(event.number, now=desk.now, flows=[Flow("u", BOB)])
            elif isinstance(event, Received) and decides:
                desk.proxy.forward(event.number, [Target(b"sip:bob@x", Flow("u", BOB))], now=desk.now)
        sent += desk.proxy.transmits()
        for transmit in sent:
            message = SipMessage.parse(transmit.data)
            if message.is_request and message.method != "ACK":
                answer(desk, message, patches)
    desk.wait(1000)
    assert desk.proxy.timeout_at() is None


def answer(desk: Desk, message: SipMessage, patches: list[bytes]) -> None:
    """Answer what was sent on, by responses that have pieces of anything in them."""
    for code in (180, 200, 486):
        desk.respond(message, code)
        for patch in patches:
            response = b"SIP/2.0 %d X\r\nVia: %b\r\n" % (code, message.first_value("via")) + patch
            for transmit in desk.put(response, BOB):
                SipMessage.parse(transmit.data)


def test_the_world_is_one_in_which_calls_come_about() -> None:
    world = World(Plan(loss=0.0, duplication=0.0), 1)
    world.run()
    assert [code for code in world.caller.codes if code >= 200] == [200]
    assert world.phones[0].is_ended
