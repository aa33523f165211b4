"""What holds of the media of calls in any history: nobody is led past the relay, at last nothing is open."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from nattools.endpoint import AddressClass, Endpoint
from nattools.errors import DecodeError
from nattools.session.offers import is_relayed
from nattools.session.relay import Side
from nattools.sip.message import SipMessage
from nattools.sip.sdp import SessionDescription
from tests.unit.session.media_desk import HOLD_TIMEOUT_S, MediaDesk, sdp
from tests.unit.session.proxy_desk import ALICE, BOB, BOB_TARGET, CAROL, CAROL_TARGET, request

AUDIO, VIDEO = "m=audio 4000 RTP/AVP 0 101", "m=video 4002 RTP/AVP 96"
BODIES = (
    b"",
    sdp(),
    sdp(AUDIO, VIDEO),
    sdp(AUDIO, "m=video 0 RTP/AVP 96", version=2),
    sdp("m=audio 0 RTP/AVP 0", version=2),
    sdp(AUDIO, "a=sendonly", version=3),
    sdp(AUDIO, ip="0.0.0.0", version=3),
    sdp(AUDIO, "a=rtcp-mux", "a=candidate:1 1 UDP 1 192.168.0.108 4000 typ host", VIDEO, "c=IN IP4 10.1.1.1"),
    sdp("m=image 4000 udptl t38", "m=message 5000 TCP/MSRP *"),
    sdp("m=audio 30000 RTP/AVP 0", ip="203.0.113.7"),
    sdp("m=audio 30002 RTP/AVP 0", "m=video 30006 RTP/AVP 96", ip="203.0.113.7"),
    b"v=0\r\nm=audio\r\n",
)
CODES = (180, 183, 200, 200, 200, 407, 486, 491, 603)
METHODS = ("INVITE", "INVITE", "UPDATE", "PRACK", "ACK", "BYE")
WAITS_S = (0.1, 1.0, 40.0, 100.0)

steps = st.tuples(
    st.sampled_from(
        ("invite", "respond", "respond", "respond", "within", "within", "cancel", "again", "wait")
    ),
    st.integers(0, 1000),
    st.integers(0, len(BODIES) - 1),
    st.integers(0, 1000),
)


@dataclass
class History:
    """A call or several, all with one Call-ID, and everything that was ever said."""

    desk: MediaDesk
    requests: list[tuple[SipMessage, Endpoint]] = field(default_factory=list)
    """Those that have come to phones, and to whom."""
    said: list[tuple[bytes, Endpoint]] = field(default_factory=list)
    invites: list[bytes] = field(default_factory=list)
    number: int = 0

    def step(self, kind: str, first: int, body: int, second: int) -> None:
        self.number += 1
        if kind == "wait":
            self.look(self.desk.pass_time(WAITS_S[first % len(WAITS_S)], step_s=5.0))
        elif kind == "invite":
            self.invites.append(f"SIP/2.0/UDP {ALICE};branch=z9hG4bKh{self.number}".encode())
            via = [self.invites[-1].decode()]
            self.say(request(via=via, body=BODIES[body], cseq=self.number), ALICE)
        elif kind == "cancel" and self.invites:
            at = first % len(self.invites)
            self.say(request("CANCEL", via=[self.invites[at].decode()], cseq=at + 1), ALICE)
        elif kind == "again" and self.said:
            self.say(*self.said[first % len(self.said)])
        elif kind == "respond" and self.requests:
            received, phone = self.requests[first % len(self.requests)]
            if received.method != "ACK":
                code = CODES[second % len(CODES)]
                tag = "b" if phone == BOB else "c"
                tag += "2" if second % 7 == 0 else ""
                self.look(self.desk.says(received, code, BODIES[body], source=phone, tag=tag))
        elif kind == "within":
            tag = ("b", "c", "b2")[second % 3]
            method = METHODS[first % len(METHODS)]
            by_bob = second % 2 == 0
            sent = self.desk.within(method, BODIES[body], cseq=self.number, by_bob=by_bob, tags=("a", tag))
            self.look(sent)

    def say(self, data: bytes, source: Endpoint) -> None:
        self.said.append((data, source))
        self.look(self.desk.give(data, source))

    def look(self, sent: Iterable[SipMessage]) -> None:
        """Look at what leaves."""
        ours = {stream.ports(side).rtp for stream in self.desk.engine.streams for side in Side}
        for message in sent:
            if message.is_request and message.method not in ("CANCEL", "ACK"):
                phone = CAROL if b"carol" in message.data[: message.data.index(b"\r\n")] else BOB
                self.requests.append((message, phone))
            if (message.status_code or 0) >= 300 or message.method == "BYE":
                continue  # a refusal describes what might be had (RFC 3261 §21.4.26), and nobody's socket
            try:
                description = SessionDescription.parse(message.body)
            except DecodeError:
                continue
            for media in description.media:
                if not is_relayed(media):
                    continue
                assert media.endpoint is not None
                if media.endpoint.address_class is not AddressClass.UNSPECIFIED:
                    assert media.endpoint in ours, message.body
                assert not media.candidates


@settings(max_examples=150, deadline=None)
@given(st.lists(steps, max_size=25))
def test_nobody_is_led_past_the_relay_and_in_the_end_nothing_is_open(
    history: list[tuple[str, int, int, int]],
) -> None:
    with MediaDesk(BOB_TARGET, CAROL_TARGET) as desk:
        so_far = History(desk)
        so_far.step("invite", 0, 1, 0)
        for step in history:
            so_far.step(*step)
        so_far.look(desk.pass_time(HOLD_TIMEOUT_S + 1000, step_s=50.0))
        assert not desk.engine.open
        assert desk.proxy.timeout_at() is None


@settings(max_examples=50, deadline=None)
@given(st.lists(steps, max_size=25))
def test_whenever_it_is_closed_everything_is_closed(history: list[tuple[str, int, int, int]]) -> None:
    with MediaDesk(BOB_TARGET, CAROL_TARGET) as desk:
        so_far = History(desk)
        for step in history:
            so_far.step(*step)
        desk.runner.run(desk.media.close())
        assert not desk.engine.open
