"""The client's connections on loopback: TCP and TLS, and what cancelling leaves behind."""

from __future__ import annotations

import asyncio
import gc
import ssl

import pytest
import trustme

from nattools.endpoint import Endpoint
from nattools.errors import (
    TransportError,
)
from nattools.stun.attributes import PADDING
from nattools.stun.client import StunClient, tcp_round_trip
from nattools.stun.message import Message, Method
from nattools.stun.uri import Transport
from tests.fakes.dns_server import stub_dns
from tests.fakes.stun_server import (
    Behaviour,
    friendly,
    mute,
    redirecting,
    refusing,
    serving_stream,
    success,
)
from tests.unit.stun.test_client import BOTH, fake, run


class TestConnections:
    def test_answers_in_another_order_find_their_requests(self) -> None:
        held: list[tuple[Message, Endpoint]] = []

        def last_first(request: Message, source: Endpoint) -> list[Message]:
            held.append((request, source))
            if len(held) < 4:
                return []
            return [success(*item, *item[0].attributes[1:]) for item in reversed(held)]

        async def main() -> None:
            async with (
                serving_stream(last_first) as server,
                StunClient.open(server.endpoint, transport="tcp") as client,
            ):
                texts = [b"a", b"b", b"c", b"d"]
                responses = await asyncio.gather(
                    *(client.request(Method.BINDING, PADDING.of(text)) for text in texts)
                )
                assert [response.get(PADDING) for response in responses] == texts
                assert len(server.connections) == 1

        run(main())

    def test_the_end_of_the_connection_ends_the_requests_on_it(self) -> None:
        async def main() -> None:
            async with (
                serving_stream(mute) as server,
                StunClient.open(server.endpoint, transport="tcp") as client,
            ):

                def hang_up(request: Message, _source: Endpoint) -> list[Message]:
                    if len(server.requests) == 2:
                        server.connections[0].close()
                    return []

                server.behaviour = hang_up
                outcomes = await asyncio.gather(client.binding(), client.binding(), return_exceptions=True)
                for outcome in outcomes:
                    assert isinstance(outcome, TransportError)
                    assert "closed the connection" in str(outcome)

        run(main())

    def test_a_lost_connection_is_opened_anew_for_the_next_request(self) -> None:
        async def main() -> None:
            async with (
                serving_stream(friendly) as server,
                StunClient.open(server.endpoint, transport="tcp") as client,
            ):
                first = await client.binding()
                server.connections[0].abort()
                while len(server.connections) == 1:
                    try:
                        second = await client.binding()
                    except TransportError:
                        continue
                assert second.mapped == second.local != first.local

        run(main())

    def test_what_is_no_stun_ends_the_connection(self) -> None:
        async def main() -> None:
            async with (
                serving_stream(lambda _request, _source: [b"HTTP/1.1 400 Bad Request\r\n\r\n"]) as server,
                StunClient.open(server.endpoint, transport="tcp") as client,
            ):
                await client.binding()

        with pytest.raises(TransportError, match="nobody understands"):
            run(main())


class TestTls:
    authority = trustme.CA()

    def context_for(self, name: str) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.authority.issue_cert(name).configure_cert(context)
        return context

    @property
    def trusting(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        return context

    def test_a_stuns_uri_means_tls_and_its_host_is_in_the_certificate(self) -> None:
        async def main() -> None:
            async with (
                serving_stream(friendly, tls=self.context_for("stun.test")) as server,
                stub_dns("stun.test. 60 IN A 127.0.0.1") as (dns, _),
                StunClient.open(
                    f"stuns:stun.test:{server.endpoint.port}", nameservers=[dns], ssl_context=self.trusting
                ) as client,
            ):
                result = await client.binding()
                assert result.mapped == result.local

        run(main())

    @pytest.mark.parametrize("domain", ["b.test", None])
    def test_an_alternate_server_shows_the_alternate_domain(self, domain: str | None) -> None:
        async def main() -> None:
            async with (
                serving_stream(friendly, tls=self.context_for(domain or "127.0.0.1")) as second,
                serving_stream(
                    redirecting(second.endpoint, domain=domain), tls=self.context_for("127.0.0.1")
                ) as first,
                StunClient.open(first.endpoint, transport="tls", ssl_context=self.trusting) as client,
            ):
                for _ in range(2):
                    assert (await client.binding()).server == second.endpoint

        run(main())


class TestCancelling:
    @BOTH
    def test_a_cancelled_request_leaves_nothing_behind(self, transport: Transport) -> None:
        async def main() -> None:
            arrived = asyncio.Event()

            def wait_for_three(_request: Message, _source: Endpoint) -> list[Message]:
                if len(server.requests) == 3:
                    arrived.set()
                return []

            async with (
                fake(transport, wait_for_three) as server,
                StunClient.open(server.endpoint, transport=transport) as client,
            ):
                requests = [asyncio.ensure_future(client.binding()) for _ in range(3)]
                await arrived.wait()
                for request in requests:
                    request.cancel()
                await asyncio.gather(*requests, return_exceptions=True)
                server.behaviour = friendly
                await client.binding()

        run(main())

    @BOTH
    def test_cancelling_at_any_moment_is_harmless(self, transport: Transport) -> None:
        async def main(rounds: int) -> None:
            async with fake(transport, friendly) as server:

                async def ask() -> None:
                    async with StunClient.open(server.endpoint, transport=transport) as client:
                        await client.binding()

                asking = asyncio.ensure_future(ask())
                for _ in range(rounds):
                    await asyncio.sleep(0)
                asking.cancel()
                await asyncio.gather(asking, return_exceptions=True)
                await ask()  # once this one is accepted, so is the one before

        for rounds in range(25):
            run(main(rounds))
        gc.collect()  # which would find what was left open


class TestTcpRoundTrip:
    def test_it_is_the_time_of_the_request(self) -> None:
        async def main() -> float | None:
            async with serving_stream(friendly) as server:
                rtt_s = await tcp_round_trip(server.endpoint, timeout_s=10)
                assert len(server.requests) == 1
                return rtt_s

        rtt_s = run(main())
        assert rtt_s is not None
        assert rtt_s > 0

    @pytest.mark.parametrize(
        "behaviour",
        [mute, refusing(500), refusing(401), lambda _request, _source: [b"noise!!!" * 4]],
        ids=["silence", "an error", "a challenge", "noise"],
    )
    def test_no_answer_is_none(self, behaviour: Behaviour) -> None:
        async def main() -> float | None:
            async with serving_stream(behaviour) as server:
                return await tcp_round_trip(server.endpoint, timeout_s=0.1)

        assert run(main()) is None

    def test_nobody_there_is_none(self) -> None:
        async def main() -> float | None:
            async with serving_stream(mute) as server:
                closed = server.endpoint
            return await tcp_round_trip(closed, timeout_s=10)

        assert run(main()) is None

    def test_the_time_of_another_server_is_none(self) -> None:
        async def main() -> float | None:
            async with (
                serving_stream(friendly) as second,
                serving_stream(redirecting(second.endpoint)) as first,
            ):
                return await tcp_round_trip(first.endpoint, timeout_s=10)

        assert run(main()) is None
