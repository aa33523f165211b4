"""Each code has its own class, and a message that says what to do."""

from __future__ import annotations

import pytest

from nattools.errors import UpnpError
from nattools.upnp import faults
from nattools.upnp.faults import (
    CONNECTION_FAULTS,
    FIREWALL_FAULTS,
    ConflictInMappingEntryError,
    ConnectionSetupFailedError,
    NoSuchEntryError,
    RefusedError,
    fault,
    fault_name,
)

# The names of miniupnpc's src/upnperrors.c, which has no connection errors
MINIUPNPC = {
    600: "Argument Value Invalid",
    601: "Argument Value Out of Range",
    602: "Optional Action Not Implemented",
    603: "Out of Memory",
    604: "Human Intervention Required",
    605: "String Argument Too Long",
    401: "Invalid Action",
    402: "Invalid Args",
    501: "Action Failed",
    606: "Action not authorized",
    713: "SpecifiedArrayIndexInvalid",
    714: "NoSuchEntryInArray",
    715: "WildCardNotPermittedInSrcIP",
    716: "WildCardNotPermittedInExtPort",
    718: "ConflictInMappingEntry",
    724: "SamePortValuesRequired",
    725: "OnlyPermanentLeasesSupported",
    726: "RemoteHostOnlySupportsWildcard",
    727: "ExternalPortOnlySupportsWildcard",
    728: "NoPortMapsAvailable",
    729: "ConflictWithOtherMechanisms",
    730: "PortMappingNotFound",
    731: "ReadOnly",
    732: "WildCardNotPermittedInIntPort",
    733: "InconsistentParameters",
}
MINIUPNPC_FIREWALL = {
    701: "PinholeSpaceExhausted",
    702: "FirewallDisabled",
    703: "InboundPinholeNotAllowed",
    704: "NoSuchEntry",
    705: "ProtocolNotSupported",
    706: "InternalPortWildcardingNotAllowed",
    707: "ProtocolWildcardingNotAllowed",
    709: "NoTrafficReceived",
}
# D-Link's UPnP templates, for the codes that the firewall service uses for something else
D_LINK = {
    704: "ConnectionSetupFailed",
    705: "ConnectionSetupInProgress",
    706: "ConnectionNotConfigured",
    707: "DisconnectInProgress",
    708: "InvalidLayer2Address",
    709: "InternetAccessDisabled",
    710: "InvalidConnectionType",
    711: "ConnectionAlreadyTerminated",
}
CASES = [
    *((code, name, False) for code, name in (MINIUPNPC | D_LINK).items()),
    *((code, name, True) for code, name in MINIUPNPC_FIREWALL.items()),
    (708, "WildCardNotPermittedInSrcIP", True),  # miniupnpd's upnpsoap.c, AddPinhole
]


@pytest.mark.parametrize(("code", "name", "firewall"), CASES)
def test_a_code_has_the_class_that_is_called_like_it(code: int, name: str, firewall: bool) -> None:
    error = fault(code, name, action="AddPortMapping", firewall=firewall)
    assert isinstance(error, UpnpError)
    assert error.code == code
    assert fault_name(type(error)).lower() == name.replace(" ", "").lower()


def test_every_class_has_a_code_and_every_code_its_own_class_and_advice() -> None:
    tables = [*CONNECTION_FAULTS.values(), *(f for code, f in FIREWALL_FAULTS.items() if code >= 700)]
    classes = {
        value
        for value in vars(faults).values()
        if isinstance(value, type) and issubclass(value, RefusedError) and value is not RefusedError
    }
    assert len(tables) == len(set(tables))
    assert set(tables) == classes
    assert all(refused.__dict__["advice"] for refused in classes)


def test_the_docstring_of_a_class_begins_with_its_code() -> None:
    for table in (FIREWALL_FAULTS, CONNECTION_FAULTS):
        for code, refused in table.items():
            text = (refused.__doc__ or "").removeprefix("Firewall ")
            assert text.startswith((f"{code}:", f"{code}, "))


def test_the_firewall_uses_the_same_codes_for_other_things() -> None:
    assert type(fault(704, "", action="UpdatePinhole")) is ConnectionSetupFailedError
    assert type(fault(704, "", action="UpdatePinhole", firewall=True)) is NoSuchEntryError
    assert type(fault(718, "", action="AddPinhole", firewall=True)) is RefusedError


def test_the_message_says_what_was_refused_how_and_what_to_do() -> None:
    error = fault(718, "the port is used by fritz.box", action="AddPortMapping")
    assert type(error) is ConflictInMappingEntryError
    assert str(error) == (
        "AddPortMapping was refused: 718 ConflictInMappingEntry (the port is used by fritz.box): "
        "another device has that port; choose another external port"
    )


@pytest.mark.parametrize("text", ["ConflictInMappingEntry", "Conflict in Mapping Entry", "", "  "])
def test_a_text_that_adds_nothing_is_left_out(text: str) -> None:
    assert "718 ConflictInMappingEntry: another" in str(fault(718, text, action="AddPortMapping"))


def test_an_unknown_code_is_a_plain_refusal_that_keeps_the_number_and_the_text() -> None:
    error = fault(899, "Session expired", action="GetStatusInfo")
    assert type(error) is RefusedError
    assert error.code == 899
    assert str(error).startswith("GetStatusInfo was refused: 899 (Session expired): ")


def test_a_fault_without_a_code_says_so() -> None:
    assert "a fault without a code (Client)" in str(fault(faults.NO_CODE, "Client", action="GetStatusInfo"))


def test_what_the_router_writes_is_made_fit_to_be_shown() -> None:
    error = str(fault(501, "a\x1b[31mb\r\n\tc\u202e" + "d" * 1000, action="AddPortMapping"))
    assert error.isprintable()
    assert f"(a [31mb c {'d' * 89}…)" in error
