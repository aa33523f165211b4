"""Sockets behind one NAT: what is waited for after the first change, and what is told."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from nattools.binding.settling import Settling
from nattools.endpoint import Endpoint

A, B = Endpoint.of("203.0.113.1", 5060), Endpoint.of("203.0.113.1", 4000)
PATIENCE_S = 10


class Socket:
    """One whose checks are counted."""

    def __init__(self) -> None:
        self.checks = 0

    def check(self) -> None:
        self.checks += 1


class Phone:
    """Two sockets of one phone, and what was told of them."""

    def __init__(self) -> None:
        self.sip, self.rtp = Socket(), Socket()
        self.told = asyncio.Queue[Mapping[Socket, Endpoint]]()
        self.settling = Settling(lambda: (self.sip, self.rtp), self.told.put_nowait)

    async def next_told(self) -> Mapping[Socket, Endpoint]:
        return await asyncio.wait_for(self.told.get(), PATIENCE_S)


def run(scenario: Callable[[Phone], Awaitable[None]]) -> None:
    async def with_a_phone() -> None:
        await scenario(Phone())

    asyncio.run(with_a_phone())


def test_once_all_have_changed_it_is_told_at_once_and_once() -> None:
    async def scenario(phone: Phone) -> None:
        phone.settling.changed(phone.sip, A)
        assert (phone.sip.checks, phone.rtp.checks, phone.told.empty()) == (0, 1, True)
        phone.settling.changed(phone.rtp, B)
        assert phone.told.get_nowait() == {phone.sip: A, phone.rtp: B}
        phone.settling.changed(phone.sip, B)
        assert phone.told.empty()
        assert await phone.next_told() == {phone.sip: B}

    run(scenario)


def test_who_changes_twice_is_told_of_from_where_it_was_first() -> None:
    async def scenario(phone: Phone) -> None:
        phone.settling.changed(phone.sip, A)
        phone.settling.changed(phone.sip, B)
        assert await phone.next_told() == {phone.sip: A}
        assert phone.rtp.checks == 1

    run(scenario)


def test_who_is_closed_is_not_waited_for() -> None:
    async def scenario(phone: Phone) -> None:
        phone.settling.changed(phone.sip, A)
        phone.settling.forget(phone.rtp)
        phone.settling.changed(phone.sip, A)
        assert phone.told.get_nowait() == {phone.sip: A}

    run(scenario)


def test_after_the_end_nothing_is_told() -> None:
    async def scenario(phone: Phone) -> None:
        phone.settling.changed(phone.sip, A)
        phone.settling.cancel()
        other = Phone()
        other.settling.changed(other.sip, A)  # later, so that its end comes after the other's
        await other.next_told()
        assert phone.told.empty()

    run(scenario)
