"""How stund runs: its sockets, users, limits and metrics, until a signal stops it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import signal
import stat
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nattools.endpoint import Endpoint
from nattools.errors import CredentialError, DecodeError, TransportError
from nattools.stun.accounts import Accounts, Admission, Rejection
from nattools.stun.limiter import Limiter, Limits
from nattools.stun.message import Message
from nattools.stun.peer import PeerLink
from nattools.stun.responder import DropReason, ServerAddresses
from nattools.stun.server import AnswerOther, StunServer
from nattools.stun.settings import MOST_FILE_BYTES, WORDS, StundSettings

if TYPE_CHECKING:
    from nattools.cli.stund_metrics import StundCounts
    from nattools.cli.stund_workers import Worker
    from nattools.sip.reflector import Reflector

_CHANGE_AT_ONCE = frozenset({"limits", "users", "credentials", "realm"})
_SECRET_BYTES = 32
_PAUSE_S = 0.5

Reread = Callable[[], StundSettings]
"""Reads the settings again, from where they came from. Raises `DecodeError`."""

_log = logging.getLogger("nattools.stund")


class Users:
    """The users in a file, as they were when it was last read."""

    def __init__(self, settings: StundSettings) -> None:
        """Read the file of `settings`. Raises `DecodeError`."""
        self._secret = secrets.token_bytes(_SECRET_BYTES)
        self._accounts = self.read(settings)

    def read(self, settings: StundSettings) -> Accounts:
        """What the file has now. Raises `DecodeError`, with its path."""
        assert settings.users is not None
        try:
            return settings.accounts(_text_of(settings.users), secret=self._secret)
        except DecodeError as error:
            raise DecodeError(f"{settings.users}: {error}") from None

    def become(self, accounts: Accounts) -> None:
        """Have these users from now on."""
        self._accounts = accounts

    def judge(self, request: Message, source: Endpoint, *, now: float) -> Admission | Rejection:
        """As the accounts do that there are now."""
        return self._accounts.judge(request, source, now=now)


def link_of(settings: StundSettings) -> PeerLink | None:
    """The link to the peer, where there is one, with the key in its file. Raises `DecodeError`."""
    hosts, path = settings.hosts, settings.peer_key
    if hosts is None or path is None:
        return None
    try:
        peer = Endpoint(hosts.other, settings.peer_port)
        return PeerLink(hosts, peer, key=_secret_in(path).strip(), entropy=secrets.token_bytes)
    except (DecodeError, CredentialError) as error:
        raise DecodeError(f"{path}: {error}") from None


@dataclass(frozen=True, slots=True)
class Identity:
    """The user that stund becomes once it needs root no longer."""

    name: str
    user_id: int
    group_id: int

    def assume(self) -> None:
        """Become that user for good, with its groups and without any capability. Raises `TransportError`."""
        if sys.platform == "win32":
            return  # `identity_of` gives none there
        try:
            os.initgroups(self.name, self.group_id)
            os.setgid(self.group_id)
            os.setuid(self.user_id)
        except OSError as error:
            raise TransportError(
                f"cannot become the user {self.name}: {(error.strerror or str(error)).lower()};"
                " start stund as root, or as that user without --user"
            ) from error


def identity_of(settings: StundSettings) -> Identity | None:
    """Whom stund is to become, or None where it is to stay who it is. Raises `DecodeError`."""
    if not settings.user:
        return None
    try:
        from pwd import getpwnam
    except ImportError as error:  # Windows
        raise DecodeError("user: this system has no other users to become") from error
    try:
        entry = getpwnam(settings.user)
    except (KeyError, ValueError) as error:  # a name with a zero byte is a ValueError
        raise DecodeError(f"user: this machine has no user {settings.user!r}") from error
    return Identity(settings.user, entry.pw_uid, entry.pw_gid)


def run(
    settings: StundSettings,
    users: Users | None,
    link: PeerLink | None,
    identity: Identity | None,
    reread: Reread,
) -> None:
    """Serve until a signal comes. Raises `LocalAddressError` where an address or port cannot be had."""
    if settings.workers > 1:
        _run_several(settings, users, identity, reread)
    else:
        with _runner() as runner:
            runner.run(_serve(settings, settings.addresses, users, identity, reread, link=link))


def _run_several(
    settings: StundSettings, users: Users | None, identity: Identity | None, reread: Reread
) -> None:
    """Serve by several processes, once one of them has found that all addresses and ports can be had."""
    from nattools.cli.stund_workers import run_workers

    with _runner() as runner:
        addresses, line, fields = runner.run(_try_out(settings, users))

    def serve(worker: Worker) -> None:
        with _runner() as runner:
            runner.run(_serve(settings, addresses, users, identity, reread, worker))

    tally = run_workers(settings.workers, serve, on_up=lambda: _log.info("%s", line, extra=fields))
    _log.info("stopped: %s", tally.summary(), extra=_stop_fields(tally.answered, tally.dropped))


def _runner() -> asyncio.Runner:
    return asyncio.Runner(loop_factory=asyncio.SelectorEventLoop)  # Proactor has no add_reader


async def _try_out(
    settings: StundSettings, users: Users | None
) -> tuple[ServerAddresses, str, dict[str, object]]:
    """Where several processes are to serve, with the ports that are free, and the start line."""
    limiter = _new_limiter(settings.limits)
    async with (
        await _start(settings, settings.addresses, users, limiter) as server,
        _metrics(settings, lambda: _counts(settings, server, limiter)),
    ):
        return server.addresses, start_line(server, settings), _start_fields(server)


async def _serve(
    settings: StundSettings,
    addresses: ServerAddresses,
    users: Users | None,
    identity: Identity | None,
    reread: Reread,
    worker: Worker | None = None,
    link: PeerLink | None = None,
) -> None:
    """Serve until a signal comes, as the only process or as one of several."""
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_on_loop_error)
    stop = asyncio.Event()
    _stop_on_signals(loop, stop)
    reflector = _new_reflector() if settings.sip_reflector else None
    limiter = _new_limiter(settings.limits)
    answer_other = None if reflector is None else _reflection_of(reflector)
    is_several = worker is not None
    start = _start(settings, addresses, users, limiter, answer_other, reuse_port=is_several, link=link)
    async with (
        await start as server,
        _metrics(settings, lambda: _counts(settings, server, limiter, worker, link), worker),
    ):
        _reload_on_hangup(loop, _Reloading(settings, users, limiter, reread))
        if identity is not None:
            identity.assume()
        if worker is not None:
            worker.watch(stop.set)
            worker.up()
        else:
            _log.info("%s", start_line(server, settings), extra=_start_fields(server))
        while not stop.is_set():
            # Windows does not wake a waiting loop for a signal
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(
                    stop.wait(), _PAUSE_S if is_several or sys.platform == "win32" else None
                )
            if worker is not None:
                worker.note(server.answered, server.dropped)
    if worker is None:
        reflected = "" if reflector is None else f"; {reflector.summary()}"
        fields = _stop_fields(server.answered, server.dropped)
        _log.info("stopped: %s%s", server.summary(), reflected, extra=fields)
    else:
        worker.note(server.answered, server.dropped)


async def _start(
    settings: StundSettings,
    addresses: ServerAddresses,
    users: Users | None,
    limiter: Limiter,
    answer_other: AnswerOther | None = None,
    *,
    reuse_port: bool = False,
    link: PeerLink | None = None,
) -> StunServer:
    return await StunServer.start(
        addresses,
        more_ports=settings.more_ports,
        answer_other=answer_other,
        limiter=limiter,
        accounts=users,
        reflector_ports=settings.reflector_ports,
        advertise=settings.advertise,
        reuse_port=reuse_port,
        link=link,
    )


def _new_limiter(limits: Limits) -> Limiter:
    try:
        from nattools.stun.batch_limiter import BatchLimiter
    except ImportError:  # no numpy
        return Limiter(limits, entropy=secrets.token_bytes)
    return BatchLimiter(limits, entropy=secrets.token_bytes)


def _new_reflector() -> Reflector:
    from nattools.sip.reflector import Reflector  # with all of SIP; most servers need none of it

    return Reflector(entropy=secrets.token_bytes)


def _reflection_of(reflector: Reflector) -> AnswerOther:
    return lambda data, source: reflector.answer(data, source, now=time.monotonic())


@asynccontextmanager
async def _metrics(
    settings: StundSettings, tell: Callable[[], StundCounts], worker: Worker | None = None
) -> AsyncIterator[None]:
    """The metrics, where they are wanted, as long as stund runs; the first of several processes has them."""
    if settings.metrics is None or (worker is not None and worker.number != 0):
        yield
        return
    try:
        from nattools.cli.stund_metrics import serve_metrics
    except ImportError as error:
        raise DecodeError("--metrics needs prometheus-client: pip install 'nattools[server]'") from error
    server = await serve_metrics(settings.metrics, tell)
    try:
        yield
    finally:
        await server.close()


def _counts(
    settings: StundSettings,
    server: StunServer,
    limiter: Limiter,
    worker: Worker | None = None,
    link: PeerLink | None = None,
) -> StundCounts:
    from nattools.cli.stund_metrics import PeerCounts, StundCounts

    if worker is not None:
        worker.note(server.answered, server.dropped)
        tally, workers = worker.tally, settings.workers
        return StundCounts(
            server.addresses, tally.answered, tally.dropped, workers=workers, restarts=tally.restarts
        )
    peer = None
    if link is not None:
        peer = PeerCounts(server.is_paired, link.handed_over, link.taken_over, link.dropped)
    return StundCounts(
        server.addresses,
        server.answered,
        server.dropped,
        limiter.state(now=asyncio.get_running_loop().time()),
        server.batches,
        server.batched,
        peer=peer,
    )


class _Reloading:
    """What SIGHUP does: the settings and the users are read again, and no socket is touched."""

    def __init__(
        self, settings: StundSettings, users: Users | None, limiter: Limiter, reread: Reread
    ) -> None:
        self._settings = settings
        self._users = users
        self._limiter = limiter
        self._reread = reread

    def __call__(self) -> None:
        """Take what can be taken; what is wrong anywhere leaves all as it was."""
        try:
            settings = self._reread()
            accounts = None
            if self._users is not None and settings.users is not None:
                accounts = self._users.read(settings)
        except DecodeError as error:
            _log.error("all stays as it was: %s", error)
            return
        later = sorted(self._not_at_once(settings))
        if self._users is not None and accounts is not None:
            self._users.become(accounts)
        if settings.limits != self._limiter.limits:
            self._limiter.become(settings.limits)
        _log.info(
            "the settings were read again%s", f"; for {', '.join(later)} start stund anew" if later else ""
        )

    def _not_at_once(self, settings: StundSettings) -> Iterator[str]:
        for name in WORDS:
            is_other = getattr(settings, name) != getattr(self._settings, name)
            if is_other and name not in _CHANGE_AT_ONCE:
                yield name
        if (settings.users is None) is not (self._users is None):
            yield "users"


def _text_of(path: Path) -> str:
    """What stands in a file of users. Raises `DecodeError`."""
    try:
        return _secret_in(path).decode("utf-8-sig")  # Windows editors put a mark in front
    except UnicodeDecodeError:
        raise DecodeError("not UTF-8, which TOML must be: save it as UTF-8") from None


def _secret_in(path: Path) -> bytes:
    """What a file has that is not for everybody, with a warning where it is. Raises `DecodeError`."""
    try:
        with path.open("rb") as file:
            data = file.read(MOST_FILE_BYTES + 1)
            mode = path.stat().st_mode
    except (OSError, ValueError) as error:  # a path with a zero byte is a ValueError
        reason = error.strerror if isinstance(error, OSError) else error
        raise DecodeError(f"it cannot be read: {reason}") from error
    if len(data) > MOST_FILE_BYTES:
        raise DecodeError(f"it has over {MOST_FILE_BYTES} bytes, so it is another file")
    if mode & (stat.S_IRGRP | stat.S_IROTH) and sys.platform != "win32":
        _log.warning("%s: other users of this machine can read the secrets in it: chmod 600 %s", path, path)
    return data


def _stop_on_signals(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            loop.add_signal_handler(number, stop.set)
        except NotImplementedError:  # Windows
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(stop.set))


def _reload_on_hangup(loop: asyncio.AbstractEventLoop, reload: Callable[[], None]) -> None:
    if sys.platform != "win32":
        loop.add_signal_handler(signal.SIGHUP, reload)


def _on_loop_error(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """In one line what asyncio reports with a traceback, such as a lack of file descriptors."""
    _log.error("%s: %s", context["message"], context.get("exception") or "no more is known")


def start_line(server: StunServer, settings: StundSettings) -> str:
    """What is served, and what is not, in one line."""
    addresses = server.addresses
    sockets = ", ".join(map(str, addresses.endpoints))
    served = {endpoint.port for endpoint in addresses.endpoints}
    line = f"serving {sockets} (UDP and TCP)"
    if addresses.alternate_address is not None:
        line += ", NAT behaviour tests included"
    elif settings.peer is not None:
        line += (
            f"; NAT behaviour tests as long as the peer {settings.peer} is there,"
            " else CHANGE-REQUEST is refused and OTHER-ADDRESS omitted"
        )
    else:
        line += (
            "; with one address clients learn their public address, but cannot"
            " test NAT filtering: CHANGE-REQUEST is refused, OTHER-ADDRESS omitted"
        )
    if settings.advertise:
        line += (
            f"; told as {', '.join(f'{public} for {local}' for local, public in settings.advertise.items())}"
        )
    if settings.users is not None:
        line += f"; CHANGE-REQUEST, RESPONSE-PORT and PADDING for the users of {settings.users} only"
    if settings.metrics is not None:
        line += f"; metrics at http://{settings.metrics}/metrics"
    if settings.workers > 1:
        line += f"; {settings.workers} processes"
    if server.why_one_by_one:
        line += f"; one datagram at a time: {server.why_one_by_one}"
    if server.more_ports:
        others = [str(port) for port in dict.fromkeys(server.more_ports) if port not in served]
        line += "; reflecting SIP there" + (f" and on UDP port {', '.join(others)}" if others else "")
    return line


def _start_fields(server: StunServer) -> dict[str, object]:
    """The start line's values for a log in JSON."""
    return {
        "fields": {
            "event": "serving",
            "sockets": [str(endpoint) for endpoint in server.addresses.endpoints],
            "behaviour_tests": server.addresses.alternate_address is not None,
            "batches": not server.why_one_by_one,
        }
    }


def _stop_fields(answered: int, dropped: Mapping[DropReason, int]) -> dict[str, object]:
    reasons = {reason.name.lower(): count for reason, count in dropped.items()}
    return {"fields": {"event": "stopped", "answered": answered, "dropped": reasons}}
