"""A status of natgate as the tests of its readers want it: one call that goes, one that rings."""

from __future__ import annotations

from nattools.endpoint import Endpoint
from nattools.session.settings import EngineName, GateMode
from nattools.session.status import (
    CallState,
    CallStatus,
    GateStatus,
    ListenerStatus,
    RegistrationStatus,
    SideStatus,
    StreamStatus,
)

GATE = Endpoint.of("203.0.113.5", 5060)
NAT = Endpoint.of("203.0.113.1", 40000)
HEARD = SideStatus(3100, 533_200, 3, 1.25, 2, 0, NAT, 0.02)

STATUS = GateStatus(
    version="1.2.3",
    started_s=1_700_000_000.5,
    mode=GateMode.REGISTRAR,
    engine=EngineName.KERNEL,
    listeners=(
        ListenerStatus("UDP", GATE, Endpoint.of("198.51.100.7", 5060)),
        ListenerStatus("TLS", Endpoint.of("2001:db8::5", 5061)),
    ),
    counters={"malformed": 3, "stray": 0, "media_packets": 3100},
    calls=(
        CallStatus(
            "a84b4c76e66710@pc33",
            "sip:alice@example.org",
            "sip:bob@example.org",
            CallState.ANSWERED,
            62.4,
            (StreamStatus("audio", HEARD, SideStatus(), in_kernel=True),),
        ),
        CallStatus("b@pc33", "sip:eve@example.org", "sip:bob@example.org", CallState.RINGING, 3.0),
    ),
    registrations=(
        RegistrationStatus(
            "alice@example.org", "sip:alice@192.168.0.108", NAT, "udp:203.0.113.5:5060", 3000.0
        ),
        RegistrationStatus("bob@example.org", "sip:bob@203.0.113.9", None, "udp:203.0.113.5:5060", 42.0),
    ),
)
