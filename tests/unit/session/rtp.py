"""RTP and RTCP packets for the tests of the relay, and the places that they come from."""

from __future__ import annotations

import struct

from nattools.endpoint import Endpoint
from nattools.session.relay import Expectation

PHONE = Endpoint.of("192.168.0.108", 10002)
"""Where the phone's description wants packets, behind its NAT."""
MAPPED = Endpoint.of("140.113.131.89", 13016)
"""Where its packets come from."""
REBOUND = Endpoint.of("140.113.131.90", 20000)
"""Where they come from after its NAT has another address."""
PEER = Endpoint.of("140.113.131.7", 49170)
"""A telephone without a NAT."""
ATTACKER = Endpoint.of("198.18.66.6", 6666)
OTHER_ATTACKER = Endpoint.of("198.18.66.7", 6666)

PCMU = 0
EVENT = 101


def rtp(
    sequence: int, *, ssrc: int = 0xA11CE, payload_type: int = PCMU, timestamp: int | None = None
) -> bytes:
    """A packet of 20 ms; its timestamp follows its sequence number unless one is given."""
    at = sequence * 160 if timestamp is None else timestamp
    header = struct.pack(">BBHII", 0x80, payload_type, sequence & 0xFFFF, at & 0xFFFFFFFF, ssrc)
    return header + bytes(160)


def rtcp(ssrc: int = 0xA11CE, *, packet_type: int = 201) -> bytes:
    """A report without a block (RFC 3550 §6.4.2)."""
    return struct.pack(">BBHI", 0x80, packet_type, 1, ssrc)


def behind_nat(*, with_host: bool = True) -> Expectation:
    """What signalling says of a phone behind a NAT."""
    hosts = frozenset({MAPPED.ip}) if with_host else frozenset()
    return Expectation(PHONE, payload_types=frozenset({PCMU, EVENT}), hosts=hosts)


def in_public() -> Expectation:
    """What signalling says of a telephone without a NAT."""
    return Expectation(PEER, payload_types=frozenset({PCMU, EVENT}), hosts=frozenset({PEER.ip}))
