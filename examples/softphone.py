"""A softphone for the console that writes its public endpoints into all it sends, and so works behind NATs.

It registers, calls and is called, plays one file and records another (PCMU), and stays reachable and audible
when the NAT forgets flows or gets another address. Here is what the console has to do with it. The phone is
in softphone_phone.py, its account in softphone_line.py, SIP's rules in softphone_sip.py, the audio in
softphone_media.py.
"""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager, closing
from pathlib import Path
from typing import TextIO

import click
from softphone_line import Account, PhoneError, read_address
from softphone_media import Recording, read_tone
from softphone_phone import Phone

from nattools import BindingError, DecodeError, NatToolsError
from nattools.binding.keeper import Keeper
from nattools.binding.settings import Settings, SettingWords, read_settings
from nattools.endpoint import split_host_port
from nattools.errors import SymmetricNatError
from nattools.net.dns import resolve
from nattools.sip.uri import SIP_PORT


@asynccontextmanager
async def _commands() -> AsyncIterator[asyncio.StreamReader]:
    """What somebody types, or a program writes, to this one."""
    lines = asyncio.StreamReader()
    if sys.stdin is None or not (sys.stdin.isatty() or _is_stream(os.fstat(0).st_mode)):
        lines.feed_data(b"" if sys.stdin is None else sys.stdin.buffer.read())
        lines.feed_eof()
        yield lines
        return
    loop = asyncio.get_running_loop()
    pipe, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    try:
        yield lines
    finally:
        os.set_blocking(0, True)  # the terminal is the shell's as well
        pipe.close()


def _is_stream(mode: int) -> bool:
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


async def run(account: Account, settings: Settings, called: str | None) -> int:
    """Be a phone, until told to quit or until the call is over, and return the status of its answer."""
    # NAT: where no public endpoint can be had, this says so and what would help, before anybody is called
    async with (
        Keeper.open(settings) as keeper,
        keeper.open_binding(account.anywhere) as binding,
        _commands() as commands,
    ):
        phone = Phone(account, keeper, binding)
        async with phone.on_duty():
            obeying = asyncio.create_task(phone.obey(commands))
            if called is None:
                await obeying
                return 200
            status = await phone.call(called)
            obeying.cancel()
            return status


_SECONDS = click.FloatRange(min=0)


@click.command()
@click.argument("address", metavar="SIP_URI")
@click.option("--password-file", type=click.File(), help="Its first line is the password.")
@click.option(
    "--password", envvar="SOFTPHONE_PASSWORD", help="Better in SOFTPHONE_PASSWORD: others see this."
)
@click.option(
    "--proxy", metavar="HOST[:PORT]", help="Where SIP is sent to; where the SIP_URI says if not given."
)
@click.option("--call", "called", metavar="SIP_URI", help="Call, and end with the call.")
@click.option(
    "--answer", "answers_after_s", type=_SECONDS, metavar="SECONDS", help="Answer calls after so long."
)
@click.option(
    "--duration", "hangs_up_after_s", type=_SECONDS, metavar="SECONDS", help="Hang up after so long."
)
@click.option("--play", type=click.Path(path_type=Path), help="A WAV file, 16-bit mono at 8000 Hz.")
@click.option("--record", type=click.Path(path_type=Path), help="A WAV file to be made of what is heard.")
@click.option("--stun-server", "stun_servers", multiple=True, metavar="HOST[:PORT]", help="May be repeated.")
@click.option(
    "--keepalive", metavar="SECONDS", help="How often flows are refreshed, or `learn`; else as set."
)
def main(
    address: str,
    password_file: TextIO | None,
    password: str | None,
    proxy: str | None,
    called: str | None,
    play: Path | None,
    record: Path | None,
    stun_servers: Sequence[str],
    keepalive: str | None,
    answers_after_s: float | None,
    hangs_up_after_s: float | None,
) -> None:
    """A softphone that works behind NATs.

    It obeys lines on its stdin: `call SIP_URI`, `answer`, `hang up`, `quit`. Ctrl-C and SIGTERM hang up and
    unregister.

    \b
    Examples:
      softphone.py sip:bob@example.org --answer 2 --record heard.wav
      softphone.py sip:alice@example.org --password-file secret \\
          --call sip:bob@example.org --play me.wav

    \b
    Exit status:
      0  done
      1  not registered
      2  wrong usage
      3  the NAT is symmetric, and a relay is needed
      4  the call was not accepted
      5  no public endpoint for another reason
    """  # noqa: D301 - the backslashes are click's
    words: SettingWords = {}
    if stun_servers:
        words["stun_servers"] = stun_servers
    if keepalive is not None:
        words["keepalive_interval"] = keepalive
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    with ExitStack() as files:
        try:
            settings = read_settings(None, os.environ).with_words(**words)
            uri = read_address(address)
            if called is not None:
                read_address(called)
            host, port = split_host_port(proxy) if proxy else (uri.host.decode(), uri.port)
            recording = files.enter_context(closing(Recording(record))) if record is not None else None
            tone = read_tone(play) if play is not None else b""
            secret = password_file.readline().rstrip("\n") if password_file is not None else password or ""
        except (DecodeError, ValueError, OSError) as error:
            raise click.UsageError(str(error)) from error
        try:
            found = asyncio.run(resolve(host, port, service="_sip._udp", default_port=SIP_PORT))
            account = Account(uri, secret, found[0], answers_after_s, hangs_up_after_s, tone, recording)
            status = asyncio.run(run(account, settings, called))
            if status >= 300:
                raise PhoneError(f"{called} did not accept the call: {status}", 4)
        except (PhoneError, NatToolsError) as error:
            click.echo(f"Error: {error}", err=True)
            sys.exit(_exit_status(error))
        except KeyboardInterrupt:
            pass


def _exit_status(error: PhoneError | NatToolsError) -> int:
    if isinstance(error, PhoneError):
        return error.exit_status
    if isinstance(error, SymmetricNatError):
        return 3
    return 5 if isinstance(error, BindingError) else 1


if __name__ == "__main__":
    main()
