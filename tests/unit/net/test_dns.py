"""From names to addresses, against a stub DNS server on loopback; the system's resolver is never asked."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import time
from collections.abc import Collection

import pytest

from nattools.endpoint import Endpoint
from nattools.errors import LocalAddressError, NoResponseError, ResolveError, TransportError
from nattools.net import dns as door
from nattools.net.dns import Family, first_success, resolve
from tests.fakes.dns_server import stub_dns

ZONE = """
one.test. 60 IN A 192.0.2.1
both.test. 60 IN A 192.0.2.1
both.test. 60 IN AAAA 2001:db8::1
many.test. 60 IN A 192.0.2.1
many.test. 60 IN A 192.0.2.2
many.test. 60 IN AAAA 2001:db8::1
six.test. 60 IN AAAA 2001:db8::6
alias.test. 60 IN CNAME one.test.
text.test. 60 IN TXT "no address"
listed.test. 60 IN A 192.0.2.99
_stun._udp.listed.test. 60 IN SRV 20 0 3000 six.test.
_stun._udp.listed.test. 60 IN SRV 10 0 4000 both.test.
_stuns._tcp.listed.test. 60 IN SRV 1 1 443 one.test.
_stun._udp.none.test. 60 IN SRV 0 0 0 .
_stun._udp.broken.test. 60 IN SRV 0 0 3478 gone.test.
"""


def resolved(
    host: str,
    port: int | None = None,
    *,
    service: str = "_stun._udp",
    family: Family | None = None,
    deaf_to: Collection[str] = (),
    lifetime_s: float = 3.0,
) -> tuple[list[str], list[str]]:
    """The endpoints, and what the stub was asked."""

    async def run() -> tuple[list[str], list[str]]:
        async with stub_dns(ZONE, deaf_to=deaf_to) as (stub, asked):
            endpoints = await resolve(
                host,
                port,
                service=service,
                default_port=3478,
                family=family,
                nameservers=[stub],
                lifetime_s=lifetime_s,
            )
            return list(map(str, endpoints)), asked

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("host", "port", "family", "endpoints"),
    [
        ("one.test", None, None, ["192.0.2.1:3478"]),
        ("one.test", 5000, None, ["192.0.2.1:5000"]),
        ("one.test.", None, None, ["192.0.2.1:3478"]),
        ("ONE.test", None, None, ["192.0.2.1:3478"]),
        ("six.test", None, None, ["[2001:db8::6]:3478"]),
        ("both.test", 1, None, ["[2001:db8::1]:1", "192.0.2.1:1"]),
        ("both.test", 1, 4, ["192.0.2.1:1"]),
        ("both.test", 1, 6, ["[2001:db8::1]:1"]),
        ("listed.test", None, 6, ["[2001:db8::1]:4000", "[2001:db8::6]:3000"]),
        ("listed.test", None, 4, ["192.0.2.1:4000"]),
        ("listed.test", 3478, None, ["192.0.2.99:3478"]),
    ],
)
def test_a_name_has_all_its_addresses(
    host: str, port: int | None, family: Family | None, endpoints: list[str]
) -> None:
    assert resolved(host, port, family=family)[0] == endpoints


def test_the_families_take_turns() -> None:
    first, *others = resolved("many.test")[0]
    assert first == "[2001:db8::1]:3478"
    assert sorted(others) == ["192.0.2.1:3478", "192.0.2.2:3478"]


def test_the_service_record_of_the_transport_decides() -> None:
    assert resolved("listed.test", service="_stuns._tcp")[0] == ["192.0.2.1:443"]
    assert resolved("listed.test", service="_stun._tcp")[0] == ["192.0.2.99:3478"]


def test_a_given_port_makes_service_records_pointless() -> None:
    assert sorted(resolved("listed.test", 3478)[1]) == ["A listed.test", "AAAA listed.test"]


@pytest.mark.parametrize(
    ("host", "hint"),
    [
        ("gone.test", "gone.test: .*does not exist"),
        ("text.test", "text.test: .*does not contain an answer"),
        ("none.test", "no _stun._udp server"),
        ("broken.test", "no address for them"),
        ("a" * 64 + ".test", "Check the name"),
        ("a..test", "Check the name"),
    ],
)
def test_a_name_without_address_is_a_resolve_error_that_says_what_was_tried(host: str, hint: str) -> None:
    with pytest.raises(ResolveError, match=hint):
        resolved(host)


@pytest.mark.parametrize(
    ("host", "deaf_to", "endpoints"),
    [
        ("both.test", ["AAAA"], ["192.0.2.1:3478"]),
        ("both.test", ["A"], ["[2001:db8::1]:3478"]),
        ("one.test", ["SRV"], ["192.0.2.1:3478"]),
    ],
)
def test_a_server_deaf_to_some_questions_does_not_hide_the_other_answers(
    host: str, deaf_to: list[str], endpoints: list[str]
) -> None:
    assert resolved(host, deaf_to=deaf_to, lifetime_s=1.0)[0] == endpoints


def test_a_silent_server_ends_in_time() -> None:
    with pytest.raises(ResolveError, match=r"time was up after 0\.2 s"):
        resolved("one.test", deaf_to=["A", "AAAA", "SRV"], lifetime_s=0.2)


@pytest.mark.parametrize(("host", "endpoint"), [("192.0.2.1", "192.0.2.1:3478"), ("::1", "[::1]:3478")])
def test_an_ip_address_asks_nobody(host: str, endpoint: str) -> None:
    assert resolved(host) == ([endpoint], [])


def test_an_ip_address_of_the_wrong_family_is_refused() -> None:
    with pytest.raises(ResolveError, match="only IPv6"):
        resolved("192.0.2.1", family=6)


def test_an_ip_address_does_not_load_dnspython() -> None:
    code = (
        "import asyncio, sys; from nattools.stun.client import StunClient;"
        "from nattools.net.dns import resolve;"
        "asyncio.run(resolve('192.0.2.1', None, service='', default_port=1));"
        "sys.exit('dns' in sys.modules)"
    )
    assert (
        subprocess.run([sys.executable, "-W", "error", "-c", code], check=False, timeout=60).returncode == 0
    )


class TestTheSystem:
    """Names that are the system's to know; its resolver is replaced, so that nothing leaves the machine."""

    @pytest.fixture
    def asked(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        asked: list[str] = []

        def getaddrinfo(host: str, port: int, **_options: object) -> list[object]:
            asked.append(host)
            if host == "unknown":
                raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
            if host == "slow":
                time.sleep(0.5)
            ipv6 = (socket.AF_INET6, socket.SOCK_DGRAM, 17, "", ("::1", port, 0, 0))
            ipv4 = (socket.AF_INET, socket.SOCK_DGRAM, 17, "", ("127.0.0.1", port))
            return [ipv6, ipv4, ipv4]

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        return asked

    def run(self, host: str, *, family: Family | None = None, lifetime_s: float = 3.0) -> list[str]:
        found = asyncio.run(
            resolve(host, None, service="_stun._udp", default_port=3478, family=family, lifetime_s=lifetime_s)
        )
        return list(map(str, found))

    def test_a_name_without_a_dot_is_looked_up_there(self, asked: list[str]) -> None:
        assert self.run("localhost") == ["[::1]:3478", "127.0.0.1:3478"]
        assert self.run("localhost", family=4) == ["127.0.0.1:3478"]
        assert asked == ["localhost", "localhost"]

    def test_what_it_does_not_know_either_is_a_resolve_error(self, asked: list[str]) -> None:
        with pytest.raises(ResolveError, match="Name or service not known"):
            self.run("unknown")

    def test_it_is_not_waited_for_without_end(self, asked: list[str]) -> None:
        with pytest.raises(ResolveError, match="time was up"):
            self.run("slow", lifetime_s=0.05)

    def test_a_name_that_dns_does_not_know_is_looked_up_there(
        self, asked: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def run() -> list[Endpoint]:
            async with stub_dns(ZONE) as (stub, _):
                make = door._Lookup._resolver

                def at_the_stub(lookup: door._Lookup) -> object:
                    lookup._nameservers = [stub]
                    try:
                        return make(lookup)
                    finally:
                        lookup._nameservers = None

                monkeypatch.setattr(door._Lookup, "_resolver", at_the_stub)
                return await resolve("printer.home", None, service="_stun._udp", default_port=3478)

        assert list(map(str, asyncio.run(run()))) == ["[::1]:3478", "127.0.0.1:3478"]
        assert asked == ["printer.home"]

    def test_it_is_never_asked_where_nameservers_are_given(self, asked: list[str]) -> None:
        for host in ("localhost", "gone.test"):
            with pytest.raises(ResolveError):
                resolved(host)
        assert asked == []


def test_weights_decide_among_equals_by_chance() -> None:
    services = [door._Service(1, weight, port, "x.") for weight, port in ((90, 1), (10, 2), (0, 3))]
    firsts = [door._in_order_of_weight(services)[0].port for _ in range(2000)]
    assert 1650 < firsts.count(1) < 1950
    assert firsts.count(3) < 20


FIRST, SECOND, THIRD = (Endpoint.of("192.0.2.1", port) for port in (1, 2, 3))


class TestFirstSuccess:
    """Trying address after address, with the delay between them made short."""

    @pytest.fixture(autouse=True)
    def _soon(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(door, "ATTEMPT_DELAY_S", 0.01)

    def run(self, *outcomes: str | Exception) -> tuple[object, list[int], list[int]]:
        """What came out, the ports that were tried, and the ports whose attempts were cancelled."""
        tried: list[int] = []
        cancelled: list[int] = []

        async def attempt(endpoint: Endpoint) -> str:
            tried.append(endpoint.port)
            outcome = outcomes[endpoint.port - 1]
            try:
                if outcome == "silent":
                    await asyncio.sleep(3600)
            except asyncio.CancelledError:
                cancelled.append(endpoint.port)
                raise
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        async def run() -> object:
            try:
                return await first_success((FIRST, SECOND, THIRD)[: len(outcomes)], attempt)
            finally:
                assert asyncio.all_tasks() == {asyncio.current_task()}

        return asyncio.run(run()), tried, cancelled

    def test_the_first_is_enough_when_it_answers(self) -> None:
        assert self.run("a", "b", "c") == ("a", [1], [])

    def test_the_next_is_tried_when_one_fails(self) -> None:
        assert self.run(TransportError("x"), TransportError("y"), "c") == ("c", [1, 2, 3], [])

    def test_the_next_is_tried_beside_a_silent_one(self) -> None:
        assert self.run("silent", "b", "c") == ("b", [1, 2], [1])

    def test_another_exception_ends_it(self) -> None:
        with pytest.raises(ValueError, match="no such thing"):
            self.run("silent", ValueError("no such thing"), "c")

    def test_a_local_address_that_does_for_none_is_told_as_such(self) -> None:
        with pytest.raises(LocalAddressError, match=r"^x$"):
            self.run(LocalAddressError("x"), LocalAddressError("x"))

    def test_a_local_address_that_does_for_one_is_enough(self) -> None:
        assert self.run(LocalAddressError("x"), "b") == ("b", [1, 2], [])

    def test_when_all_fail_the_error_names_all(self) -> None:
        with pytest.raises(NoResponseError, match="2 addresses can be used: x; y"):
            self.run(TransportError("x"), TransportError("y"))

    def test_a_single_failure_is_told_as_it_is(self) -> None:
        with pytest.raises(ResolveError, match=r"^x$"):
            self.run(ResolveError("x"))
