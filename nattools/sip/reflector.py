"""A SIP server that only shows what arrived: the request, as it came, is the body of the response.

A client that knows what it sent can tell from it whether somebody on the way has rewritten it (`alg`). Such
a SIP ALG reads responses as well. So each octet of the body has its top bit inverted: of text nothing is left
that could be taken for an address, and it grows by nothing. The content type is one that no ALG knows.

What is no request is never answered, nor is ACK. A response goes to where the request came from, whatever its
Via says, has at most `MOST_AMPLIFICATION` times its octets, and there are not many of them (`RateLimit`).
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass
from enum import Enum

from nattools.endpoint import Endpoint, IPAddress
from nattools.errors import DecodeError, EncodeError
from nattools.machine import Entropy
from nattools.sip.message import SipMessage, compose_response
from nattools.sip.uri import Param, Span

REFLECTION_TYPE = "application/vnd.nattools.reflection"
"""The content type of a reflected request."""

MOST_REQUEST_BYTES = 1200
"""Longer requests are not reflected."""

MOST_AMPLIFICATION = 2.8
"""Octets of a response over those of its request, at the most. One of less than about 200 is not answered."""

_INVERTED = bytes(octet ^ 0x80 for octet in range(256))
_TAG_BYTES = 4
_MOST_SOURCES = 4096
_IPV6_SITE_BITS = 64  # what one customer has, at the least (RFC 6177)


class Refusal(Enum):
    """Why something was not reflected."""

    NOT_SIP = "not SIP"
    NOT_A_REQUEST = "responses"
    ACK = "ACK"
    INCOMPLETE = "without what every request has"
    TOO_LARGE = "too large"
    TOO_SMALL = "too small for the response"
    TOO_MANY = "too many"


@dataclass(frozen=True, slots=True)
class RateLimit:
    """How many requests are reflected: for each source so many a second, and so many at once; and for all.

    A source is an IPv4 address, or the /64 of an IPv6 one.
    """

    per_source_per_s: float = 5.0
    per_source_at_once: int = 60
    all_per_s: float = 200.0
    all_at_once: int = 400


def reflect(request: bytes) -> bytes:
    """Write `request` as the body of a response, or read it back from there."""
    return request.translate(_INVERTED)


class Reflector:
    """Answers SIP requests with themselves."""

    def __init__(self, *, entropy: Entropy, limit: RateLimit | None = None) -> None:
        self._entropy = entropy
        self._tokens = _Tokens(limit or RateLimit())
        self.reflected = 0
        """How many requests were answered."""
        self.refused: Counter[Refusal] = Counter()
        """How many datagrams were not, by reason."""

    def answer(self, data: bytes, source: Endpoint, *, now: float) -> bytes | None:
        """The response to `data` that came from `source`, to be sent there; None where there is none."""
        answer = self._answer(data, source, now)
        if isinstance(answer, Refusal):
            self.refused[answer] += 1
            return None
        self.reflected += 1
        return answer

    def _answer(self, data: bytes, source: Endpoint, now: float) -> bytes | Refusal:
        request = _read(data)
        if isinstance(request, Refusal):
            return request
        if not self._tokens.take(source.ip, now=now):
            return Refusal.TOO_MANY
        try:
            answer = _compose(request, source, self._entropy)
        except (DecodeError, EncodeError, ValueError):  # the last of an edit where nothing can be edited
            return Refusal.NOT_SIP
        return answer if len(answer) <= MOST_AMPLIFICATION * len(data) else Refusal.TOO_SMALL

    def summary(self) -> str:
        """What was done so far, in one line."""
        refused = ", ".join(f"{count} {reason.value}" for reason, count in self.refused.most_common())
        return f"{self.reflected} SIP requests reflected; not: {refused or 'none'}"


def _read(data: bytes) -> SipMessage | Refusal:
    """The request, or why it is none to answer."""
    if len(data) > MOST_REQUEST_BYTES:
        return Refusal.TOO_LARGE
    try:
        request = SipMessage.parse(data)
        if not request.is_request:
            return Refusal.NOT_A_REQUEST
        if request.method == "ACK":
            return Refusal.ACK
        return request if _is_complete(request) else Refusal.INCOMPLETE
    except DecodeError:
        return Refusal.NOT_SIP


def _compose(request: SipMessage, source: Endpoint, entropy: Entropy) -> bytes:
    """The response. An INVITE is refused: a success would be a call, with ports to open and a BYE to send."""
    _note_source(request, source)
    code, reason = (488, "Not Acceptable Here") if request.method == "INVITE" else (200, "OK")
    return compose_response(
        SipMessage.parse(request.encode()),
        code,
        reason,
        [("Content-Type", REFLECTION_TYPE)],
        reflect(request.data),
        to_tag=entropy(_TAG_BYTES).hex(),
    )


def _is_complete(request: SipMessage) -> bool:
    """Whether it has the headers that every request has (RFC 3261 §8.1.1), each of them readable."""
    cseq = request.cseq
    return (
        cseq is not None
        and cseq[1] == request.method
        and bool(request.call_id)
        and request.from_tag is not None
        and request.header("to") is not None
        and request.top_via is not None
    )


def _note_source(request: SipMessage, source: Endpoint) -> None:
    """Write `received` into the top Via, and `rport` where it asks (RFC 3261 §18.2.1, RFC 3581 §4)."""
    via = request.top_via
    if via is None:
        return
    received = b"=%b" % str(source.ip).partition("%")[0].encode()
    rport = via.param("rport")
    if rport is not None:
        request.edit(_after_name(rport), b"=%d" % source.port)
    param = via.param("received")
    if param is not None:
        request.edit(_after_name(param), received)
    else:
        request.edit(Span(via.span.end, via.span.end), b";received" + received)


def _after_name(param: Param) -> Span:
    """Where the value of a param stands with its `=`, or where they would."""
    end = param.name_span.end if param.value_span is None else param.value_span.end
    return Span(param.name_span.end, end)


class _Tokens:
    """Token buckets: one for each source that asked of late, and one for all.

    Of more sources than it can hold the one that asked longest ago is forgotten; what all have together is
    bounded all the same.
    """

    def __init__(self, limit: RateLimit) -> None:
        self._limit = limit
        self._all = (float(limit.all_at_once), 0.0)
        self._sources: OrderedDict[int, tuple[float, float]] = OrderedDict()

    def take(self, ip: IPAddress, *, now: float) -> bool:
        limit, source = self._limit, _site_of(ip)
        held, at = self._sources.get(source, (float(limit.per_source_at_once), now))
        own = min(held + (now - at) * limit.per_source_per_s, limit.per_source_at_once)
        common = min(self._all[0] + (now - self._all[1]) * limit.all_per_s, limit.all_at_once)
        is_admitted = own >= 1 and common >= 1
        self._all = (common - is_admitted, now)
        self._sources[source] = (own - is_admitted, now)
        self._sources.move_to_end(source)
        if len(self._sources) > _MOST_SOURCES:
            self._sources.popitem(last=False)
        return is_admitted


def _site_of(ip: IPAddress) -> int:
    """The number by which a source is known; those of the two families differ."""
    return int(ip) if ip.version == 4 else -1 - (int(ip) >> 128 - _IPV6_SITE_BITS)
