"""What the guard promises whatever comes: no fault, right accounts, little memory, room for who is known."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from nattools.endpoint import Endpoint
from nattools.session.guard import Guard, Refused
from nattools.session.settings import GateSettings
from tests.unit.session.proxy_desk import request

SOURCES = st.sampled_from(
    [
        Endpoint.of("203.0.113.9", 5060),
        Endpoint.of("203.0.113.9", 5061),
        Endpoint.of("203.0.113.10", 5060),
        Endpoint.of("::ffff:203.0.113.9", 5060),
        Endpoint.of("2001:db8::1", 5060),
        Endpoint.of("2001:db8::2", 5060),
        Endpoint.of("::", 0),
    ]
)
PIECES = st.sampled_from(
    [b"SIP/2.0 ", b"\r\n", b"\n", b"User-Agent:", b"\nuser-agent", b'\nFrom: "', b"sipvicious", b"\0", b" "]
)
DATA = st.binary(max_size=60) | st.lists(PIECES | st.binary(max_size=4), max_size=12).map(b"".join)


@given(DATA, SOURCES)
def test_any_bytes_are_judged(data: bytes, source: Endpoint) -> None:
    refused = Guard(GateSettings()).refuses(data, source, now=0)
    assert refused is None or isinstance(refused, Refused)
    assert (refused is Refused.SCANNER) <= (b"sipvicious" in data.lower())


@given(st.lists(st.tuples(st.floats(0, 2), st.integers(0, 300)), max_size=60), st.integers(1, 20))
def test_who_keeps_to_the_rate_is_heard_whatever_others_do(
    steps: list[tuple[float, int]], per_second: int
) -> None:
    """A phone that sends less than its rate loses nothing, even to a flood from its own address."""
    guard = Guard(GateSettings(requests_per_second=per_second))
    phone = Endpoint.of("203.0.113.9", 5060)
    guard.know(phone)
    now = 0.0
    for pause_s, flood in steps:
        now += pause_s + 1 / per_second
        for number in range(flood):
            guard.refuses(b"INVITE x", phone.with_port(6000 + number % 7), now=now)
        assert guard.refuses(request(), phone, now=now) is None


@given(st.integers(1, 30), st.lists(st.floats(0, 3), max_size=80))
def test_nobody_gets_more_than_the_rate_and_what_may_come_at_once(
    per_second: int, pauses_s: list[float]
) -> None:
    guard = Guard(GateSettings(requests_per_second=per_second))
    source = Endpoint.of("203.0.113.9", 5060)
    now, heard = 0.0, 0
    for pause_s in pauses_s:
        now += pause_s
        heard += sum(guard.refuses(b"INVITE x", source, now=now) is None for _ in range(9))
        assert heard <= per_second * (now + 4) + 1


class Accounts(RuleBasedStateMachine):
    """Calls begin, are answered by several phones, fail and end in any order, each word said any often."""

    def __init__(self) -> None:
        super().__init__()
        self.guard = Guard(GateSettings(calls_per_user=3, calls_per_source=4, most_calls=5))
        self.pending: dict[int, str] = {}
        self.answered: dict[int, set[int]] = {}
        self.number = 0

    @rule(user=st.sampled_from(["", "alice", "bob"]), source=SOURCES)
    def begin(self, user: str, source: Endpoint) -> None:
        if self.guard.may_call(user, source) is None:
            self.number += 1
            self.guard.call_began(self.number, user, source)
            self.pending[self.number] = user

    @rule(number=st.integers(1, 9), fork=st.integers(0, 2), source=SOURCES)
    def answer(self, number: int, fork: int, source: Endpoint) -> None:
        self.guard.call_answered(number, (number, fork), (source, source))
        if number in self.pending or number in self.answered:
            self.pending.pop(number, None)
            self.answered.setdefault(number, set()).add(fork)

    @rule(number=st.integers(1, 9))
    def fail(self, number: int) -> None:
        self.guard.call_failed(number)
        self.pending.pop(number, None)

    @rule(number=st.integers(1, 9), fork=st.integers(0, 2))
    def end(self, number: int, fork: int) -> None:
        self.guard.call_ended((number, fork))
        if number in self.answered:
            self.answered[number].discard(fork)
            if not self.answered[number]:
                del self.answered[number]

    @invariant()
    def the_accounts_are_right(self) -> None:
        calls = sum(map(len, self.answered.values()))
        assert self.guard._of_all == calls + len(self.pending)
        assert sum(self.guard._of_users.values()) == self.guard._of_all
        assert sum(self.guard._of_households.values()) == self.guard._of_all
        assert set(self.guard._attempts) == {*self.pending, *self.answered}
        assert bool(self.guard._known) == bool(calls)
        assert all(self.guard._ties.values())


TestAccounts = Accounts.TestCase
