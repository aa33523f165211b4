"""The client against servers that other people wrote: coturn, and vovida's stund in the classic dialect.

Each server runs in a network namespace of its own that has nothing but loopback, and the client goes there.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import shutil
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trustme

from nattools.endpoint import Endpoint
from nattools.errors import AuthenticationError, ResponseError, TransportError
from nattools.stun.attributes import (
    CHANGED_ADDRESS,
    REQUESTED_TRANSPORT,
    SOFTWARE,
    XOR_RELAYED_ADDRESS,
)
from nattools.stun.authentication import LongTerm, Protection, answer_challenge
from nattools.stun.client import StunClient, tcp_round_trip
from nattools.stun.message import Method
from nattools.stun.transaction import Timing
from nattools.stun.uri import Transport

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="needs root on Linux"),
    *(
        pytest.mark.skipif(shutil.which(program) is None, reason=f"needs the program {program}")
        for program in ("unshare", "ip")
    ),
]

T = TypeVar("T")

_CLONE_NEWNET = 0x40000000
_UDP = 17
PORT, TLS_PORT = 3478, 5349
SERVER = Endpoint.of("127.0.0.1", PORT)
SECOND = Endpoint.of("127.0.0.1", 4478)
ALICE = LongTerm("alice", "open_sesame")
TRANSPORTS = pytest.mark.parametrize("transport", list(Transport))


class Peer:
    """A running server, and a way to its network."""

    def __init__(self, pid: int) -> None:
        self._network = f"/proc/{pid}/ns/net"

    def run(self, main: Callable[[], Coroutine[object, object, T]]) -> T:
        """Run `main` in the server's network: in a thread, because a thread can go there alone."""
        outcome: list[T | BaseException] = []

        def work() -> None:
            try:
                with Path(self._network).open("rb") as network:
                    if ctypes.CDLL(None, use_errno=True).setns(network.fileno(), _CLONE_NEWNET):
                        raise OSError(ctypes.get_errno(), "setns")
                outcome.append(asyncio.run(asyncio.wait_for(main(), 20)))
            except BaseException as error:  # noqa: BLE001  it is raised again in the main thread
                outcome.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        (result,) = outcome
        if isinstance(result, BaseException):
            raise result
        return result

    def wait_until_ready(self, server: Endpoint, *, classic: bool) -> None:
        """Ask until it answers, whatever it answers."""

        async def main() -> None:
            while True:
                try:
                    async with StunClient.open(server, timing=Timing(rc=1, rm=1), classic=classic) as client:
                        await client.binding()
                except ResponseError:
                    return
                except TransportError:
                    await asyncio.sleep(0.05)
                else:
                    return

        self.run(main)


@contextmanager
def serving(
    *commands: list[str], at: tuple[Endpoint, ...] = (SERVER,), classic: bool = False
) -> Iterator[Peer]:
    """Run servers in one new network and wait until they answer `at` these. Skips where that cannot be."""
    for program, *_ in commands:
        if shutil.which(program) is None:
            pytest.skip(f"needs the program {program}")
    script = """
        ip link set lo up && echo ready
        for command in "$@"; do $command >/dev/null 2>&1 & done
        cat
        kill $(jobs -p)
        wait
    """
    with subprocess.Popen(
        ["unshare", "--net", "bash", "-c", script, "bash", *map(" ".join, commands)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as shell:
        assert shell.stdout is not None
        assert shell.stdin is not None
        try:
            if shell.stdout.readline() != "ready\n":
                pytest.skip("needs the right to make a network namespace")
            peer = Peer(shell.pid)
            for server in at:
                peer.wait_until_ready(server, classic=classic)
            yield peer
        finally:
            shell.stdin.close()  # which ends the script, and it the servers


def coturn(folder: Path, *options: str, port: int = PORT) -> list[str]:
    """How to start turnserver on the loopback addresses without touching the system's files."""
    return [
        "turnserver",
        "-n",
        "--no-cli",
        "--no-dtls",
        "--log-file=stdout",
        f"--pidfile={folder}/pid-{port}",
        f"--userdb={folder}/db-{port}",
        "--listening-ip=127.0.0.1",
        "--listening-ip=::1",
        "--relay-ip=127.0.0.1",
        "--relay-threads=1",
        f"--listening-port={port}",
        f"--tls-listening-port={TLS_PORT if port == PORT else port + 1}",
        "--no-rfc5780",
        *options,
    ]


class Certificates:
    """An authority, its certificate for 127.0.0.1 in files for coturn, and a context that trusts it."""

    def __init__(self, folder: Path) -> None:
        self._authority = trustme.CA()
        issued = self._authority.issue_cert("127.0.0.1", "::1")
        issued.private_key_and_cert_chain_pem.write_to_path(str(folder / "server.pem"))
        self.options = [f"--cert={folder}/server.pem", f"--pkey={folder}/server.pem"]

    @property
    def trusting(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self._authority.configure_trust(context)
        return context


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("peers")


@pytest.fixture(scope="module")
def certificates(folder: Path) -> Certificates:
    return Certificates(folder)


@pytest.fixture(scope="module")
def open_coturn(folder: Path, certificates: Certificates) -> Iterator[Peer]:
    with serving(coturn(folder, "--stun-only", "--no-auth", *certificates.options)) as peer:
        yield peer


@pytest.fixture(scope="module")
def closed_coturn(folder: Path, certificates: Certificates) -> Iterator[Peer]:
    """Wants credentials, and a new nonce every second; sends TURN users to a second one."""
    secured = ["--lt-cred-mech", "--user=alice:open_sesame", "--realm=example.org", "--secure-stun"]
    with serving(
        coturn(folder, *secured, "--allow-loopback-peers", "--no-tls", port=SECOND.port),
        coturn(folder, *secured, "--stale-nonce=1", f"--alternate-server={SECOND}", *certificates.options),
        at=(SERVER, SECOND),
    ) as peer:
        yield peer


@pytest.fixture(scope="module")
def vovida() -> Iterator[Peer]:
    command = ["stund", "-h", "127.0.0.1", "-a", "127.0.0.2", "-p", str(PORT), "-o", str(PORT + 1)]
    with serving(command, classic=True) as peer:
        yield peer


def server_at(host: str, transport: Transport) -> Endpoint:
    return Endpoint(ip_address(host), TLS_PORT if transport is Transport.TLS else PORT)


class TestCoturn:
    @TRANSPORTS
    @pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
    def test_a_binding(
        self, open_coturn: Peer, certificates: Certificates, transport: Transport, host: str
    ) -> None:
        server = server_at(host, transport)

        async def main() -> None:
            async with StunClient.open(
                server, transport=transport, ssl_context=certificates.trusting
            ) as client:
                for _ in range(3):
                    result = await client.binding()
                    assert result.mapped == result.local
                    assert result.server == server
                    assert "Coturn" in (result.response.get(SOFTWARE) or "")

        open_coturn.run(main)

    @TRANSPORTS
    def test_many_requests_side_by_side(
        self, open_coturn: Peer, certificates: Certificates, transport: Transport
    ) -> None:
        async def main() -> None:
            async with StunClient.open(
                server_at("127.0.0.1", transport), transport=transport, ssl_context=certificates.trusting
            ) as client:
                results = await asyncio.gather(*(client.binding() for _ in range(10)))
                assert {result.mapped for result in results} == {results[0].local}

        open_coturn.run(main)

    def test_a_certificate_of_an_unknown_authority_is_refused(self, open_coturn: Peer) -> None:
        async def main() -> None:
            async with StunClient.open(server_at("127.0.0.1", Transport.TLS), transport="tls"):
                pass

        with pytest.raises(TransportError, match="certificate"):
            open_coturn.run(main)

    def test_the_round_trip_over_tcp(self, open_coturn: Peer) -> None:
        async def main() -> None:
            assert (await tcp_round_trip(SERVER, timeout_s=5) or 0) > 0
            assert await tcp_round_trip(SERVER.with_port(9), timeout_s=5) is None

        open_coturn.run(main)

    def test_the_classic_dialect(self, open_coturn: Peer) -> None:
        async def main() -> None:
            async with StunClient.open(SERVER, classic=True) as client:
                result = await client.binding()
                assert result.response.is_classic
                assert result.mapped == result.local

        open_coturn.run(main)


class TestCoturnWithCredentials:
    def test_the_right_ones_are_accepted_even_when_the_nonce_has_become_stale(
        self, closed_coturn: Peer, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        codes: list[int] = []

        def remember(*challenge: Any) -> Protection:
            codes.append(challenge[2].code)
            return answer_challenge(*challenge)

        monkeypatch.setattr("nattools.stun.request.answer_challenge", remember)

        async def ask_before_and_after_the_nonce_is_stale(transport: Transport) -> None:
            async with StunClient.open(
                server_at("127.0.0.1", transport),
                transport=transport,
                ssl_context=certificates.trusting,
                credentials=ALICE,
            ) as client:
                for pause_s in (0, 0, 2.1):
                    await asyncio.sleep(pause_s)
                    result = await client.binding()
                    assert result.mapped == result.local

        async def main() -> None:
            await asyncio.gather(*map(ask_before_and_after_the_nonce_is_stale, Transport))

        closed_coturn.run(main)
        assert codes == [401] * 3 + [438] * 3

    @TRANSPORTS
    @pytest.mark.parametrize(
        ("credentials", "hint"),
        [
            (None, "user name and password"),
            (LongTerm("alice", "guess"), "refused for realm 'example.org'"),
            (LongTerm("mallory", "open_sesame"), "refused for realm 'example.org'"),
        ],
    )
    def test_wrong_and_missing_ones_are_an_authentication_error(
        self,
        closed_coturn: Peer,
        certificates: Certificates,
        transport: Transport,
        credentials: LongTerm | None,
        hint: str,
    ) -> None:
        async def main() -> None:
            async with StunClient.open(
                server_at("127.0.0.1", transport),
                transport=transport,
                ssl_context=certificates.trusting,
                credentials=credentials,
            ) as client:
                await client.binding()

        with pytest.raises(AuthenticationError, match=hint):
            closed_coturn.run(main)

    @pytest.mark.parametrize("transport", [Transport.UDP, Transport.TCP])
    def test_an_allocation_is_redirected_and_made_at_the_other_server(
        self, closed_coturn: Peer, transport: Transport
    ) -> None:
        async def main() -> None:
            async with StunClient.open(SERVER, transport=transport, credentials=ALICE) as client:
                response = await client.request(Method.ALLOCATE, REQUESTED_TRANSPORT.of(_UDP))
                assert response.get(XOR_RELAYED_ADDRESS) is not None
                assert (await client.binding()).server == SECOND

        closed_coturn.run(main)


class TestVovida:
    """The server of 2003, which knows neither cookie nor padding."""

    @pytest.mark.parametrize("classic", [True, False])
    def test_a_binding_in_both_dialects(self, vovida: Peer, classic: bool) -> None:
        async def main() -> None:
            async with StunClient.open(SERVER, classic=classic) as client:
                result = await client.binding()
                assert result.mapped == result.local
                assert result.response.get(CHANGED_ADDRESS) == Endpoint.of("127.0.0.2", PORT + 1)

        vovida.run(main)

    def test_nobody_there_is_told_at_once(self, vovida: Peer) -> None:
        async def main() -> None:
            async with StunClient.open(SERVER.with_port(9)) as client:
                await client.binding()

        with pytest.raises(TransportError, match="Connection refused"):
            vovida.run(main)
