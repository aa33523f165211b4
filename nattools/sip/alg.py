"""Whether something on the way rewrites SIP (a SIP ALG): from what was seen to a verdict.

Two proofs that do not need each other, for one port of a server:

- *The hidden address.* STUN on the SIP port and a SIP request, from one socket, are one flow to a NAT, so
  both answers name the same public endpoint. An ALG puts the private one back into `received` (RFC 3261
  §18.2.1) of the SIP answer. No server can do that: it never saw the private address as a source.
- *The reflection.* A server that sends back what it received (`reflector`) shows each field that arrived
  otherwise than it was sent.

Most ALGs look at port 5060 alone. So the same is asked of a second port, the control, of the same server.
`alg_probe` asks the questions. What was not shown is `unknown`, with the reason.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from nattools.endpoint import Endpoint
from nattools.errors import DecodeError
from nattools.sip.difference import TouchedField, touched_fields
from nattools.sip.headers import Via
from nattools.sip.message import SipMessage
from nattools.sip.reflector import REFLECTION_TYPE, reflect


class Question(Enum):
    """What is asked of a port."""

    STUN = "stun"
    OPTIONS = "options"
    INVITE = "invite"  # of a reflector alone: nobody's phone rings
    STUN_AGAIN = "stun-again"  # after a silence or a contradiction
    OPTIONS_AGAIN = "options-again"  # after a silence
    INVITE_AGAIN = "invite-again"  # after a silence of the first, and an answer to options-again


@dataclass(frozen=True, slots=True)
class Exchange:
    """One question and what came of it.

    `request` was sent `sent` times. `answer` is the final response, None where none came; then `detail` may
    say why. `mapped` is what a STUN answer says.
    """

    question: Question
    destination: Endpoint
    sent: int
    request: bytes
    answer: bytes | None = None
    mapped: Endpoint | None = None
    detail: str = ""

    @property
    def is_answered(self) -> bool:
        """Whether an answer came that could be read."""
        return self.answer is not None


@dataclass(frozen=True, slots=True)
class AlgObservations:
    """All that was seen from the socket `local`: the exchanges with `server`, and with the `control` port."""

    local: Endpoint
    server: Endpoint
    control: Endpoint | None
    exchanges: tuple[Exchange, ...]
    packets_sent: int

    def get(self, destination: Endpoint, question: Question) -> Exchange | None:
        """The exchange with one port about one question, or None where it was not asked."""
        for exchange in self.exchanges:
            if exchange.destination == destination and exchange.question is question:
                return exchange
        return None


class AlgPresence(Enum):
    """Whether SIP is rewritten on the way to a port."""

    YES = "yes"
    NO = "no"  # every octet of what was sent arrived
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class PortVerdict:
    """What happens to SIP on the way to one port.

    `is_answered` says whether anything was answered there. `mapped` is where STUN on that port saw us,
    `received` where the SIP answer says that we were seen (the port is 0 where it says none); None where
    nobody said. `hides_address` is the first proof: the answer has our private address for `received`.
    `touched` is the second, each field that was rewritten. `lost` names the SIP methods that nobody answered
    while the port answered something else.
    """

    destination: Endpoint
    presence: AlgPresence
    is_answered: bool
    mapped: Endpoint | None
    received: Endpoint | None
    hides_address: bool
    touched: tuple[TouchedField, ...]
    lost: tuple[str, ...]
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AlgVerdict:
    """Whether there is a SIP ALG between `local` and the server of `sip`, and what it does.

    `control` is the same for another port of that server; None where none was asked.
    """

    presence: AlgPresence
    local: Endpoint
    sip: PortVerdict
    control: PortVerdict | None
    packets_sent: int

    @property
    def touched(self) -> tuple[TouchedField, ...]:
        """The fields that were rewritten, on whichever port."""
        ports = [port for port in (self.sip, self.control) if port is not None]
        return _each_once(field for port in ports for field in port.touched)

    @property
    def reasons(self) -> tuple[str, ...]:
        """What it rests on, or why it is unknown."""
        return self.sip.reasons + (self.control.reasons if self.control else ())

    @property
    def is_answered(self) -> bool:
        """Whether anybody answered anything."""
        ports = [port for port in (self.sip, self.control) if port is not None]
        return any(port.is_answered for port in ports)


def judge(seen: AlgObservations) -> AlgVerdict:
    """Judge the observations."""
    control = None if seen.control is None else _judge_port(seen, seen.control, other=seen.server)
    sip = _judge_port(seen, seen.server, other=seen.control)
    presences = [sip.presence, *([control.presence] if control else [])]
    presence = AlgPresence.YES if AlgPresence.YES in presences else sip.presence
    return AlgVerdict(presence, seen.local, sip, control, seen.packets_sent)


def _judge_port(seen: AlgObservations, at: Endpoint, *, other: Endpoint | None) -> PortVerdict:
    asked = [exchange for exchange in seen.exchanges if exchange.destination == at]
    mapped = next((exchange.mapped for exchange in asked if exchange.mapped is not None), None)
    answers = [(exchange, answer) for exchange in asked if (answer := _read(exchange)) is not None]
    received = next((seen_at for _, answer in answers if (seen_at := _received(answer)) is not None), None)
    arrived = [(exchange, text) for exchange, answer in answers if (text := _reflection(answer)) is not None]
    touched = _each_once(
        field for exchange, text in arrived for field in touched_fields(exchange.request, text)
    )
    proofs = []
    if touched:
        names = ", ".join(field.name for field in touched)
        proofs.append(f"{at}: {names} arrived there otherwise than sent")
    hidden = _hidden_address(seen, at, answers, mapped)
    echoed = _echoed(seen, answers, mapped)
    lost = _lost(asked)
    proofs += [reason for reason in (hidden, echoed) if reason]
    if not proofs and "INVITE" in lost and other is not None and _is_shown_lost(seen, at, other):
        proofs.append(
            f"{at}: an INVITE never arrives there, while OPTIONS does, and while {other} gets the same INVITE"
        )
    both = {"OPTIONS", "INVITE"} <= {_method(exchange) for exchange, _ in arrived}
    presence, reasons = AlgPresence.YES, proofs
    if not proofs:
        presence = AlgPresence.NO if both else AlgPresence.UNKNOWN
        reasons = [f"{at}: {reason}" for reason in _why_not(asked, answers, received, mapped, lost, both)]
    is_answered = any(exchange.is_answered for exchange in asked)
    return PortVerdict(
        at, presence, is_answered, mapped, received, bool(hidden), touched, lost, tuple(reasons)
    )


def _hidden_address(
    seen: AlgObservations, at: Endpoint, answers: list[tuple[Exchange, SipMessage]], mapped: Endpoint | None
) -> str:
    """The first proof, in words; empty where it is not there."""
    local = seen.local
    again = seen.get(at, Question.STUN_AGAIN)
    if mapped is None or mapped.ip == local.ip or (again is not None and again.mapped not in (None, mapped)):
        return ""
    for _, answer in answers:
        received = _received(answer)
        # The port as well: a server may have a proxy of its own before it, which has our address by chance.
        if received and received.ip == local.ip and received.port in (0, local.port, mapped.port):
            return (
                f"{at}: STUN saw us at {mapped} there, but the SIP answer says received={local.ip}, our own"
                " address, which nobody outside has seen: it was put in on the way back"
            )
    return ""


def _echoed(
    seen: AlgObservations, answers: list[tuple[Exchange, SipMessage]], mapped: Endpoint | None
) -> str:
    """Whether our own Via came back with the public address that we did not write; in words, or empty."""
    for exchange, answer in answers:
        via = _via(answer)
        if mapped and mapped.ip != seen.local.ip and via and via.ip == mapped.ip:
            return f"{exchange.destination}: our Via came back with {mapped.ip}, which we did not write"
    return ""


def _method(exchange: Exchange) -> str:
    """The SIP method of a question; empty for STUN."""
    return {
        Question.OPTIONS: "OPTIONS",
        Question.OPTIONS_AGAIN: "OPTIONS",
        Question.INVITE: "INVITE",
        Question.INVITE_AGAIN: "INVITE",
    }.get(exchange.question, "")


def _lost(asked: list[Exchange]) -> tuple[str, ...]:
    """The SIP methods that stayed without any answer, where the port answered something."""
    answered = {_method(exchange) for exchange in asked if exchange.is_answered}
    if not answered:
        return ()
    silent = (_method(exchange) for exchange in asked if not exchange.is_answered and not exchange.detail)
    return tuple(dict.fromkeys(method for method in silent if method and method not in answered))


def _is_shown_lost(seen: AlgObservations, at: Endpoint, other: Endpoint) -> bool:
    """Whether nothing but the way can be at fault for the INVITE that got lost."""
    again = seen.get(at, Question.INVITE_AGAIN)  # asked only after OPTIONS was answered once more
    elsewhere = seen.get(other, Question.INVITE)
    return again is not None and elsewhere is not None and elsewhere.is_answered


def _why_not(
    asked: list[Exchange],
    answers: list[tuple[Exchange, SipMessage]],
    received: Endpoint | None,
    mapped: Endpoint | None,
    lost: tuple[str, ...],
    both: bool,
) -> Iterable[str]:
    """Why there is no proof of an ALG, and what is missing for the opposite."""
    if both:
        yield "OPTIONS and INVITE arrived as they were sent, octet for octet"
        return
    if not any(exchange.is_answered for exchange in asked):
        details = [exchange.detail for exchange in asked if exchange.detail]
        times = max((exchange.sent for exchange in asked), default=0)
        yield details[0] if details else f"neither STUN nor SIP was answered, each asked {times} times"
        return
    if lost:
        times = sum(exchange.sent for exchange in asked if _method(exchange) in lost)
        yield (
            f"no answer to {' and '.join(lost)}, sent {times} times, though something else is answered"
            " there: the server does not speak SIP there, or something on the way drops it"
        )
    yield from (f"{_method(e) or 'STUN'}: {e.detail}" for e in asked if e.detail)
    if not answers:
        return
    if mapped is None:
        yield "STUN is not answered there, so nothing says what the SIP answer should have in received="
    elif received is None:
        yield "the SIP answer does not say where it saw us (no received=)"
    elif received.ip == mapped.ip and received.port in (0, mapped.port):
        yield f"STUN and the SIP answer agree that we are seen at {mapped}"
    else:
        yield (
            f"STUN saw us at {mapped}, the SIP answer says {received}: the server may be behind a proxy or"
            " NAT of its own"
        )
    if not any(_reflection(answer) is not None for _, answer in answers):
        yield (
            "the server does not show what it received: only a reflector (stund --sip-reflector) can"
            " show that nothing is rewritten"
        )


def _read(exchange: Exchange) -> SipMessage | None:
    """The SIP answer, or None where there is none that can be read."""
    if exchange.answer is None or exchange.question in (Question.STUN, Question.STUN_AGAIN):
        return None
    try:
        return SipMessage.parse(exchange.answer)
    except DecodeError:
        return None


def _via(answer: SipMessage) -> Via | None:
    try:
        return answer.top_via
    except DecodeError:
        return None


def _received(answer: SipMessage) -> Endpoint | None:
    """Where the server says that it saw us; port 0 where it names none."""
    via = _via(answer)
    return None if via is None or via.received is None else Endpoint(via.received, via.rport or 0)


def _reflection(answer: SipMessage) -> bytes | None:
    """The request as the server got it, or None where the answer is no reflection."""
    if answer.content_type != REFLECTION_TYPE:
        return None
    return reflect(answer.data[answer.body_span.start :])


def is_reflection(answer: bytes) -> bool:
    """Whether a SIP answer has the request that it answers for its body."""
    try:
        return _reflection(SipMessage.parse(answer)) is not None
    except DecodeError:
        return False


def _each_once(fields: Iterable[TouchedField]) -> tuple[TouchedField, ...]:
    """The first of each name."""
    first: dict[str, TouchedField] = {}
    for field in fields:
        first.setdefault(field.name, field)
    return tuple(first.values())
