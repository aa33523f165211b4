"""The promise of `stund`: an answer only to requests, only to who asked, and never 2.8 times as large."""

from __future__ import annotations

from ipaddress import ip_address

from nattools.endpoint import Endpoint
from nattools.stun.message import Message, MessageClass
from nattools.stun.responder import MOST_AMPLIFICATION, DropReason, Responder, ServerAddresses
from tests.fuzz import stun_codec
from tests.fuzz.mutator import Target

CLIENT = Endpoint.parse("198.51.100.1:40000")
_TWO = Responder(ServerAddresses(ip_address("203.0.113.10"), 3478, ip_address("203.0.113.11"), 3479))
_ONE = Responder(ServerAddresses(ip_address("203.0.113.10"), 3478))
_LOCAL = _ONE.addresses.endpoints[0]


def check(data: bytes) -> str:
    """Hold the responder to its promise on `data`; say what became of it with two addresses."""
    outcomes = []
    for responder in (_TWO, _ONE):
        for stream in (False, True):
            reply = responder.respond(data, CLIENT, _LOCAL, stream=stream)
            if isinstance(reply, DropReason):
                outcomes.append(reply.name)
                continue
            request, answer = Message.parse(data), Message.parse(reply.data)
            assert request.message_class is MessageClass.REQUEST
            assert answer.message_class in (MessageClass.SUCCESS, MessageClass.ERROR)
            assert answer.transaction_id == request.transaction_id
            assert reply.destination.ip == CLIENT.ip
            assert reply.origin in responder.addresses.endpoints
            assert len(reply.data) <= MOST_AMPLIFICATION * len(data)
            outcomes.append(answer.message_class.name)
    return outcomes[0]


TARGET = Target("stun_server", stun_codec.seeds, check, stun_codec.TARGET.mutations, stun_codec.repair)
