"""A client transaction: one request until its final response (RFC 3261 §17.1, RFC 6026)."""

from __future__ import annotations

from functools import cached_property

from nattools.endpoint import Endpoint
from nattools.errors import DecodeError
from nattools.machine import Transmit
from nattools.sip.message import SipMessage, compose_request

T1_S = 0.5
"""A guess of the round trip: the first interval of retransmission (RFC 3261 §17.1.1.1)."""
T2_S = 4.0
TIMEOUT_S = 64 * T1_S
"""Without a final response, and for an INVITE without any, the transaction times out (timers B and F)."""
RINGING_S = 180.0
"""So long an INVITE that got a provisional response waits for the final one (RFC 3261 §16.6, timer C)."""

_REPEATED_IN_ACK = ("call-id", "from", "route", "authorization", "proxy-authorization")


class ClientTransaction:
    """One request: when it is sent again, which responses are its own, and the ACK of a refusal.

    Its driver gives it the responses that bear its branch. The first final one ends it; of an INVITE every
    further 2xx comes out as well, since each wants an ACK, which is the driver's to send (RFC 3261
    §13.2.2.4).
    """

    def __init__(
        self,
        request: bytes,
        destination: Endpoint,
        *,
        now: float,
        is_reliable: bool = False,
        known: tuple[bytes, str] | None = None,
    ) -> None:
        """Make the request ready to be sent at once, and over UDP again; a stream `is_reliable`.

        `known` are its branch and its method, where the driver need not have them read. Raises `DecodeError`
        when it has no branch.
        """
        self._data = request
        branch, self.method = known or (self.request.branch, self.request.method)
        if branch is None:
            raise DecodeError("a request without a branch has no transaction")
        self.branch = branch
        self.destination = destination
        self._is_invite = self.method == "INVITE"
        self._interval_s = T1_S
        self._due: float | None = now
        self._ends_at = now + TIMEOUT_S
        self._is_final = False
        self._ack: bytes | None = None
        self._outbox: list[Transmit] = []
        self._responses: list[SipMessage] = []
        self.has_timed_out = False
        """Whether it ended without a final response."""
        self.handle_timeout(now=now)
        if is_reliable:
            self._due = None

    @cached_property
    def request(self) -> SipMessage:
        """The request."""
        return SipMessage.parse(self._data)

    @property
    def is_over(self) -> bool:
        """Whether the final response came, the time is out, or nobody waits any more."""
        return self._is_final or self.has_timed_out

    def transmits(self) -> list[Transmit]:
        """Take what must be sent now."""
        taken, self._outbox = self._outbox, []
        return taken

    def timeout_at(self) -> float:
        """When the next transmission is due, or the end; after that nothing will come of it."""
        return self._ends_at if self._due is None else min(self._due, self._ends_at)

    def next_response(self) -> SipMessage | None:
        """Take the next response: a provisional one, the final one, or another 2xx."""
        return self._responses.pop(0) if self._responses else None

    def handle_timeout(self, *, now: float) -> None:
        """Send again, or give up, if that is due."""
        if now >= self._ends_at:
            self.has_timed_out = not self._is_final
            self._due = None
        elif self._due is not None and now >= self._due:
            self._outbox.append(Transmit(self._data, self.destination))
            self._due = now + self._interval_s
            self._interval_s *= 2
            if not self._is_invite:
                self._interval_s = min(self._interval_s, T2_S)

    def abandon(self, *, now: float) -> None:
        """Send it no more; for as long as one may come, a response still counts."""
        self._due = None
        self._ends_at = now + TIMEOUT_S

    def receive(self, response: SipMessage, *, now: float) -> None:
        """Take a response with this transaction's branch; one to another method is passed over."""
        status = response.status_code or 0
        if response.method != self.method or status < 100 or self.has_timed_out:
            return
        if self._is_final:
            if self._is_invite and 200 <= status < 300 and self._ack is None:
                self._responses.append(response)
            elif self._ack is not None and status >= 300:
                self._outbox.append(Transmit(self._ack, self.destination))
        elif status < 200:
            self._responses.append(response)
            if self._is_invite:
                self._due = None
                self._ends_at = now + RINGING_S
            else:
                self._interval_s = T2_S
        else:
            self._responses.append(response)
            self._is_final = True
            self._due = None
            self._ends_at = now + TIMEOUT_S
            if self._is_invite and status >= 300:
                self._ack = _compose_refusal_ack(self.request, response)
                self._outbox.append(Transmit(self._ack, self.destination))


def _compose_refusal_ack(request: SipMessage, response: SipMessage) -> bytes:
    """The ACK of a response from 300 to 699, part of the INVITE's own transaction (RFC 3261 §17.1.1.3)."""
    via = request.top_via
    number = request.cseq
    assert via is not None
    assert number is not None
    assert request.request_uri is not None
    headers: list[tuple[str, bytes]] = [("Via", request.data[slice(*via.span)]), ("Max-Forwards", b"70")]
    headers += [
        (request.data[slice(*header.name_span)].decode(), request.value(header))
        for header in request.headers
        if header.name in _REPEATED_IN_ACK
    ]
    headers += [("To", response.value(response.header("to"))), ("CSeq", b"%d ACK" % number[0])]
    return compose_request("ACK", request.data[slice(*request.request_uri)].decode(), headers)
