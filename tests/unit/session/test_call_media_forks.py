"""Several callees behind one branch: another proxy forks, and one session has all their answers."""

from __future__ import annotations

from nattools.endpoint import Endpoint
from nattools.session.relay import Side
from tests.unit.session.media_desk import MediaDesk, sdp, told

AUDIO = "m=audio 4000 RTP/AVP 0 101"
VIDEO = "m=video 4002 RTP/AVP 96"
BOBS = sdp("m=audio 6000 RTP/AVP 8 101", ip="192.168.1.9")


def test_the_fork_that_answers_without_a_description_is_heard_by_the_one_that_it_gave_before() -> None:
    with MediaDesk() as desk:
        (invite,) = desk.invites(sdp())
        desk.says(invite, 183, BOBS, tag="b1", headers=[("Require", "100rel"), ("RSeq", "1")])
        desk.says(invite, 183, sdp("m=audio 7000 RTP/AVP 0", ip="192.168.3.3"), tag="b2")
        desk.says(invite, 200, tag="b1")
        (stream,) = desk.engine.open
        assert stream.latest(Side.B).rtp == Endpoint.of("192.168.1.9", 6000)


def test_of_two_callees_that_have_offered_the_one_that_answers_is_heard() -> None:
    with MediaDesk() as desk:
        (invite,) = desk.invites()
        reliably = [("Require", "100rel"), ("RSeq", "1")]
        for tag, port, cseq in (("b1", 6000, 2), ("b2", 7000, 3)):
            desk.says(invite, 183, sdp(f"m=audio {port} RTP/AVP 0"), tag=tag, headers=reliably)
            desk.within("PRACK", sdp(), cseq=cseq, tags=("a", tag))
        desk.says(invite, 200, tag="b1")
        (stream,) = desk.engine.open
        assert stream.latest(Side.B).rtp == Endpoint.of("192.168.0.108", 6000)


def test_of_two_forks_that_answer_the_first_is_heard_until_it_is_hung_up() -> None:
    with MediaDesk() as desk:
        (invite,) = desk.invites(sdp(AUDIO, VIDEO))
        desk.says(invite, 200, sdp("m=audio 6000 RTP/AVP 0", VIDEO), tag="b1")
        (ok,) = desk.says(invite, 200, sdp("m=audio 7000 RTP/AVP 0", "m=video 0 RTP/AVP 96"), tag="b2")
        first = desk.engine.open[0]
        assert told(ok)[0] == first.ports(Side.A).rtp
        assert first.latest(Side.B).rtp == Endpoint.of("192.168.0.108", 6000)
        (bye,) = desk.within("BYE", tags=("a", "b1"))
        desk.says(bye, tag="b1")
        assert desk.engine.open == [first]
        assert first.latest(Side.B).rtp == Endpoint.of("192.168.0.108", 7000)
        (bye,) = desk.within("BYE", tags=("a", "b2"), cseq=3)
        desk.says(bye, tag="b2")
        assert not desk.engine.open
