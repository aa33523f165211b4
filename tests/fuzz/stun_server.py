"""The promise of `stund`: an answer only to requests, only to who asked, of at most 2.8 times their size."""

from __future__ import annotations

from ipaddress import ip_address

from nattools.endpoint import Endpoint
from nattools.stun.accounts import LongTermAccounts, ShortTermAccounts
from nattools.stun.authentication import LongTerm, ShortTerm
from nattools.stun.message import Message, MessageClass
from nattools.stun.responder import MOST_AMPLIFICATION, DropReason, Responder, ServerAddresses
from nattools.stun.shared_secrets import SharedSecrets
from nattools.stun.uri import Transport
from tests.fuzz import stun_codec
from tests.fuzz.mutator import Target

CLIENT = Endpoint.parse("198.51.100.1:40000")
_CLIENT_IPV6 = Endpoint.parse("[2001:db8:7::7]:40000")
_ADDRESSES = ServerAddresses(ip_address("203.0.113.10"), 3478, ip_address("203.0.113.11"), 3479)
_IPV6 = ServerAddresses(ip_address("2001:db8::1"), 3478, ip_address("2001:db8::2"), 3479)
_RESPONDERS = (
    (Responder(_ADDRESSES), CLIENT),
    (Responder(ServerAddresses(_ADDRESSES.address)), CLIENT),
    (Responder(_IPV6), _CLIENT_IPV6),
    (Responder(_ADDRESSES, accounts=ShortTermAccounts([ShortTerm("evtj:h6vY", "not of the seeds")])), CLIENT),
    (Responder(_ADDRESSES, secrets=SharedSecrets(bytes(16), entropy=bytes)), CLIENT),
    (Responder(_IPV6, accounts=LongTermAccounts([LongTerm("user", "x")], secret=bytes(16))), _CLIENT_IPV6),
)


def check(data: bytes) -> str:
    """Hold the responder to its promise on `data`; say what became of it with two addresses."""
    outcomes = []
    for responder, client in _RESPONDERS:
        for transport in Transport:
            local = responder.addresses.endpoints[0]
            reply = responder.respond(data, client, local, transport=transport)
            if isinstance(reply, DropReason):
                outcomes.append(reply.name)
                continue
            request, answer = Message.parse(data), Message.parse(reply.data)
            assert request.message_class is MessageClass.REQUEST
            assert answer.message_class in (MessageClass.SUCCESS, MessageClass.ERROR)
            assert answer.transaction_id == request.transaction_id
            assert reply.destination.ip == client.ip
            assert reply.origin in responder.addresses.endpoints
            assert transport is not Transport.UDP or len(reply.data) <= MOST_AMPLIFICATION * len(data)
            outcomes.append(answer.message_class.name)
    return outcomes[0]


TARGET = Target("stun_server", stun_codec.seeds, check, stun_codec.TARGET.mutations, stun_codec.repair)
