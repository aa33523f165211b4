"""A phone that registers, and the registrar of example.com that it registers with."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Callable, Iterable
from itertools import count

from nattools.endpoint import Endpoint
from nattools.session.domains import Domains
from nattools.session.location import Bindings, Location, MemoryLocation
from nattools.session.registrar import Admission, Refusal, Registrar, RegistrarSettings, Registration
from nattools.session.users import Users
from nattools.sip.digest import DigestClient
from nattools.sip.message import SipMessage, compose_request

SOURCE = Endpoint.parse("203.0.113.1:40000")
PASSWORDS = {"alice": "wonder", "bob": "builder", "a b": "blank"}
Headers = Iterable[tuple[str, str | bytes]]


def counting() -> Callable[[int], bytes]:
    """Bytes that are others each time."""
    calls = count()
    return lambda size: hashlib.shake_256(b"%d" % next(calls)).digest(size)


def registrar(
    domains: Iterable[str] = ("example.com", "203.0.113.7"),
    passwords: dict[str, str] | None = None,
    **settings: int,
) -> Registrar:
    return Registrar(
        Domains(domains),
        Users(PASSWORDS if passwords is None else passwords),
        entropy=counting(),
        settings=RegistrarSettings(**settings),
    )


def register(
    *contacts: str,
    user: str = "alice",
    uri: str = "sip:example.com",
    via: str = "SIP/2.0/UDP 192.168.1.10:5060;rport;branch=z9hG4bKa",
    cseq: int = 1,
    call_id: str = "call-1",
    headers: Headers = (),
    to: str = "",
) -> bytes:
    """A REGISTER as a phone writes it; `contacts` are values of Contact."""
    whom = to or f"<sip:{user}@example.com>"
    return compose_request(
        "REGISTER",
        uri,
        [
            ("Via", via),
            ("Max-Forwards", "70"),
            ("From", f"{whom};tag=f"),
            ("To", whom),
            ("Call-ID", call_id),
            ("CSeq", f"{cseq} REGISTER"),
            *(("Contact", contact) for contact in contacts),
            *headers,
        ],
    )


class Phone:
    """Sends REGISTERs to one registrar and its location, and answers challenges."""

    def __init__(
        self,
        registrar: Registrar,
        location: Location | None = None,
        *,
        user: str = "alice",
        password: str | None = None,
        source: Endpoint = SOURCE,
    ) -> None:
        self.registrar = registrar
        self.location = location or MemoryLocation()
        self.source = source
        self.digest = DigestClient(
            user, PASSWORDS[user] if password is None else password, entropy=counting()
        )

    async def ask(self, data: bytes, *, now: float = 0.0) -> SipMessage:
        """Have the registrar answer these very bytes."""
        request = SipMessage.parse(data)
        assert self.registrar.is_responsible(request)
        admitted = self.registrar.admit(request, source=self.source, flow="udp-1", now=now)
        if isinstance(admitted, Refusal):
            assert admitted.reason
            return SipMessage.parse(admitted.response)

        def decide(bindings: Bindings) -> Registration:
            assert isinstance(admitted, Admission)
            return self.registrar.register(admitted, bindings, now=now)

        registration = await self.location.update(admitted.address_of_record, decide, now=now)
        return SipMessage.parse(registration.response)

    async def answer(self, data: bytes, *, now: float = 0.0) -> SipMessage:
        """Have it answer, after a challenge if it asks for one."""
        response = await self.ask(self.signed(data), now=now)
        if response.status_code == 401:
            self.digest.challenged(response)
            response = await self.ask(self.signed(data), now=now)
        return response

    def signed(self, data: bytes) -> bytes:
        """The same request with credentials, where there was a challenge."""
        request = SipMessage.parse(data)
        assert request.request_uri is not None
        uri = request.data[slice(*request.request_uri)].decode()
        for header in request.headers_named("authorization"):
            request.remove_header(header)
        for name, value in self.digest.headers(request.method, uri, request.body):
            request.insert_header_after(None, name, value)
        return request.encode()

    def run(self, data: bytes, *, now: float = 0.0) -> SipMessage:
        """`answer`, for tests that have no loop."""
        return asyncio.run(self.answer(data, now=now))

    def bindings(self, user: str = "alice", *, now: float = 0.0) -> Bindings:
        return asyncio.run(self.location.bindings(f"{user}@example.com", now=now))


def contacts(response: SipMessage) -> dict[str, int]:
    """The URIs of a 200 and how many seconds they have."""
    found = {}
    for contact in response.contacts:
        expires = contact.param("expires")
        assert contact.uri is not None
        assert expires is not None
        assert expires.value is not None
        found[response.data[slice(*contact.uri.span)].decode()] = int(expires.value)
    return found


def values(response: SipMessage, name: str) -> list[str]:
    """The values of all headers of that name."""
    return [re.sub(r"\s+", " ", response.value(h).decode()) for h in response.headers_named(name)]
