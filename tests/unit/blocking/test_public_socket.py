"""A public socket is used as a plain one is, on loopback; what it is asked for besides is at the end."""

from __future__ import annotations

import errno
import os
import select
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from nattools.binding.model import BindingChange, ChangeKind, Method
from nattools.binding.schedule import KeepaliveKind
from nattools.binding.settings import Settings
from nattools.blocking import PublicSocket
from nattools.endpoint import Endpoint
from nattools.errors import BindingError, DecodeError
from nattools.net.udp import endpoint_of
from nattools.stun.message import Message, MessageClass
from nattools.stun.message import Method as StunMethod
from nattools.stun.server import StunServer
from tests.unit.public_sockets import (
    DEADLINE_S,
    NO_WAY,
    eventually,
    in_time,
    plain_socket,
    public_socket,
    settings_for,
    stun_server,
)

MOST_BYTES = 65507
FOREIGN_REQUEST = Message(StunMethod.BINDING, MessageClass.REQUEST, transaction_id=b"not of ours.").encode()
FOREIGN_RESPONSE = Message(StunMethod.BINDING, MessageClass.SUCCESS, transaction_id=b"not of ours.").encode()


@pytest.fixture(scope="module")
def server() -> Iterator[StunServer]:
    with stun_server() as running:
        yield running


@pytest.fixture
def peer() -> Iterator[socket.socket]:
    with plain_socket() as sock:
        yield sock


def woken_by(wait: Callable[[], object], wake: Callable[[], object]) -> list[object]:
    """What a thread that waits returns, or the error number that it gets, when another wakes it."""
    outcome: list[object] = []

    def run() -> None:
        try:
            outcome.append(wait())
        except OSError as error:
            outcome.append(error.errno)

    thread = threading.Thread(target=run)
    thread.start()
    time.sleep(0.05)  # until it waits; a test that is too early passes as well
    wake()
    thread.join(DEADLINE_S)
    assert not thread.is_alive()
    return outcome


# Datagrams


@pytest.mark.parametrize(
    "data",
    [b"", b"\r\n\r\n", b"REGISTER sip:example.org SIP/2.0\r\n", b"\x80" * 172, bytes(MOST_BYTES)],
    ids=["empty", "CRLF", "SIP", "RTP", "the largest"],
)
def test_datagrams_pass_both_ways_untouched(peer: socket.socket, data: bytes) -> None:
    with public_socket() as sock:
        peer.sendto(data, sock.getsockname())
        assert sock.recvfrom(MOST_BYTES) == (data, peer.getsockname())
        assert sock.sendto(data, peer.getsockname()) == len(data)
        assert peer.recvfrom(MOST_BYTES) == (data, sock.getsockname())


@pytest.mark.parametrize("foreign", [FOREIGN_REQUEST, FOREIGN_RESPONSE], ids=["a request", "a response"])
def test_the_stun_of_others_is_the_programs(server: StunServer, peer: socket.socket, foreign: bytes) -> None:
    with public_socket(settings_for(server)) as sock:
        assert sock.public
        peer.sendto(foreign, sock.getsockname())
        assert sock.recvfrom(2048) == (foreign, peer.getsockname())


def test_stun_of_its_own_is_never_seen(server: StunServer) -> None:
    with public_socket(settings_for(server, keepalive_interval=1)) as sock:
        assert sock.public
        answered = server.answered
        assert eventually(lambda: server.answered >= answered + 3)
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.recv(2048)


def test_a_datagram_is_cut_to_the_buffer_and_the_rest_is_gone(peer: socket.socket) -> None:
    with public_socket() as sock:
        for data in (b"0123456789", b"next"):
            peer.sendto(data, sock.getsockname())
        assert sock.recv(10, socket.MSG_PEEK) == b"0123456789"
        assert sock.recv(4) == b"0123"
        assert sock.recv(4) == b"next"
        with pytest.raises(ValueError, match="negative"):
            sock.recv(-1)


def test_receiving_into_a_buffer(peer: socket.socket) -> None:
    with public_socket() as sock:
        for data in (b"first", b"second", b"third"):
            peer.sendto(data, sock.getsockname())
        buffer = bytearray(8)
        assert sock.recv_into(buffer) == 5
        assert buffer == b"first\0\0\0"
        assert sock.recvfrom_into(buffer, 3) == (3, peer.getsockname())
        assert buffer == b"sect\0\0\0\0"[:3] + b"st\0\0\0"
        assert sock.recv_into(memoryview(buffer)[4:]) == 4
        assert buffer == b"secsthir"
        with pytest.raises(ValueError, match="nbytes is 9"):
            sock.recv_into(buffer, 9)


def numbers_that_fit(sock: PublicSocket, peer: socket.socket) -> list[int]:
    """Which of 3,000 numbered datagrams are there when the program comes to read them at last."""
    for number in range(3000):
        peer.sendto(number.to_bytes(2), sock.getsockname())
        if number % 50 == 0:
            time.sleep(0.002)  # for the thread that reads, so that the kernel need not drop any
    arrived = []
    sock.settimeout(0.5)
    with suppress(TimeoutError):
        while True:
            arrived.append(int.from_bytes(sock.recv(2)))
    return arrived


def test_what_does_not_fit_into_the_buffer_is_lost_and_what_was_there_stays(peer: socket.socket) -> None:
    with public_socket() as sock:
        arrived = numbers_that_fit(sock, peer)
        assert 100 < len(arrived) < 3000
        assert arrived[:100] == list(range(100))
        peer.sendto(b"there is room again", sock.getsockname())
        assert sock.recv(64) == b"there is room again"
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        assert len(numbers_that_fit(sock, peer)) > len(arrived)


def test_threads_send_and_receive_side_by_side(server: StunServer) -> None:
    count, senders = 300, 4
    in_flight = 100  # a busy machine must not make the kernel's buffer run over
    deadline = time.monotonic() + DEADLINE_S
    with public_socket(settings_for(server)) as one, public_socket(settings_for(server)) as other:
        received: list[bytes] = []

        def send(name: int) -> None:
            for number in range(count):
                one.sendto(bytes([name]) + number.to_bytes(2), other.getsockname())
                time.sleep(0.001)
                while number * senders > len(received) + in_flight and time.monotonic() < deadline:
                    time.sleep(0.001)

        def receive() -> None:
            while len(received) < count * senders:
                received.append(other.recv(16))

        threads = [threading.Thread(target=send, args=(name,)) for name in range(senders)]
        threads += [threading.Thread(target=receive, daemon=True)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE_S)
    for name in range(senders):
        assert [int.from_bytes(data[1:]) for data in received if data[0] == name] == list(range(count))


# Waiting


def test_timeouts_are_those_of_a_socket() -> None:
    with public_socket() as sock, plain_socket() as like:
        for value in (0.01, 0.0, None):
            sock.settimeout(value)
            like.settimeout(value)
            assert (sock.gettimeout(), sock.getblocking()) == (like.gettimeout(), like.getblocking())
        sock.settimeout(0.01)
        with pytest.raises(TimeoutError):
            sock.recvfrom(1)
        sock.settimeout(0)
        with pytest.raises(BlockingIOError):
            sock.recvfrom(1)
        sock.setblocking(True)
        assert sock.gettimeout() is None
        with pytest.raises(ValueError, match="out of range"):
            sock.settimeout(-1)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not tell a socket's mode")
@pytest.mark.parametrize("timeout", [None, 1.0, 0.0])
def test_the_thread_that_reads_the_real_socket_is_never_blocked_by_it(timeout: float | None) -> None:
    with public_socket() as sock:
        sock.settimeout(timeout)
        assert not os.get_blocking(sock._kept.real.fileno())


def test_the_default_timeout_of_the_socket_module_holds() -> None:
    socket.setdefaulttimeout(0.25)
    try:
        with PublicSocket(settings=NO_WAY) as sock:
            assert sock.gettimeout() == 0.25
    finally:
        socket.setdefaulttimeout(None)


def test_a_thread_that_waits_gets_what_comes(peer: socket.socket) -> None:
    with public_socket() as sock:
        sock.settimeout(None)
        address = sock.getsockname()
        assert woken_by(lambda: sock.recv(16), lambda: peer.sendto(b"here", address)) == [b"here"]


def test_select_and_selectors_see_what_is_there_to_read(server: StunServer, peer: socket.socket) -> None:
    with (
        public_socket(settings_for(server)) as sock,
        public_socket() as silent,
        selectors.DefaultSelector() as selector,
    ):
        assert sock.public
        assert select.select([sock, silent], [], [], 0.1) == ([], [], [])  # not for STUN
        peer.sendto(b"ring", sock.getsockname())
        assert select.select([sock, silent], [], [], DEADLINE_S) == ([sock], [], [])
        selector.register(sock, selectors.EVENT_READ)
        assert [key.fileobj for key, _ in selector.select(DEADLINE_S)] == [sock]
        assert sock.recv(16) == b"ring"
        assert not selector.select(0)


@pytest.mark.parametrize("timeout", [None, DEADLINE_S])
def test_closing_wakes_a_thread_that_receives(timeout: float | None) -> None:
    with public_socket() as sock:
        sock.settimeout(timeout)
        assert woken_by(lambda: sock.recvfrom(1), sock.close) == [errno.EBADF]


def test_closing_wakes_a_thread_that_selects() -> None:
    with public_socket() as sock:
        wait = lambda: select.select([sock.fileno()], [], [], DEADLINE_S)[0]  # noqa: E731 - one line of two
        assert woken_by(wait, sock.close) != [[]]


def test_closing_wakes_a_thread_that_waits_for_the_public_endpoint(peer: socket.socket) -> None:
    settings = Settings.of({"methods": ["stun"], "stun_servers": [str(endpoint_of(peer.getsockname()))]})
    with public_socket(settings) as sock:
        assert woken_by(lambda: sock.public, sock.close) == [errno.EBADF]


def test_after_closing_everything_is_a_bad_descriptor_and_the_port_is_free() -> None:
    with public_socket() as sock:
        address = sock.getsockname()
        sock.close()
        sock.close()
        assert sock.fileno() == -1
        uses: list[Callable[[], object]] = [
            lambda: sock.recv(1),
            lambda: sock.sendto(b"", address),
            lambda: sock.bind(address),
            lambda: sock.public,
            sock.getsockname,
            sock.changes,
        ]
        for use in uses:
            with pytest.raises(OSError, match="Bad file descriptor"):
                use()
        assert "closed" in repr(sock)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as after:
            after.bind(address)


# Addresses and options


def test_a_socket_that_is_not_bound_gets_a_port_when_it_sends(
    server: StunServer, peer: socket.socket
) -> None:
    with PublicSocket(settings=settings_for(server), binding_timeout_s=DEADLINE_S) as sock:
        assert sock.getsockname() == ("0.0.0.0", 0)
        with pytest.raises(BindingError, match="bind it first"):
            _ = sock.public
        sock.sendto(b"hello", peer.getsockname())
        port = sock.getsockname()[1]
        assert port
        assert peer.recvfrom(16) == (b"hello", ("127.0.0.1", port))
        assert sock.public == Endpoint.of("127.0.0.1", port)


def test_two_cannot_have_one_port_and_none_can_be_bound_twice() -> None:
    with public_socket() as sock, PublicSocket(settings=NO_WAY) as other:
        with pytest.raises(OSError) as refused:
            other.bind(sock.getsockname())
        assert refused.value.errno == errno.EADDRINUSE
        other.bind(("127.0.0.1", 0))
        with pytest.raises(OSError):
            other.bind(("127.0.0.1", 0))


def test_a_connected_socket_hears_its_peer_alone(server: StunServer, peer: socket.socket) -> None:
    with public_socket(settings_for(server), "0.0.0.0") as sock, plain_socket() as stranger:
        port = sock.getsockname()[1]
        with pytest.raises(OSError) as unconnected:
            sock.getpeername()
        assert unconnected.value.errno == errno.ENOTCONN
        with pytest.raises(OSError) as nowhere:
            sock.send(b"")
        assert nowhere.value.errno == errno.EDESTADDRREQ
        sock.connect(("localhost", peer.getsockname()[1]))
        assert sock.getpeername() == peer.getsockname()
        assert sock.getsockname() == ("127.0.0.1", port)
        stranger.sendto(b"not for you", sock.getsockname())
        assert sock.send(b"hello") == 5
        assert peer.recvfrom(16) == (b"hello", ("127.0.0.1", port))
        peer.sendto(b"answer", ("127.0.0.1", port))
        assert sock.recv(64) == b"answer"
        assert sock.public == Endpoint.of("127.0.0.1", port)  # the STUN server is heard nevertheless


def test_options_are_those_of_the_real_socket() -> None:
    with PublicSocket(settings=NO_WAY) as sock:
        assert (sock.family, sock.type, sock.proto) == (socket.AF_INET, socket.SOCK_DGRAM, 0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 4) != bytes(4)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 0xB8)
        assert sock.getsockopt(socket.IPPROTO_IP, socket.IP_TOS) == 0xB8
        with pytest.raises(OSError, match="cannot be detached"):
            sock.detach()
        with pytest.raises(OSError) as unconnected:
            sock.shutdown(socket.SHUT_RDWR)
        assert unconnected.value.errno == errno.ENOTCONN


@pytest.mark.parametrize(
    ("family", "kind", "proto"),
    [
        (socket.AF_INET, socket.SOCK_STREAM, 0),
        (socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_TCP),
        pytest.param(
            getattr(socket, "AF_UNIX", 0),
            socket.SOCK_DGRAM,
            0,
            marks=pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no such family here"),
        ),
    ],
)
def test_only_udp_can_be_had(family: int, kind: int, proto: int) -> None:
    with pytest.raises(OSError):
        PublicSocket(family, kind, proto, settings=NO_WAY)


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_ipv6_addresses_are_written_as_the_socket_module_does() -> None:
    with public_socket(host="::1") as sock, plain_socket("::1") as friend:
        friend.sendto(b"six", sock.getsockname())
        assert sock.recvfrom(16) == (b"six", friend.getsockname())
        sock.sendto(b"six", friend.getsockname())
        assert friend.recvfrom(16) == (b"six", sock.getsockname())


@pytest.mark.skipif(sys.platform != "linux", reason="systems differ in what an IPv6 socket does by default")
def test_ipv4_comes_to_an_ipv6_socket_in_mapped_addresses(peer: socket.socket) -> None:
    with public_socket(host="::") as sock:
        peer.sendto(b"four", ("127.0.0.1", sock.getsockname()[1]))
        data, source = sock.recvfrom(16)
        assert (data, source) == (b"four", ("::ffff:127.0.0.1", peer.getsockname()[1], 0, 0))
        sock.sendto(b"back", source)
        assert peer.recv(16) == b"back"


# What it has beyond a socket


def test_the_public_endpoint_is_told(server: StunServer) -> None:
    with public_socket(settings_for(server)) as sock:
        assert sock.public == endpoint_of(sock.getsockname())
        binding = sock.binding
        assert binding is not None
        assert (binding.public, binding.method) == (sock.public, Method.OPEN)
        assert f"public {sock.public}" in repr(sock)
    assert sock.binding is None


def test_where_there_is_none_the_reason_is_told_and_the_socket_still_works(peer: socket.socket) -> None:
    with public_socket(NO_WAY) as sock:
        for _ in range(2):
            with pytest.raises(BindingError, match=r"127\.0\.0\.1"):
                _ = sock.public
        assert sock.binding is None
        sock.sendto(b"anyway", peer.getsockname())
        assert peer.recvfrom(16) == (b"anyway", sock.getsockname())
        peer.sendto(b"yes", sock.getsockname())
        assert sock.recv(16) == b"yes"


def test_nobody_waits_for_the_public_endpoint_for_ever(peer: socket.socket) -> None:
    settings = Settings.of({"methods": ["stun"], "stun_servers": [str(endpoint_of(peer.getsockname()))]})
    with PublicSocket(settings=settings, binding_timeout_s=0.05) as sock:
        sock.bind(("127.0.0.1", 0))
        with pytest.raises(BindingError, match=r"after 0.05 s.*binding_timeout_s"):
            _ = sock.public


def test_words_go_before_settings_and_must_be_known(server: StunServer) -> None:
    with PublicSocket(settings=NO_WAY, methods=["stun"], stun_servers=["127.0.0.1"]) as sock:
        assert sock.fileno() >= 0
    with pytest.raises(DecodeError, match="did you mean methods"):
        PublicSocket(settings=NO_WAY, method=["stun"])  # type: ignore[call-arg] # that is the mistake


def test_readers_of_changes_get_the_first_binding_and_the_end(server: StunServer) -> None:
    with PublicSocket(settings=settings_for(server)) as sock:
        early, other = sock.changes(), sock.changes()
        sock.bind(("127.0.0.1", 0))
        first = in_time(lambda: next(early))
        assert (first.kind, first.previous) == (ChangeKind.ACQUIRED, None)
        assert in_time(lambda: next(other)) == first
        late = sock.changes()
        assert woken_by(lambda: list(late), sock.close) == [[]]
        assert in_time(lambda: list(early)) == []


def test_on_change_is_called_in_a_thread_where_it_can_wait_and_fail(
    server: StunServer, peer: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[tuple[BindingChange, bytes]] = []

    def ask(change: BindingChange) -> None:
        sock.sendto(b"REGISTER", peer.getsockname())
        told.append((change, sock.recv(16)))
        raise LookupError("the program's own fault")

    with PublicSocket(settings=settings_for(server)) as sock:
        sock.on_change = ask
        assert sock.on_change == ask
        sock.bind(("127.0.0.1", 0))
        address = peer.recvfrom(16)[1]
        peer.sendto(b"200 OK", address)
        assert eventually(lambda: "the program's own fault" in caplog.text)
    (change, answer), *more = told
    assert (change.kind, answer, more) == (ChangeKind.ACQUIRED, b"200 OK", [])


def test_the_socket_can_be_closed_from_on_change(server: StunServer) -> None:
    is_closed = threading.Event()

    def close(_change: BindingChange) -> None:
        sock.close()
        is_closed.set()

    with PublicSocket(settings=settings_for(server)) as sock:
        sock.on_change = close
        sock.bind(("127.0.0.1", 0))
        assert is_closed.wait(DEADLINE_S)
        assert sock.fileno() == -1


def test_further_flows_are_kept_open_whenever_that_was_said(server: StunServer) -> None:
    with (
        plain_socket() as early,
        plain_socket() as late,
        PublicSocket(settings=settings_for(server, keepalive_interval=1)) as sock,
    ):
        sock.keep_open(endpoint_of(early.getsockname()))
        sock.bind(("127.0.0.1", 0))
        for _ in range(2):
            assert early.recvfrom(16) == (b"\r\n\r\n", sock.getsockname())
        sock.let_go(endpoint_of(early.getsockname()))
        sock.keep_open(endpoint_of(late.getsockname()), KeepaliveKind.EMPTY)
        assert late.recvfrom(16) == (b"", sock.getsockname())
        early.setblocking(False)
        for _ in range(2):  # what was under way
            late.recvfrom(16)
        while True:
            try:
                early.recv(16)
            except BlockingIOError:
                break
        late.recvfrom(16)
        with pytest.raises(BlockingIOError):
            early.recv(16)
