"""The o= line over a session: its version rises with what the peer must notice, its address never moves."""

from __future__ import annotations

from ipaddress import ip_address

from nattools.sip.origins import MOST_SESSIONS, Origins

KEY = (b"call", b"session")
FIRST, SECOND = ip_address("203.0.113.1"), ip_address("203.0.113.2")


def versions(*descriptions: tuple[int, str]) -> list[int]:
    """The versions that are sent of descriptions with these versions and places of media."""
    origins = Origins()
    return [
        origins.next(KEY, version, sent, None, message=number)[0]
        for number, (version, sent) in enumerate(descriptions)
    ]


def test_a_description_that_is_sent_again_keeps_its_version() -> None:
    assert versions((5, "a"), (5, "a"), (5, "a")) == [5, 5, 5]


def test_the_version_rises_by_one_where_only_the_places_have_changed() -> None:
    assert versions((5, "a"), (5, "b"), (5, "b"), (5, "a")) == [5, 6, 6, 7]


def test_a_phone_that_raises_it_by_itself_is_left_alone() -> None:
    assert versions((5, "a"), (6, "b"), (9, "c"), (9, "c")) == [5, 6, 9, 9]


def test_later_versions_of_the_phone_stay_ahead_by_as_much() -> None:
    assert versions((5, "a"), (5, "b"), (6, "b"), (7, "c"), (7, "d"), (8, "d")) == [5, 6, 7, 8, 9, 10]


def test_a_phone_that_goes_back_is_still_noticed_when_its_places_change() -> None:
    assert versions((5, "a"), (3, "b"), (3, "b"), (4, "c")) == [5, 6, 6, 7]


def test_going_back_to_a_description_of_before_is_noticed_as_well() -> None:
    assert versions((5, "a"), (6, "a"), (5, "a"), (6, "a"), (7, "a")) == [5, 6, 7, 8, 9]


def test_a_message_that_is_sent_again_keeps_its_version() -> None:
    origins = Origins()

    def sent(message: str, version: int, where: str) -> int:
        return origins.next(KEY, version, where, None, message=message)[0]

    assert [sent("2 INVITE", 1, "a"), sent("3 INVITE", 2, "a")] == [1, 2]
    assert [sent("2 INVITE", 1, "a"), sent("3 INVITE", 2, "a")] == [1, 2]
    assert [sent("3 INVITE", 2, "b"), sent("2 INVITE", 1, "b")] == [3, 4]
    assert [sent("3 INVITE", 2, "b"), sent("2 INVITE", 1, "b")] == [3, 4]
    for number in range(4, 100):
        sent(f"{number} INVITE", number, "b")
    assert sent("99 INVITE", 99, "b") == 101
    assert sent("2 INVITE", 1, "b") == 102


def test_the_address_is_the_first_that_was_sent() -> None:
    origins = Origins()
    assert origins.next(KEY, 1, "a", None, message=0) == (1, None)
    assert origins.next(KEY, 1, "a", FIRST, message=0) == (1, FIRST)
    assert origins.next(KEY, 2, "b", SECOND, message=0) == (2, FIRST)
    assert origins.next(KEY, 3, "c", None, message=0) == (3, FIRST)


def test_sessions_do_not_know_each_other() -> None:
    origins = Origins()
    origins.next(KEY, 1, "a", FIRST, message=0)
    assert origins.next((b"call", b"other"), 1, "b", SECOND, message=0) == (1, SECOND)
    assert origins.next((b"other", b"session"), 1, "b", SECOND, message=0) == (1, SECOND)


def test_the_session_unused_for_longest_is_forgotten_first() -> None:
    origins = Origins()
    for number in range(MOST_SESSIONS):
        origins.next((b"call", b"%d" % number), 1, "a", FIRST, message=0)
    origins.next((b"call", b"0"), 1, "a", FIRST, message=0)
    origins.next((b"call", b"new"), 1, "a", FIRST, message=0)
    assert (b"call", b"0") in origins
    assert (b"call", b"1") not in origins
    assert (b"call", b"2") in origins
