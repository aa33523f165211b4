"""What an ALG hides of itself from the outside, and puts back inside."""

from __future__ import annotations

import pytest

from nattools.endpoint import Endpoint
from nattools.session.disguise import Disguise
from nattools.session.flows import Flows, Listener
from nattools.sip.message import SipMessage

INSIDE, LOCAL = Endpoint.of("127.0.0.1", 5060), Endpoint.of("192.168.0.108", 5062)
OLD, PUBLIC = Endpoint.of("203.0.113.1", 5062), Endpoint.of("203.0.113.77", 5062)
MEDIA = {Endpoint.of("203.0.113.77", 30000 + n): Endpoint.of("192.168.0.108", 31000 + n) for n in (0, 1)}
OWN = [f"<sip:{LOCAL};lr>", f"<sip:{INSIDE};lr>"]
KAMAILIO, OTHER = "<sip:203.0.113.20;lr>", "<sip:198.51.100.7;lr>"
SERVER_BRANCH, OUR_BRANCH = "z9hG4bKserver", "z9hG4bKour"


@pytest.fixture
def disguise() -> Disguise:
    flows = Flows([Listener("inside", "UDP", INSIDE), Listener("outside", "UDP", LOCAL)])
    made = Disguise(LOCAL, flows.is_own, MEDIA.get)
    made.publish(OLD)
    made.publish(PUBLIC)
    return made


def message(
    start: str,
    *headers: str,
    routes: list[str] | None = None,
    branch: str = OUR_BRANCH,
    method: str = "INVITE",
) -> bytes:
    lines = [
        start,
        f"Via: SIP/2.0/UDP {LOCAL};branch={branch}",
        "Via: SIP/2.0/UDP 192.168.0.7;branch=z9hG4bKphone",
        *(f"Record-Route: {value}" for value in routes or []),
        "From: <sip:alice@example.org>;tag=a",
        "To: <sip:bob@example.org>",
        "Call-ID: one",
        f"CSeq: 1 {method}",
        *headers,
        "Content-Length: 0",
    ]
    return "\r\n".join([*lines, "", ""]).encode()


def invite(*headers: str, routes: list[str] | None = None, branch: str = OUR_BRANCH) -> bytes:
    return message("INVITE sip:bob@203.0.113.20 SIP/2.0", *headers, routes=routes, branch=branch)


def routes_in(data: bytes) -> list[str]:
    sip = SipMessage.parse(data)
    return [sip.data[slice(*span)].decode() for span in sip.values("record-route")]


@pytest.mark.parametrize("status", ["183 Session Progress", "200 OK"])
@pytest.mark.parametrize("theirs", [[], [OTHER, KAMAILIO]])
def test_outside_sees_no_route_of_ours_and_inside_the_answer_has_it(
    disguise: Disguise, theirs: list[str], status: str
) -> None:
    assert routes_in(disguise.hide(invite(routes=OWN))) == []
    answer = message(f"SIP/2.0 {status}", routes=theirs)
    assert routes_in(disguise.restore(answer)) == [*theirs, *OWN]
    assert routes_in(disguise.restore(answer)) == [*theirs, *OWN]  # sent again


@pytest.mark.parametrize("joined", [False, True])
def test_proxies_before_and_beyond_keep_their_places_around_ours(disguise: Disguise, joined: bool) -> None:
    def written(*values: str) -> list[str]:
        return [", ".join(values)] if joined else list(values)

    assert routes_in(disguise.hide(invite(routes=written(*OWN, OTHER)))) == [OTHER]
    answer = message("SIP/2.0 200 OK", routes=written(KAMAILIO, OTHER))
    assert routes_in(disguise.restore(answer)) == [KAMAILIO, *OWN, OTHER]
    ours = message("SIP/2.0 200 OK", routes=written(OTHER, *OWN, KAMAILIO), branch=SERVER_BRANCH)
    assert routes_in(disguise.hide(ours)) == [OTHER, KAMAILIO]


def test_an_answer_that_has_lost_its_route_has_ours_at_least(disguise: Disguise) -> None:
    disguise.hide(invite(routes=[*OWN, OTHER, KAMAILIO]))
    assert routes_in(disguise.restore(message("SIP/2.0 200 OK", routes=[KAMAILIO]))) == [*OWN, KAMAILIO]
    assert routes_in(disguise.restore(message("SIP/2.0 200 OK"))) == OWN


@pytest.mark.parametrize("joined", [False, True])
def test_our_answer_keeps_the_routes_of_others(disguise: Disguise, joined: bool) -> None:
    routes = [*OWN, KAMAILIO, OTHER]
    answer = message("SIP/2.0 200 OK", routes=[", ".join(routes)] if joined else routes, branch=SERVER_BRANCH)
    assert routes_in(disguise.hide(answer)) == [KAMAILIO, OTHER]


@pytest.mark.parametrize(
    "data",
    [
        invite(routes=[KAMAILIO]),
        message("SIP/2.0 200 OK", routes=[KAMAILIO, OTHER], branch=SERVER_BRANCH),
        message("BYE sip:bob@198.51.100.9 SIP/2.0", method="BYE"),
        invite(routes=["<sip:[broken"]),
        b"\r\n\r\n",
        b"\x80\x00rtp",
        b"",
    ],
)
def test_what_has_nothing_of_ours_leaves_byte_for_byte(disguise: Disguise, data: bytes) -> None:
    assert disguise.hide(data) == data


@pytest.mark.parametrize(
    "answer",
    [
        message("SIP/2.0 200 OK", branch="z9hG4bKelse"),
        message("SIP/2.0 100 Trying"),
        message("SIP/2.0 486 Busy Here"),
        invite(branch=OUR_BRANCH),
        b"SIP/2.0 200 OK\r\nVia: nonsense\r\n\r\n",
        b"nothing",
    ],
)
def test_nothing_is_put_into_what_begins_no_dialog_of_ours(disguise: Disguise, answer: bytes) -> None:
    disguise.hide(invite(routes=OWN))
    assert disguise.restore(answer) == answer


def test_what_is_remembered_is_limited(disguise: Disguise, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nattools.session.disguise._MOST_HIDDEN", 2)
    for number in range(3):
        disguise.hide(invite(routes=OWN, branch=f"z9hG4bK{number}"))
    found = [
        routes_in(disguise.restore(message("SIP/2.0 200 OK", branch=f"z9hG4bK{number}")))
        for number in range(3)
    ]
    assert found == [[], OWN, OWN]


@pytest.mark.parametrize("public", [OLD, PUBLIC])
def test_a_phone_knows_another_one_beside_it_by_where_the_proxy_is(
    disguise: Disguise, public: Endpoint
) -> None:
    came = invite(f'Contact: "Bob" <sip:bob@{public};natgate=x>;q=0.5', "Contact: <sip:bob@198.51.100.9>")
    localised = disguise.localise(came)
    assert localised == came.replace(str(public).encode(), str(LOCAL).encode())


@pytest.mark.parametrize(
    "data",
    [
        invite("Contact: <sip:bob@198.51.100.9>", "Contact: <tel:+34555>"),
        message("SIP/2.0 200 OK", f"Contact: <sip:a@{OLD}>, <sip:a@{PUBLIC}>", method="REGISTER"),
        message("REGISTER sip:example.org SIP/2.0", "Contact: *", method="REGISTER"),
        invite("Contact: *"),
        invite("Contact: <sip:"),
        b"\r\n",
    ],
)
def test_contacts_of_others_and_of_registrations_stay(disguise: Disguise, data: bytes) -> None:
    assert disguise.localise(data) == data


@pytest.mark.parametrize("there", [LOCAL, OLD, PUBLIC])
def test_a_request_to_a_phone_beside_it_leads_to_where_the_alg_is_now(
    disguise: Disguise, there: Endpoint
) -> None:
    bye = message(f"BYE sip:bob@{there};natgate=x SIP/2.0", method="BYE")
    expected = message(f"BYE sip:bob@{PUBLIC};natgate=x SIP/2.0", method="BYE")
    assert disguise.address(bye) == expected


@pytest.mark.parametrize(
    "data",
    [
        message("BYE sip:bob@198.51.100.9 SIP/2.0", method="BYE"),
        message("BYE sip:bob@192.168.0.108 SIP/2.0", method="BYE"),
        message("MESSAGE tel:+34555 SIP/2.0", method="MESSAGE"),
        message("SIP/2.0 200 OK"),
        b"BYE sip: SIP/2.0\r\n\r\n",
        b"",
    ],
)
def test_all_other_requests_lead_where_they_lead(disguise: Disguise, data: bytes) -> None:
    assert disguise.address(data) == data


def test_before_anything_is_public_nothing_is_exchanged() -> None:
    disguise = Disguise(LOCAL, lambda _host, _port: False, MEDIA.get)
    for data in (invite(f"Contact: <sip:a@{LOCAL}>"), message(f"BYE sip:a@{LOCAL} SIP/2.0", method="BYE")):
        assert disguise.localise(data) == disguise.address(data) == disguise.hide(data) == data


SDP = """v=0
o=- 1 1 IN IP4 {0}
s=-
c=IN IP4 {0}
t=0 0
m=audio {1} RTP/AVP 0
"""


def described(address: str, port: int, *, kind: str = "application/sdp") -> bytes:
    sdp = SDP.format(address, port)
    head = invite(f"Content-Type: {kind}").replace(b"Content-Length: 0", b"Content-Length: %d" % len(sdp))
    return head + sdp.encode()


def test_media_of_a_phone_beside_it_is_where_the_relay_has_it(disguise: Disguise) -> None:
    came = disguise.localise(described("203.0.113.77", 30000))
    body = SDP.format("192.168.0.108", 31000).replace(
        "o=- 1 1 IN IP4 192.168.0.108", "o=- 1 1 IN IP4 203.0.113.77"
    )
    assert SipMessage.parse(came).body.decode() == body
    assert not SipMessage.parse(came).length_error


@pytest.mark.parametrize(
    "data",
    [
        described("203.0.113.77", 30002),
        described("203.0.113.10", 30000),
        described("203.0.113.77", 30000, kind="text/plain"),
        invite("Content-Type: application/sdp").replace(b"h: 0", b"h: 5") + b"m=oh!",
    ],
)
def test_media_of_others_stays_where_it_is(disguise: Disguise, data: bytes) -> None:
    assert disguise.localise(data) == data
