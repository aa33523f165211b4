"""SIP over UDP for softphone.py: what is sent again until it is answered, and who talks to whom."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field

from nattools import DecodeError, Endpoint, NatToolsError, TransportError
from nattools.binding.client import LiveBinding
from nattools.sip import NameAddress, SipMessage, Span, compose_request, compose_response
from nattools.sip.dialog import Body, Dialog, target_of
from nattools.sip.transaction import T1_S, T2_S, TIMEOUT_S, ClientTransaction

Headers = Iterable[tuple[str, str | bytes]]
OnProvisional = Callable[[SipMessage], None]
ALLOW = ("Allow", b"INVITE, ACK, CANCEL, BYE, OPTIONS, UPDATE")
SDP = ("Content-Type", b"application/sdp")
MOST_ANSWERS = 1000
"""So many are kept, each for 32 s, in case that its request comes again; meanwhile there are no others."""

_Key = tuple[bytes, ...]


def value(message: SipMessage, name: str) -> bytes:
    """A header's value; empty where there is no such header."""
    return message.value(message.header(name))


class Transactions:
    """What goes over one socket: requests until they are answered, and those of others once each."""

    def __init__(self, binding: LiveBinding, on_request: Callable[[Request], None]) -> None:
        self._binding = binding
        self._on_request = on_request
        self._loop = asyncio.get_running_loop()
        self._asked: dict[_Key, tuple[ClientTransaction, asyncio.Event]] = {}
        self._acks: dict[_Key, tuple[bytes, Endpoint]] = {}
        self._answers: dict[_Key, bytes] = {}
        self._awaited_acks: dict[_Key, asyncio.Future[SipMessage]] = {}
        self._tasks: set[asyncio.Task[SipMessage | None]] = set()

    async def run(self) -> None:
        """Take what comes, until cancelled."""
        while True:
            data, source = await self._binding.recvfrom()
            with suppress(NatToolsError):  # keepalives, noise, and what cannot be answered
                message = SipMessage.parse(data)
                if message.is_request:
                    self._take_request(message, source)
                else:
                    self._take_response(message)

    def send(self, data: bytes, destination: Endpoint) -> None:
        """Send once. What there is no way for now is sent again, like what was lost."""
        with suppress(TransportError):
            self._binding.sendto(data, destination)

    # Requests of our own

    async def request(
        self, request: bytes, destination: Endpoint, on_provisional: OnProvisional | None = None
    ) -> SipMessage:
        """Send a request until it is answered, and return the final response; 408 where none came."""
        transaction = ClientTransaction(request, destination, now=self._loop.time())
        key, news = _client_key(transaction.request), asyncio.Event()
        self._asked[key] = transaction, news
        try:
            while not transaction.has_timed_out:
                self._send_all(transaction)
                while (response := transaction.next_response()) is not None:
                    if _status(response) >= 200:
                        return response
                    if on_provisional is not None:
                        on_provisional(response)
                try:
                    async with asyncio.timeout_at(transaction.timeout_at()):
                        await news.wait()
                    news.clear()
                except TimeoutError:
                    transaction.handle_timeout(now=self._loop.time())
            return SipMessage.parse(compose_response(transaction.request, 408, "Nobody Answers"))
        finally:  # while the last response is sent again, it is acknowledged again
            self._send_all(transaction)
            self._loop.call_later(TIMEOUT_S, self._asked.pop, key, None)

    def acknowledge(self, response: SipMessage, ack: bytes, destination: Endpoint) -> None:
        """Send the ACK of an accepted INVITE, and again whenever the response comes again."""
        key = *_client_key(response), response.to_tag or b""  # of another phone's answer, another ACK
        self._acks[key] = ack, destination
        self._loop.call_later(TIMEOUT_S, self._acks.pop, key, None)
        self.send(ack, destination)

    def _take_response(self, response: SipMessage) -> None:
        key = _client_key(response)
        acknowledged = *key, response.to_tag or b""
        if acknowledged in self._acks and _status(response) >= 200:
            self.send(*self._acks[acknowledged])
        elif key in self._asked:
            transaction, news = self._asked[key]
            transaction.receive(response, now=self._loop.time())
            self._send_all(transaction)
            news.set()

    def _send_all(self, transaction: ClientTransaction) -> None:
        for transmit in transaction.transmits():
            self.send(transmit.data, transmit.destination)

    # Requests of others

    def _take_request(self, message: SipMessage, source: Endpoint) -> None:
        if message.method == "ACK":
            awaited = self._awaited_acks.get(_ack_key(message))
            if awaited is not None and not awaited.done():
                awaited.set_result(message)
            return
        request = Request(self, _with_source(message, source), source)
        key = request.key
        if key in self._answers:  # it was sent again
            if self._answers[key]:
                self.send(self._answers[key], source)
            return
        if len(self._answers) >= MOST_ANSWERS:  # who means it sends it again
            return
        self._answers[key] = b""
        self._loop.call_later(TIMEOUT_S, self._answers.pop, key, None)
        self._on_request(request)

    def answer(self, request: Request, response: bytes) -> None:
        """Send a response, and again whenever the request comes again."""
        self._answers[request.key] = response
        self._loop.call_later(TIMEOUT_S, self._answers.pop, request.key, None)
        self.send(response, request.source)

    async def answer_until_acknowledged(self, request: Request, response: bytes) -> SipMessage | None:
        """Send a final response to INVITE until its ACK comes; None if it never does.

        That is RFC 3261 §13.3.1.4 where the call is accepted, and §17.2.1 where it is not.
        """
        key = _ack_key(request.message)
        awaited: asyncio.Future[SipMessage] = self._loop.create_future()
        self._awaited_acks[key] = awaited
        pause_s, gives_up_at = T1_S, self._loop.time() + TIMEOUT_S
        try:
            self.answer(request, response)
            while self._loop.time() < gives_up_at:
                done, _ = await asyncio.wait([awaited], timeout=pause_s)
                if done:
                    return awaited.result()
                self.send(response, request.source)
                pause_s = min(2 * pause_s, T2_S)
            return None
        finally:
            del self._awaited_acks[key]

    def spawn_answer(self, request: Request, response: bytes) -> None:
        """The same for who need not know whether it was acknowledged."""
        task = asyncio.create_task(self.answer_until_acknowledged(request, response))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


@dataclass(slots=True, eq=False)
class Request:
    """A request that somebody sent."""

    transactions: Transactions
    message: SipMessage
    source: Endpoint
    tag: str = field(default_factory=lambda: secrets.token_hex(8))
    """Ours, where the request has none yet."""

    @property
    def key(self) -> _Key:
        """What a retransmission, and nothing else, has in common with it (RFC 3261 §17.2.3)."""
        return (*self.branch, self.message.method.encode())

    @property
    def branch(self) -> _Key:
        """What a CANCEL has in common with the request that it cancels (§9.2). Raises `DecodeError`."""
        via = self.message.top_via
        if via is None:
            raise DecodeError("a request without a Via cannot be answered")
        return via.branch or self.message.call_id, self.message.data[slice(*via.host_port_span)]

    def compose(self, status: int, reason: str, headers: Headers = (), body: bytes = b"") -> bytes:
        """Write a response to it."""
        content = [SDP] if body else []
        to_tag = "" if self.message.to_tag else self.tag
        return compose_response(self.message, status, reason, [*headers, *content], body, to_tag=to_tag)

    def respond(self, status: int, reason: str, headers: Headers = (), body: bytes = b"") -> None:
        """Answer it. A refused INVITE is answered until its ACK comes."""
        response = self.compose(status, reason, headers, body)
        if self.message.method == "INVITE" and status >= 300:
            self.transactions.spawn_answer(self, response)
        else:
            self.transactions.answer(self, response)

    async def accept(self, headers: Headers, body: bytes) -> SipMessage | None:
        """Answer an INVITE with 200 until its ACK comes, and return that; None if it never does."""
        response = self.compose(200, "OK", headers, body)
        return await self.transactions.answer_until_acknowledged(self, response)


@dataclass(slots=True, eq=False)
class Session:
    """A dialog of our own and the numbers of its requests (RFC 3261 §12.2)."""

    dialog: Dialog
    cseq: int = 0
    remote_cseq: int = -1

    @classmethod
    def begin(cls, local: str, remote: str, target: str) -> Session:
        """One that nobody has answered in yet, with URIs."""
        call_id, tag = secrets.token_hex(12), secrets.token_hex(8)
        sides = f"<{local}>;tag={tag}".encode(), f"<{remote}>".encode()
        return cls(Dialog(call_id.encode(), *sides, target.encode(), (), fields=[ALLOW]))

    @classmethod
    def of_callee(cls, request: Request, response: bytes) -> Session:
        """The one that our response to an INVITE begins. Raises `DecodeError`."""
        session = cls(Dialog.of_callee(request.message, SipMessage.parse(response)))
        session.take(request.message)
        return session

    def confirm(self, invite: SipMessage, response: SipMessage) -> None:
        """The peer has accepted our INVITE. Raises `DecodeError` where it does not say where it is."""
        self.dialog = Dialog.of_caller(invite, response)

    def take(self, request: SipMessage) -> None:
        """Take the number of a request of the peer's, and where it is now. Raises `DecodeError`."""
        if request.cseq is None:
            raise DecodeError("a request without a CSeq cannot be answered")
        self.remote_cseq = request.cseq[0]
        self.take_target(request)

    def take_target(self, message: SipMessage) -> None:
        """Where the peer is reached now (§12.2.1.2). Raises `DecodeError`."""
        if message.header("contact") is not None:
            self.dialog.target = target_of(message)

    def is_of(self, request: SipMessage) -> bool:
        """Whether a request of the peer's belongs here (§12.2.2)."""
        ours = (self.dialog.call_id, _tag(self.dialog.local), _tag(self.dialog.remote))
        return ours == (request.call_id, request.to_tag, request.from_tag)

    def compose(
        self, method: str, via: str, contact: str | None, headers: Headers = (), body: bytes = b""
    ) -> bytes:
        """Write a request with the next number, or an ACK with that of its INVITE."""
        if method != "ACK":
            self.cseq += 1
        content = Body(body, (SDP,)) if body else None
        return self.dialog.compose(
            method, cseq=self.cseq, via=via, contact=contact, headers=headers, body=content
        )

    def next_hop(self, proxy: Endpoint) -> Endpoint:
        """Where its requests are sent: to `proxy` until the peer has answered, or where a host has a name."""
        return proxy if self.dialog.is_early else self.dialog.next_hop() or proxy


def compose_cancel(invite: SipMessage) -> bytes:
    """Write the CANCEL of an INVITE, which is of the same transaction (RFC 3261 §9.1)."""
    assert invite.top_via is not None
    assert invite.request_uri is not None
    assert invite.cseq is not None
    headers: list[tuple[str, str | bytes]] = [
        ("Via", invite.data[slice(*invite.top_via.span)]),
        ("Max-Forwards", "70"),
        *((header.name, invite.value(header)) for header in invite.headers_named("route")),
        *((name, value(invite, name)) for name in ("from", "to", "call-id")),
        ("CSeq", f"{invite.cseq[0]} CANCEL"),
    ]
    return compose_request("CANCEL", invite.data[slice(*invite.request_uri)].decode(), headers)


def credentials_of(request: SipMessage) -> list[tuple[str, bytes]]:
    """What an ACK has of its INVITE (RFC 3261 §13.2.2.4)."""
    headers = (*request.headers_named("authorization"), *request.headers_named("proxy-authorization"))
    return [(header.name, request.value(header)) for header in headers]


def _tag(address: bytes) -> bytes | None:
    param = NameAddress.parse(address).param("tag")
    return None if param is None else param.value


def _status(response: SipMessage) -> int:
    return response.status_code or 0


def _client_key(message: SipMessage) -> _Key:
    return message.branch or b"", message.method.encode()


def _ack_key(message: SipMessage) -> _Key:
    number = message.cseq[0] if message.cseq is not None else -1
    return message.call_id, b"%d" % number, message.from_tag or b""


def _with_source(request: SipMessage, source: Endpoint) -> SipMessage:
    """Write into the Via where a request came from (RFC 3261 §18.2.1, RFC 3581 §4)."""
    via = request.top_via
    if via is None:
        raise DecodeError("a request without a Via cannot be answered")
    rport = via.param("rport")
    if rport is not None and not rport.value:
        place = Span(rport.name_span.end, (rport.value_span or rport.name_span).end)
        request.edit(place, b"=%d" % source.port)
    if rport is not None or via.ip != source.ip:
        request.edit(Span(via.span.end, via.span.end), f";received={source.ip}".encode())
    return SipMessage.parse(request.encode())
