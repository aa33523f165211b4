"""Answers to an observer's requests, byte by byte, and the time that passes between them."""

from __future__ import annotations

from collections.abc import Callable

from nattools.binding.observer import Observer, ObserverEvent
from nattools.endpoint import Endpoint
from nattools.machine import Transmit
from nattools.stun.attributes import (
    CHANGE_REQUEST,
    ERROR_CODE,
    OTHER_ADDRESS,
    XOR_MAPPED_ADDRESS,
    Attribute,
    ChangeRequest,
    Error,
)
from nattools.stun.message import Message, MessageClass

LOCAL = Endpoint.parse("192.168.0.108:5060")
PUBLIC = Endpoint.parse("198.51.100.1:5060")
A1P1 = Endpoint.parse("203.0.113.10:3478")
A2P2 = Endpoint.parse("203.0.113.11:3479")
A2P1 = A2P2.with_port(3478)
A1P2 = A1P1.with_port(3479)
SECOND = Endpoint.parse("203.0.113.30:3478")
THIRD = Endpoint.parse("203.0.113.40:3478")
BOTH = ChangeRequest(change_ip=True, change_port=True)


def counting() -> Callable[[int], bytes]:
    """Transaction ids that can be told apart and repeated: 0, 1, 2, ..."""
    number = -1

    def entropy(size: int) -> bytes:
        nonlocal number
        number += 1
        return number.to_bytes(size, "big")

    return entropy


def observing(*servers: Endpoint, fresh_port: bool = False, local: Endpoint = LOCAL) -> Observer:
    """An observer that has begun to ask, at 100.0 s."""
    observer = Observer(entropy=counting(), fresh_port=fresh_port)
    observer.use_servers(servers or (A1P1,), now=100.0)
    observer.observe(local, now=100.0)
    return observer


def reply(
    asked: Transmit, *attributes: Attribute, mapped: Endpoint = PUBLIC, other: Endpoint | None = None
) -> bytes:
    """A success response that says `mapped`, and, if there is `other`, that that is the other address."""
    request = Message.parse(asked.data)
    said = [XOR_MAPPED_ADDRESS.of(mapped, request.xor_key), *attributes]
    if other is not None:
        said.append(OTHER_ADDRESS.of(other))
    return Message(request.method, MessageClass.SUCCESS, request.transaction_id, tuple(said)).encode()


def refusal(asked: Transmit, code: int, *attributes: Attribute) -> bytes:
    """An error response."""
    request = Message.parse(asked.data)
    said = (ERROR_CODE.of(Error(code, "No")), *attributes)
    return Message(request.method, MessageClass.ERROR, request.transaction_id, said).encode()


def sent(observer: Observer) -> list[Transmit]:
    """What is to be sent now."""
    return list(observer.transmits())


def change_of(transmit: Transmit) -> ChangeRequest | None:
    """From where the server is to answer."""
    return Message.parse(transmit.data).get(CHANGE_REQUEST)


def events(observer: Observer) -> list[ObserverEvent]:
    """What was found since the last time."""
    found = []
    while (event := observer.next_event()) is not None:
        found.append(event)
    return found


def let_time_pass(observer: Observer, *, until: float = float("inf")) -> list[tuple[float, Transmit]]:
    """Let nothing come in until then, or until nothing is awaited; gives what was sent, and when."""
    log = [(100.0, transmit) for transmit in sent(observer)]
    while (due := observer.timeout_at()) is not None and due <= until:
        observer.handle_timeout(now=due)
        log += [(round(due, 3), transmit) for transmit in observer.transmits()]
    return log
