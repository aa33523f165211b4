"""`natgate`: a session controller, which brings SIP and its media through any NAT."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import click

from nattools import __version__
from nattools.cli.log import log_to_stderr
from nattools.cli.quiet_group import QuietGroup
from nattools.cli.service import EXIT_CANNOT, EXIT_DONE, EXIT_USAGE, run_service
from nattools.cli.settings_file import beside, read_settings_file
from nattools.errors import DecodeError
from nattools.session.settings import EngineName, GateMode, GateSettings, IceHandling, PingKind
from nattools.words import LogForm

_PATHS_IN_FILE = ("users", "certificate", "key", "status")
_SQLITE = "sqlite:"

_HELP = f"""Bring SIP calls through any NAT: signalling and media go through this machine.

\b
HOW IT STANDS
  --registrar --users FILE   registers phones itself, and connects them
  --upstream sip:HOST        in front of any other registrar
  --alg                      beside the phones: an outbound proxy that finds
                             a public address for them
Phones need no setting but natgate as their server, or outbound proxy.

\b
TO BEGIN WITH
  Write two lines into users.toml, for your eyes only (chmod 600):
      [users]
      alice = "a password"
  and run: natgate --registrar --users users.toml
  Phones register as alice at this machine's address.

\b
EXAMPLES
  natgate --registrar --users users.toml --store sqlite:natgate.db
  natgate --upstream sip:pbx.example.org --listen 203.0.113.5
  natgate --alg                    then: outbound proxy 127.0.0.1 in the phone
  natgate --listen 10.0.0.5 --advertise 203.0.113.5 --registrar --users users.toml
                                   where the cloud maps an address 1:1
  natgate --config natgate.toml --check-config
  natgate status                   calls, registrations, losses, live

\b
SETTINGS
  The file of --config has the same words, and more: docs/natgate.md lists
  them. A flag overrules it. Without --listen, SIP is taken by UDP and TCP on
  port 5060 of every address of this machine; with a certificate, also by TLS
  on port 5061.

\b
ENGINES
  sockets    carries media in this process; needs no rights
  kernel     has nftables carry it; needs CAP_NET_ADMIN and IP forwarding
  rtpengine  has Debian's rtpengine-daemon carry it, here or elsewhere

\b
OUTPUT
  On stderr: one line once everything is served, one for each call at its
  end, and one for each registration that is new or gone. --log json makes
  them JSON. Nothing on stdout.

\b
SIGNALS
  SIGTERM, SIGINT   take no new calls, and end when the others have ended;
                    a second one ends at once
  SIGHUP            reads users and certificate again; nothing is lost

\b
EXIT CODES
  {EXIT_DONE}  ended by a signal; with --check-config: the settings are good
  {EXIT_CANNOT}  it cannot run here: an address or port, an engine, a store; with
     status: there is no natgate to ask; the line on stderr says which and why
  {EXIT_USAGE}  the command line, the settings or the file of users are wrong
"""


@click.group(
    cls=QuietGroup,
    help=_HELP,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    subcommand_metavar="[status]",
)
@click.option("--registrar", is_flag=True, default=None, help="Register phones here.")
@click.option("--users", metavar="FILE", help="Their names and passwords, a TOML file with a table [users].")
@click.option("--upstream", metavar="sip:HOST[:PORT]", help="The registrar that natgate stands in front of.")
@click.option("--alg", is_flag=True, default=None, help="Stand beside the phones, behind the NAT.")
@click.option(
    "--listen",
    metavar="ADDRESS[:PORT]",
    multiple=True,
    help="Where SIP is taken: by UDP and TCP, or by that of udp:, tcp: or tls: in front. May be repeated.",
)
@click.option("--advertise", metavar="ADDRESS", help="What others are told instead of the local address.")
@click.option(
    "--domain", "domains", metavar="NAME", multiple=True, help="A name of this natgate; may be repeated."
)
@click.option("--certificate", metavar="FILE", help="The certificate for TLS, with its chain (PEM).")
@click.option("--key", metavar="FILE", help="Its private key (PEM).")
@click.option(
    "--store",
    metavar="STORE",
    help="Where registrations are kept: memory, sqlite:PATH or redis://HOST:PORT/DB.  [default: memory]",
)
@click.option("--strangers", is_flag=True, default=None, help="Let who has no password call the users.")
@click.option(
    "--path", is_flag=True, default=None, help="Upstream: use Path (RFC 3327), and leave Contacts alone."
)
@click.option("--outside", metavar="ADDRESS:PORT", help="ALG: the local end of the socket to the outside.")
@click.option(
    "--stun-server",
    "stun_servers",
    metavar="HOST[:PORT]",
    multiple=True,
    help="ALG: whom to ask for public addresses; may be repeated.",
)
@click.option(
    "--engine", metavar="NAME", help=f"What carries media: {', '.join(EngineName)}.  [default: sockets]"
)
@click.option("--rtp-ports", metavar="FIRST-LAST", help="The ports of media.  [default: 30000-40000]")
@click.option("--rtpengine", metavar="ADDRESS:PORT", help="Its ng port.  [default: 127.0.0.1:2223]")
@click.option(
    "--ice", metavar="WHAT", help=f"What becomes of ICE: {' or '.join(IceHandling)}.  [default: strip]"
)
@click.option(
    "--keepalive",
    metavar="KIND",
    help=f"How phones behind NATs are pinged: {', '.join(PingKind)}.  [default: options]",
)
@click.option(
    "--metrics", metavar="ADDRESS:PORT", help="Serve /metrics for Prometheus there.  [default: nowhere]"
)
@click.option("--status", metavar="PATH", help="The Unix socket that natgate status asks.")
@click.option(
    "--log", metavar="FORM", help=f"How lines are written: {' or '.join(LogForm)}.  [default: text]"
)
@click.option("--config", metavar="FILE", help="A TOML file with these and more settings.")
@click.option("--check-config", is_flag=True, help="Say whether the settings are good, and end.")
@click.option("-v", "--verbose", is_flag=True, help="Log more than is needed.")
@click.version_option(__version__, prog_name="natgate")
@click.pass_context
def command(
    context: click.Context, /, *, config: str | None, check_config: bool, verbose: bool, **flags: object
) -> None:
    """Run natgate until a signal stops it, unless a subcommand is named."""
    said = {name: value for name, value in flags.items() if value not in (None, ())}
    if context.invoked_subcommand is not None:
        if said or config is not None or check_config:
            raise click.UsageError(f"natgate {context.invoked_subcommand} takes its options after its name")
        return
    try:
        settings = _settings(None if config is None else Path(config), said)
        mode = settings.mode
    except DecodeError as error:
        raise click.UsageError(str(error)) from error
    # asyncio, SIP and the rest, which who mistypes an option need not wait for
    from nattools.cli import natgate_serve

    log_to_stderr("natgate", settings.log, verbose=verbose)
    if check_config:
        natgate_serve.check_files(settings)
        click.echo(f"the settings are good: {_summary(settings, mode)}")
    else:
        natgate_serve.run(settings)


@command.command(short_help="Show the calls, their media and the registrations.")
@click.option("--socket", metavar="PATH", help="The status socket, if natgate was given another by --status.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document, and end.")
@click.option("--once", is_flag=True, help="Print one page, and end, also on a terminal.")
def status(socket: str | None, as_json: bool, once: bool) -> None:
    """Show the calls, their media and the registrations of the natgate that runs on this machine.

    On a terminal the page is renewed each second until Ctrl-C. For each call: who calls whom, how long, and
    for each stream and side the packets, losses and jitter, where they come from, and what was not relayed.
    """
    from nattools.cli import natgate_status

    natgate_status.show(None if socket is None else Path(socket), as_json=as_json, once=once)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; whatever goes wrong is one line on stderr and an exit code."""
    run_service("natgate", command, arguments)


def _settings(config: Path | None, flags: Mapping[str, object]) -> GateSettings:
    """The settings in the file, and in their place what flags say. Raises `DecodeError`."""
    words = {} if config is None else _read(config)
    said = dict(flags)
    servers = said.pop("stun_servers", None)
    if servers:
        binding = words.get("binding")
        words["binding"] = {**(binding if isinstance(binding, dict) else {}), "stun_servers": servers}
    settings = GateSettings.of(words | said)
    return (
        replace(settings, binding=settings.binding.with_environment(os.environ)) if settings.alg else settings
    )


def _read(path: Path) -> dict[str, object]:
    """The words of the file, with the paths in it relative to where it is. Raises `DecodeError`."""
    words = read_settings_file(path, GateSettings.of, paths=_PATHS_IN_FILE)
    store = words.get("store")
    if isinstance(store, str) and store.startswith(_SQLITE):
        words["store"] = _SQLITE + beside(path, store.removeprefix(_SQLITE))
    return words


def _summary(settings: GateSettings, mode: GateMode) -> str:
    role = {
        GateMode.REGISTRAR: f"a registrar with the users of {settings.users}",
        GateMode.UPSTREAM: f"in front of {settings.upstream}",
        GateMode.ALG: "an ALG beside the phones",
    }[mode]
    return f"{role}, at {', '.join(map(str, settings.listen))}, engine {settings.engine}"


if __name__ == "__main__":
    main()
