"""Which parts of a message are session descriptions, and which lengths follow when they are edited."""

from __future__ import annotations

import pytest

from nattools.sip.body import edit_parts, sdp_parts
from nattools.sip.message import SipMessage
from nattools.sip.uri import Span

SDP = "v=0\r\no=- 1 1 IN IP4 192.168.0.111\r\ns=-\r\nt=0 0\r\n"


def invite(body: str, *headers: str, length: str | None = "") -> SipMessage:
    """An INVITE with that body; `length` is what Content-Length says, the truth when it is empty."""
    size = [] if length is None else [f"Content-Length: {length or len(body.encode())}"]
    lines = (
        "INVITE sip:bob@example.com SIP/2.0",
        "Via: SIP/2.0/UDP 192.168.0.111:5060;branch=z9hG4bKx",
        *headers,
        *size,
        "",
        body,
    )
    return SipMessage.parse("\r\n".join(lines).encode())


def multipart(*parts: str, boundary: str = "b1", line_break: str = "\r\n") -> str:
    """A multipart body; each part is headers, an empty line and what it carries."""
    lines = [line for part in parts for line in (f"--{boundary}", part)]
    return line_break.join([*lines, f"--{boundary}--", ""])


def part(content: str, *headers: str) -> str:
    return "\r\n".join([*headers, "", content])


def found(message: SipMessage) -> list[str]:
    return [message.data[slice(*part.span)].decode() for part in sdp_parts(message)]


PLAIN = "Content-Type: application/sdp"
MIXED = "Content-Type: multipart/mixed;boundary=b1"
SDP_PART = part(SDP, PLAIN)


class TestPlain:
    @pytest.mark.parametrize(
        "header",
        [
            PLAIN,
            "c: application/sdp",
            "CONTENT-TYPE : Application/SDP",
            "Content-Type: application/sdp;charset=utf-8",
            "Content-Type:\r\n application/sdp",
        ],
    )
    def test_is_found(self, header: str) -> None:
        assert found(invite(SDP, header)) == [SDP]

    def test_is_found_without_a_length_and_before_trailing_octets(self) -> None:
        assert found(invite(SDP, PLAIN, length=None)) == [SDP]
        assert found(invite(SDP + "more", PLAIN, length=f"{len(SDP):05}")) == [SDP]

    @pytest.mark.parametrize(
        "headers",
        [
            (),
            ("Content-Type: text/plain",),
            ("Content-Type: application/sdpfrag",),
            ("Content-Type: message/sipfrag",),
            ("Content-Type: application/pkcs7-mime;smime-type=enveloped-data",),
            (PLAIN, "Content-Encoding: gzip"),
            (PLAIN, "e: deflate"),
            (PLAIN, "Content-Transfer-Encoding: base64"),
        ],
    )
    def test_is_not_looked_for_in_what_is_opaque(self, headers: tuple[str, ...]) -> None:
        assert found(invite(SDP, *headers)) == []

    def test_may_be_encoded_as_itself(self) -> None:
        assert found(invite(SDP, PLAIN, "Content-Encoding: Identity")) == [SDP]

    @pytest.mark.parametrize("length", ["7x", "9999", "-1"])
    def test_is_not_found_where_nobody_knows_its_end(self, length: str) -> None:
        assert found(invite(SDP, PLAIN, length=length)) == []

    def test_is_not_found_in_an_empty_body(self) -> None:
        assert found(invite("", PLAIN)) == []


class TestMultipart:
    @pytest.mark.parametrize(
        "content_type",
        [
            "multipart/mixed;boundary=b1",
            "Multipart/Mixed ; BOUNDARY=b1",
            'multipart/related;type="application/sdp; boundary=b2";boundary="b1"',
            'multipart/alternative;\r\n boundary="b\\1"',
            "multipart/mixed;charset;boundary=b1;x=y",
        ],
    )
    def test_is_opened(self, content_type: str) -> None:
        body = multipart(part("isup", "Content-Type: application/isup"), SDP_PART, part("x", "A: b"))
        assert found(invite(body, f"Content-Type: {content_type}")) == [SDP]

    @pytest.mark.parametrize(
        "content_type",
        [
            "multipart/signed;boundary=b1",
            "multipart/encrypted;boundary=b1",
            "multipart/digest;boundary=b1",
            "multipart/mixed",
            "multipart/mixed;boundary=",
            'multipart/mixed;boundary=""',
            'multipart/mixed;boundary="b1',
            "multipart/mixed;boundary=" + "b" * 71,
            "multipart/mixed;boundary=b",
            "multipart/mixed;boundary=b12",
        ],
    )
    def test_stays_closed(self, content_type: str) -> None:
        assert found(invite(multipart(SDP_PART), f"Content-Type: {content_type}")) == []

    def test_has_several_descriptions(self) -> None:
        other = SDP.replace("1 1", "2 2")
        body = multipart(SDP_PART, part(other, "c:application/sdp", "Content-Disposition: early-session"))
        assert found(invite(body, MIXED)) == [SDP, other]

    def test_is_found_inside_another(self) -> None:
        inner = part(
            multipart(part("<html>", "Content-Type: text/html"), SDP_PART, boundary="b2"),
            'Content-Type: multipart/alternative; boundary="b2"',
        )
        assert found(invite(multipart(inner, SDP_PART), MIXED)) == [SDP, SDP]

    def test_is_not_followed_without_end(self) -> None:
        body, names = SDP_PART, []
        for depth in range(2, 40):
            names.append(f"b{depth}x")
            body = part(
                multipart(body, boundary=names[-1]), f"Content-Type: multipart/mixed;boundary={names[-1]}"
            )
        assert found(invite(multipart(body), MIXED)) == []

    def test_has_a_preamble_and_an_epilogue(self) -> None:
        body = f"v=0 --b1\r\n--b1x\r\n{multipart(SDP_PART)}--b1\r\n{SDP_PART}\r\n--b1--"
        assert found(invite(body, MIXED)) == [SDP]

    def test_may_lack_its_end(self) -> None:
        assert found(invite(f"--b1\r\n{SDP_PART}", MIXED)) == [SDP]

    def test_has_delimiters_with_blanks_behind(self) -> None:
        assert found(invite(f"--b1 \t\r\n{SDP_PART}\r\n--b1--  \r\n", MIXED)) == [SDP]

    def test_ends_its_lines_either_way(self) -> None:
        body = multipart(SDP_PART).replace("\r\n", "\n")
        assert found(invite(body, MIXED)) == [SDP.replace("\r\n", "\n")]

    @pytest.mark.parametrize(
        "opaque",
        [
            part(SDP),
            part(SDP, "Content-Type: text/plain"),
            part(SDP, PLAIN, "Content-Transfer-Encoding: base64"),
            part(SDP, PLAIN, "Content-Transfer-Encoding: quoted-printable"),
            part(SDP, PLAIN, "content-encoding:gzip"),
            part(SDP, "Content-Type: message/sipfrag"),
            part(SDP, "no header at all", PLAIN),
            PLAIN,
            "",
        ],
    )
    def test_has_opaque_parts(self, opaque: str) -> None:
        assert found(invite(multipart(opaque, SDP_PART), MIXED)) == [SDP]

    def test_has_parts_in_clear(self) -> None:
        folded = part(SDP, "Content-Type:\r\n\tapplication/sdp", "Content-Transfer-Encoding: 8BIT ")
        assert found(invite(multipart(folded), MIXED)) == [SDP]

    def test_takes_no_long_time_whatever_comes(self) -> None:
        """Each of them would take long if the time rose with the square of the size."""
        for body in ("--b1" * 15000, "--b1\r\n" * 10000, "--b1\r\n" + "a: b\r\n" * 10000, "\n--b1" * 13000):
            assert found(invite(body, MIXED)) == []
        assert found(invite("x", "Content-Type: multipart/mixed" + ";a=b" * 15000)) == []


class TestEditing:
    def test_changes_the_length_of_the_message(self) -> None:
        message = invite(SDP, PLAIN)
        (sdp,) = sdp_parts(message)
        edit_parts(message, [(sdp, [(Span(sdp.span.start, sdp.span.start + 3), b"v=00000")])])
        assert message.encode() == invite(SDP.replace("v=0", "v=00000"), PLAIN).data

    def test_changes_all_lengths_around(self) -> None:
        def build(first: str, second: str) -> SipMessage:
            innermost = part(first, PLAIN, f"Content-Length: {len(first)}")
            inner = multipart(part("x", f"Content-Length: {1:03}"), innermost, boundary="b2")
            nested = part(inner, "Content-Type: multipart/mixed;boundary=b2", f"l : {len(inner)}")
            return invite("preamble\r\n" + multipart(nested, part(second, PLAIN)) + "epilogue", MIXED)

        message = build(SDP, SDP)
        first, second = sdp_parts(message)
        edits = [(Span(each.span.start + 2, each.span.start + 3), b"1234567") for each in (first, second)]
        edit_parts(message, [(first, edits[:1]), (second, edits[1:])])
        longer = SDP.replace("v=0", "v=1234567")
        assert message.encode() == build(longer, longer).data

    def test_changes_no_length_where_the_size_stays(self) -> None:
        body = multipart(part(SDP, PLAIN, f"Content-Length: {len(SDP):04}"))
        message = invite(body, MIXED, length=f"{len(body):05}")
        (sdp,) = sdp_parts(message)
        edit_parts(message, [(sdp, [(Span(sdp.span.start + 2, sdp.span.start + 3), b"7")])])
        assert message.encode() == message.data.replace(b"v=0", b"v=7")

    def test_changes_nothing_without_edits(self) -> None:
        message = invite(multipart(part(SDP, PLAIN, "Content-Length: 7")), MIXED)
        edit_parts(message, [(each, []) for each in sdp_parts(message)])
        assert message.encode() == message.data
        assert not message.is_edited
