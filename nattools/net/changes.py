"""When this machine's network changes: links, addresses and routes; and when the machine was asleep."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address

from nattools.errors import TransportError
from nattools.net.interfaces import Interface, interfaces

_LOG = logging.getLogger(__name__)

LOOK_EVERY_S = 2.0
_SETTLE_S = 0.05
"""So long a burst is waited for: an address comes with its routes."""
_BETWEEN_S = 0.25
_SLEPT_S = 3.0
_LATE_S = 5.0
_MOST_REASONS = 3
_MOST_AT_ONCE = 512
_MOST_KNOWN = 4096

# <linux/rtnetlink.h>, <linux/if_addr.h>, <linux/if.h>
_NETLINK_ROUTE = 0
_GROUPS = 0x001 | 0x010 | 0x040 | 0x100 | 0x400  # links; addresses and routes of IPv4, of IPv6
_HEADER = struct.Struct("=IHHII")
_LINK = struct.Struct("=BxHiII")
_ADDRESS = struct.Struct("=BBBBI")
_ATTRIBUTE = struct.Struct("=HH")
_RTM_NEWLINK, _RTM_DELLINK, _RTM_NEWADDR, _RTM_DELADDR, _RTM_NEWROUTE, _RTM_DELROUTE = 16, 17, 20, 21, 24, 25
_IFLA_IFNAME = 3
_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS = 1, 2, 8
_IFA_F_OPTIMISTIC, _IFA_F_DADFAILED, _IFA_F_DEPRECATED, _IFA_F_TENTATIVE = 0x04, 0x08, 0x20, 0x40
_UP_AND_RUNNING = 0x01 | 0x40

OnNetworkChange = Callable[[str], None]
"""Gets what has changed, in words."""


class Bulletin:
    """What the Linux kernel tells of its network (rtnetlink(7)), put into words.

    Most messages say nothing new: each router advertisement repeats the addresses, and wireless links tell
    how strong their signal is. So what was told of a link or an address is remembered.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], int] = {}

    def read(self, datagram: bytes) -> Iterator[str]:
        """The news in one datagram off a netlink socket; none in what is no such datagram."""
        at = 0
        while at + _HEADER.size <= len(datagram):
            length, kind, _, _, _ = _HEADER.unpack_from(datagram, at)
            if not _HEADER.size <= length <= len(datagram) - at:
                return
            body = datagram[at + _HEADER.size : at + length]
            if kind in (_RTM_NEWLINK, _RTM_DELLINK) and len(body) >= _LINK.size:
                yield from self._link(body, is_gone=kind == _RTM_DELLINK)
            elif kind in (_RTM_NEWADDR, _RTM_DELADDR) and len(body) >= _ADDRESS.size:
                yield from self._address(body, is_gone=kind == _RTM_DELADDR)
            elif kind in (_RTM_NEWROUTE, _RTM_DELROUTE):
                yield f"a route was {'added' if kind == _RTM_NEWROUTE else 'removed'}"
            at += length + 3 & ~3

    def forget(self) -> None:
        """Messages were lost: anything may be new."""
        self._known.clear()

    def _link(self, body: bytes, *, is_gone: bool) -> Iterator[str]:
        family, _, index, flags, _ = _LINK.unpack_from(body)
        if family != socket.AF_UNSPEC:  # a bridge about its ports
            return
        name = dict(_attributes(body[_LINK.size :])).get(_IFLA_IFNAME, b"").rstrip(b"\0")
        state = flags & _UP_AND_RUNNING
        if self._is_new((index,), None if is_gone else state):
            told = "gone" if is_gone else "up" if state == _UP_AND_RUNNING else "down"
            yield f"{name.decode('ascii', 'replace') or 'a link'} is {told}"

    def _address(self, body: bytes, *, is_gone: bool) -> Iterator[str]:
        family, _, flags, _, index = _ADDRESS.unpack_from(body)
        attributes = dict(_attributes(body[_ADDRESS.size :]))
        packed = attributes.get(_IFA_LOCAL) or attributes.get(_IFA_ADDRESS, b"")
        if len(all_flags := attributes.get(_IFA_FLAGS, b"")) == 4:
            flags = int.from_bytes(all_flags, sys.byteorder)
        if not is_gone and flags & _IFA_F_TENTATIVE and not flags & _IFA_F_OPTIMISTIC:
            return  # not usable before nobody else was found to have it (RFC 4862 §5.4)
        state = flags & (_IFA_F_DEPRECATED | _IFA_F_DADFAILED)
        if self._is_new((index, family, packed), None if is_gone else state):
            try:
                name = f"the address {ip_address(packed)}"
            except ValueError:
                name = "an address"
            yield f"{name} was {'removed' if is_gone else 'changed' if state else 'added'}"

    def _is_new(self, key: tuple[object, ...], state: int | None) -> bool:
        if state is None:
            self._known.pop(key, None)
            return True
        former = self._known.get(key)
        if former is None and len(self._known) >= _MOST_KNOWN:
            self._known.clear()
        self._known[key] = state
        return former != state


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if not _ATTRIBUTE.size <= length <= len(data) - at:
            return
        yield kind, data[at + _ATTRIBUTE.size : at + length]
        at += length + 3 & ~3


def differences(before: Sequence[Interface], after: Sequence[Interface]) -> Iterator[str]:
    """What is different between two looks at the interfaces, in words."""
    old, new = ({interface.name: interface for interface in looked} for looked in (before, after))
    for name in sorted(old.keys() | new.keys()):
        was, is_now = old.get(name), new.get(name)
        if is_now is None:
            yield f"{name} is gone"
            continue
        if was is None or was.is_up != is_now.is_up:
            yield f"{name} is {'up' if is_now.is_up else 'down'}"
        former = was.ips if was is not None else ()
        yield from (f"the address {ip} was removed" for ip in former if ip not in is_now.ips)
        yield from (f"the address {ip} was added" for ip in is_now.ips if ip not in former)


def _since_boot() -> float:
    """Seconds by a clock that goes on while the machine sleeps; by the clock on the wall where none does."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if sys.platform == "linux" else time.time()


@dataclass(frozen=True, slots=True)
class Clocks:
    """Two clocks, in seconds: one that stands still while the machine sleeps, one that goes on."""

    awake: Callable[[], float] = time.monotonic
    always: Callable[[], float] = _since_boot


class NetworkWatch:
    """Tells that the network is not what it was. Make it with `NetworkWatch.open`, end it with `close`.

    On Linux the kernel tells; elsewhere, and where a sandbox keeps it from that, the interfaces are looked at
    every 2 s. It costs next to nothing, and one is enough for a process.
    """

    def __init__(
        self, on_change: OnNetworkChange, clocks: Clocks, look: Callable[[], list[Interface]], every_s: float
    ) -> None:
        self._on_change = on_change
        self._clocks = clocks
        self._look = look
        self._every_s = every_s
        self._loop = asyncio.get_running_loop()
        self._bulletin = Bulletin()
        self._reasons: dict[str, None] = {}
        self._bell: asyncio.TimerHandle | None = None
        self._rang_at = float("-inf")
        self._looked_at = clocks.awake()
        self._slept_s = clocks.always() - self._looked_at
        self._interfaces: list[Interface] | None = None
        self._netlink = _open_netlink()
        if self._netlink is not None:
            try:
                self._loop.add_reader(self._netlink, self._readable)
            except NotImplementedError:
                self._stop_listening()
        if self._netlink is None:
            self._interfaces = self._looked()
        self._timer = self._loop.call_later(every_s, self._due)

    @classmethod
    def open(
        cls,
        on_change: OnNetworkChange,
        *,
        clocks: Clocks | None = None,
        look: Callable[[], list[Interface]] = interfaces,
        every_s: float = LOOK_EVERY_S,
    ) -> NetworkWatch:
        """Watch from the running loop, and call `on_change(reason)` there; a burst of changes calls it once.

        A sleep is told when the machine is awake again, and so is it when the whole process stood still.
        """
        return cls(on_change, clocks or Clocks(), look, every_s)

    def close(self) -> None:
        """Watch no more; no call comes after that."""
        self._timer.cancel()
        if self._bell is not None:
            self._bell.cancel()
        self._stop_listening()

    def _stop_listening(self) -> None:
        if self._netlink is not None:
            with suppress(NotImplementedError):
                self._loop.remove_reader(self._netlink)
            self._netlink.close()
            self._netlink = None

    def _readable(self) -> None:
        self._hear()
        if self._reasons:
            self._ring_soon()

    def _hear(self) -> None:
        for _ in range(_MOST_AT_ONCE):
            if self._netlink is None:
                return
            try:
                datagram, (sender, _groups) = self._netlink.recvfrom(65536)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                self._bulletin.forget()
                self._news("more has changed than the system could tell")
                if error.errno != errno.ENOBUFS:
                    _LOG.warning("the system tells no changes of its network any more: %s", error)
                    self._stop_listening()
                    self._interfaces = self._looked()
                continue
            if sender == 0:  # the kernel; any process may write to this socket
                for reason in self._bulletin.read(datagram):
                    self._news(reason)

    def _news(self, reason: str) -> None:
        if len(self._reasons) <= _MOST_REASONS:
            self._reasons[reason] = None

    def _ring_soon(self) -> None:
        if self._bell is not None:
            return
        if self._netlink is not None:
            self._loop.remove_reader(self._netlink)  # a flood of messages is not worth reading
        at = max(self._loop.time() + _SETTLE_S, self._rang_at + _BETWEEN_S)
        self._bell = self._loop.call_at(at, self._ring)

    def _ring(self) -> None:
        self._bell = None
        self._hear()
        if self._netlink is not None:
            self._loop.add_reader(self._netlink, self._readable)
        told = list(self._reasons)
        self._reasons.clear()
        self._rang_at = self._loop.time()
        more = " and more" if len(told) > _MOST_REASONS else ""
        reason = ", ".join(told[:_MOST_REASONS]) + more
        _LOG.info("the network has changed: %s", reason)
        self._on_change(reason)

    def _due(self) -> None:
        self._timer = self._loop.call_later(self._every_s, self._due)
        now = self._clocks.awake()
        late_s, self._looked_at = now - self._looked_at - self._every_s, now
        former_s, self._slept_s = self._slept_s, self._clocks.always() - now
        if self._slept_s - former_s > _SLEPT_S:
            self._news(f"the machine slept {self._slept_s - former_s:.0f} s")
        elif late_s > _LATE_S:
            self._news(f"the machine slept, or this program stood still, for {late_s:.0f} s")
        if self._netlink is None:
            former, self._interfaces = self._interfaces, self._looked()
            for reason in differences(former or (), self._interfaces or ()):
                self._news(reason)
        if self._reasons:
            self._ring_soon()

    def _looked(self) -> list[Interface] | None:
        try:
            return self._look()
        except TransportError as error:
            _LOG.debug("%s", error)
            return self._interfaces


def _open_netlink() -> socket.socket | None:
    """A socket that hears of every change; None where the system has none, or a sandbox denies it."""
    if sys.platform != "linux":
        return None
    try:
        netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_ROUTE)
    except OSError as error:
        _LOG.info("the system is not heard about its network, it is looked at instead: %s", error)
        return None
    try:
        netlink.setblocking(False)
        netlink.bind((0, _GROUPS))
    except OSError as error:
        netlink.close()
        _LOG.info("the system is not heard about its network, it is looked at instead: %s", error)
        return None
    return netlink
