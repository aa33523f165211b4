"""The relay of a media stream: what signalling tells it, what it tells, and what every engine does."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from nattools.endpoint import AddressClass, Endpoint, IPAddress
from nattools.errors import DecodeError

_UNREACHABLE_UNLESS_PROVEN = frozenset(
    {AddressClass.PRIVATE, AddressClass.SHARED, AddressClass.LOOPBACK, AddressClass.LINK_LOCAL}
)
_NOWHERE = frozenset({AddressClass.UNSPECIFIED, AddressClass.MULTICAST})


class Side(Enum):
    """The two ends of a stream."""

    A = "a"
    B = "b"

    __hash__ = object.__hash__  # that of Enum is Python, and sides are keys on the way of each packet

    @property
    def other(self) -> Side:
        """The end across."""
        return Side.B if self is Side.A else Side.A


@dataclass(frozen=True, slots=True)
class PortPair:
    """Where the relay receives from one side, and what it sends to that side from (RFC 4961)."""

    rtp: Endpoint
    rtcp: Endpoint


@dataclass(frozen=True, slots=True)
class Expectation:
    """What signalling says of one side: its description, and where its messages come from.

    `rtp` and `rtcp` are where its SDP wants packets: None on hold, or where nothing may be sent.
    `payload_types` are those that it may send, so those of the description that it was given, telephone-event
    and comfort noise included; empty where the stream is no RTP (T.38). `clock_hz` is the RTP clock of the
    first of them, for the jitter. `hosts` are the addresses that its signalling comes from: behind a NAT the
    media most often does, too. `is_proven` says that the SDP's address was shown to be reachable though it is
    private, as where signalling itself comes from it.
    Raises `DecodeError` for a payload type beyond 127 and for a clock that does not run.
    """

    rtp: Endpoint | None
    rtcp: Endpoint | None = None
    payload_types: frozenset[int] = frozenset()
    rtcp_mux: bool = False
    clock_hz: int = 8000
    hosts: frozenset[IPAddress] = frozenset()
    is_proven: bool = False

    def __post_init__(self) -> None:
        beyond = [it for it in self.payload_types if not 0 <= it <= 127]
        if beyond:
            raise DecodeError(f"payload type {beyond[0]} is not between 0 and 127 (RFC 3550 §5.1)")
        if self.clock_hz <= 0:
            raise DecodeError(f"an RTP clock of {self.clock_hz} Hz does not run")

    def may_be_sent_to(self, announced: Endpoint | None) -> bool:
        """Whether packets may go to `announced`, one of its endpoints, before anything came from there."""
        if announced is None or announced.port == 0 or announced.address_class in _NOWHERE:
            return False
        return self.is_proven or announced.address_class not in _UNREACHABLE_UNLESS_PROVEN


@dataclass(frozen=True, slots=True)
class SideStatistics:
    """What came from one side of a stream.

    `packets` and `octets` (of UDP payload) were taken at its RTP port; `foreign` ones came from elsewhere, to
    either port, and were dropped; `held` ones were for this side and dropped, since nowhere to send them was
    proven, the other side had not described itself yet, or they had no hop left, as what circles.
    `lost` and `jitter_s` are RFC 3550's (§6.4.1), None where the engine does not see them.
    `last_heard` is monotonic seconds.
    """

    packets: int = 0
    octets: int = 0
    foreign: int = 0
    lost: int | None = 0
    jitter_s: float | None = 0.0
    latched: Endpoint | None = None
    last_heard: float | None = None
    held: int = 0


class MediaStream(Protocol):
    """One stream of a call (one m= line) between two sides."""

    def ports(self, side: Side) -> PortPair:
        """Where the relay receives from `side`: what the description that `side` is given must say."""

    def expect(self, side: Side, expectation: Expectation) -> None:
        """Signalling has told of `side`. For a while after it the side may come from somewhere else."""

    def statistics(self, side: Side) -> SideStatistics:
        """What has come from `side` until now."""

    async def close(self) -> None:
        """Stop relaying and give the ports back; a second time it does nothing."""


class MediaEngine(Protocol):
    """Carries streams."""

    async def open_stream(self, *, a: IPAddress | None = None, b: IPAddress | None = None) -> MediaStream:
        """A new stream with ports of its own at the addresses `a` and `b`; the engine's own where None.

        Raises `LocalAddressError` where no ports are to be had.
        """

    async def close(self) -> None:
        """Close every stream that is open."""
