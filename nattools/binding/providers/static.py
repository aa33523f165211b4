"""The public address and ports that an administrator has set: forwarded by hand in the router or firewall."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from nattools.binding.model import Claim, Method, Source
from nattools.binding.settings import PortRange
from nattools.endpoint import AddressClass, Endpoint, IPAddress, classify_address
from nattools.errors import BindingError, NatToolsError
from nattools.net.dns import resolve
from nattools.net.udp import local_address_towards

_LOG = logging.getLogger(__name__)

REFRESH_S = 60.0
"""How often claims are to be renewed: a dynamic name follows its host by about a minute."""
_FRESH_S = 5.0
"""So long a look-up serves all the sockets that are renewed together."""
_ANY_PORT = 9
_NOWHERE = (AddressClass.UNSPECIFIED, AddressClass.MULTICAST)


@dataclass(slots=True)
class _LookedUp:
    """What is known of the host in one address family."""

    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    address: IPAddress | None = None
    failure: NatToolsError | None = None
    at: float = float("-inf")


class StaticProvider:
    """A phone's "network identity" and "RTP port start/end".

    `ports` are the public ones. A single port is that of whatever local port; of a range each local port has
    its own number; without `ports` every local port has. `host` is an IP address, or a name that is looked up
    again at each renewal, at `nameservers` if given; while it cannot be, the last address stays.
    """

    def __init__(
        self, host: str, ports: PortRange | None = None, *, nameservers: Sequence[Endpoint] | None = None
    ) -> None:
        self._host = host
        self._ports = ports
        self._nameservers = nameservers
        self._looked_up = {False: _LookedUp(), True: _LookedUp()}
        self._asked: dict[Endpoint, Endpoint] = {}

    @property
    def source(self) -> Source:
        """Which one it is."""
        return Source.STATIC

    async def acquire(self, local: Endpoint) -> Claim:
        """The public endpoint of `local`, as the settings have it.

        Raises `BindingError` for a local port outside the range, and for an address that is no host's;
        `ResolveError` for a name without an address of the family of `local`; `TransportError` for an
        unspecified `local` on a machine without a route there.
        """
        return self._claim(local, Endpoint(await self._address(local.is_ipv6), self._public_port(local.port)))

    async def renew(self, claim: Claim) -> Claim:
        """Look the name up again. Of several addresses it keeps the one that it had."""
        renewed = await self.acquire(self._asked.get(claim.local, claim.local))
        if renewed.local != claim.local:
            self._asked.pop(claim.local, None)
        return renewed

    async def release(self, claim: Claim) -> None:
        """Nobody is to be told."""
        self._asked.pop(claim.local, None)

    def _claim(self, local: Endpoint, public: Endpoint) -> Claim:
        asked = local
        if local.ip.is_unspecified:
            local = Endpoint(local_address_towards(public), local.port)
        self._asked[local] = asked
        name = "" if self._host == str(public.ip) else f" ({self._host})"
        return Claim(Method.STATIC, local, public, f"the settings say {public}{name}")

    def _public_port(self, local_port: int) -> int:
        if self._ports is None:
            return local_port
        if self._ports.first == self._ports.last:
            return self._ports.first
        if local_port not in self._ports:
            raise BindingError(
                f"the local port {local_port} is not among the ports that the settings forward, "
                f"{self._ports}: bind the socket to one of them"
            )
        return local_port

    async def _address(self, ipv6: bool) -> IPAddress:
        """The host's address; of many who ask at once the first looks it up."""
        known = self._looked_up[ipv6]
        async with known.turn:
            now = asyncio.get_running_loop().time()
            if now >= known.at + _FRESH_S:
                await self._look_up(known, ipv6)
                known.at = asyncio.get_running_loop().time()
        if known.address is None and known.failure is not None:
            raise known.failure.with_traceback(None)
        assert known.address is not None
        return known.address

    async def _look_up(self, known: _LookedUp, ipv6: bool) -> None:
        former, known.failure = known.failure, None
        try:
            addresses = await self._resolve(ipv6)
        except NatToolsError as error:
            known.failure = error
            if known.address is not None and former is None:
                _LOG.warning("%s stays what it was, %s: %s", self._host, known.address, error)
            return
        if known.address not in addresses:
            known.address = addresses[0]

    async def _resolve(self, ipv6: bool) -> list[IPAddress]:
        found = await resolve(
            self._host,
            _ANY_PORT,  # with a port nobody asks for SRV: the settings name the port
            service="",
            default_port=_ANY_PORT,
            family=6 if ipv6 else 4,
            nameservers=self._nameservers,
        )
        addresses = [endpoint.ip for endpoint in found]
        if any(classify_address(address) in _NOWHERE for address in addresses):
            raise BindingError(
                f"the static host {self._host} is {addresses[0]}, which is no host's address: set the public "
                "address of the router or firewall, or its name"
            )
        return addresses
