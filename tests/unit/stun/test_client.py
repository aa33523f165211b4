"""The client against fake servers on loopback, over UDP, TCP and TLS."""

from __future__ import annotations

import asyncio
import errno
import socket
import sys
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from ipaddress import ip_address
from typing import Any, TypeVar

import pytest

from nattools.endpoint import Endpoint
from nattools.errors import (
    AuthenticationError,
    DecodeError,
    EncodeError,
    NoResponseError,
    RedirectError,
    ResolveError,
    ResponseError,
    TransportError,
)
from nattools.stun.attributes import MESSAGE_INTEGRITY, MESSAGE_INTEGRITY_SHA256, USERHASH
from nattools.stun.authentication import LongTerm, ShortTerm
from nattools.stun.client import StunClient
from nattools.stun.message import Message, MessageClass, Method
from nattools.stun.transaction import Timing
from nattools.stun.uri import Transport
from tests.fakes.dns_server import stub_dns
from tests.fakes.stun_server import (
    Behaviour,
    FakeServer,
    LongTermServer,
    friendly,
    garbage_first,
    mute,
    redirecting,
    refusing,
    serving,
    serving_stream,
    short_term_server,
    success,
    without,
)

T = TypeVar("T")

SOON = Timing(rto_s=0.01, rc=2, rm=2, ti_s=0.05)
ALICE = LongTerm("alice", "open sesame")
USERS = {"alice": "open sesame"}

BOTH = pytest.mark.parametrize("transport", [Transport.UDP, Transport.TCP])


def run(coroutine: Coroutine[object, object, T]) -> T:
    """Run to the end, and see that nothing is left behind."""

    async def checked() -> T:
        try:
            async with asyncio.timeout(20):
                return await coroutine
        finally:
            assert asyncio.all_tasks() == {asyncio.current_task()}

    return asyncio.run(checked())


@asynccontextmanager
async def fake(
    transport: Transport, behaviour: Behaviour, *, host: str = "127.0.0.1"
) -> AsyncIterator[FakeServer]:
    if transport is Transport.UDP:
        async with serving(behaviour, host=host) as server:
            yield server
    else:
        async with serving_stream(behaviour, host=host) as server:
            yield server


class TestBinding:
    @BOTH
    @pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
    def test_it_tells_both_ends(self, transport: Transport, host: str) -> None:
        async def main() -> None:
            async with (
                fake(transport, friendly, host=host) as server,
                StunClient.open(server.endpoint, transport=transport) as client,
            ):
                result = await client.binding()
            assert result.server == server.endpoint
            assert result.mapped == result.local
            assert str(result.local.ip) == host
            assert result.transmissions == 1
            assert result.rtt_s > 0
            assert result.response.message_class is MessageClass.SUCCESS

        run(main())

    @pytest.mark.parametrize("form", ["stun:127.0.0.1:{}", "127.0.0.1:{}", "STUN:127.0.0.1:{}"])
    def test_the_server_may_be_written_in_several_ways(self, form: str) -> None:
        async def main() -> None:
            async with (
                serving(friendly) as server,
                StunClient.open(form.format(server.endpoint.port)) as client,
            ):
                assert (await client.binding()).server == server.endpoint

        run(main())

    def test_noise_and_duplicates_do_not_matter(self) -> None:
        async def main() -> None:
            async with serving(garbage_first(friendly)) as server, StunClient.open(server.endpoint) as client:
                first, second = await client.binding(), await client.binding()
                assert first.mapped == second.mapped == first.local

        run(main())

    def test_the_classic_dialect_is_spoken_on_demand(self) -> None:
        async def main() -> None:
            async with (
                serving(friendly) as server,
                StunClient.open(server.endpoint, classic=True) as client,
            ):
                result = await client.binding()
                assert result.response.is_classic
                assert result.mapped == result.local

        run(main())

    def test_the_local_end_can_be_chosen(self) -> None:
        async def main() -> None:
            async with serving(friendly) as server:
                async with StunClient.open(server.endpoint, local_address=ip_address("127.0.0.2")) as client:
                    result = await client.binding()
                assert str(result.mapped.ip) == "127.0.0.2"
                port = result.mapped.port
                async with StunClient.open(server.endpoint, local_port=port) as client:
                    assert (await client.binding()).mapped == Endpoint.of("127.0.0.1", port)

        run(main())

    def test_an_answer_without_mapped_address_is_a_decode_error(self) -> None:
        async def main() -> None:
            async with (
                serving(without(friendly, 0x0020)) as server,
                StunClient.open(server.endpoint) as client,
            ):
                await client.binding()

        with pytest.raises(DecodeError, match="without any mapped address"):
            run(main())


class TestFailures:
    @BOTH
    def test_silence_is_no_response(self, transport: Transport) -> None:
        async def main() -> None:
            async with (
                fake(transport, mute) as server,
                StunClient.open(server.endpoint, transport=transport, timing=SOON) as client,
            ):
                with pytest.raises(NoResponseError, match="BINDING request to 127"):
                    await client.binding()
                assert len(server.requests) == (2 if transport is Transport.UDP else 1)

        run(main())

    def test_an_answer_from_another_port_is_no_answer(self) -> None:
        async def main() -> None:
            async with serving(mute) as server, serving(mute) as stranger:

                def answer_from_elsewhere(request: Message, source: Endpoint) -> list[Message]:
                    transport = stranger.transports[0]
                    transport.sendto(success(request, source).encode(), (str(source.ip), source.port))
                    return []

                server.behaviour = answer_from_elsewhere
                async with StunClient.open(server.endpoint, timing=SOON) as client:
                    with pytest.raises(NoResponseError, match=f"came from {stranger.endpoint}"):
                        await client.binding()

        run(main())

    @pytest.mark.skipif(sys.platform != "linux", reason="only Linux hands out ICMP errors")
    def test_a_closed_port_is_told_at_once(self) -> None:
        async def main() -> None:
            async with serving(mute) as server:
                closed = server.endpoint
            async with StunClient.open(closed) as client:
                with pytest.raises(TransportError, match="Connection refused"):
                    await client.binding()

        run(main())

    def test_a_refused_connection_is_a_transport_error(self) -> None:
        async def main() -> None:
            async with serving_stream(mute) as server:
                closed = server.endpoint
            async with StunClient.open(closed, transport="tcp"):
                pass

        with pytest.raises(TransportError, match="Connection refused"):
            run(main())

    @BOTH
    def test_an_error_response_is_a_response_error(self, transport: Transport) -> None:
        async def main() -> None:
            async with (
                fake(transport, refusing(500)) as server,
                StunClient.open(server.endpoint, transport=transport) as client,
            ):
                await client.request(Method.BINDING)

        with pytest.raises(ResponseError, match="error 500 Server Error"):
            run(main())

    @pytest.mark.parametrize(
        ("server", "options", "error"),
        [
            ("stun://host", {}, DecodeError),
            ("stuns:host", {"transport": "udp"}, DecodeError),
            ("127.0.0.1", {"classic": True, "transport": "tcp"}, EncodeError),
            ("127.0.0.1", {"classic": True, "credentials": ALICE}, EncodeError),
            ("127.0.0.1", {"family": 6}, ResolveError),
            ("127.0.0.1", {"local_address": ip_address("::1")}, ResolveError),
        ],
    )
    def test_what_cannot_be_is_refused_at_once(
        self, server: str, options: dict[str, object], error: type[Exception]
    ) -> None:
        async def main() -> None:
            async with StunClient.open(server, **options):  # type: ignore[arg-type]  # of several types
                pass

        with pytest.raises(error):
            run(main())


class TestSeveralAddresses:
    @asynccontextmanager
    async def named(self, *ports: int) -> AsyncIterator[Endpoint]:
        """A name server for `stun.test`, whose service records list `ports` in this order."""
        records = "host.test. 60 IN A 127.0.0.1\n" + "".join(
            f"_stun._{protocol}.stun.test. 60 IN SRV {priority} 0 {port} host.test.\n"
            for priority, port in enumerate(ports)
            for protocol in ("udp", "tcp")
        )
        async with stub_dns(records) as (stub, _):
            yield stub

    @BOTH
    def test_a_name_is_found_by_its_service_records(self, transport: Transport) -> None:
        async def main() -> None:
            async with (
                fake(transport, friendly) as server,
                self.named(server.endpoint.port) as dns,
                StunClient.open("stun:stun.test", transport=transport, nameservers=[dns]) as client,
            ):
                assert (await client.binding()).server == server.endpoint

        run(main())

    @BOTH
    def test_the_next_is_asked_when_one_is_closed(self, transport: Transport) -> None:
        async def main() -> None:
            async with fake(transport, friendly) as gone:
                pass
            async with (
                fake(transport, friendly) as server,
                self.named(gone.endpoint.port, server.endpoint.port) as dns,
                StunClient.open("stun:stun.test", transport=transport, nameservers=[dns]) as client,
            ):
                assert (await client.binding()).server == server.endpoint

        run(main())

    def test_the_next_is_asked_beside_a_silent_one_and_then_kept(self) -> None:
        async def main() -> None:
            async with (
                serving(mute) as silent,
                serving(friendly) as server,
                self.named(silent.endpoint.port, server.endpoint.port) as dns,
                StunClient.open("stun:stun.test", nameservers=[dns]) as client,
            ):
                assert (await client.binding()).server == server.endpoint
                asked = len(silent.requests)
                assert (await client.binding()).server == server.endpoint
                assert len(silent.requests) == asked

        run(main())

    def test_on_a_machine_without_ipv6_the_ipv4_address_is_used(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class SocketOfOldTimes(socket.socket):
            def __init__(self, family: int = -1, *arguments: Any, **keywords: Any) -> None:
                if family == socket.AF_INET6:
                    raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
                super().__init__(family, *arguments, **keywords)

        async def main() -> None:
            async with (
                serving(friendly) as server,
                stub_dns("both.test. 60 IN A 127.0.0.1\nboth.test. 60 IN AAAA ::1") as (dns, _),
                StunClient.open(f"both.test:{server.endpoint.port}", nameservers=[dns]) as client,
            ):
                assert (await client.binding()).server == server.endpoint

        monkeypatch.setattr(socket, "socket", SocketOfOldTimes)
        run(main())

    def test_an_error_response_is_the_last_word(self) -> None:
        async def main() -> None:
            async with (
                serving(refusing(403)) as first,
                serving(friendly) as second,
                self.named(first.endpoint.port, second.endpoint.port) as dns,
                StunClient.open("stun:stun.test", nameservers=[dns]) as client,
            ):
                await client.binding()

        with pytest.raises(ResponseError, match="403"):
            run(main())

    def test_when_all_are_silent_the_error_names_all(self) -> None:
        async def main() -> None:
            async with (
                serving(mute) as first,
                serving(mute) as second,
                self.named(first.endpoint.port, second.endpoint.port) as dns,
                StunClient.open("stun:stun.test", nameservers=[dns], timing=SOON) as client,
            ):
                with pytest.raises(NoResponseError) as caught:
                    await client.binding()
                assert str(first.endpoint) in str(caught.value)
                assert str(second.endpoint) in str(caught.value)

        run(main())


class TestCredentials:
    @BOTH
    def test_a_challenge_is_answered_once_and_remembered(self, transport: Transport) -> None:
        async def main() -> None:
            async with (
                fake(transport, LongTermServer(USERS, anonymity=True)) as server,
                StunClient.open(server.endpoint, transport=transport, credentials=ALICE) as client,
            ):
                for _ in range(3):
                    result = await client.binding()
                    assert result.mapped == result.local
                sealed = [request.has(MESSAGE_INTEGRITY_SHA256) for request in server.requests]
                assert sealed == [False, True, True, True]
                assert server.requests[-1].has(USERHASH)

        run(main())

    def test_stale_nonces_are_replaced(self) -> None:
        async def main() -> None:
            async with (
                serving(LongTermServer(USERS, requests_per_nonce=2)) as server,
                StunClient.open(server.endpoint, credentials=ALICE) as client,
            ):
                for _ in range(5):
                    await client.binding()

        run(main())

    def test_requests_side_by_side_are_challenged_side_by_side(self) -> None:
        async def main() -> None:
            async with (
                serving(LongTermServer(USERS)) as server,
                StunClient.open(server.endpoint, credentials=ALICE) as client,
            ):
                results = await asyncio.gather(*(client.binding() for _ in range(8)))
                assert len({result.mapped for result in results}) == 1

        run(main())

    @BOTH
    def test_a_wrong_password_is_an_authentication_error(self, transport: Transport) -> None:
        async def main() -> None:
            async with (
                fake(transport, LongTermServer(USERS)) as server,
                StunClient.open(
                    server.endpoint,
                    transport=transport,
                    credentials=LongTerm("alice", "guess"),
                ) as client,
            ):
                await client.binding()

        with pytest.raises(AuthenticationError, match="refused for realm"):
            run(main())

    def test_short_term_credentials_seal_requests_and_indications(self) -> None:
        async def main() -> None:
            async with (
                serving(short_term_server("secret", sha256=False)) as server,
                StunClient.open(server.endpoint, credentials=ShortTerm("u", "secret")) as client,
            ):
                await client.indication(Method.BINDING)
                await client.binding()
                await client.indication(Method.BINDING)
                await client.binding()
                first, _, second, _ = server.requests
                assert first.message_class is second.message_class is MessageClass.INDICATION
                assert first.has(MESSAGE_INTEGRITY_SHA256)
                assert second.has(MESSAGE_INTEGRITY)
                assert not second.has(MESSAGE_INTEGRITY_SHA256)

        run(main())

    def test_nothing_secret_is_logged(self, caplog: pytest.LogCaptureFixture) -> None:
        async def main() -> None:
            async with (
                serving(LongTermServer(USERS)) as second,
                serving(redirecting(second.endpoint)) as first,
                StunClient.open(first.endpoint, credentials=ALICE) as client,
            ):
                await client.binding()

        caplog.set_level(0)
        run(main())
        assert "sends the request to" in caplog.text
        assert ALICE.password not in caplog.text


class TestAlternateServer:
    @BOTH
    def test_the_client_follows_and_stays(self, transport: Transport) -> None:
        async def main() -> None:
            async with (
                fake(transport, friendly) as second,
                fake(transport, redirecting(second.endpoint)) as first,
                StunClient.open(first.endpoint, transport=transport) as client,
            ):
                for _ in range(2):
                    assert (await client.binding()).server == second.endpoint
                assert len(first.requests) == 1

        run(main())

    def test_the_client_changes_the_address_family_if_it_must(self) -> None:
        async def main() -> None:
            async with (
                serving(friendly, host="::1") as second,
                serving(redirecting(second.endpoint)) as first,
                StunClient.open(first.endpoint) as client,
            ):
                assert (await client.binding()).mapped.is_ipv6

        run(main())

    @BOTH
    def test_a_circle_is_a_redirect_error(self, transport: Transport) -> None:
        async def main() -> None:
            async with fake(transport, mute) as second, fake(transport, mute) as first:
                first.behaviour = redirecting(second.endpoint)
                second.behaviour = redirecting(first.endpoint)
                async with StunClient.open(first.endpoint, transport=transport) as client:
                    await client.binding()

        with pytest.raises(RedirectError, match="already"):
            run(main())
