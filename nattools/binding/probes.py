"""Binding requests under way from one socket: when each is sent again or given up, and which answer counts.

Every transmission has a transaction id of its own, so that its round trip is exact and an answer that comes
late or twice is known for what it is. Many sockets are looked at from one process, so a request costs little.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum

from nattools.endpoint import AddressClass, Endpoint, IPAddress
from nattools.errors import DecodeError
from nattools.machine import Entropy, Transmit
from nattools.stun.attributes import (
    CHANGE_REQUEST,
    CHANGED_ADDRESS,
    MESSAGE_INTEGRITY,
    MESSAGE_INTEGRITY_SHA256,
    OTHER_ADDRESS,
    REGISTRY,
    Attribute,
    ChangeRequest,
    ErrorCode,
    attribute_name,
)
from nattools.stun.discovery import alternate_fault
from nattools.stun.integrity import fingerprint_holds
from nattools.stun.message import HEADER_BYTES, MAGIC_COOKIE, Message, MessageClass, Method
from nattools.stun.request import OWN_SOFTWARE
from nattools.stun.transaction import error_of

CHANGE_BOTH = CHANGE_REQUEST.of(ChangeRequest(change_ip=True, change_port=True))
CHANGE_PORT = CHANGE_REQUEST.of(ChangeRequest(change_ip=False, change_port=True))

_PLAIN_HEAD = b"\x00\x01\x00\x00" + MAGIC_COOKIE
_ID = slice(8, HEADER_BYTES)
_REMEMBERED_S = 60.0
_MOST_REMEMBERED = 192
_MOST_TOUCHED = 256
_UNDELIVERED_BELIEVED = 2
_NAMELESS_BELIEVED = 4
"""An error without an address may as well be about the program's own peers."""
_SEALS = (MESSAGE_INTEGRITY.type, MESSAGE_INTEGRITY_SHA256.type)


class Purpose(Enum):
    """What a probe is to find out. A1:P1 is the server, A2:P2 what it says is its other address and port."""

    VIEW = "view"  # A1:P1, plain: where does the socket appear?
    OTHER_VIEW = "other-view"  # A2:P1 or A1:P2, plain
    AGAIN = "again"  # A1:P1, plain, once more: does it see the same as before?
    CHECK = "check"  # A1:P1, plain: the keepalive
    STRANGER = "stranger"  # A1:P1, to answer from A2:P2
    KNOCK = "knock"  # A1:P1, to answer from A2:P2 to a port that it is given
    SIDE_KNOCK = "side-knock"  # A1:P1, to answer from A1:P2 to that port
    DECOY = "decoy"  # A1:P1, to answer to a port that is not ours
    STILL_THERE = "still-there"  # A1:P1, plain, after a silence
    OPENING = "opening"  # A1:P2, plain, so that the NAT lets it in
    CONTROL = "control"  # A1:P1, to answer from A1:P2 to the port that was opened for it


@dataclass(slots=True, eq=False)
class Probe:
    """One question to one address.

    It is sent at once, then again after each of `waits_s`; after the last of them it is given up. `topic` is
    the test that it belongs to.
    """

    purpose: Purpose
    destination: Endpoint
    waits_s: Sequence[float]
    topic: object
    attributes: tuple[Attribute, ...] = ()
    began_at: float = 0.0
    last_at: float = 0.0
    next_at: float = 0.0
    sent: int = 0
    undelivered: int = 0
    is_undeliverable: bool = False
    fault: str = ""


@dataclass(frozen=True, slots=True)
class View:
    """What a success response says: where the socket appears, and the server's other address.

    `alternate` is None where there is none to use, with the reason in `fault`. `sends_to_ports` says that the
    server speaks RFC 5780, and so may know RESPONSE-PORT.
    """

    mapped: Endpoint
    alternate: Endpoint | None
    fault: str
    sends_to_ports: bool


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer to one transmission of `probe`: what it shows, or, with `view` None, why it shows nothing."""

    probe: Probe
    source: Endpoint
    rtt_s: float
    view: View | None
    fault: str = ""


class Touched:
    """The addresses that anything was sent to. Of too many it forgets which; then it was any."""

    __slots__ = ("_addresses",)

    def __init__(self) -> None:
        self._addresses: set[IPAddress] | None = set()

    def __contains__(self, address: object) -> bool:
        return self._addresses is None or address in self._addresses

    def add(self, address: IPAddress) -> None:
        """Something was sent there."""
        if self._addresses is not None:
            self._addresses.add(address)
            if len(self._addresses) > _MOST_TOUCHED:
                self._addresses = None


@dataclass(slots=True)
class Probes:
    """All that one socket has asked; `touched` has every address that anything was ever sent to."""

    entropy: Entropy
    outbox: list[Transmit] = field(default_factory=list)
    touched: Touched = field(default_factory=Touched)
    _active: list[Probe] = field(default_factory=list)
    _sent: dict[bytes, tuple[Probe, float]] = field(default_factory=dict)

    def ask(self, probe: Probe, *, now: float) -> Probe:
        """Send it now, and go on as its waits say."""
        probe.began_at = now
        self._active.append(probe)
        self._send(probe, now)
        return probe

    def hasten(self, probe: Probe, *, now: float) -> None:
        """Send it once more now, if its first wait has passed since the last time; its schedule stays."""
        if now - probe.last_at >= probe.waits_s[0]:
            self._transmit(probe, now)

    def stop(self, *purposes: Purpose, destination: Endpoint | None = None) -> None:
        """Send those no more; what comes for them is still known."""
        self._active = [
            probe
            for probe in self._active
            if probe.purpose not in purposes or destination not in (None, probe.destination)
        ]

    def under_way(self, *purposes: Purpose) -> Iterator[Probe]:
        """Those that are not yet answered, stopped or given up."""
        return (probe for probe in self._active if probe.purpose in purposes)

    def timeout_at(self) -> float | None:
        """When the next of them is to be sent again or given up."""
        return min((probe.next_at for probe in self._active), default=None)

    def fire(self, *, now: float) -> list[Probe]:
        """Send again what is due; gives those that are given up."""
        over = []
        for probe in self._active.copy():
            if probe.next_at <= now:
                if probe.sent < len(probe.waits_s):
                    self._send(probe, now)
                else:
                    self._active.remove(probe)
                    over.append(probe)
        return over

    def undeliverable(self, destination: Endpoint | None, reason: str) -> list[Probe]:
        """The system has no way to `destination`, None for wherever it was; gives those given up for it.

        That takes two transmissions; four where it is not known whom the error is about.
        """
        over = []
        enough = _NAMELESS_BELIEVED if destination is None else _UNDELIVERED_BELIEVED
        for probe in self._active.copy():
            if destination in (None, probe.destination) and probe.undelivered < probe.sent:
                probe.undelivered += 1
                probe.fault = reason
                if probe.undelivered >= enough:
                    probe.is_undeliverable = True
                    self._active.remove(probe)
                    over.append(probe)
        return over

    def find(self, data: bytes) -> tuple[Probe, float] | None:
        """The probe that `data` answers, and when that transmission was; None where it is none of ours."""
        return self._sent.get(data[_ID]) if data[4:8] == MAGIC_COOKIE else None

    def _send(self, probe: Probe, now: float) -> None:
        self._transmit(probe, now)
        probe.next_at = now + probe.waits_s[probe.sent]
        probe.sent += 1

    def _transmit(self, probe: Probe, now: float) -> None:
        probe.last_at = now
        transaction_id = self.entropy(12)
        attributes = probe.attributes or ((OWN_SOFTWARE,) if probe.destination.is_ipv6 else ())
        if attributes:
            data = Message(Method.BINDING, MessageClass.REQUEST, transaction_id, attributes).encode()
        else:
            data = _PLAIN_HEAD + transaction_id
        self._remember(transaction_id, probe, now)
        self.touched.add(probe.destination.ip)
        self.outbox.append(Transmit(data, probe.destination))

    def _remember(self, transaction_id: bytes, probe: Probe, now: float) -> None:
        while self._sent:
            oldest = next(iter(self._sent))
            if len(self._sent) < _MOST_REMEMBERED and self._sent[oldest][1] > now - _REMEMBERED_S:
                break
            del self._sent[oldest]
        self._sent[transaction_id] = (probe, now)


def read_answer(data: bytes, probe: Probe, source: Endpoint, rtt_s: float) -> Answer | None:
    """What `data`, which has the transaction id of `probe`, says; None where it is no response at all."""
    try:
        message = Message.parse(data)
        if message.method != Method.BINDING or message.message_class in (
            MessageClass.REQUEST,
            MessageClass.INDICATION,
        ):
            return None
        fault = _fault(message)
        view = None if fault else _view(message, probe.destination)
    except DecodeError as error:
        return Answer(probe, source, rtt_s, None, f"its answer is malformed: {error}")
    if view is None:
        return Answer(
            probe, source, rtt_s, None, fault or "its answer does not say where the request came from"
        )
    if not _is_possible(view.mapped, probe.destination):
        fault = f"it says that the request came from {view.mapped}, which cannot be"
        return Answer(probe, source, rtt_s, None, fault)
    return Answer(probe, source, rtt_s, view)


def is_plain_ipv4(data: bytes, view: View) -> bool:
    """Whether an answer with another transaction id that says the same is the same in all its other bytes.

    The key of an IPv4 address is the cookie alone (RFC 8489 §14.2); FINGERPRINT covers the id as well.
    """
    return not view.mapped.is_ipv6 and fingerprint_holds(Message.parse(data)) is None


def _fault(message: Message) -> str:
    """Why a response is of no use (RFC 8489 §6.3.3, §6.3.4); empty where it is."""
    if fingerprint_holds(message) is False:
        return "the FINGERPRINT of its answer is wrong"
    if message.message_class is MessageClass.ERROR:
        error = error_of(message)
        if error is None:
            return "it refuses without a readable ERROR-CODE"
        if error.code == ErrorCode.UNAUTHORIZED:
            return f"it answers {error}: it wants credentials, which a public binding does not have"
        if error.code == ErrorCode.TRY_ALTERNATE:
            return f"it answers {error}: it wants another server asked (ALTERNATE-SERVER is not followed)"
        return f"it answers {error}"
    for attribute in message.attributes:
        if attribute.type in _SEALS:
            break
        if attribute.comprehension_required and attribute.type not in REGISTRY:
            return f"its answer has {attribute_name(attribute.type)}, which must be understood and is not"
    return ""


def _view(message: Message, server: Endpoint) -> View | None:
    mapped = message.mapped_address
    if mapped is None:
        return None
    try:
        other = message.get(OTHER_ADDRESS)
        is_modern = other is not None
        other = other or message.get(CHANGED_ADDRESS)
    except DecodeError as error:
        return View(mapped, None, f"the server's other address is malformed: {error}", False)
    other = other and other.unmapped
    fault = alternate_fault(server, other)
    return View(mapped, None if fault else other, fault, is_modern and not fault)


def _is_possible(mapped: Endpoint, server: Endpoint) -> bool:
    nowhere = (AddressClass.UNSPECIFIED, AddressClass.MULTICAST)
    same_family = mapped.is_ipv6 == server.is_ipv6
    return same_family and mapped.port != 0 and mapped.address_class not in nowhere
