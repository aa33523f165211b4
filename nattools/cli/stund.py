"""`stund`: a STUN server for one address of each family, or for two and NAT behaviour tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from nattools import __version__
from nattools.cli.log import log_to_stderr
from nattools.cli.service import EXIT_CANNOT, EXIT_DONE, EXIT_USAGE, run_service
from nattools.cli.settings_file import read_settings_file
from nattools.cli.stund_equipment import Equipment
from nattools.cli.stund_serve import run
from nattools.errors import DecodeError
from nattools.stun.responder import DEFAULT_ALTERNATE_PORT, DEFAULT_PORT
from nattools.stun.settings import (
    DEFAULT_PEER_PORT,
    DEFAULT_SIP_PORT,
    LEVELS,
    CredentialKind,
    StundSettings,
    parse_limit,
)
from nattools.stun.uri import TLS_PORT
from nattools.words import LogForm

_PATHS_IN_FILE = ("users", "peer_key", "certificate", "key")

_HELP = f"""Serve STUN on each ADDRESS, by default on every IPv4 and IPv6 address of this machine.

A STUN server tells a client from which public address and port its datagrams arrive, and so what its
NAT has made of them. stund speaks RFC 8489, RFC 5780 and the older RFC 3489 that many phones still use,
over UDP and TCP, and with a certificate over TLS. It answers from the address that was asked.

\b
ONE ADDRESS
  Clients learn their public address. They cannot test how their NAT filters,
  and stund does not pretend that they can: it names no other address, and
  refuses CHANGE-REQUEST with error 420.

\b
TWO ADDRESSES
  of one family must both be this machine's, and clients must reach both.
  stund then has four sockets, each address with --port and --alternate-port,
  and clients can run every test of RFC 5780 and RFC 3489.

\b
TWO MACHINES
  with one address each do the same: run stund on each with --peer, the
  other's address, and --peer-key, a file with the same secret on both. While
  the other is away each serves as one address does. For both families give
  --peer twice.

\b
ADDRESSES
  are given as numbers; names are not looked up. One or two of each family
  can be given, IPv4 and IPv6 side by side. Ports are the same for all.

\b
TLS
  With --certificate and --key stund serves TLS on --tls-port of each address,
  and on its other TCP ports to clients that begin with it. With
  --shared-secrets anybody gets a password there that is good for ten minutes
  and for the own IP address, to seal requests and replies (RFC 3489).

\b
SIP REFLECTOR
  With --sip-reflector stund also answers SIP requests, each with a response
  that has the request as it arrived for its body, on all its UDP ports and on
  --sip-port. `natcheck --sip-alg` compares that with what it sent, and so
  finds out whether a router on the way rewrites SIP (a SIP ALG). No other SIP
  server can have the same port.

\b
EXAMPLES
  stund                            every address, port 3478
  stund 0.0.0.0                    every IPv4 address
  stund 192.0.2.1 192.0.2.2        NAT behaviour tests, ports 3478 and 3479
  stund 192.0.2.1 2001:db8::1      one address of each family
  stund --port 19302 2001:db8::1   one IPv6 address, another port
  stund -v 127.0.0.1 127.0.0.2     try it out; every request is logged
  stund --sip-reflector 192.0.2.1  STUN and reflected SIP, ports 3478 and 5060
  stund --advertise 10.0.0.5=192.0.2.1 10.0.0.5
                                   where the cloud maps an address 1:1
  stund --config stund.toml --check-config

\b
SETTINGS
  The file of --config has the same words, and more: docs/stund.md lists them.
  A flag overrules it.

\b
SAFETY
  What is no request is never answered. A reply goes to the IP address that
  asked and to no other, so a RESPONSE-ADDRESS elsewhere gets nothing. Over
  UDP it has at most 2.8 times the bytes of the request, but for the PADDING
  that a user of --users or with a shared secret has asked for.
  Each socket of a client is answered 20 times a second (40 at once), each
  address and network a multiple of that; nobody is banned. --limit sets it.
  Each address may have 32 connections, and open 32 a second, of 256 in all.
  With --users CHANGE-REQUEST, RESPONSE-PORT and PADDING are for users only;
  what a plain request is answered needs no password.
  A reflected SIP request gets at most 2.8 times its bytes; of those, each
  client is answered 5 a second, and all together 200.

\b
OUTPUT
  On stderr: one line once everything is served; one when stund stops, on
  SIGTERM or SIGINT, with how much was answered and what was dropped why.
  --log json makes them JSON. Nothing on stdout.

\b
SIGNALS
  SIGTERM, SIGINT  stop
  SIGHUP           reads limits, users and certificate again; nothing is lost

\b
EXIT CODES
  {EXIT_DONE}  stopped by a signal; with --check-config: the settings are good
  {EXIT_CANNOT}  an address or port cannot be had; the line on stderr says which and why
  {EXIT_USAGE}  the command line, the settings or the file of users are wrong
"""


@click.command(help=_HELP, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("addresses", metavar="[ADDRESS]...", nargs=-1)
@click.option(
    "--port",
    metavar="PORT",
    type=click.IntRange(0, 65535),
    help=f"The port on each address; 0 takes a free one.  [default: {DEFAULT_PORT}]",
)
@click.option(
    "--alternate-port",
    metavar="PORT",
    type=click.IntRange(0, 65535),
    help=f"The second port: {DEFAULT_ALTERNATE_PORT} with two addresses or a peer, else none unless given.",
)
@click.option(
    "--sip-reflector",
    is_flag=True,
    default=None,
    help="Answer SIP requests with what arrived, for natcheck --sip-alg.",
)
@click.option(
    "--sip-port",
    "sip_ports",
    metavar="PORT",
    type=click.IntRange(0, 65535),
    multiple=True,
    help=f"A UDP port for STUN and SIP beside the others, {DEFAULT_SIP_PORT} unless given; may be repeated.",
)
@click.option(
    "--advertise",
    metavar="PRIVATE=PUBLIC",
    multiple=True,
    help="What clients are told instead of an address of this machine; may be repeated.",
)
@click.option(
    "--peer",
    "peers",
    metavar="ADDRESS",
    multiple=True,
    help="Another machine with stund, whose address is the alternate one; one of each family.",
)
@click.option("--peer-key", metavar="FILE", help="A file with a secret that both machines have.")
@click.option(
    "--peer-port",
    metavar="PORT",
    type=click.IntRange(1, 65535),
    help=f"The UDP port over which the two talk.  [default: {DEFAULT_PEER_PORT}]",
)
@click.option("--certificate", metavar="FILE", help="The certificate for TLS, with its chain (PEM).")
@click.option("--key", metavar="FILE", help="Its private key (PEM).")
@click.option(
    "--tls-port",
    metavar="PORT",
    type=click.IntRange(1, 65535),
    help=f"The TCP port for TLS on each address.  [default: {TLS_PORT}]",
)
@click.option(
    "--shared-secrets",
    is_flag=True,
    default=None,
    help="Hand out short-lived passwords over TLS, as RFC 3489 has it.",
)
@click.option(
    "--limit",
    "limits",
    metavar="LEVEL=PER_SECOND:AT_ONCE",
    multiple=True,
    help=f"What one source may ask; LEVEL is {', '.join(LEVELS)}. May be repeated.",
)
@click.option("--users", metavar="FILE", help="Names and passwords, a TOML file with a table [users].")
@click.option(
    "--credentials",
    metavar="KIND",
    help=f"How they are used: {' or '.join(CredentialKind)}.  [default: {CredentialKind.LONG_TERM}]",
)
@click.option("--user", metavar="NAME", help="Become this user once all ports are bound; started as root.")
@click.option(
    "--workers", metavar="N", type=click.IntRange(1), help="How many processes serve (Linux).  [default: 1]"
)
@click.option(
    "--metrics",
    metavar="ADDRESS:PORT",
    help="Serve /metrics, /health and /live there by HTTP.  [default: nowhere]",
)
@click.option(
    "--log", metavar="FORM", help=f"How lines are written: {' or '.join(LogForm)}.  [default: text]"
)
@click.option("--config", metavar="FILE", help="A TOML file with these and more settings.")
@click.option("--check-config", is_flag=True, help="Say whether the settings are good, and end.")
@click.option("-v", "--verbose", is_flag=True, help="Log each request and what became of it.")
@click.version_option(__version__, prog_name="stund")
def command(*, config: str | None, check_config: bool, verbose: bool, **flags: object) -> None:
    """Run the server until a signal stops it."""
    said = {name: value for name, value in flags.items() if value not in (None, ())}
    path = None if config is None else Path(config)
    try:
        settings = _settings(path, said)
        log_to_stderr("stund", settings.log, verbose=verbose)
        equipment = Equipment.of(settings)
        if check_config:
            sockets = [str(endpoint) for family in settings.families for endpoint in family.endpoints]
            tls = "" if settings.tls_port is None else f"; TLS on port {settings.tls_port} of each address"
            click.echo(f"the settings are good: {', '.join(sockets)}{tls}")
        else:
            run(settings, equipment, lambda: _settings(path, said))
    except DecodeError as error:
        raise click.UsageError(str(error)) from error


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; whatever goes wrong is one line on stderr and an exit code."""
    run_service("stund", command, arguments)


def _settings(config: Path | None, flags: Mapping[str, object]) -> StundSettings:
    """The settings in the file, and in their place what flags say. Raises `DecodeError`."""
    words = {} if config is None else read_settings_file(config, StundSettings.of, paths=_PATHS_IN_FILE)
    said = dict(flags)
    limits = said.pop("limits", None)
    if isinstance(limits, tuple):  # each level for itself
        of_file = words.get("limits")
        said["limits"] = (of_file if isinstance(of_file, dict) else {}) | dict(map(parse_limit, limits))
    return StundSettings.of(words | said)


if __name__ == "__main__":
    main()
