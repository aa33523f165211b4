"""Sockets and connections of SIP, on loopback."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import trustme

from nattools.endpoint import Endpoint
from nattools.errors import DecodeError, LocalAddressError
from nattools.machine import Transmit
from nattools.session.controller import wires as wires_module
from nattools.session.controller.connection import FIRST_MESSAGE_S
from nattools.session.controller.wires import MOST_UNSENT_BYTES, Wires, local_addresses
from nattools.session.flows import Flow, Listener
from nattools.session.settings import GateSettings, parse_listen
from nattools.stun.attributes import XOR_MAPPED_ADDRESS
from nattools.stun.message import Message, MessageClass, Method

OPTIONS = b"OPTIONS sip:x SIP/2.0\r\nVia: SIP/2.0/TCP a;branch=z9hG4bK1\r\nContent-Length: 4\r\n\r\nbody"


class Taker:
    """Notes what it is given."""

    def __init__(self) -> None:
        self.taken: list[tuple[bytes, Flow]] = []
        self.blanks: list[Flow] = []
        self.open: dict[str, Endpoint] = {}
        self.failures: list[Transmit] = []
        self.lets_in = True
        self.changed = asyncio.Event()

    def admits(self, data: bytes, source: Endpoint) -> bool:
        return self.lets_in

    def take(self, data: bytes, flow: Flow) -> None:
        self.taken.append((data, flow))
        self.changed.set()

    def heard(self, flow: Flow) -> None:
        self.blanks.append(flow)
        self.changed.set()

    def connected(self, name: str, listener: str, remote: Endpoint) -> None:
        self.open[name] = remote
        self.changed.set()

    def disconnected(self, name: str) -> None:
        del self.open[name]
        self.changed.set()

    def failed(self, transmit: Transmit) -> None:
        self.failures.append(transmit)
        self.changed.set()

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                self.changed.clear()
                await self.changed.wait()


def settings(**words: Any) -> GateSettings:
    return GateSettings(**({"listen": parse_listen("127.0.0.1:0"), "upstream": "sip:127.0.0.9"} | words))


@asynccontextmanager
async def opened(**words: Any) -> AsyncIterator[tuple[Wires, Taker]]:
    taker = Taker()
    wires = await Wires.open(settings(**words), taker)
    wires.start()
    try:
        yield wires, taker
    finally:
        await wires.close()


def of(wires: Wires, transport: str) -> Listener:
    return next(listener for listener in wires.listeners if listener.transport == transport)


async def connect(listener: Listener, **options: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection(str(listener.local.ip), listener.local.port, **options)


async def close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    await asyncio.gather(writer.wait_closed(), return_exceptions=True)


class Peer(asyncio.DatagramProtocol):
    """A UDP socket, and what it hears."""

    def __init__(self) -> None:
        self.heard: asyncio.Queue[bytes] = asyncio.Queue()

    def datagram_received(self, data: bytes, addr: object) -> None:
        self.heard.put_nowait(data)


@asynccontextmanager
async def udp_peer(listener: Listener) -> AsyncIterator[tuple[asyncio.DatagramTransport, Peer]]:
    remote = (str(listener.local.ip), listener.local.port)
    loop = asyncio.get_running_loop()
    transport, peer = await loop.create_datagram_endpoint(Peer, remote_addr=remote)
    try:
        yield transport, peer
    finally:
        transport.close()
        await asyncio.sleep(0)


def test_udp_and_tcp_share_a_port_and_their_names_say_which() -> None:
    async def scenario() -> None:
        async with opened() as (wires, _):
            udp, tcp = wires.listeners
            assert udp.local == tcp.local
            assert (udp.name, tcp.name) == (f"udp:{udp.local}", f"tcp:{tcp.local}")

    asyncio.run(scenario())


def test_datagrams_are_sorted() -> None:
    """SIP is taken, blanks are noted, and STUN is answered with where it came from (RFC 5626 §4.4.2)."""

    async def scenario() -> None:
        async with opened() as (wires, taker), udp_peer(of(wires, "UDP")) as (transport, peer):
            source = Endpoint.of(*transport.get_extra_info("sockname"))
            flow = Flow(of(wires, "UDP").name, source)
            transport.sendto(b"\r\n\r\n")
            transport.sendto(bytes(4))
            transport.sendto(Message(Method.BINDING, MessageClass.REQUEST, b"t" * 12).encode())
            async with asyncio.timeout(10):
                answer = Message.parse(await peer.heard.get())
            assert answer.get(XOR_MAPPED_ADDRESS) == source
            transport.sendto(OPTIONS)
            await taker.until(lambda: taker.taken)
            assert taker.taken == [(OPTIONS, flow)]
            assert taker.blanks == [flow, flow]
            wires.send(Transmit(b"hello", source, flow.socket))
            async with asyncio.timeout(10):
                assert await peer.heard.get() == b"hello"
            assert wires.counters == {"keepalives": 2, "stun_answered": 1}

    asyncio.run(scenario())


def test_who_is_not_admitted_gets_nothing_not_even_stun() -> None:
    async def scenario() -> None:
        async with opened() as (wires, taker), udp_peer(of(wires, "UDP")) as (transport, peer):
            taker.lets_in = False
            transport.sendto(Message(Method.BINDING, MessageClass.REQUEST, b"t" * 12).encode())
            transport.sendto(OPTIONS)
            reader, writer = await connect(of(wires, "TCP"))
            writer.write(OPTIONS + b"\r\n\r\n")
            assert await reader.readexactly(2) == b"\r\n"  # what was sent before has been looked at
            assert taker.taken == []
            assert peer.heard.empty()
            await close(writer)

    asyncio.run(scenario())


def test_a_stream_is_cut_into_messages_and_pings_are_answered() -> None:
    async def scenario() -> None:
        async with opened() as (wires, taker):
            reader, writer = await connect(of(wires, "TCP"))
            for part in (OPTIONS[:10], OPTIONS[10:] + OPTIONS, b"\r\n\r\n"):
                writer.write(part)
                await asyncio.sleep(0)
            assert await reader.readexactly(2) == b"\r\n"
            [(name, remote)] = taker.open.items()
            assert taker.taken == [(OPTIONS, Flow(name, remote))] * 2
            assert name.startswith(f"{of(wires, 'TCP').name}#")
            wires.send(Transmit(b"answer", remote, name))
            assert await reader.readexactly(6) == b"answer"
            await close(writer)
            await taker.until(lambda: not taker.open)
            assert wires.connections == 0

    asyncio.run(scenario())


def test_a_message_to_a_listener_opens_a_connection_which_the_next_ones_take() -> None:
    async def scenario() -> None:
        arrived: asyncio.Queue[bytes] = asyncio.Queue()
        done = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while data := await reader.readexactly(3):
                await arrived.put(data)
                if data == b"two":
                    writer.write(OPTIONS)
                    break
            await asyncio.gather(reader.read(), return_exceptions=True)
            await close(writer)
            done.set()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with opened() as (wires, taker):
            remote = Endpoint.of(*server.sockets[0].getsockname())
            name = of(wires, "TCP").name
            wires.send(Transmit(b"one", remote, name))
            wires.send(Transmit(b"two", remote, name))
            async with asyncio.timeout(10):
                assert [await arrived.get(), await arrived.get()] == [b"one", b"two"]
            await taker.until(lambda: taker.taken)
            assert list(taker.open.values()) == [remote]
            assert taker.taken[0][1].socket in taker.open
        async with asyncio.timeout(10):
            await done.wait()
        server.close()
        await server.wait_closed()

    asyncio.run(scenario())


def test_what_cannot_be_sent_comes_back() -> None:
    async def scenario() -> None:
        async with opened() as (wires, taker):
            free = Endpoint.of("127.0.0.1", 1)  # nobody listens there
            lost = [
                Transmit(b"1", free, of(wires, "TCP").name),
                Transmit(b"2", free, "tcp:127.0.0.1:5060#ended"),
            ]
            for transmit in lost:
                wires.send(transmit)
            await taker.until(lambda: len(taker.failures) == 2)
            assert sorted(it.data for it in taker.failures) == [b"1", b"2"]
            assert wires.connections == 0
            assert wires.counters["connections_failed"] == 1

    asyncio.run(scenario())


def test_who_does_not_read_is_cut_off() -> None:
    async def scenario() -> None:
        async with opened() as (wires, taker):
            _, writer = await connect(of(wires, "TCP"))
            writer.transport.pause_reading()  # type: ignore[attr-defined]  # a transport that reads as well
            await taker.until(lambda: taker.open)
            [(name, remote)] = taker.open.items()
            for _ in range(1000):
                wires.send(Transmit(b"x" * MOST_UNSENT_BYTES, remote, name))
                if taker.failures:
                    break
            assert taker.failures
            assert taker.open == {}
            await close(writer)

    asyncio.run(scenario())


def test_there_are_only_so_many_connections() -> None:
    async def scenario() -> None:
        async with opened(connections_per_source=2, most_connections=3) as (wires, taker):
            peers = [await connect(of(wires, "TCP")) for _ in range(2)]
            await taker.until(lambda: len(taker.open) == 2)
            reader, writer = await connect(of(wires, "TCP"))
            assert await reader.read() == b""  # closed at once
            assert wires.counters["connections_refused"] == 1
            await close(writer)
            await close(peers[0][1])
            await taker.until(lambda: len(taker.open) == 1)
            _, writer = await connect(of(wires, "TCP"))
            await taker.until(lambda: len(taker.open) == 2)
            for each in (peers[1][1], writer):
                await close(each)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("said", "later_s", "stays"),
    [
        pytest.param(b"", FIRST_MESSAGE_S - 1, True, id="nothing yet"),
        pytest.param(b"", FIRST_MESSAGE_S + 1, False, id="nothing for too long"),
        pytest.param(OPTIONS + OPTIONS[:20], FIRST_MESSAGE_S + 1, False, id="half a message for too long"),
        pytest.param(OPTIONS, FIRST_MESSAGE_S + 1, True, id="a message long ago"),
        pytest.param(OPTIONS, 7200 + 1, False, id="a message very long ago"),
    ],
)
def test_patience_ends(said: bytes, later_s: float, stays: bool) -> None:
    async def scenario() -> None:
        async with opened() as (wires, taker):
            _, writer = await connect(of(wires, "TCP"))
            writer.write(said)
            await taker.until(lambda: taker.open)
            if said:
                await taker.until(lambda: taker.taken)
            wires.tidy(now=asyncio.get_running_loop().time() + later_s)
            assert bool(taker.open) is stays
            assert wires.counters["connections_slow"] == (not stays)
            await close(writer)

    asyncio.run(scenario())


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00", b"INVITE " * 12000])
def test_what_is_no_sip_ends_the_connection(garbage: bytes) -> None:
    async def scenario() -> None:
        async with opened() as (wires, taker):
            reader, writer = await connect(of(wires, "TCP"))
            writer.write(garbage)
            assert await reader.read() == b""
            await taker.until(lambda: not taker.open)
            assert wires.counters["garbled_streams"] == 1
            await close(writer)

    asyncio.run(scenario())


def _certificate(directory: Path, *names: str) -> tuple[Path, Path, ssl.SSLContext]:
    authority = trustme.CA()
    issued = authority.issue_cert(*names)
    certificate, key = directory / "cert.pem", directory / "key.pem"
    issued.private_key_pem.write_to_path(str(key))
    for blob in issued.cert_chain_pems:
        blob.write_to_path(str(certificate), append=True)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    return certificate, key, trusting


def test_tls(tmp_path: Path) -> None:
    certificate, key, trusting = _certificate(tmp_path, "gate.test")

    async def scenario() -> None:
        async with opened(listen=parse_listen("tls:127.0.0.1:0"), certificate=certificate, key=key) as (
            wires,
            taker,
        ):
            reader, writer = await connect(of(wires, "TLS"), ssl=trusting, server_hostname="gate.test")
            writer.write(OPTIONS + b"\r\n\r\n")
            assert await reader.readexactly(2) == b"\r\n"
            [(name, remote)] = taker.open.items()
            assert taker.taken == [(OPTIONS, Flow(name, remote))]
            plain_reader, plain_writer = await connect(of(wires, "TLS"))
            plain_writer.write(OPTIONS)
            await plain_reader.read()  # an alert at most
            await taker.until(lambda: wires.connections == 1)
            assert wires.counters["connections_failed"] == 1
            await close(writer)
            await close(plain_writer)

    asyncio.run(scenario())


def test_by_tls_a_peer_must_show_the_name_it_was_found_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    certificate, key, _ = _certificate(tmp_path, "gate.test")
    peers = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("peer.test").configure_cert(peers)

    async def scenario() -> None:
        heard: asyncio.Queue[bytes] = asyncio.Queue()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            heard.put_nowait(await reader.read(5))
            await reader.read()
            await close(writer)
            heard.put_nowait(b"closed")

        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=peers)
        remote = Endpoint.of(*server.sockets[0].getsockname())
        listen = parse_listen("tls:127.0.0.1:0")
        async with opened(listen=listen, certificate=certificate, key=key) as (wires, taker):
            for name in ("", "other.test"):
                if name:
                    wires.remember(remote, name)
                wires.send(Transmit(b"hello", remote, of(wires, "TLS").name))
                await taker.until(lambda: taker.failures)
                taker.failures.clear()
            wires.remember(remote, "peer.test")
            wires.send(Transmit(b"hello", remote, of(wires, "TLS").name))
            async with asyncio.timeout(10):
                assert await heard.get() == b"hello"
        async with asyncio.timeout(10):
            assert await heard.get() == b"closed"
        server.close()
        await server.wait_closed()

    asyncio.run(scenario())


def test_a_certificate_that_was_renewed_is_shown_to_the_next_connection(tmp_path: Path) -> None:
    certificate, key, trusting = _certificate(tmp_path, "gate.test")

    async def scenario() -> None:
        async with opened(listen=parse_listen("tls:127.0.0.1:0"), certificate=certificate, key=key) as (
            wires,
            _taker,
        ):
            place = of(wires, "TLS")
            certificate.unlink()
            _, _, trusting_the_new_one = _certificate(tmp_path, "gate.test")
            good = key.read_bytes()
            key.write_bytes(b"a mistake")
            with pytest.raises(DecodeError, match="cannot be used"):
                wires.reload_certificate()
            _, before = await connect(place, ssl=trusting, server_hostname="gate.test")
            key.write_bytes(good)
            wires.reload_certificate()
            _, after = await connect(place, ssl=trusting_the_new_one, server_hostname="gate.test")
            for writer in (before, after):
                await close(writer)

    asyncio.run(scenario())


def test_a_certificate_that_is_none_is_told(tmp_path: Path) -> None:
    certificate, key, _ = _certificate(tmp_path, "gate.test")
    certificate.write_text("no certificate")
    words: dict[str, Any] = {"listen": parse_listen("tls:127.0.0.1:0"), "certificate": certificate}
    for wrong in (key, tmp_path / "nowhere.pem"):
        with pytest.raises(DecodeError, match=str(wrong)):
            asyncio.run(Wires.open(settings(key=wrong, **words), Taker()))


def test_a_port_that_is_taken_is_told_and_nothing_stays_open() -> None:
    async def scenario() -> None:
        async with opened() as (wires, _):
            taken = parse_listen(str(of(wires, "TCP").local))
            with pytest.raises(LocalAddressError, match="UDP port"):
                await Wires.open(settings(listen=taken), Taker())
            with pytest.raises(LocalAddressError, match="TCP port"):
                await Wires.open(settings(listen=taken[1:]), Taker())

    asyncio.run(scenario())


def test_a_wildcard_is_each_address_of_this_machine() -> None:
    found = list(local_addresses(parse_listen("0.0.0.0"), loopback=True))
    assert {address.transport for address in found} == {"UDP", "TCP"}
    assert "127.0.0.1:5060" in {str(address.endpoint) for address in found}
    assert not any(address.endpoint.ip.is_unspecified for address in found)
    without = list(local_addresses(parse_listen("0.0.0.0")))
    assert without
    assert any(it.endpoint.ip.is_loopback for it in without) is all(
        it.endpoint.ip.is_loopback for it in found
    )


def test_of_a_wildcard_what_has_gone_meanwhile_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    here, gone = ip_address("127.0.0.1"), ip_address("203.0.113.250")
    monkeypatch.setattr(wires_module, "_own_addresses", lambda *, loopback: [gone, here])

    async def scenario() -> None:
        async with opened(listen=parse_listen("0.0.0.0:0")) as (wires, _):
            assert [listener.local.ip for listener in wires.listeners] == [here, here]
        with pytest.raises(LocalAddressError, match=r"203\.0\.113\.250"):
            await Wires.open(settings(listen=parse_listen("203.0.113.250:0")), Taker())

    asyncio.run(scenario())


def test_what_others_are_told_is_the_advertised_address() -> None:
    async def scenario() -> None:
        async with opened(advertise="203.0.113.77") as (wires, _):
            assert [listener.advertised for listener in wires.listeners] == [None, None]  # on loopback

    asyncio.run(scenario())
