"""One request's life: when it is sent again, and which answer counts (RFC 8489 §6.2, §6.3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nattools.endpoint import Endpoint
from nattools.errors import AuthenticationError, DecodeError, NatToolsError, NoResponseError, TransportError
from nattools.machine import Transmit
from nattools.stun.attributes import (
    ERROR_CODE,
    MESSAGE_INTEGRITY,
    MESSAGE_INTEGRITY_SHA256,
    REGISTRY,
    Error,
    ErrorCode,
    attribute_name,
)
from nattools.stun.integrity import fingerprint_holds
from nattools.stun.message import Message, MessageClass

INITIAL_RTO_S = 0.5
MINIMUM_RTO_S = 0.1
"""RFC 8489 sets no floor under a measured RTO. Without one a neighbour with an RTT of 1 ms would be given
up after 79 ms, less than a Wi-Fi card sleeps."""
RTO_LIFETIME_S = 600.0
"""After this long without a transaction a measured RTO is forgotten (RFC 8489 §6.2.1)."""

Objection = Callable[[Message], str | None]
"""Why the authentication mechanism wants a response ignored, or None where the response counts."""


@dataclass(frozen=True, slots=True)
class Timing:
    """The numbers of RFC 8489 §6.2: with these defaults a transaction takes 39.5 s to time out.

    `rto_s` is the first RTO, before any is measured; `rc` how often a request is sent; `rm` how many RTOs to
    wait after the last time; `ti_s` how long to wait on a reliable transport.
    Raises `DecodeError` when one of them is not above zero.
    """

    rto_s: float = INITIAL_RTO_S
    rc: int = 7
    rm: int = 16
    ti_s: float = 39.5

    def __post_init__(self) -> None:
        if min(self.rto_s, self.rc, self.rm, self.ti_s) <= 0:
            raise DecodeError(f"RTO, Rc, Rm and Ti must be above zero: {self}")


class RttEstimator:
    """The RTO towards one address, from the round trips seen (RFC 6298, RFC 8489 §6.2.1)."""

    def __init__(self, initial_rto_s: float = INITIAL_RTO_S) -> None:
        self._initial_rto_s = initial_rto_s
        self._smoothed_s: float | None = None
        self._variation_s = 0.0
        self._observed_at = 0.0

    def observe(self, rtt_s: float, *, now: float) -> None:
        """Take a round trip of a request that was sent only once; of others nothing can be said (Karn)."""
        if self._smoothed_s is None or self._is_stale(now):
            self._smoothed_s, self._variation_s = rtt_s, rtt_s / 2
        else:
            self._variation_s += (abs(self._smoothed_s - rtt_s) - self._variation_s) / 4
            self._smoothed_s += (rtt_s - self._smoothed_s) / 8
        self._observed_at = now

    def rto_s(self, *, now: float) -> float:
        """The RTO with which to start a transaction, to the millisecond."""
        if self._smoothed_s is None or self._is_stale(now):
            return self._initial_rto_s
        floor = min(MINIMUM_RTO_S, self._initial_rto_s)
        return round(max(floor, self._smoothed_s + max(0.001, 4 * self._variation_s)), 3)

    def _is_stale(self, now: float) -> bool:
        return now - self._observed_at > RTO_LIFETIME_S


@dataclass(frozen=True, slots=True)
class Answered:
    """The response came. `rtt_s` counts from the first of the `transmissions`; exact when there was one."""

    response: Message
    source: Endpoint
    rtt_s: float
    transmissions: int


@dataclass(frozen=True, slots=True)
class Failed:
    """The transaction is over without a response to use. The class of `error` says how it went:

    `NoResponseError` timed out, another `TransportError` an ICMP error or a broken connection,
    `AuthenticationError` no response passed its integrity check, `DecodeError` a response that says what
    nobody here understands.
    """

    error: NatToolsError
    transmissions: int


class Transaction:
    """One request, from its first transmission to its response or its failure; a `machine.Machine`.

    A response counts when its method and whole transaction id are the request's, it comes from
    `expected_source` (where none is given, the `destination`), its FINGERPRINT is right if it has one, and
    `objection` has none. What does not count is passed over, and retransmission goes on.
    """

    def __init__(
        self,
        request: Message,
        destination: Endpoint,
        *,
        now: float,
        timing: Timing | None = None,
        rto_s: float | None = None,
        reliable: bool = False,
        expected_source: Endpoint | None = None,
        objection: Objection | None = None,
        socket: str = "",
    ) -> None:
        """Make the request ready to be sent at once.

        `rto_s` replaces the first RTO of `timing` by a measured one; `reliable` says that the transport
        retransmits by itself (TCP, TLS).
        """
        timing = timing or Timing()
        self._request = request
        self._data = request.encode()
        self._destination = destination
        self._expected_source = expected_source or destination
        self._objection = objection
        self._socket = socket
        self._reliable = reliable
        self._started_at = now
        self._interval_s = rto_s or timing.rto_s
        self._last_wait_s = timing.ti_s if reliable else timing.rm * self._interval_s
        self._most_transmissions = 1 if reliable else timing.rc
        self._transmissions = 0
        self._due: float | None = now
        self._outbox: list[Transmit] = []
        self._event: Answered | Failed | None = None
        self._refused: str | None = None
        self._passed_over: str | None = None
        self._unreachable: str | None = None
        self.handle_timeout(now=now)

    def transmits(self) -> list[Transmit]:
        """Take what must be sent now."""
        taken, self._outbox = self._outbox, []
        return taken

    def timeout_at(self) -> float | None:
        """When the next transmission, or the end, is due; None when the transaction is over."""
        return self._due

    def next_event(self) -> Answered | Failed | None:
        """Take how it ended, once."""
        taken, self._event = self._event, None
        return taken

    def handle_timeout(self, *, now: float) -> None:
        """Send again, or give up, if that is due."""
        if self._due is None or now < self._due:
            return
        if self._transmissions == self._most_transmissions:
            self._fail(self._timeout_error(now - self._started_at))
            return
        self._outbox.append(Transmit(self._data, self._destination, self._socket))
        self._transmissions += 1
        last = self._transmissions == self._most_transmissions
        self._due = now + (self._last_wait_s if last else self._interval_s)
        self._interval_s *= 2

    def handle_unreachable(self, reason: str, *, hard: bool) -> None:
        """Take an ICMP error or the loss of the connection.

        A hard one ends the transaction; after a soft one (RFC 1122 §3.2.2.1: network or host unreachable)
        the way may come back, so it is only told in the error of a timeout.
        """
        self._unreachable = reason
        if hard and self._due is not None:
            self._fail(TransportError(f"the {self._request_to()} failed: {reason}"))

    def receive(self, data: bytes, source: Endpoint, *, now: float, socket: str = "") -> None:
        """Take a datagram, or a message off the stream; anything but the response is passed over."""
        if self._due is None or data[4:20] != self._request.xor_key or socket != self._socket:
            return
        if source != self._expected_source:
            self._passed_over = f"it came from {source}, not from {self._expected_source}"
            return
        try:
            response = Message.parse(data)
        except DecodeError as error:
            self._passed_over = f"it is malformed: {error}"
            return
        is_response = response.message_class in (MessageClass.SUCCESS, MessageClass.ERROR)
        if not is_response or response.method != self._request.method:
            self._passed_over = f"it is a {response.method.name} {response.message_class.name}"
        elif fingerprint_holds(response) is False:
            self._passed_over = "its FINGERPRINT is wrong"
        elif self._objection is not None and (refused := self._objection(response)):
            self._refuse(response, refused)
        elif problem := _problem(response):
            self._fail(DecodeError(f"the answer to the {self._request_to()} cannot be used: {problem}"))
        else:
            self._due = None
            self._event = Answered(response, source, now - self._started_at, self._transmissions)

    def _refuse(self, response: Message, reason: str) -> None:
        """Ignore a response without integrity; on a stream no other will come (RFC 8489 §9.1.4, §9.2.5)."""
        error = error_of(response)
        self._refused = f"{reason} (it says {error})" if error else reason
        if self._reliable:
            self._fail(self._integrity_error(self._refused))

    def _integrity_error(self, reason: str) -> AuthenticationError:
        return AuthenticationError(
            f"the answer to the {self._request_to()} was ignored, because {reason}: "
            "either user name and password are not what the server has, or somebody tampers with the answers",
            code=ErrorCode.INTEGRITY_CHECK_FAILURE,
            reason=reason,
        )

    def _timeout_error(self, waited_s: float) -> NatToolsError:
        if self._refused is not None:
            return self._integrity_error(self._refused)
        text = f"no answer to the {self._request_to()}, sent {self._transmissions} times in {waited_s:.1f} s"
        if self._unreachable is not None:
            text += f"; the network reports: {self._unreachable}"
        if self._passed_over is not None:
            text += f"; one answer was ignored, because {self._passed_over}"
        return NoResponseError(
            f"{text}; the server may be down, or a firewall in between: try another server or transport"
        )

    def _request_to(self) -> str:
        return f"{self._request.method.name} request to {self._destination}"

    def _fail(self, error: NatToolsError) -> None:
        self._due = None
        self._event = Failed(error, self._transmissions)


def error_of(response: Message) -> Error | None:
    """The ERROR-CODE of a response, or None where there is none that can be read."""
    try:
        return response.get(ERROR_CODE)
    except DecodeError:
        return None


def _problem(response: Message) -> str | None:
    """Why a response cannot be understood (RFC 8489 §6.3.3, §6.3.4); None where it can."""
    if response.message_class is MessageClass.ERROR and error_of(response) is None:
        return "an error response without a readable ERROR-CODE"
    for attribute in response.attributes:
        if attribute.comprehension_required and attribute.type not in REGISTRY:
            return f"attribute {attribute_name(attribute.type)} must be understood and is not known here"
        if attribute.type in (MESSAGE_INTEGRITY.type, MESSAGE_INTEGRITY_SHA256.type):
            return None  # what follows is not protected and must be ignored (RFC 8489 §9)
    return None
