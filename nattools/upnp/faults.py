"""A class for every code with which a router refuses a UPnP action, and what to do about it.

Codes 401 to 605 are those of UPnP Device Architecture 1.1 §3.2.2, 606 to 612 those of UPnP DeviceSecurity
that it sets aside, 703 and above those of WANIPConnection:1 and :2 and WANPPPConnection:1. The service
WANIPv6FirewallControl:1 (§2.6) uses 701 to 709 for other things, so that the service decides what they mean.
Names and numbers were compared with miniupnpc's src/upnperrors.c, miniupnpd's upnpsoap.c, async_upnp_client's
exceptions.py and tables in the firmware of ZyXEL, Broadcom and D-Link routers.

Every class is a `RefusedError`, which is a `UpnpError`. It is called like its code, with "Error" after it.
"""

from __future__ import annotations

from typing import ClassVar

from nattools.errors import UpnpError

MOST_TEXT_CHARACTERS = 100
NO_CODE = 0
"""The code of a fault that names none."""


class RefusedError(UpnpError):
    """The router refused an action; `advice` says what that means for the user, and what to do."""

    advice: ClassVar[str] = "look into the router's log, or restart it"


class InvalidActionError(RefusedError):
    """401: the service has no action of that name."""

    advice = "the router does not know this action; do without it"


class InvalidArgsError(RefusedError):
    """402: arguments that are too few, too many, or not what they should be; in practice a full table, too.

    Some routers say this instead of 725 or 728 (miniupnp/miniupnp#92).
    """

    advice = (
        "the lease does not suit the router, or its table of port mappings is full: remove mappings there"
    )


class OutOfSyncError(RefusedError):
    """403: out of synchronisation (UPnP 1.0 only); a FRITZ!Box says it for what it does not allow."""

    advice = "allow this device to open ports in the router's settings"


class InvalidVarError(RefusedError):
    """404: no state variable of that name (UPnP 1.0)."""

    advice = "the router does not know what it was asked for; do without it"


class ActionFailedError(RefusedError):
    """501: the action failed in the state that the router is in; Linksys says it for a taken port."""

    advice = (
        "the port may be taken or forbidden, or the router has no connection: choose another external port, "
        "or check that the router is online"
    )


class ArgumentValueInvalidError(RefusedError):
    """600: the value of an argument is not valid."""

    advice = "choose another external port or lease"


class ArgumentValueOutOfRangeError(RefusedError):
    """601: the value of an argument is out of the allowed range."""

    advice = "choose another external port or lease"


class OptionalActionNotImplementedError(RefusedError):
    """602: the action is an optional one, which the router does not have."""

    advice = "the router does not have this action; do without it"


class OutOfMemoryError(RefusedError):
    """603: the router has not enough memory for it."""

    advice = "remove port mappings in the router, or restart it"


class HumanInterventionRequiredError(RefusedError):
    """604: somebody has to do something at the router first."""

    advice = "open the router's own pages and see what it wants"


class StringArgumentTooLongError(RefusedError):
    """605: a text is longer than the router can take."""

    advice = "choose a shorter description"


class ActionNotAuthorizedError(RefusedError):
    """606: this host may not do that; FRITZ!Box, and miniupnpd as IGD:2 where no `allow` line permits it."""

    advice = (
        "allow this device to open ports in the router's settings (FRITZ!Box: permit independent port "
        "sharing for it), or choose a port that the router permits"
    )


class SignatureFailureError(RefusedError):
    """607: the signature of the request is wrong (DeviceSecurity)."""

    advice = (
        "the router wants signed requests, which are not made here: set up the port in the router's pages"
    )


class SignatureMissingError(RefusedError):
    """608: the request is not signed (DeviceSecurity)."""

    advice = SignatureFailureError.advice


class NotEncryptedError(RefusedError):
    """609: the request is not encrypted (DeviceSecurity)."""

    advice = SignatureFailureError.advice


class InvalidSequenceError(RefusedError):
    """610: the sequence number of the request is wrong (DeviceSecurity)."""

    advice = SignatureFailureError.advice


class InvalidControlURLError(RefusedError):
    """611: the control URL in the request is not the one it came to (DeviceSecurity)."""

    advice = SignatureFailureError.advice


class NoSuchSessionError(RefusedError):
    """612: there is no session with that key (DeviceSecurity)."""

    advice = SignatureFailureError.advice


class InactiveConnectionStateRequiredError(RefusedError):
    """703: possible only while the connection is Disconnected or Unconfigured."""

    advice = "disconnect the router from the internet first"


class ConnectionSetupFailedError(RefusedError):
    """704: the router could not set its connection up."""

    advice = "the router is not online: see its own pages"


class ConnectionSetupInProgressError(RefusedError):
    """705: the connection is being set up."""

    advice = "the router is not online yet: try again in a minute"


class ConnectionNotConfiguredError(RefusedError):
    """706: the connection is Unconfigured."""

    advice = "the router's connection is not set up: see its own pages, or use its other connection"


class DisconnectInProgressError(RefusedError):
    """707: the connection is being torn down."""

    advice = "the router is going offline: try again when it is back"


class InvalidLayer2AddressError(RefusedError):
    """708: the link below the connection has no valid address (VPI/VCI, phone number)."""

    advice = "the router's connection is not set up: see its own pages"


class InternetAccessDisabledError(RefusedError):
    """709: the router's access to the internet is switched off."""

    advice = "switch the router's access to the internet on"


class InvalidConnectionTypeError(RefusedError):
    """710: possible only for a connection that is IP_Routed."""

    advice = "the router works as a bridge here: ask the router in front of it"


class ConnectionAlreadyTerminatedError(RefusedError):
    """711: the connection is down already."""

    advice = "the router is not online: connect it first"


class NullValueAtSpecifiedArrayIndexError(RefusedError):
    """712: there is nothing at that index of the array."""

    advice = "the router's list ends before this index"


class SpecifiedArrayIndexInvalidError(RefusedError):
    """713: the index is outside the array; this is how a walk over all mappings ends."""

    advice = "the router's list ends before this index"


class NoSuchEntryInArrayError(RefusedError):
    """714: there is no such port mapping."""

    advice = "the router has no such mapping; it may have expired, or been removed"


class WildCardNotPermittedInSrcIPError(RefusedError):
    """715: the remote host must be a certain one."""

    advice = "the router opens ports for named remote hosts only: set up the port in the router's own pages"


class WildCardNotPermittedInExtPortError(RefusedError):
    """716: the external port must be a certain one, not 0."""

    advice = "choose an external port between 1 and 65535"


class ConflictInMappingEntryError(RefusedError):
    """718: another host has the port.

    miniupnpd as IGD:1 also says it for a mapping to another address than the request came from.
    """

    advice = "another device has that port; choose another external port"


class SamePortValuesRequiredError(RefusedError):
    """724: external and internal port must be equal."""

    advice = "ask for the external port that equals the internal one"


class OnlyPermanentLeasesSupportedError(RefusedError):
    """725: the router knows only mappings without a lease."""

    advice = "ask for a mapping without a lease, and remove it when it is not needed any more"


class RemoteHostOnlySupportsWildcardError(RefusedError):
    """726: the remote host must be left empty."""

    advice = "ask without a remote host"


class ExternalPortOnlySupportsWildcardError(RefusedError):
    """727: the external port must be 0, which would map every port of the router."""

    advice = "this router can map only all of its ports at once: set up the port in its own pages"


class NoPortMapsAvailableError(RefusedError):
    """728: no port is free, or the table is full."""

    advice = "the router's table of port mappings is full: remove mappings there"


class ConflictWithOtherMechanismsError(RefusedError):
    """729: the port is used by something else than UPnP: a rule made by hand, or the router itself."""

    advice = "the router uses that port itself or by a rule made by hand; choose another external port"


class PortMappingNotFoundError(RefusedError):
    """730: there is no port mapping in that range."""

    advice = "the router has no mapping in that range"


class ReadOnlyError(RefusedError):
    """731: the value cannot be changed."""

    advice = "this can be changed only in the router's own pages"


class WildCardNotPermittedInIntPortError(RefusedError):
    """732: the internal port must be a certain one, not 0."""

    advice = "choose an internal port between 1 and 65535"


class InconsistentParametersError(RefusedError):
    """733: the first port of a range is behind its last."""

    advice = "give the lower port first"


class PinholeSpaceExhaustedError(RefusedError):
    """Firewall 701: there is no room for another pinhole."""

    advice = "the router's table of pinholes is full: remove pinholes there"


class FirewallDisabledError(RefusedError):
    """Firewall 702: the firewall is off, so that it has no pinholes."""

    advice = "the router's IPv6 firewall is off: no pinhole is needed"


class InboundPinholeNotAllowedError(RefusedError):
    """Firewall 703: the router does not let hosts open inbound pinholes."""

    advice = "allow devices to open IPv6 ports in the router's settings"


class NoSuchEntryError(RefusedError):
    """Firewall 704: there is no pinhole with that id."""

    advice = "the router has no such pinhole; it may have expired, or been removed"


class ProtocolNotSupportedError(RefusedError):
    """Firewall 705: the router makes no pinholes for that protocol."""

    advice = "ask for UDP or TCP"


class InternalPortWildcardingNotAllowedError(RefusedError):
    """Firewall 706: the internal port must be a certain one."""

    advice = "choose an internal port between 1 and 65535"


class ProtocolWildcardingNotAllowedError(RefusedError):
    """Firewall 707: the protocol must be a certain one."""

    advice = "ask for UDP or TCP"


class WildCardNotPermittedInSrcIPFirewallError(RefusedError):
    """Firewall 708, WildCardNotPermittedInSrcIP: the remote host must be a certain one."""

    advice = "name the remote host that may come in"


class NoTrafficReceivedError(RefusedError):
    """Firewall 709: nothing has come through the pinhole yet, so whether it works is not known."""

    advice = "let somebody send something through the pinhole, and ask again"


CONNECTION_FAULTS: dict[int, type[RefusedError]] = {
    401: InvalidActionError,
    402: InvalidArgsError,
    403: OutOfSyncError,
    404: InvalidVarError,
    501: ActionFailedError,
    600: ArgumentValueInvalidError,
    601: ArgumentValueOutOfRangeError,
    602: OptionalActionNotImplementedError,
    603: OutOfMemoryError,
    604: HumanInterventionRequiredError,
    605: StringArgumentTooLongError,
    606: ActionNotAuthorizedError,
    607: SignatureFailureError,
    608: SignatureMissingError,
    609: NotEncryptedError,
    610: InvalidSequenceError,
    611: InvalidControlURLError,
    612: NoSuchSessionError,
    703: InactiveConnectionStateRequiredError,
    704: ConnectionSetupFailedError,
    705: ConnectionSetupInProgressError,
    706: ConnectionNotConfiguredError,
    707: DisconnectInProgressError,
    708: InvalidLayer2AddressError,
    709: InternetAccessDisabledError,
    710: InvalidConnectionTypeError,
    711: ConnectionAlreadyTerminatedError,
    712: NullValueAtSpecifiedArrayIndexError,
    713: SpecifiedArrayIndexInvalidError,
    714: NoSuchEntryInArrayError,
    715: WildCardNotPermittedInSrcIPError,
    716: WildCardNotPermittedInExtPortError,
    718: ConflictInMappingEntryError,
    724: SamePortValuesRequiredError,
    725: OnlyPermanentLeasesSupportedError,
    726: RemoteHostOnlySupportsWildcardError,
    727: ExternalPortOnlySupportsWildcardError,
    728: NoPortMapsAvailableError,
    729: ConflictWithOtherMechanismsError,
    730: PortMappingNotFoundError,
    731: ReadOnlyError,
    732: WildCardNotPermittedInIntPortError,
    733: InconsistentParametersError,
}
"""What the codes of WANIPConnection and WANPPPConnection mean."""

FIREWALL_FAULTS: dict[int, type[RefusedError]] = {
    **{code: refused for code, refused in CONNECTION_FAULTS.items() if code < 700},
    701: PinholeSpaceExhaustedError,
    702: FirewallDisabledError,
    703: InboundPinholeNotAllowedError,
    704: NoSuchEntryError,
    705: ProtocolNotSupportedError,
    706: InternalPortWildcardingNotAllowedError,
    707: ProtocolWildcardingNotAllowedError,
    708: WildCardNotPermittedInSrcIPFirewallError,
    709: NoTrafficReceivedError,
}
"""What the codes of WANIPv6FirewallControl mean."""


def fault_name(refused: type[RefusedError]) -> str:
    """The name that the specification gives the code of this class."""
    return refused.__name__.removesuffix("Error").removesuffix("Firewall")


def fault(code: int, description: str, *, action: str, firewall: bool = False) -> RefusedError:
    """The error for the fault that `action` was answered with.

    `description` is the router's own text, told where it adds something to the name of the code. A code
    without a class becomes a plain `RefusedError`.
    """
    refused = (FIREWALL_FAULTS if firewall else CONNECTION_FAULTS).get(code, RefusedError)
    name = "" if refused is RefusedError else fault_name(refused)
    own_text = clean_text(description)
    what = " ".join(filter(None, (str(code) if code != NO_CODE else "a fault without a code", name)))
    if own_text and _letters(own_text) != _letters(name):
        what += f" ({own_text})"
    return refused(f"{action} was refused: {what}: {refused.advice}", code=code)


def clean_text(text: str) -> str:
    """What a router wrote, fit to be shown: printable, on one line, and cut off where it is long."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= MOST_TEXT_CHARACTERS else f"{line[: MOST_TEXT_CHARACTERS - 1]}…"


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, text)).lower()
