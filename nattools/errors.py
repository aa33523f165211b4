"""The one error tree of nattools.

::

    NatToolsError                 whatever nattools raises on purpose
    |-- DecodeError               bytes or text from outside that are not what they should be
    |-- EncodeError               a value that the wire format cannot carry
    |-- CredentialError           a user name or password that its string profile forbids
    |-- TransportError            a socket or address that cannot be used
    |   |-- LocalAddressError     a local address or port that this machine cannot give
    |   |-- ResolveError          a host name without an address
    |   |-- NoResponseError       a request that nobody answered in time
    |   `-- DisconnectedError     a peer that ended the connection instead of answering
    |-- ResponseError             a STUN error response; carries `code` and `reason`
    |   |-- AuthenticationError   the credentials were refused, or the reply fails its integrity check
    |   `-- RedirectError         ALTERNATE-SERVER went in a circle, or nowhere
    |-- MappingError              a port mapping that cannot be had, renewed or removed
    |   |-- NoRouterError         no router answered any of the protocols that were asked
    |   |-- UpnpError             a UPnP error; carries `code`; each code has a class in upnp/faults.py
    |   `-- PcpError              a PCP or NAT-PMP result other than success; carries `code`
    |-- BindingError              no public endpoint can be had, or it is lost; carries `refusals`
    |   `-- SymmetricNatError     the NAT shows everybody another endpoint, so that none can be told
    |-- LocationError             registrations that cannot be read or kept just now
    |-- RelayError                an engine that cannot carry media here: a right or a program is missing
    `-- LabError                  the NAT laboratory cannot be built on this machine

Every message says what was tried, with whom, what came back, and what can be done about it.
"""

from __future__ import annotations

from collections.abc import Mapping


class NatToolsError(Exception):
    """Base of every error that nattools raises on purpose."""


class DecodeError(NatToolsError):
    """Bytes or text from outside that are not a valid value. Any other exception from a parser is a bug."""


class EncodeError(NatToolsError):
    """A value that the wire format cannot carry."""


class CredentialError(NatToolsError):
    """A user name, realm or password that SASLprep or OpaqueString forbids."""


class TransportError(NatToolsError):
    """A socket could not be opened, bound or written."""


class LocalAddressError(TransportError):
    """The local address is not this machine's, or the local port is taken or forbidden."""


class ResolveError(TransportError):
    """A host name has no usable address."""


class NoResponseError(TransportError):
    """Nobody answered the request before its transaction timed out."""


class DisconnectedError(TransportError):
    """The peer closed or reset the connection before its answer was whole."""


class ResponseError(NatToolsError):
    """A STUN error response (RFC 8489 §14.8)."""

    def __init__(self, message: str, *, code: int, reason: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason


class AuthenticationError(ResponseError):
    """Credentials were refused, are missing, or the response fails its integrity check (RFC 8489 §9)."""


class RedirectError(ResponseError):
    """A 300 Try Alternate led in a circle or named no server (RFC 8489 §10)."""


class MappingError(NatToolsError):
    """A port mapping cannot be had, renewed or removed."""


class NoRouterError(MappingError):
    """No router answered by UPnP, PCP or NAT-PMP."""


class UpnpError(MappingError):
    """A router refused a UPnP action (UPnP Device Architecture §3.2.2)."""

    def __init__(self, message: str, *, code: int) -> None:
        super().__init__(message)
        self.code = code


class PcpError(MappingError):
    """A router refused a PCP or NAT-PMP request (RFC 6887 §7.4, RFC 6886 §3.5)."""

    def __init__(self, message: str, *, code: int) -> None:
        super().__init__(message)
        self.code = code


class BindingError(NatToolsError):
    """No public endpoint can be had for a socket, or the one that was had is lost.

    `refusals` has the reason of each method that was tried, by its name; empty where one method speaks.
    """

    def __init__(self, message: str, *, refusals: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.refusals = dict(refusals or {})


class SymmetricNatError(BindingError):
    """The NAT gives each destination another public endpoint (RFC 4787 §4.1), so none can be told."""


class LocationError(NatToolsError):
    """Registrations cannot be read or kept: the file or the server that has them refused, or is away."""


class RelayError(NatToolsError):
    """A relay engine cannot work here, or lost what it works with: the message says what is missing."""


class LabError(NatToolsError):
    """The laboratory cannot be built here: a missing tool, right or kernel feature, named in the message."""
