"""Whose packets one side of a stream is made of: learnt once, then strict.

Nobody who is not on the way of the packets may send into a call or have its sound sent to himself, and a
phone behind any NAT must be heard though its description says a wrong address. So a source is taken by what
speaks for it, and then nobody else is heard, until the very RTP stream goes on from another place, or
signalling has said that things have changed.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from nattools.endpoint import Endpoint
from nattools.session.reception import Reception, RtpHeader, follows
from nattools.session.relay import Expectation, SideStatistics

WINDOW_S = 10.0
"""So long after signalling a side may be taken from another place (rtpproxy's figure)."""
PATIENCE_S = 1.0
"""So long a host that nobody has named waits for one that is named."""
SILENCE_S = 0.3
"""Fifteen packets of a call: a source that says nothing for so long may have been replaced."""

_MOST_CANDIDATES = 16  # with the same evidence, so that many strangers do not push a named host out
_RIVALRY_S = 0.2
_RTCP_TYPES = range(192, 224)
_LEAST_RTCP_BYTES = 8


class Evidence(IntEnum):
    """What speaks for a source; the stronger, the fewer packets it takes."""

    STRANGER = 1  # RTP of an agreed type is all
    HOST = 2  # it is the description's host, or signalling comes from there; another port
    ANNOUNCED = 3  # host and port are those of the description


_PACKETS_IN_ORDER = {Evidence.STRANGER: 5, Evidence.HOST: 2, Evidence.ANNOUNCED: 1}


@dataclass(slots=True)
class _Candidate:
    """A source that is not yet believed."""

    header: RtpHeader
    evidence: Evidence
    heard_at: float
    in_order: int = 1
    dropped: int = 1


class Latch:
    """One side of a stream: which packets are its own, and where those for it go.

    `source` and `rtcp_source` are where its packets come from, None until that is known. A datagram from
    `source` is given to `heard`, and any other to `receive`.
    """

    __slots__ = (
        "_candidates",
        "_expectation",
        "_foreign",
        "_patient_until",
        "_reception",
        "_told_at",
        "_unseen",
        "_unseen_rtcp",
        "_whereabouts",
        "carried_until",
        "heard",
        "held",
        "rtcp_source",
        "source",
    )

    def __init__(self) -> None:
        self.source: Endpoint | None = None
        self.rtcp_source: Endpoint | None = None
        self.held = 0
        """Datagrams for this side that were dropped for want of a destination; their relay counts them."""
        self.carried_until = float("-inf")
        """Until when packets of `source` come without being seen here; as long as that is so, infinity."""
        self._expectation: Expectation | None = None
        self._told_at = float("-inf")
        self._patient_until = float("inf")
        self._whereabouts: object = None
        self._unseen: Endpoint | None = None
        self._unseen_rtcp: Endpoint | None = None
        self._candidates: dict[Endpoint, _Candidate] = {}
        self._foreign = 0
        self._reception = Reception()
        self.heard = self._reception.take
        """`heard(data, length, *, now)` counts one datagram of `source`; it is cheap, and changes nothing."""

    @property
    def expectation(self) -> Expectation | None:
        """What signalling said last, None before it has said anything."""
        return self._expectation

    @property
    def is_unknown(self) -> bool:
        """Whether nothing is known of this side: then nobody can be told from it, and all must wait."""
        return self._expectation is None and self.source is None

    @property
    def destination(self) -> Endpoint | None:
        """Where RTP for this side goes: what has shown itself, else what may be sent to unseen.

        Where signalling now names a place that may be sent to, a source elsewhere gets nothing more, as when
        another fork has answered.
        """
        wanted = self._expectation
        if wanted is None or wanted.rtp is None:
            return None
        if self.source is not None and not self._is_left(wanted):
            return self.source
        return self._unseen

    @property
    def rtcp_destination(self) -> Endpoint | None:
        """Where RTCP for this side goes; the destination of its RTP where the two share a port (RFC 5761)."""
        wanted = self._expectation
        if wanted is None or wanted.rtp is None:
            return None
        if wanted.rtcp_mux:
            return self.destination
        if self._is_left(wanted):
            return self._unseen_rtcp
        if self.rtcp_source is not None:
            return self.rtcp_source
        if self.source is None:
            return self._unseen_rtcp
        # a NAT's port for RTCP may be any
        return self._announced_rtcp(wanted) if self.source == wanted.rtp else None

    def expect(self, expectation: Expectation, *, now: float) -> None:
        """Take what signalling says. For `WINDOW_S` another source may prove that it is this side's.

        A source that has fallen silent is forgotten where it was taken for another description.
        """
        self._expectation = expectation
        self._told_at = now
        self._candidates.clear()
        self._reception.agree(expectation.payload_types, expectation.clock_hz)
        rtcp = self._announced_rtcp(expectation)
        self._unseen = expectation.rtp if expectation.may_be_sent_to(expectation.rtp) else None
        self._unseen_rtcp = rtcp if expectation.may_be_sent_to(rtcp) else None
        is_named = bool(expectation.hosts) or self._unseen is not None
        self._patient_until = now + PATIENCE_S if is_named else now
        if self.source is not None and self._whereabouts is None:  # found on hold, or before a restart
            self._whereabouts = _whereabouts(expectation)
        if self.source is not None and self._has_moved and self._is_silent(now):
            self.source = self.rtcp_source = None

    def receive(self, data: bytes, source: Endpoint, *, now: float) -> bool:
        """Take one datagram of the RTP port; whether it is this side's, and may be relayed."""
        wanted = self._expectation
        if source == self.source:
            self.heard(data, len(data), now=now)
            return True
        if wanted is None:
            return self._refuse()
        header = self._reception.agreed_header(data)
        evidence = self._evidence(wanted, source)
        if header is not None and self._reception.continues_with(header):
            is_proven = True
        elif not self._may_be(evidence, now=now):
            return self._refuse()
        elif header is not None:
            is_proven = self._proves_itself(source, header, evidence, now=now)
        elif evidence is not Evidence.ANNOUNCED or self.source is not None:
            return self._refuse()
        else:  # the announced source's STUN or DTLS, or what is no RTP at all: T.38
            is_proven = not wanted.payload_types
            if not is_proven:
                self.heard(data, len(data), now=now)
                return True
        if is_proven:
            self._take(source, header)
            self.heard(data, len(data), now=now)
        return is_proven

    def receive_rtcp(self, data: bytes, source: Endpoint, *, now: float) -> bool:
        """Take one datagram of the RTCP port; whether it may be relayed.

        RTCP follows RTP to its host, and is then strict about the port, until it comes with the SSRC of the
        stream, or signalling has told something.
        """
        wanted = self._expectation
        if source == self.rtcp_source:
            return True
        if wanted is None:
            return self._refuse()
        is_announced = source == self._announced_rtcp(wanted)
        if not (is_announced if self.source is None else source.ip == self.source.ip):
            return self._refuse()
        is_rtcp = len(data) >= _LEAST_RTCP_BYTES and data[0] >> 6 == 2 and data[1] in _RTCP_TYPES
        if not is_rtcp:
            return (is_announced and self.rtcp_source is None) or self._refuse()
        in_window = now - self._told_at < WINDOW_S
        if self.rtcp_source is not None and not (in_window or self._reception.is_of(data[4:8])):
            return self._refuse()
        self.rtcp_source = source
        return True

    def relayed(
        self, packets: int, octets: int, *, ssrc: int | None, sequence: int | None, now: float
    ) -> None:
        """Count packets of `source` that were relayed without being seen here, one of them with that SSRC."""
        self._reception.skip(packets, octets, ssrc, sequence, now=now)

    def resume(self, source: Endpoint | None, rtcp_source: Endpoint | None) -> None:
        """Believe that this side speaks from there, as was found out before; signalling is still to come."""
        self.source, self.rtcp_source = source, rtcp_source

    def statistics(self) -> SideStatistics:
        """What was received until now."""
        seen = self._reception
        return SideStatistics(
            packets=seen.packets,
            octets=seen.octets,
            foreign=self._foreign,
            lost=seen.lost,
            jitter_s=seen.jitter_s,
            latched=self.source,
            last_heard=seen.last_heard,
            held=self.held,
        )

    @property
    def _has_moved(self) -> bool:
        places = _whereabouts(self._expectation), self._whereabouts
        return None not in places and places[0] != places[1]

    def _is_left(self, wanted: Expectation) -> bool:
        """Whether signalling names another place than that of the source, and one that may be sent to."""
        if self.source is None or not self._has_moved or self._unseen is None:
            return False
        return self._evidence(wanted, self.source) is Evidence.STRANGER

    def _is_silent(self, now: float) -> bool:
        last = self._reception.last_heard
        return (last is None or now - last >= SILENCE_S) and now - self.carried_until >= SILENCE_S

    @staticmethod
    def _announced_rtcp(wanted: Expectation) -> Endpoint | None:
        if wanted.rtcp is not None or wanted.rtp is None:
            return wanted.rtcp
        return wanted.rtp.with_port(wanted.rtp.port + 1) if 0 < wanted.rtp.port < 0xFFFF else None

    @staticmethod
    def _evidence(wanted: Expectation, source: Endpoint) -> Evidence:
        if source == wanted.rtp:
            return Evidence.ANNOUNCED
        is_host = source.ip in wanted.hosts or (wanted.rtp is not None and source.ip == wanted.rtp.ip)
        return Evidence.HOST if is_host else Evidence.STRANGER

    def _may_be(self, evidence: Evidence, *, now: float) -> bool:
        """Whether a source with that evidence may prove itself now."""
        in_window = now - self._told_at < WINDOW_S
        if evidence is Evidence.STRANGER and not (in_window and now >= self._patient_until):
            return False
        if self.source is None:
            return True
        if not in_window or self._expectation is None:
            return False
        if evidence > self._evidence(self._expectation, self.source):
            return True
        return self._is_silent(now) and (evidence is not Evidence.STRANGER or self._has_moved)

    def _proves_itself(self, source: Endpoint, header: RtpHeader, evidence: Evidence, *, now: float) -> bool:
        """Whether with this packet there are enough in a row; until then it is dropped."""
        candidate = self._candidates.pop(source, None)
        if candidate is None:
            candidate = _Candidate(header, evidence, now)
        else:
            candidate.in_order = candidate.in_order + 1 if follows(header, candidate.header) else 1
            candidate.header, candidate.heard_at = header, now
            candidate.dropped += 1
        enough = candidate.in_order >= _PACKETS_IN_ORDER[evidence]
        if enough and (evidence is not Evidence.STRANGER or not self._has_rival(now)):
            self._foreign -= candidate.dropped - 1
            return True
        alike = [at for at, it in self._candidates.items() if it.evidence is evidence]
        if len(alike) >= _MOST_CANDIDATES:
            del self._candidates[alike[0]]  # which has been silent for longest
        self._candidates[source] = candidate
        return self._refuse()

    def _has_rival(self, now: float) -> bool:
        """Whether another source sends RTP in order, too: between strangers nobody guesses."""
        return any(it.in_order > 1 and now - it.heard_at < _RIVALRY_S for it in self._candidates.values())

    def _take(self, source: Endpoint, header: RtpHeader | None) -> None:
        before = self.source or source
        if self.rtcp_source is not None and not self.rtcp_source.ip == before.ip == source.ip:
            self.rtcp_source = None
        self.source = source
        self._whereabouts = _whereabouts(self._expectation)
        self._candidates.clear()
        if header is not None:
            self._reception.start(header)

    def _refuse(self) -> bool:
        self._foreign += not self.is_unknown
        return False


def _whereabouts(wanted: Expectation | None) -> object:
    """Where signalling says that the side is; None where it does not say."""
    return None if wanted is None or wanted.rtp is None else (wanted.rtp, wanted.hosts)
