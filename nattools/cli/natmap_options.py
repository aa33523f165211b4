"""What all commands of `natmap` have: the options that say who is asked, and what an error ends them with."""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, NoReturn

import click

from nattools.cli import output
from nattools.cli.natmap_keep import StoppedEarlyError
from nattools.endpoint import AddressClass, IPAddress, classify_address
from nattools.errors import LocalAddressError, NatToolsError, NoRouterError, TransportError
from nattools.mapping.client import MappingClient
from nattools.mapping.model import MappingProtocol
from nattools.mapping.ways.routers import Backend

_LOG = logging.getLogger("nattools.natmap")

EXIT_DONE, EXIT_USAGE, EXIT_NO_ROUTER, EXIT_REFUSED, EXIT_NOT_PUBLIC = 0, 2, 3, 4, 5

_DEFAULT_TIMEOUT_S = 1.2  # routers have a second to answer a search; with the start of Python, 2 s in all


@dataclass(frozen=True, slots=True)
class Asking:
    """Who is asked and how: what the options say that all commands have."""

    protocols: tuple[MappingProtocol, ...]
    gateway: IPAddress | None
    interface: str | None
    ipv6: bool
    backend: Backend
    timeout_s: float
    as_json: bool

    def client(self) -> AbstractAsyncContextManager[MappingClient]:
        """The client to ask with."""
        return MappingClient.open(
            protocols=self.protocols,
            gateway=self.gateway,
            interface=self.interface,
            ipv6=self.ipv6,
            backend=self.backend,
            timeout_s=self.timeout_s,
        )


class _Gateway(click.ParamType[IPAddress]):
    """The address of one host; names are not looked up."""

    name = "address"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> IPAddress:
        """Read the address."""
        try:
            address = ip_address(str(value).removeprefix("[").removesuffix("]"))
        except ValueError:
            self.fail(f"{value!r} is not an IP address; names are not looked up.", param, ctx)
        if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        kind = classify_address(address)
        if kind in (AddressClass.MULTICAST, AddressClass.UNSPECIFIED) or address == IPv4Address(0xFFFFFFFF):
            self.fail(f"{address} is not the address of a router.", param, ctx)
        return address


_COMMON = (
    click.option("--gateway", type=_Gateway(), metavar="ADDRESS", help="Ask this router and no other."),
    click.option("--interface", metavar="NAME", help="Look for routers on this network interface only."),
    click.option(
        "-6", "ipv6", is_flag=True, help="Have the router let IPv6 in: by PCP, or by a UPnP pinhole."
    ),
    click.option(
        "--protocol",
        type=click.Choice([protocol.value for protocol in MappingProtocol]),
        multiple=True,
        metavar="NAME",
        help="Ask by pcp, nat-pmp or upnp only; may be repeated, the preferred one first.",
    ),
    click.option(
        "--backend",
        type=click.Choice([backend.value for backend in Backend]),
        default=Backend.NATIVE.value,
        show_default=True,
        help="Who speaks UPnP: nattools itself, or the library miniupnpc.",
    ),
    click.option(
        "--timeout",
        type=click.FloatRange(0.2, 60),
        default=_DEFAULT_TIMEOUT_S,
        show_default=True,
        metavar="SECONDS",
        help="How long to wait for routers; some D-Link ones need 10 s.",
    ),
    click.option("--json", "as_json", is_flag=True, help='Print JSON, with "schema": 1.'),
    click.option("-v", "--verbose", is_flag=True, help="Say on stderr what is asked and answered."),
)


def asking_command(function: Callable[..., Awaitable[int]]) -> Callable[..., None]:
    """Give a command the common options, and make exit statuses of what becomes of it."""

    @functools.wraps(function)
    def command(
        *,
        protocol: tuple[str, ...],
        gateway: IPAddress | None,
        interface: str | None,
        ipv6: bool,
        backend: str,
        timeout: float,
        as_json: bool,
        verbose: bool,
        **own: object,
    ) -> NoReturn:
        if math.isnan(timeout):  # FloatRange lets it through
            raise click.BadParameter("nan is not a number of seconds.", param_hint="--timeout")
        protocols = tuple(MappingProtocol(name) for name in protocol) or tuple(MappingProtocol)
        if Backend(backend) is not Backend.NATIVE and MappingProtocol.UPNP not in protocols:
            raise click.UsageError("--backend is about UPnP, which --protocol leaves out.")
        if gateway is not None and ipv6 and gateway.version == 4:
            raise click.UsageError(f"-6 and an IPv4 gateway, {gateway}, exclude each other.")
        ipv6 = ipv6 or (gateway is not None and gateway.version == 6)
        if ipv6 and Backend(backend) is Backend.MINIUPNPC:
            raise click.UsageError("miniupnpc for Python opens no IPv6 pinholes: leave out --backend.")
        asking = Asking(protocols, gateway, interface, ipv6, Backend(backend), timeout, as_json)
        with _log_on_stderr(verbose):
            _LOG.debug("looking by %s, for %g s at most", ", ".join(p.value for p in protocols), timeout)
            try:
                with _interrupts(held=True):
                    status = asyncio.run(_quiet(function(asking, **own)))
            except StoppedEarlyError as stopped:
                sys.exit(stopped.status)
            except NatToolsError as error:
                if as_json and exit_status(error) != EXIT_USAGE:
                    output.print_json({"schema": 1, "error": str(error)})
                output.fail("natmap", str(error), status=exit_status(error))
        sys.exit(status)

    for option in reversed(_COMMON):
        command = option(command)
    return command


def exit_status(error: NatToolsError) -> int:
    """The exit status for an error."""
    if isinstance(error, LocalAddressError):
        return EXIT_USAGE
    return EXIT_NO_ROUTER if isinstance(error, NoRouterError | TransportError) else EXIT_REFUSED


async def _quiet(work: Awaitable[int]) -> int:
    """Do it, with asyncio's tracebacks made lines of the log."""

    def on_error(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        cause = context.get("exception") or "no more is known"
        _LOG.error("%s: %s", context["message"], cause)

    asyncio.get_running_loop().set_exception_handler(on_error)
    with _interrupts(held=False):
        return await work


@contextmanager
def _interrupts(*, held: bool) -> Iterator[None]:
    """Let Ctrl-C wait, or not: asyncio that is half started or half closed would complain of it."""
    if sys.platform == "win32":
        yield
        return
    how = signal.SIG_BLOCK if held else signal.SIG_UNBLOCK
    former = signal.pthread_sigmask(how, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


@contextmanager
def _log_on_stderr(verbose: bool) -> Iterator[None]:
    """Warnings of nattools on stderr, and with `verbose` everything."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("natmap: %(message)s"))
    logger = logging.getLogger("nattools")
    former, logging.raiseExceptions = logger.level, False  # a stderr that is gone must not end it
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG if verbose else logging.WARNING)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(former)
