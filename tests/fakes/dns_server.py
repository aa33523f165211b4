"""A DNS server on loopback that knows one zone file, and can be deaf to some record types."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import dns.zone

from nattools.endpoint import Endpoint


class _StubDns(asyncio.DatagramProtocol):
    def __init__(self, zone: dns.zone.Zone, deaf_to: Collection[str], asked: list[str]) -> None:
        self._zone = zone
        self._deaf_to = deaf_to
        self._asked = asked

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]  # asyncio gives this kind
        self._transport = transport

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        query = dns.message.from_wire(data)
        (question,) = query.question
        record = dns.rdatatype.to_text(question.rdtype)
        self._asked.append(f"{record} {question.name.to_text(omit_final_dot=True)}")
        if record in self._deaf_to:
            return
        response = dns.message.make_response(query)
        response.flags |= dns.flags.RA
        if question.name not in self._zone.nodes:
            response.set_rcode(dns.rcode.NXDOMAIN)
        elif found := self._zone.get_rdataset(question.name, question.rdtype):
            response.answer.append(dns.rrset.from_rdata_list(question.name, 60, list(found)))
        self._transport.sendto(response.to_wire(), address)


@asynccontextmanager
async def stub_dns(zone: str, *, deaf_to: Collection[str] = ()) -> AsyncIterator[tuple[Endpoint, list[str]]]:
    """Serve the records of `zone`, full names in zone-file form; gives its address and a log of questions."""
    records = dns.zone.from_text(
        f"@ 60 IN SOA ns.test. me.test. 1 1 1 1 1\n@ 60 IN NS ns.test.\n{zone}", ".", relativize=False
    )
    asked: list[str] = []
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(
        lambda: _StubDns(records, deaf_to, asked), local_addr=("127.0.0.1", 0)
    )
    try:
        yield Endpoint.of(*transport.get_extra_info("sockname")[:2]), asked
    finally:
        transport.close()
        await asyncio.sleep(0)
