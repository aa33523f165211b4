"""`natcheck`: what the NAT does, and what that means for SIP."""

from __future__ import annotations

import asyncio
import math
import sys
import time
from collections.abc import Sequence
from ipaddress import ip_address
from typing import TYPE_CHECKING

import click

from nattools import __version__
from nattools.cli import EXIT_INTERRUPTED, output
from nattools.endpoint import Endpoint, IPAddress, split_host_port
from nattools.errors import DecodeError, LocalAddressError, NatToolsError, ResolveError, TransportError
from nattools.net.dns import Family, resolve
from nattools.stun.classifier import Confidence, Filtering, Mapping, NatType, Verdict, classify
from nattools.stun.client import discover
from nattools.stun.observation import Observation, Observations, Outcome
from nattools.stun.uri import ServerAddress, Transport

if TYPE_CHECKING:
    from nattools.cli.natcheck_alg import AlgFinding

DEFAULT_SERVERS = (
    "stunserver2025.stunprotocol.org",  # RFC 5780, two addresses
    "stun.sipgate.net",  # RFC 3489, two addresses
    "stun.l.google.com:19302",  # plain
    "stun.cloudflare.com",  # plain
)
"""Asked when neither an argument nor NATCHECK_SERVER names a server."""

EXIT_VERDICT, EXIT_USAGE, EXIT_NO_ANSWER, EXIT_INCONCLUSIVE = 0, 2, 3, 4

_MOST_SERVERS = 4
_RESOLVE_S = 3.0

SIP_MEANING = {
    NatType.OPEN: "Nothing is in the way. A phone here can be called at its own address.",
    NatType.SYMMETRIC_FIREWALL: (
        "The address is right as it is, but only answers come in: keep the registration alive every 15 to "
        "20 s, and send the first media packet yourself."
    ),
    NatType.FULL_CONE: (
        "STUN works: write the public address into Via, Contact and SDP, and keep it alive every 15 to 20 s. "
        "Anybody can call it."
    ),
    NatType.RESTRICTED_CONE: (
        "STUN works: write the public address into Via, Contact and SDP, keep it alive every 15 to 20 s, "
        "and send the first media packet yourself."
    ),
    NatType.PORT_RESTRICTED_CONE: (
        "STUN works: write the public address into Via, Contact and SDP, keep it alive every 15 to 20 s, and "
        "send the first media packet yourself. A peer behind a symmetric NAT needs a relay."
    ),
    NatType.SYMMETRIC: (
        "STUN does not help: the address it finds is wrong for everybody else. Use a port mapping on the "
        "router (UPnP, PCP or static), or a relay or session controller."
    ),
    NatType.BLOCKED: (
        "Neither SIP over UDP nor RTP gets out. Ask for UDP to be allowed; until then only TLS or TCP to a "
        "provider with a media relay works."
    ),
    NatType.INCONCLUSIVE: "Too little was shown to build on. See the reasons below, and try another server.",
}

_SIP_MAPPING_ONLY = (
    "STUN works: the public address is the same for everybody. Who may send to it was not shown, so keep it "
    "alive every 15 to 20 s, and send the first media packet yourself."
)

_MAPPING_MEANING = {
    Mapping.NONE: "the address is not translated",
    Mapping.ENDPOINT_INDEPENDENT: "the same public endpoint towards everybody",
    Mapping.ADDRESS_DEPENDENT: "another public endpoint for every address",
    Mapping.ADDRESS_AND_PORT_DEPENDENT: "another public endpoint for every address and port",
    Mapping.UNKNOWN: "not shown",
}
_FILTERING_MEANING = {
    Filtering.ENDPOINT_INDEPENDENT: "anybody may send to it",
    Filtering.ADDRESS_DEPENDENT: "only addresses you have sent to may answer",
    Filtering.ADDRESS_AND_PORT_DEPENDENT: "only the very endpoints you have sent to may answer",
    Filtering.UNKNOWN: "not shown",
}


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.argument("server", nargs=-1, envvar="NATCHECK_SERVER")
@click.option("-4", "ipv4", is_flag=True, help="Use IPv4 only (the default where the server has both).")
@click.option("-6", "ipv6", is_flag=True, help="Use IPv6 only.")
@click.option("--local-address", metavar="ADDRESS", help="Send from this address of this machine.")
@click.option(
    "--local-port", type=click.IntRange(0, 65535), default=0, help="Learn the mapping of this UDP port."
)
@click.option(
    "--timeout",
    type=click.FloatRange(0.2, 60),
    default=5.0,
    show_default=True,
    metavar="SECONDS",
    help="How long the first answer may take; after it the measured round trip sets the pace.",
)
@click.option(
    "--sip-alg",
    metavar="SIP_SERVER",
    help="Find out as well whether the router rewrites SIP on the way there (a SIP ALG).",
)
@click.option("-v", "--verbose", is_flag=True, help="Show every question that was asked, and its answer.")
@click.option("--json", "as_json", is_flag=True, help='Print one JSON document, with "schema": 1.')
@click.version_option(__version__, prog_name="natcheck")
def main(
    server: tuple[str, ...],
    ipv4: bool,
    ipv6: bool,
    local_address: str | None,
    local_port: int,
    timeout: float,
    sip_alg: str | None,
    verbose: bool,
    as_json: bool,
) -> None:
    """Find out what the NAT does to this machine, and what that means for SIP.

    SERVER is a STUN server: a name or address, with a port after a colon (3478 when left out), or a
    stun: URI. One with two addresses (RFC 5780) shows everything; two plain ones show the mapping.
    Without SERVER, those in NATCHECK_SERVER are asked, else a built-in list of public ones.

    At most 60 small packets are sent. What was not shown is called unknown, with the reason.

    SIP_SERVER is a name or address, with a port after a colon (5060 when left out), or a sip: URI. There, and
    to port 3478 of the same host to compare, OPTIONS and STUN are sent; a reflector (stund --sip-reflector)
    gets an INVITE as well; all in all at most 146 packets. A SIP server that answers STUN can show that there
    is a SIP ALG, a reflector which fields it rewrites, and that there is none.

    \b
    Exit status:
      0  there is a verdict
      2  wrong usage
      3  UDP is blocked, or no server answered
      4  inconclusive, or whether there is a SIP ALG remained unknown

    \b
    Examples:
      natcheck
      natcheck stun.example.org
      natcheck 203.0.113.10 198.51.100.7:3479 --json
      natcheck --local-port 5060 --verbose
      natcheck --sip-alg sip.example.org
    """
    if ipv4 and ipv6:
        raise click.UsageError("-4 and -6 exclude each other.")
    if math.isnan(timeout):  # FloatRange lets it through
        raise click.BadParameter("nan is not a number of seconds.", param_hint="--timeout")
    started = time.monotonic()
    try:
        addresses = [ServerAddress.parse(text) for text in server or DEFAULT_SERVERS]
        sip_server = None if sip_alg is None else ServerAddress(*split_host_port(_host_part(sip_alg)))
        local = ip_address(local_address) if local_address else None
    except DecodeError as error:
        raise click.UsageError(f"{error}.") from error
    except ValueError as error:
        raise click.BadParameter(
            f"{local_address!r} is not an IP address.", param_hint="--local-address"
        ) from error
    if any(address.secure for address in addresses):
        raise click.UsageError("NAT behaviour is a matter of UDP: a stuns: server cannot show it.")
    if len(addresses) > _MOST_SERVERS:
        raise click.UsageError(f"{len(addresses)} servers; {_MOST_SERVERS} at the most.")
    family: Family | None = 4 if ipv4 else 6 if ipv6 else local.version if local else None
    for address in (*addresses, *([sip_server] if sip_server else [])):
        if family is not None and address.ip is not None and address.ip.version != family:
            raise click.UsageError(f"{address.host} is not an IPv{family} address.")
    if local is not None and family != local.version:
        raise click.UsageError(f"--local-address {local} is not an IPv{family} address.")
    try:
        seen, alg = asyncio.run(_check(addresses, sip_server, family, local, local_port, timeout))
        verdict = classify(seen)
        if as_json:
            output.print_json(_document(verdict, seen, alg, time.monotonic() - started))
        else:
            _show(verdict, seen, alg, verbose=verbose)
    except KeyboardInterrupt:  # click would say "Aborted!" and end with 1
        sys.exit(EXIT_INTERRUPTED)
    except NatToolsError as error:
        _no_answer(error, as_json)
    else:
        sys.exit(_status(verdict, seen, alg))


def _host_part(sip_server: str) -> str:
    """What a sip: URI, with a user or without, names as its host; another text is one already."""
    return sip_server.removeprefix("sip:").rpartition("@")[2]


async def _check(
    addresses: Sequence[ServerAddress],
    sip_server: ServerAddress | None,
    family: Family | None,
    local_address: IPAddress | None,
    local_port: int,
    timeout_s: float,
) -> tuple[Observations, AlgFinding | None]:
    started = time.monotonic()
    servers = await _resolve(addresses, family)
    left_s = max(timeout_s - (time.monotonic() - started), timeout_s / 2)
    seen = await discover(servers, local_address=local_address, local_port=local_port, timeout_s=left_s)
    if sip_server is None:
        return seen, None
    from nattools.cli import natcheck_alg  # with all of SIP, which takes its time to load

    await asyncio.sleep(0)  # asyncio closes a socket for good in its next round, and the port is wanted again
    return seen, await natcheck_alg.check(sip_server, family, local_address, local_port, timeout_s)


async def _resolve(addresses: Sequence[ServerAddress], family: Family | None) -> list[Endpoint]:
    """One endpoint for each name that has one, all of one family: IPv4 where any server has it."""
    service, port = Transport.UDP.service, Transport.UDP.default_port
    lookups = [
        resolve(a.host, a.port, service=service, default_port=port, family=family, lifetime_s=_RESOLVE_S)
        for a in addresses
    ]
    answers = await asyncio.gather(*lookups, return_exceptions=True)
    found: list[list[Endpoint]] = []
    errors: list[ResolveError] = []
    for answer in answers:
        if isinstance(answer, ResolveError):
            errors.append(answer)
        elif isinstance(answer, BaseException):
            raise answer
        else:
            found.append(answer)
    if not found:
        names = ", ".join(address.host for address in addresses)
        raise ResolveError(
            f"no address for {names}: connect this machine to a network, check the name and the DNS server, "
            "or give the IP address of a server"
        ) from errors[0]
    for error in errors:
        output.warn("natcheck", str(error))
    every = [endpoint for endpoints in found for endpoint in endpoints]
    use_ipv6 = all(endpoint.is_ipv6 for endpoint in every)
    firsts = [[e for e in endpoints if e.is_ipv6 == use_ipv6][:1] for endpoints in found]
    return list(dict.fromkeys(endpoint for first in firsts for endpoint in first))


def _no_answer(error: NatToolsError, as_json: bool) -> None:
    """There was no network to ask: say so, and what to do."""
    if isinstance(error, LocalAddressError) or not isinstance(error, TransportError):
        output.fail("natcheck", str(error), status=EXIT_USAGE)
    if as_json:
        output.print_json(
            {
                "schema": 1,
                "nat_type": NatType.INCONCLUSIVE.value,
                "mapping": Mapping.UNKNOWN.value,
                "filtering": Filtering.UNKNOWN.value,
                "public": None,
                "local": None,
                "server": None,
                "hairpin": None,
                "port_preserved": None,
                "sip_alg": None,
                "reasons": [str(error)],
                "probes": [],
            }
        )
    output.fail("natcheck", str(error), status=EXIT_NO_ANSWER)


def _status(verdict: Verdict, seen: Observations, alg: AlgFinding | None) -> int:
    if verdict.nat_type is NatType.BLOCKED:
        return EXIT_NO_ANSWER
    if verdict.nat_type is not NatType.INCONCLUSIVE:
        return EXIT_VERDICT if alg is None or alg.is_known else EXIT_INCONCLUSIVE
    heard = any(o.source is not None for o in seen.seen)
    return EXIT_INCONCLUSIVE if heard else EXIT_NO_ANSWER


def _text(endpoint: Endpoint | None) -> str | None:
    return None if endpoint is None else str(endpoint)


def _document(
    verdict: Verdict, seen: Observations, alg: AlgFinding | None, seconds: float
) -> dict[str, object]:
    """The JSON document, schema 1."""
    return {
        "schema": 1,
        "nat_type": verdict.nat_type.value,
        "mapping": verdict.mapping.value,
        "filtering": verdict.filtering.value,
        "public": _text(verdict.public),
        "local": str(verdict.local),
        "server": str(verdict.server),
        "hairpin": verdict.hairpin,
        "port_preserved": verdict.port_preserved,
        "confidence": verdict.confidence.value,
        "sip": _sip_meaning(verdict),
        "sip_alg": None if alg is None else alg.document(),
        "reasons": list(verdict.reasons),
        "packets_sent": seen.packets_sent,
        "seconds": round(seconds, 3),
        "version": __version__,
        "probes": [_probe(observation) for observation in seen.seen],
    }


def _probe(seen: Observation) -> dict[str, object]:
    return {
        "question": seen.question.value,
        "socket": seen.socket,
        "to": str(seen.destination),
        "sent": seen.sent,
        "outcome": seen.outcome.value,
        "from": _text(seen.source),
        "mapped": _text(seen.mapped),
        "rtt_ms": None if seen.rtt_s is None else round(seen.rtt_s * 1000, 3),
        "detail": seen.detail,
    }


def _show(verdict: Verdict, seen: Observations, alg: AlgFinding | None, *, verbose: bool) -> None:
    """For people: a few lines that fit any terminal."""
    page = output.Page(label_width=11)
    good = verdict.nat_type not in (NatType.SYMMETRIC, NatType.BLOCKED, NatType.INCONCLUSIVE)
    page.row("NAT type", verdict.nat_type.value, style="bold green" if good else "bold yellow")
    page.row("Mapping", f"{verdict.mapping.value}: {_MAPPING_MEANING[verdict.mapping]}")
    page.row("Filtering", f"{verdict.filtering.value}: {_FILTERING_MEANING[verdict.filtering]}")
    page.row("Public", _text(verdict.public) or "unknown")
    page.row("Local", str(verdict.local))
    if verdict.mapping is not Mapping.NONE and verdict.port_preserved is not None:
        page.row("Port", "preserved" if verdict.port_preserved else "not preserved")
    page.row("Hairpin", {True: "yes", False: "no", None: "not tested"}[verdict.hairpin])
    page.row("Server", str(verdict.server))
    page.row("Sure", _sureness(verdict, seen))
    page.row("For SIP", _sip_meaning(verdict), style="bold")
    if alg is not None:
        alg.show(page)
    page.heading("Why")
    for reason in (*verdict.reasons, *(f"SIP ALG: {reason}" for reason in (alg.reasons if alg else ()))):
        page.item(reason)
    if verbose and alg is not None and alg.rewritten:
        page.heading("Rewritten")
        for line in alg.rewritten:
            page.item(line)
    if verbose:
        page.heading("Questions")
        for observation in seen.seen:
            page.item(_probe_line(observation))


def _sureness(verdict: Verdict, seen: Observations) -> str:
    if verdict.confidence is Confidence.NONE:
        return "no, there is no verdict"
    if verdict.confidence is Confidence.PARTIAL:
        return "in part, one thing could not be checked"
    silent = [o.sent for o in seen.seen if o.outcome is Outcome.SILENT and o.sent > 1]
    if not silent:
        return "yes, every part was answered"
    return f"yes, each silence was heard {min(silent)} times or more"


def _sip_meaning(verdict: Verdict) -> str:
    if verdict.nat_type is NatType.INCONCLUSIVE and verdict.mapping is Mapping.ENDPOINT_INDEPENDENT:
        return _SIP_MAPPING_ONLY
    return SIP_MEANING[verdict.nat_type]


def _probe_line(seen: Observation) -> str:
    times = "once" if seen.sent == 1 else f"{seen.sent} times"
    line = f"{seen.question.value}: asked {seen.destination} {times}, {seen.outcome.value}"
    if seen.source is not None:
        line += f" by {seen.source}"
    if seen.rtt_s is not None:
        line += f" in {seen.rtt_s * 1000:.1f} ms"
    if seen.mapped is not None:
        line += f", seen as {seen.mapped}"
    return f"{line} ({seen.detail})" if seen.detail else line


if __name__ == "__main__":
    main()
