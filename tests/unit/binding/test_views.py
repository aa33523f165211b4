"""What follows from what servers have seen."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest

from nattools.binding.model import Reflection
from nattools.binding.probes import View
from nattools.binding.views import Views
from nattools.endpoint import Endpoint
from nattools.stun.classifier import Mapping
from tests.unit.binding.answers import A1P1, A1P2, A2P2, LOCAL, PUBLIC, SECOND, THIRD

ELSEWHERE = PUBLIC.with_port(6000)
BEFORE = Reflection(
    LOCAL, PUBLIC, THIRD, Mapping.ENDPOINT_INDEPENDENT, True, evidence=("it was so", "a stranger got in")
)


def view(mapped: Endpoint = PUBLIC, alternate: Endpoint | None = None) -> View:
    return View(mapped, alternate, "" if alternate else "the server names no other address", True)


def views(*seen: tuple[Endpoint, View], fresh_port: bool = False, former: Reflection | None = None) -> Views:
    all_views = Views(LOCAL, fresh_port, former)
    for server, seen_there in seen:
        all_views.add(server, seen_there)
    return all_views


def test_before_anybody_has_seen_it_nothing_is_known() -> None:
    nobody = views()
    assert (nobody.mapped, nobody.differing, nobody.reflection(())) == (None, None, None)
    assert nobody.same == ""


def test_the_same_address_of_a_server_is_no_second_view() -> None:
    assert views((A1P1, view()), (A1P2, view())).same == ""
    assert views((A1P1, view()), (SECOND, view())).same


@pytest.mark.parametrize(
    ("mapped", "mapping"), [(PUBLIC, Mapping.ENDPOINT_INDEPENDENT), (LOCAL, Mapping.NONE)], ids=str
)
def test_what_two_see_is_the_nats_or_the_sockets_own(mapped: Endpoint, mapping: Mapping) -> None:
    two = views((A1P1, view(mapped)), (SECOND, view(mapped)))
    two.conclude_same()
    assert two.mapping is mapping


@pytest.mark.parametrize(
    ("concluded", "seen", "reopens"),
    [
        (Mapping.UNKNOWN, PUBLIC, True),
        (Mapping.UNKNOWN, ELSEWHERE, True),
        (Mapping.ENDPOINT_INDEPENDENT, PUBLIC, False),
        (Mapping.ENDPOINT_INDEPENDENT, ELSEWHERE, True),
        (Mapping.ADDRESS_DEPENDENT, PUBLIC, False),
        (Mapping.ADDRESS_DEPENDENT, ELSEWHERE, False),
    ],
)
def test_a_late_view_reopens_what_it_may_change(concluded: Mapping, seen: Endpoint, reopens: bool) -> None:
    late = views((A1P1, view()), (SECOND, view()))
    late.conclude(concluded, "so it seemed")
    late.add(THIRD, view(seen))
    assert late.is_settled is not reopens


@pytest.mark.parametrize(
    ("former", "server", "confirms"),
    [
        (BEFORE, A1P1, True),
        (BEFORE, THIRD, False),
        (Reflection(LOCAL, ELSEWHERE, THIRD, Mapping.ENDPOINT_INDEPENDENT), A1P1, False),
        (Reflection(LOCAL, PUBLIC, THIRD, Mapping.ADDRESS_DEPENDENT), A1P1, False),
    ],
    ids=["the same", "the same server", "another endpoint", "a symmetric NAT"],
)
def test_what_another_server_saw_before_is_a_view_too(
    former: Reflection, server: Endpoint, confirms: bool
) -> None:
    assert bool(views((server, view()), former=former).same) is confirms


def test_what_a_stranger_showed_of_the_same_endpoint_still_holds() -> None:
    assert views((A1P1, view()), former=BEFORE).reached(()) == (True, "a stranger got in")
    assert views((A1P1, view(ELSEWHERE)), former=BEFORE).reached(())[0] is None


@pytest.mark.parametrize(
    ("fresh_port", "second", "touched", "counts"),
    [
        (True, None, (), True),
        (True, None, (A2P2.ip,), True),  # it was heard before that
        (False, None, (), None),
        (False, SECOND, (), True),
        (False, SECOND, (A2P2.ip,), None),
        (False, A1P2, (), None),
        (False, A2P2.with_port(3478), (), None),
    ],
)
def test_when_a_stranger_counts(
    fresh_port: bool,
    second: Endpoint | None,
    touched: tuple[IPv4Address | IPv6Address, ...],
    counts: bool | None,
) -> None:
    others = ((second, view()),) if second else ()
    heard = views((A1P1, view(alternate=A2P2)), *others, fresh_port=fresh_port)
    heard.heard[A1P1] = A2P2
    reached, said = heard.reached(touched)
    assert reached is counts
    assert str(A2P2) in said


def test_without_a_stranger_it_is_said_what_was_tried() -> None:
    single = views((A1P1, view(alternate=A2P2)))
    single.conclude(Mapping.UNKNOWN, "one server only")
    assert "a second server helps" in single.reached(())[1]
    single.strangers.add(A1P1)
    assert f"nothing came in from {A2P2}" in single.reached(())[1]
    plain = views((A1P1, view()))
    plain.strangers.add(A1P1)
    plain.conclude(Mapping.UNKNOWN, "one server only")
    assert "no server names another address" in plain.reached(())[1]
