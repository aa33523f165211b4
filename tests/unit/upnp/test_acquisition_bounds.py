"""The making of one mapping comes to an end, and stays within what a mapping can be."""

from __future__ import annotations

import pytest

from nattools.endpoint import Endpoint
from nattools.errors import EncodeError, NatToolsError
from nattools.upnp.acquisition import MOST_ACTIONS, Acquisition, Done, GaveUp
from nattools.upnp.igd import AddAnyPortMapping, GetSpecificPortMappingEntry
from tests.fakes.scripted_igd import (
    GARBAGE,
    OK,
    PHONE,
    RESET,
    SILENCE,
    UDP,
    Answer,
    Step,
    acquisition,
    entry,
    granted,
    play,
    proven,
    refused,
)


def test_the_end_is_the_end() -> None:
    acquiring = acquisition()
    play(acquiring, *granted(5070))
    acquiring.answered(None)
    acquiring.failed(SILENCE)
    assert acquiring.next_action() == proven(5070)


def test_random_ports_are_at_least_1024_and_not_tried_twice() -> None:
    acquiring = Acquisition(
        PHONE.with_port(1024),
        UDP,
        external_port=None,
        lease_s=3600,
        description="",
        version=1,
        entropy=lambda size: b"\xff" * size,
    )
    ports = []
    while not isinstance(call := acquiring.next_action(), Done | GaveUp):
        ports.append(call.external_port)
        acquiring.failed(refused(501))
    first = 1024 + 0xFFFFFFFF % 64512
    assert ports == [1024, *(1024 + (first - 1024 + n) % 64512 for n in range(4))]
    assert min(ports) >= 1024
    assert len(set(ports)) == 5


ANSWERS: list[Answer] = [
    None,
    refused(402),
    refused(501),
    refused(606),
    refused(714),
    refused(718),
    refused(725),
    SILENCE,
    RESET,
    GARBAGE,
]


@pytest.mark.parametrize("version", [1, 2])
def test_whatever_a_router_answers_it_is_asked_a_dozen_times_at_most(version: int) -> None:
    for seed in range(200):
        assert isinstance(end_of_any_answers(seed, version), Done | GaveUp), f"seed {seed}"


def end_of_any_answers(seed: int, version: int) -> object:
    """What comes after as many actions as there may be, each answered in one of many ways."""
    acquiring = acquisition(version=version)
    for number in range(MOST_ACTIONS + 1):
        call = acquiring.next_action()
        if isinstance(call, Done | GaveUp):
            break
        answer = ANSWERS[(seed * 7919 + number * (seed + 3)) % len(ANSWERS)]
        if isinstance(answer, NatToolsError):
            acquiring.failed(answer)
        elif isinstance(call, AddAnyPortMapping):
            acquiring.answered(40000)
        elif isinstance(call, GetSpecificPortMappingEntry):
            acquiring.answered(entry(call.external_port, seed % 7 * 600, internal_port=5070 + number % 2))
        else:
            acquiring.answered(None)
    return acquiring.next_action()


def test_one_action_too_many_ends_it_with_the_last_error() -> None:
    steps: list[Step] = [
        ("add 5070 for 3600", refused(402)),
        ("add 5070 for ever", refused(501)),
        ("any 1024 for ever", RESET),
        ("get 1024", refused(714)),
        ("add 1025 for ever", refused(718)),
        ("get 1025", refused(714)),
        ("add 1026 for ever", refused(718)),
        ("get 1026", refused(714)),
        ("add 1027 for ever", SILENCE),
        ("get 1027", refused(714)),
        ("add 1027 for ever", SILENCE),
        ("get 1027", refused(714)),
    ]
    assert len(steps) == MOST_ACTIONS
    assert play(acquisition(version=2), *steps) == GaveUp(SILENCE, permanent_only=True)


def test_a_success_as_the_last_action_is_believed() -> None:
    steps: list[Step] = [
        ("add 5070 for 3600", refused(402)),
        ("add 5070 for ever", SILENCE),
        ("get 5070", refused(714)),
        ("add 5070 for 3600", refused(402)),
        ("add 5070 for ever", refused(501)),
        ("any 1024 for ever", RESET),
        ("get 1024", refused(714)),
        ("add 1025 for ever", refused(718)),
        ("get 1025", refused(714)),
        ("add 1026 for ever", refused(718)),
        ("get 1026", refused(714)),
        ("add 1027 for ever", OK),
    ]
    assert len(steps) == MOST_ACTIONS
    end = play(acquisition(version=2), *steps)
    assert end == Done(1027, None, proven=False, permanent_only=True)


@pytest.mark.parametrize(
    ("internal", "external_port", "lease_s"),
    [
        (PHONE.with_port(0), None, 60),
        (PHONE, 0, 60),
        (PHONE, 70000, 60),
        (PHONE, None, 0),
        (Endpoint.of("2001:db8::1", 5060), None, 60),
    ],
)
def test_what_no_mapping_can_have_is_refused_at_once(
    internal: Endpoint, external_port: int | None, lease_s: int
) -> None:
    with pytest.raises(EncodeError):
        Acquisition(
            internal,
            UDP,
            external_port=external_port,
            lease_s=lease_s,
            description="",
            version=1,
            entropy=bytes,
        )
