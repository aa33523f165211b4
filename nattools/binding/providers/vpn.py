"""The address of this machine inside a tunnel: whoever is behind it, too, reaches the socket there."""

from __future__ import annotations

from nattools.binding.model import Claim, Method, Source
from nattools.endpoint import Endpoint, IPAddress, split_host_port
from nattools.errors import BindingError
from nattools.net.dns import resolve
from nattools.net.interfaces import Interface, interface_of, interfaces, is_tunnel
from nattools.net.udp import local_address_towards

_ANY_PORT = 9


class VpnProvider:
    """A tunnel (tun, tap, WireGuard, PPP, IPsec with an interface), by name or by who is behind it.

    `interface` is believed to be one. `peer` is an IP address or a name, with a port or without; the route to
    it must go through a tunnel, and through `interface` where both are given. Raises `BindingError` without
    either, `DecodeError` for a peer that cannot be read.
    """

    def __init__(self, interface: str | None = None, peer: str | None = None) -> None:
        if interface is None and peer is None:
            raise BindingError("no tunnel is named: set the VPN's interface, or a peer behind it")
        self._interface = interface
        self._peer = peer
        self._peer_host = None if peer is None else split_host_port(peer)[0]
        self._asked: dict[Endpoint, Endpoint] = {}

    @property
    def source(self) -> Source:
        """Which one it is."""
        return Source.VPN

    async def acquire(self, local: Endpoint) -> Claim:
        """The tunnel's address with the port of `local`; the realm is the tunnel's name.

        Raises `BindingError` where there is no such tunnel, it is down or has no address of that family, and
        where `local` is bound to an address outside it; `TransportError` without a route to the peer.
        """
        if self._peer_host is None:
            tunnel = self._named()
            ip = _address(tunnel, local)
            word = f"the tunnel {tunnel.name} has the address {ip}"
        else:
            tunnel, ip = await self._on_the_way(self._peer_host, local)
            word = f"the route to {self._peer} goes through {tunnel.name}, where this machine is {ip}"
        if not tunnel.is_up:
            raise BindingError(f"the tunnel {tunnel.name} is down: start the VPN")
        if not local.ip.is_unspecified and local.ip != ip and local.ip not in tunnel.ips:
            raise BindingError(
                f"the socket is bound to {local.ip}, and the tunnel {tunnel.name} has {ip}: "
                f"bind it to that, or to any address"
            )
        inside = Endpoint(ip if local.ip.is_unspecified else local.ip, local.port)
        self._asked[inside] = local
        return Claim(Method.VPN, inside, inside, word, realm=tunnel.name)

    async def renew(self, claim: Claim) -> Claim:
        """See whether the tunnel is there, and which address it has."""
        renewed = await self.acquire(self._asked.get(claim.local, claim.local))
        if renewed.local != claim.local:
            self._asked.pop(claim.local, None)
        return renewed

    async def release(self, claim: Claim) -> None:
        """Nobody is to be told."""
        self._asked.pop(claim.local, None)

    def _named(self) -> Interface:
        all_of_them = interfaces()
        for interface in all_of_them:
            if interface.name == self._interface:
                return interface
        names = ", ".join(interface.name for interface in all_of_them)
        raise BindingError(
            f"there is no interface {self._interface}: this machine has {names}. Start the VPN, or name its "
            "interface as the system does"
        )

    async def _on_the_way(self, host: str, local: Endpoint) -> tuple[Interface, IPAddress]:
        """The tunnel that leads to the peer, known by the address that packets to it would leave from."""
        peer, *_ = await resolve(
            host, _ANY_PORT, service="", default_port=_ANY_PORT, family=6 if local.is_ipv6 else 4
        )
        ip = local_address_towards(peer)
        interface = interface_of(ip)
        if interface is None:
            raise BindingError(f"the address towards {self._peer}, {ip}, has just gone: try again")
        if self._interface not in (None, interface.name):
            raise BindingError(
                f"the route to {self._peer} goes through {interface.name}, and not {self._interface}: start "
                "the VPN"
            )
        tunnel = self._interface is not None or is_tunnel(interface)
        if tunnel is None:
            raise BindingError(
                f"the route to {self._peer} goes through {interface.name}, of which the system does not tell "
                "whether it is a tunnel: if it is, set it as the VPN's interface"
            )
        if not tunnel:
            raise BindingError(
                f"the route to {self._peer} goes through {interface.name}, which is no tunnel: start the VPN"
            )
        return interface, ip


def _address(tunnel: Interface, local: Endpoint) -> IPAddress:
    """The address to be reached at; a link-local one only where there is no other."""
    ips = [ip for ip in tunnel.ips if ip.version == local.ip.version]
    if not ips:
        raise BindingError(
            f"the tunnel {tunnel.name} has no IPv{local.ip.version} address: start the VPN, or use IPv"
            f"{10 - local.ip.version}"
        )
    return min(ips, key=lambda ip: ip.is_link_local)
