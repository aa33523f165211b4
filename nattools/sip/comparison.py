"""Whether two URIs are the same (RFC 3261 §19.1.4)."""

from __future__ import annotations

import re

from nattools.errors import DecodeError
from nattools.sip.uri import Param, SipUri, read_ip

_ESCAPE = re.compile(rb"%([0-9A-Fa-f]{2})")
_MUST_AGREE = frozenset({"user", "ttl", "method", "maddr", "transport"})
_ADDITIONS = frozenset({"gr", "ob"})  # RFC 5627 §4.1 and RFC 5626 §5: with and without are two URIs


def is_same_uri(one: bytes, other: bytes) -> bool:
    """Whether they name the same (RFC 3261 §19.1.4). Schemes but sip and sips are compared letter by letter.

    This is no equivalence: `sip:a@b;x=1` is the same as `sip:a@b`, and that as `sip:a@b;x=2`, but the first
    and the last differ. What is no URI is the same as nothing but itself.
    """
    if one == other:
        return True
    try:
        first, second = SipUri.parse(one), SipUri.parse(other)
    except DecodeError:
        return False
    return (
        first.scheme in ("sip", "sips")
        and first.scheme == second.scheme
        and unescaped(first.user) == unescaped(second.user)
        and canonical_host(first.host) == canonical_host(second.host)
        and first.port == second.port
        and _do_params_agree(first.params, second.params)
        and _uri_headers(first, one) == _uri_headers(second, other)
    )


def unescaped(text: bytes | None) -> bytes | None:
    """`text` with its `%41` undone (RFC 3261 §19.1.2); None stays None, for a URI without a user."""
    if text is None or b"%" not in text:
        return text
    return _ESCAPE.sub(lambda match: bytes((int(match[1], 16),)), text)


def canonical_host(host: bytes) -> bytes:
    """A host as it is compared: names in lower case and without a last dot, addresses in their short form."""
    ip = read_ip(host)
    return host.lower().removesuffix(b".") if ip is None else str(ip).encode()


def _do_params_agree(one: tuple[Param, ...], other: tuple[Param, ...]) -> bool:
    first = {param.name: _compared(param) for param in one}
    second = {param.name: _compared(param) for param in other}
    in_both = first.keys() & second.keys()
    in_one = first.keys() ^ second.keys()
    return all(first[name] == second[name] for name in in_both) and not in_one & (_MUST_AGREE | _ADDITIONS)


def _compared(param: Param) -> bytes | None:
    value = unescaped(param.value)
    return value if value is None or param.name == "gr" else value.lower()


def _uri_headers(uri: SipUri, data: bytes) -> dict[bytes, bytes]:
    """What follows the `?`, by names in lower case; its order does not count."""
    text = data[uri.host_port_span.end :].partition(b"?")[2]
    pairs = (piece.partition(b"=") for piece in text.split(b"&") if piece)
    return {(unescaped(name) or b"").lower(): unescaped(value) or b"" for name, _, value in pairs}
