"""`natcheck --sip-alg`: whether SIP is rewritten on the way to a server, asked and told."""

from __future__ import annotations

from dataclasses import dataclass

from nattools.cli.output import Page
from nattools.endpoint import Endpoint, IPAddress
from nattools.errors import NatToolsError
from nattools.net.dns import Family, resolve
from nattools.sip.alg import AlgPresence, AlgVerdict, PortVerdict
from nattools.sip.client import detect_alg
from nattools.sip.uri import SIP_PORT
from nattools.stun.uri import ServerAddress

_SERVICE = "_sip._udp"
_RESOLVE_S = 3.0
_ASK_ANOTHER = "Name a SIP server that answers STUN on its SIP port, or a reflector."
_STYLES = {AlgPresence.YES: "bold yellow", AlgPresence.NO: "bold green", AlgPresence.UNKNOWN: ""}


@dataclass(frozen=True, slots=True)
class AlgFinding:
    """The verdict, or the error that there is in its place."""

    verdict: AlgVerdict | NatToolsError

    @property
    def is_known(self) -> bool:
        """Whether the answer is yes or no."""
        verdict = self.verdict
        return not isinstance(verdict, NatToolsError) and verdict.presence is not AlgPresence.UNKNOWN

    @property
    def reasons(self) -> list[str]:
        """What it rests on, or why it is unknown."""
        if isinstance(self.verdict, NatToolsError):
            return [str(self.verdict)]
        return list(self.verdict.reasons)

    @property
    def rewritten(self) -> list[str]:
        """Each field that was rewritten, before and after."""
        return [] if isinstance(self.verdict, NatToolsError) else [str(f) for f in self.verdict.touched]

    def document(self) -> dict[str, object]:
        """The part `sip_alg` of the JSON document."""
        verdict = self.verdict
        if isinstance(verdict, NatToolsError):
            presence, server, packets, ports = AlgPresence.UNKNOWN, None, 0, []
        else:
            presence, server, packets = verdict.presence, verdict.sip.destination, verdict.packets_sent
            ports = [verdict.sip, *([verdict.control] if verdict.control else [])]
        return {
            "presence": presence.value,
            "server": _text(server),
            "meaning": meaning(verdict),
            "reasons": self.reasons,
            "packets_sent": packets,
            "ports": [_port(port) for port in ports],
        }

    def show(self, page: Page) -> None:
        """For people: two rows."""
        verdict = self.verdict
        if isinstance(verdict, NatToolsError):
            page.row("SIP ALG", f"unknown: {verdict}")
            return
        what = {
            AlgPresence.YES: _what_it_does(verdict),
            AlgPresence.NO: f"nothing is rewritten on UDP port {verdict.sip.destination.port}",
            AlgPresence.UNKNOWN: "not shown",
        }[verdict.presence]
        page.row("SIP ALG", f"{verdict.presence.value}: {what}", style=_STYLES[verdict.presence])
        page.row("", meaning(verdict), style="bold")


async def check(
    server: ServerAddress,
    family: Family | None,
    local_address: IPAddress | None,
    local_port: int,
    timeout_s: float,
) -> AlgFinding:
    """Look for a SIP ALG on the way to `server`; IPv4 where it has both, since NATs are for that."""
    try:
        found = await resolve(
            server.host,
            server.port,
            service=_SERVICE,
            default_port=SIP_PORT,
            family=family,
            lifetime_s=_RESOLVE_S,
        )
        endpoint = next((endpoint for endpoint in found if not endpoint.is_ipv6), found[0])
        return AlgFinding(
            await detect_alg(
                endpoint, local_address=local_address, local_port=local_port, timeout_s=timeout_s
            )
        )
    except NatToolsError as error:
        return AlgFinding(error)


def meaning(verdict: AlgVerdict | NatToolsError) -> str:
    """What it means for SIP, and what to do."""
    if isinstance(verdict, NatToolsError) or not verdict.is_answered:
        return f"Nobody answered. {_ASK_ANOTHER}"
    port = verdict.sip.destination.port
    if verdict.presence is AlgPresence.YES:
        return (
            "Something on the way meddles with SIP, most likely the router: switch its SIP ALG (SIP helper) "
            f"off. {_way_out(verdict)}"
        )
    if verdict.presence is AlgPresence.NO:
        return f"SIP arrives at UDP port {port} as it was sent."
    if not verdict.sip.is_answered:
        return f"Nobody answered on UDP port {port}. {_ASK_ANOTHER}"
    if verdict.sip.lost:
        return (
            f"On UDP port {port} SIP gets lost, though the port answers: if the server speaks SIP there, "
            f"something on the way drops it. {_way_out(verdict)}"
        )
    return (
        "No sign of a SIP ALG, and no proof that there is none: that takes a reflector, which is "
        "stund --sip-reflector on a host with a public address."
    )


def _way_out(verdict: AlgVerdict) -> str:
    """What helps where the router cannot be changed, as far as the other port shows it."""
    control = AlgPresence.UNKNOWN if verdict.control is None else verdict.control.presence
    if verdict.control is not None and control is AlgPresence.NO:
        return (
            f"UDP port {verdict.control.destination.port} is left alone, so another port than"
            f" {verdict.sip.destination.port} helps, and SIP over TLS."
        )
    if control is AlgPresence.YES:
        return "It looks at other ports as well; where it cannot be switched off, use SIP over TLS."
    return "Where that cannot be, use SIP over TLS, or another port."


def _what_it_does(verdict: AlgVerdict) -> str:
    """What the proofs show, in a few words."""
    names = ", ".join(field.name for field in verdict.touched)
    if names:
        return f"{names} rewritten"
    if verdict.sip.lost:
        return f"{', '.join(verdict.sip.lost)} dropped"
    return "received= rewritten in answers" if verdict.sip.hides_address else "Via rewritten"


def _port(port: PortVerdict) -> dict[str, object]:
    return {
        "to": str(port.destination),
        "presence": port.presence.value,
        "mapped": _text(port.mapped),
        "received": _text(port.received),
        "hides_address": port.hides_address,
        "touched": [{"field": f.name, "sent": f.sent, "arrived": f.arrived} for f in port.touched],
        "lost": list(port.lost),
    }


def _text(endpoint: Endpoint | None) -> str | None:
    """An endpoint, or the address alone where the port is not known."""
    if endpoint is None:
        return None
    return str(endpoint) if endpoint.port else str(endpoint.ip)
