"""The line of softphone.py: one account over one socket with a public endpoint, and its registration.

What it does about NATs is marked with NAT.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass

from softphone_media import Recording
from softphone_sip import Headers, Request, Session, Transactions, value

from nattools import DecodeError, Endpoint, NatToolsError
from nattools.binding.client import LiveBinding
from nattools.sip import DigestClient, SipMessage, SipUri

EXPIRES_S = 300
LEAST_EXPIRES_S = 10.0
RETRY_S = 5.0
MOST_CHALLENGES = 4


class PhoneError(Exception):
    """Why the phone cannot go on, and its exit status."""

    def __init__(self, reason: str, exit_status: int) -> None:
        super().__init__(reason)
        self.exit_status = exit_status


def tell(*words: object) -> None:
    """One line for who watches. When nobody does any more, it is as if they had pressed Ctrl-C."""
    try:
        print(*words, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        signal.raise_signal(signal.SIGINT)


def read_address(text: str) -> SipUri:
    """The address of somebody who can be called over UDP. Raises `DecodeError` for anything else."""
    uri = SipUri.parse(text.encode(errors="replace"))
    if uri.scheme != "sip" or not uri.user or not uri.host:
        raise DecodeError(f"{text!r} is no address like sip:alice@example.org")
    return uri


@dataclass(frozen=True, slots=True)
class Account:
    """Who we are and where our SIP goes, and what we do in a call."""

    uri: SipUri
    password: str
    proxy: Endpoint
    answers_after_s: float | None = None
    """None: when told to."""
    hangs_up_after_s: float | None = None
    tone: bytes = b""
    recording: Recording | None = None

    @property
    def user(self) -> str:
        """The name before the @."""
        return (self.uri.user or b"").decode()

    @property
    def domain(self) -> str:
        """Whom we register with."""
        host = self.uri.host.decode()
        return f"sip:{f'[{host}]' if ':' in host else host}{f':{self.uri.port}' if self.uri.port else ''}"

    @property
    def anywhere(self) -> str:
        """Where our sockets are bound: at no address, which might become another, and at any port."""
        return "[::]:0" if self.proxy.is_ipv6 else "0.0.0.0:0"

    @property
    def address(self) -> str:
        """Where others call us."""
        return self.domain.replace("sip:", f"sip:{self.user}@", 1)


class Line:
    """What every request of ours needs: our addresses in it, and our credentials where they are wanted."""

    def __init__(self, account: Account, binding: LiveBinding, on_request: Callable[[Request], None]) -> None:
        self.account = account
        self.binding = binding
        self.transactions = Transactions(binding, on_request)
        self.digest = DigestClient(account.user, account.password, entropy=secrets.token_bytes)

    def contact(self, *params: str) -> str:
        """NAT: requests of others come to our public endpoint."""
        return self.binding.contact(self.account.user, params=params)

    def compose(
        self,
        session: Session,
        method: str,
        *,
        contact: str | None = None,
        headers: Headers = (),
        body: bytes = b"",
    ) -> bytes:
        """Write a request, with credentials for who has asked for them."""
        via = self.binding.via(branch=f"z9hG4bK{secrets.token_hex(8)}")  # NAT: and so do the answers
        if method != "ACK":
            headers = [*headers, *self.digest.headers(method, session.dialog.target.decode(), body)]
        return session.compose(method, via, contact, headers, body)

    async def ask(
        self,
        compose: Callable[[], bytes],
        destination: Endpoint,
        on_provisional: Callable[[SipMessage], None] | None = None,
    ) -> SipMessage:
        """Send a request, again where we are asked who we are, and return its final response."""
        for _ in range(MOST_CHALLENGES):
            request = compose()
            response = await self.transactions.request(request, destination, on_provisional)
            if response.status_code not in (401, 407):
                break
            self.digest.challenged(response, SipMessage.parse(request))
        return response


class Registration:
    """Where the registrar sends our calls to."""

    def __init__(self, line: Line) -> None:
        self._line = line
        account = line.account
        self._session = Session.begin(account.address, account.address, account.domain)
        self._asking = asyncio.Lock()
        self.public: Endpoint | None = None
        """The endpoint that it knows; None while we are not registered."""

    async def renew(self, expires_s: int = EXPIRES_S) -> float:
        """Have calls sent to where we are; 0 s ends that. Returns the seconds that were granted.

        Raises `PhoneError` where the registrar does not agree, and `BindingError` while we are nowhere.
        """
        async with self._asking:
            former, public = self.public, self._line.binding.public
            if former is None and not expires_s:
                return 0

            def compose() -> bytes:
                contact = self._line.contact(f"expires={expires_s}")
                if former not in (None, public):  # NAT: in the same request, lest calls go to where nobody is
                    contact += f", <sip:{self._line.account.user}@{former}>;expires=0"
                return self._line.compose(self._session, "REGISTER", contact=contact)

            proxy = self._line.account.proxy
            response = await self._line.ask(compose, proxy)
            if response.status_code == 423 and (least := value(response, "min-expires")).isdigit():
                expires_s = int(least)
                response = await self._line.ask(compose, proxy)
            if response.status_code != 200:
                raise PhoneError(f"{proxy} does not register us: {status_of(response)}", 1)
            self.public = public if expires_s else None
            tell("registered" if expires_s else "unregistered", public)
            return _granted_s(response, public)

    async def stay(self, expires_s: float) -> None:
        """Renew it in time, for ever; it is granted for `expires_s` now."""
        while True:
            await asyncio.sleep(expires_s / 2)
            try:
                expires_s = await self.renew()
            except (PhoneError, NatToolsError) as error:
                tell("not registered:", error)
                expires_s = 2 * RETRY_S


def status_of(response: SipMessage) -> str:
    """A response in words."""
    return f"{response.status_code} {response.reason.decode(errors='replace')}"


def _granted_s(response: SipMessage, public: Endpoint) -> float:
    """How long the registrar keeps our Contact (RFC 3261 §10.2.4)."""
    for contact in response.contacts:
        expires = contact.param("expires")
        if contact.uri is not None and contact.uri.endpoint() == public and expires is not None:
            written = expires.value or b""
            break
    else:
        written = value(response, "expires")
    return max(float(written), LEAST_EXPIRES_S) if written.isdigit() else EXPIRES_S
