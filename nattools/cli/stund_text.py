"""What stund says of itself: what it serves and what it cannot, and at the end what it did."""

from __future__ import annotations

from collections.abc import Sequence

from nattools.stun.counts import Counts
from nattools.stun.responder import ServerAddresses
from nattools.stun.server import StunServer
from nattools.stun.settings import EVERY_ADDRESS, StundSettings

Fields = dict[str, dict[str, object]]
"""The values of a line, for a log in JSON."""


def start_line(servers: Sequence[StunServer], settings: StundSettings) -> str:
    """What is served, and what is not, in one line."""
    parts = [f"serving {', '.join(_sockets(servers))} (UDP and TCP)", *_modes(servers, settings)]
    if not settings.addresses and len(servers) < len(EVERY_ADDRESS):
        parts.append(f"not over IPv{10 - _version(servers[0].addresses)}, which this machine does not have")
    if settings.advertise:
        told = (f"{public} for {local}" for local, public in settings.advertise.items())
        parts.append(f"told as {', '.join(told)}")
    if settings.tls_port is not None:
        secrets = ", where shared secrets are handed out" if settings.shared_secrets else ""
        parts.append(f"TLS on port {settings.tls_port} of each address{secrets}")
    if settings.users is not None:
        parts.append(f"CHANGE-REQUEST, RESPONSE-PORT and PADDING for the users of {settings.users} only")
    if settings.metrics is not None:
        parts.append(f"metrics at http://{settings.metrics}/metrics")
    if settings.workers > 1:
        parts.append(f"{settings.workers} processes")
    reasons = dict.fromkeys(server.why_one_by_one for server in servers if server.why_one_by_one)
    parts += (f"one datagram at a time: {reason}" for reason in reasons)
    if settings.sip_reflector:
        parts.append(_reflecting(servers))
    return "; ".join(parts)


def start_fields(servers: Sequence[StunServer]) -> Fields:
    """The start line's values."""
    fields: dict[str, object] = {
        "event": "serving",
        "sockets": _sockets(servers),
        "behaviour_tests": {
            _family(server.addresses): server.addresses.alternate_address is not None for server in servers
        },
        "tls_port": servers[0].tls_port,
        "batches": not any(server.why_one_by_one for server in servers),
    }
    return {"fields": fields}


def stop_fields(counts: Counts) -> Fields:
    """The values of the line that says what was done."""
    dropped = {reason.name.lower(): count for reason, count in counts.dropped.items()}
    fields = {"event": "stopped", "answered": counts.answered, "dropped": dropped, "overrun": counts.overrun}
    return {"fields": fields}


def _sockets(servers: Sequence[StunServer]) -> list[str]:
    return [str(endpoint) for server in servers for endpoint in server.addresses.endpoints]


def _modes(servers: Sequence[StunServer], settings: StundSettings) -> list[str]:
    """What each family's clients can do, once for both where it is the same."""
    modes = {_family(server.addresses): _mode(server.addresses, settings) for server in servers}
    if len(set(modes.values())) == 1:
        return [*modes.values()][:1]
    return [f"over {family} {mode}" for family, mode in modes.items()]


def _mode(addresses: ServerAddresses, settings: StundSettings) -> str:
    if addresses.alternate_address is not None:
        return "NAT behaviour tests included"
    for hosts in settings.hosts:
        if hosts.own == addresses.address:
            return (
                f"NAT behaviour tests as long as the peer {hosts.other} is there, else CHANGE-REQUEST is"
                " refused and OTHER-ADDRESS omitted"
            )
    return (
        "with one address clients learn their public address, but cannot test NAT filtering:"
        " CHANGE-REQUEST is refused, OTHER-ADDRESS omitted"
    )


def _reflecting(servers: Sequence[StunServer]) -> str:
    served = {endpoint.port for server in servers for endpoint in server.addresses.endpoints}
    ports = dict.fromkeys(port for server in servers for port in server.more_ports if port not in served)
    others = ", ".join(map(str, ports))
    return "reflecting SIP there" + (f" and on UDP port {others}" if others else "")


def _version(addresses: ServerAddresses) -> int:
    return addresses.address.version


def _family(addresses: ServerAddresses) -> str:
    return f"IPv{_version(addresses)}"
