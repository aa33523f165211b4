"""A fake UPnP router: SSDP, descriptions, SOAP, events and a table of port mappings, as odd as one likes.

In a test: `async with FakeIgd(behaviour("taken", "igd1")) as igd: ...`; each has an address of its own in
127/8, since searches go to port 1900 of `igd.address`. In the laboratory:

    python -m tests.fakes.igd --address 192.168.0.1 --interface lan --behaviour taken --json-events

which hears and sends multicast, too. Lines of its standard input are commands: `reboot`, `forget`,
`address 11.22.33.9`, `advance 3600`, `behave NAME...`. With `--other-address` its decoy is not on the
router's own address. The laboratory's router drops what is for itself until `nft flush chain ip lab input`.
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import json
import os
import random
import signal
import socket
import stat
import struct
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from http import HTTPStatus
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from tests.fakes.igd_descriptions import (
    EVENT,
    REPLY,
    SCPD,
    Arguments,
    Behaviour,
    Places,
    Root,
    Service,
    encoded,
    escaped,
    root_description,
)
from tests.fakes.igd_hostile import BEHAVIOURS, behaviour
from tests.fakes.igd_table import RefusedError, Table
from tests.fakes.igd_wire import arguments_in, data_segments, headers_in, matches, response

GROUP = "239.255.255.250"
SSDP_PORT = 1900
_MOST_REQUEST_BYTES = 1 << 20
_EVENT_TIMEOUT_S = 2.0
_HALF_CLOSE_WAIT_S = 0.05
_FIRST_BOOT_ID = 7


@dataclass(frozen=True, slots=True)
class Served:
    """A request: its `kind` is ssdp, http, soap, gena, event or decoy; it came in so many TCP `segments`."""

    kind: str
    peer: str
    what: str
    arguments: Mapping[str, str] = field(default_factory=dict)
    segments: int | None = None


_Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class _Request:
    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes
    peer: str
    segments: int | None


@dataclass(slots=True)
class _Subscriber:
    host: str
    port: int
    path: str
    service: Service
    sequence: int = 0


class FakeIgd:
    """A router on `address`: what it has been asked is in `served`, and the actions of that in `calls`.

    Without an `address` it takes a free one of 127/8 when it is opened. `decoy_hits` are the requests to a
    server that no client should ask; it is on `other_address`, the router's second one, and on loopback on
    127.0.0.1 as well. `on_served` is told of each request.
    """

    def __init__(
        self,
        behaviour: Behaviour | None = None,
        *,
        address: str | None = None,
        interface: str | None = None,
        other_address: str | None = None,
        on_served: Callable[[Served], None] | None = None,
    ) -> None:
        self.behaviour = behaviour or Behaviour()
        self.address = address or ""
        self.calls: list[tuple[str, Arguments]] = []
        self.served: list[Served] = []
        self.decoy_hits: list[str] = []
        self.boot_id = _FIRST_BOOT_ID
        self._other = other_address or ""
        self._interface = interface
        self._on_served = on_served
        self._clock_ahead_s = 0.0
        self.table = Table(self.behaviour, lambda: time.monotonic() + self._clock_ahead_s)
        self._servers: list[asyncio.Server] = []
        self._ssdp: list[asyncio.DatagramTransport] = []
        self._connections: list[asyncio.WriteTransport] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closed = False
        self._searchers: dict[tuple[str, int], None] = {}
        self._subscribers: dict[str, _Subscriber] = {}
        self._subscriptions = 0
        self._flooded = False
        self.places: Places

    @property
    def url(self) -> str:
        """Of its first root description."""
        return f"http://{self.places.host}:{self.places.port}{self.behaviour.roots[0].path}"

    async def __aenter__(self) -> Self:
        try:
            await self._open()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _open(self) -> None:
        given = self.address
        for address in [given] if given else _loopback_addresses():
            self.address = address
            try:
                self._reply_from = await self._open_ssdp(address, SSDP_PORT)
                break
            except OSError as error:
                if error.errno != errno.EADDRINUSE or address == given:
                    raise
        self._other = self._other or _second_address(self.address)
        behaviour = self.behaviour
        host = self._other if behaviour.answers_from_other_address else self.address
        port = await self._listen(self._serve, host, 0)
        self.places = Places(host, port, self._other, await self._open_decoy())
        if self._interface is not None:
            await self._open_ssdp(GROUP, SSDP_PORT)
        if behaviour.answers_from_new_port or host != self.address:
            self._reply_from = await self._open_ssdp(
                host, 0 if behaviour.answers_from_new_port else SSDP_PORT
            )

    async def _open_decoy(self) -> int:
        """Listen where nobody should be lured; gives the port."""
        while True:
            port = await self._listen(self._serve_decoy, self._other, 0)
            if not self._other.startswith("127."):
                return port
            with suppress(OSError):  # the port may be taken there
                return await self._listen(self._serve_decoy, "127.0.0.1", port)

    async def _listen(self, serve: _Serve, host: str, port: int) -> int:
        converse = partial(self._converse, serve)
        server = await asyncio.start_server(converse, host, port, limit=_MOST_REQUEST_BYTES)
        self._servers.append(server)
        bound: int = server.sockets[0].getsockname()[1]
        return bound

    async def _open_ssdp(self, host: str, port: int) -> asyncio.DatagramTransport:
        is_multicast = host == GROUP  # bound to the group, it hears nothing else
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            if self._interface is not None:
                index = socket.if_nametoindex(self._interface)
                via = struct.pack("@4s4si", socket.inet_aton(GROUP), socket.inet_aton(self.address), index)
                sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, via)
                if is_multicast:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, via)
            sock.bind((host, port))
            transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
                lambda: _Ssdp(lambda data, source: self._searched(data, source, is_multicast)), sock=sock
            )
        except BaseException:
            sock.close()
            raise
        self._ssdp.append(transport)
        return transport

    async def close(self) -> None:
        """End everything at once, whoever is connected."""
        self._is_closed = True
        for server in self._servers:
            server.close()
        for transport in self._ssdp:
            transport.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for connection in self._connections:
            connection.abort()
        await asyncio.sleep(0)  # asyncio closes the sockets for good in its next round

    def reboot(self) -> None:
        """Say goodbye, forget everything, and come back with another boot ID (UDA 1.1 §1.2)."""
        self._announce("ssdp:byebye")
        self.table.forget()
        self._subscribers.clear()
        self.boot_id += 1
        self._announce("ssdp:alive")

    def behave(self, behaviour: Behaviour) -> None:
        """Be another router from now on, with the same sockets; what goes on is broken off."""
        for task in self._tasks:
            task.cancel()
        self.behaviour = behaviour
        self.table = Table(behaviour, lambda: time.monotonic() + self._clock_ahead_s)
        self._subscribers.clear()
        self._flooded = False
        for record in (self.calls, self.served, self.decoy_hits):
            record.clear()

    def change_external_address(self, address: str) -> None:
        """Get another address from the provider; subscribers are told."""
        self.table.external_address = address
        for sid in self._subscribers:
            self._spawn(self._notify(sid))

    def advance(self, seconds: float) -> None:
        """Let leases grow older."""
        self._clock_ahead_s += seconds

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _record(self, served: Served) -> None:
        self.served.append(served)
        if served.kind == "soap":
            self.calls.append((served.what, dict(served.arguments)))
        if self._on_served is not None:
            self._on_served(served)

    # SSDP

    def _searched(self, data: bytes, source: tuple[str, int], is_multicast: bool) -> None:
        start, *lines = data.decode("latin-1").split("\r\n")
        if not start.startswith("M-SEARCH "):
            return
        target = headers_in(lines).get("st", "")
        self._record(Served("ssdp", source[0], target, {"by": "multicast" if is_multicast else "unicast"}))
        self._searchers[source] = None
        behaviour = self.behaviour
        if behaviour.answers_multicast if is_multicast else behaviour.answers_unicast:
            self._spawn(self._answer(target, source))

    async def _answer(self, target: str, source: tuple[str, int]) -> None:
        await asyncio.sleep(self.behaviour.answer_delay_s)
        if self.behaviour.answers_by_notify:
            self._announce("ssdp:alive")
            return
        for number, message in enumerate(self._answers(target)):
            self._reply_from.sendto(message, source)
            if number % 50 == 49:
                await asyncio.sleep(0)

    def _answers(self, target: str) -> Iterator[bytes]:
        behaviour = self.behaviour
        if behaviour.flood:
            if not self._flooded:
                self._flooded = True
                root = behaviour.roots[0]
                for number in range(behaviour.flood):
                    usn = f"uuid:flood-{number}::{root.type}"
                    yield self._message(behaviour.answer, root.type, usn, root.path, number=str(number))
            return
        if behaviour.answers_only is not None and target not in behaviour.answers_only:
            return
        matching = [a for a in self._advertised() if matches(target, a[0])]
        if target == "ssdp:all" and behaviour.all_gets_first_only:
            del matching[1:]
        for type_, usn, path in matching * behaviour.answer_copies:
            yield self._message(behaviour.answer, type_ if target == "ssdp:all" else target, usn, path)

    def _advertised(self) -> Iterator[tuple[str, str, str]]:
        """Type, USN and the path of the description of all that there is."""
        for type_, path in self.behaviour.other_devices:
            yield type_, f"uuid:another-device::{type_}", path
        for root in self.behaviour.roots:
            for type_, usn in root.advertised():
                yield type_, usn, root.path

    def _message(self, template: str, type_: str, usn: str, path: str, **values: str) -> bytes:
        values |= {"st": type_, "usn": usn, "boot_id": str(self.boot_id)}
        locations = self.behaviour.locations or ("http://{host}:{port}" + path,)
        location = self.places.fill(locations[int(values.get("number", "0")) % len(locations)], **values)
        return encoded(self.places.fill(template, location=location, **values))

    def _announce(self, nts: str) -> None:
        """Notify the group; on loopback, which has none, those who have searched."""
        destinations = [(GROUP, SSDP_PORT)] if self._interface is not None else list(self._searchers)
        for type_, usn, path in self._advertised():
            message = self._message(self.behaviour.notification, type_, usn, path, nts=nts)
            for destination in destinations:
                self._reply_from.sendto(message, destination)

    # HTTP

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await self._read(reader, writer)
        if request is not None:
            await self._respond(request, writer)

    async def _serve_decoy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        hit = len(self.decoy_hits)
        self.decoy_hits.append("")  # to connect is a hit
        self.decoy_hits[hit] = (await reader.readline()).decode("latin-1").strip()
        self._record(Served("decoy", writer.get_extra_info("peername")[0], self.decoy_hits[hit]))
        writer.write(response(HTTPStatus.OK, encoded(self.places.fill(root_description(Root())))))

    async def _converse(
        self, serve: _Serve, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Whatever happens on a connection, it ends, and with it the task."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._connections.append(writer.transport)
        try:
            if not self._is_closed:
                with suppress(OSError, EOFError, asyncio.LimitOverrunError, ValueError):
                    await serve(reader, writer)
                    await writer.drain()
            writer.close()
        except asyncio.CancelledError:  # asyncio started the task, and would complain of its end
            writer.transport.abort()
        finally:
            self._tasks.discard(task)

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> _Request | None:
        """Read a request; None if this router does not like it."""
        start, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, target, _ = start.split(" ", 2)
        headers = headers_in(lines)
        strict = self.behaviour.is_strict_http
        if strict and ("expect" in headers or "transfer-encoding" in headers):
            return None
        body = await reader.readexactly(min(int(headers.get("content-length", "0")), _MOST_REQUEST_BYTES))
        peer = writer.get_extra_info("peername")[0]
        request = _Request(method, target, headers, body, peer, data_segments(writer))
        self._record(Served("http", peer, f"{method} {target}", headers, request.segments))
        if self.behaviour.wants_one_segment and request.segments not in (1, None):
            writer.write(response(HTTPStatus.BAD_REQUEST))
            return None
        if strict:
            with suppress(TimeoutError):  # nothing more may come, not even the end
                await asyncio.wait_for(reader.read(1), _HALF_CLOSE_WAIT_S)
                return None
        return request

    async def _respond(self, request: _Request, writer: asyncio.StreamWriter) -> None:
        names, answer = self._resource(request)
        behaviour = self.behaviour
        conduct = next((behaviour.conduct[name] for name in names if name in behaviour.conduct), None)
        if conduct is None:
            data = answer()
            conduct = next((behaviour.conduct_after[n] for n in names if n in behaviour.conduct_after), None)
        if conduct is None:
            writer.write(data)
        else:
            await conduct(writer, self.places)

    def _resource(self, request: _Request) -> tuple[tuple[str, ...], Callable[[], bytes]]:
        """What is asked for, by the names that a conduct may be for, and the ordinary answer."""
        roots = self.behaviour.roots
        if request.method == "GET":
            for root in roots:
                if request.target == root.path or self.behaviour.flood:
                    return ("description",), partial(self._describe, root)
        url = {"POST": "control", "GET": "scpd"}.get(request.method, "events")
        services = {root.path_of(getattr(s, url), self.places): s for root in roots for s in root.services}
        service = services.get(request.target)
        if service is None:
            return ("missing",), lambda: response(HTTPStatus.NOT_FOUND)
        if url == "scpd":
            return ("scpd",), lambda: response(HTTPStatus.OK, encoded(SCPD))
        if url == "events":
            return ("events",), lambda: self._subscribe(request, service)
        action = request.headers.get("soapaction", "").strip('"').rpartition("#")[2]
        names = (action, "control") if self.table.knows(service, action) else (action, "unknown", "control")
        arguments = arguments_in(request.body, is_naive=self.behaviour.is_naive_xml)
        self._record(Served("soap", request.peer, action, arguments or {}, request.segments))
        return names, lambda: self._act(service, action, arguments, request.peer)

    def _describe(self, root: Root) -> bytes:
        return response(HTTPStatus.OK, encoded(self.places.fill(root_description(root))))

    def _act(self, service: Service, action: str, arguments: Arguments | None, peer: str) -> bytes:
        """Carry out an action (UDA 1.1 §3.2)."""
        behaviour = self.behaviour
        if arguments is None:
            return response(HTTPStatus.INTERNAL_SERVER_ERROR)
        values = {"prefix": behaviour.prefix, "action": action, "type": service.type}
        try:
            reply = self.table.perform(service, action, arguments, peer)
        except RefusedError as refused:
            values |= {"code": str(refused.code), "description": f"Refused {refused.code}"}
            return response(behaviour.fault_status, encoded(self.places.fill(behaviour.fault, **values)))
        values["arguments"] = "".join(f"<{name}>{escaped(text)}</{name}>" for name, text in reply.items())
        return response(HTTPStatus.OK, encoded(self.places.fill(REPLY, **values)))

    # Events (UDA 1.1 §4)

    def _subscribe(self, request: _Request, service: Service) -> bytes:
        headers = request.headers
        sid = headers.get("sid", "")
        self._record(Served("gena", request.peer, request.method, headers))
        if not self.behaviour.is_evented:
            return response(HTTPStatus.NOT_IMPLEMENTED)
        if sid and sid not in self._subscribers:
            return response(HTTPStatus.PRECONDITION_FAILED)
        if request.method == "UNSUBSCRIBE":
            self._subscribers.pop(sid, None)
            return response(HTTPStatus.OK)
        if not sid:
            callback = urlsplit(headers.get("callback", "").strip("<>"))
            if callback.hostname != request.peer or headers.get("nt") != "upnp:event":
                return response(
                    HTTPStatus.PRECONDITION_FAILED
                )  # as miniupnpd does, who calls back nobody else
            self._subscriptions += 1
            number = str(self._subscriptions)
            sid = self.places.fill(self.behaviour.sid, boot_id=str(self.boot_id), number=number)
            self._subscribers[sid] = _Subscriber(
                callback.hostname, callback.port or 80, callback.path or "/", service
            )
            self._spawn(self._notify(sid))
        return response(HTTPStatus.OK, b"", f"SID: {sid}", f"TIMEOUT: {self.behaviour.event_timeout}")

    async def _notify(self, sid: str) -> None:
        """Tell a subscriber all that it may know."""
        subscriber = self._subscribers[sid]
        variables = {
            "ExternalIPAddress": self.table.address_of(subscriber.service),
            "ConnectionStatus": subscriber.service.status,
            "PortMappingNumberOfEntries": str(len(self.table.entries)),
        }
        properties = "".join(
            f"<e:property><{name}>{escaped(text)}</{name}></e:property>" for name, text in variables.items()
        )
        body = encoded(EVENT.replace("{properties}", properties))
        head = (
            f"NOTIFY {subscriber.path} HTTP/1.1\r\nHOST: {subscriber.host}:{subscriber.port}\r\n"
            'CONTENT-TYPE: text/xml; charset="utf-8"\r\nNT: upnp:event\r\nNTS: upnp:propchange\r\n'
            f"SID: {sid}\r\nSEQ: {subscriber.sequence}\r\nCONTENT-LENGTH: {len(body)}\r\n\r\n"
        )
        subscriber.sequence += 1
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(_EVENT_TIMEOUT_S):
                reader, writer = await asyncio.open_connection(
                    subscriber.host, subscriber.port, local_addr=(self.places.host, 0)
                )
                try:
                    writer.write(encoded(head) + body)
                    answer = (await reader.readline()).decode("latin-1").strip()
                    self._record(Served("event", subscriber.host, answer))
                finally:
                    writer.transport.abort()


class _Ssdp(asyncio.DatagramProtocol):
    def __init__(self, on_datagram: Callable[[bytes, tuple[str, int]], None]) -> None:
        self.datagram_received = on_datagram  # type: ignore[method-assign,assignment]  # it is a method elsewhere


def _loopback_addresses() -> Iterator[str]:
    """Addresses to be tried until one is free: several test runs share the machine."""
    while True:
        yield f"127.0.{random.randrange(77, 97)}.{random.randrange(2, 252)}"


def _second_address(address: str) -> str:
    """On loopback 127.0.177.x for 127.0.77.x; elsewhere the same."""
    first, second, third, last = address.split(".")
    return f"127.{second}.{(int(third) + 100) % 256}.{last}" if first == "127" else address


# --- As a process ---


def _say(served: Served) -> None:
    sys.stdout.write(json.dumps(asdict(served)) + "\n")
    sys.stdout.flush()


class _Commands(asyncio.Protocol):
    """Standard input: each line that comes is obeyed."""

    def __init__(self, igd: FakeIgd) -> None:
        self._igd = igd
        self._rest = b""

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            match line.decode().split():
                case ["reboot"]:
                    self._igd.reboot()
                case ["forget"]:
                    self._igd.table.forget()
                case ["address", address]:
                    self._igd.change_external_address(address)
                case ["behave", *names]:
                    self._igd.behave(behaviour(*names))
                    _say(Served("behaves", "", " ".join(names)))
                case ["advance", seconds]:
                    self._igd.advance(float(seconds))


async def main(options: argparse.Namespace) -> None:
    """Be a router until SIGTERM or SIGINT."""
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    async with FakeIgd(
        behaviour(*options.behaviour),
        address=options.address,
        interface=options.interface,
        other_address=options.other_address,
        on_served=_say if options.json_events else None,
    ) as igd:
        _say(Served("ready", options.address, igd.url, {"decoy_port": str(igd.places.decoy_port)}))
        with ExitStack() as stack:
            if stat.S_ISFIFO(os.fstat(sys.stdin.fileno()).st_mode):  # asyncio cannot read /dev/null
                pipe, _ = await loop.connect_read_pipe(lambda: _Commands(igd), sys.stdin)
                stack.callback(pipe.close)
            await ended.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A fake UPnP router.")
    parser.add_argument("--address", required=True, help="of the router, on the LAN")
    parser.add_argument("--interface", help="for multicast")
    parser.add_argument("--other-address", help="the router's second address, and its decoy's")
    parser.add_argument(
        "--behaviour", action="append", default=[], choices=sorted(BEHAVIOURS), metavar="NAME"
    )
    parser.add_argument("--json-events", action="store_true", help="a line of JSON for each request")
    asyncio.run(main(parser.parse_args()))
