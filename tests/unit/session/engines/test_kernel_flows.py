"""What is wanted comes into the kernel, in few transactions, and nothing is lost where nftables refuses."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import replace

from nattools.endpoint import Endpoint
from nattools.errors import RelayError
from nattools.session.engines.kernel_flows import KernelFlows
from nattools.session.engines.nft import Nft
from nattools.session.ruleset import Heard, KernelFlow, Label
from tests.unit.session.test_ruleset import FROM_A, FROM_B, OVER_IPV6, listing

MOVED = replace(FROM_A, source=Endpoint.of("198.51.100.9", 4000))


class FakeNft(Nft):
    """An nft that has the flows, and refuses what the real one would refuse."""

    def __init__(self, *flows: KernelFlow) -> None:
        self.known = {flow: flow.elements[0][0] for flow in (FROM_A, FROM_B, MOVED, OVER_IPV6)}
        self.flows = list(flows)
        self.packets = 0
        self.transactions: list[str] = []
        self.refusals = 0

    async def apply(self, script: str) -> None:
        await asyncio.sleep(0)
        if self.refusals:
            self.refusals -= 1
            raise RelayError("nft refuses")
        left = list(self.flows)
        for line in script.splitlines():
            if match := re.match(r"(add|delete) element ip6? relay toward \{ (.*?)(?: comment| \})", line):
                (flow,) = (it for it in self.known if counted(it) == match[2])
                if (match[1] == "add") == (flow in left):
                    raise RelayError("there already, or not there")
                left = [*left, flow] if match[1] == "add" else [it for it in left if it is not flow]
            elif line.startswith("delete table ip "):
                left = [it for it in left if it.family != "ip"]
        self.flows = left
        self.transactions.append(script)

    async def ask(self, commands: str, *, as_json: bool = True) -> str:
        await asyncio.sleep(0)
        octets = self.packets * 200
        if as_json:
            family = commands.split()[2]
            return listing(
                *(it for it in self.flows if it.family == family), packets=self.packets, octets=octets
            )
        return "".join(
            f'{counted(flow)} counter packets {self.packets} bytes {octets} comment "{flow.label}" : x\n'
            for flow in self.flows
            if counted(flow) in commands
        )


def counted(flow: KernelFlow) -> str:
    source, at = flow.source, flow.arrives_at
    return f"{source.ip} . {source.port} . {at.ip} . {at.port}"


class Kept:
    """The flows, and what is told of them."""

    def __init__(self, *flows: KernelFlow) -> None:
        self.nft = FakeNft(*flows)
        self.carried: list[tuple[Label, bool]] = []
        self.heard: list[tuple[Label, Heard]] = []
        self.flows = KernelFlows(
            "relay",
            self.nft,
            on_carried=lambda label, is_carried: self.carried.append((label, is_carried)),
            on_heard=lambda label, heard: self.heard.append((label, heard)),
        )


def run(test: Callable[[Kept], Awaitable[None]], *flows: KernelFlow) -> None:
    async def whole() -> None:
        kept = Kept(*flows)
        await kept.flows.add_version(4)
        await test(kept)
        await kept.flows.close()
        assert kept.nft.flows == []

    asyncio.run(whole())


def test_what_is_wanted_at_once_is_one_transaction() -> None:
    async def test(kept: Kept) -> None:
        before = len(kept.nft.transactions)
        for flow in (FROM_A, FROM_B):
            kept.flows.want(flow.label, flow)
        await kept.flows.settle()
        assert len(kept.nft.transactions) == before + 1
        assert set(kept.nft.flows) == {FROM_A, FROM_B}
        assert all(kept.flows.is_carried(it.label) for it in (FROM_A, FROM_B))
        assert set(kept.carried) == {(FROM_A.label, True), (FROM_B.label, True)}

    run(test)


def test_what_is_wanted_already_is_no_transaction() -> None:
    async def test(kept: Kept) -> None:
        kept.flows.want(FROM_A.label, FROM_A)
        await kept.flows.settle()
        before = len(kept.nft.transactions)
        kept.flows.want(FROM_A.label, FROM_A)
        kept.flows.want(FROM_B.label, None)
        await kept.flows.settle()
        assert len(kept.nft.transactions) == before

    run(test)


def test_what_changes_during_a_transaction_comes_with_the_next() -> None:
    async def test(kept: Kept) -> None:
        kept.flows.want(FROM_A.label, FROM_A)
        await asyncio.sleep(0)
        kept.flows.want(FROM_A.label, None)
        kept.flows.want(FROM_B.label, FROM_B)
        kept.flows.want(FROM_A.label, MOVED)
        await kept.flows.settle()
        assert set(kept.nft.flows) == {MOVED, FROM_B}

    run(test)


def test_counts_are_told_as_what_came_since_the_last_time_and_once_more_at_the_end() -> None:
    async def test(kept: Kept) -> None:
        kept.flows.want(FROM_A.label, FROM_A)
        await kept.flows.settle()
        for packets in (3, 5, 5):
            kept.nft.packets = packets
            await kept.flows.look()
        assert kept.heard == [(FROM_A.label, Heard(3, 3 * 172)), (FROM_A.label, Heard(2, 2 * 172))]
        kept.nft.packets = 9
        kept.flows.want(FROM_A.label, None)
        await kept.flows.settle()
        assert kept.heard[2:] == [(FROM_A.label, Heard(4, 4 * 172))]
        assert kept.carried == [(FROM_A.label, True), (FROM_A.label, False)]

    run(test)


def test_flows_that_are_there_stay_and_were_counted_before() -> None:
    async def test(kept: Kept) -> None:
        assert set(kept.nft.flows) == {FROM_A, FROM_B}
        assert kept.flows.is_carried(FROM_A.label)
        kept.nft.packets = 2
        await kept.flows.look()
        assert dict(kept.heard)[FROM_B.label] == Heard(2, 2 * 172)
        kept.flows.want(FROM_A.label, MOVED)
        await kept.flows.settle()
        assert set(kept.nft.flows) == {MOVED, FROM_B}

    run(test, FROM_A, FROM_B)


def test_where_somebody_else_wrote_there_the_kernel_is_read_anew() -> None:
    async def test(kept: Kept) -> None:
        kept.flows.want(FROM_A.label, FROM_A)
        await kept.flows.settle()
        kept.nft.flows.clear()
        kept.flows.want(FROM_A.label, MOVED)  # whose elder is no longer there to be deleted
        await kept.flows.settle()
        assert kept.nft.flows == [MOVED]
        assert kept.flows.is_carried(FROM_A.label)

    run(test)


def test_what_nftables_refuses_twice_stays_with_the_sockets() -> None:
    async def test(kept: Kept) -> None:
        kept.nft.refusals = 10
        kept.flows.want(FROM_A.label, FROM_A)
        await kept.flows.settle()
        assert not kept.flows.is_carried(FROM_A.label)
        assert kept.carried[-1] == (FROM_A.label, False)
        kept.nft.refusals = 0
        kept.flows.want(FROM_A.label, FROM_A)
        await kept.flows.settle()
        assert kept.nft.flows == [FROM_A]

    run(test)


def test_a_flow_that_looks_like_another_stays_with_the_sockets() -> None:
    async def test(kept: Kept) -> None:
        kept.flows.want(FROM_A.label, FROM_A)
        await kept.flows.settle()
        twin = replace(FROM_A, label=replace(FROM_A.label, stream="7"))
        kept.flows.want(twin.label, twin)
        await kept.flows.settle()
        assert kept.nft.flows == [FROM_A]
        assert not kept.flows.is_carried(twin.label)

    run(test)


def test_after_the_end_nothing_is_wanted_any_more() -> None:
    async def test(kept: Kept) -> None:
        await kept.flows.close()
        kept.flows.want(FROM_A.label, FROM_A)
        await kept.flows.settle()
        assert kept.nft.flows == []

    run(test)
