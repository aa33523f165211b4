"""A UDP socket with a public endpoint, for programs with threads: used as `socket.socket` is."""

from __future__ import annotations

import errno
import logging
import os
import socket
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Self, Unpack, cast, overload

from nattools.binding.background import KeptSocket
from nattools.binding.model import BindingChange, PublicBinding
from nattools.binding.schedule import KeepaliveKind
from nattools.binding.settings import Settings, SettingWords, read_settings
from nattools.endpoint import Endpoint, IPAddress
from nattools.errors import BindingError, TransportError
from nattools.net.listener import SocketAddress
from nattools.net.udp import endpoint_of, local_address_towards

_LOG = logging.getLogger(__name__)

DEFAULT_BINDING_TIMEOUT_S = 6.0
"""So long `PublicSocket.public` waits for the first answer; silent STUN servers are given up after 5 s."""
_SEND_TIMEOUT_S = 86400.0
"""Of a blocking send. With None, Python would have the socket itself block, and so the thread that reads."""

Data = bytes | bytearray | memoryview


class PublicSocket:
    """Stands in for `socket.socket(AF_INET, SOCK_DGRAM)`.

    Once it is bound, by `bind` or by the first datagram sent, its public endpoint is looked for and kept true
    in the background. Where none can be had it is still a UDP socket; `public` says why, and it is tried
    again every 30 seconds. Its own STUN is never seen by the program.

    Addresses are those of the socket module, and errors are `OSError` and its children as there; `public`
    alone raises `BindingError`. It can be selected on for reading. After a fork it belongs to the parent.
    """

    def __init__(
        self,
        family: int = socket.AF_INET,
        type: int = socket.SOCK_DGRAM,  # noqa: A002 - the name that socket.socket has for it
        proto: int = 0,
        *,
        settings: Settings | None = None,
        binding_timeout_s: float = DEFAULT_BINDING_TIMEOUT_S,
        **words: Unpack[SettingWords],
    ) -> None:
        """A socket of `family` AF_INET or AF_INET6, not bound yet.

        `settings` are those of the user's file and environment where none are given; `words` go before both
        (see `Settings`). `binding_timeout_s` is how long `public` waits for the first answer.
        Raises `OSError` for what is not UDP, `DecodeError` for settings that cannot be.
        """
        if family not in (socket.AF_INET, socket.AF_INET6):
            raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
        if type != socket.SOCK_DGRAM or proto not in (0, socket.IPPROTO_UDP):
            raise OSError(errno.EPROTONOSUPPORT, "a public socket is a UDP socket: SOCK_DGRAM")
        if settings is None:
            settings = read_settings(None, os.environ)
        settings = settings.with_words(**words)
        self._binding_timeout_s = binding_timeout_s
        self._lock = threading.Lock()
        self._is_closed = False
        self._peer: SocketAddress | None = None
        self._local_ip: IPAddress | None = None
        self._on_change: Callable[[BindingChange], None] | None = None
        self._is_told = False
        self._kept = KeptSocket(family, settings)
        self.settimeout(socket.getdefaulttimeout())

    # A socket

    @property
    def family(self) -> socket.AddressFamily:
        """AF_INET or AF_INET6."""
        return socket.AddressFamily(self._kept.real.family)

    @property
    def type(self) -> socket.SocketKind:
        """SOCK_DGRAM."""
        return socket.SOCK_DGRAM

    @property
    def proto(self) -> int:
        """The protocol by its number; 0 is UDP, the one of the type."""
        return self._kept.real.proto

    def bind(self, address: SocketAddress) -> None:
        """Bind the socket, and begin to look for its public endpoint. Raises `OSError`."""
        self._check()
        with self._lock:
            self._check()
            self._bind(address)

    def connect(self, address: SocketAddress) -> None:
        """Take datagrams from `address` alone, and have `send` send there. Raises `OSError`.

        The system is not told, as the STUN servers must be heard as well; so it does not report that nobody
        listens there (ECONNREFUSED).
        """
        self._bind_if_needed()
        host, port = address[:2]
        found = socket.getaddrinfo(host, port, self.family, socket.SOCK_DGRAM)[0][4]
        peer_address = cast(SocketAddress, found)  # a Python without IPv6 would have (int, bytes) for its
        peer = endpoint_of(peer_address, with_scope=True)
        if endpoint_of(self._kept.real.getsockname()).ip.is_unspecified:
            try:
                self._local_ip = local_address_towards(peer)
            except TransportError as error:
                raise error.__cause__ or error from None
        self._peer, self._kept.peer = peer_address, peer.unmapped

    @overload
    def sendto(self, data: Data, address: SocketAddress, /) -> int: ...

    @overload
    def sendto(self, data: Data, flags: int, address: SocketAddress, /) -> int: ...

    def sendto(self, data: Data, *flags_and_address: object) -> int:
        """Send one datagram; returns how many bytes it has. Raises `OSError`."""
        self._bind_if_needed()
        return self._transmit(data, *flags_and_address)

    def send(self, data: Data, flags: int = 0) -> int:
        """Send one datagram to where the socket is connected. Raises `OSError`."""
        self._check()
        if self._peer is None:
            raise OSError(errno.EDESTADDRREQ, os.strerror(errno.EDESTADDRREQ))
        return self.sendto(data, flags, self._peer)

    def recvfrom(self, bufsize: int, flags: int = 0) -> tuple[bytes, SocketAddress]:
        """The next datagram, cut to `bufsize` bytes, and who sent it. Raises `OSError`."""
        self._check()
        if bufsize < 0:
            raise ValueError("negative buffersize in recvfrom")
        return self._kept.receive(bufsize, flags)

    def recv(self, bufsize: int, flags: int = 0) -> bytes:
        """The next datagram, cut to `bufsize` bytes. Raises `OSError`."""
        return self.recvfrom(bufsize, flags)[0]

    def recvfrom_into(
        self, buffer: bytearray | memoryview, nbytes: int = 0, flags: int = 0
    ) -> tuple[int, SocketAddress]:
        """Put the next datagram into `buffer`; its size, at most `nbytes`, and sender. Raises `OSError`."""
        room = memoryview(buffer).cast("B")
        if not 0 <= nbytes <= len(room):
            raise ValueError(f"nbytes is {nbytes}, and the buffer has {len(room)} bytes")
        data, source = self.recvfrom(nbytes or len(room), flags)
        room[: len(data)] = data
        return len(data), source

    def recv_into(self, buffer: bytearray | memoryview, nbytes: int = 0, flags: int = 0) -> int:
        """Put the next datagram into `buffer`; returns its size, `nbytes` at most. Raises `OSError`."""
        return self.recvfrom_into(buffer, nbytes, flags)[0]

    def settimeout(self, value: float | None) -> None:
        """How many seconds receiving and sending wait: None for ever, 0 not at all. Raises `OSError`."""
        self._check()
        self._kept.outer.settimeout(value)
        self._kept.real.settimeout(_SEND_TIMEOUT_S if value is None else value)

    def gettimeout(self) -> float | None:
        """How many seconds receiving and sending wait; None is for ever."""
        return self._kept.outer.gettimeout()

    def setblocking(self, flag: bool) -> None:
        """Wait for ever, or not at all. Raises `OSError`."""
        self.settimeout(None if flag else 0.0)

    def getblocking(self) -> bool:
        """Whether receiving and sending wait."""
        return self._kept.outer.getblocking()

    def fileno(self) -> int:
        """What select and its like take, for reading; -1 once it is closed. Raises `OSError` in a fork."""
        if self._is_closed:
            return -1
        self._check()
        return self._kept.outer.fileno()

    def getsockname(self) -> SocketAddress:
        """The local address. Raises `OSError`."""
        self._check()
        local: SocketAddress = self._kept.real.getsockname()
        if self._local_ip is None:
            return local
        host = str(self._local_ip).partition("%")[0]
        return (host, local[1]) if len(local) == 2 else (host, *local[1:])

    def getpeername(self) -> SocketAddress:
        """Where the socket is connected. Raises `OSError`."""
        self._check()
        if self._peer is None:
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
        return self._peer

    @overload
    def getsockopt(self, level: int, option: int, /) -> int: ...

    @overload
    def getsockopt(self, level: int, option: int, buflen: int, /) -> bytes: ...

    def getsockopt(self, level: int, option: int, *buflen: int) -> int | bytes:
        """An option of the real socket. Raises `OSError`."""
        self._check()
        return self._kept.real.getsockopt(level, option, *buflen)

    def setsockopt(self, level: int, option: int, value: int | Data) -> None:
        """Set an option of the real socket. Raises `OSError`."""
        self._check()
        self._kept.real.setsockopt(level, option, value)
        if (level, option) == (socket.SOL_SOCKET, socket.SO_RCVBUF) and isinstance(value, int):
            self._kept.set_buffer(value)

    def shutdown(self, how: int) -> None:
        """Raises `OSError`, as there is no connection. `close` wakes the threads that receive."""
        self._check()
        raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN), how)

    def detach(self) -> int:
        """Raises `OSError`: the descriptor alone is no public socket."""
        raise OSError(errno.EOPNOTSUPP, "a public socket cannot be detached: close it and open a plain one")

    def close(self) -> None:
        """Give everything back, and close. Threads that receive get `OSError` (EBADF), `changes` end.

        The port is free then, and a router's mapping removed; it waits 3 seconds for that at most.
        """
        if not self._kept.is_inherited:  # a thread that the fork has left behind may hold the lock
            with self._lock:
                if self._is_closed:
                    return
                self._is_closed = True
        self._is_closed = True
        self._kept.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        try:
            local = str(endpoint_of(self._kept.real.getsockname()))
        except OSError:
            local = "closed"
        binding = self.binding
        return f"<PublicSocket {local}, public {binding.public if binding else 'not known'}>"

    def __del__(self) -> None:
        if hasattr(self, "_kept") and not self._is_closed:
            unclosed = f"unclosed {self!r}"
            self._kept.abandon()
            warnings.warn(unclosed, ResourceWarning, stacklevel=2, source=self)

    # Its public endpoint

    @property
    def public(self) -> Endpoint:
        """Where others reach the socket: what to write into Via, Contact and SDP.

        Waits for the first answer, `binding_timeout_s` at most. Raises `BindingError` with the reason where
        there is none, and `OSError` when the socket is closed.
        """
        self._check()
        kept = self._kept
        if not kept.is_started:
            raise BindingError("the socket has no port yet: bind it first, to port 0 for any")
        if not kept.has_answer.wait(self._binding_timeout_s):
            raise BindingError(
                f"no public endpoint after {self._binding_timeout_s:g} s; it is still looked for: ask again, "
                "or set binding_timeout_s to wait longer"
            )
        self._check()
        if (live := kept.live) is not None:
            return live.public
        if kept.error is not None:
            raise kept.error.with_traceback(None)
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))  # it had to be closed

    @property
    def binding(self) -> PublicBinding | None:
        """The binding as it is now; None before it is acquired, while it is lost, and if none can be had."""
        live = self._kept.live
        return None if live is None else live.snapshot

    @property
    def on_change(self) -> Callable[[BindingChange], None] | None:
        """Called with each change from when it is set, the first binding included.

        It has a thread of its own, so it may wait for answers and close the socket.
        """
        return self._on_change

    @on_change.setter
    def on_change(self, on_change: Callable[[BindingChange], None] | None) -> None:
        self._check()
        with self._lock:
            self._on_change = on_change
            if on_change is not None and not self._is_told:
                self._is_told = True
                news = (weakref.ref(self), self._kept.changes())
                threading.Thread(target=_tell, args=news, name="nattools news", daemon=True).start()

    def changes(self) -> Iterator[BindingChange]:
        """Each change from now on, the first binding included; waits for the next, and ends with `close`."""
        self._check()
        return self._kept.changes()

    def keep_open(self, destination: Endpoint, kind: KeepaliveKind = KeepaliveKind.CRLF) -> None:
        """Keep the flow to `destination` open as well, to a SIP proxy say, whenever there is a binding."""
        self._check()
        self._kept.keep_open(destination, kind)

    def let_go(self, destination: Endpoint) -> None:
        """Keep that flow open no longer."""
        self._check()
        self._kept.let_go(destination)

    def _bind(self, address: SocketAddress) -> None:
        self._kept.real.bind(address)
        self._kept.start()

    def _transmit(self, data: Data, *flags_and_address: object) -> int:
        send: Callable[..., int] = self._kept.real.sendto
        return send(data, *flags_and_address)

    def _check(self) -> None:
        if self._kept.is_inherited:
            raise OSError(errno.EBADF, "this public socket stayed with the process that forked: open another")
        if self._is_closed:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    def _bind_if_needed(self) -> None:
        self._check()
        if not self._kept.is_started:
            with self._lock:
                self._check()
                if not self._kept.real.getsockname()[1]:
                    self._bind(("", 0))
                elif not self._kept.is_started:  # a bind had no thread to begin with
                    self._kept.start()


def _tell(told: weakref.ref[PublicSocket], changes: Iterator[BindingChange]) -> None:
    for change in changes:
        sock = told()
        on_change = None if sock is None else sock.on_change
        del sock  # nothing but its program keeps it
        if on_change is not None:
            try:
                on_change(change)
            except Exception:  # noqa: BLE001 - the program's own; the next change must be told as well
                _LOG.exception("on_change of a public socket failed")
