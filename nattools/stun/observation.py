"""What a discovery saw: each question that was asked, and what became of it.

A1:P1 is the server that was asked, A2:P2 what it says is its other address and port (RFC 5780 §7.4).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from nattools.endpoint import Endpoint


class Question(Enum):
    """What one group of probes asks."""

    BINDING = "binding"  # A1:P1, plain
    MAPPING_PORT = "mapping-port"  # A1:P2, plain
    MAPPING_ADDRESS = "mapping-address"  # A2:P1, plain
    MAPPING_BOTH = "mapping-both"  # A2:P2, plain
    FILTERING_PORT = "filtering-port"  # answer from A1:P2, never talked to
    FILTERING_BOTH = "filtering-both"  # answer from A2:P2, never talked to
    CONTROL_PORT = "control-port"  # answer from A1:P2, to a socket that has talked to it
    CONTROL_BOTH = "control-both"  # answer from A2:P2, to a socket that has talked to it
    HAIRPIN_OPEN = "hairpin-open"  # A1:P1, plain, from the hairpin socket
    HAIRPIN = "hairpin"  # to the public endpoint of another socket of ours
    STILL_THERE = "still-there"  # A1:P1, plain, after a silence


class Outcome(Enum):
    """What became of a question."""

    ANSWERED = "answered"
    SILENT = "silent"
    REFUSED = "refused"  # an error response, or a success without a mapped address
    MISDIRECTED = "misdirected"  # an answer, but not from where it had to come from
    UNREACHABLE = "unreachable"  # ICMP, or no route
    UNDECIDED = "undecided"  # given up before silence could be told from loss


@dataclass(frozen=True, slots=True)
class Observation:
    """One question and what came of it. `detail` says what is odd, in words; empty where nothing is."""

    question: Question
    socket: str
    destination: Endpoint
    outcome: Outcome
    sent: int
    source: Endpoint | None = None
    mapped: Endpoint | None = None
    rtt_s: float | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Observations:
    """All that was seen in one discovery.

    `server` is the one whose four endpoints were asked (the first given where none has four), `alternate`
    its usable other address, `alternate_fault` why there is none. `tcp_rtt_s` is set where the server
    answered STUN over TCP while UDP stayed silent. `rewritten` holds a MAPPED-ADDRESS that differs from
    the XOR-ed one: something on the way edits payloads.
    """

    local: Endpoint
    server: Endpoint
    alternate: Endpoint | None
    alternate_fault: str
    seen: tuple[Observation, ...]
    packets_sent: int
    tcp_rtt_s: float | None = None
    rewritten: Endpoint | None = None
    unstable: bool = False

    def get(self, question: Question) -> Observation | None:
        """The observation of `question` with the chosen server, or None where it was not asked."""
        for observation in self.seen:
            if observation.question is question and (
                question is not Question.BINDING or observation.destination == self.server
            ):
                return observation
        return None
