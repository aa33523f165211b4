"""From the name of a server to its addresses: SRV, then all A and AAAA records (RFC 8489 §8.1).

dnspython is imported only when DNS is really asked: it takes longer to load than all of nattools.
"""

from __future__ import annotations

import asyncio
import random
import socket
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from itertools import chain, zip_longest
from typing import TYPE_CHECKING, Literal, TypeVar, cast

from nattools.endpoint import Endpoint, IPAddress
from nattools.errors import LocalAddressError, NoResponseError, ResolveError, TransportError
from nattools.net.udp import endpoint_of

if TYPE_CHECKING:
    from dns.asyncresolver import Resolver
    from dns.rdata import Rdata

T = TypeVar("T")
Family = Literal[4, 6]

ATTEMPT_DELAY_S = 0.25
"""How long one address may stay silent before the next is tried too (RFC 8305 §5)."""
RESOLUTION_DELAY_S = 0.3
"""How long the records of one family wait for those of the other; RFC 8305 §3 wants 50 ms at least."""

_RECORDS: dict[Family, str] = {6: "AAAA", 4: "A"}


@dataclass(frozen=True, slots=True)
class _Service:
    """The value of one SRV record (RFC 2782)."""

    priority: int
    weight: int
    port: int
    target: str


async def resolve(
    host: str,
    port: int | None,
    *,
    service: str,
    default_port: int,
    family: Family | None = None,
    nameservers: Sequence[Endpoint] | None = None,
    lifetime_s: float = 3.0,
) -> list[Endpoint]:
    """All endpoints of a server, best first; never empty.

    Without a `port` the SRV records of `service` (like `_stun._udp`) are asked for, and where there are none
    the host's addresses get `default_port`. IPv6 and IPv4 take turns, IPv6 first (RFC 8305 §4), unless
    `family` wants one only. DNS is asked at `nameservers`, or as the system is set up; in the second case
    names that DNS does not know, and names without a dot, are looked up as the system does it (hosts file).
    An IP address needs none of this. Raises `ResolveError`, after `lifetime_s` at the latest.
    """
    try:
        ip: IPAddress = ip_address(host)
    except ValueError:
        lookup = _Lookup(host, port, service, default_port, family, nameservers, lifetime_s)
        return await lookup.run()
    if family not in (None, ip.version):
        raise ResolveError(f"{host} is an IPv{ip.version} address, and only IPv{family} was asked for")
    return [Endpoint(ip, port or default_port)]


class _Lookup:
    """One call of `resolve` for a host name, with what it tried so far."""

    def __init__(
        self,
        host: str,
        port: int | None,
        service: str,
        default_port: int,
        family: Family | None,
        nameservers: Sequence[Endpoint] | None,
        lifetime_s: float,
    ) -> None:
        self._host = host
        self._port = port
        self._service = service
        self._default_port = default_port
        self._families: tuple[Family, ...] = (6, 4) if family is None else (family,)
        self._nameservers = nameservers
        self._lifetime_s = lifetime_s
        # the rest of the time is for the system's resolver
        self._dns_lifetime_s = lifetime_s if nameservers else lifetime_s * 2 / 3
        self._tried: list[str] = []

    async def run(self) -> list[Endpoint]:
        """The endpoints. Raises `ResolveError`."""
        try:
            async with asyncio.timeout(self._lifetime_s):
                endpoints = await self._from_dns() if self._nameservers or "." in self._host else []
                if not endpoints and not self._nameservers:
                    endpoints = await self._from_system()
        except TimeoutError:
            self._tried.append(f"time was up after {self._lifetime_s:g} s")
            endpoints = []
        if not endpoints:
            families = " or ".join(f"IPv{family}" for family in self._families)
            raise ResolveError(
                f"no {families} address for {self._host}: {'; '.join(self._tried)}. "
                "Check the name and the DNS server, or give an IP address"
            )
        return list(dict.fromkeys(endpoints))

    async def _from_dns(self) -> list[Endpoint]:
        """Ask for SRV records and the host's own addresses at once; the SRV records, if any, decide."""
        import dns.exception

        try:
            resolver = self._resolver()
        except dns.exception.DNSException as error:
            self._tried.append(f"DNS is not set up ({error})")
            return []
        if self._port is not None:
            return await self._addresses(resolver, self._host, self._port)
        services, fallback = await asyncio.gather(
            self._services(resolver), self._addresses(resolver, self._host, self._default_port)
        )
        if not services:
            return fallback
        if [service.target for service in services] == ["."]:
            raise ResolveError(f"{self._host} says in DNS that it has no {self._service} server (RFC 2782)")
        found = await asyncio.gather(
            *(self._addresses(resolver, service.target, service.port) for service in services)
        )
        endpoints = list(chain.from_iterable(found))
        if not endpoints:
            raise ResolveError(
                f"DNS lists {self._service} servers of {self._host}, but no address for them: "
                f"{'; '.join(self._tried)}. Give host and port of a server"
            )
        return endpoints

    def _resolver(self) -> Resolver:
        from dns.asyncresolver import Resolver
        from dns.nameserver import Do53Nameserver

        resolver = Resolver(configure=not self._nameservers)
        if self._nameservers:
            resolver.nameservers = [Do53Nameserver(str(s.ip), s.port) for s in self._nameservers]
        return resolver

    async def _query(self, resolver: Resolver, name: str, record: str, lifetime_s: float) -> list[Rdata]:
        """The records; none where the query failed, and the reason is kept."""
        import dns.exception

        absolute = name if name.endswith(".") else f"{name}."
        try:
            answer = await resolver.resolve(absolute, record, lifetime=lifetime_s, search=False)
        except (dns.exception.DNSException, OSError, ValueError) as error:
            self._tried.append(f"{record} of {name}: {error}")
            return []
        return list(answer)

    async def _services(self, resolver: Resolver) -> list[_Service]:
        """The SRV records, in the order to try them; half of the time is left for their addresses."""
        from dns.rdtypes.IN.SRV import SRV

        name = f"{self._service}.{self._host}"
        records = await self._query(
            resolver, name, "SRV", self._dns_lifetime_s / 2
        )  # addresses need time too
        return _in_order_of_weight(
            [
                _Service(record.priority, record.weight, record.port, record.target.to_text())
                for record in records
                if isinstance(record, SRV)
            ]
        )

    async def _addresses(self, resolver: Resolver, name: str, port: int) -> list[Endpoint]:
        """A and AAAA at the same time; once one has come, the other is not waited for much longer."""
        queries = [
            asyncio.create_task(self._query(resolver, name, _RECORDS[family], self._dns_lifetime_s))
            for family in self._families
        ]
        pending, patience_s = set(queries), None
        try:
            while pending:
                done, pending = await asyncio.wait(
                    pending, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED
                )
                if not done:
                    break
                if any(query.result() for query in done):
                    patience_s = RESOLUTION_DELAY_S
        finally:
            await _cancel(pending)
        columns = [query.result() if query not in pending else [] for query in queries]
        records = chain.from_iterable(zip_longest(*columns))
        return [Endpoint(ip_address(record.to_text()), port) for record in records if record is not None]

    async def _from_system(self) -> list[Endpoint]:
        """Ask the system, hosts file and all; it has no place for SRV."""
        port = self._port or self._default_port
        try:
            found = await _in_thread(lambda: socket.getaddrinfo(self._host, port, type=socket.SOCK_DGRAM))
        except (OSError, UnicodeError) as error:
            self._tried.append(f"the system's resolver: {error}")
            return []
        versions = {socket.AF_INET: 4, socket.AF_INET6: 6}
        return [endpoint_of(address) for af, _, _, _, address in found if versions.get(af) in self._families]


def _in_order_of_weight(services: list[_Service]) -> list[_Service]:
    """Lower priority first; among equals by chance, in proportion to the weight (RFC 2782)."""

    def rank(service: _Service) -> tuple[int, float]:
        # the smallest of exponential variables is each one with a chance proportional to its rate
        return service.priority, random.expovariate(max(service.weight, 1e-3))

    return sorted(services, key=rank)


async def _in_thread(call: Callable[[], T]) -> T:
    """Run a blocking call. Unlike with an executor nobody waits for it at the end of the program."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def deliver(result: T | None, error: Exception | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(cast(T, result))

    def work() -> None:
        result, failure = None, None
        try:
            result = call()
        except (OSError, ValueError) as error:
            failure = error
        with suppress(RuntimeError):  # the loop may be closed by now
            loop.call_soon_threadsafe(deliver, result, failure)

    threading.Thread(target=work, daemon=True, name="getaddrinfo").start()
    return await future


async def _cancel(tasks: Iterable[asyncio.Future[T]]) -> None:
    tasks = list(tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def first_success(endpoints: Sequence[Endpoint], attempt: Callable[[Endpoint], Awaitable[T]]) -> T:
    """What the first successful `attempt` returns, started for one endpoint after the other (RFC 8305 §5).

    The next one starts when the one before has failed with a `TransportError`, or was silent for
    `ATTEMPT_DELAY_S`; it goes on beside the others, until one succeeds. Any other exception ends them all.
    When all have failed raises what the single one did, or a `TransportError` that names them all.
    """
    waiting = deque(endpoints)
    started: list[asyncio.Future[T]] = []
    running: set[asyncio.Future[T]] = set()
    failures: list[TransportError] = []
    try:
        while waiting or running:
            if waiting:
                started.append(asyncio.ensure_future(attempt(waiting.popleft())))
                running.add(started[-1])
            done, running = await asyncio.wait(
                running,
                timeout=ATTEMPT_DELAY_S if waiting else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            for task in done:
                try:
                    return task.result()
                except TransportError as error:
                    failures.append(error)
    finally:
        await _cancel(started)
    if len(failures) == 1 or all(isinstance(failure, LocalAddressError) for failure in failures):
        raise failures[0]
    listed = "; ".join(map(str, failures))
    raise NoResponseError(f"none of {len(failures)} addresses can be used: {listed}")
