"""A phone's session descriptions on their way out, with the public endpoints of its media sockets in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from nattools.endpoint import Endpoint
from nattools.errors import DecodeError
from nattools.sip import media
from nattools.sip.body import Part, edit_parts, sdp_parts
from nattools.sip.message import SipMessage
from nattools.sip.origins import Origins
from nattools.sip.sdp import SessionDescription, address_words
from nattools.sip.uri import Span
from nattools.sip.whereabouts import Bound, Whereabouts, public_of

_SIGNED = (
    "the body was sent as it was, since the phone has signed it (qop=auth-int): have it sign with qop=auth,"
    " or tell it its public address"
)
_CREDENTIALS = ("authorization", "proxy-authorization", "authentication-info", "proxy-authentication-info")
_CREDENTIAL = re.compile(rb'([^\s=,"]++)\s*+=\s*+("(?:[^"\\]++|\\.)*+"|[^\s,"]*+)', re.DOTALL)

_UNSPECIFIED = b"IP4 0.0.0.0"
_USUAL = re.compile(  # one stream at the address of the session, over IPv4, and no word of RTCP or ICE
    rb"v=0\r\n"
    rb"o=\S++ (\S++) ([0-9]{1,18}+) IN (IP4 [0-9.]++)\r\n"
    rb"(?:[^cm\r\n]=[^\r\n]*+\r\n)*+"
    rb"c=IN (IP4 [0-9.]++)\r\n"
    rb"(?:[^cm\r\n]=[^\r\n]*+\r\n)*+"
    rb"m=[^\s/]++ ([1-9][0-9]{0,4}+) RTP/S?AVP [^\r\n]++(?:\r\n|\Z)"
    rb"(?:(?:[^acm\r\n]=|a=(?!(?i:rtcp|candidate)))[^\r\n]*+(?:\r\n|\Z))*+\Z"
)


@dataclass(frozen=True, slots=True)
class MediaPort:
    """A socket of the phone where a stream is received, and the one for its RTCP, None where it has none."""

    local: Endpoint
    rtcp: Endpoint | None = None


@dataclass(frozen=True, slots=True)
class MediaUnbound:
    """A description went out with these local endpoints in it: the peer's media will not arrive.

    Before sending, ask `Rewriter.media_needed`, and give it bindings by `add_media`.
    """

    ports: tuple[MediaPort, ...]


@dataclass(frozen=True, slots=True)
class Unedited:
    """A message, or its body, went on as it was; `reason` says why, and what can be done about it."""

    reason: str


class _Words:
    """A media binding, and its addresses as c= and o= have them, for as long as they are the same."""

    __slots__ = ("bound", "local", "local_words", "public", "public_words")

    def __init__(self, bound: Bound) -> None:
        self.bound = bound
        self.local: Endpoint | None = None
        self.local_words = b""
        self.public: Endpoint | None = None
        self.public_words = b""

    def refresh(self) -> None:
        """Follow what the binding says now."""
        local, public = self.bound.local, public_of(self.bound)
        if local is not self.local:
            self.local, self.local_words = local, address_words(local.ip).encode()
        if public is not self.public:
            self.public = public
            self.public_words = b"" if public is None else address_words(public.ip).encode()


class Descriptions:
    """What a phone says of its media, with the public endpoints of their bindings in it."""

    def __init__(self, where: Whereabouts) -> None:
        self._where = where
        self._bindings: dict[int, _Words] = {}
        self._rtcp_of: dict[int, int] = {}
        self._origins = Origins()

    def add(self, rtp: Bound, rtcp: Bound | None) -> None:
        """Write the public endpoint of `rtp` for its local one, and so for `rtcp`."""
        port = rtp.local.port
        self.remove(port)
        self._bindings[port] = _Words(rtp)
        if rtcp is not None:
            self._bindings[rtcp.local.port] = _Words(rtcp)
            self._rtcp_of[port] = rtcp.local.port

    def remove(self, local_port: int) -> None:
        """Forget the binding of the RTP socket at `local_port`, and that of its RTCP."""
        self._bindings.pop(local_port, None)
        rtcp_port = self._rtcp_of.pop(local_port, None)
        if rtcp_port is not None:
            self._bindings.pop(rtcp_port, None)

    def needed(self, message: SipMessage) -> tuple[MediaPort, ...]:
        """The sockets in a message that have no binding; none where its body may not be edited anyway."""
        if message.length_error or signs_body(message):
            return ()
        found: list[MediaPort] = []
        for part in sdp_parts(message):
            try:
                description = SessionDescription.parse(message.data, part.span)
            except DecodeError:
                continue
            found += (it for it in self._own_ports(description) if it.local.port not in self._bindings)
        return tuple(found)

    def edit(
        self, message: SipMessage, call_id: bytes, told: Endpoint | None
    ) -> list[MediaUnbound | Unedited]:
        """Edit the descriptions in a message, and say what could not be done.

        `told` is the public endpoint of the phone's SIP: its address stands in o= where no stream has one.
        """
        start, end = message.body_span
        if start == end:
            return []
        is_signed = signs_body(message)
        events: list[MediaUnbound | Unedited] = []
        edited: list[tuple[Part, list[media.Edit]]] = []
        for part in sdp_parts(message):
            if not is_signed and (edit := self._usual(message, part.span, call_id)) is not None:
                if part.lengths:
                    edited.append((part, [edit]))
                else:
                    message.edit(*edit)
                continue
            try:
                description = SessionDescription.parse(message.data, part.span)
            except DecodeError as error:
                events.append(Unedited(f"a session description was sent as it was: {error}"))
                continue
            moves = media.moves(description, self._public)
            if is_signed:
                if moves or any(self._own_ports(description)):
                    return [*events, Unedited(_SIGNED)]
                continue
            edits = self._origin_edits(message, call_id, description, moves, told)
            edits += media.edits(description, moves)
            edited.append((part, edits))
            moved = [move.stream.rtp for move in moves]
            left = tuple(port for port in self._own_ports(description) if port.local not in moved)
            if left:
                events.append(MediaUnbound(left))
        if edited:
            edit_parts(message, edited)
        return events

    def _usual(self, message: SipMessage, span: Span, call_id: bytes) -> media.Edit | None:
        """What all below makes of a description of the usual form, in one edit; None for any other form.

        Most descriptions of phones have it, and reading it at one glance takes a third of the time.
        """
        data = message.data
        match = _USUAL.match(data, *span)
        if match is None:
            return None
        session_id, version_text, origin, address, port_text = match.groups()
        port = int(port_text)
        rtp = self._bindings.get(port)
        if rtp is None:
            return None
        rtp.refresh()
        public = rtp.public
        if public is None or not origin == address == rtp.local_words or address == _UNSPECIFIED:
            return None
        rtcp = self._bindings.get(port + 1)
        if rtcp is not None:
            rtcp.refresh()
            if not _is_one_above(rtcp.public, public) or rtcp.local_words != address:
                return None
        version = int(version_text)
        sent_version, ip = self._origins.next(
            (call_id, session_id), version, (public,), public.ip, message=_transaction(message)
        )
        pieces = (
            version_text if sent_version == version else b"%d" % sent_version,
            data[match.end(2) : match.start(3)],
            rtp.public_words if ip is public.ip or ip is None else address_words(ip).encode(),
            data[match.end(3) : match.start(4)],
            rtp.public_words,
            data[match.end(4) : match.start(5)],
            b"%d" % public.port,
        )
        return Span(match.start(2), match.end(5)), b"".join(pieces)

    def _origin_edits(
        self,
        message: SipMessage,
        call_id: bytes,
        description: SessionDescription,
        moves: list[media.Move],
        told: Endpoint | None,
    ) -> list[media.Edit]:
        """The version that the peer must see, and the public address that it always saw (RFC 3264 §8)."""
        origin = description.origin
        if origin is None:
            return []
        moved = {id(move.stream.media): move.rtp for move in moves}
        sent = tuple([moved.get(id(it)) or it.endpoint for it in description.media])
        key = (call_id, origin.session_id)
        ip = None
        if any(move.stream.rtp.ip == origin.ip for move in moves) or self._where.is_own(origin.ip):
            ip = moves[0].rtp.ip if moves else told.ip if told else None
        if not moves and ip is None and key not in self._origins:
            return []
        version, ip = self._origins.next(key, origin.version, sent, ip, message=_transaction(message))
        return media.origin_edits(origin, version=version, ip=ip)

    def _own_ports(self, description: SessionDescription) -> Iterator[MediaPort]:
        """The sockets of its streams that are on this machine."""
        for stream in media.streams(description):
            if self._where.is_own(stream.rtp.ip):
                yield MediaPort(stream.rtp, stream.rtcp)

    def _public(self, local: Endpoint) -> Endpoint | None:
        words = self._bindings.get(local.port)
        if words is None or (local.ip != words.bound.local.ip and not self._where.is_own(local.ip)):
            return None
        return public_of(words.bound)


def _transaction(message: SipMessage) -> tuple[bool, bytes]:
    """By what a message of a call is known when it is sent again: its CSeq, and which of the two it is."""
    return message.is_request, message.first_value("cseq")


def _is_one_above(rtcp: Endpoint | None, rtp: Endpoint) -> bool:
    """Whether RTCP is where every peer looks for it (RFC 3550 §11)."""
    return rtcp is not None and rtcp.port == rtp.port + 1 and rtcp.ip == rtp.ip


def signs_body(message: SipMessage) -> bool:
    """Whether a digest covers the body: `qop=auth-int` (RFC 7616 §3.4.3)."""
    if b"auth-int" not in message.data.lower():
        return False
    return any(
        param[1].lower() == b"qop" and param[2].strip(b'"').lower() == b"auth-int"
        for name in _CREDENTIALS
        for header in message.headers_named(name)
        for param in _CREDENTIAL.finditer(message.value(header))
    )
