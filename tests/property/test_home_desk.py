"""A registrar's desk, whatever strangers send: it decides about everything, and reaches nobody for them."""

from __future__ import annotations

from zlib import crc32

from hypothesis import given, settings
from hypothesis import strategies as st

from nattools.endpoint import Endpoint
from nattools.sip.message import SipMessage
from tests.unit.session.controller.home import FAR, Home
from tests.unit.session.proxy_desk import ALICE, BOB, BODY, PROXY, request

STRANGER = Endpoint.of("198.51.100.9", 5060)
PLACES = st.sampled_from(
    [str(PROXY), str(FAR), str(BOB), "example.com", "elsewhere.example", "127.0.0.1:5060"]
)
METHODS = st.sampled_from(["INVITE", "ACK", "BYE", "CANCEL", "OPTIONS", "REGISTER", "MESSAGE", "UPDATE", "X"])
URIS = st.builds(
    "{}:{}@{}{}".format,
    st.sampled_from(["sip", "sips"]),
    st.sampled_from(["bob", "x", "%00"]),
    PLACES,
    (
        st.sampled_from(
            [
                "",
                ";lr",
                ";transport=tcp",
                f";alias={FAR.ip}~{FAR.port}~1",
                ";gr=urn:x",
                ";maddr=198.51.100.77",
            ]
        )
    ),
) | st.sampled_from(["sip:example.com", "tel:+4930", "mailto:a@b", "sip:", "x"])
HEADERS = st.lists(
    st.tuples(
        st.sampled_from(
            ["Route", "Contact", "Record-Route", "Proxy-Authorization", "Path", "Expires", "Require"]
        ),
        st.builds("<{}>".format, URIS) | st.sampled_from(["*", "0", 'Digest realm="example.com"', ","]),
    ),
    max_size=3,
)
REQUESTS = st.builds(
    lambda method, uri, headers, tag, body: request(
        method,
        uri,
        headers=[("Max-Forwards", "70"), *headers],
        to_tag=tag,
        body=body,
        contact=None,
        via=[f"SIP/2.0/UDP {STRANGER};branch=z9hG4bK{crc32(f'{method}{uri}{tag}'.encode()):x}"],
    ),
    METHODS,
    URIS,
    HEADERS,
    st.sampled_from(["", "", "b"]),
    st.sampled_from([b"", BODY]),
)
CUTS = st.lists(st.tuples(st.integers(0, 400), st.integers(0, 12), st.binary(max_size=12)), max_size=2)


def mangled(data: bytes, cuts: list[tuple[int, int, bytes]]) -> bytes:
    """The same with some places cut out and filled by something else."""
    for start, length, filling in cuts:
        data = data[:start] + filling + data[start + length :]
    return data


@given(st.lists(st.tuples(REQUESTS, CUTS), max_size=4))
@settings(deadline=None)
def test_a_stranger_gets_answers_and_reaches_nobody_else(
    said: list[tuple[bytes, list[tuple[int, int, bytes]]]],
) -> None:
    home = Home()
    home.register()
    home.register("alice", f"sip:alice@{ALICE}", ALICE)
    for data, cuts in said:
        for transmit in home.put(mangled(data, cuts), STRANGER):
            if transmit.destination.ip != STRANGER.ip:
                # a dialog that natgate may have forgotten leads to a registered phone, and to nobody else
                assert transmit.destination in (ALICE, BOB)
                assert SipMessage.parse(transmit.data).to_tag is not None
