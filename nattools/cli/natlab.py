"""`natlab`: run a command behind a NAT of a named kind."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import TYPE_CHECKING, NoReturn

import click

from nattools import __version__
from nattools.cli import output
from nattools.errors import LabError
from nattools.lab.holder import EXIT_CANNOT_RUN, EXIT_LAB, EXIT_NOT_FOUND, attend, end_as
from nattools.lab.igd import Igd
from nattools.lab.namespaces import Lab
from nattools.lab.nat import MEANINGS, NatKind, behavior
from nattools.lab.topology import IGD_KINDS, SERVER, Topology

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_KINDS = click.Choice([kind.value for kind in NatKind])
_IGD_NAT = NatKind.PORT_RESTRICTED_CONE
_HELP_OPTIONS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

_HELP = """Run a command behind a NAT of the kind you name, on this machine alone.

The NAT is the Linux kernel's own, between network namespaces that exist only as long as the command runs.
No packet leaves the machine, nothing on it is changed, and root is not needed where ordinary users may have
user namespaces.

\b
EXAMPLES
  natlab list                                        the kinds of NAT
  natlab run --nat symmetric -- natcheck             what natcheck says of one of them
  natlab run --nat port-restricted-cone -- bash      look around in a shell
  natlab run --igd 2 -- natmap status                a router that grants mappings
  natlab run --help                                  the network, and all options
"""

_RUN_HELP = f"""Run COMMAND behind a NAT, and end with its exit status.

\b
THE NETWORK
  COMMAND's host   192.168.0.108 behind the router's public address 203.0.113.1, or 198.51.100.108
                   where nothing is translated (open, symmetric-firewall)
  a STUN server    203.0.113.10 and 203.0.113.11, ports 3478 and 3479: stund, over UDP and TCP; over UDP
                   on port 5060, too, and for natcheck --sip-alg it reflects SIP
  with --igd       a miniupnpd on the router, 192.168.0.1, whose public address is then 11.22.33.2; and
                   IPv6, 2001:db8:1::108, which nobody outside reaches without asking for a pinhole
  and that is all  the machine's own network, and its name servers, are out of reach

\b
COMMAND
  has your terminal, stdin, directory and environment, with NATCHECK_SERVER={SERVER} added,
  which natcheck reads, and natcheck itself at the end of PATH. It receives your signals. Whatever it
  leaves running ends with it, also when natlab itself is killed. To an ordinary user it looks as if it
  ran as root; towards the machine it does not.

\b
EXAMPLES
  natlab run --nat full-cone -- natcheck
  natlab run --nat restricted-cone --loss 20 -- natcheck --json
  natlab run --nat symmetric --second-nat port-restricted-cone -- natcheck    a carrier's NAT and one at home
  natlab run --nat port-restricted-cone --hairpin -- sh -c 'tcpdump -n udp & natcheck; sleep 1'
  natlab run --igd 1 --nat symmetric -- natmap add 5060 --udp
  natlab run --nat full-cone --udp-timeout 6 -- bash    a NAT that forgets soon
  natlab run --nat symmetric --sip-alg -- natcheck --sip-alg {SERVER.ip}

\b
EXIT STATUS
  {EXIT_LAB}  the network could not be built; one line on stderr says what is missing, and how to get it
  {EXIT_CANNOT_RUN}  COMMAND cannot be run
  {EXIT_NOT_FOUND}  COMMAND is not found
  2    the command line is wrong
  else COMMAND's own; when a signal killed it, natlab dies of the same one
"""


@click.group(help=_HELP, context_settings=_HELP_OPTIONS)
@click.version_option(__version__, prog_name="natlab")
def main() -> None:
    """Choose one of the two forms."""


@main.command(
    help=_RUN_HELP,
    context_settings={**_HELP_OPTIONS, "allow_interspersed_args": False},
    options_metavar="--nat KIND | --igd VERSION [OPTIONS] --",
)
@click.option(
    "--nat",
    type=_KINDS,
    metavar="KIND",
    help=f"The NAT; natlab list names the kinds. With --igd it is {_IGD_NAT.value} unless named.",
)
@click.option(
    "--second-nat", type=_KINDS, metavar="KIND", help="One more, at home: --nat is then the carrier's."
)
@click.option(
    "--loss",
    type=click.FloatRange(0, 100),
    default=0,
    metavar="PERCENT",
    help="Lose this share of the UDP datagrams, each way and independently.",
)
@click.option(
    "--hairpin/--no-hairpin",
    help="Whether --nat returns what is sent to its own public endpoints (the cone kinds; default: no).",
)
@click.option(
    "--igd",
    type=click.Choice(["1", "2"]),
    metavar="VERSION",
    help=f"A real miniupnpd on the router answers UPnP (InternetGatewayDevice:1 or :2), NAT-PMP and PCP"
    f" ({' and '.join(kind.value for kind in IGD_KINDS)}; needs the package miniupnpd-nftables).",
)
@click.option(
    "--udp-timeout",
    type=click.IntRange(min=1),
    metavar="SECONDS",
    help="Forget a UDP flow after so long a silence (default: the kernel's 30 to 120 seconds).",
)
@click.option(
    "--sip-alg",
    is_flag=True,
    help="The router next to COMMAND's host rewrites SIP to UDP port 5060: the kernel's SIP ALG.",
)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="COMMAND...")
def run(
    nat: str | None,
    second_nat: str | None,
    loss: float,
    hairpin: bool,
    igd: str | None,
    udp_timeout: int | None,
    sip_alg: bool,
    command: tuple[str, ...],
) -> NoReturn:
    """Build the network, run the command, end as it ended."""
    if nat is None and igd is None:
        raise click.MissingParameter(param_type="option", param_hint="'--nat'")
    try:
        topology = Topology(
            _IGD_NAT if nat is None else NatKind(nat),
            None if second_nat is None else NatKind(second_nat),
            loss_percent=loss,
            hairpin=hairpin,
            igd=None if igd is None else Igd(version=int(igd)),
            udp_timeout_s=udp_timeout,
            sip_alg=sip_alg,
        )
    except LabError as error:
        raise click.UsageError(str(error)) from error
    try:
        returncode = _run(topology, command)
    except LabError as error:
        output.fail("natlab", str(error), status=EXIT_LAB)
    except KeyboardInterrupt:  # before COMMAND ran
        returncode = -signal.SIGINT
    sys.stdout.flush()
    end_as(returncode)


@main.command(name="list", context_settings=_HELP_OPTIONS)
@click.option("--json", "as_json", is_flag=True, help='Print one JSON document, with "schema": 1.')
def list_kinds(as_json: bool) -> None:
    """List the kinds of NAT.

    For each: its mapping and its filtering, in the words of RFC 4787 and RFC 5780, and what that means.
    """
    rows = [
        (kind.value, behavior(kind).mapping, behavior(kind).filtering, MEANINGS[kind]) for kind in NatKind
    ]
    names = ("kind", "mapping", "filtering", "meaning")
    if as_json:
        kinds = [dict(zip(names, row, strict=True)) for row in rows]
        output.print_json({"schema": 1, "kinds": kinds})
        return
    table = [tuple(name.upper() for name in names), *rows]
    widths = [max(len(row[column]) for row in table) for column in range(3)]
    for row in table:
        print("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]))


def _run(topology: Topology, command: Sequence[str]) -> int:
    with Lab(topology, sip_reflector=True) as lab, _terminal():
        # natcheck stands beside natlab, also where only natlab's full path was typed
        path = os.pathsep.join([os.environ.get("PATH", os.defpath), os.path.dirname(sys.executable)])
        environment = {**os.environ, "PATH": path, "NATCHECK_SERVER": str(SERVER)}
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, it would take away the command's status
        process = lab.client.popen(command, env=environment, foreground=True)
        process.returncode = attend(process.pid)
        if lab.server is not None and lab.server.poll() is not None:
            output.warn("natlab", f"the STUN server ended too early, with status {lab.server.returncode}")
        if topology.igd is not None and lab.igd.returncode is not None:
            output.warn("natlab", f"the router's miniupnpd ended too early, with status {lab.igd.returncode}")
        return process.returncode


@contextlib.contextmanager
def _terminal() -> Iterator[None]:
    """Take the terminal back afterwards from a command that took it for itself, as shells do."""
    try:
        terminal = os.open("/dev/tty", os.O_RDWR)
    except OSError:
        yield
        return
    try:
        was_ours = os.tcgetpgrp(terminal) == os.getpgrp()
        yield
        if was_ours:
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})  # or the next call would stop us
            with contextlib.suppress(OSError):
                os.tcsetpgrp(terminal, os.getpgrp())
    finally:
        os.close(terminal)


if __name__ == "__main__":
    main(prog_name="natlab")
