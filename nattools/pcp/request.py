"""One request to a gateway: when it is sent again, and which answer counts (RFC 6887 §8, RFC 6886 §3.1).

RFC 6887 §8.1.1 has a client wait 3 s before it sends again, with congested networks in mind. This gateway is
one hop away and a user is waiting, so both protocols use the 250 ms of NAT-PMP; they double as in both RFCs
and are spread by PCP's tenth, and the time for all of it is the caller's.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import Generic, Protocol, TypeVar

from nattools.endpoint import Endpoint
from nattools.errors import DecodeError, NatToolsError, NoResponseError, PcpError, TransportError
from nattools.machine import Entropy, Transmit
from nattools.pcp import natpmp, pcp
from nattools.wire import OpenIntEnum

FIRST_INTERVAL_S = 0.25
_SPREAD = 0.1

AnswerT = TypeVar("AnswerT")
AnswerT_co = TypeVar("AnswerT_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Granted(Generic[AnswerT_co]):
    """The gateway did it."""

    answer: AnswerT_co
    epoch_s: int


@dataclass(frozen=True, slots=True)
class Refused:
    """The gateway did not do it, and would not for another `retry_after_s`, None if it does not say."""

    code: OpenIntEnum
    advice: str
    epoch_s: int | None = None
    retry_after_s: int | None = None


class Question(Protocol[AnswerT_co]):
    """What is asked in one of the two protocols, and how its answer is known."""

    @property
    def name(self) -> str:
        """What it is, for messages: `MAP request for UDP port 5060`."""

    @property
    def data(self) -> bytes:
        """The datagram."""

    def read(self, data: bytes) -> Granted[AnswerT_co] | Refused | None:
        """The answer in `data`, None when it is the answer to something else. Raises `DecodeError`."""


class PcpQuestion:
    """A PCP request. Its answer has its opcode, nonce, protocol and internal port (RFC 6887 §11.4, §12.4)."""

    def __init__(self, request: pcp.Request, name: str, *, allow_third_party: bool = False) -> None:
        self.name = name
        self.data = request.encode(allow_third_party=allow_third_party)
        self._request = request

    def read(self, data: bytes) -> Granted[pcp.Response] | Refused | None:
        """Read it; NAT-PMP's refusal of version 2 is an answer, too."""
        version = pcp.refused_version(data, ours=pcp.VERSION)
        if version is not None:
            speaks = "NAT-PMP and no PCP" if version == natpmp.VERSION else f"PCP version {version} only"
            return Refused(pcp.ResultCode.UNSUPP_VERSION, f"it speaks {speaks}: ask by NAT-PMP or UPnP")
        response = pcp.Response.parse(data)
        asked, body = self._request.body, response.body
        if body.opcode != asked.opcode or not _is_same_mapping(asked, body):
            return None
        if response.result is not pcp.ResultCode.SUCCESS:
            return Refused(response.result, response.result.advice, response.epoch_s, response.lifetime_s)
        if isinstance(asked, pcp.Map) and (response.lifetime_s == 0) is not (self._request.lifetime_s == 0):
            return None  # a late answer: to the mapping, now that it is removed, or the other way round
        return Granted(response, response.epoch_s)


def _is_same_mapping(asked: pcp.Body, answered: pcp.Body) -> bool:
    if isinstance(answered, pcp.Opaque):  # an error that was cut short
        return True
    if isinstance(asked, pcp.Peer) and isinstance(answered, pcp.Peer) and asked.remote != answered.remote:
        return False
    if not isinstance(asked, pcp.Map | pcp.Peer) or not isinstance(answered, pcp.Map | pcp.Peer):
        return True
    return (asked.nonce, asked.protocol, asked.internal_port) == (
        answered.nonce,
        answered.protocol,
        answered.internal_port,
    )


class ExternalAddressQuestion:
    """NAT-PMP's question for the external address (RFC 6886 §3.2)."""

    name = "NAT-PMP request for the external address"
    data = natpmp.ExternalAddressRequest().encode()

    def read(self, data: bytes) -> Granted[natpmp.ExternalAddressResponse] | Refused | None:
        """Read the answer; PCP's refusal of version 0 is one, too."""
        response = _natpmp_response(data)
        if isinstance(response, Refused):
            return response
        if isinstance(response, natpmp.ExternalAddressResponse):
            return Granted(response, response.epoch_s)
        if isinstance(response, natpmp.ErrorResponse) and response.opcode is natpmp.Opcode.EXTERNAL_ADDRESS:
            return _refused(response)
        return None


class MappingQuestion:
    """A NAT-PMP mapping request. Its answer has its opcode and internal port (RFC 6886 §3.3)."""

    def __init__(self, request: natpmp.MappingRequest, name: str) -> None:
        self.name = name
        self.data = request.encode()
        self._request = request

    def read(self, data: bytes) -> Granted[natpmp.MappingResponse] | Refused | None:
        """Read the answer; PCP's refusal of version 0 is one, too."""
        request, response = self._request, _natpmp_response(data)
        if isinstance(response, Refused):
            return response
        if response.opcode is not request.opcode or isinstance(response, natpmp.ExternalAddressResponse):
            return None
        if isinstance(response, natpmp.ErrorResponse):
            return _refused(response) if response.internal_port in (None, request.internal_port) else None
        if response.internal_port != request.internal_port:
            return None
        if (response.lifetime_s == 0) is not (request.lifetime_s == 0):
            return None  # a late answer: NAT-PMP has no transaction id, and a removal looks like a mapping
        return Granted(response, response.epoch_s)


def _natpmp_response(data: bytes) -> natpmp.Response | Refused:
    version = pcp.refused_version(data, ours=natpmp.VERSION)
    if version is not None:
        advice = f"it speaks PCP version {version} and no NAT-PMP: ask by PCP or UPnP"
        return Refused(natpmp.ResultCode.UNSUPPORTED_VERSION, advice)
    return natpmp.parse_response(data)


def _refused(response: natpmp.ErrorResponse) -> Refused:
    return Refused(response.result, response.result.advice, response.epoch_s)


@dataclass(frozen=True, slots=True)
class Answered(Generic[AnswerT]):
    """The gateway did what was asked. `rtt_s` counts from the first of the `transmissions`."""

    answer: AnswerT
    epoch_s: int
    rtt_s: float
    transmissions: int


@dataclass(frozen=True, slots=True)
class Failed:
    """The request is over without success: `PcpError` refused, `NoResponseError` not answered.

    `epoch_s` and `retry_after_s` are None where the gateway did not tell them.
    """

    error: NatToolsError
    transmissions: int
    epoch_s: int | None = None
    retry_after_s: int | None = None


class GatewayRequest(Generic[AnswerT]):
    """One request, from its first transmission to its answer or its failure; a `machine.Machine`.

    An answer counts when it comes from the gateway's address and port and the question knows it for its own;
    what does not count is passed over, and retransmission goes on.
    """

    def __init__(
        self,
        question: Question[AnswerT],
        gateway: Endpoint,
        *,
        now: float,
        entropy: Entropy,
        timeout_s: float,
        socket: str = "",
    ) -> None:
        """Make the request ready to be sent at once. A link-local `gateway` may carry its scope."""
        self._question = question
        self._gateway = gateway
        self._source = without_scope(gateway)
        self._entropy = entropy
        self._socket = socket
        self._started_at = now
        self._deadline = now + timeout_s
        self._interval_s = FIRST_INTERVAL_S * self._spread()
        self._transmissions = 0
        self._due: float | None = now
        self._outbox: list[Transmit] = []
        self._event: Answered[AnswerT] | Failed | None = None
        self._passed_over: str | None = None
        self._unreachable: str | None = None
        self.handle_timeout(now=now)

    def transmits(self) -> list[Transmit]:
        """Take what must be sent now."""
        taken, self._outbox = self._outbox, []
        return taken

    def timeout_at(self) -> float | None:
        """When the next transmission, or the end, is due; None when the request is over."""
        return self._due

    def next_event(self) -> Answered[AnswerT] | Failed | None:
        """Take how it ended, once."""
        taken, self._event = self._event, None
        return taken

    def handle_timeout(self, *, now: float) -> None:
        """Send again, or give up, if that is due."""
        if self._due is None or now < self._due:
            return
        if now >= self._deadline and self._transmissions:
            self._fail(self._timeout_error(now))
            return
        self._outbox.append(Transmit(self._question.data, self._gateway, self._socket))
        self._transmissions += 1
        self._due = min(now + self._interval_s, self._deadline)
        self._interval_s *= 2 * self._spread()

    def handle_unreachable(self, reason: str, *, hard: bool) -> None:
        """Take an ICMP error. A hard one ends the request; a soft one is told if nothing else comes."""
        self._unreachable = reason
        if hard and self._due is not None:
            self._fail(
                NoResponseError(
                    f"the {self._question.name} to {self._gateway} failed, {reason}: the router has no PCP "
                    "or NAT-PMP, or it is turned off; turn it on (often named UPnP), or ask by UPnP"
                )
            )

    def receive(self, data: bytes, source: Endpoint, *, now: float, socket: str = "") -> None:
        """Take a datagram; anything but the answer is passed over."""
        if self._due is None or socket != self._socket:
            return
        try:
            reading = self._question.read(data)
        except DecodeError as error:
            self._passed_over = f"what came from {source} is no answer ({error})"
            return
        if reading is None:
            return
        if without_scope(source) != self._source:  # anybody can send here: RFC 6886 §3.1, RFC 6887 §8.3
            self._passed_over = f"an answer came from {source}, which is not who was asked"
        elif isinstance(reading, Granted):
            self._due = None
            rtt_s = now - self._started_at
            self._event = Answered(reading.answer, reading.epoch_s, rtt_s, self._transmissions)
        else:
            self._fail(self._refusal(reading), reading.epoch_s, reading.retry_after_s)

    def _spread(self) -> float:
        """Between 0.9 and 1.1, so that many clients do not ask in step (RFC 6887 §8.1.1)."""
        return 1 - _SPREAD + 2 * _SPREAD * int.from_bytes(self._entropy(2), "big") / 0xFFFF

    def _refusal(self, refused: Refused) -> PcpError:
        text = f"{self._gateway.ip} refused the {self._question.name} with {refused.code.name}"
        text += f" ({int(refused.code)}): {refused.advice}"
        if refused.retry_after_s:
            text += f"; the same will be refused for {refused.retry_after_s} s"
        return PcpError(text, code=refused.code)

    def _timeout_error(self, now: float) -> TransportError:
        text = (
            f"no answer to the {self._question.name} from {self._gateway}, sent {self._transmissions} times"
        )
        text += f" in {now - self._started_at:.1f} s"
        if self._unreachable is not None:
            text += f"; the network reports: {self._unreachable}"
        if self._passed_over is not None:
            text += f"; {self._passed_over}"
        return NoResponseError(
            f"{text}; the router has no PCP or NAT-PMP, or it is turned off, or a firewall on this machine "
            "drops its answers: turn it on (often named UPnP), or ask by UPnP"
        )

    def _fail(
        self, error: NatToolsError, epoch_s: int | None = None, retry_after_s: int | None = None
    ) -> None:
        self._due = None
        self._event = Failed(error, self._transmissions, epoch_s, retry_after_s)


def without_scope(endpoint: Endpoint) -> Endpoint:
    """The endpoint as the source of a datagram: without the interface that a link-local address names."""
    if isinstance(endpoint.ip, IPv6Address) and endpoint.ip.scope_id:
        return Endpoint(IPv6Address(endpoint.ip.packed), endpoint.port)
    return endpoint
