"""The RTP that comes from one side: its stream, and how well it arrives (RFC 3550 §6.4.1)."""

from __future__ import annotations

import struct
from typing import NamedTuple

Octets = bytes | bytearray | memoryview
NEAR_STEPS = 536
"""A stream may go on elsewhere with a sequence number so much later at most (rtpproxy's figure)."""

_MOST_STEPS_IN_ORDER = 3
_MOST_DROPOUT = 3000
_HALF_OF_ALL = 0x8000
_JITTER_GAIN = 16
_NO_TRANSIT = float("inf")  # its difference from anything is no jitter
_RTP_VERSION = 2
_HEADER = struct.Struct(">BBHII")
_unpack = _HEADER.unpack_from
_FIRST_RTCP, _LAST_RTCP = 192, 223


class RtpHeader(NamedTuple):
    """What RTP's fixed header says (RFC 3550 §5.1)."""

    payload_type: int
    sequence: int
    timestamp: int
    ssrc: int


def follows(header: RtpHeader, previous: RtpHeader) -> bool:
    """Whether it is of the same stream and next, or so little after it that some were lost."""
    step = (header.sequence - previous.sequence) & 0xFFFF
    return header.ssrc == previous.ssrc and 0 < step <= _MOST_STEPS_IN_ORDER


class Reception:
    """The packets of one source. It counts whatever it is given, and follows the stream of one SSRC.

    Another SSRC is followed once two of its packets came in a row: a single forged one changes nothing.
    """

    __slots__ = (
        "_clock_hz",
        "_expected",
        "_jitter",
        "_lost_before",
        "_newcomer",
        "_newcomer_after",
        "_received",
        "_restart_at",
        "_sequence",
        "_ssrc",
        "_transit",
        "_types",
        "last_heard",
        "octets",
        "packets",
    )

    def __init__(self) -> None:
        self.packets = 0
        self.octets = 0
        self.last_heard: float | None = None
        self._types: frozenset[int] = frozenset()
        self._clock_hz = 8000
        self._ssrc = -1
        self._sequence = 0
        self._expected = self._received = self._lost_before = 0
        self._restart_at = -1
        self._transit = _NO_TRANSIT
        self._jitter = 0.0
        self._newcomer: RtpHeader | None = None
        self._newcomer_after = -1

    @property
    def lost(self) -> int:
        """How many packets are missing, of all streams that were followed (§A.3)."""
        return self._lost_before + max(0, self._expected - self._received)

    @property
    def jitter_s(self) -> float:
        """The interarrival jitter of the stream (§A.8), in seconds."""
        return self._jitter / self._clock_hz

    def agree(self, payload_types: frozenset[int], clock_hz: int) -> None:
        """From now on RTP is what has one of these types; its timestamps count `clock_hz`."""
        self._types = payload_types
        if clock_hz != self._clock_hz:
            self._clock_hz, self._jitter, self._transit = clock_hz, 0.0, _NO_TRANSIT

    def agreed_header(self, data: Octets) -> RtpHeader | None:
        """The header of `data` where it is RTP of an agreed type, else None."""
        if len(data) < _HEADER.size:
            return None
        first, second, sequence, timestamp, ssrc = _unpack(data)
        if (
            first >> 6 != _RTP_VERSION
            or _FIRST_RTCP <= second <= _LAST_RTCP
            or second & 0x7F not in self._types
        ):
            return None
        return RtpHeader(second & 0x7F, sequence, timestamp, ssrc)

    def is_of(self, ssrc: bytes) -> bool:
        """Whether the stream that is followed has this SSRC."""
        return int.from_bytes(ssrc, "big") == self._ssrc

    def continues_with(self, header: RtpHeader) -> bool:
        """Whether this packet goes on with the stream: its SSRC, its number soon after the last."""
        return header.ssrc == self._ssrc and 0 < (header.sequence - self._sequence) & 0xFFFF <= NEAR_STEPS

    def start(self, header: RtpHeader) -> None:
        """Follow the stream of `header`, whose packet `take` gets next; the one that is followed goes on."""
        if header.ssrc == self._ssrc:
            return
        self._lost_before = self.lost
        self._expected = self._received = 0
        self._ssrc, self._sequence = header.ssrc, (header.sequence - 1) & 0xFFFF
        self._transit, self._restart_at, self._newcomer = _NO_TRANSIT, -1, None

    def take(self, data: Octets, length: int, *, now: float) -> None:
        """Count a datagram: the first `length` bytes of `data`."""
        self.packets += 1
        self.octets += length
        self.last_heard = now
        if length < 12:
            return
        _first, _second, sequence, timestamp, ssrc = _unpack(data)
        if ssrc != self._ssrc:
            self._consider(data)
            return
        step = (sequence - self._sequence) & 0xFFFF
        if 0 < step < _MOST_DROPOUT:
            self._sequence = sequence
            self._expected += step
        elif step and step <= 0x10000 - _MOST_DROPOUT and not self._restarts_at(sequence):
            return
        self._received += 1
        clock_hz = self._clock_hz
        transit = now * clock_hz - timestamp
        change = transit - self._transit
        self._transit = transit
        if -clock_hz < change < clock_hz:  # else the sender's clock started anew
            self._jitter += ((change if change > 0 else -change) - self._jitter) / _JITTER_GAIN

    def skip(self, packets: int, octets: int, ssrc: int | None, sequence: int | None, *, now: float) -> None:
        """Count what came without being seen here; one packet of it had that SSRC and sequence number.

        Without these two the packets are counted, and how many are lost shows later.
        """
        self.packets += packets
        self.octets += octets
        if packets:
            self.last_heard = now
        self._received += packets
        self._transit = _NO_TRANSIT
        if ssrc is None or sequence is None:
            return
        if ssrc != self._ssrc:
            self._lost_before = self.lost
            self._expected = self._received = 0
            self._ssrc, self._restart_at, self._newcomer = ssrc, -1, None
        else:
            step = (sequence - self._sequence) & 0xFFFF
            if step >= _HALF_OF_ALL:
                return
            self._expected += step
        self._sequence = sequence

    def _restarts_at(self, sequence: int) -> bool:
        """Whether this is the second in a row of numbers far away: then the sender started anew (§A.1)."""
        restarts = sequence == self._restart_at
        if restarts:
            self._lost_before = self.lost
            self._sequence, self._expected, self._received = sequence, 1, 0
        self._restart_at = (sequence + 1) & 0xFFFF
        return restarts

    def _consider(self, data: Octets) -> None:
        header = self.agreed_header(data)
        if header is None:
            return
        previous, self._newcomer = self._newcomer, header
        is_alone, self._newcomer_after = self._newcomer_after == self._received, self._received
        if self._ssrc < 0 or (previous is not None and is_alone and follows(header, previous)):
            self.start(header)
            self._sequence = header.sequence
            self._expected = self._received = 1
