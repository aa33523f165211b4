"""Public sockets for threaded programs, and for softphones that cannot be changed.

The names here are the public ones, loaded when they are first used: a public socket alone needs no SIP.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nattools.blocking.public_socket import PublicSocket
    from nattools.blocking.signalling import Credentials
    from nattools.blocking.sip_sockets import SipSocket, SipSockets

__all__ = ["Credentials", "PublicSocket", "SipSocket", "SipSockets"]

_LOADED_ON_USE = {
    "Credentials": "nattools.blocking.signalling",
    "PublicSocket": "nattools.blocking.public_socket",
    "SipSocket": "nattools.blocking.sip_sockets",
    "SipSockets": "nattools.blocking.sip_sockets",
}


def __getattr__(name: str) -> object:
    if name not in _LOADED_ON_USE:
        raise AttributeError(f"module 'nattools.blocking' has no attribute {name!r}")
    value: object = getattr(import_module(_LOADED_ON_USE[name]), name)
    globals()[name] = value
    return value
