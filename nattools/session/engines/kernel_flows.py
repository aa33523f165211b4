"""Which flows the kernel shall carry, and how they get there: one transaction after the other."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable

from nattools.errors import DecodeError, RelayError
from nattools.session.engines.nft import Nft
from nattools.session.ruleset import (
    FlowTable,
    Heard,
    KernelFlow,
    Label,
    check_name,
    compose_difference,
    compose_removal,
    compose_table,
    counting_commands,
    listing_command,
    parse_counts,
    parse_flows,
    parse_heard,
)

OnHeard = Callable[[Label, Heard], None]
OnCarried = Callable[[Label, bool], None]

_log = logging.getLogger(__name__)

_LOOK_S = 2.0
_LOOK_SHARE = 20  # a look at thousands of flows takes its time: at most so much of all time goes there


class KernelFlows:
    """The flows in the nftables tables of one name. End it with `close`.

    `on_carried(label, is_carried)` is called before a flow comes into the kernel and after it left, and
    `on_heard(label, heard)` every 2 s with what the kernel has seen since the last time, if anything.
    """

    def __init__(self, name: str, nft: Nft, *, on_carried: OnCarried, on_heard: OnHeard) -> None:
        """Raises `DecodeError` where `name` cannot name a table."""
        self.versions: tuple[int, ...] = ()
        """The IP versions whose table is there."""
        self._name = check_name(name)
        self._nft = nft
        self._on_carried = on_carried
        self._on_heard = on_heard
        self._wanted = FlowTable()
        self._present: dict[Label, KernelFlow] = {}
        self._counted: dict[Label, Heard] = {}
        self._changed: set[Label] = set()
        self._writer: asyncio.Task[None] | None = None
        self._looker: asyncio.Task[None] | None = None

    async def add_version(self, version: int) -> list[KernelFlow]:
        """Make the table of an IP version, or take over the one that is there; return the flows in it.

        The kernel carries these until something else is wanted. Raises `RelayError`.
        """
        await self._make_table(version)
        self.versions += (version,)
        flows = parse_flows(await self._ask(listing_command(self._name, version)))
        self._present.update((flow.label, flow) for flow in flows)
        for flow in flows:
            self._wanted.put(flow)
        self._counted.update(await self._listed(version, flows))
        if self._looker is None:
            self._looker = asyncio.get_running_loop().create_task(self._look_for_ever())
        return flows

    def is_carried(self, label: Label) -> bool:
        """Whether the kernel has that flow."""
        return label in self._present

    def want(self, label: Label, flow: KernelFlow | None) -> None:
        """From now on the flow with that label shall be this one, or none.

        One that the kernel would take for another stays with the sockets.
        """
        if not self.versions or flow == self._wanted.get(label) == self._present.get(label):
            return
        if flow is None or not self._wanted.put(flow):
            self._wanted.remove(label)
        self._changed.add(label)
        self._start_writing()

    async def settle(self) -> None:
        """Wait until the kernel has, or has refused, all that is wanted."""
        while self._writer is not None and not self._writer.done():
            await asyncio.wait([self._writer])

    async def look(self) -> None:
        """See now what was heard. Raises `RelayError`, and `DecodeError` for an nft that speaks otherwise."""
        for version in self.versions:
            flows = [it for it in self._present.values() if it.source.ip.version == version]
            if flows:
                heard = await self._listed(version, flows)
                self._report({flow: heard[flow.label] for flow in flows if flow.label in heard})

    async def close(self) -> None:
        """Take the tables out of the kernel; what cannot be taken out is logged."""
        for task in (self._looker, self._writer):
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
        with contextlib.suppress(RelayError, DecodeError):
            await self.look()
        versions, self.versions = self.versions, ()
        try:
            await self._nft.apply("".join(compose_removal(self._name, it) for it in versions))
        except RelayError as error:
            _log.error("the tables %s stay in the kernel: %s", self._name, error)
        self._present.clear()

    async def _ask(self, commands: str) -> str:
        return await self._nft.ask(commands)

    async def _make_table(self, version: int) -> None:
        try:
            await self._nft.apply(compose_table(self._name, version))
        except RelayError:
            # Perhaps one that another release left, with other maps. If it is not that, this fails as well.
            await self._nft.apply(compose_removal(self._name, version) + compose_table(self._name, version))

    async def _listed(self, version: int, flows: Iterable[KernelFlow]) -> dict[Label, Heard]:
        return parse_heard(await self._ask(listing_command(self._name, version)), flows)

    def _report(self, heard: dict[KernelFlow, Heard]) -> None:
        """Tell what came to the count of each flow, unless another took its place meanwhile."""
        for flow, now in heard.items():
            if self._present.get(flow.label) is not flow:
                continue
            before = self._counted.get(flow.label, Heard(0, 0))
            self._counted[flow.label] = now
            packets = now.packets - before.packets
            if packets > 0:
                octets = max(now.octets - before.octets, 0)
                self._on_heard(flow.label, Heard(packets, octets, now.ssrc, now.sequence))

    def _start_writing(self) -> None:
        if self._changed and (self._writer is None or self._writer.done()):
            self._writer = asyncio.get_running_loop().create_task(self._write())

    async def _write(self) -> None:
        """Bring the kernel to what is wanted. What changes meanwhile makes one transaction more."""
        has_failed = False
        while self._changed:
            labels, self._changed = self._changed, set()
            old = {it: flow for it in labels if (flow := self._present.get(it)) is not None}
            new = {it: flow for it in labels if (flow := self._wanted.get(it)) is not None}
            await self._count_for_the_last_time([it for label, it in old.items() if new.get(label) != it])
            for label in new:
                self._on_carried(label, True)
            try:
                if script := compose_difference(self._name, old.values(), new.values()):
                    await self._nft.apply(script)
            except RelayError as error:
                if has_failed:
                    self._give_up(labels, error)
                    return
                has_failed = True
                _log.warning("nftables refused a change: %s", error)
                await self._find_out()
                self._changed |= labels
                continue
            has_failed = False
            for label in labels:
                self._has_written(label, old.get(label), new.get(label))

    async def _count_for_the_last_time(self, flows: list[KernelFlow]) -> None:
        """Take the counts that go with the flows; the last two seconds of them would be lost."""
        if flows:
            with contextlib.suppress(RelayError):
                told = await self._nft.ask(counting_commands(self._name, flows), as_json=False)
                counts = parse_counts(told, flows)
                self._report({flow: counts[flow.label] for flow in flows})

    def _has_written(self, label: Label, old: KernelFlow | None, new: KernelFlow | None) -> None:
        if old != new:
            self._counted.pop(label, None)
        if new is not None:
            self._present[label] = new
        elif self._present.pop(label, None) is not None:
            self._on_carried(label, False)

    async def _find_out(self) -> None:
        """Somebody else wrote to the tables: make them anew where they are gone, and see what they have."""
        present: dict[Label, KernelFlow] = {}
        try:
            for version in self.versions:
                await self._make_table(version)
                told = await self._ask(listing_command(self._name, version))
                present.update((flow.label, flow) for flow in parse_flows(told))
        except (RelayError, DecodeError) as error:
            _log.warning("nftables does not tell what it relays: %s", error)
        self._changed |= {*present, *(flow.label for flow in self._wanted)}
        self._present, self._counted = present, {}

    def _give_up(self, labels: set[Label], error: RelayError) -> None:
        _log.error("nftables does not take %d flows, the sockets carry them: %s", len(labels), error)
        for label in labels:
            self._wanted.remove(label)
            if label not in self._present:
                self._on_carried(label, False)

    async def _look_for_ever(self) -> None:
        loop, pause_s = asyncio.get_running_loop(), _LOOK_S
        while True:
            await asyncio.sleep(pause_s)
            began = loop.time()
            try:
                await self.look()
            except RelayError as error:
                _log.warning("nftables no longer has the relay's tables: %s", error)
                await self.settle()
                await self._find_out()
                self._start_writing()
            except DecodeError as error:
                _log.warning("nftables tells of its flows in another way: %s", error)
            pause_s = max(_LOOK_S, (loop.time() - began) * _LOOK_SHARE)
