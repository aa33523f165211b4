"""NAT traversal for SIP: public bindings, and what the NAT does to them.

The names here are the public ones. Those that open sockets are loaded when they are first used, so that
`import nattools` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from nattools.endpoint import AddressClass, Endpoint
from nattools.errors import (
    AuthenticationError,
    BindingError,
    DecodeError,
    MappingError,
    NatToolsError,
    NoResponseError,
    NoRouterError,
    ResponseError,
    TransportError,
)

if TYPE_CHECKING:
    from nattools import blocking as blocking
    from nattools import sip as sip
    from nattools.binding.keeper import open_binding
    from nattools.binding.model import PublicBinding
    from nattools.mapping.client import MappingClient
    from nattools.mapping.model import MappingRequest, PortMapping
    from nattools.stun.classifier import Filtering, Mapping, NatType, Verdict, classify
    from nattools.stun.client import BindingResult, StunClient, discover
    from nattools.stun.server import StunServer

__version__ = "0.1.0.dev0"

__all__ = [
    "AddressClass",
    "AuthenticationError",
    "BindingError",
    "BindingResult",
    "DecodeError",
    "Endpoint",
    "Filtering",
    "Mapping",
    "MappingClient",
    "MappingError",
    "MappingRequest",
    "NatToolsError",
    "NatType",
    "NoResponseError",
    "NoRouterError",
    "PortMapping",
    "PublicBinding",
    "ResponseError",
    "StunClient",
    "StunServer",
    "TransportError",
    "Verdict",
    "classify",
    "discover",
    "open_binding",
]

_LOADED_ON_USE = {
    "BindingResult": "nattools.stun.client",
    "Filtering": "nattools.stun.classifier",
    "Mapping": "nattools.stun.classifier",
    "MappingClient": "nattools.mapping.client",
    "MappingRequest": "nattools.mapping.model",
    "NatType": "nattools.stun.classifier",
    "PortMapping": "nattools.mapping.model",
    "PublicBinding": "nattools.binding.model",
    "StunClient": "nattools.stun.client",
    "StunServer": "nattools.stun.server",
    "Verdict": "nattools.stun.classifier",
    "classify": "nattools.stun.classifier",
    "discover": "nattools.stun.client",
    "open_binding": "nattools.binding.keeper",
}

_ROOMS_WITH_NAMES = frozenset({"blocking", "sip"})
"""Whose own names are public: `nattools.sip.SipMessage` needs no other import than `nattools`."""


def __getattr__(name: str) -> object:
    if name in _ROOMS_WITH_NAMES:
        return import_module(f"nattools.{name}")
    if name not in _LOADED_ON_USE:
        raise AttributeError(f"module 'nattools' has no attribute {name!r}")
    value: object = getattr(import_module(_LOADED_ON_USE[name]), name)
    globals()[name] = value
    return value
