"""`stund`: a STUN server for one address, or for two and NAT behaviour tests."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from nattools import __version__
from nattools.cli.stund_log import forget_what_stderr_refused, log_to_stderr
from nattools.cli.stund_serve import Users, identity_of, link_of, run
from nattools.errors import DecodeError, TransportError
from nattools.stun.responder import DEFAULT_ALTERNATE_PORT, DEFAULT_PORT
from nattools.stun.settings import (
    DEFAULT_PEER_PORT,
    DEFAULT_SIP_PORT,
    LEVELS,
    MOST_FILE_BYTES,
    CredentialKind,
    LogForm,
    StundSettings,
    parse_limit,
    parse_words,
)

EXIT_DONE = 0
EXIT_CANNOT = 1
EXIT_USAGE = 2

_HELP = f"""Serve STUN on ADDRESS, by default on every IPv4 address of this machine.

A STUN server tells a client from which public address and port its datagrams arrive, and so what its
NAT has made of them. stund speaks RFC 8489, RFC 5780 and the older RFC 3489 that many phones still use,
over UDP and TCP. It answers from the address that was asked.

\b
ONE ADDRESS
  Clients learn their public address. They cannot test how their NAT filters,
  and stund does not pretend that they can: it names no other address, and
  refuses CHANGE-REQUEST with error 420.

\b
TWO ADDRESSES
  Both must be addresses of this machine, and clients must reach both. stund
  then has four sockets, ADDRESS and ALTERNATE with --port and
  --alternate-port, and clients can run every test of RFC 5780 and RFC 3489.

\b
TWO MACHINES
  with one address each do the same: run stund on each with --peer, the
  other's address, and --peer-key, a file with the same secret on both. While
  the other is away each serves as one address does.

\b
ADDRESSES
  are given as numbers; names are not looked up. IPv6 works (stund ::). For
  both families run one stund for each.

\b
SIP REFLECTOR
  With --sip-reflector stund also answers SIP requests, each with a response
  that has the request as it arrived for its body, on all its UDP ports and on
  --sip-port. `natcheck --sip-alg` compares that with what it sent, and so
  finds out whether a router on the way rewrites SIP (a SIP ALG). No other SIP
  server can have the same port.

\b
EXAMPLES
  stund                            every IPv4 address, port 3478
  stund 192.0.2.1 192.0.2.2        NAT behaviour tests, ports 3478 and 3479
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
  that a user of --users has asked for.
  Each socket of a client is answered 20 times a second (40 at once), each
  address and network a multiple of that; nobody is banned. --limit sets it.
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
  SIGHUP           reads limits and users again; nothing is lost

\b
EXIT CODES
  {EXIT_DONE}  stopped by a signal; with --check-config: the settings are good
  {EXIT_CANNOT}  an address or port cannot be had; the line on stderr says which and why
  {EXIT_USAGE}  the command line, the settings or the file of users are wrong
"""


@click.command(help=_HELP, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("address", required=False)
@click.argument("alternate", required=False)
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
    help=f"The second port: {DEFAULT_ALTERNATE_PORT} with two addresses; with one, none unless given.",
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
    metavar="ADDRESS",
    help="Another machine with stund, whose address is the alternate one.",
)
@click.option("--peer-key", metavar="FILE", help="A file with a secret that both machines have.")
@click.option(
    "--peer-port",
    metavar="PORT",
    type=click.IntRange(1, 65535),
    help=f"The UDP port over which the two talk.  [default: {DEFAULT_PEER_PORT}]",
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
    "--metrics", metavar="ADDRESS:PORT", help="Serve /metrics and /health there.  [default: nowhere]"
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
        log_to_stderr(settings.log, verbose=verbose)
        users = None if settings.users is None else Users(settings)
        link = link_of(settings)
        identity = identity_of(settings)
        if check_config:
            click.echo(f"the settings are good: {', '.join(map(str, settings.addresses.endpoints))}")
        else:
            run(settings, users, link, identity, lambda: _settings(path, said))
    except DecodeError as error:
        raise click.UsageError(str(error)) from error


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; whatever goes wrong is one line on stderr and an exit code."""
    try:
        command(arguments, prog_name="stund", standalone_mode=False)
    except click.ClickException as error:
        click.echo(f"stund: {error.format_message()} (stund --help tells more)", err=True)
        sys.exit(error.exit_code)
    except TransportError as error:
        click.echo(f"stund: {error}", err=True)
        sys.exit(EXIT_CANNOT)
    except (click.Abort, KeyboardInterrupt):  # SIGINT so early that nothing was served yet
        sys.exit(EXIT_DONE)
    finally:
        forget_what_stderr_refused()


def _settings(config: Path | None, flags: Mapping[str, object]) -> StundSettings:
    """The settings in the file, and in their place what flags say. Raises `DecodeError`."""
    words = {} if config is None else _read(config)
    said = dict(flags)
    limits = said.pop("limits", None)
    if isinstance(limits, tuple):  # each level for itself
        of_file = words.get("limits")
        said["limits"] = (of_file if isinstance(of_file, dict) else {}) | dict(map(parse_limit, limits))
    return StundSettings.of(words | said)


def _read(path: Path) -> dict[str, object]:
    """The words of the file, with the paths in it relative to where it is. Raises `DecodeError`."""
    try:
        with path.open("rb") as file:
            data = file.read(MOST_FILE_BYTES + 1)
        if len(data) > MOST_FILE_BYTES:
            raise DecodeError(f"over {MOST_FILE_BYTES} bytes, so it is no settings file")
        words = dict(parse_words(data.decode("utf-8-sig")))  # Windows editors put a mark in front
        StundSettings.of(words)
    except FileNotFoundError as error:
        raise DecodeError(f"{path}: there is no such settings file") from error
    except UnicodeDecodeError as error:
        raise DecodeError(f"{path}: not UTF-8, which TOML must be: save it as UTF-8") from error
    except (OSError, ValueError) as error:  # a path with a zero byte is a ValueError
        reason = error.strerror if isinstance(error, OSError) else error
        raise DecodeError(f"{path}: the settings cannot be read: {reason}") from error
    except DecodeError as error:
        raise DecodeError(f"{path}: {error}") from error
    for name in ("users", "peer_key"):
        file_name = words.get(name)
        if isinstance(file_name, str) and file_name:
            words[name] = str(path.parent / Path(file_name).expanduser())
    return words


if __name__ == "__main__":
    main()
