"""What a stranger may send to a SIP server: malformed, oversized, forged, meant for others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random

from nattools.endpoint import Endpoint

SDP = (
    b"v=0\r\no=- 1 1 IN IP4 203.0.113.77\r\ns=-\r\nc=IN IP4 203.0.113.77\r\nt=0 0\r\n"
    b"m=audio 49170 RTP/AVP 0 8 101\r\na=rtpmap:0 PCMU/8000\r\na=rtcp:49171\r\na=sendrecv\r\n"
)
METHODS = (b"INVITE", b"REGISTER", b"OPTIONS", b"BYE", b"CANCEL", b"ACK", b"UPDATE", b"MESSAGE", b"SUBSCRIBE")
_ODD_BYTES = (
    b"\0",
    b"\r",
    b"\n",
    b"\r\n",
    b"\xff",
    b"\xc3\x28",
    b'"',
    b"<",
    b">",
    b";",
    b",",
    b"\\",
    b"\t",
    b"%00",
)
_ODD_NUMBERS = (b"-1", b"0", b"99999999999999999999", b"4294967296", b"1e9", b"0x10", b" ", b"+1", b"1 1")


@dataclass
class Attacker:
    """Somebody who knows the address of `gate`, the name of a user of it, and of one call what is in `call`.

    `victim` is a third party, who should never hear of it. Each message is new; `random` decides which.
    """

    gate: Endpoint
    victim: Endpoint
    source: Endpoint
    random: Random
    user: bytes = b"alice"
    call: tuple[bytes, bytes, bytes] = (b"guessed", b"guessed", b"guessed")
    transport: bytes = b"UDP"
    _last: int = field(default=0, repr=False)

    def message(self) -> bytes:
        """One message of any kind."""
        return self.random.choice((self.mutated, self.mutated, self.oversized, self.forged, self.answer))()

    def messages(self, number: int) -> Iterator[bytes]:
        """As many of any kind."""
        for _ in range(number):
            yield self.message()

    # --- what is well formed ---

    def request(
        self,
        method: bytes = b"INVITE",
        uri: bytes = b"",
        *fields: bytes,
        body: bytes = b"",
        to_tag: bytes = b"",
        call_id: bytes = b"",
        from_tag: bytes = b"x",
        via: bytes = b"",
    ) -> bytes:
        """A request as a phone would send it; `fields` are whole headers without their line ends."""
        self._last += 1
        gate = str(self.gate).encode()
        uri = uri or b"sip:%b@%b" % (self.user, gate)
        name = b"%d%d" % (self._last, self.random.getrandbits(40))
        source = str(self.source).encode()
        lines = [
            b"%b %b SIP/2.0" % (method, uri),
            via or b"Via: SIP/2.0/%b %b;rport;branch=z9hG4bK%b" % (self.transport, source, name),
            b"Max-Forwards: 70",
            b"From: <sip:mallory@%b>;tag=%b" % (gate, from_tag),
            b"To: <sip:%b@%b>%b" % (self.user, gate, b";tag=" + to_tag if to_tag else b""),
            b"Call-ID: " + (call_id or name),
            b"CSeq: %d %b" % (1 + self.random.getrandbits(8), method),
            b"Contact: <sip:mallory@%b>" % source,
            *fields,
        ]
        if body:
            lines.append(b"Content-Type: application/sdp")
        lines += [b"Content-Length: %d" % len(body), b"", body]
        return b"\r\n".join(lines)

    # --- what is not ---

    def mutated(self) -> bytes:
        """A request that was changed in one to four places (RFC 4475 has its like)."""
        data = self.request(self.random.choice(METHODS), body=self.random.choice((b"", SDP)))
        for _ in range(self.random.randint(1, 4)):
            data = self.random.choice(_CHANGES)(data, self.random)
        return data

    def oversized(self) -> bytes:
        """A request that is endless in one respect."""
        many = self.random.choice((100, 1000, 3000))
        gate = str(self.gate).encode()
        victim = str(self.victim).encode()
        kinds: tuple[Callable[[], bytes], ...] = (
            lambda: self.request(b"INVITE", b"", *(b"X-%d: %d" % (n, n) for n in range(many))),
            lambda: self.request(b"INVITE", b"", b"Subject: " + b"a" * 20 * many),
            lambda: self.request(b"INVITE", b"", *([b"Via: SIP/2.0/UDP %b;branch=z9hG4bK1" % victim] * many)),
            lambda: self.request(b"INVITE", b"", b"Route: " + b",".join([b"<sip:%b;lr>" % gate] * many)),
            lambda: self.request(
                b"INVITE", b"", b"Record-Route: " + b",".join([b"<sip:%b;lr>" % gate] * many)
            ),
            lambda: self.request(b"REGISTER", b"", b"Contact: " + b",".join([b"<sip:a@%b>" % victim] * many)),
            lambda: self.request(b"INVITE", b"sip:" + b"a" * 20 * many + b"@" + gate),
            lambda: self.request(b"A" * 10 * many),
            lambda: self.request(b"OPTIONS", b"sip:a@%b;" % gate + b";".join([b"p=1"] * many)),
            lambda: self.request(body=SDP + b"m=audio 9 RTP/AVP 0\r\n" * many),
            lambda: self.request(body=SDP + b"a=candidate:1 1 UDP 1 1.2.3.4 9 typ host\r\n" * many),
            lambda: self.request(b"INVITE", b"", b'Subject: "' + b"\\" * 10 * many),
            lambda: self.request(b"INVITE", b"", b"User-Agent: " + b"(" * 10 * many),
            lambda: self.request(b"INVITE", b"", b"Subject: " + b"a\r\n " * 5 * many),
            lambda: b"\0" * 20 * many,
            lambda: self.request(body=_nested(many // 20)),
            lambda: self.request(
                b"REGISTER", b"", *([b"Authorization: Digest " + b"a=b," * 20] * (many // 20))
            ),
        )
        return self.random.choice(kinds)()[:65_000]

    def forged(self) -> bytes:
        """A request that wants to get to somebody else, into a call, or round in circles."""
        gate, victim = str(self.gate).encode(), str(self.victim).encode()
        call_id, one, other = self.call
        method = self.random.choice(METHODS)
        tags = {"call_id": call_id, "from_tag": one, "to_tag": other}
        alias = b"alias=%b~%d~%d" % (
            str(self.victim.ip).encode(),
            self.victim.port,
            self.random.choice((1, 2)),
        )
        kinds: tuple[Callable[[], bytes], ...] = (
            lambda: self.request(method, b"sip:x@%b" % victim, body=SDP),
            lambda: self.request(method, b"sip:x@%b;transport=tcp" % victim),
            lambda: self.request(method, b"", b"Route: <sip:%b;lr>" % victim, body=SDP),
            lambda: self.request(
                method, b"", b"Route: <sip:%b;lr>, <sip:%b;lr>" % (gate, victim), to_tag=b"t"
            ),
            lambda: self.request(method, b"sip:x@%b" % victim, b"Route: <sip:%b;lr>" % gate, to_tag=b"t"),
            lambda: self.request(method, b"sip:x@192.168.0.1;" + alias, to_tag=b"t"),
            lambda: self.request(method, b"sip:x@192.168.0.1;" + alias),
            lambda: self.request(method, b"sip:x@%b;%b" % (gate, alias), b"Route: <sip:%b;lr>" % gate),
            lambda: self.request(method, b"sip:%b;lr" % gate, b"Route: <sip:x@%b>" % victim, to_tag=b"t"),
            lambda: self.request(method, body=SDP, via=b"Via: SIP/2.0/UDP %b;branch=z9hG4bKloop" % gate),
            lambda: self.request(method, b"", via=b"Via: SIP/2.0/TCP %b;branch=z9hG4bK9" % victim),
            lambda: self.request(
                method,
                b"",
                via=b"Via: SIP/2.0/UDP %b;received=%b;branch=z9hG4bK8"
                % (victim, str(self.victim.ip).encode()),
            ),
            lambda: self.request(
                method, b"", b"Record-Route: <sip:%b;lr>" % victim, b"Path: <sip:%b;lr>" % victim
            ),
            lambda: self.request(b"REGISTER", b"sip:" + gate, b"Contact: <sip:%b@%b>" % (self.user, victim)),
            lambda: self.request(b"REGISTER", b"sip:" + gate, b"Contact: *", b"Expires: 0"),
            lambda: self.request(b"BYE", **tags),
            lambda: self.request(b"BYE", call_id=call_id, from_tag=other, to_tag=b"wrong"),
            lambda: self.request(b"INVITE", call_id=call_id, from_tag=b"wrong", to_tag=one, body=SDP),
            lambda: self.request(b"UPDATE", call_id=call_id, from_tag=one, to_tag=b"wrong", body=SDP),
            lambda: self.request(b"CANCEL", call_id=call_id, from_tag=one),
            lambda: self.request(b"ACK", b"sip:x@%b" % victim, to_tag=b"t", body=SDP),
            lambda: self.request(method, b"sip:mallory@%b" % gate, b"Max-Forwards: 255"),
            lambda: self.request(method, b"tel:+4930123456"),
            lambda: self.request(method, b"sips:%b@%b" % (self.user, gate)),
            lambda: self.request(b"REFER", b"", b"Refer-To: <sip:x@%b>" % victim, to_tag=b"t"),
        )
        return self.random.choice(kinds)()

    def answer(self) -> bytes:
        """A response to something that nobody asked, as a rule to a request of the gate's."""
        gate = str(self.gate).encode()
        branch = self.random.choice((b"z9hG4bK%016x.%016x", b"z9hG4bKping%x.%016x.1", b"z9hG4bK%x%x"))
        numbers = (self.random.getrandbits(10), self.random.getrandbits(64))
        code = self.random.choice((100, 180, 183, 200, 302, 401, 407, 481, 503, 603, 699, 999))
        method = self.random.choice(METHODS)
        return b"\r\n".join(
            (
                b"SIP/2.0 %d Word" % code,
                b"Via: SIP/2.0/UDP %b;branch=%b" % (gate, branch % numbers),
                b"Via: SIP/2.0/UDP %b;branch=z9hG4bK1" % str(self.victim).encode(),
                b"From: <sip:a@%b>;tag=%b" % (gate, self.call[1]),
                b"To: <sip:b@%b>;tag=%b" % (gate, self.call[2]),
                b"Call-ID: " + self.call[0],
                b"CSeq: 1 " + method,
                b"Contact: <sip:x@%b>" % str(self.victim).encode(),
                b"Content-Type: application/sdp",
                b"Content-Length: %d" % len(SDP),
                b"",
                SDP,
            )
        )


def _nested(depth: int) -> bytes:
    """A multipart body in a multipart body, and so on."""
    head = b"".join(b"--b\r\nContent-Type: multipart/mixed;boundary=b\r\n\r\n" for _ in range(depth))
    return head + b"--b\r\nContent-Type: application/sdp\r\n\r\n" + SDP + b"--b--\r\n"


def _place(data: bytes, random: Random) -> int:
    return random.randrange(len(data) + 1)


def _flip(data: bytes, random: Random) -> bytes:
    place = _place(data, random)
    return data[:place] + bytes((random.randrange(256),)) + data[place + 1 :]


def _insert(data: bytes, random: Random) -> bytes:
    place = _place(data, random)
    return data[:place] + random.choice(_ODD_BYTES) * random.choice((1, 1, 1, 50)) + data[place:]


def _cut(data: bytes, random: Random) -> bytes:
    first, second = sorted((_place(data, random), _place(data, random)))
    return data[:first] + data[second:]


def _end(data: bytes, random: Random) -> bytes:
    return data[: _place(data, random)]


def _lines(data: bytes, random: Random) -> bytes:
    """One line goes, comes twice, or changes its place."""
    lines = data.split(b"\r\n")
    place = random.randrange(len(lines))
    line = lines.pop(place)
    for _ in range(random.randrange(3)):
        lines.insert(random.randrange(len(lines) + 1), line)
    return b"\r\n".join(lines)


def _value(data: bytes, random: Random) -> bytes:
    """One header gets another value."""
    lines = data.split(b"\r\n")
    place = random.randrange(len(lines))
    name, colon, value = lines[place].partition(b":")
    if colon:
        odd = random.choice(
            (*_ODD_NUMBERS, b"", b"*", b"<>", b"<sip:>", b"sip:a@[::1", value + value, b"," * 30)
        )
        lines[place] = name + colon + random.choice((b" ", b"\t", b"")) + odd
    return b"\r\n".join(lines)


def _number(data: bytes, random: Random) -> bytes:
    """A number in it becomes another one."""
    places = [place for place, octet in enumerate(data) if 0x30 <= octet <= 0x39]
    if not places:
        return data
    place = random.choice(places)
    return data[:place] + random.choice(_ODD_NUMBERS) + data[place + 1 :]


_CHANGES = (_flip, _insert, _cut, _end, _lines, _value, _number)
