"""A server is silent only where it has said nothing since it was asked."""

from __future__ import annotations

from nattools.endpoint import Endpoint
from nattools.session.reachability import Reachability

SERVER = Endpoint.of("203.0.113.20", 5060)
OTHER = Endpoint.of("203.0.113.21", 5060)


def watched(*endpoints: Endpoint) -> Reachability:
    found = Reachability()
    found.watch(endpoints)
    return found


def test_one_that_never_answered_is_silent_since_it_was_given_up() -> None:
    server = watched(SERVER)
    assert server.silent_since(SERVER) is None
    server.unanswered(SERVER, sent_at=0.0, now=32.0)
    server.unanswered(SERVER, sent_at=1.0, now=33.0)
    assert server.silent_since(SERVER) == 32.0
    server.heard(SERVER, now=40.0)
    assert server.silent_since(SERVER) is None


def test_one_that_answered_others_meanwhile_only_dropped_a_request() -> None:
    server = watched(SERVER)
    server.heard(SERVER, now=10.0)
    server.unanswered(SERVER, sent_at=5.0, now=37.0)
    assert server.silent_since(SERVER) is None
    server.unanswered(SERVER, sent_at=11.0, now=43.0)
    assert server.silent_since(SERVER) == 43.0


def test_one_that_cannot_be_sent_to_is_silent_at_once() -> None:
    server = watched(SERVER)
    server.heard(SERVER, now=10.0)
    server.unreachable(SERVER, now=10.0)
    assert server.silent_since(SERVER) == 10.0


def test_only_who_is_watched_is_remembered() -> None:
    server = watched(SERVER)
    server.unanswered(OTHER, sent_at=0.0, now=32.0)
    server.unreachable(OTHER, now=32.0)
    assert server.silent_since(OTHER) is None
    server.unreachable(SERVER, now=1.0)
    server.watch([SERVER, OTHER])
    assert server.silent_since(SERVER) == 1.0
    server.watch([OTHER])
    assert server.silent_since(SERVER) is None
