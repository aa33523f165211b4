"""The names: every pair of mapping and filtering gets its RFC 3489 name, and nothing else."""

from __future__ import annotations

import pytest

from nattools.endpoint import Endpoint
from nattools.stun.classifier import Confidence, Filtering, Mapping, NatType, classify
from nattools.stun.observation import Observation, Observations, Outcome, Question

LOCAL = Endpoint.parse("192.168.0.108:40000")
SERVER = Endpoint.parse("203.0.113.10:3478")
ALTERNATE = Endpoint.parse("203.0.113.11:3479")
DESTINATIONS = {
    Question.BINDING: SERVER,
    Question.MAPPING_PORT: SERVER.with_port(3479),
    Question.MAPPING_ADDRESS: ALTERNATE.with_port(3478),
    Question.MAPPING_BOTH: ALTERNATE,
}
PUBLIC = Endpoint.parse("198.51.100.1:50000")


def answered(question: Question, mapped: Endpoint, source: Endpoint | None = None) -> Observation:
    destination = DESTINATIONS.get(question, SERVER)
    return Observation(
        question, "mapping", destination, Outcome.ANSWERED, 1, source or destination, mapped, 0.01
    )


def silent(question: Question, sent: int = 12) -> Observation:
    return Observation(question, question.value, SERVER, Outcome.SILENT, sent)


MAPPED = {
    Mapping.NONE: [LOCAL] * 4,
    Mapping.ENDPOINT_INDEPENDENT: [PUBLIC] * 4,
    Mapping.ADDRESS_DEPENDENT: [PUBLIC, PUBLIC, PUBLIC.with_port(50001), PUBLIC.with_port(50001)],
    Mapping.ADDRESS_AND_PORT_DEPENDENT: [PUBLIC.with_port(50000 + n) for n in range(4)],
}
ANSWERS = {
    Filtering.ENDPOINT_INDEPENDENT: (True, True),
    Filtering.ADDRESS_DEPENDENT: (False, True),
    Filtering.ADDRESS_AND_PORT_DEPENDENT: (False, False),
}


def seen(mapping: Mapping, filtering: Filtering) -> Observations:
    mapped = dict(zip(DESTINATIONS, MAPPED[mapping], strict=True))
    parts = [answered(question, endpoint) for question, endpoint in mapped.items()]
    both, port = ANSWERS[filtering]
    for question, comes, source in (
        (Question.FILTERING_BOTH, both, ALTERNATE),
        (Question.FILTERING_PORT, port, SERVER.with_port(3479)),
    ):
        parts.append(answered(question, PUBLIC, source) if comes else silent(question))
    for control, plain, source in (
        (Question.CONTROL_BOTH, Question.MAPPING_BOTH, ALTERNATE),
        (Question.CONTROL_PORT, Question.MAPPING_PORT, SERVER.with_port(3479)),
    ):
        if mapped[plain] == mapped[Question.BINDING]:
            parts.append(answered(control, mapped[plain], source))
    return Observations(LOCAL, SERVER, ALTERNATE, "", tuple(parts), 30)


NAMES = {
    (Mapping.NONE, Filtering.ENDPOINT_INDEPENDENT): NatType.OPEN,
    (Mapping.NONE, Filtering.ADDRESS_DEPENDENT): NatType.SYMMETRIC_FIREWALL,
    (Mapping.NONE, Filtering.ADDRESS_AND_PORT_DEPENDENT): NatType.SYMMETRIC_FIREWALL,
    (Mapping.ENDPOINT_INDEPENDENT, Filtering.ENDPOINT_INDEPENDENT): NatType.FULL_CONE,
    (Mapping.ENDPOINT_INDEPENDENT, Filtering.ADDRESS_DEPENDENT): NatType.RESTRICTED_CONE,
    (Mapping.ENDPOINT_INDEPENDENT, Filtering.ADDRESS_AND_PORT_DEPENDENT): NatType.PORT_RESTRICTED_CONE,
    (Mapping.ADDRESS_DEPENDENT, Filtering.ENDPOINT_INDEPENDENT): NatType.SYMMETRIC,
    (Mapping.ADDRESS_DEPENDENT, Filtering.ADDRESS_DEPENDENT): NatType.SYMMETRIC,
    (Mapping.ADDRESS_DEPENDENT, Filtering.ADDRESS_AND_PORT_DEPENDENT): NatType.SYMMETRIC,
    (Mapping.ADDRESS_AND_PORT_DEPENDENT, Filtering.ENDPOINT_INDEPENDENT): NatType.SYMMETRIC,
    (Mapping.ADDRESS_AND_PORT_DEPENDENT, Filtering.ADDRESS_DEPENDENT): NatType.SYMMETRIC,
    (Mapping.ADDRESS_AND_PORT_DEPENDENT, Filtering.ADDRESS_AND_PORT_DEPENDENT): NatType.SYMMETRIC,
}


@pytest.mark.parametrize(("behaviour", "nat_type"), NAMES.items(), ids=str)
def test_each_pair_of_behaviours_has_its_name(
    behaviour: tuple[Mapping, Filtering], nat_type: NatType
) -> None:
    verdict = classify(seen(*behaviour))
    assert (verdict.mapping, verdict.filtering) == behaviour
    assert verdict.nat_type is nat_type


def test_what_rests_on_the_servers_word_alone_is_sure_only_in_part() -> None:
    symmetric = classify(seen(Mapping.ADDRESS_AND_PORT_DEPENDENT, Filtering.ADDRESS_AND_PORT_DEPENDENT))
    restricted = classify(seen(Mapping.ENDPOINT_INDEPENDENT, Filtering.ADDRESS_AND_PORT_DEPENDENT))
    assert (symmetric.confidence, restricted.confidence) == (Confidence.PARTIAL, Confidence.HIGH)


def test_nobody_answering_is_blocked_only_for_sure_where_tcp_gets_through() -> None:
    nobody = Observations(LOCAL, SERVER, None, "no server answered", (silent(Question.BINDING),), 12)
    by_tcp = Observations(LOCAL, SERVER, None, "", (silent(Question.BINDING),), 12, tcp_rtt_s=0.02)
    assert classify(nobody).nat_type is classify(by_tcp).nat_type is NatType.BLOCKED
    assert (classify(nobody).confidence, classify(by_tcp).confidence) == (Confidence.PARTIAL, Confidence.HIGH)


def test_an_icmp_error_is_not_called_blocked() -> None:
    refused = Observation(
        Question.BINDING, "mapping", SERVER, Outcome.UNREACHABLE, 3, detail="nothing listens there"
    )
    verdict = classify(Observations(LOCAL, SERVER, None, "no server answered", (refused,), 3))
    assert verdict.nat_type is NatType.INCONCLUSIVE
    assert "nothing listens there" in verdict.reasons[0]


def test_an_edited_payload_is_mentioned() -> None:
    whole = seen(Mapping.ENDPOINT_INDEPENDENT, Filtering.ENDPOINT_INDEPENDENT)
    edited = Observations(LOCAL, SERVER, ALTERNATE, "", whole.seen, 30, rewritten=LOCAL)
    assert "something on the way edits addresses" in classify(edited).reasons[-1]
