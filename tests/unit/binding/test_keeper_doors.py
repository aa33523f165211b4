"""Bindings on real sockets: three ways to bring one, whose datagrams are whose, what is left at the end."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from ipaddress import ip_address
from pathlib import Path

import pytest

from nattools.binding.client import BoundSocket, LiveBinding
from nattools.binding.keeper import Keeper, bind_socket, bind_transport, open_binding, open_pair
from nattools.binding.model import ChangeKind, Method
from nattools.binding.settings import Settings
from nattools.endpoint import Endpoint
from nattools.errors import BindingError, DecodeError, LocalAddressError, TransportError
from nattools.net.udp import UdpSocket
from nattools.stun.message import Message, MessageClass
from nattools.stun.message import Method as StunMethod
from tests.unit.binding.on_loopback import address, asking, bound, endpoint, eventually, run, stun_server

RTP = bytes.fromhex("8000 0001 0000 00a0 dead beef") + bytes(160)
FOREIGN = [
    b"OPTIONS sip:bob@example.org SIP/2.0\r\n\r\n",
    RTP,
    b"",
    Message(StunMethod.BINDING, MessageClass.REQUEST, bytes(12)).encode(),
    Message(StunMethod.BINDING, MessageClass.SUCCESS, bytes(range(12))).encode(),
    b"\r\n\r\n",
    b"\x01\x01",
    b"end",
]

Read = Callable[[], Awaitable[tuple[bytes, Endpoint]]]
Door = Callable[[Settings], AbstractAsyncContextManager[tuple[LiveBinding, Read]]]


@asynccontextmanager
async def own(settings: Settings) -> AsyncIterator[tuple[LiveBinding, Read]]:
    async with open_binding("127.0.0.1:0", settings=settings) as binding:
        yield binding, binding.recvfrom


@asynccontextmanager
async def own_with_callback(settings: Settings) -> AsyncIterator[tuple[LiveBinding, Read]]:
    heard: asyncio.Queue[tuple[bytes, Endpoint]] = asyncio.Queue()

    def take(data: bytes, source: Endpoint) -> None:
        heard.put_nowait((data, source))

    async with open_binding("127.0.0.1:0", settings=settings, on_datagram=take) as binding:
        yield binding, heard.get


@asynccontextmanager
async def adopted(settings: Settings) -> AsyncIterator[tuple[LiveBinding, Read]]:
    with bound() as sock:
        async with bind_socket(sock, settings=settings) as binding:
            assert binding.local == endpoint(sock)
            yield binding, binding.recvfrom
        assert sock.fileno() >= 0


@asynccontextmanager
async def transport(settings: Settings) -> AsyncIterator[tuple[LiveBinding, Read]]:
    class Program(asyncio.DatagramProtocol):
        def __init__(self) -> None:
            self.heard: asyncio.Queue[tuple[bytes, Endpoint]] = asyncio.Queue()

        def datagram_received(self, data: bytes, source: tuple[str, int]) -> None:
            self.heard.put_nowait((data, Endpoint.of(*source)))

    loop = asyncio.get_running_loop()
    theirs, program = await loop.create_datagram_endpoint(Program, local_addr=("127.0.0.1", 0))
    try:
        async with bind_transport(theirs, settings=settings) as binding:
            with pytest.raises(TransportError, match="protocol"):
                await binding.recvfrom()
            yield binding, program.heard.get
        assert theirs.get_protocol() is program
        assert not theirs.is_closing()
    finally:
        theirs.close()


@asynccontextmanager
async def shared(settings: Settings) -> AsyncIterator[tuple[LiveBinding, Read]]:
    heard: asyncio.Queue[tuple[bytes, Endpoint]] = asyncio.Queue()
    lives: list[LiveBinding] = []

    def take(data: bytes, source: Endpoint) -> None:
        if not lives[0].eats(data, source):
            heard.put_nowait((data, source))

    def share(live: LiveBinding) -> BoundSocket:
        lives.append(live)
        return Lent(theirs)

    theirs = await UdpSocket.open(local_address=ip_address("127.0.0.1"), on_datagram=take)
    try:
        async with Keeper.open(settings) as keeper, keeper.bind_shared(share) as binding:
            yield binding, heard.get
            theirs.send(b"", binding.public)  # it is still open
    finally:
        theirs.close()


class Lent:
    """A socket that is somebody else's to close."""

    is_dual_stack = False

    def __init__(self, sock: UdpSocket) -> None:
        self.local, self.send = sock.local, sock.send

    def close(self) -> None:
        """Leave it open."""


every_door = pytest.mark.parametrize("door", [own, own_with_callback, adopted, transport, shared])


@every_door
def test_its_own_stun_is_eaten_and_everything_else_passes_untouched_in_order(door: Door) -> None:
    async def work() -> None:
        async with stun_server() as server, door(asking(server)) as (binding, read):
            assert binding.public == binding.local
            with bound() as peer:
                for data in FOREIGN:
                    binding.check()
                    peer.sendto(data, address(binding.public))
                assert [await read() for _ in FOREIGN] == [(data, endpoint(peer)) for data in FOREIGN]
                for data in FOREIGN:
                    binding.sendto(data, endpoint(peer))
                assert [peer.recvfrom(2000) for _ in FOREIGN] == [
                    (data, address(binding.public)) for data in FOREIGN
                ]

    run(work())


@every_door
def test_given_up_half_way_nothing_is_left(door: Door) -> None:
    async def work() -> None:
        with bound() as silent:
            silent.setblocking(False)
            loop = asyncio.get_running_loop()

            async def enter() -> None:
                async with door(asking(endpoint(silent))):
                    raise AssertionError("nobody has answered")

            entering = asyncio.create_task(enter())
            _, source = await loop.sock_recvfrom(silent, 2000)
            entering.cancel()
            await asyncio.wait([entering])
            assert entering.cancelled()
            if door is not adopted:
                await asyncio.sleep(0)
                with bound(*source):  # the port is free again
                    pass

    run(work())


@pytest.mark.parametrize("door", [own, own_with_callback])  # the others hear of no ICMP, and wait for 5 s
def test_without_any_answer_it_is_said_what_was_tried(door: Door) -> None:
    async def work() -> None:
        with bound() as nobody:
            server = endpoint(nobody)
        with pytest.raises(BindingError, match=str(server)) as info:
            async with door(asking(server)):
                raise AssertionError("nobody has answered")
        assert list(info.value.refusals) == ["open, stun"]

    run(work())


def test_a_server_that_goes_and_comes_back_is_lost_and_restored() -> None:
    async def work() -> None:
        async with AsyncExitStack() as exits:
            async with stun_server() as server:
                binding = await exits.enter_async_context(
                    open_binding("127.0.0.1:0", settings=asking(server))
                )
                changes = binding.changes()
            await asyncio.sleep(0)
            binding.check()
            lost = await anext(changes)
            assert (lost.kind, lost.binding) == (ChangeKind.LOST, None)
            with pytest.raises(BindingError, match=str(server)):
                _ = binding.public
            async with stun_server(port=server.port):
                restored = await anext(changes)
                assert restored.kind is ChangeKind.RESTORED
                assert binding.public == binding.local

    run(work())


def test_two_hundred_bindings_share_a_process() -> None:
    async def work() -> None:
        async with stun_server() as server, Keeper.open(asking(server)) as keeper, AsyncExitStack() as exits:
            bindings = await asyncio.gather(
                *(exits.enter_async_context(keeper.open_binding("127.0.0.1:0")) for _ in range(200))
            )
            assert len({binding.public for binding in bindings}) == 200
            tasks = asyncio.all_tasks()
            assert len(tasks) == 1
            for binding, after in zip(bindings, [*bindings[1:], bindings[0]], strict=True):
                binding.sendto(b"around", after.public)
            assert {await binding.recvfrom() for binding in bindings} == {
                (b"around", binding.public) for binding in bindings
            }

    run(work())


def test_closed_by_hand_or_with_its_keeper_it_is_closed_once() -> None:
    async def work() -> None:
        async with stun_server() as server, AsyncExitStack() as exits:
            async with Keeper.open(asking(server)) as keeper:
                first = await exits.enter_async_context(keeper.open_binding("127.0.0.1:0"))
                second = await exits.enter_async_context(keeper.open_binding("127.0.0.1:0"))
                first.close()
                first.close()
            for binding in (first, second):
                assert binding.snapshot is None
                assert [change async for change in binding.changes()] == []
            with pytest.raises(BindingError, match="keeper of bindings is closed"):
                async with keeper.open_binding("127.0.0.1:0"):
                    pass

    run(work())


def test_a_socket_at_no_particular_address_is_at_the_one_towards_the_server() -> None:
    async def work() -> None:
        async with stun_server() as server, open_binding("0.0.0.0", settings=asking(server)) as binding:
            assert str(binding.local.ip) == "127.0.0.1"
            assert binding.public == binding.local

    run(work())


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this system has no dual-stack sockets")
def test_a_socket_for_both_families_has_its_binding_in_ipv4() -> None:
    async def work() -> None:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock, bound("::1") as peer:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            sock.bind(("::", 0))
            async with stun_server() as server, bind_socket(sock, settings=asking(server)) as binding:
                assert str(binding.public) == f"127.0.0.1:{sock.getsockname()[1]}"
                peer.sendto(b"six", ("::1", sock.getsockname()[1]))
                assert await binding.recvfrom() == (b"six", endpoint(peer))

    run(work())


def test_flows_of_the_settings_are_kept_open_from_the_start() -> None:
    async def work() -> None:
        with bound() as proxy:
            proxy.setblocking(False)
            async with stun_server() as server:
                settings = asking(server).with_words(keepalive_to=[endpoint(proxy), "[::1]:5060"])
                async with open_binding("127.0.0.1:0", settings=settings) as binding:
                    data, source = await asyncio.get_running_loop().sock_recvfrom(proxy, 100)
                    assert (data, source) == (b"\r\n\r\n", address(binding.local))

    run(work())


def test_a_pair_has_an_even_port_and_the_next() -> None:
    async def work() -> None:
        async with stun_server() as server:
            async with open_pair("127.0.0.1", settings=asking(server)) as pair:
                assert pair.rtp.local.port % 2 == 0
                assert pair.rtcp.public.port == pair.rtp.public.port + 1
                assert pair.is_consecutive
                rtp = pair.rtp.local
            await asyncio.sleep(0)
            async with open_pair(rtp, settings=asking(server)) as pair:
                assert pair.rtp.local == rtp
            with pytest.raises(LocalAddressError, match="odd"):
                async with open_pair("127.0.0.1:9001", settings=asking(server)):
                    pass

    run(work())


def test_a_pair_of_which_one_port_is_taken_is_not_opened_by_half() -> None:
    async def work() -> None:
        async with stun_server() as server, AsyncExitStack() as exits:
            pair = await exits.enter_async_context(open_pair("127.0.0.1", settings=asking(server)))
            rtp = pair.rtp.local
            await exits.aclose()
            await asyncio.sleep(0)
            with bound("127.0.0.1", rtp.port + 1):
                with pytest.raises(LocalAddressError, match="in use"):
                    async with open_pair(rtp, settings=asking(server)):
                        pass
                await asyncio.sleep(0)
                with bound("127.0.0.1", rtp.port):
                    pass

    run(work())


def test_what_is_set_in_the_users_file_and_environment_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        async with stun_server() as server:
            file = tmp_path / "settings.toml"
            file.write_text(f'methods = ["open"]\nstun_servers = ["{server}"]\n')
            monkeypatch.setenv("NATTOOLS_SETTINGS", str(file))
            monkeypatch.setenv("NATTOOLS_KEEPALIVE_INTERVAL", "20")
            async with open_binding("127.0.0.1:0", side_by_side=False) as binding:
                assert binding.snapshot is not None
                assert (binding.snapshot.method, binding.snapshot.keepalive_s) == (Method.OPEN, 20)

    run(work())


def test_what_makes_no_sense_is_refused_before_anything_is_opened() -> None:
    async def work() -> None:
        with pytest.raises(DecodeError, match="stun: instead of stuns:"):
            async with open_binding("127.0.0.1:0", settings=asking(), stun_servers=["stuns:a.example"]):
                pass
        with pytest.raises(DecodeError, match="not an IP address"):
            async with open_binding("localhost:0", settings=asking()):
                pass
        with pytest.raises(BindingError, match="set static_host; vpn: set vpn_interface or") as info:
            async with open_binding("127.0.0.1:0", settings=asking(), methods=["static", "vpn"]):
                pass
        assert set(info.value.refusals) == {"static", "vpn"}
        with bound() as peer, bound() as sock:
            sock.connect(peer.getsockname())
            with pytest.raises(TransportError, match="connected"):
                async with bind_socket(sock, settings=asking()):
                    pass

    run(work())


def test_a_transport_that_the_program_closes_is_a_binding_lost() -> None:
    async def work() -> None:
        loop = asyncio.get_running_loop()
        theirs, _ = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, local_addr=("127.0.0.1", 0))
        async with stun_server() as server, bind_transport(theirs, settings=asking(server)) as binding:
            changes = binding.changes()
            theirs.close()
            assert (await anext(changes)).reason == "the transport was closed"
            with pytest.raises(BindingError, match="the transport was closed"):
                _ = binding.public

    run(work())


def test_a_port_that_is_taken_says_so() -> None:
    async def work() -> None:
        with bound() as sock, pytest.raises(LocalAddressError, match="in use"):
            async with open_binding(endpoint(sock), settings=asking()):
                pass

    run(work())


def test_looking_is_no_change_while_everything_is_as_it_was() -> None:
    async def work() -> None:
        async with stun_server() as server, open_binding("127.0.0.1:0", settings=asking(server)) as binding:
            changes = binding.changes()
            asked = asyncio.ensure_future(anext(changes))
            for _ in range(5):
                binding.check()
                await asyncio.sleep(0.02)
            await eventually(lambda: binding.snapshot is not None)
            assert not asked.done()
            asked.cancel()
            await asyncio.wait([asked])

    run(work())
