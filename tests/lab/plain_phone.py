"""A telephone of few words whose sockets a test holds: what it sends and hears is counted to the packet."""

from __future__ import annotations

import secrets
import time
from itertools import count
from typing import TYPE_CHECKING

from nattools.endpoint import Endpoint
from nattools.sip.dialog import Dialog
from nattools.sip.digest import DigestClient
from nattools.sip.message import SipMessage, compose_request, compose_response
from nattools.sip.sdp import SessionDescription, compose_sdp
from tests.lab.conftest import PATIENCE_SECONDS, next_datagram
from tests.lab.remote_relay import Phone as Voice

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable

_SDP = ("Content-Type", "application/sdp")


class PlainPhone:
    """One user at a registrar, by UDP. Its Contact is `contact`, be that where it is or not.

    It calls by the flow that it has registered by, so that nobody asks for its password again.
    """

    def __init__(
        self,
        user: str,
        password: str,
        server: Endpoint,
        sip: socket.socket,
        rtp: socket.socket,
        *,
        contact: Endpoint | None = None,
    ) -> None:
        self.user = user
        self.server = server
        self.local = Endpoint.of(*sip.getsockname()[:2])
        self.contact = f"<sip:{user}@{contact or self.local}>"
        self.voice: Voice | None = None
        self._dialog: Dialog | None = None
        self._sip = sip
        self._rtp = rtp
        self._digest = DigestClient(user, password, entropy=secrets.token_bytes)
        self._cseq = count(1)
        self._taken: set[bytes] = set()

    def register(self) -> None:
        """Register for an hour."""
        uri = f"sip:{self.server.ip}"
        code = 401
        for _ in range(2):
            expires = ("Expires", "3600")
            self._send("REGISTER", uri, self.user, [expires, *self._digest.headers("REGISTER", uri)])
            response = self.take(lambda it: it.method == "REGISTER")
            code = response.status_code or 0
            if code != 401:
                break
            self._digest.challenged(response)
        assert code == 200, f"{self.user}: REGISTER was answered by {code}"

    def call(self, user: str) -> SipMessage:
        """Invite a user; the INVITE, for `wait_answered`."""
        return self._send("INVITE", f"sip:{user}@{self.server.ip}", user, [_SDP], self._description())

    def wait_answered(self, invite: SipMessage) -> int:
        """Wait for the final response and acknowledge it; its status code. From a 2xx on it can speak."""
        response = self.take(lambda it: it.method == "INVITE" and (it.status_code or 0) >= 200)
        number = 0 if invite.cseq is None else invite.cseq[0]
        code = response.status_code or 0
        if code < 300:
            self._dialog = Dialog.of_caller(invite, response)
            self._say(self._dialog.compose("ACK", cseq=number, via=self._via()))
            self._hear_of(response)
        else:
            self._say(invite.data.replace(b"INVITE ", b"ACK ", 1).replace(b" INVITE\r\n", b" ACK\r\n"))
        return code

    def wait_called(self) -> SipMessage:
        """Wait for an INVITE."""
        return self.take(lambda it: it.is_request and it.method == "INVITE")

    def answer(self, invite: SipMessage, code: int = 200) -> None:
        """Answer an INVITE. From a 2xx on it can speak."""
        is_taken = code < 300
        headers = [("Contact", self.contact), _SDP] if is_taken else []
        body = self._description() if is_taken else b""
        response = compose_response(invite, code, "Word", headers, body, to_tag=secrets.token_hex(4))
        self._say(response)
        if is_taken:
            self._dialog = Dialog.of_callee(invite, SipMessage.parse(response))
            self._hear_of(invite)

    def wait_acknowledged(self) -> None:
        """Wait for the ACK of its answer."""
        self.take(lambda it: it.is_request and it.method == "ACK")

    def hang_up(self, meanwhile: Callable[[], None]) -> int:
        """Send BYE; the status code of the answer, which comes of what the other side does `meanwhile`."""
        assert self._dialog is not None
        self._say(self._dialog.compose("BYE", cseq=1000, via=self._via()))
        meanwhile()
        return self.take(lambda it: not it.is_request and it.method == "BYE").status_code or 0

    def wait_hung_up(self) -> None:
        """Wait for the BYE of the other side, and answer it."""
        bye = self.take(lambda it: it.is_request and it.method == "BYE")
        self._say(compose_response(bye, 200, "OK"))

    def take(self, wanted: Callable[[SipMessage], bool]) -> SipMessage:
        """Wait for a message and take it, once; others are passed over, but for OPTIONS, which it answers."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (left_s := deadline - time.monotonic()) > 0:
            received = next_datagram(self._sip, left_s)
            if received is None or received[0] in self._taken or not received[0].strip():
                continue
            message = SipMessage.parse(received[0])
            if message.is_request and message.method == "OPTIONS":
                self._say(compose_response(message, 200, "OK"))
            elif message.status_code != 100 and wanted(message):
                self._taken.add(received[0])
                return message
        raise AssertionError(f"{self.user}: what was waited for has not come")

    def _send(
        self,
        method: str,
        uri: str,
        to: str,
        headers: Iterable[tuple[str, str | bytes]],
        body: bytes = b"",
    ) -> SipMessage:
        """Send a request outside a dialog."""
        fields: list[tuple[str, str | bytes]] = [
            ("Via", self._via()),
            ("Max-Forwards", "70"),
            ("From", f"<sip:{self.user}@{self.server.ip}>;tag={secrets.token_hex(4)}"),
            ("To", f"<sip:{to}@{self.server.ip}>"),
            ("Call-ID", secrets.token_hex(8)),
            ("CSeq", f"{next(self._cseq)} {method}"),
            ("Contact", self.contact),
            *headers,
        ]
        data = compose_request(method, uri, fields, body)
        self._say(data)
        return SipMessage.parse(data)

    def _say(self, data: bytes) -> None:
        self._sip.sendto(data, (str(self.server.ip), self.server.port))

    def _via(self) -> str:
        return f"SIP/2.0/UDP {self.local};rport;branch=z9hG4bK{secrets.token_hex(8)}"

    def _description(self) -> bytes:
        rtp = Endpoint.of(*self._rtp.getsockname()[:2])
        return compose_sdp(rtp, session_id=1, version=1)

    def _hear_of(self, message: SipMessage) -> None:
        """Speak to where the other side's description says."""
        endpoint = SessionDescription.parse(message.body).media[0].endpoint
        assert endpoint is not None
        self.voice = Voice(self._rtp, endpoint, ssrc=int.from_bytes(self.user.encode()[:4], "big"))
