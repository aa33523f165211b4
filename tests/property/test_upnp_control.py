"""UPnP control and eventing on anything: text survives the way to a router and back, bytes never surprise."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address
from itertools import count

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nattools.endpoint import Endpoint, TransportProtocol
from nattools.errors import (
    DecodeError,
    DisconnectedError,
    EncodeError,
    NatToolsError,
    NoResponseError,
    UpnpError,
)
from nattools.upnp.acquisition import MOST_ACTIONS, Acquisition, Done, GaveUp, Result
from nattools.upnp.faults import CONNECTION_FAULTS, fault
from nattools.upnp.gena import parse_event, parse_subscription, parse_timeout
from nattools.upnp.igd import (
    AddAnyPortMapping,
    AddPortMapping,
    Candidate,
    GetListOfPortMappings,
    GetSpecificPortMappingEntry,
    PortMappingEntry,
    StatusInfo,
    clean_description,
    rank,
)
from nattools.upnp.soap import encode_call, parse_reply, parse_xml, texts_in
from nattools.upnp.ssdp import printable
from tests.fuzz import upnp_soap

SERVICE_TYPE = "urn:schemas-upnp-org:service:WANIPConnection:1"
UDP = TransportProtocol.UDP

xml_text = st.text(st.characters(codec="utf-8", min_codepoint=32, exclude_characters="\ufffe\uffff"))
leases = st.none() | st.integers(1, 0xFFFFFFFF)
ports = st.integers(1, 0xFFFF)
endpoints = st.builds(Endpoint, st.ip_addresses(v=4), ports)
entries = st.builds(
    PortMappingEntry,
    remote_host=st.just("") | st.ip_addresses(v=4).map(str),
    external_port=st.integers(0, 0xFFFF),
    transport=st.sampled_from(TransportProtocol),
    internal_client=st.ip_addresses().map(str) | xml_text.map(printable),
    internal_port=st.integers(0, 0xFFFF),
    enabled=st.booleans(),
    description=xml_text.map(printable),
    lease_s=leases,
)


@given(st.lists(st.tuples(st.from_regex(r"[A-Za-z_][A-Za-z0-9_.-]{0,20}", fullmatch=True), xml_text)))
def test_what_is_called_is_what_arrives(arguments: list[tuple[str, str]]) -> None:
    _, body = encode_call(SERVICE_TYPE, "Action", arguments)
    (call,) = parse_xml(body)[0]
    assert [(element.tag, element.text or "") for element in call] == arguments


@given(st.text(), st.text(), st.text(), st.text())
def test_a_call_is_encoded_or_refused_and_never_has_a_line_of_its_own(
    service_type: str, action: str, name: str, text: str
) -> None:
    try:
        headers, body = encode_call(service_type, action, [(name, text)])
    except EncodeError:
        return
    assert all("\n" not in value and "\r" not in value and value.isascii() for _, value in headers)
    parse_xml(body)


@given(st.sampled_from([200, 404, 500]), st.binary(), st.booleans())
def test_bytes_are_a_reply_a_fault_or_a_decode_error(status: int, body: bytes, firewall: bool) -> None:
    with pytest.raises((DecodeError, UpnpError)):
        parse_reply(status, body, "Action", firewall=firewall)


@given(st.sampled_from(upnp_soap.seeds()), st.data())
def test_a_reply_that_is_damaged_keeps_the_promise(seed: bytes, data: st.DataObject) -> None:
    position = data.draw(st.integers(0, len(seed)))
    size = data.draw(st.integers(0, 20))
    upnp_soap.check(seed[:position] + data.draw(st.binary(max_size=20)) + seed[position + size :])


@given(st.dictionaries(st.sampled_from(["newexternalipaddress", "newuptime", "newexternalport"]), st.text()))
def test_any_out_arguments_are_read_or_refused(reply: dict[str, str]) -> None:
    upnp_soap.check_values(
        {**reply, "newconnectionstatus": "Up", "newportlisting": next(iter(reply.values()), "")}
    )


@given(st.text(), st.integers(-1, 1000), st.booleans())
@example("\u0663", 0, True)
def test_a_fault_is_always_shown_on_one_printable_line(text: str, code: int, firewall: bool) -> None:
    error = fault(code, text, action="Action", firewall=firewall)
    assert error.code == code
    assert str(error).isprintable()
    assert len(str(error)) < 500


@given(endpoints, ports, leases, st.text(), st.sampled_from([AddPortMapping, AddAnyPortMapping]))
def test_every_mapping_that_can_be_made_can_be_encoded(
    internal: Endpoint,
    port: int,
    lease_s: int | None,
    description: str,
    kind: Callable[..., AddPortMapping | AddAnyPortMapping],
) -> None:
    action = kind(internal, port, UDP, lease_s, description)
    _, body = encode_call(SERVICE_TYPE, action.name, action.arguments())
    sent = texts_in(parse_xml(body)[0][0])
    assert (int(sent["newleaseduration"]) or None) == lease_s
    assert Endpoint.of(sent["newinternalclient"], int(sent["newinternalport"])) == internal
    assert sent["newportmappingdescription"] == clean_description(description).strip()


@given(st.text())
def test_a_clean_description_is_short_and_stays_as_it_is(text: str) -> None:
    cleaned = clean_description(text)
    assert len(cleaned) <= 60
    assert cleaned.isascii()
    assert cleaned.isprintable() or not cleaned


def escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


@given(st.lists(entries, max_size=5))
def test_a_listing_gives_the_entries_that_were_listed(listed: list[PortMappingEntry]) -> None:
    rows = "".join(
        f"<PortMappingEntry><NewRemoteHost>{entry.remote_host}</NewRemoteHost>"
        f"<NewExternalPort>{entry.external_port}</NewExternalPort><NewProtocol>{entry.transport.name}</NewProtocol>"
        f"<NewInternalPort>{entry.internal_port}</NewInternalPort>"
        f"<NewInternalClient>{escape(entry.internal_client)}</NewInternalClient>"
        f"<NewEnabled>{int(entry.enabled)}</NewEnabled><NewDescription>{escape(entry.description)}</NewDescription>"
        f"<NewLeaseTime>{entry.lease_s or 0}</NewLeaseTime></PortMappingEntry>"
        for entry in listed
    )
    body = (
        "<Envelope><Body><GetListOfPortMappingsResponse><NewPortListing>"
        + escape(f"<PortMappingList>{rows}</PortMappingList>")
        + "</NewPortListing></GetListOfPortMappingsResponse></Body></Envelope>"
    )
    reply = parse_reply(200, body.encode(), "GetListOfPortMappings")
    assert GetListOfPortMappings(1, 0xFFFF, UDP).parse(reply) == listed


headers = st.lists(st.tuples(st.sampled_from(["SID", "sid", "TIMEOUT", "SEQ", "NTS"]), st.text()))


@given(st.integers(100, 999), headers, st.binary())
def test_any_subscription_and_event_is_read_or_refused(
    status: int, found: list[tuple[str, str]], body: bytes
) -> None:
    try:
        subscription = parse_subscription(status, found, now=0)
    except (DecodeError, UpnpError):
        pass
    else:
        assert subscription.sid.isprintable()
        assert 15 <= subscription.renew_at <= 43200
    with pytest.raises(DecodeError):
        parse_event(found, body)


@given(st.text() | st.from_regex(r"[Ss]econd-[0-9]*"))
def test_any_timeout_is_one_that_can_be_lived_with(text: str) -> None:
    assert 30 <= parse_timeout(text) <= 86400


candidates = st.builds(
    Candidate,
    host=st.sampled_from([IPv4Address("192.168.1.1"), IPv4Address("192.168.1.2")]),
    control=st.sampled_from(["/a", "/b"]),
    udn=st.sampled_from(["", "uuid:a", "uuid:b"]),
    service_type=st.sampled_from([SERVICE_TYPE, "urn:schemas-upnp-org:service:WANPPPConnection:1"]),
    version=st.integers(1, 2),
    status=st.none() | st.builds(StatusInfo, st.sampled_from(["Up", "Down"]), st.just(""), st.none()),
    external_address=st.none() | st.sampled_from([IPv4Address("11.22.33.1"), IPv4Address("10.0.0.1")]),
    order=st.just(0),
)


@given(st.lists(candidates, max_size=8).flatmap(st.permutations))
def test_ranking_keeps_one_of_each_and_does_so_again(found: list[Candidate]) -> None:
    ranked = rank(found)
    assert set(ranked) <= set(found)
    assert {(one.host, one.control) for one in ranked} <= {(one.host, one.control) for one in found}
    assert bool(ranked) == bool(found)
    assert rank(ranked) == ranked


errors: st.SearchStrategy[NatToolsError] = st.sampled_from([*CONNECTION_FAULTS, 0, 899]).map(
    lambda code: fault(code, "", action="Action")
) | st.sampled_from([NoResponseError("silence"), DisconnectedError("reset"), DecodeError("garbage")])


@given(
    st.lists(st.none() | errors, min_size=MOST_ACTIONS, max_size=MOST_ACTIONS),
    st.lists(entries, min_size=MOST_ACTIONS, max_size=MOST_ACTIONS),
    st.none() | ports,
    leases,
    st.integers(1, 2),
    st.booleans(),
)
def test_any_router_is_done_with_after_a_dozen_actions(
    failures: list[NatToolsError | None],
    shown: list[PortMappingEntry],
    external_port: int | None,
    lease_s: int | None,
    version: int,
    permanent_only: bool,
) -> None:
    numbers = count(0xFFFF)
    acquiring = Acquisition(
        Endpoint.of("192.168.1.20", 5070),
        UDP,
        external_port=external_port,
        lease_s=lease_s,
        description="",
        version=version,
        entropy=lambda size: next(numbers).to_bytes(size, "big"),
        permanent_only=permanent_only,
    )
    added: set[int] = set()
    for failure, entry in zip(failures, shown, strict=True):
        call = acquiring.next_action()
        if isinstance(call, Done | GaveUp):
            break
        assert external_port is None or call.external_port == external_port
        result: Result = None
        if isinstance(call, AddAnyPortMapping):
            result = max(1, entry.external_port)
            added.add(result)
        if isinstance(call, AddAnyPortMapping | AddPortMapping):
            added.add(call.external_port)
        if isinstance(call, GetSpecificPortMappingEntry):
            told = {
                "newinternalport": str(entry.internal_port),
                "newinternalclient": entry.internal_client,
                "newenabled": str(int(entry.enabled)),
                "newleaseduration": str(entry.lease_s or 0),
            }
            result = call.parse(told)
        if failure is None:
            acquiring.answered(result)
        else:
            acquiring.failed(failure)
    end = acquiring.next_action()
    assert isinstance(end, Done | GaveUp)
    if isinstance(end, Done):
        assert end.external_port in added
