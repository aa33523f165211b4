"""What one socket of a phone needs for its SIP: messages rewritten both ways, and what to do on a change.

The phone's threads send, and wait there for the bindings that a message needs. The thread that keeps bindings
receives, hears of changes, and sends what `Renewal` has to be sent.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import secrets
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from nattools.binding.background import KeptSocket
from nattools.binding.model import BindingChange, PublicBinding
from nattools.binding.settling import Settling
from nattools.blocking.flows import SipFlows
from nattools.blocking.ports import Call, Ports
from nattools.endpoint import Endpoint
from nattools.errors import TransportError
from nattools.sip.digest import DigestClient
from nattools.sip.direct import Calls, Ended
from nattools.sip.learning import Learned
from nattools.sip.news import in_words, is_trouble
from nattools.sip.renewal import Renewal, RenewalEvent
from nattools.sip.rewriter import MediaPort, Rewriter, RewriterEvent

_LOG = logging.getLogger(__name__)

_RTCP_GRACE_S = 1.0
"""So much longer than that of RTP is the binding of RTCP waited for."""


def is_sip(data: bytes) -> bool:
    """Whether it is a SIP message, by its first line (RFC 3261 §7)."""
    if not (data[:1].isalpha() or data[:1].isspace()):
        return False
    line = data.lstrip(b"\r\n").partition(b"\n")[0].strip().upper()
    return line.startswith(b"SIP/2.0 ") or line.endswith(b" SIP/2.0")


@dataclass(frozen=True, slots=True)
class Credentials:
    """What the phone's account has: without it only the phone itself can answer a challenge."""

    username: str
    password: str

    def __repr__(self) -> str:
        return f"Credentials({self.username!r})"


@dataclass(frozen=True, slots=True)
class _Machines:
    """The two that messages pass: the phone's words are on the side of `renewal`."""

    rewriter: Rewriter
    renewal: Renewal

    def outgoing(self, message: bytes, destination: Endpoint) -> bytes:
        own = self.renewal.outgoing(message, destination, now=time.monotonic())
        return self.rewriter.outgoing(own, destination)

    def incoming(self, message: bytes, source: Endpoint) -> bytes | None:
        own = self.rewriter.incoming(message, source)
        return self.renewal.incoming(own, source, now=time.monotonic())


class Signalling:
    """The SIP of one socket, from the first message that it sends."""

    def __init__(
        self,
        kept: KeptSocket,
        ports: Ports,
        *,
        binding_timeout_s: float,
        credentials: Credentials | None = None,
    ) -> None:
        """What `kept` receives passes through here from now on."""
        self._kept = kept
        self._ports = ports
        self._binding_timeout_s = binding_timeout_s
        self._credentials = credentials
        self._lock = threading.Lock()
        self._machines: _Machines | None = None
        self._calls = Calls()
        self._flows = SipFlows(kept)
        self._bindings: dict[KeptSocket, PublicBinding] = {}
        self._media: dict[KeptSocket, tuple[KeptSocket, ...]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._settling = Settling(self._sockets, self._renew)
        self._watch(kept)
        kept.on_datagram = self._arrived

    # In the phone's threads

    def outgoing(self, message: bytes, destination: Endpoint) -> bytes:
        """The message as it must be sent, once everything that it names is public.

        Raises `OSError` where something cannot be: `ConnectionError` with the reason, `TimeoutError` when
        nobody knows within `binding_timeout_s`.
        """
        give_up_at = time.monotonic() + self._binding_timeout_s
        machines = self._machines_by(give_up_at)
        with self._lock:
            needed = machines.rewriter.media_needed(message)
        for port in needed:
            self._provide_media(port, Call.of(message, self._kept), give_up_at)
        with self._lock:
            data = machines.outgoing(message, destination)
        self._passed(message, is_incoming=False)
        return data

    def sent(self, message: bytes, destination: Endpoint) -> None:
        """That message is on its way."""
        if not message.startswith(b"SIP/"):
            self._flows.keep_server(destination)
        self._kept.call(self._pump)

    def _machines_by(self, give_up_at: float) -> _Machines:
        binding = self._binding_of(self._kept, give_up_at)
        with self._lock:
            if self._machines is None:
                binding = self._bindings.setdefault(self._kept, binding)
                self._machines = _Machines(Rewriter(binding), self._renewal_at(binding.local))
            return self._machines

    def _renewal_at(self, local: Endpoint) -> Renewal:
        digest = None
        if (account := self._credentials) is not None:
            digest = DigestClient(account.username, account.password, entropy=secrets.token_bytes)
        return Renewal(local, entropy=secrets.token_bytes, digest=digest)

    def _provide_media(self, port: MediaPort, call: Call, give_up_at: float) -> None:
        """Make its sockets public. RTCP may fail: a call goes on without, and many phones have none."""
        rtp = self._watch(self._ports.hold(port.local, call))
        rtp.check_when_quiet()
        rtcp = None
        if port.rtcp is not None:
            with suppress(OSError):
                rtcp = self._watch(self._ports.hold(port.rtcp, call))
        bindings = {rtp: self._binding_of(rtp, give_up_at)}
        if rtcp is not None:
            with suppress(OSError):
                bindings[rtcp] = self._binding_of(rtcp, min(give_up_at, time.monotonic() + _RTCP_GRACE_S))
        with self._lock:
            for kept, binding in bindings.items():
                self._bindings.setdefault(kept, binding)
            self._media[rtp] = tuple(bindings)
            self._tell_media(rtp)

    def _watch(self, kept: KeptSocket) -> KeptSocket:
        kept.on_change = partial(self._changed, kept)
        return kept

    def _binding_of(self, kept: KeptSocket, give_up_at: float) -> PublicBinding:
        """The binding as it is, or was before it was lost."""
        has_answer = kept.has_answer.wait(max(0.0, give_up_at - time.monotonic()))
        binding = self._bindings.get(kept) or (kept.live.snapshot if kept.live is not None else None)
        if binding is not None:
            return binding
        if not has_answer:
            raise TimeoutError(
                errno.ETIMEDOUT,
                f"no public endpoint after {self._binding_timeout_s:g} s; it is still looked for: send "
                "again, or set binding_timeout_s to wait longer",
            )
        if kept.error is None:  # it had to be closed
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        raise ConnectionError(errno.ENETUNREACH, str(kept.error)) from kept.error.with_traceback(None)

    def _passed(self, message: bytes, *, is_incoming: bool) -> None:
        """See what a message means for its call."""
        with self._lock:
            event = self._calls.passed(message, is_incoming=is_incoming)
        if isinstance(event, Ended):
            self._ports.release(Call(self._kept, event.call_id))
            self._flows.end_call(event.call_id)
        elif event is not None:
            self._flows.keep_peer(event.call_id, event.peer)

    # In the thread that keeps the bindings

    def _arrived(self, data: bytes, source: Endpoint) -> bytes | None:
        if not is_sip(data):
            is_pong = not data.strip(b"\r\n") and source in self._flows
            return None if is_pong else data
        with self._lock:
            if self._machines is None:  # nothing was sent: nobody can have been told anything
                return data
            message = self._machines.incoming(data, source)
        self._passed(data, is_incoming=True)
        self._pump()
        return message

    def _changed(self, kept: KeptSocket, change: BindingChange | None) -> None:
        if change is None:
            self._forget(kept)
            return
        binding = change.binding
        if binding is None:  # lost: the last one is still the best guess
            return
        with self._lock:
            former = self._bindings.get(kept)
            self._bindings[kept] = binding
            if self._machines is None:
                return
            was_told = self._machines.rewriter.public_for(self._flows.latest_server)
            if kept is self._kept:
                self._machines.rewriter.set_signalling(binding)
            for rtp, sockets in self._media.items():
                if kept in sockets:
                    self._tell_media(rtp)
        if former is not None and (former.public, former.local) != (binding.public, binding.local):
            was_at = former.local
            if kept is self._kept:
                was_at = was_told or former.public
            self._settling.changed(kept, was_at)

    def _tell_media(self, rtp: KeptSocket) -> None:
        assert self._machines is not None, "what names media has passed"
        self._machines.rewriter.add_media(*(self._bindings[kept] for kept in self._media[rtp]))

    def _forget(self, kept: KeptSocket) -> None:
        """The socket is about to be closed."""
        with self._lock:
            binding = self._bindings.pop(kept, None)
            if self._media.pop(kept, None) and self._machines is not None and binding is not None:
                self._machines.rewriter.remove_media(binding.local.port)
            for rtp, sockets in self._media.items():
                if kept in sockets:  # its RTCP
                    self._media[rtp] = (rtp,)
                    self._tell_media(rtp)
        self._settling.forget(kept)
        if kept is self._kept:
            self._ports.release_all(kept)
            self._settling.cancel()
            if self._timer is not None:
                self._timer.cancel()

    def _sockets(self) -> Iterable[KeptSocket]:
        with self._lock:
            return (self._kept, *(kept for media in self._media.values() for kept in media))

    def _renew(self, moved: Mapping[KeptSocket, Endpoint]) -> None:
        now = time.monotonic()
        with self._lock:
            assert self._machines is not None, "only what was told can change"
            is_at = self._machines.rewriter.public_for(self._flows.latest_server)  # perhaps learned meanwhile
            for kept, was_at in moved.items():
                if kept is not self._kept:
                    self._machines.renewal.media_changed(was_at, now=now)
                elif kept in self._bindings and is_at is not None:
                    self._machines.renewal.binding_changed(was_at, is_at, now=now)
        self._pump()

    def _pump(self) -> None:
        """Send what there is to send, say what there is to say, and set the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        with self._lock:
            if self._machines is None or self._kept.is_over.is_set():
                return
            rewriter, renewal = self._machines.rewriter, self._machines.renewal
            events: list[RewriterEvent | RenewalEvent] = []
            while (event := rewriter.next_event()) is not None:
                events.append(event)
                if isinstance(event, Learned):
                    renewal.binding_changed(
                        event.previous, event.endpoint, server=event.server, now=time.monotonic()
                    )
            transmits = [(t, rewriter.outgoing(t.data, t.destination)) for t in renewal.transmits()]
            while (news := renewal.next_event()) is not None:
                events.append(news)
            timeout_at = renewal.timeout_at()
        for transmit, data in transmits:
            self._send(data, transmit.destination)
        for told in events:
            _LOG.log(logging.WARNING if is_trouble(told) else logging.INFO, "%s", in_words(told))
        if timeout_at is not None:
            self._timer = asyncio.get_running_loop().call_at(timeout_at, self._timed_out)

    def _timed_out(self) -> None:
        with self._lock:
            if self._machines is not None:
                self._machines.renewal.handle_timeout(now=time.monotonic())
        self._pump()

    def _send(self, data: bytes, destination: Endpoint) -> None:
        if (live := self._kept.live) is None:
            return
        try:
            live.sendto(data, destination)
        except TransportError as error:
            _LOG.warning("%s is not told of a change: %s", destination, error)
