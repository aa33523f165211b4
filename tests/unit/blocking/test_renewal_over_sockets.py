"""When a public endpoint changes, registrar and peers are told, and the phone knows nothing of it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import replace

import pytest

from nattools.binding.model import BindingChange, ChangeKind
from nattools.blocking import Credentials, SipSocket, SipSockets
from nattools.endpoint import Endpoint
from nattools.sip.message import SipMessage
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
from tests.unit.public_sockets import DEADLINE_S, plain_socket

NEW = "140.113.131.90"
BOB = "sip:bob@198.51.100.7"


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with plain_socket() as sock:
        yield sock


def change(*socks: SipSocket) -> None:
    """Have the sockets be at another public address from now on, as their keeper would say."""
    for sock in socks:
        held = sock.binding
        assert held is not None
        moved = replace(held, public=Endpoint.of(NEW, held.public.port))
        sock._kept.call(sock._kept.tell, BindingChange(ChangeKind.CHANGED, moved, held, "another address"))


def register(sock: SipSocket, server: socket.socket) -> None:
    """Register the phone, and be done with it."""
    sock.sendto(request("REGISTER", at(sock)), server.getsockname())
    received = next_sip(server)
    contact = f"sip:alice@{PUBLIC}:{at(sock).port}"
    server.sendto(response(received, "200 OK", to_tag="r", contact=contact), sock.getsockname())
    assert b"200 OK" in sock.recv(2048)


def call(sock: SipSocket, media: SipSocket, server: socket.socket) -> None:
    """Have the phone call Bob, who answers."""
    sock.sendto(request("INVITE", at(sock), body=sdp(at(media))), server.getsockname())
    invite = next_sip(server)
    answer = response(invite, "200 OK", to_tag="b", contact=BOB, body=sdp(Endpoint.of("198.51.100.7", 4000)))
    via_proxy = f"Record-Route: <sip:{at_server(server)};lr>\r\nCall-ID:".encode()
    server.sendto(answer.replace(b"Call-ID:", via_proxy, 1), sock.getsockname())
    assert b"200 OK" in sock.recv(2048)
    sock.sendto(request("ACK", at(sock), to_tag="b"), server.getsockname())
    assert next_sip(server).startswith(b"ACK")


def at_server(server: socket.socket) -> Endpoint:
    return Endpoint.of(*server.getsockname()[:2])


def contacts(message: bytes) -> list[bytes]:
    sip = SipMessage.parse(message)
    return [sip.data[slice(*span)] for span in sip.values("contact")]


def quiet(sock: SipSocket) -> bool:
    """Whether there is nothing for the phone."""
    sock.setblocking(False)
    try:
        sock.recv(2048)
    except BlockingIOError:
        return True
    finally:
        sock.settimeout(DEADLINE_S)
    return False


def test_the_registrar_learns_of_a_change_without_the_phone(server: socket.socket) -> None:
    with phone_socket(sockets()) as sock:
        register(sock, server)
        change(sock)
        told = next_sip(server)
        assert told.startswith(b"REGISTER")
        new, old = contacts(told)
        assert f"{NEW}:{at(sock).port}".encode() in new
        assert f"{PUBLIC}:{at(sock).port}".encode() in old
        assert b"expires=0" in old
        cseq = SipMessage.parse(told).cseq
        assert cseq == (2, "REGISTER")
        server.sendto(response(told, "200 OK"), sock.getsockname())
        server.sendto(b"and then", sock.getsockname())
        assert sock.recv(2048) == b"and then"  # the answer was not the phone's


def test_what_a_peer_in_the_same_network_sees_is_no_news_for_the_registrar(server: socket.socket) -> None:
    with phone_socket(sockets()) as sock, plain_socket() as peer:
        register(sock, server)
        sock.sendto(request("OPTIONS", at(sock), call_id="other"), peer.getsockname())
        asked = next_sip(peer)
        seen = b";rport=%d;received=127.0.0.1" % at(sock).port
        answer = response(asked, "200 OK", to_tag="b").replace(b";rport", seen, 1)
        peer.sendto(answer, sock.getsockname())
        assert b"200 OK" in sock.recv(2048)
        sock.sendto(request("OPTIONS", at(sock), cseq=5), server.getsockname())
        assert next_sip(server).startswith(b"OPTIONS")


def test_a_call_goes_on_at_the_new_endpoint_and_its_numbers_stay_in_order(server: socket.socket) -> None:
    phone = sockets()
    with phone_socket(phone) as sock, phone_socket(phone) as media:
        call(sock, media, server)
        change(media, sock)
        told = next_sip(server)
        assert told.startswith(b"INVITE sip:bob@198.51.100.7")
        assert f"c=IN IP4 {NEW}\r\n".encode() in told
        assert b"o=- 1 2 IN IP4 " in told  # the version has risen (RFC 3264 §8)
        answer = response(told, "200 OK", contact=BOB, body=sdp(Endpoint.of("198.51.100.7", 4000)))
        server.sendto(answer, sock.getsockname())
        assert next_sip(server).startswith(b"ACK")
        assert quiet(sock)
        sock.sendto(request("BYE", at(sock), cseq=2, to_tag="b"), server.getsockname())
        bye = next_sip(server)
        assert SipMessage.parse(bye).cseq == (3, "BYE")
        server.sendto(response(bye, "200 OK"), sock.getsockname())
        assert b"CSeq: 2 BYE" in sock.recv(2048)


def test_what_is_not_answered_is_sent_again(server: socket.socket) -> None:
    with phone_socket(sockets()) as sock:
        register(sock, server)
        change(sock)
        first = next_sip(server)
        assert next_sip(server) == first


def test_a_change_that_changes_nothing_is_told_to_nobody(server: socket.socket) -> None:
    with phone_socket(sockets()) as sock:
        register(sock, server)
        held = sock.binding
        lost = BindingChange(ChangeKind.LOST, None, held, "for a moment")
        for news in (lost, BindingChange(ChangeKind.RESTORED, held, None, "as it was")):
            sock._kept.call(sock._kept.tell, news)
        sock.sendto(request("OPTIONS", at(sock), cseq=2), server.getsockname())
        assert next_sip(server).startswith(b"OPTIONS")


def test_with_credentials_a_challenge_is_answered(server: socket.socket) -> None:
    account = Credentials("alice", "sesame")
    assert "sesame" not in repr(account)
    with phone_socket(SipSockets(FORWARDED, credentials=account)) as sock:
        register(sock, server)
        change(sock)
        challenge = response(next_sip(server), "401 Unauthorized", to_tag="r").replace(
            b"Content-Length", b'WWW-Authenticate: Digest realm="a", nonce="n", qop="auth"\r\nContent-Length'
        )
        server.sendto(challenge, sock.getsockname())
        answered = next_sip(server)
        assert b'username="alice"' in answered
        assert SipMessage.parse(answered).cseq == (3, "REGISTER")


def test_without_them_it_is_said_that_only_the_phone_can_answer(
    server: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    with phone_socket(sockets()) as sock:
        register(sock, server)
        change(sock)
        challenge = response(next_sip(server), "401 Unauthorized", to_tag="r").replace(
            b"Content-Length", b'WWW-Authenticate: Digest realm="a", nonce="n", qop="auth"\r\nContent-Length'
        )
        server.sendto(challenge, sock.getsockname())
        server.sendto(b"and then", sock.getsockname())
        assert sock.recv(2048) == b"and then"
    assert "is not told of the new endpoint: REGISTER: 401" in caplog.text
