"""What a proxy refuses before it looks where a request goes (RFC 3261 §16.3), and how it knows a loop."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b

from nattools.errors import DecodeError
from nattools.session.flows import Flows
from nattools.session.transactions import MAGIC_COOKIE
from nattools.sip.headers import Via
from nattools.sip.message import SipMessage
from nattools.sip.uri import SipUri, Span

REASONS = {
    408: "Request Timeout",
    480: "Temporarily Unavailable",
    487: "Request Terminated",
    500: "Server Internal Error",
}
"""How a proxy names its own final responses."""

MAX_FORWARDS = 70
"""How far a request goes that does not say (RFC 3261 §8.1.1.6)."""

_MARK_BYTES = 8
_OWN_BRANCH = re.compile(re.escape(MAGIC_COOKIE) + rb"([0-9a-f]{16})\.[0-9a-f]{16}")
_SCHEMES = frozenset({"sip", "sips", "tel"})


@dataclass(frozen=True, slots=True)
class Refusal:
    """How a request is answered that goes no further."""

    status_code: int
    reason: str
    headers: tuple[tuple[str, str], ...] = ()


def check_form(request: SipMessage) -> None:
    """Raise `DecodeError` where a header is missing that any request must have (RFC 3261 §8.1.1)."""
    number = request.cseq
    if number is None or number[1] != request.method:
        raise DecodeError(f"a {request.method} whose CSeq is missing, or of another method")
    for name in ("call-id", "from", "to"):
        if not request.first_value(name):
            raise DecodeError(f"a {request.method} without {name}")
    if request.length_error:
        raise DecodeError(request.length_error)


def refusal_of(request: SipMessage, flows: Flows) -> Refusal | None:
    """Why a request may not go on: its scheme, Max-Forwards, a loop, Proxy-Require; None where it may."""
    assert request.request_uri is not None
    uri = readable_uri(request.data[slice(*request.request_uri)])
    if uri is None:
        return Refusal(400, "Bad Request-URI")
    hops = max_forwards(request)
    required = [request.data[slice(*span)].decode("latin-1") for span in request.values("proxy-require")]
    if uri.scheme not in _SCHEMES:
        return Refusal(416, "Unsupported URI Scheme")
    if hops is None:
        return Refusal(400, "Bad Max-Forwards")
    if hops == 0:
        return Refusal(483, "Too Many Hops")
    if is_loop(request, flows):
        return Refusal(482, "Loop Detected")
    if required and request.method != "ACK":
        return Refusal(420, "Bad Extension", (("Unsupported", ", ".join(required)),))
    return None


def readable_uri(data: bytes) -> SipUri | None:
    """A URI that a request can be sent to and cancelled by; None where it is malformed, or no UTF-8."""
    try:
        data.decode()
        return SipUri.parse(data)
    except (UnicodeDecodeError, DecodeError):
        return None


def max_forwards(request: SipMessage) -> int | None:
    """How many hops are left, 70 where the request does not say; None for what is no number up to 255."""
    if request.header("max-forwards") is None:
        return MAX_FORWARDS
    value = request.first_value("max-forwards")
    return int(value) if value.isdigit() and len(value) <= 3 and int(value) <= 255 else None


def mark(request: SipMessage) -> bytes:
    """What a request would have in common with itself if it came round (RFC 5393 §4.2.2), 16 hex digits.

    It is of all that says where the request goes; a request that comes back changed is a spiral, no loop.
    """
    assert request.request_uri is not None
    digest = blake2b(digest_size=_MARK_BYTES)
    number = request.cseq
    parts = [
        request.data[slice(*request.request_uri)],
        request.call_id,
        request.from_tag or b"",
        request.to_tag or b"",
        b"" if number is None else b"%d" % number[0],
        *(request.data[slice(*span)] for span in request.values("route")),
    ]
    for part in parts:
        digest.update(b"%d:" % len(part) + part)
    return digest.hexdigest().encode()


def branch(request: SipMessage, unique: bytes) -> str:
    """A branch for `request` as it goes on: its mark, and `unique`, which are 8 random bytes."""
    return f"{MAGIC_COOKIE.decode()}{mark(request).decode()}.{unique.hex()}"


def is_loop(request: SipMessage, flows: Flows) -> bool:
    """Whether this proxy has sent this very request on before. Malformed Vias are passed over."""
    expected = None
    for branch in own_branches(request, flows):
        expected = expected or mark(request)
        if branch.startswith(MAGIC_COOKIE + expected):
            return True
    return False


def own_branches(request: SipMessage, flows: Flows) -> Iterator[bytes]:
    """The branches of the Vias that this proxy has written into a request before, the last one first.

    It came here then, went on, and was sent back, changed: a spiral (RFC 3261 §6).
    """
    spans = request.values("via")
    if len(spans) < 2:
        return
    for via in _readable(request, spans):
        is_own = via.branch is not None and _OWN_BRANCH.fullmatch(via.branch) is not None
        if via.branch is not None and is_own and flows.is_own(via.host, via.port):
            yield via.branch


def _readable(request: SipMessage, spans: Iterable[Span]) -> Iterable[Via]:
    for span in spans:
        try:
            yield Via.parse(request.data, span)
        except DecodeError:
            continue


def check_line_ends(message: SipMessage) -> None:
    """Raise `DecodeError` for a CR alone among the headers: others may take it for the end of a line."""
    head = message.data[: message.body_span.start]
    if head.count(b"\r") != head.count(b"\r\n"):
        raise DecodeError("a CR without LF among the headers")
