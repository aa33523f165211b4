"""The making of one mapping: exactly what is asked of a router, whatever it answers."""

from __future__ import annotations

import pytest

from nattools.errors import NatToolsError, TransportError, UpnpError
from nattools.upnp.acquisition import Done, GaveUp
from nattools.upnp.faults import CONNECTION_FAULTS
from nattools.upnp.igd import PortMappingEntry
from tests.fakes.scripted_igd import (
    GARBAGE,
    OK,
    RESET,
    SILENCE,
    Answer,
    Step,
    acquisition,
    conflict,
    entry,
    gave_up,
    granted,
    play,
    proven,
    refused,
)

PROVEN = proven(5070)


def test_the_external_port_is_the_internal_one_where_it_is_free() -> None:
    end = play(acquisition(), *granted(5070))
    assert end == PROVEN


def test_an_external_port_that_was_asked_for_is_the_one_that_is_asked_for() -> None:
    end = play(acquisition(external_port=15070), *granted(15070))
    assert end == proven(15070)


def test_a_version_2_service_is_asked_for_the_equal_port_first_as_well() -> None:
    end = play(acquisition(version=2), *granted(5070))
    assert end == PROVEN


@pytest.mark.parametrize("granted_s", [1, 120, 3599, 604800, None])
def test_the_lease_is_the_one_that_the_router_shows(granted_s: int | None) -> None:
    end = play(acquisition(), ("add 5070 for 3600", OK), ("get 5070", entry(5070, granted_s)))
    assert end == proven(5070, granted_s)


def test_a_permanent_mapping_may_turn_out_to_have_a_lease() -> None:
    end = play(acquisition(lease_s=None), ("add 5070 for ever", OK), ("get 5070", entry(5070, 604800)))
    assert end == proven(5070, 604800)


def test_a_version_2_service_is_not_asked_for_more_than_a_week() -> None:
    end = play(
        acquisition(lease_s=1_000_000, version=2),
        ("add 5070 for 604800", OK),
        ("get 5070", entry(5070, 604800)),
    )
    assert end == proven(5070, 604800)


@pytest.mark.parametrize(
    "answer", [refused(401), refused(501), refused(602), GARBAGE, SILENCE, RESET, TransportError("no route")]
)
def test_a_success_that_cannot_be_read_back_is_believed_but_not_proven(answer: NatToolsError) -> None:
    end = play(acquisition(), ("add 5070 for 3600", OK), ("get 5070", answer))
    assert end == Done(5070, 3600, proven=False, permanent_only=False)


def test_a_mapping_to_a_host_name_is_believed_but_not_proven() -> None:
    shown = entry(5070, client="phone.lan")
    end = play(acquisition(), ("add 5070 for 3600", OK), ("get 5070", shown))
    assert end == Done(5070, 3600, proven=False, permanent_only=False)


def test_a_mapping_that_is_switched_off_is_not_proven() -> None:
    end = play(acquisition(), ("add 5070 for 3600", OK), ("get 5070", entry(5070, enabled=False)))
    assert end == Done(5070, 3600, proven=False, permanent_only=False)


# 718


@pytest.mark.parametrize(
    "shown",
    [entry(5070, client="192.168.1.30"), entry(5070, internal_port=5080), entry(5070, client="tv.lan")],
)
def test_a_port_of_somebody_else_is_passed_over(shown: PortMappingEntry) -> None:
    end = play(acquisition(), *conflict(5070, shown), *granted(1024))
    assert end == proven(1024)


def test_the_only_port_that_will_do_is_given_up_at_once_when_it_is_somebody_elses() -> None:
    shown = entry(5060, client="192.168.1.30", internal_port=5080)
    end = play(acquisition(external_port=5060), *conflict(5060, shown))
    gave_up(end, CONNECTION_FAULTS[718], "UDP port 5060", "192.168.1.30:5080 phone", "choose another")


@pytest.mark.parametrize("lease_s", [1801, 3600, 604800, None])
def test_a_fresh_mapping_of_ones_own_from_before_is_used_as_it_is(lease_s: int | None) -> None:
    end = play(acquisition(), *conflict(5070, entry(5070, lease_s)))
    assert end == proven(5070, lease_s)


def test_an_old_mapping_of_ones_own_is_removed_and_made_again() -> None:
    end = play(
        acquisition(external_port=5070),
        *conflict(5070, entry(5070, 1800)),
        ("delete 5070", OK),
        *granted(5070),
    )
    assert end == PROVEN


def test_a_mapping_of_ones_own_that_is_switched_off_is_made_again() -> None:
    end = play(
        acquisition(), *conflict(5070, entry(5070, enabled=False)), ("delete 5070", OK), *granted(5070)
    )
    assert end == PROVEN


@pytest.mark.parametrize("answer", [refused(606), refused(714), SILENCE])
def test_an_old_mapping_that_cannot_be_removed_is_used_as_it_is(answer: NatToolsError) -> None:
    end = play(acquisition(), *conflict(5070, entry(5070, 60)), ("delete 5070", answer))
    assert end == proven(5070, 60)


def test_an_old_mapping_that_comes_back_is_used_as_it_is() -> None:
    old = entry(5070, 60)
    end = play(acquisition(), *conflict(5070, old), ("delete 5070", OK), *conflict(5070, old))
    assert end == proven(5070, 60)


def test_a_port_that_is_snatched_while_it_is_made_again_is_passed_over() -> None:
    end = play(
        acquisition(),
        *conflict(5070, entry(5070, 60)),
        ("delete 5070", OK),
        *conflict(5070, entry(5070, client="192.168.1.30")),
        *granted(1024),
    )
    assert end == proven(1024)


@pytest.mark.parametrize("answer", [refused(714), refused(401), SILENCE, GARBAGE])
def test_718_for_every_port_may_mean_that_the_address_is_not_ours(answer: NatToolsError) -> None:
    ports = (5070, 1024, 1025, 1026, 1027)
    end = play(acquisition(), *(step for port in ports for step in conflict(port, answer)))
    gave_up(end, CONNECTION_FAULTS[718], "5 external ports", "either other devices", "192.168.1.20")
    assert isinstance(end, GaveUp)
    assert isinstance(end.error, UpnpError)
    assert end.error.code == 718


def test_718_for_every_port_that_is_shown_as_taken_says_nothing_of_our_address() -> None:
    end = play(
        acquisition(),
        *conflict(5070, refused(714)),
        *(
            step
            for port in (1024, 1025, 1026, 1027)
            for step in conflict(port, entry(port, client="192.168.1.30"))
        ),
    )
    gave_up(
        end, CONNECTION_FAULTS[718], "4 other ports were refused as well: UDP port 1027", "192.168.1.30:5070"
    )
    assert isinstance(end, GaveUp)
    assert "5 external ports" not in str(end.error)


def test_718_from_a_router_that_may_choose_any_port_is_not_of_the_port() -> None:
    ports = (1025, 1026, 1027)
    end = play(
        acquisition(version=2),
        *conflict(5070, refused(714)),
        ("any 1024 for 3600", refused(718)),
        *(step for port in ports for step in conflict(port, refused(714))),
    )
    gave_up(end, CONNECTION_FAULTS[718], "5 external ports", "either other devices", "192.168.1.20")


def test_718_for_the_only_port_and_no_mapping_of_it_says_that_the_address_may_not_be_ours() -> None:
    end = play(acquisition(external_port=5060), *conflict(5060, refused(714)))
    gave_up(end, CONNECTION_FAULTS[718], "shows no mapping of that port", "192.168.1.20")


# leases


def test_725_is_answered_with_a_permanent_mapping_and_remembered() -> None:
    end = play(
        acquisition(),
        ("add 5070 for 3600", refused(725)),
        ("add 5070 for ever", OK),
        ("get 5070", entry(5070, None)),
    )
    assert end == Done(5070, None, proven=True, permanent_only=True)


def test_a_router_that_is_known_to_take_no_lease_is_asked_for_none() -> None:
    end = play(acquisition(permanent_only=True), ("add 5070 for ever", OK), ("get 5070", entry(5070, None)))
    assert end == Done(5070, None, proven=True, permanent_only=True)


def test_725_for_a_permanent_mapping_is_the_end() -> None:
    end = play(acquisition(), ("add 5070 for 3600", refused(725)), ("add 5070 for ever", refused(725)))
    gave_up(end, CONNECTION_FAULTS[725])


def test_402_may_mean_that_the_router_takes_no_leases() -> None:
    end = play(
        acquisition(),
        ("add 5070 for 3600", refused(402)),
        ("add 5070 for ever", OK),
        ("get 5070", entry(5070, None)),
    )
    assert end == Done(5070, None, proven=True, permanent_only=True)


@pytest.mark.parametrize("takes_a_week", [True, False])
def test_402_may_mean_that_the_router_wants_a_lease(takes_a_week: bool) -> None:
    steps: list[Step] = [("add 5070 for ever", refused(402))]
    if not takes_a_week:
        steps.append(("add 5070 for 604800", refused(402)))
    granted_s = 604800 if takes_a_week else 3600
    end = play(
        acquisition(lease_s=None),
        *steps,
        (f"add 5070 for {granted_s}", OK),
        ("get 5070", entry(5070, granted_s)),
    )
    assert end == proven(5070, granted_s)


def test_a_router_that_was_said_to_take_no_lease_may_have_learnt_to() -> None:
    end = play(acquisition(permanent_only=True), ("add 5070 for ever", refused(402)), *granted(5070))
    assert end == PROVEN


def test_402_for_every_lease_is_a_full_table_and_no_other_port_is_tried() -> None:
    end = play(acquisition(), ("add 5070 for 3600", refused(402)), ("add 5070 for ever", refused(402)))
    gave_up(end, CONNECTION_FAULTS[402], "table of port mappings is full")
    assert isinstance(end, GaveUp)
    assert not end.permanent_only


def test_a_lease_that_was_learnt_holds_for_the_other_ports() -> None:
    end = play(
        acquisition(),
        ("add 5070 for 3600", refused(725)),
        ("add 5070 for ever", refused(501)),
        ("add 1024 for ever", OK),
        ("get 1024", entry(1024, None)),
    )
    assert end == Done(1024, None, proven=True, permanent_only=True)


def test_what_was_learnt_of_leases_is_told_by_a_failure_as_well() -> None:
    end = play(
        acquisition(external_port=5070),
        ("add 5070 for 3600", refused(725)),
        ("add 5070 for ever", refused(501)),
    )
    gave_up(end, CONNECTION_FAULTS[501])
    assert isinstance(end, GaveUp)
    assert end.permanent_only


# other refusals


@pytest.mark.parametrize("code", [501, 600, 601, 606, 403, 729, 899, 0])
def test_what_may_be_said_of_the_port_is_followed_by_another_port(code: int) -> None:
    end = play(acquisition(), ("add 5070 for 3600", refused(code)), *granted(1024))
    assert end == proven(1024)


@pytest.mark.parametrize("code", [501, 729, 899, 0])
def test_five_ports_are_tried_and_no_more(code: int) -> None:
    ports = (5070, 1024, 1025, 1026, 1027)
    end = play(acquisition(), *((f"add {port} for 3600", refused(code)) for port in ports))
    assert isinstance(end, GaveUp)
    assert type(end.error) is type(refused(code))
    assert "; 4 other ports were refused as well: X was refused: " in str(end.error)


@pytest.mark.parametrize("code", [606, 403])
def test_a_host_that_may_open_no_port_asks_for_one_other_only(code: int) -> None:
    end = play(acquisition(), ("add 5070 for 3600", refused(code)), ("add 1024 for 3600", refused(code)))
    gave_up(end, CONNECTION_FAULTS[code], "allow this device")


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("code", [401, 602, 603, 604, 605, 704, 715, 716, 724, 726, 727, 728, 732])
def test_what_is_not_said_of_the_port_is_the_end(code: int, version: int) -> None:
    end = play(acquisition(version=version), ("add 5070 for 3600", refused(code)))
    gave_up(end, CONNECTION_FAULTS[code])


@pytest.mark.parametrize("code", sorted(CONNECTION_FAULTS.keys() - {402, 718, 725}))
def test_the_only_port_that_will_do_is_given_up_at_once_with_the_routers_error(code: int) -> None:
    error = refused(code)
    end = play(acquisition(external_port=5060, version=2), ("add 5060 for 3600", error))
    assert end == GaveUp(error, permanent_only=False)


def test_a_router_that_wants_equal_ports_and_has_none_free_says_both() -> None:
    end = play(acquisition(), ("add 5070 for 3600", refused(501)), ("add 1024 for 3600", refused(724)))
    gave_up(end, CONNECTION_FAULTS[724], "SamePortValuesRequired", "port 5070 was refused before", "501")


# AddAnyPortMapping


def test_a_version_2_service_chooses_another_port_itself() -> None:
    end = play(
        acquisition(version=2),
        *conflict(5070, entry(5070, client="192.168.1.30")),
        ("any 1024 for 3600", 40000),
        ("get 40000", entry(40000)),
    )
    assert end == proven(40000)


@pytest.mark.parametrize("shown", [refused(714), entry(40000, client="192.168.1.30")])
def test_the_port_that_a_service_chose_is_believed_when_it_is_shown(shown: Answer) -> None:
    end = play(
        acquisition(version=2),
        ("add 5070 for 3600", refused(729)),
        ("any 1024 for 3600", 40000),
        ("get 40000", shown),
        *granted(1025),
    )
    assert end == proven(1025)


@pytest.mark.parametrize("code", [401, 602])
def test_a_service_that_cannot_choose_is_asked_for_another_port(code: int) -> None:
    end = play(
        acquisition(version=2),
        ("add 5070 for 3600", refused(501)),
        ("any 1024 for 3600", refused(code)),
        *granted(1025),
    )
    assert end == proven(1025)


@pytest.mark.parametrize("error", [RESET, GARBAGE])
@pytest.mark.parametrize("answer", [refused(714), refused(401), RESET, GARBAGE, SILENCE])
def test_a_service_that_closes_the_connection_is_asked_for_another_port(
    error: NatToolsError, answer: NatToolsError
) -> None:
    end = play(
        acquisition(version=2),
        ("add 5070 for 3600", refused(501)),
        ("any 1024 for 3600", error),
        ("get 1024", answer),
        *granted(1025),
    )
    assert end == proven(1025)


@pytest.mark.parametrize("error", [RESET, GARBAGE, SILENCE])
def test_a_choice_whose_answer_was_lost_is_found_at_the_port_that_was_wished_for(
    error: NatToolsError,
) -> None:
    end = play(
        acquisition(version=2),
        ("add 5070 for 3600", refused(501)),
        ("any 1024 for 3600", error),
        ("get 1024", entry(1024)),
    )
    assert end == proven(1024)


def test_a_service_that_falls_silent_is_left_alone() -> None:
    end = play(
        acquisition(version=2),
        ("add 5070 for 3600", refused(501)),
        ("any 1024 for 3600", SILENCE),
        ("get 1024", SILENCE),
    )
    assert end == GaveUp(SILENCE, permanent_only=False)


@pytest.mark.parametrize("code", [501, 718, 729])
def test_a_service_that_finds_no_port_itself_is_asked_for_three_more(code: int) -> None:
    end = play(
        acquisition(version=2),
        ("add 5070 for 3600", refused(501)),
        ("any 1024 for 3600", refused(code)),
        *((f"add {port} for 3600", refused(501)) for port in (1025, 1026, 1027)),
    )
    gave_up(end, CONNECTION_FAULTS[501], "4 other ports")


def test_728_from_a_service_that_chooses_is_the_end() -> None:
    end = play(
        acquisition(version=2), ("add 5070 for 3600", refused(501)), ("any 1024 for 3600", refused(728))
    )
    gave_up(end, CONNECTION_FAULTS[728], "full", "port 5070 was refused before")


def test_a_service_that_chooses_may_take_no_leases() -> None:
    end = play(
        acquisition(version=2),
        ("add 5070 for 3600", refused(501)),
        ("any 1024 for 3600", refused(725)),
        ("any 1024 for ever", 1024),
        ("get 1024", entry(1024, None)),
    )
    assert end == Done(1024, None, proven=True, permanent_only=True)


# a success without a mapping, and a mapping without an answer


def test_a_success_without_a_mapping_is_followed_by_another_port() -> None:
    end = play(
        acquisition(),
        ("add 5070 for 3600", OK),
        ("get 5070", refused(714)),
        ("add 1024 for 3600", OK),
        ("get 1024", entry(1024, client="192.168.1.30")),
        *granted(1025),
    )
    assert end == proven(1025)


def test_a_router_that_says_yes_and_never_does_it_is_found_out() -> None:
    ports = (5070, 1024, 1025, 1026, 1027)
    end = play(
        acquisition(),
        *(step for port in ports for step in ((f"add {port} for 3600", OK), (f"get {port}", refused(714)))),
    )
    gave_up(end, CONNECTION_FAULTS[714], "said that it mapped UDP port 5070, but shows no such mapping")


def test_the_only_port_that_will_do_must_be_shown_as_well() -> None:
    end = play(acquisition(external_port=5060), ("add 5060 for 3600", OK), ("get 5060", refused(714)))
    gave_up(end, CONNECTION_FAULTS[714], "said that it mapped UDP port 5060")


@pytest.mark.parametrize("error", [SILENCE, RESET, GARBAGE])
def test_a_mapping_that_was_made_without_an_answer_is_found(error: NatToolsError) -> None:
    end = play(acquisition(), ("add 5070 for 3600", error), ("get 5070", entry(5070)))
    assert end == PROVEN


@pytest.mark.parametrize("error", [SILENCE, RESET, GARBAGE])
@pytest.mark.parametrize("answer", [refused(714), refused(401)])
def test_a_mapping_that_was_not_made_is_asked_for_once_more(error: NatToolsError, answer: UpnpError) -> None:
    end = play(acquisition(), ("add 5070 for 3600", error), ("get 5070", answer), *granted(5070))
    assert end == PROVEN


@pytest.mark.parametrize("error", [SILENCE, RESET, GARBAGE])
def test_a_mapping_is_asked_for_twice_and_no_more(error: NatToolsError) -> None:
    end = play(acquisition(version=2), *[("add 5070 for 3600", error), ("get 5070", refused(714))] * 2)
    assert end == GaveUp(error, permanent_only=False)


@pytest.mark.parametrize("answer", [SILENCE, RESET, GARBAGE])
def test_a_router_that_answers_nothing_is_left_alone(answer: NatToolsError) -> None:
    end = play(acquisition(version=2), ("add 5070 for 3600", SILENCE), ("get 5070", answer))
    assert end == GaveUp(SILENCE, permanent_only=False)


def test_a_first_request_that_is_carried_out_late_is_no_conflict() -> None:
    end = play(
        acquisition(),
        ("add 5070 for 3600", SILENCE),
        ("get 5070", refused(714)),
        *conflict(5070, entry(5070, 3590)),
    )
    assert end == proven(5070, 3590)


def test_a_port_that_turns_out_to_be_somebody_elses_after_a_silence_is_passed_over() -> None:
    end = play(
        acquisition(),
        ("add 5070 for 3600", SILENCE),
        ("get 5070", entry(5070, client="192.168.1.30")),
        *granted(1024),
    )
    assert end == proven(1024)


def test_another_error_of_the_connection_is_the_end() -> None:
    error = TransportError("connection refused")
    end = play(acquisition(version=2), ("add 5070 for 3600", error))
    assert end == GaveUp(error, permanent_only=False)
