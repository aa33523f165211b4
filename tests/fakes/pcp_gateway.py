"""A PCP and NAT-PMP gateway that can be told what to do wrong.

In the laboratory: `python -m tests.fakes.pcp_gateway ADDRESS --fault wrong-nonce`.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from enum import Enum
from ipaddress import IPv4Address, IPv6Address, ip_address

from nattools.endpoint import Endpoint, IPAddress
from nattools.errors import DecodeError
from nattools.pcp import natpmp, pcp

EXTERNAL = IPv4Address("11.22.33.2")
EXTERNAL_IPV6 = IPv6Address("2001:470:99::2")
KNOWN_OPTIONS = tuple(pcp.OptionCode)
GARBAGE = (b"", b"\x02", b"\x00\x80\x00", b"\xff" * 60, bytes(1200), b"\x02\x81\x00\x00" + bytes(21))


FLOOD_DATAGRAMS = 5000


def _with_other_bits(answer: bytes, number: int) -> bytes:
    """The answer with one bit turned round behind its header; the next one has another."""
    place = 3 + number % (8 * len(answer) - 24) // 8
    return answer[:place] + bytes((answer[place] ^ 1 << number % 8,)) + answer[place + 1 :]


class Fault(Enum):
    """What a gateway can do wrong."""

    SILENT = "silent"
    WRONG_NONCE = "wrong-nonce"
    WRONG_INTERNAL_PORT = "wrong-internal-port"
    OTHER_PORT = "other-port"  # answers from a port that nobody asked
    OTHER_ADDRESS = "other-address"  # answers from 127.0.0.2
    DUPLICATED = "duplicated"
    CUT_SHORT = "cut-short"  # half of the answer
    GARBAGE_FIRST = "garbage-first"  # noise before the answer
    GARBAGE_ONLY = "garbage-only"
    FLOOD = "flood"  # answers with other bits in them, and noise, by the thousand
    HEADER_ONLY_ERRORS = "header-only-errors"  # an error without the request's body
    NOTHING_TO_REMOVE = "nothing-to-remove"  # removing what is not there: NO_RESOURCES, as miniupnpd has it
    NO_OPTIONS = "no-options"  # refuses PREFER_FAILURE and FILTER


class Speaks(Enum):
    """Which protocols a gateway has."""

    BOTH = "both"
    PCP = "pcp"
    NAT_PMP = "nat-pmp"


@dataclass
class Mapping:
    """One mapping of a fake gateway."""

    nonce: bytes
    external: Endpoint
    lifetime_s: int
    filters: tuple[pcp.Filter, ...] = ()


MappingName = tuple[IPAddress, int, int]
"""Internal address, protocol and internal port."""


@dataclass
class Gateway:
    """A gateway, and what it was asked. All of it may be changed while it runs.

    `result` refuses every request with that code. The first `lose` requests are not heard. `taken` external
    ports are somebody else's.
    """

    speaks: Speaks = Speaks.BOTH
    faults: frozenset[Fault] = frozenset()
    result: int = 0
    retry_after_s: int = 30
    lose: int = 0
    external: IPv4Address = EXTERNAL
    taken: frozenset[int] = frozenset()
    shortest_lifetime_s: int = 120
    longest_lifetime_s: int = 86400
    epoch_s: int = 1000
    endpoint: Endpoint = field(default_factory=lambda: Endpoint.of("127.0.0.1", pcp.SERVER_PORT))
    requests: list[bytes] = field(default_factory=list)
    mappings: dict[MappingName, Mapping] = field(default_factory=dict)
    tell: Callable[[bytes, tuple[str, int]], None] = field(default=lambda _data, _address: None)

    def answers(self, data: bytes, source: Endpoint) -> list[bytes]:
        """What it sends back to a datagram."""
        self.requests.append(data)
        if Fault.SILENT in self.faults or len(self.requests) <= self.lose:
            return []
        try:
            answer = self._answer(data, source)
        except DecodeError:
            return []
        if Fault.CUT_SHORT in self.faults:
            answer = answer[: len(answer) // 2]
        if Fault.GARBAGE_ONLY in self.faults:
            return list(GARBAGE)
        if Fault.FLOOD in self.faults:
            return [*GARBAGE, *(_with_other_bits(answer, bit) for bit in range(FLOOD_DATAGRAMS))]
        noise = GARBAGE if Fault.GARBAGE_FIRST in self.faults else ()
        return [*noise, *[answer] * (2 if Fault.DUPLICATED in self.faults else 1)]

    def restart(self) -> None:
        """Forget every mapping, as a power cut does."""
        self.mappings.clear()
        self.epoch_s = 0

    def announcement(self) -> bytes:
        """What it tells everybody after a restart, by PCP."""
        return pcp.Response(pcp.ResultCode.SUCCESS, pcp.Announce(), 0, self.epoch_s).encode()

    def _answer(self, data: bytes, source: Endpoint) -> bytes:
        is_natpmp = data[:1] == bytes((natpmp.VERSION,))
        if is_natpmp and self.speaks is Speaks.PCP:  # RFC 6887 appendix A
            return bytes((pcp.VERSION, data[1] | pcp.RESPONSE_BIT, 0, 1)) + bytes(4) + self._epoch + bytes(12)
        if is_natpmp:
            return self._answer_natpmp(natpmp.parse_request(data), source).encode()
        if self.speaks is Speaks.NAT_PMP:  # RFC 6886 §3.5
            return bytes((natpmp.VERSION, pcp.RESPONSE_BIT, 0, 1)) + self._epoch
        return self._answer_pcp(pcp.Request.parse(data), source).encode()

    @property
    def _epoch(self) -> bytes:
        return self.epoch_s.to_bytes(4, "big")

    def _answer_natpmp(self, request: natpmp.Request, source: Endpoint) -> natpmp.Response:
        result = natpmp.ResultCode(self.result)
        if isinstance(request, natpmp.UnknownRequest):
            return natpmp.ErrorResponse(request.opcode, natpmp.ResultCode.UNSUPPORTED_OPCODE, self.epoch_s)
        if isinstance(request, natpmp.ExternalAddressRequest):
            if result:
                return natpmp.ErrorResponse(request.opcode, result, self.epoch_s)
            return natpmp.ExternalAddressResponse(self.epoch_s, self.external)
        port = request.internal_port + (Fault.WRONG_INTERNAL_PORT in self.faults)
        if result:
            named = None if Fault.HEADER_ONLY_ERRORS in self.faults else port
            return natpmp.ErrorResponse(request.opcode, result, self.epoch_s, named)
        name = (source.ip, int(request.transport), request.internal_port)
        if request.lifetime_s == 0:
            self.mappings.pop(name, None)
            return natpmp.MappingResponse(request.transport, self.epoch_s, port, 0, 0)
        external = self._free_port(name, request.external_port or request.internal_port)
        lifetime_s = self._clamped(request.lifetime_s)
        self.mappings[name] = Mapping(b"", Endpoint(self.external, external), lifetime_s)
        return natpmp.MappingResponse(request.transport, self.epoch_s, port, external, lifetime_s)

    def _answer_pcp(self, request: pcp.Request, source: Endpoint) -> pcp.Response:
        result, granted, lifetime_s = self._judge(request, source)
        body = granted
        if isinstance(body, pcp.Map | pcp.Peer):
            if Fault.WRONG_NONCE in self.faults:
                body = replace(body, nonce=bytes(pcp.NONCE_BYTES))
            if Fault.WRONG_INTERNAL_PORT in self.faults:
                body = replace(body, internal_port=body.internal_port ^ 1)
        if not result:
            return pcp.Response(result, body, lifetime_s, self.epoch_s, request.options)
        if Fault.HEADER_ONLY_ERRORS in self.faults:
            body = pcp.Opaque(body.opcode)
        return pcp.Response(result, body, self.retry_after_s, self.epoch_s)

    def _judge(self, request: pcp.Request, source: Endpoint) -> tuple[pcp.ResultCode, pcp.Body, int]:
        body, code = request.body, pcp.ResultCode
        if self.result:
            return code(self.result), body, 0
        if request.client != source.ip:
            return code.ADDRESS_MISMATCH, body, 0
        if Fault.NO_OPTIONS in self.faults and request.options:
            return code.UNSUPP_OPTION, body, 0
        if isinstance(body, pcp.Announce):
            return code.SUCCESS, body, 0
        if isinstance(body, pcp.Opaque):
            return code.UNSUPP_OPCODE, body, 0
        internal = request.client
        filters, prefer_failure = [], False
        for option in request.options:
            if option.code < 128 and option.code not in KNOWN_OPTIONS:
                return code.UNSUPP_OPTION, body, 0
            if option.code is pcp.OptionCode.THIRD_PARTY:
                internal = pcp.third_party_address(option)
            elif option.code is pcp.OptionCode.FILTER:
                filters.append(pcp.Filter.parse(option))
            elif option.code is pcp.OptionCode.PREFER_FAILURE:
                prefer_failure = True
        name = (internal, body.protocol, body.internal_port)
        known = self.mappings.get(name)
        if known is not None and known.nonce != body.nonce:
            return code.NOT_AUTHORIZED, body, 0
        if request.lifetime_s == 0:
            removed = self.mappings.pop(name, None)
            if removed is None and Fault.NOTHING_TO_REMOVE in self.faults:
                return code.NO_RESOURCES, body, 0
            return code.SUCCESS, body, 0
        wanted = body.external.port or body.internal_port
        port = self._free_port(name, wanted)
        if prefer_failure and port != wanted:
            return code.CANNOT_PROVIDE_EXTERNAL, body, 0
        external = Endpoint(EXTERNAL_IPV6 if internal.version == 6 else self.external, port)
        lifetime_s = self._clamped(request.lifetime_s)
        self.mappings[name] = Mapping(body.nonce, external, lifetime_s, tuple(filters))
        return code.SUCCESS, replace(body, external=external), lifetime_s

    def _free_port(self, name: MappingName, wanted: int) -> int:
        known = self.mappings.get(name)
        if known is not None:
            return known.external.port
        taken = self.taken | {each.external.port for each in self.mappings.values()}
        while wanted in taken:
            wanted = wanted % 0xFFFF + 1
        return wanted

    def _clamped(self, lifetime_s: int) -> int:
        return min(max(lifetime_s, self.shortest_lifetime_s), self.longest_lifetime_s)


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.elsewhere: dict[Fault, asyncio.DatagramTransport] = {}

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]  # asyncio gives this kind
        self._transport = transport

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        source = Endpoint(ip_address(address[0].partition("%")[0]), address[1])
        sender = self._transport
        for fault, transport in self.elsewhere.items():
            if fault in self.gateway.faults:
                sender = transport
        for answer in self.gateway.answers(data, source):
            sender.sendto(answer, address)


@asynccontextmanager
async def serving(gateway: Gateway, *, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[Gateway]:
    """The gateway behind a UDP port; it says where in `endpoint`."""
    loop = asyncio.get_running_loop()
    protocol = _Datagrams(gateway)
    transport, _ = await loop.create_datagram_endpoint(lambda: protocol, local_addr=(host, port))
    gateway.endpoint = Endpoint.of(*transport.get_extra_info("sockname")[:2])
    gateway.tell = transport.sendto
    opened = [transport]
    try:
        others = {Fault.OTHER_PORT: (host, 0)}
        if host == "127.0.0.1":
            others[Fault.OTHER_ADDRESS] = ("127.0.0.2", gateway.endpoint.port)
        for fault, local in others.items():
            other, _ = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, local_addr=local)
            protocol.elsewhere[fault] = other
            opened.append(other)
        yield gateway
    finally:
        for each in opened:
            each.abort()
        await asyncio.sleep(0)


async def _serve_forever(gateway: Gateway, host: str, announce_at: str | None) -> None:
    async with serving(gateway, host=host, port=pcp.SERVER_PORT):
        print("listening", flush=True)  # noqa: T201  a program
        started = time.monotonic()
        while True:
            await asyncio.sleep(0.2)
            gateway.epoch_s = 1000 + int(time.monotonic() - started)
            if announce_at is not None:
                gateway.tell(gateway.announcement(), (f"ff02::1%{announce_at}", pcp.ANNOUNCEMENT_PORT))


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address", help="where to listen, on UDP port 5351")
    parser.add_argument("--fault", action="append", default=[], choices=[fault.value for fault in Fault])
    parser.add_argument(
        "--speaks", default=Speaks.BOTH.value, choices=[protocol.value for protocol in Speaks]
    )
    parser.add_argument("--result", type=int, default=0, help="refuse everything with this code")
    parser.add_argument("--lose", type=int, default=0, help="how many requests it does not hear at first")
    parser.add_argument("--external", type=IPv4Address, default=EXTERNAL)
    parser.add_argument(
        "--announce", metavar="INTERFACE", help="tell everybody there, over IPv6, again and again"
    )
    options = parser.parse_args()
    gateway = Gateway(
        speaks=Speaks(options.speaks),
        faults=frozenset(Fault(each) for each in options.fault),
        result=options.result,
        lose=options.lose,
        external=options.external,
    )
    asyncio.run(_serve_forever(gateway, options.address, options.announce))


if __name__ == "__main__":
    main()
