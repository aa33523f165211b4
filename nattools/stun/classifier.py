"""From what was seen to what the NAT is: RFC 3489 names and RFC 5780 behaviours.

Every verdict is three-valued. What was not shown is `unknown`, with the reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from itertools import combinations

from nattools.endpoint import Endpoint
from nattools.stun.observation import Observation, Observations, Outcome, Question


class NatType(Enum):
    """The names of RFC 3489 §5, and the two honest ways of not knowing."""

    OPEN = "open"
    SYMMETRIC_FIREWALL = "symmetric-firewall"
    FULL_CONE = "full-cone"
    RESTRICTED_CONE = "restricted-cone"
    PORT_RESTRICTED_CONE = "port-restricted-cone"
    SYMMETRIC = "symmetric"
    BLOCKED = "blocked"
    INCONCLUSIVE = "inconclusive"


class Mapping(Enum):
    """For whom the public endpoint stays the same (RFC 4787 §4.1); NONE where there is no NAT."""

    NONE = "none"
    ENDPOINT_INDEPENDENT = "endpoint-independent"
    ADDRESS_DEPENDENT = "address-dependent"
    ADDRESS_AND_PORT_DEPENDENT = "address-and-port-dependent"
    UNKNOWN = "unknown"


class Filtering(Enum):
    """Who may answer through the public endpoint (RFC 4787 §5)."""

    ENDPOINT_INDEPENDENT = "endpoint-independent"
    ADDRESS_DEPENDENT = "address-dependent"
    ADDRESS_AND_PORT_DEPENDENT = "address-and-port-dependent"
    UNKNOWN = "unknown"


class Confidence(Enum):
    """How much of the verdict was shown."""

    HIGH = "high"  # every part; what rests on silence is wrong once in 100,000 times at 20 % loss each way
    PARTIAL = "partial"  # something that the verdict rests on could not be checked
    NONE = "none"  # there is no verdict


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is known of the NAT. `hairpin` and `port_preserved` are None where they were not shown."""

    nat_type: NatType
    mapping: Mapping
    filtering: Filtering
    confidence: Confidence
    local: Endpoint
    server: Endpoint
    public: Endpoint | None
    port_preserved: bool | None
    hairpin: bool | None
    reasons: tuple[str, ...]


_CONES = {
    Filtering.ENDPOINT_INDEPENDENT: NatType.FULL_CONE,
    Filtering.ADDRESS_DEPENDENT: NatType.RESTRICTED_CONE,
    Filtering.ADDRESS_AND_PORT_DEPENDENT: NatType.PORT_RESTRICTED_CONE,
    Filtering.UNKNOWN: NatType.INCONCLUSIVE,
}
_WITHOUT_NAT = {
    Filtering.ENDPOINT_INDEPENDENT: NatType.OPEN,
    Filtering.ADDRESS_DEPENDENT: NatType.SYMMETRIC_FIREWALL,
    Filtering.ADDRESS_AND_PORT_DEPENDENT: NatType.SYMMETRIC_FIREWALL,
    Filtering.UNKNOWN: NatType.INCONCLUSIVE,
}
_WORD_TAKEN = " (behind this mapping the server's word for CHANGE-REQUEST must do)"
_PLAIN = (Question.BINDING, Question.MAPPING_ADDRESS, Question.MAPPING_BOTH, Question.MAPPING_PORT)


def classify(seen: Observations) -> Verdict:
    """Judge the observations; the reasons say, part by part, what it rests on, or why there is no verdict."""
    bindings = [o for o in seen.seen if o.question is Question.BINDING]
    if not any(o.outcome is Outcome.ANSWERED for o in bindings):
        return _nobody_answered(seen, bindings)
    mapping, mapping_reason = _mapping(seen)
    filtering, filtering_reason = _filtering(seen, mapping)
    if mapping in (Mapping.ADDRESS_DEPENDENT, Mapping.ADDRESS_AND_PORT_DEPENDENT):
        nat_type = NatType.SYMMETRIC
    elif mapping is Mapping.UNKNOWN:
        nat_type = NatType.INCONCLUSIVE
    else:
        nat_type = (_WITHOUT_NAT if mapping is Mapping.NONE else _CONES)[filtering]
    hairpin, hairpin_reason = _hairpin(seen, mapping)
    binding = seen.get(Question.BINDING)
    public = binding.mapped if binding else None
    reasons = [f"mapping: {mapping_reason}", f"filtering: {filtering_reason}", f"hairpin: {hairpin_reason}"]
    if seen.rewritten is not None:
        reasons.append(
            f"payloads: something on the way edits addresses (MAPPED-ADDRESS says {seen.rewritten})"
        )
    checked = filtering is not Filtering.UNKNOWN and not filtering_reason.endswith(_WORD_TAKEN)
    confidence = Confidence.HIGH if checked else Confidence.PARTIAL
    if nat_type is NatType.INCONCLUSIVE:
        confidence = Confidence.NONE
    return Verdict(
        nat_type,
        mapping,
        filtering,
        confidence,
        seen.local,
        seen.server,
        public,
        None if public is None else public.port == seen.local.port,
        hairpin,
        tuple(reasons),
    )


def _nobody_answered(seen: Observations, bindings: list[Observation]) -> Verdict:
    sent = sum(o.sent for o in bindings)
    servers = " and ".join(str(o.destination) for o in bindings)
    odd = [o for o in bindings if o.outcome is not Outcome.SILENT]
    nat_type, confidence = NatType.BLOCKED, Confidence.PARTIAL
    if seen.tcp_rtt_s is not None:
        confidence = Confidence.HIGH
        reason = (
            f"{seen.server} answers STUN over TCP in {seen.tcp_rtt_s * 1000:.0f} ms, "
            f"but none of {sent} requests over UDP: UDP is blocked on the way"
        )
    elif odd:
        nat_type, confidence = NatType.INCONCLUSIVE, Confidence.NONE
        reason = "; ".join(f"{o.destination}: {o.detail or o.outcome.value}" for o in odd)
    else:
        reason = f"no answer from {servers} to {sent} requests: UDP is blocked, or no server is there"
    return Verdict(
        nat_type,
        Mapping.UNKNOWN,
        Filtering.UNKNOWN,
        confidence,
        seen.local,
        seen.server,
        public=None,
        port_preserved=None,
        hairpin=None,
        reasons=(reason,),
    )


def _mapping(seen: Observations) -> tuple[Mapping, str]:
    answered = {
        o.destination: o.mapped
        for o in seen.seen
        if o.question in _PLAIN and o.outcome is Outcome.ANSWERED and o.mapped is not None
    }
    first = next(iter(answered.values()))
    if seen.unstable:
        return Mapping.UNKNOWN, "the public endpoint changed between two requests to the same server"
    if all(mapped == seen.local for mapped in answered.values()):
        return Mapping.NONE, f"every answer shows the local endpoint {seen.local}: no NAT"
    by_address = [answered[a] == answered[b] for a, b in combinations(answered, 2) if a.ip != b.ip]
    by_port = [answered[a] == answered[b] for a, b in combinations(answered, 2) if a.ip == b.ip]
    shown = ", ".join(f"{destination} sees {mapped}" for destination, mapped in answered.items())
    if not by_address:
        return Mapping.UNKNOWN, _no_second_address(seen)
    if any(by_address):
        if all(by_address) and all(by_port):
            return Mapping.ENDPOINT_INDEPENDENT, f"{first} towards {' and '.join(map(str, answered))}"
        return Mapping.ADDRESS_AND_PORT_DEPENDENT, shown
    if not by_port:
        return (
            Mapping.ADDRESS_DEPENDENT,
            f"{shown}; whether on its port as well was not tested (no server answers on two ports)",
        )
    if all(by_port):
        return Mapping.ADDRESS_DEPENDENT, shown
    return Mapping.ADDRESS_AND_PORT_DEPENDENT, shown


def _no_second_address(seen: Observations) -> str:
    if seen.alternate is None:
        return f"not tested, it takes a second address: {seen.alternate_fault}; name a second server"
    return (
        f"not tested, it takes a second address: the server's other address {seen.alternate} does not answer"
    )


def _filtering(seen: Observations, mapping: Mapping) -> tuple[Filtering, str]:
    both, port = seen.get(Question.FILTERING_BOTH), seen.get(Question.FILTERING_PORT)
    if both is None or port is None:
        return Filtering.UNKNOWN, f"not tested: {seen.alternate_fault}"
    if both.outcome is Outcome.ANSWERED:
        return (
            Filtering.ENDPOINT_INDEPENDENT,
            f"an answer came in from {both.source}, which was never sent to",
        )
    fault = _fault(both) or _unproven(seen, mapping, Question.MAPPING_BOTH, Question.CONTROL_BOTH)
    if fault:
        return Filtering.UNKNOWN, fault
    silence = f"{both.sent} requests for an answer from {seen.alternate} brought none"
    if port.outcome is Outcome.ANSWERED:
        return (
            Filtering.ADDRESS_DEPENDENT,
            f"{silence}, but one came in from {port.source}: same address, other port",
        )
    fault = _fault(port) or _unproven(seen, mapping, Question.MAPPING_PORT, Question.CONTROL_PORT)
    if fault:
        return Filtering.UNKNOWN, fault
    reason = f"{silence}, nor {port.sent} for one from its other port"
    if seen.get(Question.CONTROL_PORT) is None:
        reason += _WORD_TAKEN
    return Filtering.ADDRESS_AND_PORT_DEPENDENT, reason


def _fault(asked: Observation) -> str:
    """Why the outcome of a filtering question is no evidence; empty for silence."""
    if asked.outcome is Outcome.MISDIRECTED:
        return f"the server ignores CHANGE-REQUEST: {asked.detail}"
    if asked.outcome is Outcome.REFUSED:
        return f"the server refuses CHANGE-REQUEST: {asked.detail}"
    if asked.outcome is not Outcome.SILENT:
        return f"not tested: {asked.detail or asked.outcome.value}"
    return ""


def _unproven(seen: Observations, mapping: Mapping, plain: Question, control: Question) -> str:
    """Why silence may be the server's and not the NAT's; empty where the server is proven.

    Behind a NAT with dependent mapping no way to the server's other endpoint can be opened for its answer,
    so there the endpoint answering for itself must do.
    """
    alive, proof = seen.get(plain), seen.get(control)
    if alive is None or alive.outcome is not Outcome.ANSWERED:
        where = alive.destination if alive else seen.alternate
        return f"not tested: the server's other endpoint {where} does not answer"
    if proof is None:
        same = mapping in (Mapping.NONE, Mapping.ENDPOINT_INDEPENDENT)
        return "not tested: the server could not be checked" if same else ""
    if proof.outcome is not Outcome.ANSWERED:
        why = _fault(proof) or "it does not answer CHANGE-REQUEST even where the way is open"
        return f"not tested, the server is at fault: {why}"
    return ""


def _hairpin(seen: Observations, mapping: Mapping) -> tuple[bool | None, str]:
    if mapping is Mapping.NONE:
        return None, "not tested: there is no NAT"
    asked = seen.get(Question.HAIRPIN)
    if asked is None:
        if mapping is Mapping.ENDPOINT_INDEPENDENT:
            return None, "not tested: the public endpoint cannot be knocked at from here"
        return None, "not tested: it takes a mapping that is the same for everybody"
    if asked.outcome is Outcome.ANSWERED:
        return True, f"a datagram to our own public endpoint came back, from {asked.source}"
    if asked.outcome in (Outcome.SILENT, Outcome.UNREACHABLE) and asked.sent:
        sent = sum(o.sent for o in seen.seen if o.question is Question.HAIRPIN)
        return False, f"{sent} datagrams between two of our own public endpoints did not arrive"
    return None, f"not tested: {asked.detail or asked.outcome.value}"
