"""Many datagrams in one call: recvmmsg and sendmmsg over buffers that live as long as the server.

Linux on x86-64 and aarch64, with numpy: there the layouts below are those of <sys/socket.h>. `is_available`
says whether it is so. What a batch means and what is answered is its reader's affair.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import platform
import socket
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nattools.endpoint import Endpoint
from nattools.net.listener import Datagram, SocketAddress, UdpListener
from nattools.net.udp import endpoint_of

MOST_DATAGRAMS = 256
"""So many are received in one call, at the most."""

REPLY_BYTES = 128
"""So long is a reply that is sent in a batch, at the most."""

BATCHES_PER_WAKEUP = 4
"""After so many that were not small the other sockets have their turn."""

BATCHES_KEPT = 256
"""After so many the memory that long datagrams have taken is given back; that takes 0.1 ms."""

_WHOLE_DATAGRAM_BYTES = 0x1_0000
_LIKELY_MORE = 0.5  # of a batch: while that was answered more has come, and asking is cheaper than a wakeup
_CACHE_LINE_BYTES = 64  # rows a power of two apart would share a few lines of the processor's cache
_NAME_BYTES = 32  # of a sockaddr, 16 or 28
_CONTROL_BYTES = 64  # of ancillary data: a header of 16 and a packet info of 12 or 20
_CONTROL_HEADER_BYTES = 16
_MACHINES = ("x86_64", "aarch64")
_OUT_OF_ROOM = (errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM)

_VECTOR = np.dtype([("base", np.uint64), ("bytes", np.uint64)])
_HEADER = np.dtype(
    {
        "names": ["name", "name_bytes", "vector", "vectors", "control", "control_bytes", "flags", "bytes"],
        "formats": ["u8", "u4", "u8", "u8", "u8", "u8", "i4", "u4"],
        "offsets": [0, 8, 16, 24, 32, 40, 48, 56],
        "itemsize": 64,
    }
)


class _ControlLayout(NamedTuple):
    """Where `struct cmsghdr` and the packet info after it (RFC 3542 §6.1) have what, in bytes."""

    header: bytes
    own: slice
    asked: slice
    end: int
    space: int


_CONTROL_OF_IPV4 = _ControlLayout(
    struct.pack("=Qii", 28, socket.IPPROTO_IP, 8), slice(20, 24), slice(24, 28), 28, 32
)
_CONTROL_OF_IPV6 = _ControlLayout(
    struct.pack("=Qii", 36, socket.IPPROTO_IPV6, 50), slice(16, 32), slice(16, 32), 36, 40
)

OnBatch = Callable[["BatchReader", int], None]
"""Takes a reader whose buffers have so many datagrams in their first rows."""


class _Message(ctypes.Structure):
    """`struct msghdr` as the C compiler of this Python lays it out, to see whether `_HEADER` is the same."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_bytes", ctypes.c_uint32),
        ("vector", ctypes.c_void_p),
        ("vectors", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_bytes", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _MessageOfBatch(ctypes.Structure):
    """`struct mmsghdr`, likewise."""

    _anonymous_ = ("message",)
    _fields_ = (("message", _Message), ("bytes", ctypes.c_uint))


def _load() -> ctypes.CDLL | None:
    """The C library with both calls, or None where it, or the layout, is another than the one known here."""
    if sys.platform != "linux" or platform.machine() not in _MACHINES or sys.byteorder != "little":
        return None
    assert _HEADER.fields is not None
    offsets = {name: place[1] for name, place in _HEADER.fields.items()}
    if any(getattr(_MessageOfBatch, name).offset != offset for name, offset in offsets.items()):
        return None  # a 32-bit Python on a 64-bit kernel
    library = ctypes.CDLL(None, use_errno=True)
    try:
        library.recvmmsg.argtypes = (
            *(ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int),
            ctypes.c_void_p,
        )
        library.sendmmsg.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int)
    except AttributeError:
        return None
    return library


_LIBRARY = _load()


def is_available() -> bool:
    """Whether this system has both calls, in the layout that is known here."""
    return _LIBRARY is not None


class BatchBuffers:
    """Room for a batch of datagrams of one family, and for as many replies; all sockets of a loop share it.

    Every array has a row for each datagram. The rows hold whatever UDP carries, so nothing is cut off;
    memory is taken only as far as datagrams reach, 16 MiB at the most, and given back now and then.
    """

    def __init__(self, *, ipv6: bool, rows: int = MOST_DATAGRAMS, destinations: bool = False) -> None:
        """With `destinations` for sockets that are bound to the unspecified address, and for no others."""
        row_bytes = _WHOLE_DATAGRAM_BYTES + _CACHE_LINE_BYTES
        memory = mmap.mmap(-1, rows * row_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_NOHUGEPAGE"):
            with suppress(
                OSError
            ):  # a kernel without huge pages; with them, a row's first byte could take 2 MiB
                memory.madvise(mmap.MADV_NOHUGEPAGE)
        self._memory = memory
        self._received = 0
        self.rows = rows
        self.payload = np.frombuffer(memory, np.uint8).reshape(rows, row_bytes)
        """The datagrams; after `lengths` bytes a row has what an earlier one left there."""
        names = np.zeros((rows, _NAME_BYTES), np.uint8)
        self.ports: NDArray[np.uint16] = names[:, 2:4].view(">u2")[:, 0]
        """The source ports, big-endian."""
        self.addresses = names[:, 8:24] if ipv6 else names[:, 4:8]
        """The source addresses, 4 or 16 bytes."""
        self.replies = np.zeros((rows, REPLY_BYTES), np.uint8)
        """For whoever answers: one reply in each row from the first on."""
        self._names = names
        self._name_places = _places(names)
        self._incoming, self._incoming_vectors = _headers(self.payload)
        self._incoming["name"] = self._name_places
        self._incoming["name_bytes"] = 28 if ipv6 else 16  # the kernel leaves it so
        self._outgoing, outgoing_vectors = _headers(self.replies)
        self._outgoing["name_bytes"] = 28 if ipv6 else 16
        self._outgoing_names = self._outgoing["name"]
        self._is_straight = False  # whether each outgoing name is that of its own row
        self._size_of_all: int | None = None  # where every outgoing row has the same
        self._outgoing_bytes = outgoing_vectors["bytes"]
        self._incoming_place = self._incoming.ctypes.data
        self._outgoing_place = self._outgoing.ctypes.data
        self.lengths: NDArray[np.uint32] = self._incoming["bytes"]
        """How many bytes each datagram has."""
        self._flags = self._incoming["flags"]
        self._is_ipv6 = ipv6
        self.own: NDArray[np.uint8] | None = None
        """With `destinations`: this machine's address that each was sent to, and its reply leaves from."""
        self.asked: NDArray[np.uint8] | None = None
        """And the address that it was sent to: over IPv4 the same, or that of many machines."""
        self._controls = np.zeros((rows, _CONTROL_BYTES), np.uint8)
        if destinations:
            self._keep_destinations()

    def _keep_destinations(self) -> None:
        """Have the system write a packet info (`_PacketInfo` in `net.listener`) to each row, and take one."""
        layout = _CONTROL_OF_IPV6 if self._is_ipv6 else _CONTROL_OF_IPV4
        self._incoming["control"] = _places(self._controls)
        self._control_bytes = self._incoming["control_bytes"]
        self.own = self._controls[:, layout.own]
        self.asked = self._controls[:, layout.asked]
        self._own_words = self.own.view(np.uint32)
        controls = np.zeros_like(self._controls)
        controls[:, : len(layout.header)] = np.frombuffer(layout.header, np.uint8)
        self._outgoing_own = controls[:, layout.own].view(np.uint32)
        self._outgoing["control"] = _places(controls)
        self._outgoing["control_bytes"] = layout.space

    def receive(self, sock: socket.socket) -> int:
        """Fill the first rows with what has arrived, and say how many. Raises `OSError`."""
        assert _LIBRARY is not None
        if self.own is not None:
            self._control_bytes[:] = _CONTROL_BYTES  # the kernel has written there how much it used
        self._received += 1
        if self._received % BATCHES_KEPT == 0:
            with suppress(OSError):  # where all memory is locked
                self._memory.madvise(mmap.MADV_DONTNEED)  # the batch before is done with
        count: int = _LIBRARY.recvmmsg(
            sock.fileno(), self._incoming_place, self.rows, socket.MSG_DONTWAIT, None
        )
        if count < 0:
            number = ctypes.get_errno()
            raise OSError(number, errno.errorcode.get(number, "recvmmsg"))
        return count

    def reply(
        self,
        sock: socket.socket,
        count: int,
        sizes: NDArray[np.uint64] | int,
        rows: NDArray[np.intp] | None = None,
    ) -> int:
        """Send the first `count` of `replies`, of `sizes` bytes, to the sources of `rows`.

        Without `rows` that is each to the source of its own row. Says how many the system has taken: one
        that it refuses (no route, a firewall) costs only itself; once there is no room for more, the rest is
        given up, as good as lost on the way.
        """
        assert _LIBRARY is not None
        if rows is not None:
            self._outgoing_names[:count] = self._name_places[rows]
            self._is_straight = False
        elif not self._is_straight:
            self._outgoing_names[:] = self._name_places
            self._is_straight = True
        if self.own is not None:
            self._outgoing_own[:count] = self._own_words[:count] if rows is None else self._own_words[rows]
        if not isinstance(sizes, int):
            self._outgoing_bytes[:count] = sizes
            self._size_of_all = None
        elif sizes != self._size_of_all:
            self._outgoing_bytes[:] = self._size_of_all = sizes
        done = sent = 0
        while done < count:
            taken = _LIBRARY.sendmmsg(
                sock.fileno(),
                self._outgoing_place + done * _HEADER.itemsize,
                count - done,
                socket.MSG_DONTWAIT,
            )
            if taken > 0:
                sent += taken
                done += taken
            elif ctypes.get_errno() == errno.EBADF or ctypes.get_errno() in _OUT_OF_ROOM:
                break
            elif ctypes.get_errno() != errno.EINTR:
                done += 1
        return sent

    def source(self, row: int) -> SocketAddress:
        """Where the datagram in `row` came from, as the socket module names it."""
        name, port = self._names[row], int(self.ports[row])
        if not self._is_ipv6:
            return socket.inet_ntop(socket.AF_INET, name[4:8].tobytes()), port
        flow, scope = int.from_bytes(name[4:8].tobytes(), "big"), int(name[24:28].view(np.uint32)[0])
        return socket.inet_ntop(socket.AF_INET6, name[8:24].tobytes()), port, flow, scope

    def data(self, row: int) -> tuple[bytes, bool]:
        """The datagram in `row`, and whether its end is missing."""
        return (
            self.payload[row, : int(self.lengths[row])].tobytes(),
            bool(int(self._flags[row]) & (socket.MSG_TRUNC | socket.MSG_CTRUNC)),
        )

    def packet_info(self, row: int) -> bytes:
        """With `destinations`: what the system said about where the datagram in `row` was sent to."""
        layout = _CONTROL_OF_IPV6 if self._is_ipv6 else _CONTROL_OF_IPV4
        return self._controls[row, _CONTROL_HEADER_BYTES : layout.end].tobytes()


class BatchReader:
    """Reads the socket of a listener in batches, in place of the listener's own way; that stays its owner.

    Where the listener is bound to the unspecified address, the buffers must have `destinations`.
    """

    def __init__(self, listener: UdpListener, buffers: BatchBuffers, on_batch: OnBatch) -> None:
        self.listener = listener
        self.buffers = buffers
        self._on_batch = on_batch
        self._socket = listener.drain_with(self._drain)

    def reply(self, count: int, sizes: NDArray[np.uint64] | int, rows: NDArray[np.intp] | None = None) -> int:
        """Send the first replies of the buffers; see `BatchBuffers.reply`."""
        return self.buffers.reply(self._socket, count, sizes, rows)

    def datagram(self, row: int) -> Datagram:
        """The datagram in `row` as the listener itself would hand it on."""
        address = self.buffers.source(row)
        data, truncated = self.buffers.data(row)
        local, unicast = self.listener.local, True
        if self.buffers.own is not None:
            ip, unicast = self.listener.destination(self.buffers.packet_info(row))
            local = Endpoint(ip, local.port)
        return Datagram(data, endpoint_of(address), local, address, unicast, truncated)

    def _drain(self) -> None:
        for _ in range(BATCHES_PER_WAKEUP):
            try:
                count = self.buffers.receive(self._socket)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno == errno.EBADF:  # the callback has closed it
                    return
                continue  # an ICMP error about an earlier reply
            self._on_batch(self, count)
            if count < self.buffers.rows * _LIKELY_MORE:
                return


def _places(rows: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """The address of each row in memory."""
    places = rows.ctypes.data + np.arange(len(rows)) * rows.strides[0]
    return places.astype(np.uint64)


def _headers(rows: NDArray[np.uint8]) -> tuple[NDArray[np.void], NDArray[np.void]]:
    """A header and a vector for each of `rows`, to be kept as long as the header is used."""
    vectors = np.zeros(len(rows), _VECTOR)
    vectors["base"], vectors["bytes"] = _places(rows), rows.shape[1]
    headers = np.zeros(len(rows), _HEADER)
    headers["vector"] = vectors.ctypes.data + np.arange(len(rows)) * _VECTOR.itemsize
    headers["vectors"] = 1
    return headers, vectors
