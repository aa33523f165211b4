"""What the world outside an ALG sees of it: one phone, which no proxy stands before (RFC 3665 §3.5).

The proxy inside records itself in each dialog, and must, since its phones send by that. Outside nobody is
to know: a route set never changes (RFC 3261 §12.2), so that after a change of the public address it would
lead to where nobody is. A Contact can be exchanged.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from nattools.endpoint import Endpoint
from nattools.errors import DecodeError
from nattools.sip import media
from nattools.sip.body import edit_parts, sdp_parts
from nattools.sip.headers import NameAddress, split_list
from nattools.sip.message import SipMessage
from nattools.sip.sdp import SessionDescription
from nattools.sip.uri import SipUri, Span

IsOwn = Callable[[bytes, int | None], bool]
FindLocal = Callable[[Endpoint], Endpoint | None]

_MOST_HIDDEN = 4096
_MOST_PUBLISHED = 16


class Disguise:
    """Takes an ALG's own Record-Route off what leaves, and puts it back into what answers that.

    Also understands the ALG's public endpoints in others' words: of two phones behind the same ALG, each is
    known to the other by them. No message, whatever is in it, makes a method raise.
    """

    def __init__(self, local: Endpoint, is_own: IsOwn, find_local: FindLocal) -> None:
        """`local` is the outside socket as the proxy has it; `is_own(host, port)` says what the proxy is.

        `find_local(endpoint)` is the relay's port that others know by `endpoint`, None where it has none.
        """
        self.is_own = is_own
        self._local = str(local).encode()
        self._find_local = find_local
        self._hidden: OrderedDict[bytes, tuple[bytes, int]] = OrderedDict()  # by the request's branch
        self._published: OrderedDict[Endpoint, None] = OrderedDict()

    def publish(self, public: Endpoint) -> None:
        """Others know the outside socket by `public` from now on, and for a while by what was before."""
        self._published[public] = None
        self._published.move_to_end(public)
        if len(self._published) > _MOST_PUBLISHED:
            self._published.popitem(last=False)

    # Record-Route

    def hide(self, message: bytes) -> bytes:
        """What the proxy sends outside, without its own Record-Route; `restore` puts it into the answers."""
        try:
            sip = SipMessage.parse(message)
            values = [sip.data[slice(*span)] for span in sip.values("record-route")]
            own = [value for value in values if self._is_own_route(value)]
            branch = sip.branch
        except DecodeError:
            return message
        if not own:
            return message
        for header in sip.headers_named("record-route"):
            spans = split_list(sip.data, header.value_span)
            left = [value for value in (sip.data[slice(*span)] for span in spans) if value not in own]
            if not left:
                sip.remove_header(header)
            elif len(left) < len(spans):
                sip.edit(header.value_span, b", ".join(left))
        if sip.is_request and branch:
            self._hidden[branch] = b", ".join(own), len(values) - len(own)
            self._hidden.move_to_end(branch)
            if len(self._hidden) > _MOST_HIDDEN:
                self._hidden.popitem(last=False)
        return sip.encode()

    def restore(self, message: bytes) -> bytes:
        """What came from outside, with the Record-Route that its request had (RFC 3261 §12.1.1).

        It stands above the values that the request had before it came to the proxy.
        """
        try:
            sip = SipMessage.parse(message)
            own, below = self._hidden.get(sip.branch or b"", (b"", 0))
        except DecodeError:
            return message
        if sip.is_request or not own or not 100 < (sip.status_code or 0) < 300:
            return message
        spans = sip.values("record-route")
        place = max(len(spans) - below, 0)
        if place < len(spans):
            sip.edit(Span(spans[place].start, spans[place].start), own + b", ")
        else:
            above = sip.headers_named("record-route") or sip.headers_named("via")
            sip.insert_header_after(above[-1], "Record-Route", own)
        return sip.encode()

    def _is_own_route(self, value: bytes) -> bool:
        uri = NameAddress.parse(value).uri
        return uri is not None and uri.scheme in ("sip", "sips") and self.is_own(uri.host, uri.port)

    # The public endpoint in others' words

    def localise(self, message: bytes) -> bytes:
        """What came from outside, with local endpoints for those that are our own public ones.

        These stand in Contacts and descriptions. The answer to a REGISTER stays as it is: it may list
        several, and `Rewriter` knows which one is meant.
        """
        try:
            sip = SipMessage.parse(message)
            spans = [] if sip.method == "REGISTER" else sip.values("contact")
            uris = [NameAddress.parse(sip.data, span).uri for span in spans]
        except DecodeError:
            return message
        for uri in uris:
            if uri is not None and self._is_published(uri):
                sip.edit(uri.host_port_span, self._local)
        self._localise_media(sip)
        return sip.encode()

    def _localise_media(self, sip: SipMessage) -> None:
        edited = []
        for part in sdp_parts(sip):
            try:
                description = SessionDescription.parse(sip.data, part.span)
            except DecodeError:
                continue
            moves = media.moves(description, self._find_local)
            if moves:
                edited.append((part, media.edits(description, moves)))
        if edited:
            edit_parts(sip, edited)

    def address(self, message: bytes) -> bytes:
        """What is to leave, with the public endpoint in a Request-URI that leads to the ALG itself."""
        try:
            sip = SipMessage.parse(message)
            place = sip.request_uri
            uri = None if place is None else SipUri.parse(sip.data, place)
        except DecodeError:
            return message
        if uri is None or not self._published:
            return message
        words = sip.data[slice(*uri.host_port_span)]
        if words == self._local or self._is_published(uri):
            sip.edit(uri.host_port_span, str(next(reversed(self._published))).encode())
        return sip.encode()

    def _is_published(self, uri: SipUri) -> bool:
        return uri.scheme in ("sip", "sips") and uri.endpoint() in self._published
