"""A phone that knows nothing of NATs, over sockets that do; its server is on loopback, as it is."""

from __future__ import annotations

import errno
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

import nattools.blocking
from nattools.binding import background
from nattools.binding.settings import Settings
from nattools.blocking import SipSocket, SipSockets, ports
from nattools.errors import BindingError, DecodeError
from tests.ports import free_port
from tests.unit.blocking.phones import (
    FORWARDED,
    PUBLIC,
    at,
    next_sip,
    phone_socket,
    request,
    response,
    sdp,
    sockets,
)
from tests.unit.public_sockets import DEADLINE_S, NO_WAY, eventually, plain_socket

ROOT = Path(__file__).parents[3]
RTP_PACKET = b"\x80\0" + bytes(170)


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with plain_socket() as sock:
        yield sock


# It stands in for the socket module


def test_what_is_no_udp_socket_is_the_socket_modules_own() -> None:
    phone = sockets()
    assert (phone.AF_INET, phone.gethostbyname) == (socket.AF_INET, socket.gethostbyname)
    assert phone.timeout is TimeoutError
    with pytest.raises(AttributeError):
        _ = phone.no_such_thing
    with phone.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
        assert isinstance(own, SipSocket)
    with phone.socket() as stream, plain_socket() as other:
        assert type(stream) is socket.socket
        assert stream.type == socket.SOCK_STREAM
        with phone.socket(fileno=other.detach()) as taken:
            assert type(taken) is socket.socket
            assert taken.type == socket.SOCK_DGRAM


def test_a_module_has_its_sockets_exchanged_in_one_line(server: socket.socket) -> None:
    softphone = {"socket": socket}
    softphone["socket"] = nattools.blocking.SipSockets(FORWARDED)
    with softphone["socket"].socket(softphone["socket"].AF_INET, softphone["socket"].SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.sendto(request("REGISTER", at(sock)), server.getsockname())
        assert f"sip:alice@{PUBLIC}:{at(sock).port}".encode() in next_sip(server)


def test_settings_are_checked_when_it_is_made() -> None:
    with pytest.raises(DecodeError, match="did you mean methods"):
        SipSockets(FORWARDED, method=["stun"])  # type: ignore[call-arg] # that is the mistake


# Messages


def test_a_request_says_where_the_phone_is_reached_and_its_answer_what_it_wrote(
    server: socket.socket,
) -> None:
    with phone_socket(sockets()) as sock:
        written = request("REGISTER", at(sock))
        assert sock.sendto(written, server.getsockname()) == len(written)
        received, source = next_sip(server), sock.getsockname()
        assert f"Via: SIP/2.0/UDP {PUBLIC}:{at(sock).port};".encode() in received
        assert f"Contact: <sip:alice@{PUBLIC}:{at(sock).port}>".encode() in received
        server.sendto(response(received, "200 OK"), source)
        answer = sock.recv(2048)
        assert f"Via: SIP/2.0/UDP {at(sock)};".encode() in answer
        assert PUBLIC.encode() not in answer


def test_a_connected_phone_sends_the_same(server: socket.socket) -> None:
    with phone_socket(sockets()) as sock:
        sock.connect(server.getsockname())
        sock.send(request("REGISTER", at(sock)))
        assert f"sip:alice@{PUBLIC}:{at(sock).port}".encode() in next_sip(server)


def test_a_server_is_named_as_any_socket_takes_it(server: socket.socket) -> None:
    with phone_socket(sockets()) as sock:
        sock.sendto(request("REGISTER", at(sock)), ("localhost", server.getsockname()[1]))
        assert PUBLIC.encode() in next_sip(server)
        with pytest.raises(OSError):
            sock.sendto(request("REGISTER", at(sock)), ("no-such-host.invalid", 5060))


@pytest.mark.parametrize("data", [b"", b"\r\n\r\n", RTP_PACKET, b"\0\0\0\0", b"hello SIP", b"SIPS"], ids=repr)
def test_what_is_no_sip_passes_both_ways_untouched(server: socket.socket, data: bytes) -> None:
    with phone_socket(sockets(NO_WAY)) as sock:
        sock.sendto(data, server.getsockname())
        assert server.recvfrom(2048) == (data, sock.getsockname())
        server.sendto(data, sock.getsockname())
        assert sock.recvfrom(2048) == (data, server.getsockname())


def test_the_flow_to_a_server_is_kept_open_and_its_answers_are_not_the_phones(
    server: socket.socket,
) -> None:
    with phone_socket(sockets(FORWARDED.with_words(keepalive_interval=1))) as sock:
        sock.sendto(request("REGISTER", at(sock)), server.getsockname())
        assert server.recvfrom(2048)[1] == sock.getsockname()
        for _ in range(2):
            assert server.recvfrom(16) == (b"\r\n\r\n", sock.getsockname())
            server.sendto(b"\r\n", sock.getsockname())
        server.sendto(b"after the pongs", sock.getsockname())
        assert sock.recv(64) == b"after the pongs"


# Media


def test_the_media_port_of_an_offer_is_public_and_waits_for_the_phone(server: socket.socket) -> None:
    phone = sockets()
    with phone_socket(phone) as sock:
        rtp = at(sock).with_port(free_port())
        sock.sendto(request("INVITE", at(sock), body=sdp(rtp)), server.getsockname())
        invite = next_sip(server).decode()
        assert f"c=IN IP4 {PUBLIC}\r\n" in invite
        assert f"m=audio {rtp.port} " in invite
        with phone_socket(phone, rtp.port) as media:
            assert at(media) == rtp
            server.sendto(RTP_PACKET, media.getsockname())
            assert media.recv(2048) == RTP_PACKET
            media.sendto(RTP_PACKET, server.getsockname())
            while (received := server.recvfrom(2048)) == (b"\r\n\r\n", sock.getsockname()):
                pass
            assert received == (RTP_PACKET, media.getsockname())
        with phone_socket(phone, rtp.port) as again:  # closed means free
            assert at(again) == rtp


def test_a_port_that_the_phone_has_bound_is_made_public_where_it_is(server: socket.socket) -> None:
    phone = sockets()
    with phone_socket(phone) as sock, phone_socket(phone) as media:
        sock.sendto(request("INVITE", at(sock), body=sdp(at(media))), server.getsockname())
        assert f"m=audio {at(media).port} " in next_sip(server).decode()
        server.sendto(RTP_PACKET, media.getsockname())
        assert media.recv(2048) == RTP_PACKET


def test_what_was_set_before_a_held_port_was_taken_still_holds(server: socket.socket) -> None:
    phone = sockets()
    with phone_socket(phone) as sock, phone.socket(socket.AF_INET, socket.SOCK_DGRAM) as media:
        assert isinstance(media, SipSocket)
        rtp = at(sock).with_port(free_port())
        media.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 0xB8)
        media.setblocking(False)
        descriptor = media.fileno()
        changes = media.changes()
        sock.sendto(request("INVITE", at(sock), body=sdp(rtp)), server.getsockname())
        media.bind((str(rtp.ip), rtp.port))
        assert media.getsockopt(socket.IPPROTO_IP, socket.IP_TOS) == 0xB8
        assert (media.getblocking(), media.fileno()) == (False, descriptor)
        assert str(media.public) == f"{PUBLIC}:{rtp.port}"
        first = next(changes).binding
        assert first is not None
        assert first.public == media.public
        server.sendto(RTP_PACKET, media.getsockname())
        assert select.select([media], [], [], DEADLINE_S) == ([media], [], [])
        assert media.recv(2048) == RTP_PACKET


def is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


@pytest.mark.parametrize("status", ["404 Not Found", "486 Busy Here", "603 Decline"])
def test_a_port_that_is_held_for_a_call_that_fails_is_given_back(server: socket.socket, status: str) -> None:
    with phone_socket(sockets()) as sock:
        rtp = at(sock).with_port(free_port())
        sock.sendto(request("INVITE", at(sock), body=sdp(rtp)), server.getsockname())
        invite = next_sip(server)
        for answer in ("100 Trying", "401 Unauthorized", "180 Ringing"):
            server.sendto(response(invite, answer), sock.getsockname())
            assert answer.encode() in sock.recv(2048)
        assert not is_free(rtp.port)
        server.sendto(response(invite, status), sock.getsockname())
        assert status.encode() in sock.recv(2048)
        assert eventually(lambda: is_free(rtp.port))
        sock.sendto(request("INVITE", at(sock), body=sdp(rtp), call_id="again"), server.getsockname())
        assert f"c=IN IP4 {PUBLIC}" in next_sip(server).decode()
        assert not is_free(rtp.port)


def test_a_port_is_given_back_when_the_call_ends_without_the_phone_having_come_for_it(
    server: socket.socket,
) -> None:
    with phone_socket(sockets()) as sock:
        rtp = at(sock).with_port(free_port())
        sock.sendto(request("INVITE", at(sock), body=sdp(rtp)), server.getsockname())
        assert not is_free(rtp.port)
        sock.sendto(request("BYE", at(sock), cseq=2, to_tag="314159"), server.getsockname())
        assert eventually(lambda: is_free(rtp.port))


def test_held_ports_go_with_the_signalling_socket_or_after_a_while(
    server: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    phone = sockets()
    with phone_socket(phone) as sock:
        rtp = at(sock).with_port(free_port())
        sock.sendto(request("INVITE", at(sock), body=sdp(rtp)), server.getsockname())
        assert not is_free(rtp.port)
    assert eventually(lambda: is_free(rtp.port))
    monkeypatch.setattr(ports, "HOLD_S", 0.05)
    with phone_socket(phone) as sock:
        sock.sendto(request("INVITE", at(sock), body=sdp(rtp)), server.getsockname())
        assert eventually(lambda: is_free(rtp.port))


def test_the_ports_that_are_held_are_limited(server: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "MOST_HELD", 4)  # of two calls: each has RTP and RTCP
    with phone_socket(sockets()) as sock:
        named = [free_port() for _ in range(4)]
        for number, port in enumerate(named):
            body = sdp(at(sock).with_port(port))
            sock.sendto(request("INVITE", at(sock), body=body, call_id=str(number)), server.getsockname())
        assert eventually(lambda: [is_free(port) for port in named] == [True, True, False, False])


def test_a_media_port_that_somebody_else_has_is_the_systems_error(server: socket.socket) -> None:
    with phone_socket(sockets()) as sock, plain_socket() as other:
        with pytest.raises(OSError) as refused:
            sock.sendto(request("INVITE", at(sock), body=sdp(at(other))), server.getsockname())
        assert refused.value.errno == errno.EADDRINUSE


# Where there is no public endpoint


def test_without_a_public_endpoint_no_sip_is_sent_and_the_reason_is_told(server: socket.socket) -> None:
    with phone_socket(sockets(NO_WAY)) as sock:
        with pytest.raises(ConnectionError, match=r"127\.0\.0\.1") as refused:
            sock.sendto(request("REGISTER", at(sock)), server.getsockname())
        assert refused.value.errno == errno.ENETUNREACH
        assert isinstance(refused.value.__cause__, BindingError)
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.recv(2048)


def test_nobody_waits_for_a_public_endpoint_for_ever(server: socket.socket) -> None:
    silent = Settings.of({"methods": ["stun"], "stun_servers": [str(at(server))]})
    phone = SipSockets(silent, binding_timeout_s=0.05)
    with phone_socket(phone) as sock, pytest.raises(TimeoutError, match=r"after 0.05 s.*binding_timeout_s"):
        sock.sendto(request("REGISTER", at(sock)), server.getsockname())


def test_closing_wakes_who_waits_to_send(server: socket.socket) -> None:
    silent = Settings.of({"methods": ["stun"], "stun_servers": [str(at(server))]})
    outcome: list[int | None] = []

    def send() -> None:
        try:
            sock.sendto(request("REGISTER", me), server.getsockname())
        except OSError as error:
            outcome.append(error.errno)

    with phone_socket(sockets(silent)) as sock:
        me = at(sock)
        thread = threading.Thread(target=send)
        thread.start()
        time.sleep(0.05)  # until it waits; a test that is too early passes as well
        sock.close()
        thread.join(DEADLINE_S)
    assert outcome == [errno.EBADF]


def test_a_phone_that_vanishes_leaves_no_port_behind(server: socket.socket) -> None:
    sock = cast(SipSocket, sockets().socket(socket.AF_INET, socket.SOCK_DGRAM))
    sock.bind(("127.0.0.1", 0))
    me, rtp = at(sock), at(sock).with_port(free_port())
    sock.sendto(request("INVITE", me, body=sdp(rtp)), server.getsockname())
    with pytest.warns(ResourceWarning, match="unclosed"):
        del sock
    assert eventually(lambda: is_free(me.port) and is_free(rtp.port))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_leaves_its_parents_phone_alone_and_can_have_its_own() -> None:
    program = """
import os, socket, sys, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads
from tests.unit.blocking.phones import at, next_sip, phone_socket, request, sdp, sockets
from tests.unit.public_sockets import plain_socket
phone = sockets()
with plain_socket() as server, phone_socket(phone) as sock, phone_socket(phone) as media:
    invite = request("INVITE", at(sock), body=sdp(at(media)))
    sock.sendto(invite, server.getsockname())
    child = os.fork()
    if not child:
        try:
            sock.sendto(invite, server.getsockname())
        except OSError as error:
            print("forked" in str(error), flush=True)
        with phone_socket(phone) as own:
            own.sendto(request("REGISTER", at(own)), server.getsockname())
            os._exit(7)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    sock.sendto(request("BYE", at(sock), to_tag="b"), server.getsockname())
    print(*(next_sip(server).split()[0].decode() for _ in range(3)))
"""
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, cwd=ROOT, check=False)
    assert (done.stdout.splitlines(), done.stderr) == (["True", "7", "INVITE REGISTER BYE"], "")


def test_a_closed_socket_leaves_no_thread_behind(server: socket.socket) -> None:
    phone = sockets()
    with phone_socket(phone) as sock:
        rtp = at(sock).with_port(free_port())
        sock.sendto(request("INVITE", at(sock), body=sdp(rtp)), server.getsockname())
    assert eventually(lambda: background._background is None)
