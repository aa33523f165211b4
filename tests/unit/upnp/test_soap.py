"""SOAP calls as routers take them, and replies as routers send them."""

from __future__ import annotations

import pytest

from nattools.errors import DecodeError, EncodeError, UpnpError
from nattools.upnp.faults import (
    ActionNotAuthorizedError,
    ConflictInMappingEntryError,
    ConnectionSetupFailedError,
    InvalidActionError,
    NoSuchEntryError,
    OnlyPermanentLeasesSupportedError,
    RefusedError,
)
from nattools.upnp.soap import MOST_DEPTH, MOST_ELEMENTS, encode_call, parse_reply, parse_xml

SERVICE = "urn:schemas-upnp-org:service:WANIPConnection:1"


def envelope(body: str, prefix: str = "s") -> bytes:
    return (
        f'<?xml version="1.0"?><{prefix}:Envelope xmlns:{prefix}="http://schemas.xmlsoap.org/soap/envelope/" '
        f'{prefix}:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/">'
        f"<{prefix}:Body>{body}</{prefix}:Body></{prefix}:Envelope>"
    ).encode()


def response(arguments: str, action: str = "GetExternalIPAddress") -> bytes:
    return envelope(f'<u:{action}Response xmlns:u="{SERVICE}">{arguments}</u:{action}Response>')


def fault(code: str, description: str = "") -> bytes:
    return envelope(
        "<s:Fault><faultcode>s:Client</faultcode><faultstring>UPnPError</faultstring><detail>"
        f'<UPnPError xmlns="urn:schemas-upnp-org:control-1-0"><errorCode>{code}</errorCode>'
        f"<errorDescription>{description}</errorDescription></UPnPError></detail></s:Fault>"
    )


def test_a_call_is_written_exactly_like_this() -> None:
    headers, body = encode_call(SERVICE, "GetSpecificPortMappingEntry", [("NewRemoteHost", ""), ("A", "1")])
    assert headers == (
        ("Content-Type", 'text/xml; charset="utf-8"'),
        (
            "SOAPAction",
            '"urn:schemas-upnp-org:service:WANIPConnection:1#GetSpecificPortMappingEntry"',
        ),
    )
    assert body == (
        b'<?xml version="1.0"?>\r\n'
        b'<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/" '
        b's:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/"><s:Body>'
        b'<u:GetSpecificPortMappingEntry xmlns:u="urn:schemas-upnp-org:service:WANIPConnection:1">'
        b"<NewRemoteHost></NewRemoteHost><A>1</A>"
        b"</u:GetSpecificPortMappingEntry></s:Body></s:Envelope>\r\n"
    )


def test_only_three_characters_are_escaped() -> None:
    _, body = encode_call(SERVICE, "A", [("B", """a<b>&"c'é""")])
    assert """<B>a&lt;b&gt;&amp;"c'é</B>""".encode() in body


def test_a_description_cannot_bring_its_own_elements() -> None:
    text = "</NewPortMappingDescription><NewInternalPort>22</NewInternalPort>"
    _, body = encode_call(SERVICE, "AddPortMapping", [("NewPortMappingDescription", text)])
    assert b"<NewInternalPort>" not in body
    (call,) = parse_xml(body)[0]
    assert [element.text for element in call] == [text]


@pytest.mark.parametrize("text", ["\0", "a\x1bb", "\ud800", "\ufffe"])
def test_text_that_xml_cannot_carry_is_refused(text: str) -> None:
    with pytest.raises(EncodeError, match="U\\+"):
        encode_call(SERVICE, "A", [("B", text)])


@pytest.mark.parametrize("service_type", ["", "a b", 'a"b', "a\r\nHost: b", "a<b", "ä", "a\n"])
def test_a_service_type_cannot_bring_its_own_headers(service_type: str) -> None:
    with pytest.raises(EncodeError, match="not a service type"):
        encode_call(service_type, "A", [])


@pytest.mark.parametrize("name", ["", "1", "a b", "a>b", "a\n"])
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(EncodeError, match="not the name"):
        encode_call(SERVICE, name, [])
    with pytest.raises(EncodeError, match="not the name"):
        encode_call(SERVICE, "A", [(name, "")])


# The two replies of miniupnpc's testreplyparse, with the values that it expects
GET_SPECIFIC = (
    b'<?xml version="1.0"?><s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/" s:encodingStyle="'
    b'http://schemas.xmlsoap.org/soap/encoding/"><s:Body><u:GetSpecificPortMappingEntryResponse xmlns:u="urn:'
    b'schemas-upnp-org:service:WANIPConnection:1"><NewInternalPort>12345</NewInternalPort><NewInternalClient>'
    b"192.168.10.110</NewInternalClient><NewEnabled>1</NewEnabled><NewPortMappingDescription>libminiupnpc"
    b"</NewPortMappingDescription><NewLeaseDuration>0</NewLeaseDuration>"
    b"</u:GetSpecificPortMappingEntryResponse></s:Body></s:Envelope>"
)


def test_the_out_arguments_are_found_by_name_in_lower_case() -> None:
    assert parse_reply(200, GET_SPECIFIC, "GetSpecificPortMappingEntry") == {
        "newinternalport": "12345",
        "newinternalclient": "192.168.10.110",
        "newenabled": "1",
        "newportmappingdescription": "libminiupnpc",
        "newleaseduration": "0",
    }
    body = response("<NewExternalIPAddress>1.2.3.4</NewExternalIPAddress>")
    assert parse_reply(200, body, "GetExternalIPAddress") == {"newexternalipaddress": "1.2.3.4"}


ADDRESS = {"newexternalipaddress": "1.2.3.4"}
ANSWERS = {
    "another prefix": envelope(
        "<GetExternalIPAddressResponse><NewExternalIPAddress>1.2.3.4</NewExternalIPAddress>"
        "</GetExternalIPAddressResponse>",
        "SOAP-ENV",
    ),
    "no namespaces": b"<Envelope><Body><GetExternalIPAddressResponse><NewExternalIPAddress>1.2.3.4"
    b"</NewExternalIPAddress></GetExternalIPAddressResponse></Body></Envelope>",
    "another case": b"<ENVELOPE><BODY><getexternalipaddressresponse><NEWEXTERNALIPADDRESS>1.2.3.4"
    b"</NEWEXTERNALIPADDRESS></getexternalipaddressresponse></BODY></ENVELOPE>",
    "the arguments in the namespace": response("<u:NewExternalIPAddress>1.2.3.4</u:NewExternalIPAddress>"),
    "white space and NUL around": b"\r\n \t"
    + response("\r\n <NewExternalIPAddress>\n1.2.3.4 </NewExternalIPAddress>\r\n ")
    + b"\r\n\0",
    "a header before the body": response("<NewExternalIPAddress>1.2.3.4</NewExternalIPAddress>").replace(
        b"<s:Body>", b"<s:Header><transaction>7</transaction></s:Header><s:Body>"
    ),
    "Latin-1, declared": b'<?xml version="1.0" encoding="iso-8859-1"?>'
    + response("<NewExternalIPAddress>1.2.3.4</NewExternalIPAddress>").split(b"?>")[1],
    "UTF-8 with a byte order mark": b"\xef\xbb\xbf"
    + response("<NewExternalIPAddress>1.2.3.4</NewExternalIPAddress>"),
    "CDATA": response("<NewExternalIPAddress><![CDATA[1.2.3.4]]></NewExternalIPAddress>"),
}


@pytest.mark.parametrize("body", ANSWERS.values(), ids=ANSWERS)
def test_a_reply_may_be_spelled_like_this(body: bytes) -> None:
    assert parse_reply(200, body, "GetExternalIPAddress") == ADDRESS


def test_a_reply_without_out_arguments_is_an_empty_one() -> None:
    assert parse_reply(200, response("", "AddPortMapping"), "AddPortMapping") == {}
    assert parse_reply(200, envelope("<AddPortMappingResponse/>"), "AddPortMapping") == {}


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("a&lt;b&amp;c", "a<b&c"),
        ("a&amp;lt;b", "a&lt;b"),  # escaped twice by the router, undone once
        ("", ""),
        ("a & b &foo; &", "a & b &foo; &"),
        ("a &#233; &#xE9; &quot;&apos;", "a é é \"'"),
        ("café", "café"),
    ],
)
def test_a_description_is_unescaped_once_and_survives_what_is_hardly_xml(written: str, text: str) -> None:
    body = response(f"<NewPortMappingDescription>{written}</NewPortMappingDescription>")
    assert parse_reply(200, body, "GetGenericPortMappingEntry") == {"newportmappingdescription": text}


def test_bytes_that_are_no_utf_8_and_control_characters_are_repaired() -> None:
    body = response("<A>caf\xe9 \x1b&\x00 x</A><B>1</B>").replace(b"\xc3\xa9", b"\xe9")
    assert parse_reply(200, body, "X") == {"a": "caf\ufffd & x", "b": "1"}


FAULTS = {
    "as the specification has it": (500, fault("718", "ConflictInMappingEntry")),
    "with HTTP 200 (MikroTik)": (200, fault("718", "ConflictInMappingEntry")),
    "faultCode, faultString": (
        500,
        fault("718").replace(b"faultcode", b"faultCode").replace(b"faultstring", b"faultString"),
    ),
    "prefix SOAP:": (
        500,
        envelope("<SOAP:Fault><UPnPError><errorCode>718</errorCode></UPnPError></SOAP:Fault>", "SOAP"),
    ),
    "no namespaces": (
        500,
        b"<Envelope><Body><Fault><detail><upnperror><ERRORCODE> 718 </ERRORCODE></upnperror></detail></Fault>"
        b"</Body></Envelope>",
    ),
    "without the Fault around it": (500, envelope("<UPnPError><errorCode>718</errorCode></UPnPError>")),
    "errorCode in a prefix of its own": (
        500,
        fault("718")
        .replace(b"<errorCode>", b'<e:errorCode xmlns:e="urn:x">')
        .replace(b"</errorCode", b"</e:errorCode"),
    ),
    "a bare & in the text": (500, fault("718", "Conflict & more")),
}


@pytest.mark.parametrize(("status", "body"), FAULTS.values(), ids=FAULTS)
def test_a_fault_may_be_spelled_like_this(status: int, body: bytes) -> None:
    with pytest.raises(ConflictInMappingEntryError) as caught:
        parse_reply(status, body, "AddPortMapping")
    assert caught.value.code == 718
    assert str(caught.value).startswith("AddPortMapping was refused: 718 ConflictInMappingEntry")


@pytest.mark.parametrize(
    ("code", "firewall", "refused"),
    [
        ("401", False, InvalidActionError),
        ("606", False, ActionNotAuthorizedError),
        ("606", True, ActionNotAuthorizedError),
        ("725", False, OnlyPermanentLeasesSupportedError),
        ("704", False, ConnectionSetupFailedError),
        ("704", True, NoSuchEntryError),
        ("99999", False, RefusedError),
    ],
)
def test_a_fault_has_the_class_of_its_code(code: str, firewall: bool, refused: type[UpnpError]) -> None:
    with pytest.raises(UpnpError) as caught:
        parse_reply(500, fault(code), "X", firewall=firewall)
    assert type(caught.value) is refused
    assert caught.value.code == int(code)


@pytest.mark.parametrize("code", ["", "abc", "-1", "٧١٨", "7" * 5000])
def test_a_fault_without_a_usable_code_is_a_refusal_all_the_same(code: str) -> None:
    with pytest.raises(UpnpError, match="a fault without a code") as caught:
        parse_reply(500, fault(code), "AddPortMapping")
    assert (type(caught.value), caught.value.code) == (RefusedError, 0)


def test_the_text_of_a_fault_is_the_description_or_else_the_fault_string() -> None:
    with pytest.raises(UpnpError, match=r"718 ConflictInMappingEntry \(taken by the TV\)"):
        parse_reply(500, fault("718", "taken by the TV"), "AddPortMapping")
    with pytest.raises(UpnpError, match=r"718 ConflictInMappingEntry \(UPnPError\)"):
        parse_reply(500, fault("718"), "AddPortMapping")


BOMB = (
    b'<?xml version="1.0"?><!DOCTYPE l [<!ENTITY a "aaaaaaaaaa">'
    + b"".join(b'<!ENTITY %c "%s">' % (98 + i, b"&%c;" % (97 + i) * 10) for i in range(9))
    + b"]><s>&j;</s>"
)
NO_REPLIES = {
    "nothing": (200, b"", "no SOAP"),
    "HTML": (404, b"<html><body>Not found<br></body></html>", "HTTP status 404"),
    "well-formed HTML": (404, b"<html><body>Not found</body></html>", "HTTP status 404"),
    "well-formed HTML with 200": (200, b"<html><body><p>Login</p></body></html>", "no SOAP response"),
    "text": (500, b"Internal Server Error", "HTTP status 500"),
    "bytes": (200, bytes(range(256)), "no SOAP"),
    "cut off": (200, GET_SPECIFIC[:300], "no SOAP"),
    "the request itself": (200, encode_call(SERVICE, "AddPortMapping", [])[1], "no SOAP response"),
    "an empty body": (200, envelope(""), "no SOAP response"),
    "an answer with an error status": (500, response(""), "HTTP status 500 and no SOAP fault"),
    "a redirect": (302, b"", "HTTP status 302"),
    "an entity bomb": (200, BOMB, "DTD"),
    "an external entity": (200, b'<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>', "DTD"),
    "an external DTD": (200, b'<!DOCTYPE a SYSTEM "http://192.0.2.1/a.dtd"><a/>', "DTD"),
    "too deep": (200, b"<a>" * (MOST_DEPTH + 1), "nested"),
    "too many": (200, b"<a>" + b"<b/>" * MOST_ELEMENTS + b"</a>", "more than"),
    "a tag without end": (
        200,
        b"<a " + b"".join(b"a%d='>' " % n for n in range(50_000)) + b"/>",
        "tag of more",
    ),
    "a name without end": (200, b"<" + b"a" * 1_000_000 + b"/>", "tag of more"),
    "an unknown encoding": (200, b'<?xml version="1.0" encoding="klingon"?><a/>', "no SOAP"),
    "a multi-byte encoding": (200, b'<?xml version="1.0" encoding="shift_jis"?><a/>', "no SOAP"),
    "an unbound prefix": (200, b"<s:Envelope/>", "no SOAP"),
    "a reference to a control character": (200, response("<A>&#12;</A>"), "no SOAP"),
}


@pytest.mark.parametrize(("status", "body", "text"), NO_REPLIES.values(), ids=NO_REPLIES)
def test_what_is_no_reply_says_what_it_is(status: int, body: bytes, text: str) -> None:
    with pytest.raises(DecodeError, match=text) as caught:
        parse_reply(status, body, "AddPortMapping")
    assert str(caught.value).startswith("AddPortMapping was answered with ")
    assert len(str(caught.value)) < 250


def test_text_of_any_length_is_read_and_so_are_many_elements() -> None:
    for text in ("é" * 400_000, "<![CDATA[" + "&lt" * 200_000 + "]]>"):
        assert len(parse_reply(200, response(f"<A>{text}</A>"), "X")["a"]) >= 400_000
    body = response("".join(f"<A{n}>{n}</A{n}>" for n in range(15_000)))
    assert parse_reply(200, body, "X") == {f"a{n}": str(n) for n in range(15_000)}


def test_a_tree_of_the_greatest_depth_and_number_is_read() -> None:
    assert parse_xml(b"<a>" * MOST_DEPTH + b"</a>" * MOST_DEPTH).tag == "a"
    assert len(parse_xml(b"<a>" + b"<b/>" * (MOST_ELEMENTS - 1) + b"</a>")) == MOST_ELEMENTS - 1
