"""The search for SIP ALGs over real sockets, on loopback, where nothing rewrites anything."""

from __future__ import annotations

import asyncio
import secrets
import socket
import sys
from ipaddress import ip_address

import pytest

from nattools.endpoint import Endpoint
from nattools.errors import LocalAddressError, TransportError
from nattools.sip.alg import AlgPresence, AlgVerdict
from nattools.sip.client import detect_alg
from nattools.sip.reflector import Reflector
from nattools.stun.responder import ServerAddresses
from nattools.stun.server import ServerOptions, StunServer
from tests.ports import free_port


def search(address: str, *, with_control: bool = True, local_port: int = 0) -> AlgVerdict:
    """Ask a reflector that has two ports."""

    async def run() -> AlgVerdict:
        reflector = Reflector(entropy=secrets.token_bytes)
        async with await StunServer.start(
            ServerAddresses(ip_address(address), 0),
            ServerOptions(
                more_ports=(0,),
                answer_other=lambda data, source: reflector.answer(data, source, now=0.0),
            ),
        ) as server:
            sip = Endpoint.of(address, server.more_ports[0])
            control = server.addresses.port if with_control else None
            return await detect_alg(sip, control_port=control, local_port=local_port)

    return asyncio.run(run())


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_over_either_family_nothing_is_rewritten_on_loopback(address: str) -> None:
    verdict = search(address)
    assert (verdict.presence, verdict.touched) == (AlgPresence.NO, ())
    assert verdict.local.ip == ip_address(address)
    assert verdict.sip.mapped == verdict.sip.received == verdict.local
    assert verdict.control is not None
    assert verdict.control.presence is AlgPresence.NO


def test_without_a_control_port_the_sip_port_is_enough() -> None:
    verdict = search("127.0.0.1", with_control=False)
    assert (verdict.presence, verdict.control) == (AlgPresence.NO, None)


def test_it_asks_from_the_port_that_it_is_told_and_closes_it() -> None:
    port = free_port()
    for _ in range(2):
        assert search("127.0.0.1", local_port=port).local.port == port


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell of ICMP errors")
def test_where_nothing_listens_it_says_so_soon() -> None:
    server = Endpoint.of("127.0.0.1", free_port())
    verdict = asyncio.run(detect_alg(server, control_port=None, timeout_s=60))
    assert (verdict.presence, verdict.is_answered) == (AlgPresence.UNKNOWN, False)
    assert verdict.reasons == (f"{server}: it cannot be reached: connection refused (ICMP)",)
    assert verdict.packets_sent < 12


def test_a_port_that_is_taken_and_a_way_that_is_not_there_are_errors() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(LocalAddressError):
            search("127.0.0.1", local_port=taken.getsockname()[1])
    # an address of documentation, which loopback has no way to: nothing is sent
    with pytest.raises(TransportError, match="no route to 192"):
        asyncio.run(detect_alg(Endpoint.of("192.0.2.1", 5060), local_address=ip_address("127.0.0.1")))
