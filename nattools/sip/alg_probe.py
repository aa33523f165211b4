"""What to ask a SIP server to find out whether something on the way rewrites SIP, and what was seen.

`AlgProbe` is a machine without I/O. From one socket it sends each port STUN and OPTIONS, and a port that
turns out to be a reflector an INVITE as well, since ALGs look for session descriptions there. The requests
have the private address wherever a phone behind NAT that knows no better writes it: bait. `alg.judge` reads
what came back.

Nothing counts as silent before it was sent `MOST_SENT` times; then what was answered on that port is asked
once more, and if that is answered, so is the INVITE that was not.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

from nattools.endpoint import Endpoint
from nattools.errors import DecodeError, EncodeError
from nattools.machine import Entropy, Transmit
from nattools.sip.alg import AlgObservations, Exchange, Question, is_reflection
from nattools.sip.headers import compose_contact, compose_via
from nattools.sip.keepalive import compose_stun, read_stun
from nattools.sip.message import SipMessage, compose_request

MOST_SENT = 12
"""So often one request is sent. With 20 % loss each way all of them are lost once in 200,000 times."""

MOST_PACKETS = 2 * (len(Question) * MOST_SENT + 1)
"""What one probe sends at the most to its two ports, an ACK to each among them."""

_FIRST_INTERVAL_S = 0.25
_LEAST_INTERVAL_S = 0.1
_MOST_INTERVAL_S = 1.0
_INTERVALS_PER_RTT = 2
_ICMP_ERRORS_BELIEVED = 3
_STUN_ID_BYTES = 12
_TOKEN_BYTES = 8
_LEAST_MEDIA_PORT = 16384
_MEDIA_PORTS = 8192  # even ones above it
_STUN = (Question.STUN, Question.STUN_AGAIN)
_INVITE = (Question.INVITE, Question.INVITE_AGAIN)


@dataclass(slots=True, eq=False)
class _Asked:
    """One question under way; `token` is in the request, and in what answers it."""

    question: Question
    destination: Endpoint
    request: bytes
    token: bytes
    next_at: float
    first_at: float = 0.0
    sent: int = 0
    icmp_errors: int = 0
    is_settled: bool = False
    answer: bytes | None = None
    mapped: Endpoint | None = None
    detail: str = ""

    def exchange(self) -> Exchange:
        return Exchange(
            self.question, self.destination, self.sent, self.request, self.answer, self.mapped, self.detail
        )


class AlgProbe:
    """Asks `server`, and its port `control_port`, from the socket at `local`; a `machine.Machine`.

    `local` has the address that the kernel sends from. `timeout_s` is how long the first answer may take;
    after it the measured round trip sets the pace. The one event is the `AlgObservations`.
    """

    def __init__(
        self,
        server: Endpoint,
        *,
        local: Endpoint,
        control_port: int | None,
        entropy: Entropy,
        now: float,
        timeout_s: float = 5.0,
    ) -> None:
        self._server = server
        self._local = local
        self._entropy = entropy
        self._deadline = now + timeout_s
        self._rtt_s: float | None = None
        self._packets = 0
        self._transmits: list[Transmit] = []
        self._event: AlgObservations | None = None
        self._is_finished = False
        self._asked: list[_Asked] = []
        is_other = control_port is not None and control_port != server.port
        self._control = server.with_port(control_port) if is_other and control_port else None
        for port in self._ports:
            self._ask(Question.STUN, port, now)
            self._ask(Question.OPTIONS, port, now)
        self._advance(now)

    def transmits(self) -> Iterable[Transmit]:
        """Take what must be sent now."""
        taken, self._transmits = self._transmits, []
        return taken

    def timeout_at(self) -> float | None:
        """When `handle_timeout` wants to be called next; None once everything is settled."""
        times = [asked.next_at for asked in self._asked if not asked.is_settled]
        return min(times, default=None)

    def handle_timeout(self, *, now: float) -> None:
        """Send what is due, and settle what has waited long enough."""
        self._advance(now)

    def next_event(self) -> AlgObservations | None:
        """Take what was seen, once."""
        taken, self._event = self._event, None
        return taken

    def receive(self, data: bytes, source: Endpoint, *, now: float, socket: str = "") -> None:  # noqa: ARG002  # of the contract; there is one
        """Take a datagram; what answers none of the questions is passed over."""
        for asked in self._asked:
            if asked.is_settled or asked.destination != source:
                continue
            if asked.question in _STUN:
                asked.mapped = read_stun(data, asked.token)
                if asked.mapped is None:
                    continue
            elif asked.token not in data or not _is_final_response(data, asked.question):
                continue
            self._settle(asked, data, now)
            break
        self._advance(now)

    def undeliverable(
        self, destination: Endpoint, reason: str, *, now: float, is_final: bool = False
    ) -> None:
        """Take an ICMP error about what was sent to `destination`, or that it cannot be sent at all."""
        for asked in self._asked:
            if asked.destination != destination or asked.is_settled:
                continue
            asked.icmp_errors += 1
            # A forged or stale one must not end a question; of real ones there is one for each request.
            if is_final or asked.icmp_errors >= _ICMP_ERRORS_BELIEVED:
                asked.detail, asked.is_settled = reason, True
        self._advance(now)

    @property
    def _ports(self) -> list[Endpoint]:
        return [self._server, *([self._control] if self._control else [])]

    def _ask(self, question: Question, destination: Endpoint, now: float) -> None:
        if question in _STUN:
            token = self._entropy(_STUN_ID_BYTES)
            request = compose_stun(token)
        else:
            token = self._entropy(_TOKEN_BYTES).hex().encode()
            request = self._bait(question, destination, token.decode())
        self._asked.append(_Asked(question, destination, request, token, next_at=now))

    def _settle(self, asked: _Asked, answer: bytes, now: float) -> None:
        asked.answer, asked.is_settled = answer, True
        if asked.sent == 1:  # of one that was sent again nobody knows which was answered
            self._rtt_s = max(self._rtt_s or 0.0, now - asked.first_at)
            for other in self._asked:
                other.next_at = min(other.next_at, now + self._interval_s)
        if asked.question is Question.OPTIONS and is_reflection(answer):
            self._ask(Question.INVITE, asked.destination, now)
        if asked.question in _INVITE:
            with suppress(EncodeError):  # its To has a bare CR or LF, which nothing can be sent back with
                self._send(_ack(asked.request, answer), asked.destination)

    @property
    def _interval_s(self) -> float:
        if self._rtt_s is None:
            return _FIRST_INTERVAL_S
        return min(max(_INTERVALS_PER_RTT * self._rtt_s, _LEAST_INTERVAL_S), _MOST_INTERVAL_S)

    def _advance(self, now: float) -> None:
        self._send_what_is_due(now)
        while sum(self._ask_again(port, now) for port in self._ports):
            self._send_what_is_due(now)
        if not self._is_finished and all(asked.is_settled for asked in self._asked):
            self._is_finished = True
            exchanges = tuple(asked.exchange() for asked in self._asked)
            self._event = AlgObservations(self._local, self._server, self._control, exchanges, self._packets)

    def _send_what_is_due(self, now: float) -> None:
        is_heard = any(asked.answer for asked in self._asked)
        for asked in self._asked:
            if asked.is_settled or now < asked.next_at:
                continue
            if asked.sent == MOST_SENT or (now >= self._deadline and not is_heard):
                asked.is_settled = True
                continue
            if not asked.sent:
                asked.first_at = now
            asked.sent += 1
            self._send(asked.request, asked.destination)
            asked.next_at = now + self._interval_s
            if asked.sent == MOST_SENT:
                asked.next_at += self._interval_s
                if not is_heard:
                    asked.next_at = max(asked.next_at, self._deadline)

    def _ask_again(self, port: Endpoint, now: float) -> bool:
        """Ask again where all is settled at a port, and not all is answered or agrees; whether it did."""
        asked = {asked.question: asked for asked in self._asked if asked.destination == port}
        if not all(one.is_settled for one in asked.values()):
            return False
        stun, options, invite = asked[Question.STUN], asked[Question.OPTIONS], asked.get(Question.INVITE)
        wanted = []
        if not all(one.answer for one in asked.values()) or not _agree(stun, options):
            wanted += [Question.STUN_AGAIN] if stun.answer else []
            wanted += [Question.OPTIONS_AGAIN] if options.answer else []
        again = asked.get(Question.OPTIONS_AGAIN)
        if invite is not None and not invite.answer and again is not None and again.answer:
            wanted.append(Question.INVITE_AGAIN)
        wanted = [question for question in wanted if question not in asked]
        for question in wanted:
            self._ask(question, port, now)
        return bool(wanted)

    def _send(self, data: bytes, destination: Endpoint) -> None:
        self._transmits.append(Transmit(data, destination))
        self._packets += 1

    def _bait(self, question: Question, destination: Endpoint, token: str) -> bytes:
        """A request with the private address in every place where an ALG may look for it.

        A second Contact, a header that nobody knows and a=rtcp are among them: what an ALG leaves there tells
        the peer another address than the rest.
        """
        local = self._local
        method = "INVITE" if question in _INVITE else "OPTIONS"
        host = f"[{local.ip}]" if local.is_ipv6 else f"{local.ip}"
        contact = compose_contact(local, user="probe")
        headers = [
            ("Via", compose_via(local, branch=f"z9hG4bK{token}")),
            ("Max-Forwards", "70"),
            ("From", f"<sip:probe@{local}>;tag={token[:8]}"),
            ("To", f"<sip:{destination}>"),
            ("Call-ID", f"{token}@{host}"),
            ("CSeq", f"1 {method}"),
            ("Contact", f"{contact}, <sip:second@{local}>;q=0.1"),
            ("User-Agent", "nattools"),
            ("X-Probe", f"{local}"),
        ]
        if method == "OPTIONS":
            return compose_request(method, f"sip:{destination}", headers)
        headers.append(("Content-Type", "application/sdp"))
        return compose_request(method, f"sip:{destination}", headers, self._description())

    def _description(self) -> bytes:
        """A session description that any phone could have written (RFC 8866)."""
        port = _LEAST_MEDIA_PORT + int.from_bytes(self._entropy(2), "big") % _MEDIA_PORTS * 2
        address = f"IN IP{self._local.ip.version} {self._local.ip}"
        lines = (
            *("v=0", f"o=- 1 1 {address}", "s=-", f"c={address}", "t=0 0"),
            *(f"m=audio {port} RTP/AVP 0", f"c={address}", "a=rtpmap:0 PCMU/8000"),
            *(f"a=rtcp:{port + 1} {address}", "a=sendrecv"),
        )
        return "".join(f"{line}\r\n" for line in lines).encode()


def _is_final_response(data: bytes, question: Question) -> bool:
    """Whether `data` is a response other than 1xx to a request of the question's method."""
    try:
        response = SipMessage.parse(data)
    except DecodeError:
        return False
    method = "INVITE" if question in _INVITE else "OPTIONS"
    return response.status_code is not None and response.status_code >= 200 and response.method == method


def _agree(stun: _Asked, options: _Asked) -> bool:
    """Whether the SIP answer says what STUN says, as far as either says anything."""
    if stun.mapped is None or options.answer is None:
        return True
    try:
        via = SipMessage.parse(options.answer).top_via
    except DecodeError:
        return True
    return via is None or via.received in (None, stun.mapped.ip)


def _ack(invite: bytes, answer: bytes) -> bytes:
    """The ACK that ends the transaction of a refused INVITE (RFC 3261 §17.1.1.3)."""
    request, response = SipMessage.parse(invite), SipMessage.parse(answer)
    repeated = [(name, request.value(request.header(name.lower()))) for name in ("Via", "From", "Call-ID")]
    uri = request.data[slice(*request.request_uri)] if request.request_uri else b""
    return compose_request(
        "ACK",
        uri.decode(),
        [
            *repeated,
            ("To", response.value(response.header("to"))),
            ("CSeq", "1 ACK"),
            ("Max-Forwards", "70"),
        ],
    )
