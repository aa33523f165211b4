"""STUN servers for the simulated internet: right ones, and each way in which real ones are wrong."""

from __future__ import annotations

from nattools.endpoint import Endpoint
from nattools.stun.attributes import (
    CHANGE_REQUEST,
    ERROR_CODE,
    OTHER_ADDRESS,
    RESPONSE_ORIGIN,
    XOR_MAPPED_ADDRESS,
    ChangeRequest,
    Error,
)
from nattools.stun.message import Message, MessageClass
from tests.sim.internet import Reply, Server

A1, A2 = "203.0.113.10", "203.0.113.11"
P1, P2 = 3478, 3479
A1P1 = Endpoint.of(A1, P1)
A2P2 = Endpoint.of(A2, P2)
ALL = [Endpoint.of(ip, port) for ip in (A1, A2) for port in (P1, P2)]

_STAY = ChangeRequest(change_ip=False, change_port=False)


def stun_server(
    *,
    other: Endpoint | None = A2P2,
    honours: str = "change",
    answers_from: Endpoint | None = None,
) -> Server:
    """One server on up to four endpoints.

    `honours` is `change`, `ignore` (answers from where it was asked), `refuse` (420), `silent` (drops
    what asks for a change) or `address-only` (changes the address, never the port).
    """

    def serve(data: bytes, source: Endpoint, local: Endpoint) -> Reply | None:
        request = Message.parse(data)
        change = request.get(CHANGE_REQUEST) or _STAY
        asked = change != _STAY
        if asked and honours == "silent":
            return None
        if asked and honours == "refuse":
            error = ERROR_CODE.of(Error(420, "Unknown Attribute"))
            reply = Message(request.method, MessageClass.ERROR, request.transaction_id, (error,))
            return reply.encode(), local, source
        origin = local
        if asked and honours != "ignore" and other is not None:
            ip = (A2P2 if local.ip == A1P1.ip else A1P1).ip if change.change_ip else local.ip
            port = P1 + P2 - local.port if change.change_port and honours == "change" else local.port
            origin = Endpoint(ip, port)
        attributes = [XOR_MAPPED_ADDRESS.of(source, request.xor_key), RESPONSE_ORIGIN.of(origin)]
        if other is not None:
            attributes.append(OTHER_ADDRESS.of(other))
        reply = Message(request.method, MessageClass.SUCCESS, request.transaction_id, tuple(attributes))
        return reply.encode(), answers_from or origin, source

    return serve
