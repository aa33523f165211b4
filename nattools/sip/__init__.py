"""SIP and SDP that are edited in place, and what makes them say the public address.

The names here are the public ones, loaded when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nattools.sip.digest import DigestClient
    from nattools.sip.headers import NameAddress, Via, compose_contact, compose_via
    from nattools.sip.message import SipMessage, compose_request, compose_response
    from nattools.sip.renewal import Renewal
    from nattools.sip.rewriter import Rewriter
    from nattools.sip.sdp import SessionDescription, compose_sdp
    from nattools.sip.stream import SipStream
    from nattools.sip.uri import SipUri, Span

__all__ = [
    "DigestClient",
    "NameAddress",
    "Renewal",
    "Rewriter",
    "SessionDescription",
    "SipMessage",
    "SipStream",
    "SipUri",
    "Span",
    "Via",
    "compose_contact",
    "compose_request",
    "compose_response",
    "compose_sdp",
    "compose_via",
]

_LOADED_ON_USE = {
    "DigestClient": "nattools.sip.digest",
    "NameAddress": "nattools.sip.headers",
    "Renewal": "nattools.sip.renewal",
    "Rewriter": "nattools.sip.rewriter",
    "SessionDescription": "nattools.sip.sdp",
    "SipMessage": "nattools.sip.message",
    "SipStream": "nattools.sip.stream",
    "SipUri": "nattools.sip.uri",
    "Span": "nattools.sip.uri",
    "Via": "nattools.sip.headers",
    "compose_contact": "nattools.sip.headers",
    "compose_request": "nattools.sip.message",
    "compose_response": "nattools.sip.message",
    "compose_sdp": "nattools.sip.sdp",
    "compose_via": "nattools.sip.headers",
}


def __getattr__(name: str) -> object:
    if name not in _LOADED_ON_USE:
        raise AttributeError(f"module 'nattools.sip' has no attribute {name!r}")
    value: object = getattr(import_module(_LOADED_ON_USE[name]), name)
    globals()[name] = value
    return value
