"""examples/softphone.py against a registrar and peer whose every message is the test's, on loopback."""

from __future__ import annotations

import os
import secrets
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import pytest

from nattools.endpoint import Endpoint
from nattools.sip.digest import DigestServer, Verdict
from nattools.sip.message import SipMessage, compose_request, compose_response
from nattools.sip.sdp import Media, SessionDescription, compose_sdp
from tests.unit.cli.test_natcheck import stund

EXAMPLES = Path(__file__).parents[1] / "examples"
PROGRAM = EXAMPLES / "softphone.py"
PATIENCE_S = 20.0
QUIET_S = 0.2
MOST_ANSWERS = 1000
PASSWORD = "sesame"
SDP = ("Content-Type", "application/sdp")


def bound() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    sock.settimeout(PATIENCE_S)
    return sock


def endpoint(sock: socket.socket) -> Endpoint:
    return Endpoint.of(*sock.getsockname())


def hears(sock: socket.socket) -> bool:
    """Whether the first packet, which is empty and opens the way, is followed by 20 ms of PCMU."""
    return sock.recv(2048) == b"" and len(sock.recv(2048)) == 12 + 160


def has_silence(sock: socket.socket) -> bool:
    """Whether nothing comes any more, once what was on its way is here."""
    deadline = time.monotonic() + PATIENCE_S
    sock.settimeout(QUIET_S)
    try:
        while time.monotonic() < deadline:
            sock.recv(2048)
    except TimeoutError:
        return True
    finally:
        sock.settimeout(PATIENCE_S)
    return False


@dataclass
class Invitation:
    """A call of the peer's to the phone."""

    call_id: str = field(default_factory=lambda: secrets.token_hex(8))
    branch: str = field(default_factory=lambda: f"z9hG4bK{secrets.token_hex(8)}")
    tag: str = ""
    """The phone's, once it has answered."""


class Peer:
    """Registrar, proxy and friend in one socket, and the phone as a process."""

    def __init__(self, process: subprocess.Popen[str], sip: socket.socket, rtp: socket.socket) -> None:
        self.process = process
        self.sip, self.rtp = sip, rtp
        self.phone = Endpoint.parse("127.0.0.1:9")
        self._cseq = count(1)

    def tell(self, line: str) -> None:
        """Write a line to the phone."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def told(self, word: str) -> str:
        """The next line of the phone that begins with a word."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(word):
                return line.rstrip()
        raise AssertionError(f"it ended, and never said {word}")

    def send(self, data: bytes) -> None:
        self.sip.sendto(data, (str(self.phone.ip), self.phone.port))

    def next(self) -> SipMessage:
        """The next message of the phone, keepalives apart."""
        while True:
            data, address = self.sip.recvfrom(4096)
            if data.strip():
                self.phone = Endpoint.of(*address)
                return SipMessage.parse(data)

    def request(self, method: str) -> SipMessage:
        """The next request of a method; responses and other requests before it are passed over."""
        while not ((message := self.next()).is_request and message.method == method):
            pass
        return message

    def response(self, status: int, method: str) -> SipMessage:
        """The next response with that status; others before it are passed over."""
        while True:
            message = self.next()
            if (message.status_code, message.method) == (status, method):
                return message

    def respond(
        self, request: SipMessage, status: int, *headers: tuple[str, str | bytes], body: bytes = b""
    ) -> None:
        extra = [("Contact", f"<sip:bob@{endpoint(self.sip)}>"), *headers, *([SDP] if body else [])]
        self.send(compose_response(request, status, "Said", extra, body, to_tag="theirs"))

    def register(self, *, expires: str = "300") -> SipMessage:
        """Grant what is asked for."""
        request = self.request("REGISTER")
        contact = request.data[slice(*request.values("contact")[0])].decode().partition(";expires")[0]
        self.send(
            compose_response(request, 200, "OK", [("Contact", f"{contact};expires={expires}")], to_tag="r")
        )
        self.told("registered")
        return request

    def sdp(self, rtp: socket.socket | None = None, *, direction: str = "sendrecv") -> bytes:
        """Audio to one of our sockets."""
        where = endpoint(rtp or self.rtp)
        return compose_sdp(where, session_id=7, version=next(self._cseq), direction=direction)

    def ask(
        self, call: Invitation, method: str, *headers: tuple[str, str], body: bytes = b"", branch: str = ""
    ) -> bytes:
        """Send a request of the peer's, and return it."""
        number = next(self._cseq)
        data = compose_request(
            method,
            f"sip:alice@{self.phone}",
            [
                ("Via", f"SIP/2.0/UDP {endpoint(self.sip)};rport;branch={branch or f'z9hG4bK{number}'}"),
                ("From", "<sip:bob@127.0.0.1>;tag=theirs"),
                ("To", "<sip:alice@127.0.0.1>" + (f";tag={call.tag}" if call.tag else "")),
                ("Call-ID", call.call_id),
                ("CSeq", f"{number} {method}"),
                ("Contact", f"<sip:bob@{endpoint(self.sip)}>"),
                *headers,
                *([SDP] if body else []),
            ],
            body,
        )
        self.send(data)
        return data

    def acknowledge(self, call: Invitation, response: SipMessage) -> None:
        call.tag = (response.to_tag or b"").decode()
        assert response.cseq is not None
        held, self._cseq = self._cseq, iter([response.cseq[0]])  # type: ignore[assignment]  # for one
        self.ask(call, "ACK")
        self._cseq = held

    def talk(self, body: bytes = b"") -> tuple[Invitation, SipMessage]:
        """Call the phone, which answers; returns its answer as well."""
        call = Invitation()
        self.ask(call, "INVITE", body=body or self.sdp(), branch=call.branch)
        answer = self.response(200, "INVITE")
        self.acknowledge(call, answer)
        self.told("established")
        return call, answer

    def is_called(self) -> SipMessage:
        """Have the phone call, ring, and return the INVITE."""
        self.tell("call sip:bob@127.0.0.1")
        invite = self.request("INVITE")
        self.respond(invite, 180)
        return invite

    def ends(self) -> tuple[int, str]:
        """End the phone, and return its status and complaints."""
        self.tell("quit")
        self.respond(self.request("REGISTER"), 200)
        _, complaints = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, complaints


def media_of(message: SipMessage) -> tuple[Media, ...]:
    return SessionDescription.parse(message.body).media


def routes_of(message: SipMessage) -> list[bytes]:
    return [message.data[slice(*span)] for span in message.values("route")]


@contextmanager
def phone(*options: str, through: Sequence[str] = ()) -> Iterator[Peer]:
    with stund("127.0.0.1") as server, bound() as sip, bound() as rtp:
        words = {"SETTINGS": os.devnull, "METHODS": "open,stun", "STUN_SERVERS": server}
        with subprocess.Popen(
            [
                *(*through, sys.executable, "-W", "error", str(PROGRAM), "sip:alice@127.0.0.1"),
                *("--password", PASSWORD, "--proxy", str(endpoint(sip)), *options),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {f"NATTOOLS_{name}": value for name, value in words.items()},
        ) as process:
            try:
                yield Peer(process, sip, rtp)
            finally:
                process.kill()


@pytest.mark.parametrize("told_by", [signal.SIGINT, signal.SIGTERM])
def test_it_registers_with_its_password_again_where_an_answer_is_lost_and_unregisters(
    told_by: signal.Signals,
) -> None:
    server = DigestServer("127.0.0.1", entropy=secrets.token_bytes)
    with phone() as peer:
        first = peer.request("REGISTER")
        again = peer.request("REGISTER")
        assert again.data == first.data
        peer.respond(again, 401, *server.challenges(now=0))
        request = peer.request("REGISTER")
        while request.branch == first.branch:
            request = peer.request("REGISTER")
        assert server.verify(request, lambda _: PASSWORD, now=1).verdict is Verdict.ACCEPTED
        assert (first.cseq, request.cseq) == ((1, "REGISTER"), (2, "REGISTER"))
        assert request.call_id == first.call_id
        peer.respond(request, 200)
        peer.told(f"registered {peer.phone}")
        peer.process.send_signal(told_by)
        last = peer.request("REGISTER")
        assert [(c.uri and c.uri.endpoint(), c.params[0].value) for c in last.contacts] == [
            (peer.phone, b"0")
        ]
        peer.respond(last, 200)
        assert peer.process.communicate(timeout=PATIENCE_S) == (f"unregistered {peer.phone}\n", "")
        assert peer.process.returncode == 0


@pytest.mark.parametrize("status", [403, 401])
def test_whom_the_registrar_does_not_want_it_tells_so(status: int) -> None:
    server = DigestServer("127.0.0.1", entropy=secrets.token_bytes)
    with phone() as peer:
        challenges = server.challenges(now=0) if status == 401 else []
        for _ in range(2 if challenges else 1):
            peer.respond(peer.request("REGISTER"), status, *challenges)
        _, complaints = peer.process.communicate(timeout=PATIENCE_S)
        assert str(status) in complaints
        assert peer.process.returncode == 1


def test_when_nobody_reads_on_it_ends_as_by_ctrl_c() -> None:
    with phone() as peer:
        assert peer.process.stdout is not None
        assert peer.process.stderr is not None
        peer.process.stdout.close()
        peer.respond(peer.request("REGISTER"), 200)
        last = peer.request("REGISTER")
        assert b";expires=0\r\n" in last.data
        peer.respond(last, 200)
        assert (peer.process.wait(PATIENCE_S), peer.process.stderr.read()) == (0, "")


@pytest.mark.parametrize("stdin", ["<&-", "< /dev/null"])
def test_it_needs_nobody_to_tell_it_anything(stdin: str) -> None:
    with phone("--answer", "0", through=("sh", "-c", f'exec "$@" {stdin}', "sh")) as peer:
        peer.register()
        peer.talk()
        peer.process.send_signal(signal.SIGINT)
        peer.respond(peer.request("BYE"), 200)
        peer.respond(peer.request("REGISTER"), 200)
        _, complaints = peer.process.communicate(timeout=PATIENCE_S)
        assert (peer.process.returncode, complaints) == (0, "")


def test_lines_that_are_no_commands_are_no_end() -> None:
    with phone() as peer:
        peer.register()
        assert peer.process.stdin is not None
        os.write(peer.process.stdin.fileno(), b"x" * 200_000 + b"\n\xff\n")
        assert "\N{REPLACEMENT CHARACTER}" in peer.told("cannot \N{REPLACEMENT CHARACTER}")
        for whom in ("bob", "tel:+123", "sip:127.0.0.1"):
            peer.tell(f"call {whom}")
            assert repr(whom) in peer.told("cannot call:")
        assert peer.ends() == (0, "")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("tel:+123",), "is no address like sip:alice@example.org"),
        (("sip:alice@127.0.0.1", "--call", "bob"), "'bob' is not a URI"),
        (("sip:alice@127.0.0.1", "--proxy", "127.0.0.1:sip"), "'sip' is not a port"),
        (("sip:alice@127.0.0.1", "--play", os.devnull), "is no WAV file: it ends too soon"),
    ],
)
def test_wrong_words_are_told_before_anything_is_sent(words: tuple[str, ...], complaint: str) -> None:
    command = [sys.executable, "-W", "error", str(PROGRAM), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert complaint in done.stderr


def test_it_is_registered_for_longer_where_the_registrar_wants_that() -> None:
    with phone() as peer:
        peer.respond(peer.request("REGISTER"), 423, ("Min-Expires", "1800"))
        assert b";expires=1800" in peer.register(expires="1800").data


def test_an_invite_that_comes_again_is_the_same_call_and_its_answer_is_repeated_until_the_ack() -> None:
    with phone("--answer", "0") as peer:
        peer.register()
        call = Invitation()
        invite = peer.ask(call, "INVITE", body=peer.sdp(), branch=call.branch)
        peer.send(invite)
        first = peer.response(200, "INVITE")
        peer.send(invite)
        assert peer.response(200, "INVITE").data == first.data
        assert has_no_other_than(peer, first.data, seconds=0.7)  # T1 has passed
        peer.acknowledge(call, first)
        peer.told("established")
        assert hears(peer.rtp)
        peer.ask(Invitation(), "INVITE", body=peer.sdp())
        busy = peer.response(486, "INVITE")
        assert peer.response(486, "INVITE").data == busy.data
        peer.ask(call, "BYE")
        peer.response(200, "BYE")
        assert peer.told("ended") == "ended the peer hung up"
        assert has_silence(peer.rtp)
        peer.send(invite)
        assert peer.ends() == (0, "")


def has_no_other_than(peer: Peer, data: bytes, *, seconds: float) -> bool:
    """Whether a message is repeated within that time, and nothing else comes."""
    deadline, seen = time.monotonic() + seconds, []
    peer.sip.settimeout(seconds)
    try:
        while time.monotonic() < deadline:
            seen.append(peer.next().data)
    except TimeoutError:
        pass
    finally:
        peer.sip.settimeout(PATIENCE_S)
    return set(seen) == {data}


def test_a_caller_may_give_up() -> None:
    with phone() as peer:
        peer.register()
        call = Invitation()
        peer.ask(call, "INVITE", body=peer.sdp(), branch=call.branch)
        ringing = peer.response(180, "INVITE")
        peer.told("incoming")
        peer.ask(call, "CANCEL", branch="z9hG4bKofanother")
        peer.response(481, "CANCEL")
        peer.ask(call, "CANCEL", branch=call.branch)
        peer.response(200, "CANCEL")
        given_up = peer.response(487, "INVITE")
        assert given_up.to_tag == ringing.to_tag
        peer.acknowledge(call, given_up)
        assert peer.told("ended") == "ended the caller gave up"
        assert peer.ends() == (0, "")


def test_what_is_no_call_gets_its_answer() -> None:
    with phone("--answer", "0") as peer:
        peer.register()
        peer.ask(Invitation(), "OPTIONS")
        options = peer.response(200, "OPTIONS")
        assert b"INVITE" in options.value(options.header("allow"))
        via = options.top_via
        assert via is not None
        assert (via.rport, via.received) == (endpoint(peer.sip).port, endpoint(peer.sip).ip)
        peer.ask(Invitation(), "MESSAGE")
        peer.response(405, "MESSAGE")
        peer.ask(Invitation(tag="unknown"), "BYE")
        peer.response(481, "BYE")
        for noise in (
            b"",
            b"\r\n\r\n",
            b"\x00" * 40,
            b"INVITE sip:alice SIP/2.0\r\n\r\n",
            b"SIP/2.0 200 OK\r\n\r\n",
        ):
            peer.send(noise)
        peer.ask(Invitation(), "INVITE", ("Contact", '"'), body=peer.sdp())
        peer.response(400, "INVITE")
        peer.ask(Invitation(), "INVITE", body=peer.sdp().replace(b"AVP 0", b"AVP 8"))
        peer.response(488, "INVITE")
        peer.told("ended")
        call, _ = peer.talk()
        peer.ask(call, "INFO")
        peer.response(405, "INFO")
        assert peer.process.poll() is None


def test_a_flood_of_requests_is_answered_up_to_a_number() -> None:
    with phone() as peer:
        peer.register()
        for _ in range(MOST_ANSWERS):
            last = peer.ask(Invitation(), "OPTIONS")
            answer = peer.response(200, "OPTIONS")
        peer.ask(Invitation(), "OPTIONS")
        peer.send(last)
        assert peer.response(200, "OPTIONS").data == answer.data  # the other would have come before
        assert peer.ends() == (0, "")


def test_the_peer_may_move_hold_and_offer_video() -> None:
    with phone("--answer", "0") as peer, bound() as elsewhere:
        peer.register()
        video = b"m=video 4000 RTP/AVP 31\r\n"
        call, answer = peer.talk(peer.sdp() + video)
        assert [(media.kind, media.port != 0) for media in media_of(answer)] == [
            ("audio", True),
            ("video", False),
        ]
        assert hears(peer.rtp)
        peer.ask(call, "INVITE", body=peer.sdp(elsewhere))
        moved = peer.response(200, "INVITE")
        peer.acknowledge(call, moved)
        assert hears(elsewhere)
        assert has_silence(peer.rtp)
        peer.ask(call, "UPDATE", body=peer.sdp(elsewhere, direction="sendonly"))
        held = peer.response(200, "UPDATE")
        assert [media.direction.value for media in media_of(held)] == ["recvonly"]
        assert has_silence(elsewhere)
        old = SessionDescription.parse(answer.body).origin, SessionDescription.parse(held.body).origin
        assert old[0] is not None
        assert old[1] is not None
        assert old[0].version < old[1].version
        peer.ask(call, "UPDATE")  # without an offer, to show that it is there (RFC 4028)
        refreshed = peer.response(200, "UPDATE")
        assert (refreshed.body, refreshed.header("content-type")) == (b"", None)
        peer.ask(call, "INVITE")  # without an offer: the phone's is in its answer
        offer = peer.response(200, "INVITE")
        assert [media.direction.value for media in media_of(offer)] == ["sendrecv"]
        peer.ask(call, "BYE")
        peer.response(200, "BYE")
        peer.told("ended")


def test_it_calls_with_its_password_by_the_route_that_it_is_shown() -> None:
    server = DigestServer("127.0.0.1", entropy=secrets.token_bytes, is_proxy=True)
    with phone() as peer:
        peer.register()
        peer.tell("call sip:bob@127.0.0.1")
        first = peer.request("INVITE")
        peer.respond(first, 407, *server.challenges(now=0))
        assert peer.request("ACK").branch == first.branch
        invite = peer.request("INVITE")
        assert server.verify(invite, lambda _: PASSWORD, now=1).verdict is Verdict.ACCEPTED
        routes = [f"<sip:{host};lr>" for host in ("far.invalid", str(endpoint(peer.sip)))]
        record = [("Record-Route", route) for route in routes]
        peer.respond(invite, 200, *record, body=peer.sdp())
        ack = peer.request("ACK")
        assert routes_of(ack) == [route.encode() for route in reversed(routes)]
        assert ack.request_uri is not None
        assert ack.data[slice(*ack.request_uri)] == f"sip:bob@{endpoint(peer.sip)}".encode()
        assert ack.branch != invite.branch
        assert ack.value(ack.header("proxy-authorization")) == invite.value(
            invite.header("proxy-authorization")
        )
        peer.respond(invite, 200, *record, body=peer.sdp())
        assert peer.request("ACK").data == ack.data
        peer.told("established")
        assert hears(peer.rtp)
        peer.tell("hang up")
        bye = peer.request("BYE")
        assert routes_of(bye) == routes_of(ack)
        peer.respond(bye, 200)
        assert peer.told("ended") == "ended we hung up"
        assert peer.ends() == (0, "")


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on the files of another process")
def test_a_call_goes_on_where_its_recording_cannot(tmp_path: Path) -> None:
    with phone("--answer", "0", "--record", str(tmp_path / "heard.wav")) as peer:
        peer.register()
        _, answer = peer.talk()
        resource = pytest.importorskip("resource")
        resource.prlimit(peer.process.pid, resource.RLIMIT_FSIZE, (100, 100))
        theirs = media_of(answer)[0].endpoint
        assert theirs is not None
        for number in range(2):
            packet = struct.pack("!BBHII", 0x80, 0, number, 160 * number, 7) + bytes(160)
            peer.rtp.sendto(packet, (str(theirs.ip), theirs.port))
        assert peer.process.stderr is not None
        assert peer.process.stderr.readline().startswith("not recorded any more: ")
        while select.select([peer.rtp], [], [], 0)[0]:
            peer.rtp.recv(2048)
        assert peer.rtp.recv(2048)


@pytest.mark.parametrize("crosses", [False, True])
def test_a_call_of_its_own_can_be_taken_back(crosses: bool) -> None:
    with phone() as peer:
        peer.register()
        invite = peer.is_called()
        peer.told("ringing")
        peer.tell("hang up")
        cancel = peer.request("CANCEL")
        assert (cancel.branch, cancel.request_uri) == (invite.branch, invite.request_uri)
        if crosses:
            peer.respond(invite, 200, body=peer.sdp())
            peer.respond(cancel, 481)
            peer.request("ACK")
            peer.respond(peer.request("BYE"), 200)
        else:
            peer.respond(cancel, 200)
            peer.respond(invite, 487)
            assert peer.request("ACK").branch == invite.branch
        assert peer.told("ended") == "ended we hung up"
        assert peer.ends() == (0, "")


def test_a_call_that_is_not_accepted_is_told_by_the_exit_status() -> None:
    with phone("--call", "sip:bob@127.0.0.1") as peer:
        peer.register()
        invite = peer.request("INVITE")
        peer.respond(invite, 486)
        assert peer.request("ACK").branch == invite.branch
        peer.respond(peer.request("REGISTER"), 200)
        _, complaints = peer.process.communicate(timeout=PATIENCE_S)
        assert complaints == "Error: sip:bob@127.0.0.1 did not accept the call: 486\n"
        assert peer.process.returncode == 4
