"""A program that relays media by one of the engines, and does what JSON lines on its stdin say.

Run it as `python -m tests.lab.relay_program kernel ADDRESS NAME` or `... rtpengine CONTROL`. Each line is an
object with `do` and what that needs, and gets a line in answer. It gives everything back when its stdin ends.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import sys
from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any

from nattools.endpoint import Endpoint
from nattools.errors import NatToolsError
from nattools.session.engines.kernel import KernelEngine, KernelStream
from nattools.session.engines.rtpengine import RtpengineEngine, RtpengineStream
from nattools.session.ports import PortPairs
from nattools.session.relay import Expectation, MediaEngine, MediaStream, Side

Stream = KernelStream | RtpengineStream
_PORTS = (30000, 30199)


class Relay:
    """The engine, and the streams by the names that the test gave them."""

    def __init__(self, engine: KernelEngine | RtpengineEngine) -> None:
        self._engine = engine
        self._streams: dict[str, Stream] = {}

    async def obey(self, command: Mapping[str, Any]) -> object:
        """Do what one line says, and return what is to be answered."""
        name = command.get("name", "")
        match command["do"]:
            case "open":
                addresses = {side: ip_address(it) for side, it in command.get("at", {}).items()}
                self._streams[name] = await self._engine.open_stream(**addresses)
            case "find":
                assert isinstance(self._engine, KernelEngine)
                for number, found in enumerate(self._engine.found):
                    self._streams[f"{name}{number}"] = found
                return len(self._engine.found)
            case "expect":
                rtp, hosts = command["rtp"], command.get("hosts", [])
                expectation = Expectation(
                    Endpoint.parse(rtp) if rtp else None,
                    payload_types=frozenset({0}),
                    hosts=frozenset(map(ip_address, hosts)),
                )
                self._streams[name].expect(Side(command["side"]), expectation)
                await self._settle(name)
                return None
            case "close":
                await self._streams.pop(name).close()
                return None
            case "say":
                stream = self._streams[name]
                assert isinstance(stream, KernelStream)
                stream.send(command["socket"], bytes.fromhex(command["data"]), Endpoint.parse(command["to"]))
                return None
            case "look":
                await self._settle(name)
                await self._look()
        return self._described(self._streams[name])

    async def _settle(self, name: str) -> None:
        stream = self._streams[name]
        if isinstance(self._engine, KernelEngine):
            await self._engine.settle()
        elif isinstance(stream, RtpengineStream):
            await stream.settle()

    async def _look(self) -> None:
        now = asyncio.get_running_loop().time()
        if isinstance(self._engine, KernelEngine):
            await self._engine.look()
        for stream in self._streams.values():
            if isinstance(stream, RtpengineStream):
                await stream.look(now=now)

    def _described(self, stream: MediaStream) -> dict[str, object]:
        told: dict[str, object] = {}
        for side in Side:
            seen, ports = stream.statistics(side), stream.ports(side)
            told[side.value] = {
                "rtp": str(ports.rtp),
                "rtcp": str(ports.rtcp),
                "packets": seen.packets,
                "octets": seen.octets,
                "foreign": seen.foreign,
                "lost": seen.lost,
                "latched": str(seen.latched),
                "carried": [
                    isinstance(stream, KernelStream) and stream.is_carried(side, rtcp=rtcp)
                    for rtcp in (False, True)
                ],
            }
        return told


async def _engine(arguments: list[str]) -> KernelEngine | RtpengineEngine:
    if arguments[0] == "rtpengine":
        return await RtpengineEngine.connect(Endpoint.parse(arguments[1]))
    ports = PortPairs(*_PORTS, entropy=secrets.token_bytes)
    return await KernelEngine.start(ip_address(arguments[1]), ports, name=arguments[2])


async def _lines() -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    return reader


def _tell(what: object) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


async def main(arguments: list[str]) -> None:
    """Relay until stdin ends."""
    try:
        engine = await _engine(arguments)
    except NatToolsError as error:
        _tell({"error": str(error)})
        return
    _tell({"ready": True})
    relay, lines = Relay(engine), await _lines()
    carrier: MediaEngine = engine
    while line := await lines.readline():
        try:
            _tell({"told": await relay.obey(json.loads(line))})
        except NatToolsError as error:
            _tell({"error": str(error)})
    await carrier.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
