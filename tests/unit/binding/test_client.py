"""A live binding around a machine that does as it is told: what is sent, told, handed on and ended."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import cast

import pytest

from nattools.binding.client import MOST_CHANGES, MOST_DATAGRAMS, LiveBinding
from nattools.binding.machine import Ask, BindingEvent, BindingMachine, Failed, Release
from nattools.binding.model import (
    BindingChange,
    ChangeKind,
    Method,
    PublicBinding,
    Reach,
    Reachability,
    Source,
)
from nattools.binding.schedule import KeepaliveKind
from nattools.endpoint import Endpoint
from nattools.errors import BindingError, TransportError
from nattools.machine import Transmit

LOCAL = Endpoint.parse("192.168.0.108:5060")
ELSEWHERE = Endpoint.parse("10.0.0.7:5060")
PEER = Endpoint.parse("203.0.113.20:5060")
BINDING = PublicBinding(
    LOCAL, Endpoint.parse("140.113.131.89:5060"), Method.STUN, Reachability(Reach.HOSTS_SENT_TO)
)
MOVED = replace(BINDING, public=Endpoint.parse("140.113.131.90:5060"))
TIME_LIMIT_S = 10


class ScriptedMachine:
    """A machine of which the test says what it has to say; it eats what begins with `mine`."""

    def __init__(self) -> None:
        self.binding: PublicBinding | None = None
        self.outbox: deque[Transmit] = deque()
        self.events: deque[BindingEvent] = deque()
        self.wakes_at: float | None = None
        self.woken = asyncio.Event()
        self.calls: list[tuple[object, ...]] = []

    def receive(self, data: bytes, source: Endpoint, *, now: float) -> bool:
        return data.startswith(b"mine")

    def transmits(self) -> list[Transmit]:
        taken = list(self.outbox)
        self.outbox.clear()
        return taken

    def timeout_at(self) -> float | None:
        return self.wakes_at

    def handle_timeout(self, *, now: float) -> None:
        self.wakes_at = None
        self.woken.set()

    def next_event(self) -> BindingEvent | None:
        return self.events.popleft() if self.events else None

    def undeliverable(self, destination: Endpoint | None, reason: str, *, now: float) -> None:
        self.calls.append(("undeliverable", destination, reason))
        self.outbox.append(Transmit(b"another way", PEER))

    def network_changed(self, local: Endpoint | None, reason: str, *, now: float) -> None:
        self.calls.append(("network_changed", local, reason))

    def keep_open(self, destination: Endpoint, kind: KeepaliveKind, *, now: float) -> None:
        self.calls.append(("keep_open", destination, kind))
        self.outbox.append(Transmit(b"\r\n\r\n", destination))

    def let_go(self, destination: Endpoint) -> None:
        self.calls.append(("let_go", destination))

    def report(self, kind: ChangeKind, binding: PublicBinding | None, reason: str = "") -> None:
        """Have it say so when it is asked next."""
        self.events.append(BindingChange(kind, binding, self.binding, reason))
        self.binding = binding


class FakeSocket:
    """Remembers what was sent; there is no way to `unreachable`."""

    is_dual_stack = False
    local = LOCAL
    unreachable: Endpoint | None = None

    def __init__(self) -> None:
        self.sent: list[tuple[bytes, Endpoint]] = []
        self.closed = 0

    def send(self, data: bytes, destination: Endpoint) -> None:
        if destination == self.unreachable:
            raise TransportError("no route")
        self.sent.append((data, destination))

    def close(self) -> None:
        self.closed += 1


class Rig:
    """A live binding, its machine and its socket."""

    def __init__(self, *, on_datagram: Callable[[bytes, Endpoint], None] | None = None) -> None:
        self.needs: list[Ask | Release] = []
        self.live = LiveBinding(on_need=self.needs.append, on_datagram=on_datagram)
        self.machine, self.socket = ScriptedMachine(), FakeSocket()

    def start(self) -> LiveBinding:
        self.live.start(cast(BindingMachine, self.machine), self.socket, LOCAL)
        return self.live

    def acquired(self) -> LiveBinding:
        self.machine.report(ChangeKind.ACQUIRED, BINDING)
        return self.start()

    def tell(self, kind: ChangeKind, binding: PublicBinding | None, reason: str = "") -> None:
        self.machine.report(kind, binding, reason)
        self.live.pump()


def run(work: Coroutine[None, None, None]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(TIME_LIMIT_S):
            await work

    asyncio.run(limited())


def test_it_is_acquired_when_the_machine_says_so() -> None:
    async def work() -> None:
        live = Rig().acquired()
        await live.acquired()
        assert (live.local, live.public, live.snapshot) == (LOCAL, BINDING.public, BINDING)

    run(work())


def test_it_fails_with_what_the_machine_says() -> None:
    async def work() -> None:
        rig = Rig()
        rig.machine.events.append(Failed(BindingError("nothing works", refusals={"stun": "silence"})))
        live = rig.start()
        with pytest.raises(BindingError, match="nothing works") as info:
            await live.acquired()
        assert info.value.refusals == {"stun": "silence"}
        with pytest.raises(BindingError, match="not acquired yet"):
            _ = live.public

    run(work())


def test_while_it_is_lost_there_is_no_endpoint_and_a_reason() -> None:
    async def work() -> None:
        rig = Rig()
        live = rig.acquired()
        lost_at = [live.lost_at]
        rig.tell(ChangeKind.LOST, None, "the router is gone")
        lost_at.append(live.lost_at)
        assert live.snapshot is None
        with pytest.raises(BindingError, match=r"192\.168\.0\.108:5060: the router is gone"):
            _ = live.public
        rig.tell(ChangeKind.RESTORED, MOVED)
        lost_at.append(live.lost_at)
        assert live.public == MOVED.public
        assert [at is not None for at in lost_at] == [False, True, False]

    run(work())


def test_every_reader_gets_the_news_from_its_beginning_to_the_end() -> None:
    async def work() -> None:
        rig = Rig()
        live = rig.acquired()
        early = live.changes()
        rig.tell(ChangeKind.CHANGED, MOVED)
        late = live.changes()
        rig.tell(ChangeKind.LOST, None)
        live.close()
        after = live.changes()
        kinds = [[change.kind async for change in reader] for reader in (early, late, after)]
        assert kinds == [[ChangeKind.CHANGED, ChangeKind.LOST], [ChangeKind.LOST], []]

    run(work())


def test_a_reader_that_waits_is_woken_by_news_and_by_the_end() -> None:
    async def work() -> None:
        rig = Rig()
        live = rig.acquired()
        seen: list[BindingChange] = []

        async def read() -> None:
            async for change in live.changes():
                seen.append(change)  # noqa: PERF401  one at a time is what is tested

        reading = asyncio.create_task(read())
        await asyncio.sleep(0)
        rig.tell(ChangeKind.CHANGED, MOVED)
        await asyncio.sleep(0)
        assert [(change.binding, change.previous) for change in seen] == [(MOVED, BINDING)]
        live.close()
        await reading

    run(work())


def test_a_reader_that_never_reads_costs_no_end_of_memory() -> None:
    async def work() -> None:
        rig = Rig()
        live = rig.acquired()
        reader = live.changes()
        for number in range(MOST_CHANGES + 10):
            rig.tell(ChangeKind.CHANGED, MOVED, str(number))
        live.close()
        reasons = [change.reason async for change in reader]
        assert (len(reasons), reasons[0]) == (MOST_CHANGES, "10")

    run(work())


def test_datagrams_of_others_wait_to_be_read_the_oldest_making_room() -> None:
    async def work() -> None:
        rig = Rig()
        live = rig.acquired()
        for number in range(MOST_DATAGRAMS + 5):
            live.received(b"%d" % number, PEER)
            live.received(b"mine %d" % number, PEER)
        heard = [await live.recvfrom() for _ in range(MOST_DATAGRAMS)]
        assert heard == [(b"%d" % number, PEER) for number in range(5, MOST_DATAGRAMS + 5)]

    run(work())


def test_reading_ends_when_it_is_closed_after_what_had_arrived() -> None:
    async def work() -> None:
        live = Rig().acquired()
        waiting = asyncio.create_task(live.recvfrom())
        await asyncio.sleep(0)
        live.received(b"", PEER)
        assert await waiting == (b"", PEER)
        live.received(b"last", PEER)
        live.close()
        live.received(b"too late", PEER)
        assert await live.recvfrom() == (b"last", PEER)
        with pytest.raises(TransportError, match="closed"):
            await live.recvfrom()

    run(work())


def test_a_callback_gets_them_instead_and_reading_says_so() -> None:
    async def work() -> None:
        heard: list[tuple[bytes, Endpoint]] = []
        rig = Rig(on_datagram=lambda data, source: heard.append((data, source)))
        live = rig.acquired()
        live.received(b"INVITE", PEER)
        live.received(b"mine", PEER)
        assert heard == [(b"INVITE", PEER)]
        with pytest.raises(TransportError, match="callback"):
            await live.recvfrom()

    run(work())


def test_what_arrives_before_it_is_started_is_the_programs() -> None:
    async def work() -> None:
        rig = Rig()
        rig.live.received(b"mine", PEER)
        rig.live.undelivered(PEER, OSError(111, "refused"))
        assert await rig.live.recvfrom() == (b"mine", PEER)
        with pytest.raises(TransportError, match="closed"):
            rig.live.sendto(b"x", PEER)

    run(work())


def test_what_cannot_be_sent_is_told_to_the_machine_which_may_know_better() -> None:
    async def work() -> None:
        rig = Rig()
        rig.socket.unreachable = ELSEWHERE
        rig.machine.outbox += [Transmit(b"ask", ELSEWHERE), Transmit(b"ask", PEER)]
        rig.acquired()
        assert rig.machine.calls == [("undeliverable", ELSEWHERE, "no route")]
        await asyncio.sleep(0)
        assert rig.socket.sent == [(b"ask", PEER), (b"another way", PEER)]

    run(work())


def test_what_the_network_reports_is_told_to_the_machine() -> None:
    async def work() -> None:
        rig = Rig()
        live = rig.acquired()
        live.undelivered(PEER, OSError(111, "Connection refused"))
        assert rig.machine.calls == [("undeliverable", PEER, "Connection refused")]
        assert rig.socket.sent == [(b"another way", PEER)]

    run(work())


def test_the_machine_is_woken_when_it_wants_and_earlier_if_it_changes_its_mind() -> None:
    async def work() -> None:
        rig = Rig()
        now = asyncio.get_running_loop().time()
        rig.machine.wakes_at = now + 3600
        live = rig.acquired()
        rig.machine.wakes_at = now + 0.01
        live.pump()
        await rig.machine.woken.wait()
        assert asyncio.get_running_loop().time() < now + 3600

    run(work())


def test_a_closed_one_does_nothing_more() -> None:
    async def work() -> None:
        rig = Rig()
        rig.machine.wakes_at = asyncio.get_running_loop().time() + 0.02
        live = rig.acquired()
        live.close()
        live.close()
        assert rig.socket.closed == 1
        rig.machine.outbox.append(Transmit(b"late", PEER))
        live.pump()
        live.keep_open(PEER)
        live.check()
        live.undelivered(PEER, OSError(111, "refused"))
        live.network_changed(ELSEWHERE, "moved")
        assert not live.eats(b"mine", PEER)
        await asyncio.sleep(0.1)
        assert not rig.machine.woken.is_set()
        assert (rig.socket.sent, rig.machine.calls) == ([], [])
        with pytest.raises(TransportError, match="closed"):
            live.sendto(b"late", PEER)
        with pytest.raises(BindingError, match="closed"):
            _ = live.public
        assert live.snapshot is None

    run(work())


def test_it_sends_from_the_socket_and_keeps_flows_open() -> None:
    async def work() -> None:
        rig = Rig()
        live = rig.acquired()
        live.sendto(b"INVITE", PEER)
        live.keep_open(PEER)
        live.let_go(PEER)
        assert rig.socket.sent == [(b"INVITE", PEER), (b"\r\n\r\n", PEER)]
        assert rig.machine.calls == [("keep_open", PEER, KeepaliveKind.CRLF), ("let_go", PEER)]

    run(work())


def test_providers_are_asked_by_whoever_keeps_it() -> None:
    async def work() -> None:
        rig = Rig()
        rig.machine.events += [Ask(Source.ROUTER), Release(Source.VPN)]
        rig.start()
        assert rig.needs == [Ask(Source.ROUTER), Release(Source.VPN)]

    run(work())


def test_looking_now_is_a_network_that_may_have_changed() -> None:
    async def work() -> None:
        rig = Rig()
        live = rig.acquired()
        live.network_changed(ELSEWHERE, "eth0 is up")
        assert live.local == ELSEWHERE
        live.check()
        assert [call[1] for call in rig.machine.calls] == [ELSEWHERE, ELSEWHERE]
        live.network_changed(None, "eth0 is down")
        live.check()
        assert len(rig.machine.calls) == 3
        assert live.local == ELSEWHERE

    run(work())


def test_a_stream_that_stops_has_it_looked_at_and_its_own_datagrams_are_no_stream() -> None:
    async def work() -> None:
        rig = Rig()
        live = rig.acquired()
        live.check_when_quiet(0.05)
        for _ in range(10):
            live.received(b"mine", PEER)
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        assert rig.machine.calls == []
        live.received(b"one", PEER)
        live.received(b"and the next", PEER)
        while not rig.machine.calls:  # noqa: ASYNC110  the time limit ends what never comes
            await asyncio.sleep(0.01)
        assert rig.machine.calls == [("network_changed", LOCAL, "somebody wants to know")]

    run(work())


def test_a_closed_one_listens_for_silence_no_more() -> None:
    async def work() -> None:
        rig = Rig()
        live = rig.acquired()
        live.check_when_quiet(0.02)
        live.received(b"one", PEER)
        live.received(b"and the next", PEER)
        live.close()
        await asyncio.sleep(0.1)
        assert rig.machine.calls == []

    run(work())


def test_nobody_waits_for_a_network_that_vanishes_before_anything_was_acquired() -> None:
    async def work() -> None:
        live = Rig().start()
        live.network_changed(None, "eth0 is down")
        with pytest.raises(BindingError, match="eth0 is down"):
            await live.acquired()

    run(work())


def test_a_transport_that_its_owner_has_closed_stays_lost() -> None:
    async def work() -> None:
        rig = Rig()
        live = rig.acquired()
        live.socket_ended("the transport was closed")
        live.network_changed(ELSEWHERE, "eth0 is up")
        assert rig.machine.calls == [("network_changed", None, "the transport was closed")]
        with pytest.raises(TransportError, match="nothing more will arrive"):
            await live.recvfrom()

    run(work())
