"""`stund`: a STUN server for one address, or for two and NAT behaviour tests."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import signal
import sys
import time
from collections.abc import Sequence
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import click

from nattools import __version__
from nattools.endpoint import IPAddress
from nattools.errors import TransportError
from nattools.stun.responder import DEFAULT_ALTERNATE_PORT, DEFAULT_PORT, ServerAddresses
from nattools.stun.server import AnswerOther, StunServer

if TYPE_CHECKING:
    from nattools.sip.reflector import Reflector

DEFAULT_SIP_PORT = 5060

_log = logging.getLogger("nattools.stund")

_HELP = """Serve STUN on ADDRESS, by default on every IPv4 address of this machine.

A STUN server tells a client from which public address and port its datagrams arrive, and so what its
NAT has made of them. stund speaks RFC 8489, RFC 5780 and the older RFC 3489 that many phones still use,
over UDP and TCP, without passwords. It answers from the address that was asked.

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

\b
SAFETY
  What is no request is never answered. A reply goes to the IP address that
  asked and to no other, so a RESPONSE-ADDRESS elsewhere gets nothing. Over
  UDP it has at most 2.8 times the bytes of the request.
  A reflected SIP request gets at most 2.8 times its bytes; of those, each
  client is answered 5 a second, and all together 200.

\b
OUTPUT
  On stderr: one line once everything is served; one when stund stops, on
  SIGTERM or SIGINT, with how much was answered and what was dropped why.
  Nothing on stdout.

\b
EXIT CODES
  0  stopped by a signal
  1  an address or port cannot be had; the line on stderr says which and why
  2  the command line is wrong
"""


@click.command(help=_HELP, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("address", default="0.0.0.0")
@click.argument("alternate", required=False)
@click.option(
    "--port",
    metavar="PORT",
    type=click.IntRange(0, 65535),
    default=DEFAULT_PORT,
    show_default=True,
    help="The port on each address; 0 takes a free one.",
)
@click.option(
    "--alternate-port",
    metavar="PORT",
    type=click.IntRange(0, 65535),
    help=f"The second port: {DEFAULT_ALTERNATE_PORT} with two addresses; with one, none unless given.",
)
@click.option(
    "--sip-reflector", is_flag=True, help="Answer SIP requests with what arrived, for natcheck --sip-alg."
)
@click.option(
    "--sip-port",
    "sip_ports",
    metavar="PORT",
    type=click.IntRange(0, 65535),
    multiple=True,
    help=f"A UDP port for STUN and SIP beside the others, {DEFAULT_SIP_PORT} unless given; may be repeated.",
)
@click.option("-v", "--verbose", is_flag=True, help="Log each request and what became of it.")
@click.version_option(__version__, prog_name="stund")
def command(
    address: str,
    alternate: str | None,
    port: int,
    alternate_port: int | None,
    sip_reflector: bool,
    sip_ports: tuple[int, ...],
    verbose: bool,
) -> None:
    """Run the server until a signal stops it."""
    if sip_ports and not sip_reflector:
        raise click.UsageError("--sip-port says where --sip-reflector answers: give that as well")
    if alternate is not None and alternate_port is None:
        alternate_port = DEFAULT_ALTERNATE_PORT
    try:
        addresses = ServerAddresses(
            _address(address), port, None if alternate is None else _address(alternate), alternate_port
        )
    except TransportError as error:
        raise click.UsageError(str(error)) from error
    _log_to_stderr(verbose)
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:  # Proactor has no add_reader
        runner.run(_serve(addresses, (sip_ports or (DEFAULT_SIP_PORT,)) if sip_reflector else None))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; whatever goes wrong is one line on stderr and an exit code."""
    try:
        command(arguments, prog_name="stund", standalone_mode=False)
    except click.ClickException as error:
        click.echo(f"stund: {error.format_message()} (stund --help tells more)", err=True)
        sys.exit(error.exit_code)
    except TransportError as error:
        click.echo(f"stund: {error}", err=True)
        sys.exit(1)
    except (click.Abort, KeyboardInterrupt):  # SIGINT so early that nothing was served yet
        sys.exit(0)
    finally:
        _forget_what_stderr_refused()


def _address(text: str) -> IPAddress:
    try:
        return ip_address(text.removeprefix("[").removesuffix("]"))
    except ValueError:
        raise click.UsageError(
            f"{text!r} is not an IP address; names are not looked up, give an address of this machine"
        ) from None


def _log_to_stderr(verbose: bool) -> None:
    """Give the log of nattools to stderr. A stderr that is gone must not stop the server."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("stund: %(message)s"))
    logger = logging.getLogger("nattools")
    logger.addHandler(handler)
    logger.propagate = False
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)
    logging.raiseExceptions = False


def _forget_what_stderr_refused() -> None:
    """Python would try once more at its end, and make a failure of the server's exit code out of it."""
    try:
        sys.stderr.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


async def _serve(addresses: ServerAddresses, sip_ports: Sequence[int] | None) -> None:
    """Serve until a signal comes; with `sip_ports` as a SIP reflector, too."""
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_on_loop_error)
    stop = asyncio.Event()
    _stop_on_signals(loop, stop)
    reflector = None if sip_ports is None else _new_reflector()
    async with await StunServer.start(
        addresses,
        more_ports=sip_ports or (),
        answer_other=None if reflector is None else _reflection_of(reflector),
    ) as server:
        _log.info("%s", _start_line(server))
        while not stop.is_set():
            # Windows does not wake a waiting loop for a signal
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), 0.5 if sys.platform == "win32" else None)
    reflected = "" if reflector is None else f"; {reflector.summary()}"
    _log.info("stopped: %s%s", server.summary(), reflected)


def _new_reflector() -> Reflector:
    from nattools.sip.reflector import Reflector  # with all of SIP; most servers need none of it

    return Reflector(entropy=secrets.token_bytes)


def _reflection_of(reflector: Reflector) -> AnswerOther:
    return lambda data, source: reflector.answer(data, source, now=time.monotonic())


def _stop_on_signals(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            loop.add_signal_handler(number, stop.set)
        except NotImplementedError:  # Windows
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(stop.set))


def _on_loop_error(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """In one line what asyncio reports with a traceback, such as a lack of file descriptors."""
    _log.error("%s: %s", context["message"], context.get("exception") or "no more is known")


def _start_line(server: StunServer) -> str:
    addresses = server.addresses
    sockets = ", ".join(map(str, addresses.endpoints))
    served = {endpoint.port for endpoint in addresses.endpoints}
    line = f"serving {sockets} (UDP and TCP)"
    if addresses.alternate_address is not None:
        line += ", NAT behaviour tests included"
    else:
        line += (
            "; with one address clients learn their public address, but cannot"
            " test NAT filtering: CHANGE-REQUEST is refused, OTHER-ADDRESS omitted"
        )
    if server.more_ports:
        others = [str(port) for port in dict.fromkeys(server.more_ports) if port not in served]
        line += "; reflecting SIP there" + (f" and on UDP port {', '.join(others)}" if others else "")
    return line


if __name__ == "__main__":
    main()
