"""What is seen of calls in the messages that pass."""

from __future__ import annotations

import pytest

from nattools.endpoint import Endpoint
from nattools.sip import direct
from nattools.sip.direct import Calls, Direct, Ended
from tests.unit.blocking.phones import request, response, sdp

ME, PEER = Endpoint.of("192.168.0.111", 5060), Endpoint.of("198.51.100.7", 5070)
CALL = b"a84b4c76e66710"
INVITE = request("INVITE", ME, body=sdp(ME.with_port(9000)))
FROM_PEER = request("INVITE", PEER)
PROXY = b"Record-Route: <sip:203.0.113.20;lr>\r\n"


def answer(status: str, *, contact: Endpoint = PEER, proxy: bool = False) -> bytes:
    """A response to an INVITE; with `proxy` one has stayed in the path."""
    data = response(INVITE, status, to_tag="314159", contact=f"sip:{contact}")
    return data.replace(b"Call-ID:", PROXY + b"Call-ID:") if proxy else data


@pytest.mark.parametrize("is_incoming", [True, False])
@pytest.mark.parametrize(
    "message", [request("BYE", ME), answer("486 Busy Here"), answer("302 Moved"), answer("603 Decline")]
)
def test_a_call_is_over_by_bye_or_refusal(message: bytes, is_incoming: bool) -> None:
    assert Calls().passed(message, is_incoming=is_incoming) == Ended(CALL)


@pytest.mark.parametrize("status", ["401 Unauthorized", "407 Proxy", "422 Too Small", "491 Pending"])
def test_a_call_that_will_be_tried_again_is_not_over(status: str) -> None:
    assert Calls().passed(answer(status), is_incoming=True) is None


def test_a_call_goes_on_when_a_later_invite_in_it_is_refused() -> None:
    seen = Calls()
    for message in (answer("200 OK", proxy=True), answer("488 Not Acceptable Here")):
        assert seen.passed(message, is_incoming=True) is None
    assert seen.passed(request("BYE", ME), is_incoming=False) == Ended(CALL)
    assert seen.passed(answer("488 Not Acceptable Here"), is_incoming=True) == Ended(CALL)


@pytest.mark.parametrize("method", ["REGISTER", "OPTIONS", "CANCEL", "ACK"])
def test_other_requests_and_their_answers_say_nothing(method: str) -> None:
    both = request(method, ME), response(request(method, ME), "404 Not Found")
    assert [Calls().passed(message, is_incoming=True) for message in both] == [None, None]


@pytest.mark.parametrize("status", ["180 Ringing", "200 OK"])
def test_without_a_proxy_in_the_path_whoever_was_called_sends_to_the_phone(status: str) -> None:
    assert Calls().passed(answer(status), is_incoming=True) == Direct(CALL, PEER)
    assert Calls().passed(answer(status, proxy=True), is_incoming=True) is None
    assert Calls().passed(answer("100 Trying"), is_incoming=True) is None


@pytest.mark.parametrize("status", ["180 Ringing", "200 OK"])
def test_so_does_a_caller_where_the_phone_did_not_tell_it_of_the_proxies(status: str) -> None:
    seen = Calls()
    assert seen.passed(FROM_PEER, is_incoming=True) is None
    assert seen.passed(answer(status, contact=ME, proxy=True), is_incoming=False) is None
    assert seen.passed(answer(status, contact=ME), is_incoming=False) == Direct(CALL, PEER)
    assert Calls().passed(answer(status, contact=ME), is_incoming=False) is None


def test_a_peer_that_is_a_name_cannot_be_sent_to() -> None:
    named = answer("200 OK").replace(str(PEER).encode(), b"bob.example.org")
    assert Calls().passed(named, is_incoming=True) is None


def test_callers_are_forgotten_the_oldest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "MOST_CALLS", 2)
    seen = Calls()
    invites = [request("INVITE", PEER, call_id=str(number)) for number in range(3)]
    for invite in (*invites, invites[1]):
        seen.passed(invite, is_incoming=True)
    answers = [response(invite, "200 OK", to_tag="1") for invite in invites]
    events = [seen.passed(message, is_incoming=False) for message in answers]
    assert events == [None, Direct(b"1", PEER), Direct(b"2", PEER)]


@pytest.mark.parametrize(
    "data", [b"", b"\r\n", b"SIP/2.0 200", b"INVITE", b"\x80" * 50, b"BYE x SIP/2.0\r\n\r\n"]
)
def test_what_is_no_sip_says_nothing(data: bytes) -> None:
    assert Calls().passed(data, is_incoming=True) in (None, Ended(b""))
