"""The media of a call through a whole natgate: what is heard, what is counted, and what its end brings."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from pathlib import Path

import pytest

from nattools.endpoint import Endpoint
from nattools.net.udp import endpoint_of
from nattools.session.server import SessionServer
from nattools.session.settings import parse_listen
from nattools.sip.sdp import SessionDescription
from tests.unit.session.media_desk import MediaDesk
from tests.unit.session.rtp import rtp
from tests.unit.session.telephone import PATIENCE_S, Telephone, gate_settings, place

KEY = b"a=crypto:1 AES_CM_128_HMAC_SHA1_80 inline:d0RmdmcmVCspeEc3QGZiNWpVLFJhQX1cfHAwJSoj\r\n"


class Ear:
    """A socket for RTP, and the description that names it, by SRTP (RFC 4568)."""

    def __init__(self, address: str) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.socket = socket.socket(family, socket.SOCK_DGRAM)
        self.socket.setblocking(False)
        self.socket.bind((address, 0))
        local = endpoint_of(self.socket.getsockname())
        kind = b"IP6" if local.is_ipv6 else b"IP4"
        host, port = str(local.ip).encode(), local.port
        self.description = (
            b"v=0\r\no=- 1 1 IN %b %b\r\ns=-\r\nc=IN %b %b\r\nt=0 0\r\nm=audio %d RTP/SAVP 0\r\n"
            % (kind, host, kind, host, port)
        ) + KEY

    async def say(self, packet: bytes, there: Endpoint) -> None:
        await asyncio.get_running_loop().sock_sendto(self.socket, packet, (str(there.ip), there.port))

    async def hear(self) -> tuple[bytes, Endpoint]:
        async with asyncio.timeout(PATIENCE_S):
            data, source = await asyncio.get_running_loop().sock_recvfrom(self.socket, 2048)
        return data, endpoint_of(source)


def told(body: bytes) -> Endpoint:
    """Where a description wants RTP."""
    endpoint = SessionDescription.parse(body).media[0].endpoint
    assert endpoint is not None
    return endpoint


def test_an_encrypted_call_from_ipv4_to_ipv6_is_heard_counted_and_hung_up_when_it_falls_silent(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    listen = (*parse_listen("127.0.0.1:0"), *parse_listen("[::1]:0"))
    later_s = 0.0

    async def scenario() -> None:
        nonlocal later_s
        settings = gate_settings(tmp_path, listen=listen)
        async with (
            await SessionServer.start(settings, now=lambda: time.monotonic() + later_s) as server,
            Telephone("alice", place(server)) as alice,
            Telephone("bob", place(server, ipv6=True)) as bob,
        ):
            ears = {alice: Ear("127.0.0.1"), bob: Ear("::1")}
            bob.description = ears[bob].description
            await alice.register()
            await bob.register()
            answer = await alice.call("bob", body=ears[alice].description)
            invite = bob.requests_of("INVITE")[0]
            relay = {alice: told(answer.body), bob: told(invite.body)}
            assert (relay[alice].is_ipv6, relay[bob].is_ipv6) == (False, True)
            for body in (answer.body, invite.body):
                assert KEY in body
                assert b"RTP/SAVP" in body
            for sequence in (1, 2, 4):  # one is lost
                for speaker, listener in ((alice, bob), (bob, alice)):
                    packet = rtp(sequence) + b"cipher and tag"
                    await ears[speaker].say(packet, relay[speaker])
                    assert await ears[listener].hear() == (packet, relay[listener])
            [call] = (await server.status()).calls
            [stream] = call.streams
            for side in (stream.a, stream.b):
                assert (side.packets, side.lost, side.foreign, side.held) == (3, 1, 0, 0)
                assert side.jitter_ms is not None
            later_s = settings.media_timeout_s + 1
            for phone in (alice, bob):
                await phone.until(lambda phone=phone: phone.requests_of("BYE"))  # type: ignore[misc]  # a default
            assert (await server.status()).calls == ()
            for ear in ears.values():
                ear.socket.close()

    caplog.set_level(logging.INFO, "nattools.session.controller.journal")
    asyncio.run(scenario())
    line = caplog.messages[-1]
    assert 'ended_by=natgate why="no media" audio_a_packets=3 audio_a_lost=1' in line


def test_what_a_stream_counts_at_its_very_end_is_told() -> None:
    with MediaDesk() as desk:
        desk.call()
        read = desk.media.reading(b"call")
        assert [it.a.packets for it in read()] == [1]
        (bye,) = desk.within("BYE")
        desk.says(bye, 200)
        desk.runner.run(desk.media.settle())
        assert [it.a.packets for it in read()] == [2]
        assert desk.media.status(b"call") == ()
