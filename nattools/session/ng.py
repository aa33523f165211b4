"""The control protocol of rtpengine ("ng"): requests and answers of one datagram each, and the SDP in them.

A datagram is a cookie, a space and a dictionary. rtpengine reads it as bencode or as JSON, and answers in the
same, so JSON is spoken here. It repeats its answer to a cookie that it has seen, so requests can be repeated.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nattools.endpoint import Endpoint
from nattools.errors import DecodeError
from nattools.session.relay import Expectation, PortPair
from nattools.sip.sdp import SessionDescription

Json = str | int | float | bool | None | Sequence["Json"] | Mapping[str, "Json"]

_ANYWHERE = {4: "0.0.0.0", 6: "::"}
_DISCARD_PORT = 9  # for who receives nothing: port 0 would refuse the stream (RFC 3264 §6)


@dataclass(frozen=True, slots=True)
class Answer:
    """What rtpengine says to the request with that cookie; `reason` says why, where it refuses."""

    cookie: str
    fields: Mapping[str, object]
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Received:
    """What rtpengine has counted of one side's RTP, and where it sends for that side."""

    packets: int
    octets: int
    endpoint: Endpoint | None


def compose_request(cookie: str, command: str, fields: Mapping[str, Json]) -> bytes:
    """Write a request. The cookie is any word, another one for each request."""
    return f"{cookie} {json.dumps({'command': command, **fields})}".encode()


def parse_answer(data: bytes) -> Answer:
    """Read an answer. Raises `DecodeError`."""
    cookie, _space, rest = data.partition(b" ")
    try:
        fields = json.loads(rest)
        word = cookie.decode("ascii")
    except (ValueError, RecursionError) as error:
        raise DecodeError(f"no answer of rtpengine: {data[:60]!r}") from error
    if not isinstance(fields, dict) or not isinstance(fields.get("result"), str):
        raise DecodeError(f"an answer of rtpengine without a result: {data[:60]!r}")
    refused = fields["result"] == "error"
    return Answer(word, fields, str(fields.get("error-reason", "it does not say why")) if refused else "")


def compose_side(expectation: Expectation | None, *, version: int, ipv6: bool = False) -> str:
    """Write what a side expects as the SDP that rtpengine is to see; None where nothing is known of it yet.

    It has one stream. `version` is that of its o= line.
    """
    wanted = expectation if expectation is not None else Expectation(None, payload_types=frozenset({0}))
    # Of an address that may lead nowhere it would make sure for 3 s before it followed the phone elsewhere.
    rtp = wanted.rtp if wanted.may_be_sent_to(wanted.rtp) else None
    family = 6 if (rtp.is_ipv6 if rtp is not None else ipv6) else 4
    address = _ANYWHERE[family] if rtp is None else str(rtp.ip)
    port = _DISCARD_PORT if rtp is None or rtp.port == 0 else rtp.port
    types = " ".join(map(str, sorted(wanted.payload_types)))
    lines = [
        "v=0",
        f"o=- 1 {version} IN IP{family} {address}",
        "s=-",
        f"c=IN IP{family} {address}",
        "t=0 0",
        f"m=audio {port} RTP/AVP {types}" if types else f"m=image {port} udptl t38",
    ]
    if wanted.rtcp is not None and rtp is not None:
        rtcp_family = 6 if wanted.rtcp.is_ipv6 else 4
        lines.append(f"a=rtcp:{wanted.rtcp.port} IN IP{rtcp_family} {wanted.rtcp.ip}")
    if wanted.rtcp_mux:
        lines.append("a=rtcp-mux")
    return "\r\n".join([*lines, ""])


def parse_ports(answer: Answer) -> PortPair:
    """Where rtpengine receives, from the SDP in its answer. Raises `DecodeError`.

    Of a stream on hold it tells no address but that of the o= line.
    """
    sdp = answer.fields.get("sdp")
    description = SessionDescription.parse(str(sdp).encode())
    if not description.media or not description.media[0].port:
        raise DecodeError(f"rtpengine gives no port: {str(sdp)[:200]!r}")
    media = description.media[0]
    origin = str(sdp).partition("o=")[2].partition("\r\n")[0].rpartition(" ")[2]
    rtp = Endpoint.of(origin, media.port)
    rtcp_port = media.rtcp.port if media.rtcp is not None else media.port
    return PortPair(rtp, rtp.with_port(rtcp_port))


def parse_received(answer: Answer, tag: str) -> Received:
    """What came from the side with that tag, from the answer to a query. Raises `DecodeError`."""
    try:
        tags = answer.fields["tags"]
        stream = tags[tag]["medias"][0]["streams"][0]  # type: ignore[index]  # whatever is missing is caught
        counts, endpoint = stream["stats"], stream.get("endpoint")
        seen = Endpoint.of(endpoint["address"], endpoint["port"]) if endpoint and endpoint["port"] else None
        return Received(int(counts["packets"]), int(counts["bytes"]), seen)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise DecodeError(f"rtpengine tells nothing of the side {tag!r}") from error
