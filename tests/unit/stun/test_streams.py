"""The server's connections over real sockets, on loopback: TCP and TLS, within limits."""

from __future__ import annotations

import asyncio
import gc
import secrets
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
import trustme

from nattools.endpoint import Endpoint
from nattools.net.tls import ServerCertificate
from nattools.stun import connections as connections_module
from nattools.stun import streams
from nattools.stun.attributes import OTHER_ADDRESS, RESPONSE_ORIGIN
from nattools.stun.client import StunClient
from nattools.stun.connections import ConnectionCounts, ConnectionLimits
from nattools.stun.limiter import Limiter, Limits, Rate
from nattools.stun.responder import DropReason, ServerAddresses
from nattools.stun.server import ServerOptions, StunServer
from nattools.stun.shared_secrets import SharedSecrets
from nattools.stun.uri import Transport
from tests.certificates import NAME, trust_in, write_certificate
from tests.fakes.classic_phone import ClassicPhone
from tests.unit.stun.test_server import (
    A1,
    A2,
    FULL,
    SINGLE,
    WILDCARD,
    Address,
    attributes_of,
    client,
    first,
    grid_of,
    receive,
    request,
    right,
)

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]
TIME_LIMIT_S = 20
SLOW = DropReason.SLOW_CONNECTION


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def certificate(authority: trustme.CA, tmp_path: Path) -> ServerCertificate:
    return issue(authority, tmp_path)


def issue(authority: trustme.CA, directory: Path) -> ServerCertificate:
    return ServerCertificate(*write_certificate(authority, directory, NAME, A1, A2))


@pytest.fixture
def trusting(authority: trustme.CA) -> ssl.SSLContext:
    return trust_in(authority)


@pytest.fixture(scope="module", autouse=True)
def _nothing_stays_open() -> Iterator[None]:
    yield
    gc.collect()  # which would find what was left open


async def exchange(stream: Stream, data: bytes, size: int = -1) -> bytes:
    """Send, and read so many bytes, or whatever comes until the server closes the connection."""
    if data:  # there may have been an end of it
        stream[1].write(data)
    async with asyncio.timeout(TIME_LIMIT_S):
        try:
            return await (stream[0].read() if size < 0 else stream[0].readexactly(size))
        except ConnectionResetError:
            return b""


Scenario = Callable[[StunServer], Awaitable[None]]


def serve(addresses: ServerAddresses, scenario: Scenario, **settings: Any) -> StunServer:
    """Run the scenario against a server; every socket of it is closed at the end."""

    async def run() -> StunServer:
        async with await StunServer.start(addresses, ServerOptions(**settings)) as server:
            await scenario(server)
            return server

    return asyncio.run(run())


def serve_one(
    addresses: ServerAddresses, scenario: Callable[[StunServer, Stream], Awaitable[None]], **settings: object
) -> StunServer:
    """The same with one TCP connection, which is open."""

    async def connected(server: StunServer) -> None:
        stream = await asyncio.open_connection(*first(server))
        await scenario(server, stream)
        stream[1].close()

    return serve(addresses, connected, **settings)


def limited(*, most: int = 256, per_source: int = 32, idle_s: float = TIME_LIMIT_S) -> ConnectionCounts:
    return ConnectionCounts(ConnectionLimits(most, per_source, idle_s))


class TestTcp:
    def test_requests_in_pieces_and_in_a_row_and_no_other_way_back(self) -> None:
        async def scenario(server: StunServer, stream: Stream) -> None:
            sent = {request(): 56, request((3, bytes(4))): 68, request(classic=True): 56}
            whole = b"".join(sent)
            for start, end in ((0, 1), (1, 4), (4, 26), (26, None)):
                stream[1].write(whole[start:end])
                await asyncio.sleep(0)
            mine = stream[1].get_extra_info("sockname")
            for data, replied in sent.items():
                reply = await exchange(stream, b"", replied)
                assert attributes_of(reply, data) == right(data, mine, first(server), grid_of(server)[1, 1])
            reply = await exchange(stream, request((3, b"\0\0\0\6")), 56)
            assert reply[:2] == b"\1\x11"
            assert reply[-8:] == bytes.fromhex("000a 0002 0003 0000")

        assert serve_one(FULL, scenario).answered == 4

    @pytest.mark.parametrize(
        ("data", "reason"),
        [
            (b"GET / HTTP/1.1\r\n\r\n", DropReason.NOT_STUN),
            (b"\0\1\0\3", DropReason.NOT_STUN),
            (request()[:3] + b"\4" + request()[4:] + b"\0\6\0\7", DropReason.NOT_STUN),
            (b"\1\1" + request()[2:], DropReason.NOT_A_REQUEST),
            (struct.pack("!HH", 1, streams.MOST_REQUEST_BYTES - 16), DropReason.TOO_LONG),
            (b"\0\1\xff\xfc", DropReason.TOO_LONG),
        ],
        ids=["http", "too-short", "attribute-without-end", "reply", "too-long", "longest"],
    )
    def test_garbage_closes_the_connection(self, data: bytes, reason: DropReason) -> None:
        async def scenario(_server: StunServer, stream: Stream) -> None:
            assert await exchange(stream, data) == b""

        assert serve_one(SINGLE, scenario).dropped == {reason: 1}

    def test_the_biggest_message(self) -> None:
        async def scenario(_server: StunServer, stream: Stream) -> None:
            data = request((0x26, bytes(streams.MOST_REQUEST_BYTES - 24)))
            assert len(data) == streams.MOST_REQUEST_BYTES
            assert (await exchange(stream, data, 20))[4:] == data[4:20]

        serve_one(SINGLE, scenario)

    @pytest.mark.parametrize("rest", [b"", b"\0", b"\0\1\0\0\x21\x12"], ids=["nothing", "a byte", "a half"])
    def test_who_has_said_everything_still_gets_the_reply(self, rest: bytes) -> None:
        async def scenario(_server: StunServer, stream: Stream) -> None:
            stream[1].write(request() + rest)
            stream[1].write_eof()
            assert len(await exchange(stream, b"")) == 44

        server = serve_one(SINGLE, scenario)
        assert server.answered == 1
        assert server.dropped == ({DropReason.TRUNCATED: 1} if rest else {})

    def test_a_connection_too_many_is_closed(self) -> None:
        connections = limited(per_source=1)

        async def scenario(server: StunServer, stream: Stream) -> None:
            await exchange(stream, request(), 44)
            surplus = await asyncio.open_connection(*first(server))
            assert await exchange(surplus, b"") == b""
            surplus[1].close()
            other = await asyncio.open_connection(*first(server), local_addr=(A2, 0))
            await exchange(other, request(), 44)
            other[1].close()
            await exchange(stream, request(), 44)

        server = serve_one(WILDCARD, scenario, connections=connections)
        assert server.dropped == {DropReason.TOO_MANY_CONNECTIONS: 1}
        assert [server.counts.accepted(Transport.TCP), server.counts.open(Transport.TCP)] == [2, 0]

    def test_who_leaves_makes_room(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(connections_module, "LEAST_COUNTED_S", 0.0)

        async def scenario(server: StunServer, stream: Stream) -> None:
            await exchange(stream, request(), 44)
            stream[1].close()
            reply = b""
            async with asyncio.timeout(TIME_LIMIT_S):
                while not reply:
                    later = await asyncio.open_connection(*first(server))
                    with suppress(asyncio.IncompleteReadError):
                        reply = await exchange(later, request(), 44)
                    later[1].close()

        assert serve_one(SINGLE, scenario, connections=limited(most=1)).answered == 2

    def test_all_servers_of_a_process_share_what_there_is(self) -> None:
        connections = limited(most=1)

        async def scenario(_server: StunServer, stream: Stream) -> None:
            await exchange(stream, request(), 44)
            async with await StunServer.start(SINGLE, ServerOptions(connections=connections)) as other:
                surplus = await asyncio.open_connection(*first(other))
                assert await exchange(surplus, b"") == b""
                surplus[1].close()
                assert other.dropped == {DropReason.TOO_MANY_CONNECTIONS: 1}

        serve_one(SINGLE, scenario, connections=connections)

    def test_an_idle_connection_is_closed(self) -> None:
        async def scenario(_server: StunServer, stream: Stream) -> None:
            assert await exchange(stream, b"\0\1") == b""

        assert serve_one(SINGLE, scenario, connections=limited(idle_s=0.01)).dropped == {SLOW: 1}

    def test_a_client_that_does_not_read_is_closed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(streams, "_CLOSE_S", 0.05)

        async def scenario(server: StunServer) -> None:
            with socket.socket() as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                sock.connect(first(server))
                sock.setblocking(False)
                with suppress(ConnectionError):
                    async with asyncio.timeout(TIME_LIMIT_S):
                        flood = request((0x26, bytes(4000))) * 4000
                        await asyncio.get_running_loop().sock_sendall(sock, flood)

        assert serve(SINGLE, scenario, connections=limited(idle_s=0.2)).dropped == {SLOW: 1}

    def test_stopping_closes_open_connections(self) -> None:
        async def scenario(server: StunServer, stream: Stream) -> None:
            await exchange(stream, request(), 44)
            await server.close()
            assert await exchange(stream, b"") == b""

        serve_one(SINGLE, scenario)

    def test_stopping_closes_what_was_just_accepted(self) -> None:
        async def scenario(server: StunServer) -> None:
            with socket.socket() as sock:
                sock.connect(first(server))
                while not server._streams._tasks:  # noqa: ASYNC110  # no event tells
                    await asyncio.sleep(0)
                await server.close()
                sock.settimeout(TIME_LIMIT_S)
                with suppress(ConnectionResetError):
                    assert sock.recv(1) == b""

        serve(SINGLE, scenario)


class TestLimiter:
    """Requests over connections take tokens as datagrams do, but wait for them."""

    @staticmethod
    def limiter(socket: Rate) -> Limiter:
        many = Rate(1_000_000, 1_000_000)
        return Limiter(Limits(socket, many, many, many), entropy=secrets.token_bytes)

    def test_over_the_limit_a_request_waits(self) -> None:
        async def scenario(_server: StunServer, stream: Stream) -> None:
            await exchange(stream, request() * 4, 4 * 44)

        server = serve_one(SINGLE, scenario, limiter=self.limiter(Rate(20, 2)))
        assert server.answered == 4
        assert server.dropped == {}

    def test_but_not_forever(self) -> None:
        connections = limited()

        async def scenario(_server: StunServer, stream: Stream) -> None:
            await exchange(stream, request(), 44)
            connections.limits = ConnectionLimits(idle_s=0.2)
            assert await exchange(stream, request()) == b""

        limiter = self.limiter(Rate(0.001, 1))
        server = serve_one(SINGLE, scenario, limiter=limiter, connections=connections)
        assert server.dropped == {DropReason.RATE_LIMITED: 1}

    def test_a_connection_full_of_requests_does_not_delay_datagrams(self) -> None:
        many = 2000

        async def scenario(server: StunServer, stream: Stream) -> None:
            stream[1].write(request() * many)
            while not server.answered:  # noqa: ASYNC110  # no event tells
                await asyncio.sleep(0)
            with client() as sock:
                sock.sendto(request(), first(server))
                await receive(sock)
            assert server.answered < many
            await exchange(stream, b"", many * 44)

        assert serve_one(SINGLE, scenario).answered == many + 1


async def connect(address: Address, trusting: ssl.SSLContext, name: str = NAME) -> Stream:
    return await asyncio.open_connection(*address, ssl=trusting, server_hostname=name)


def tls_port(server: StunServer) -> Address:
    assert server.tls_port is not None
    return A1, server.tls_port


def break_tls(address: Address, trusting: ssl.SSLContext, *, early: bool) -> None:
    """Leave in the middle of the first message, or end the handshake by a record that nobody sealed."""
    with suppress(ConnectionResetError), socket.create_connection(address, TIME_LIMIT_S) as plain:
        got, sent = ssl.MemoryBIO(), ssl.MemoryBIO()
        secured = trusting.wrap_bio(got, sent, server_hostname=NAME)
        while True:
            with suppress(ssl.SSLWantReadError):
                secured.do_handshake()
                break
            if early:
                plain.sendall(sent.read()[:100])
                return
            plain.sendall(sent.read())
            got.write(plain.recv(65_536))
        plain.sendall(sent.read() + b"\x17\3\3\0\x20" + bytes(32))
        while plain.recv(65_536):
            pass


def connections_over_tls() -> int:
    """So many there are in memory, also those that only a search for garbage would find."""
    return sum(type(each) is ssl.SSLObject for each in gc.get_objects())


class TestTls:
    def test_our_client_is_answered_on_a_port_of_its_own_and_told_true_addresses(
        self, certificate: ServerCertificate, trusting: ssl.SSLContext
    ) -> None:
        async def scenario(server: StunServer) -> None:
            to = Endpoint.of(*tls_port(server))
            async with StunClient.open(to, transport="tls", ssl_context=trusting) as asking:
                result = await asking.binding()
            assert result.mapped == result.local
            assert result.response.get(RESPONSE_ORIGIN) == to
            other = Endpoint.of(*grid_of(server)[1, 1])
            assert result.response.get(OTHER_ADDRESS) == other
            async with StunClient.open(other, transport="tls", ssl_context=trusting) as asking:
                assert (await asking.binding()).response.get(RESPONSE_ORIGIN) == other

        server = serve(FULL, scenario, certificate=certificate, tls_port=0)
        assert server.answered == server.counts.accepted(Transport.TLS) == 2
        assert server.dropped == {}

    def test_it_is_at_both_addresses(self, certificate: ServerCertificate, trusting: ssl.SSLContext) -> None:
        async def scenario(server: StunServer) -> None:
            for ip in (A1, A2):
                stream = await connect((ip, tls_port(server)[1]), trusting)
                data = request()
                reply = attributes_of(await exchange(stream, data, 56), data)
                assert reply[0x802B] == right(data, (A1, 1), (ip, tls_port(server)[1]))[0x802B]
                stream[1].close()
                await stream[1].wait_closed()

        serve(FULL, scenario, certificate=certificate, tls_port=0)

    def test_a_port_of_tcp_takes_both_as_each_client_begins(
        self, certificate: ServerCertificate, trusting: ssl.SSLContext
    ) -> None:
        async def scenario(server: StunServer, plain: Stream) -> None:
            secured = await connect(first(server), trusting)
            for stream in (plain, secured, plain, secured):
                await exchange(stream, request(), 44)
            secured[1].close()
            await secured[1].wait_closed()

        server = serve_one(SINGLE, scenario, certificate=certificate, tls_port=0)
        assert [server.counts.accepted(it) for it in (Transport.TCP, Transport.TLS)] == [1, 1]

    @pytest.mark.parametrize(
        "data",
        [request(), b"GET / HTTP/1.1\r\n\r\n", b"\x16\3\1\0\x05hello", b""],
        ids=["stun", "http", "not the handshake", "nothing"],
    )
    def test_what_is_no_tls_on_its_port_costs_a_counter(
        self, data: bytes, certificate: ServerCertificate
    ) -> None:
        async def scenario(server: StunServer) -> None:
            stream = await asyncio.open_connection(*tls_port(server))
            stream[1].write(data)
            stream[1].write_eof()
            await exchange(stream, b"")  # an alert, or nothing
            stream[1].close()

        server = serve(SINGLE, scenario, certificate=certificate, tls_port=0)
        assert server.dropped == {DropReason.TLS_FAILED: 1}
        assert server.counts.accepted(Transport.TLS) == 0

    def test_a_handshake_that_does_not_go_on_takes_a_place(self, certificate: ServerCertificate) -> None:
        async def scenario(server: StunServer) -> None:
            silent = await asyncio.open_connection(*tls_port(server))
            surplus = await asyncio.open_connection(*tls_port(server))
            assert await exchange(surplus, b"") == b""
            assert server.dropped == {DropReason.TOO_MANY_CONNECTIONS: 1}
            for stream in (silent, surplus):
                stream[1].close()

        serve(SINGLE, scenario, certificate=certificate, tls_port=0, connections=limited(most=1))

    def test_but_not_forever(self, certificate: ServerCertificate, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(streams, "HANDSHAKE_S", 0.05)

        async def scenario(server: StunServer) -> None:
            silent = await asyncio.open_connection(*tls_port(server))
            assert await exchange(silent, b"\x16") == b""
            silent[1].close()

        server = serve(SINGLE, scenario, certificate=certificate, tls_port=0)
        assert server.dropped == {DropReason.TLS_FAILED: 1}

    def test_a_silent_connection_where_both_are_served_is_slow(self, certificate: ServerCertificate) -> None:
        async def scenario(_server: StunServer, stream: Stream) -> None:
            assert await exchange(stream, b"") == b""

        connections = limited(idle_s=0.01)
        server = serve_one(SINGLE, scenario, certificate=certificate, tls_port=0, connections=connections)
        assert server.dropped == {SLOW: 1}

    @pytest.mark.parametrize(
        ("data", "reason"),
        [
            (b"\xff" * 100, DropReason.NOT_STUN),
            (b"\0\1", SLOW),
            (b"\0\1\xff\xfc", DropReason.TOO_LONG),
        ],
        ids=["garbage", "half", "long"],
    )
    def test_who_sends_no_request_is_told_goodbye(
        self, data: bytes, reason: DropReason, certificate: ServerCertificate, trusting: ssl.SSLContext
    ) -> None:
        """That is, close_notify: without it the read would raise."""
        trusting.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF

        def talk(server: StunServer) -> bytes:
            plain = socket.create_connection(tls_port(server), TIME_LIMIT_S)
            with trusting.wrap_socket(plain, server_hostname=NAME, suppress_ragged_eofs=False) as secured:
                secured.sendall(data)
                return secured.recv(1)

        async def scenario(server: StunServer) -> None:
            assert await asyncio.to_thread(talk, server) == b""

        connections = limited(idle_s=0.5 if reason is SLOW else TIME_LIMIT_S)
        server = serve(SINGLE, scenario, certificate=certificate, tls_port=0, connections=connections)
        assert server.dropped == {reason: 1}

    def test_a_client_that_does_not_read_is_closed(
        self, certificate: ServerCertificate, trusting: ssl.SSLContext
    ) -> None:
        async def scenario(server: StunServer) -> None:
            reader, writer = await connect(tls_port(server), trusting)
            writer.transport.pause_reading()  # type: ignore[attr-defined]  # a transport both ways
            flood = request((0x26, bytes(4000))) * 50
            with suppress(OSError):
                async with asyncio.timeout(TIME_LIMIT_S):
                    while not server.dropped:
                        writer.write(flood)
                        await writer.drain()
            writer.transport.abort()
            del reader

        connections = limited(idle_s=0.5)
        server = serve(SINGLE, scenario, certificate=certificate, tls_port=0, connections=connections)
        assert server.dropped == {SLOW: 1}

    def test_who_leaves_makes_room_and_nothing_is_complained_of(
        self, certificate: ServerCertificate, trusting: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Python 3.11.2 fails when a TLS transport is closed that its peer has closed, and then aborted."""
        monkeypatch.setattr(connections_module, "LEAST_COUNTED_S", 0.0)
        complaints: list[dict[str, object]] = []

        def come_and_go(server: StunServer, times: int) -> None:
            while times:
                plain = socket.create_connection(tls_port(server), TIME_LIMIT_S)
                with closing(plain), suppress(ssl.SSLError, ConnectionResetError):  # as long as it is full
                    secured = trusting.wrap_socket(plain, server_hostname=NAME)
                    secured.sendall(request())
                    times -= len(secured.recv(2048)) == 44
                    if times % 2:
                        secured.unwrap()  # which says goodbye, and waits for the other's
                    secured.close()

        async def scenario(server: StunServer) -> None:
            asyncio.get_running_loop().set_exception_handler(lambda _, told: complaints.append(told))
            async with asyncio.timeout(TIME_LIMIT_S):
                await asyncio.to_thread(come_and_go, server, 6)
                while server.counts.open(Transport.TLS):  # noqa: ASYNC110  # no event tells
                    await asyncio.sleep(0)

        connections = limited(most=1)
        server = serve(SINGLE, scenario, certificate=certificate, tls_port=0, connections=connections)
        gc.collect()
        assert complaints == []
        assert server.answered == 6
        assert connections.counted == 0

    @pytest.mark.parametrize("early", [True, False])
    def test_tls_that_breaks_costs_a_counter_and_leaves_no_garbage(
        self, certificate: ServerCertificate, trusting: ssl.SSLContext, early: bool
    ) -> None:
        async def scenario(server: StunServer) -> None:
            before = connections_over_tls()
            await asyncio.to_thread(break_tls, tls_port(server), trusting, early=early)
            async with asyncio.timeout(TIME_LIMIT_S):
                while not server.dropped or connections_over_tls() > before:  # noqa: ASYNC110  # no event tells
                    await asyncio.sleep(0.01)

        gc.collect()
        gc.disable()
        try:
            server = serve(SINGLE, scenario, certificate=certificate, tls_port=0)
        finally:
            gc.enable()
        assert server.dropped == {DropReason.TLS_FAILED: 1}

    def test_a_new_certificate_is_for_new_connections_and_old_ones_stay(
        self, authority: trustme.CA, tmp_path: Path, trusting: ssl.SSLContext
    ) -> None:
        certificate = issue(authority, tmp_path)

        async def scenario(server: StunServer) -> None:
            before = await connect(tls_port(server), trusting)
            await exchange(before, request(), 44)
            write_certificate(authority, tmp_path, "new.test")
            certificate.reload()
            after = await connect(tls_port(server), trusting, "new.test")
            with pytest.raises(ssl.SSLCertVerificationError):
                await connect(tls_port(server), trusting, NAME)
            for stream in (before, after):
                await exchange(stream, request(), 44)
                stream[1].close()
                await stream[1].wait_closed()

        serve(SINGLE, scenario, certificate=certificate, tls_port=0)

    def test_stopping_closes_open_connections_and_half_open_ones(
        self, certificate: ServerCertificate, trusting: ssl.SSLContext
    ) -> None:
        async def scenario(server: StunServer) -> None:
            opened = await connect(tls_port(server), trusting)
            await exchange(opened, request(), 44)
            half = await asyncio.open_connection(*tls_port(server))
            undecided = await asyncio.open_connection(*first(server))
            half[1].write(b"\x16\3\1")
            await exchange(opened, request(), 44)
            await server.close()
            for stream in (opened, half, undecided):
                with suppress(OSError):
                    await exchange(stream, b"")
                stream[1].transport.abort()

        serve(SINGLE, scenario, certificate=certificate, tls_port=0)

    def test_the_other_of_two_hosts_is_not_spoken_of_over_tls(self, certificate: ServerCertificate) -> None:
        """Whether it has TLS is not known here."""

        async def scenario(server: StunServer) -> None:
            server.is_paired, server._whole = True, server._new_responder(FULL)
            local = Endpoint.of(*first(server))
            alone, whole = server._responder, server._whole
            told = [server._responder_at(local, transport) for transport in Transport]
            assert told == [whole, whole, alone]

        serve(SINGLE, scenario, certificate=certificate, tls_port=0)


def test_a_shared_secret_over_tls_seals_a_request_and_its_reply_over_udp(
    certificate: ServerCertificate, trusting: ssl.SSLContext
) -> None:
    async def scenario(server: StunServer) -> None:
        phone = ClassicPhone(first(server), trusting, NAME)
        username, password = await asyncio.to_thread(phone.fetch_secret)
        assert await asyncio.to_thread(phone.ask, username, password) == 0
        assert await asyncio.to_thread(phone.ask, username, password[::-1]) == 431

    handed_out = SharedSecrets(bytes(32), entropy=secrets.token_bytes)
    server = serve(SINGLE, scenario, certificate=certificate, tls_port=0, secrets=handed_out)
    assert server.answered == 3
