"""Where host names lead, without a DNS server."""

from __future__ import annotations

import asyncio

import pytest

from nattools.endpoint import Endpoint
from nattools.errors import ResolveError
from nattools.session.controller.next_hops import NextHops
from nattools.session.flows import Flow, Flows, Listener
from tests.unit.session.proxy_desk import PROXY

FAR = Endpoint.of("198.51.100.77", 5070)
FAR_IPV6 = Endpoint.of("2001:db8::77", 5070)


class Names:
    """Answers by a table; what is not in it has no address."""

    def __init__(self, **hosts: list[Endpoint]) -> None:
        self.hosts = {name.replace("_", "."): endpoints for name, endpoints in hosts.items()}
        self.asked: list[tuple[str, int | None, str, int]] = []
        self.time = 0.0
        self.found: list[tuple[Endpoint, str]] = []
        flows = Flows([Listener("u", "UDP", PROXY), Listener("s", "TLS", PROXY.with_port(5061))])
        self.hops = NextHops(
            flows,
            now=lambda: self.time,
            on_found=lambda endpoint, host: self.found.append((endpoint, host)),
            resolve=self.resolve,
        )

    async def resolve(
        self, host: str, port: int | None, *, service: str, default_port: int
    ) -> list[Endpoint]:
        self.asked.append((host, port, service, default_port))
        await asyncio.sleep(0)
        if host not in self.hosts:
            raise ResolveError(f"no address for {host}")
        return self.hosts[host]


def test_an_address_is_not_asked_for() -> None:
    names = Names()
    for port, expected in ((None, 5060), (5070, 5070)):
        flow = asyncio.run(names.hops.flow_to(b"198.51.100.77", port, "UDP"))
        assert flow == Flow("u", FAR.with_port(expected))
    assert names.asked == []


@pytest.mark.parametrize(
    ("transport", "service", "port", "socket"),
    [("UDP", "_sip._udp", 5060, "u"), ("TLS", "_sips._tcp", 5061, "s")],
)
def test_a_name_is_asked_for_as_its_transport_wants(
    transport: str, service: str, port: int, socket: str
) -> None:
    names = Names(far_example=[FAR_IPV6, FAR])
    flow = asyncio.run(names.hops.flow_to(b"Far.Example.", None, transport))
    assert flow == Flow(socket, FAR)  # no listener has IPv6
    assert names.asked == [("far.example", None, service, port)]
    assert names.found == [(FAR, "far.example")]


def test_a_name_is_asked_for_once_a_minute_and_after_failure_sooner() -> None:
    names = Names(far_example=[FAR])

    async def scenario() -> None:
        for host in (b"far.example", b"nowhere.example"):
            together = [names.hops.flow_to(host, None, "UDP") for _ in range(3)]
            assert len(set(await asyncio.gather(*together))) == 1
        assert len(names.asked) == 2
        names.time = 6.0
        for host in (b"far.example", b"nowhere.example"):
            await names.hops.flow_to(host, None, "UDP")
        assert len(names.asked) == 3
        names.time = 61.0
        await names.hops.flow_to(b"far.example", None, "UDP")
        assert len(names.asked) == 4

    asyncio.run(scenario())


def test_who_gives_up_does_not_end_the_question_of_others() -> None:
    names = Names(far_example=[FAR])

    async def scenario() -> None:
        first = asyncio.ensure_future(names.hops.flow_to(b"far.example", None, "UDP"))
        second = asyncio.ensure_future(names.hops.flow_to(b"far.example", None, "UDP"))
        await asyncio.sleep(0)
        first.cancel()
        assert await second == Flow("u", FAR)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("host", "transport"), [(b"", "UDP"), (b"\xff\xfe", "UDP"), (b"far.example", "SCTP"), (b"...", "UDP")]
)
def test_what_leads_nowhere_is_not_asked_for(host: bytes, transport: str) -> None:
    names = Names(far_example=[FAR])
    assert asyncio.run(names.hops.flow_to(host, None, transport)) is None
    assert names.asked == []


def test_only_so_many_names_are_remembered() -> None:
    names = Names()

    async def scenario() -> None:
        for number in range(1100):
            await names.hops.flow_to(f"host{number}.example".encode(), None, "UDP")
        await names.hops.flow_to(b"host0.example", None, "UDP")
        assert names.asked[-1][0] == "host0.example"
        names.hops.close()

    asyncio.run(scenario())
