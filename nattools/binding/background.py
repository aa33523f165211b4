"""The thread that keeps the public bindings of a program which has no event loop of its own.

There is one in a process, from the first socket to the last, with one loop and, for all sockets with the same
settings, one keeper. It reads the sockets all the time, whether their program does or not, so that bindings
live on while a program is busy. What is the program's own it hands over through a pair of local sockets, each
datagram with its source in front: so the system does the waiting, the waking and the buffering.
"""

from __future__ import annotations

import asyncio
import atexit
import errno
import logging
import os
import queue
import socket
import struct
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from ipaddress import IPv4Address, IPv6Address

from nattools.binding.client import LiveBinding
from nattools.binding.keeper import Keeper
from nattools.binding.model import BindingChange, ChangeKind
from nattools.binding.schedule import KeepaliveKind
from nattools.binding.settings import Settings
from nattools.endpoint import Endpoint
from nattools.errors import BindingError, DecodeError, NatToolsError
from nattools.net.listener import SocketAddress
from nattools.net.udp import UdpSocket, datagram_pair, unbound_socket
from nattools.stun.message import Message, MessageClass, Method

_LOG = logging.getLogger(__name__)

RETRY_S = 30.0
"""After so long a public endpoint that could not be had is looked for again."""
CLOSE_S = 3.0
"""So long whoever closes waits for what must be given back; what takes longer goes on behind them."""
MOST_CHANGES = 256
"""So many wait for each reader; then the oldest is forgotten."""
_LATE_ANSWERS_S = 10.0
_RESPONSES = (MessageClass.SUCCESS, MessageClass.ERROR)

OnArrival = Callable[[bytes, Endpoint], bytes | None]
_News = queue.SimpleQueue[BindingChange | None]


class KeptSocket:
    """One UDP socket, its binding, and what passes between the thread and the program.

    The thread knows this and no more, so that whoever uses it for a program can vanish unclosed.
    """

    def __init__(self, family: int, settings: Settings) -> None:
        """Make the sockets, bound to nothing yet. Raises `OSError`."""
        self.settings = settings
        self.real = unbound_socket(family)
        """What the network sees. It must not block: the thread reads it, and both share its mode."""
        try:
            self._inner, self.outer = datagram_pair()
        except BaseException:
            self.real.close()
            raise
        self._inner.setblocking(False)
        self._header = _Header(family)
        self._forks = _forks
        self._background: _Background | None = None
        self.peer: Endpoint | None = None
        """Datagrams of all others are dropped, where there is one."""
        self.live: LiveBinding | None = None
        """The binding, when there is one; its properties can be read in any thread."""
        self.error: BindingError | None = None
        """Why there is none."""
        self.on_datagram: OnArrival | None = None
        """Called in the thread with what comes for the program; it gets what this returns, or nothing."""
        self.on_change: Callable[[BindingChange | None], None] | None = None
        """Called in the thread with each change, and with None before the port is free; it must not wait."""
        self.has_answer = threading.Event()
        """Set once there is the one or the other, and when it is over."""
        self.is_over = threading.Event()
        """Set once everything is given back."""
        self._failed_at = float("-inf")
        self._checks_when_quiet = False
        self._flows: dict[Endpoint, KeepaliveKind] = {}
        self._news: weakref.WeakSet[_News] = weakref.WeakSet()
        self._news_lock = threading.Lock()
        self._is_news_over = False

    # What a program asks of it, in any thread

    @property
    def is_inherited(self) -> bool:
        """Whether it was made by the process that this one is a fork of, and that has the thread."""
        return self._forks != _forks

    @property
    def is_started(self) -> bool:
        """Whether it is bound, and a public endpoint looked for."""
        return self._background is not None

    def start(self) -> None:
        """Look for a public endpoint from now on; `real` is bound. Raises `OSError`."""
        background = _enter()
        background.call(background.begin, self)
        self._background = background

    def call(self, function: Callable[..., None], *arguments: object) -> None:
        """Have something done in the thread, unless that has ended."""
        if self._background is not None:
            self._background.call(function, *arguments)

    def stand_in_for(self, other: KeptSocket) -> None:
        """Serve the program of `other`, which was not started, from now on; what came before is nobody's.

        It has the descriptor that it had, and hears of the binding as if it were new. `other` is closed.
        """
        for name in ("_inner", "outer", "peer", "_flows", "_news"):
            mine, others = getattr(self, name), getattr(other, name)
            setattr(self, name, others)
            setattr(other, name, mine)
        other.close()
        for destination in tuple(self._flows):
            self.call(self._sync_flow, destination)
        self.call(self._tell_acquired)

    def receive(self, bufsize: int, flags: int) -> tuple[bytes, SocketAddress]:
        """Wait for the next datagram, cut to `bufsize` bytes. Raises `OSError`, EBADF when it is closed."""
        frame = self.outer.recv(self._header.size + bufsize, flags)
        if len(frame) < self._header.size:  # nothing sends such a one: it is the end
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return frame[self._header.size :], self._header.unpack(frame)

    def set_buffer(self, size: int) -> None:
        """Have the pair hold no less than a receive buffer of `size` bytes."""
        for sock, option in ((self._inner, socket.SO_SNDBUF), (self.outer, socket.SO_RCVBUF)):
            if sock.getsockopt(socket.SOL_SOCKET, option) < size:
                sock.setsockopt(socket.SOL_SOCKET, option, size)

    def changes(self) -> Iterator[BindingChange]:
        """Each change from this call on, until the end."""
        news: _News = queue.SimpleQueue()
        with self._news_lock:
            self._news.add(news)
            if self._is_news_over:
                news.put(None)
        return _read(news)

    def keep_open(self, destination: Endpoint, kind: KeepaliveKind) -> None:
        """Keep a further flow open whenever there is a binding."""
        self._flows[destination] = kind
        if self._background is not None:
            self._background.call(self._sync_flow, destination)

    def let_go(self, destination: Endpoint) -> None:
        """Keep it open no longer."""
        self._flows.pop(destination, None)
        if self._background is not None:
            self._background.call(self._sync_flow, destination)

    def check(self) -> None:
        """See now whether the binding still is so."""
        self.call(self._check)

    def check_when_quiet(self) -> None:
        """Do so from now on whenever a stream of datagrams stops: it carries media."""
        self._checks_when_quiet = True
        self.call(self._watch_silence)

    def close(self) -> None:
        """Wake whoever waits, give everything back, and close. `CLOSE_S` is the longest that it takes."""
        if self.is_inherited:
            self._close_sockets()
            return
        with suppress(OSError):
            self.outer.shutdown(socket.SHUT_RDWR)  # wakes those who receive, which closing alone does not
        self.outer.close()
        self._end_news()
        self.has_answer.set()
        if self._background is not None:
            self._background.call(self._background.leave, self)
            self.is_over.wait(CLOSE_S)
        self._close_sockets()

    def abandon(self) -> None:
        """Close without waiting: for `__del__`, which may come in any thread, whatever that one holds."""
        if self.is_inherited or self.is_over.is_set():
            self._close_sockets()
        elif self._background is None:
            self.end()
        else:
            self._background.call(self._background.leave, self)

    def _end_news(self) -> None:
        with self._news_lock:
            self._is_news_over = True
            for news in self._news:
                news.put(None)

    def _close_sockets(self) -> None:
        # what this process has of them, and no more: a fork shares them with its parent
        for sock in (self.outer, self._inner, self.real):
            sock.close()

    # What the thread does with it

    def deliver(self, data: bytes, source: Endpoint) -> None:
        """Hand the program a datagram; where no more fits in, it is lost, as with a kernel's buffer."""
        if self.peer is not None and source != self.peer:
            return
        changed = data if self.on_datagram is None else self.on_datagram(data, source)
        if changed is not None:
            with suppress(OSError):
                self._inner.send(self._header.pack(source) + changed)

    def deliver_without_binding(self, data: bytes, source: Endpoint) -> None:
        """The same, but for late answers to those who looked for a binding and have left."""
        may_be_late = time.monotonic() < self._failed_at + _LATE_ANSWERS_S
        if not (may_be_late and _is_binding_response(data)):
            self.deliver(data, source)

    def tell(self, change: BindingChange) -> None:
        """Tell every reader of a change."""
        if self.on_change is not None:
            self.on_change(change)
        with self._news_lock:
            for news in self._news:
                if news.qsize() >= MOST_CHANGES:
                    with suppress(queue.Empty):
                        news.get_nowait()
                news.put(change)

    def succeed(self, live: LiveBinding) -> None:
        """There is a binding."""
        self.live = live
        self._watch_silence()
        for destination, kind in tuple(self._flows.items()):
            live.keep_open(destination, kind)
        self._tell_acquired()
        self.has_answer.set()

    def fail(self, error: BindingError) -> None:
        """There is none for now."""
        _LOG.log(logging.WARNING if self.error is None else logging.DEBUG, "%s", error)
        self._failed_at = time.monotonic()
        self.live, self.error = None, error
        self.has_answer.set()

    def stay(self) -> None:
        """Everything is given back, as the interpreter ends; threads that still run see no change."""
        self.is_over.set()

    def end(self) -> None:
        """Everything is given back, and closed."""
        self.live = None
        if self.on_change is not None:
            self.on_change(None)
        self._close_sockets()
        self._end_news()
        self.has_answer.set()
        self.is_over.set()

    def _check(self) -> None:
        if self.live is not None:
            self.live.check()

    def _watch_silence(self) -> None:
        if self.live is not None and self._checks_when_quiet:
            self.live.check_when_quiet()

    def _tell_acquired(self) -> None:
        if self.live is not None and (binding := self.live.snapshot) is not None:
            reason = "; ".join(binding.reachability.evidence)
            self.tell(BindingChange(ChangeKind.ACQUIRED, binding, None, reason))

    def _sync_flow(self, destination: Endpoint) -> None:
        if self.live is None:
            return
        kind = self._flows.get(destination)
        if kind is None:
            self.live.let_go(destination)
        else:
            self.live.keep_open(destination, kind)


class _Header:
    """The source of a datagram, as it stands in front of it in the pair."""

    def __init__(self, family: int) -> None:
        self._is_ipv6 = family == socket.AF_INET6
        self._struct = struct.Struct("!16sHI" if self._is_ipv6 else "!4sH")
        self.size = self._struct.size

    def pack(self, source: Endpoint) -> bytes:
        if not self._is_ipv6:
            return self._struct.pack(source.ip.packed, source.port)
        if isinstance(source.ip, IPv4Address):  # such peers a dual-stack socket has (RFC 3493 §3.7)
            return self._struct.pack(b"\0" * 10 + b"\xff" * 2 + source.ip.packed, source.port, 0)
        return self._struct.pack(source.ip.packed, source.port, _scope_of(source.ip))

    def unpack(self, frame: bytes) -> SocketAddress:
        if self._is_ipv6:
            packed, port, scope = self._struct.unpack_from(frame)
            return socket.inet_ntop(socket.AF_INET6, packed), port, 0, scope
        packed, port = self._struct.unpack_from(frame)
        return socket.inet_ntop(socket.AF_INET, packed), port


def _scope_of(ip: IPv6Address) -> int:
    scope = ip.scope_id
    if scope is None:
        return 0
    try:
        return int(scope) if scope.isdecimal() else socket.if_nametoindex(scope)
    except OSError:  # the interface has gone
        return 0


def _is_binding_response(data: bytes) -> bool:
    try:
        message = Message.parse(data)
    except DecodeError:
        return False
    return message.method == Method.BINDING and message.message_class in _RESPONSES


def _read(news: _News) -> Iterator[BindingChange]:
    while (change := news.get()) is not None:
        yield change


class _SharedKeeper:
    """The keeper of all sockets with the same settings."""

    def __init__(self, settings: Settings) -> None:
        self.users = 0
        self.keeper: asyncio.Future[Keeper] = asyncio.get_running_loop().create_future()
        self._over = asyncio.Event()
        self._task = asyncio.create_task(self._hold(settings))

    async def _hold(self, settings: Settings) -> None:
        try:
            async with Keeper.open(settings) as keeper:
                self.keeper.set_result(keeper)
                await self._over.wait()
        except Exception as error:  # noqa: BLE001 - it is raised where the keeper is waited for
            if self.keeper.done():
                _LOG.warning("some binding could not be given back: %r", error)
            else:
                self.keeper.set_exception(error)
                self.keeper.exception()  # or asyncio would complain of it, where all who waited have left

    async def close(self) -> None:
        """Give everything back."""
        self._over.set()
        await self._task


class _Background:
    """The thread. Its methods are called in it, but for `call` and `stop`."""

    def __init__(self) -> None:
        """Start it. Raises `OSError`."""
        self.users = 0
        self._keepers: dict[Settings, _SharedKeeper] = {}
        self._tasks: dict[KeptSocket, asyncio.Task[None]] = {}
        self._leaving: set[KeptSocket] = set()
        self._is_stopping = False
        self._over = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="nattools bindings", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:  # the system's limit, or the interpreter is at its end
            self._loop.close()
            raise OSError(errno.EAGAIN, f"no thread to keep bindings in: {error}") from error

    def call(self, function: Callable[..., None], *arguments: object) -> None:
        """Have it done in the thread, unless that has ended."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function, *arguments)

    def stop(self) -> None:
        """Leave all sockets, as the interpreter ends, and wait for that for a while."""
        self.call(self._leave_all)
        self._thread.join(CLOSE_S)

    def begin(self, kept: KeptSocket) -> None:
        """Look after `kept`."""
        task = self._tasks[kept] = asyncio.create_task(self._keep(kept))
        task.add_done_callback(lambda task: self._ended(kept, task))

    def leave(self, kept: KeptSocket) -> None:
        """Look after it no longer."""
        if kept in self._tasks and kept not in self._leaving:
            self._leaving.add(kept)
            self._tasks[kept].cancel()

    def _leave_all(self) -> None:
        self._is_stopping = True
        for kept in self._tasks:
            self.leave(kept)

    def _ended(self, kept: KeptSocket, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            _LOG.error("a public socket had to be closed", exc_info=error)
        del self._tasks[kept]
        self._leaving.discard(kept)
        if self._is_stopping:
            kept.stay()
        else:
            kept.end()
        if _was_last(self):
            self._over.set()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._until_over())

    async def _until_over(self) -> None:
        await self._over.wait()

    async def _keep(self, kept: KeptSocket) -> None:
        while True:
            try:
                async with (
                    self._keeper_for(kept.settings) as keeper,
                    keeper.bind_socket(kept.real, on_datagram=kept.deliver) as live,
                ):
                    changes = live.changes()
                    kept.succeed(live)
                    async for change in changes:
                        kept.tell(change)
            except BindingError as error:
                kept.fail(error)
            except NatToolsError as error:
                kept.fail(BindingError(f"no public endpoint: {error}"))
            except Exception as error:  # noqa: BLE001 - a fault of ours is no reason to take a phone's socket away
                _LOG.exception("the binding of a public socket failed")
                kept.fail(BindingError(f"no public endpoint, by a fault of nattools itself: {error!r}"))
            plain = await UdpSocket.adopt(kept.real, kept.deliver_without_binding)
            try:
                await asyncio.sleep(RETRY_S)
            finally:
                plain.close()

    @asynccontextmanager
    async def _keeper_for(self, settings: Settings) -> AsyncIterator[Keeper]:
        shared = self._keepers.get(settings)
        if shared is None:
            shared = self._keepers[settings] = _SharedKeeper(settings)
        shared.users += 1
        try:
            yield await asyncio.shield(shared.keeper)
        finally:
            shared.users -= 1
            if not shared.users:
                del self._keepers[settings]
                await shared.close()


_lock = threading.Lock()
_background: _Background | None = None
_forks = 0


def _enter() -> _Background:
    """The thread, with one more user."""
    global _background
    with _lock:
        if _background is None:
            _background = _Background()
        _background.users += 1
        return _background


def _was_last(background: _Background) -> bool:
    """Take one user off; whether nobody uses the thread any more."""
    global _background
    with _lock:
        background.users -= 1
        if background.users:
            return False
        if background is _background:
            _background = None
        return True


def _give_everything_back() -> None:
    with _lock:
        background = _background
    if background is not None:
        background.stop()


def _begin_anew() -> None:
    """In a forked child: the thread stayed with the parent, and may have held the lock."""
    global _lock, _background, _forks
    _lock, _background = threading.Lock(), None
    _forks += 1


atexit.register(_give_everything_back)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)
