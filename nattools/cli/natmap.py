"""`natmap`: ask the router for its ports, and see what became of them."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

import click

from nattools import __version__
from nattools.cli import natmap_text, output
from nattools.cli.natmap_keep import keep_until_stopped
from nattools.cli.natmap_options import (
    EXIT_DONE,
    EXIT_NO_ROUTER,
    EXIT_NOT_PUBLIC,
    EXIT_REFUSED,
    EXIT_USAGE,
    Asking,
    asking_command,
    exit_status,
)
from nattools.cli.natmap_table import Row, rows
from nattools.cli.quiet_group import QuietGroup
from nattools.endpoint import Endpoint, IPAddress, TransportProtocol
from nattools.errors import (
    MappingError,
    NatToolsError,
    NoRouterError,
)
from nattools.mapping.client import MappingClient, Survey
from nattools.mapping.model import (
    DEFAULT_LEASE_S,
    LONGEST_LEASE_S,
    MappingProtocol,
    MappingRequest,
    PortMapping,
)
from nattools.mapping.registry import is_running
from nattools.mapping.state import Record
from nattools.mapping.ways.routers import no_router
from nattools.net.interfaces import interfaces
from nattools.upnp.igd import MOST_DESCRIPTION_CHARACTERS, PortMappingEntry, clean_description

_HELP_OPTIONS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
_PORT = click.IntRange(1, 65535)
_EPILOG = (
    f"Exit status: {EXIT_DONE} done, {EXIT_USAGE} wrong usage, {EXIT_NO_ROUTER} no router answered, "
    f"{EXIT_REFUSED} refused, {EXIT_NOT_PUBLIC} the router's address is not public. See natmap --help."
)

_HELP = f"""Ask the router for its ports: by PCP, NAT-PMP or UPnP, whichever it speaks.

\b
EXAMPLES
  natmap status                    what the router can do, and whether it helps
  natmap add 5060 --keep           map UDP port 5060 for as long as natmap runs
  natmap add 5061 --tcp            map a TCP port and leave it there for an hour
  natmap list                      the router's mappings: whose, and for how long
  natmap remove 5061 --tcp         remove one
  natmap ip                        the external address alone

\b
Exit status:
  {EXIT_DONE}  done
  {EXIT_USAGE}  wrong usage
  {EXIT_NO_ROUTER}  no router answered
  {EXIT_REFUSED}  the router refused, or there is no such mapping
  {EXIT_NOT_PUBLIC}  done, but the router's address is not public: a second NAT keeps callers out

Mappings are remembered below the user's state directory (XDG_STATE_HOME). What a killed natmap left on the
router, the next natmap status, ip or add removes.
"""


@click.group(cls=QuietGroup, help=_HELP, context_settings=_HELP_OPTIONS, invoke_without_command=True)
@click.version_option(__version__, prog_name="natmap")
@click.pass_context
def main(context: click.Context) -> None:
    """Choose one of the commands."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@main.command(context_settings=_HELP_OPTIONS, epilog=_EPILOG)
@asking_command
async def status(asking: Asking) -> int:
    """Show what the router can do.

    The gateway, the protocols that it speaks, its model and external address, whether there is a second NAT
    in front of it, and what all that means for SIP.
    """
    async with asking.client() as client:
        survey = await client.survey()
        if survey.found:
            await client.tidy()
        interface = _interface(survey)
        if asking.as_json:
            output.print_json(natmap_text.survey_document(survey, interface=interface))
        else:
            natmap_text.show_survey(survey, interface=interface)
    if not survey.found:
        return EXIT_NO_ROUTER
    return _status_of_address(survey.external_address)


@main.command(context_settings=_HELP_OPTIONS, epilog=_EPILOG)
@click.argument("port", type=_PORT)
@click.option(
    "--external", type=_PORT, metavar="PORT", help="Take this port of the router's, or none.  [default: any]"
)
@click.option("--udp/--tcp", "udp", default=True, help="What PORT is a port of.  [default: udp]")
@click.option(
    "--lease",
    type=click.IntRange(0, LONGEST_LEASE_S),
    default=DEFAULT_LEASE_S,
    show_default=True,
    metavar="SECONDS",
    help="How long the router shall keep it; 0 is for ever, which only UPnP has.",
)
@click.option("--keep", is_flag=True, help="Stay, renew it, show changes, and remove it at the end.")
@click.option("--description", default="nattools", show_default=True, metavar="TEXT", help="Its name there.")
@asking_command
async def add(
    asking: Asking, *, port: int, external: int | None, udp: bool, lease: int, keep: bool, description: str
) -> int:
    """Map a port of the router's to PORT of this machine.

    The external port is PORT too where the router lets it be, else any. Without --keep the mapping stays on
    the router for its lease, unless it is removed.

    With --keep natmap stays, and writes a line for each change: renewed, changed, lost, restored. SIGINT
    (Ctrl-C), SIGTERM and SIGHUP end it; that is a success, once the mapping is removed. With --json each
    line is a JSON document.
    """
    if clean_description(description) != description:
        raise click.BadParameter(
            f"routers keep at most {MOST_DESCRIPTION_CHARACTERS} characters of printable ASCII.",
            param_hint="--description",
        )
    own_address = IPv6Address(0) if asking.ipv6 else IPv4Address(0)
    request = MappingRequest(
        Endpoint(own_address, port), _transport(udp), external, lease or None, description
    )
    async with asking.client() as client:
        try:
            if keep:
                mapping = await keep_until_stopped(client, request, as_json=asking.as_json)
            else:
                mapping = await _add(client, request, as_json=asking.as_json)
        except NoRouterError:
            raise
        except MappingError:  # of which a second NAT may be the true reason
            survey = await client.survey()
            if survey.found:
                natmap_text.warn_unless_public(survey.external_address)
            raise
    return _status_of_address(mapping.external_address)


async def _add(client: MappingClient, request: MappingRequest, *, as_json: bool) -> PortMapping:
    mapping = await client.acquire(request, keep=False)
    if as_json:
        output.print_json({"schema": 1, "mapping": natmap_text.mapping_document(mapping)})
    else:
        natmap_text.show_mapping(mapping, kept=False)
    natmap_text.warn_unless_public(mapping.external_address)
    return mapping


@main.command(name="list", context_settings=_HELP_OPTIONS, epilog=_EPILOG)
@asking_command
async def list_mappings(asking: Asking) -> int:
    """List the router's mappings.

    For each: the external port, what it leads to, whose it is, and the time left. PCP and NAT-PMP routers
    list nothing; of those, the mappings are shown that were made from this machine.
    """
    async with asking.client() as client:
        table = await _read_table(client, asking)
    address = table.external_address
    if asking.as_json:
        documents = [
            natmap_text.row_document(row, gateway=table.gateway, external_address=address)
            for row in table.rows
        ]
        output.print_json({"schema": 1, "gateway": str(table.gateway), "mappings": documents})
    else:
        natmap_text.show_rows(table.rows, gateway=table.gateway, external_address=address)
    return EXIT_DONE


@main.command(context_settings=_HELP_OPTIONS, epilog=_EPILOG)
@click.argument("port", type=_PORT, required=False)
@click.option("--udp/--tcp", "udp", default=True, help="What PORT is a port of.  [default: udp]")
@click.option(
    "--all-mine", is_flag=True, help="Remove every mapping that nattools made from this machine as this user."
)
@click.option("--force", is_flag=True, help="Also another host's, and what a running process keeps.")
@asking_command
async def remove(asking: Asking, *, port: int | None, udp: bool, all_mine: bool, force: bool) -> int:
    """Remove the mapping of external port PORT, as `natmap list` shows it."""
    if (port is None) != all_mine:
        raise click.UsageError("Name one external PORT, or --all-mine.")
    removed: list[PortMapping] = []
    failed: list[tuple[PortMapping, NatToolsError]] = []
    async with asking.client() as client:
        if port is None:
            mappings = [_removable(record, force=force) for record in client.registry.records()]
        else:
            table = await _read_table(client, asking)
            mappings = [_chosen(row, table, force=force) for row in _at_port(table, port, _transport(udp))]
        for mapping, refused in mappings:
            try:
                if refused is not None:
                    raise refused
                await client.release(mapping)
            except NatToolsError as error:
                failed.append((mapping, error))
            else:
                removed.append(mapping)
    _show_removed(removed, failed, as_json=asking.as_json)
    return exit_status(failed[0][1]) if failed else EXIT_DONE


@main.command(context_settings=_HELP_OPTIONS, epilog=_EPILOG)
@asking_command
async def ip(asking: Asking) -> int:
    """Print the router's external address, and nothing else."""
    async with asking.client() as client:
        address = await client.external_address()
        await client.tidy()
    if asking.as_json:
        output.print_json({"schema": 1, **natmap_text.address_document(address)})
    elif address is not None:
        print(address)
    natmap_text.warn_unless_public(address)
    return _status_of_address(address)


def _status_of_address(address: IPAddress | None) -> int:
    return EXIT_DONE if natmap_text.not_public(address) is None else EXIT_NOT_PUBLIC


def _transport(udp: bool) -> TransportProtocol:
    return TransportProtocol.UDP if udp else TransportProtocol.TCP


def _interface(survey: Survey) -> str | None:
    """The interface that leads to the gateway."""
    if survey.network.interface is not None:
        return survey.network.interface
    return next((i.name for i in interfaces() if survey.network.local in i.ips), None)


@dataclass(frozen=True, slots=True)
class _Table:
    """The router's mappings, as far as they can be known."""

    rows: list[Row]
    gateway: IPAddress
    external_address: IPAddress | None


async def _read_table(client: MappingClient, asking: Asking) -> _Table:
    survey = await client.survey()
    if not survey.found:
        raise no_router(survey.network, survey.failed)
    shown = survey.found.get(MappingProtocol.UPNP)
    entries: list[PortMappingEntry] | None = None
    if shown is not None:
        try:
            entries = await shown.entries()
        except NatToolsError as error:
            output.warn("natmap", f"the router does not show its mappings: {error}")
    gateways = {way.gateway for way in survey.found.values()}
    found = rows(
        entries,
        [r for r in client.registry.records() if r.mapping.gateway in gateways and _is_asked(r, asking)],
        table_of=None if shown is None else shown.gateway,
        own_addresses={address for interface in interfaces() for address in interface.ips},
        is_running=is_running,
        wall_clock_s=time.time(),
    )
    first = shown or next(iter(survey.found.values()))
    return _Table(found, first.gateway, survey.external_address)


def _is_asked(record: Record, asking: Asking) -> bool:
    under_way = not record.granted and is_running(record.owner)
    return record.mapping.protocol in asking.protocols and not under_way


def _at_port(table: _Table, port: int, transport: TransportProtocol) -> Iterable[Row]:
    at_port = [row for row in table.rows if row.external_port == port]
    found = [row for row in at_port if row.transport is transport]
    if not found:
        name = f"{transport.name.lower()} port {port}"
        other = f"; {at_port[0].transport.name.lower()} port {port} is" if at_port else ""
        raise MappingError(f"{name} is not mapped on {table.gateway}{other}: see natmap list")
    return found


def _chosen(row: Row, table: _Table, *, force: bool) -> tuple[PortMapping, MappingError | None]:
    """What to remove, unless it is somebody else's."""
    mapping = row.mapping(table.gateway)
    name = f"{row.transport.name.lower()} port {row.external_port}"
    if mapping is None:
        raise MappingError(
            f"{name} leads to {row.internal_text}, a host without an address: remove it in the router's pages"
        )
    if row.record is not None:
        return _removable(row.record, force=force)
    if row.is_ours or force:
        return mapping, None
    what = f" ({row.description})" if row.description else ""
    return mapping, MappingError(
        f"{name} is the mapping of {natmap_text.owner(row)}{what}: --force removes it"
    )


def _removable(record: Record, *, force: bool) -> tuple[PortMapping, MappingError | None]:
    """What to remove, unless a running process keeps it."""
    mapping = record.mapping
    if force or not (record.kept and is_running(record.owner)):
        return mapping, None
    name = f"{mapping.transport.name.lower()} port {mapping.external_port}"
    return mapping, MappingError(
        f"{name} is kept by process {record.owner.pid}: end that, or it will be made again"
    )


def _show_removed(
    removed: list[PortMapping], failed: list[tuple[PortMapping, NatToolsError]], *, as_json: bool
) -> None:
    if as_json:
        output.print_json(
            {
                "schema": 1,
                "removed": [natmap_text.mapping_document(mapping) for mapping in removed],
                "failed": [
                    {**natmap_text.mapping_document(mapping), "reason": str(error)}
                    for mapping, error in failed
                ],
            }
        )
    else:
        for mapping in removed:
            print(f"removed {natmap_text.mapping_line(mapping)}")
        if not removed and not failed:
            print("there is nothing to remove")
    for _, error in failed:
        output.warn("natmap", str(error))


if __name__ == "__main__":
    main(prog_name="natmap")
