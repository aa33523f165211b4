"""Digest authentication against the numbers of the RFCs, and what each side makes of the other."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import count

import pytest

from nattools.errors import AuthenticationError, DecodeError
from nattools.sip.digest import (
    Algorithm,
    Challenge,
    DigestClient,
    DigestServer,
    Verdict,
    is_reusable,
)
from nattools.sip.message import SipMessage, compose_request, compose_response

URI = "sip:203.0.113.7"
BODY = b"v=0\r\n"


@dataclass(frozen=True)
class Vector:
    """A challenge that an RFC or its errata answer."""

    name: str
    challenge: str
    username: str
    password: str
    method: str
    uri: str
    cnonce: str
    response: str
    body: bytes = b""


MUFASA = (
    'Digest realm="http-auth@example.org", qop="auth, auth-int", algorithm={}, '
    'nonce="7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v", '
    'opaque="FQhe/qaU925kfnzjCev0ciny7QMkPqMAFRtzCUYo5tdS"'
)
MUFASA_CNONCE = "f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ"
BOB = 'Digest realm="biloxi.com", nonce="dcd98b7102dd2f0e8b11d0f600bfb0c093"{}'
BOB_BODY = (
    "v=0|o=bob 2890844526 2890844526 IN IP4 media.biloxi.com|s=-|c=IN IP4 media.biloxi.com|t=0 0|"
    "m=audio 49170 RTP/AVP 0|a=rtpmap:0 PCMU/8000|m=video 51372 RTP/AVP 31|a=rtpmap:31 H261/90000|"
    "m=video 53000 RTP/AVP 32|a=rtpmap:32 MPV/90000|"
).replace("|", "\r\n")


def bob(name: str, params: str, response: str) -> Vector:
    return Vector(
        f"draft-smith-sipping-auth-examples-01 {name}",
        BOB.format(params),
        "bob",
        "zanzibar",
        "INVITE",
        "sip:bob@biloxi.com",
        "0a4f113b",
        response,
        BOB_BODY.encode(),
    )


VECTORS = (
    Vector(
        "RFC 7616 3.9.1 MD5",
        MUFASA.format("MD5"),
        "Mufasa",
        "Circle of Life",
        "GET",
        "/dir/index.html",
        MUFASA_CNONCE,
        "8ca523f5e9506fed4657c9700eebdbec",
    ),
    Vector(
        "RFC 7616 3.9.1 SHA-256",
        MUFASA.format("SHA-256"),
        "Mufasa",
        "Circle of Life",
        "GET",
        "/dir/index.html",
        MUFASA_CNONCE,
        "753927fa0e85d155564e2e272a28d1802ca10daf4496794697cf8db5856cb6c1",
    ),
    Vector(
        "RFC 7616 3.9.2, erratum 4897",
        'Digest realm="api@example.org", qop="auth", algorithm=SHA-512-256, '
        'nonce="5TsQWLVdgBdmrQ0XsxbDODV+57QdFR34I9HAbC/RVvkK", '
        'opaque="HRPCssKJSGjCrkzDg8OhwpzCiGPChXYjwrI2QmXDnsOS", charset=UTF-8, userhash=true',
        "Jäsøn Doe",
        "Secret, or not?",
        "GET",
        "/doe.json",
        "NTg6RKcb9boFIAS3KrFK9BGeh+iDa/sm6jUMp2wds69v",
        "3798d4131c277846293534c3edc11bd8a5e4cdcbff78b05db9d95eeb1cec68a5",
    ),
    Vector(
        "RFC 2617 3.5",
        'Digest realm="testrealm@host.com", qop="auth,auth-int", '
        'nonce="dcd98b7102dd2f0e8b11d0f600bfb0c093", opaque="5ccc069c403ebaf9f0171e9517f40e41"',
        "Mufasa",
        "Circle Of Life",
        "GET",
        "/dir/index.html",
        "0a4f113b",
        "6629fae49393a05397450978507c4ef1",
    ),
    bob("3.1, as RFC 2069 does it", "", "bf57e4e0d0bffc0fbaedce64d59add5e"),
    bob("3.2", ', qop="auth,auth-int"', "89eb0059246c02b2f6ee02c7961d5ea3"),
    bob("3.4", ', qop="auth,auth-int", algorithm=MD5-sess', "e4e4ea61d186d07a92c9e1f6919902e9"),
    bob("3.5", ', qop="auth-int", algorithm=MD5', "bdbeebb2da6adb6bca02599c2239e192"),
    bob("3.6", ', qop="auth-int", algorithm=MD5-sess', "91984da2d8663716e91554859c22ca70"),
)


def counting() -> Callable[[int], bytes]:
    """Bytes that are others each time."""
    calls = count()
    return lambda size: hashlib.shake_256(b"%d" % next(calls)).digest(size)


def request(headers: Iterable[tuple[str, str | bytes]] = (), method: str = "REGISTER") -> SipMessage:
    fields = (
        ("Via", "SIP/2.0/UDP 192.168.0.10:5060;branch=z9hG4bKa"),
        ("From", "<sip:alice@203.0.113.7>;tag=1"),
        ("To", "<sip:alice@203.0.113.7>"),
        ("Call-ID", "call"),
        ("CSeq", f"1 {method}"),
    )
    return SipMessage.parse(compose_request(method, URI, (*fields, *headers), BODY))


def refusal(*challenges: str | bytes | tuple[str, str | bytes], code: int = 401) -> SipMessage:
    name = "WWW-Authenticate" if code == 401 else "Proxy-Authenticate"
    headers = [value if isinstance(value, tuple) else (name, value) for value in challenges]
    return SipMessage.parse(compose_response(request(), code, "Unauthorized", headers, to_tag="x"))


def params(value: bytes) -> dict[str, str]:
    """What a header of credentials says, read by the simplest means."""
    scheme, _, rest = value.decode().partition(" ")
    assert scheme == "Digest"
    pairs = (part.partition("=") for part in rest.split(", "))
    return {name: text.strip('"') for name, _, text in pairs}


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector.name)
def test_the_numbers_of_the_documents(vector: Vector, monkeypatch: pytest.MonkeyPatch) -> None:
    class Chance(bytes):
        def hex(self, *_: object) -> str:  # the documents have a cnonce that no hexadecimal is
            return vector.cnonce

    client = DigestClient(vector.username, vector.password, entropy=lambda _: Chance())
    client.challenged(refusal(vector.challenge))
    [(name, value)] = client.headers(vector.method, vector.uri, vector.body)
    assert name == "Authorization"
    said = params(value)
    assert said["response"] == vector.response
    assert said["uri"] == vector.uri
    assert said.get("nc") == ("00000001" if "qop" in vector.challenge else None)
    if "userhash" in vector.challenge:
        assert said["username"] == "793263caabb707a56211940d90411ea4a575adeccb7e360aeb624ed06ece9b0b"
        assert said["userhash"] == "true"
    else:
        assert said["username"] == vector.username


class TestReadingChallenges:
    @pytest.mark.parametrize(
        ("value", "realm", "nonce", "qops"),
        [
            (b'Digest realm="a", nonce="b"', "a", "b", ()),
            (b'DIGEST  Realm = "a" ,\r\n\tNONCE = "b",qop="auth,x",', "a", "b", ("auth", "x")),
            (b'digest realm="a" nonce="b", qop=auth', "a", "b", ("auth",)),  # RFC 3665 2.1 F3 lacks a comma
            (rb'Digest realm="a \"quoted\" \\ realm", nonce="a,b=c"', r'a "quoted" \ realm', "a,b=c", ()),
            ('Digest realm="bücher", nonce="b"'.encode(), "bücher", "b", ()),
            (b'Digest realm="", nonce=""', "", "", ()),
        ],
    )  # fmt: skip
    def test_of_any_spelling(self, value: bytes, realm: str, nonce: str, qops: tuple[str, ...]) -> None:
        challenge = Challenge.parse(value)
        assert (challenge.realm, challenge.nonce, challenge.qops) == (realm, nonce, qops)
        assert challenge.algorithm is Algorithm.MD5

    @pytest.mark.parametrize(
        ("value", "can_be_repeated"),
        [
            (b'Digest username="a", response="b"', True),
            (b'Digest username="a", response="b", qop=auth', False),
            (b"Digest broken", False),
            (b"Bearer x", False),
        ],
    )
    def test_credentials_without_qop_can_be_repeated(self, value: bytes, can_be_repeated: bool) -> None:
        assert is_reusable(value) is can_be_repeated

    @pytest.mark.parametrize(
        "value",
        [
            b"",
            b"Digest",
            b'Basic realm="a"',
            b'Digest realm="a"',
            b'Digest nonce="a"',
            b'Digest realm="a", nonce="b',
            b'Digest realm="a", realm="a", nonce="b"',
            b'Digest realm="a"nonce="b"',
            b'Digest realm="a", nonce',
        ],
    )
    def test_what_is_none_is_a_decode_error(self, value: bytes) -> None:
        with pytest.raises(DecodeError):
            Challenge.parse(value)

    def test_takes_no_more_than_linear_time(self) -> None:
        for hostile in (b'a="', b"a=\\", b'a="\\', b", ", b"a", b"a=b "):
            with pytest.raises(DecodeError):
                Challenge.parse(b"Digest " + hostile * 20_000)

    def test_bytes_that_are_no_text_come_back_as_they_were(self) -> None:
        client = DigestClient("alice", "x", entropy=counting())
        client.challenged(refusal(b'Digest realm="\xff\xfe", nonce="b"'))
        assert b'realm="\xff\xfe"' in client.headers("REGISTER", URI)[0][1]


class TestClient:
    def test_says_nothing_before_it_is_asked(self) -> None:
        assert DigestClient("alice", "x", entropy=counting()).headers("REGISTER", URI) == []

    @pytest.mark.parametrize(
        ("offered", "taken"),
        [
            (("SHA-512-256", "SHA-256", "MD5"), "SHA-512-256"),
            (("MD5", "SHA-256"), "MD5"),  # the server's order counts: RFC 8760 §2.4
            (("SHA3-512", "SHA-256", "MD5"), "SHA-256"),
            (("sha-256",), "SHA-256"),
        ],
    )
    def test_answers_the_topmost_challenge_that_it_knows(self, offered: tuple[str, ...], taken: str) -> None:
        client = DigestClient("alice", "x", entropy=counting())
        client.challenged(refusal(*(f'Digest realm="r", nonce="n", algorithm={name}' for name in offered)))
        [(_, value)] = client.headers("REGISTER", URI)
        assert params(value)["algorithm"] == taken

    def test_answers_each_realm_and_both_kinds_of_server(self) -> None:
        client = DigestClient("alice", "x", entropy=counting())
        client.challenged(
            refusal(
                'Digest realm="a", nonce="1"',
                'Digest realm="b", nonce="2"',
                ("WWW-Authenticate", 'Digest realm="c", nonce="3"'),
                code=407,
            )
        )
        said = [(name, params(value)["realm"]) for name, value in client.headers("INVITE", URI)]
        assert sorted(said) == [
            ("Authorization", "c"),
            ("Proxy-Authorization", "a"),
            ("Proxy-Authorization", "b"),
        ]

    def test_counts_the_uses_of_a_nonce(self) -> None:
        client = DigestClient("alice", "x", entropy=counting())
        client.challenged(refusal('Digest realm="r", nonce="n", qop="auth"'))
        said = [params(client.headers("REGISTER", URI)[0][1]) for _ in range(3)]
        assert [each["nc"] for each in said] == ["00000001", "00000002", "00000003"]
        assert len({each["cnonce"] for each in said}) == 3
        assert len({each["response"] for each in said}) == 3

    def test_prefers_a_protection_that_lets_the_body_be_edited(self) -> None:
        client = DigestClient("alice", "x", entropy=counting())
        client.challenged(refusal('Digest realm="r", nonce="n", qop="auth-int, auth"'))
        assert params(client.headers("INVITE", URI)[0][1])["qop"] == "auth"

    def test_goes_on_with_a_new_nonce_when_the_old_one_is_stale(self) -> None:
        client = DigestClient("alice", "x", entropy=counting())
        client.challenged(refusal('Digest realm="r", nonce="1", qop="auth"'))
        sent = request(client.headers("REGISTER", URI))
        client.challenged(refusal('Digest realm="r", nonce="2", qop="auth", stale=TRUE'), sent)
        said = params(client.headers("REGISTER", URI)[0][1])
        assert (said["nonce"], said["nc"]) == ("2", "00000001")

    def test_does_not_try_a_refused_password_again(self) -> None:
        client = DigestClient("alice", "x", entropy=counting())
        client.challenged(refusal('Digest realm="r", nonce="1", qop="auth"'), request())
        sent = request(client.headers("REGISTER", URI))
        with pytest.raises(AuthenticationError, match="password refused for realm 'r'") as caught:
            client.challenged(refusal('Digest realm="r", nonce="2", qop="auth"'), sent)
        assert caught.value.code == 401

    def test_forgives_a_server_that_does_not_call_an_old_nonce_stale(self) -> None:
        client = DigestClient("alice", "x", entropy=counting())
        client.challenged(refusal('Digest realm="r", nonce="1"'))
        client.headers("REGISTER", URI)
        sent = request(client.headers("REGISTER", URI))
        client.challenged(refusal('Digest realm="r", nonce="2"'), sent)
        assert params(client.headers("REGISTER", URI)[0][1])["nonce"] == "2"

    def test_credentials_that_cannot_be_read_show_nothing_either(self) -> None:
        client = DigestClient("alice", "x", entropy=counting())
        sent = request([("Authorization", "Digest broken"), ("Authorization", 'Digest realm="other"')])
        client.challenged(refusal('Digest realm="r", nonce="2"'), sent)
        assert params(client.headers("REGISTER", URI)[0][1])["nonce"] == "2"

    def test_a_request_without_credentials_shows_nothing_of_the_password(self) -> None:
        client = DigestClient("alice", "x", entropy=counting())
        for nonce in "12":  # two requests were under way when the first challenge came
            client.challenged(refusal(f'Digest realm="r", nonce="{nonce}"'), request())
        assert params(client.headers("REGISTER", URI)[0][1])["nonce"] == "2"

    @pytest.mark.parametrize(
        ("challenges", "told"),
        [
            ((), "names no challenge"),
            (('Digest realm="r", nonce="n", algorithm=SHA3-512',), "'SHA3-512' is not known"),
            (('Digest realm="r", nonce="n", qop="auth-conf"',), "'auth-conf' is not known"),
            (('Basic realm="r"',), "not of the Digest scheme"),
        ],
    )
    def test_says_why_it_cannot_answer(self, challenges: tuple[str, ...], told: str) -> None:
        client = DigestClient("alice", "x", entropy=counting())
        with pytest.raises(AuthenticationError, match=told):
            client.challenged(refusal(*challenges))

    def test_quotes_what_would_break_out(self) -> None:
        client = DigestClient('al"ice\\', "x", entropy=counting())
        client.challenged(refusal(rb'Digest realm="a\"b", nonce="n", opaque="o\\p"'))
        value = client.headers("REGISTER", URI)[0][1]
        assert rb'username="al\"ice\\"' in value
        assert rb'realm="a\"b"' in value
        assert rb'opaque="o\\p"' in value

    def test_never_shows_the_password(self) -> None:
        client = DigestClient("alice", "secret-word", entropy=counting())
        client.challenged(refusal('Digest realm="r", nonce="n"'))
        assert "secret-word" not in repr(client)
        assert b"secret-word" not in client.headers("REGISTER", URI)[0][1]

    def test_remembers_only_so_many_realms(self) -> None:
        client = DigestClient("alice", "x", entropy=counting())
        for number in range(100):
            client.challenged(refusal(f'Digest realm="{number}", nonce="n"'))
        realms = [params(value)["realm"] for _, value in client.headers("REGISTER", URI)]
        assert realms == [str(number) for number in range(84, 100)]


PASSWORDS = {"alice": "secret", "bob": "zanzibar"}.get


def server(**settings: object) -> DigestServer:
    return DigestServer("example.org", entropy=counting(), **settings)  # type: ignore[arg-type]  # each test's own


def answered(
    of: DigestServer, *, now: float = 0.0, username: str = "alice", password: str = "secret"
) -> SipMessage:
    """A REGISTER as a client sends it after the server's challenge."""
    client = DigestClient(username, password, entropy=counting())
    client.challenged(refusal(*of.challenges(now=now)))
    return request(client.headers("REGISTER", URI, BODY))


def edited(message: SipMessage, old: str, new: str) -> SipMessage:
    assert old.encode() in message.data
    return SipMessage.parse(message.data.replace(old.encode(), new.encode()))


class TestServer:
    @pytest.mark.parametrize("algorithm", Algorithm)
    @pytest.mark.parametrize("qops", [(), ("auth",), ("auth-int",), ("auth", "auth-int")])
    def test_lets_in_who_knows_the_password(self, algorithm: Algorithm, qops: tuple[str, ...]) -> None:
        asking = server(algorithms=(algorithm,), qops=qops)
        verification = asking.verify(answered(asking), PASSWORDS, now=1)
        assert (verification.verdict, verification.username) == (Verdict.ACCEPTED, "alice")

    def test_offers_the_best_algorithm_first(self) -> None:
        offered = [value for _, value in server(algorithms=Algorithm).challenges(now=0)]
        assert [Challenge.parse(value).algorithm_name for value in offered] == [
            "MD5",
            "SHA-256",
            "SHA-512-256",
        ]
        assert [name for name, _ in server().challenges(now=0)] == ["WWW-Authenticate"] * 2
        assert [name for name, _ in server(is_proxy=True).challenges(now=0)] == ["Proxy-Authenticate"] * 2
        assert Challenge.parse(server().challenges(now=0, stale=True)[0][1]).is_stale

    @pytest.mark.parametrize(
        ("username", "password"), [("alice", "zanzibar"), ("alice", ""), ("eve", "secret"), ("eve", "")]
    )
    def test_refuses_who_does_not(self, username: str, password: str) -> None:
        asking = server()
        verification = asking.verify(answered(asking, username=username, password=password), PASSWORDS, now=1)
        assert (verification.verdict, verification.username) == (Verdict.REFUSED, username)
        assert "password" in verification.reason

    def test_sees_that_the_body_was_changed_under_auth_int(self) -> None:
        asking = server(qops=("auth-int",))
        sent = answered(asking)
        changed = SipMessage.parse(sent.data.replace(BODY, b"v=1\r\n"))
        assert asking.verify(changed, PASSWORDS, now=1).verdict is Verdict.REFUSED

    def test_sees_that_it_is_another_method(self) -> None:
        asking = server()
        assert (
            asking.verify(edited(answered(asking), "REGISTER", "INVITE"), PASSWORDS, now=1).verdict
            is Verdict.REFUSED
        )

    def test_challenges_who_says_nothing_or_speaks_to_another_realm(self) -> None:
        asking = server()
        assert asking.verify(request(), PASSWORDS, now=1).verdict is Verdict.ABSENT
        other = edited(answered(asking), 'realm="example.org"', 'realm="example.net"')
        assert asking.verify(other, PASSWORDS, now=1).verdict is Verdict.ABSENT
        as_proxy = server(is_proxy=True)
        assert as_proxy.verify(answered(asking), PASSWORDS, now=1).verdict is Verdict.ABSENT

    def test_finds_its_realm_among_others(self) -> None:
        asking = server()
        sent = answered(asking)
        others = (("Authorization", "Digest broken"), ("Authorization", 'Digest realm="example.net"'))
        own = [("Authorization", sent.value(sent.header("authorization")))]
        assert asking.verify(request((*others, *own)), PASSWORDS, now=1).verdict is Verdict.ACCEPTED

    @pytest.mark.parametrize(
        ("made_at", "now", "verdict"),
        [
            (0.0, 300.0, Verdict.ACCEPTED),
            (0.0, 301.0, Verdict.STALE),
            (1e9, 1e9 + 299, Verdict.ACCEPTED),
            (-500.0, -400.0, Verdict.ACCEPTED),  # monotonic seconds have any origin
            (1000.0006, 1000.0006, Verdict.ACCEPTED),  # answered within the millisecond that it is noted in
            (100.0, 50.0, Verdict.STALE),  # from the future: another run of a server with this key
        ],
    )
    def test_a_nonce_is_good_for_five_minutes(self, made_at: float, now: float, verdict: Verdict) -> None:
        asking = server()
        assert asking.verify(answered(asking, now=made_at), PASSWORDS, now=now).verdict is verdict

    def test_a_nonce_of_somebody_else_is_stale(self) -> None:
        asking = server()
        other = DigestServer("example.org", entropy=bytes)
        verification = asking.verify(answered(other), PASSWORDS, now=1)
        assert (verification.verdict, verification.reason) == (
            Verdict.STALE,
            "the nonce is from another server",
        )

    @pytest.mark.parametrize("nonce", ["", "x", "ü", "A" * 43, "=" * 40])
    def test_a_nonce_that_nobody_made_is_stale(self, nonce: str) -> None:
        client = DigestClient("alice", "secret", entropy=counting())
        client.challenged(refusal(f'Digest realm="example.org", nonce="{nonce}", qop="auth"'))
        sent = request(client.headers("REGISTER", URI))
        assert server().verify(sent, PASSWORDS, now=1).verdict is Verdict.STALE

    def test_the_same_request_does_not_count_twice(self) -> None:
        asking = server()
        sent = answered(asking)
        assert asking.verify(sent, PASSWORDS, now=1).verdict is Verdict.ACCEPTED
        again = asking.verify(sent, PASSWORDS, now=2)
        assert (again.verdict, again.reason) == (
            Verdict.STALE,
            "the nonce was used with count 00000001 before",
        )

    def test_requests_may_overtake_each_other(self) -> None:
        asking = server()
        client = DigestClient("alice", "secret", entropy=counting())
        client.challenged(refusal(*asking.challenges(now=0)))
        sent = [request(client.headers("REGISTER", URI)) for _ in range(100)]
        verdicts = [
            asking.verify(sent[index], PASSWORDS, now=1).verdict for index in (70, 69, 80, 17, 16, 80, 17, 99)
        ]
        accepted, stale = Verdict.ACCEPTED, Verdict.STALE
        assert verdicts == [accepted, accepted, accepted, accepted, stale, stale, stale, accepted]

    def test_a_forgotten_nonce_is_stale_and_not_new(self) -> None:
        asking = server(nonce_lifetime_s=1e6, algorithms=(Algorithm.MD5,))
        first = answered(asking, now=0)
        assert asking.verify(first, PASSWORDS, now=0).verdict is Verdict.ACCEPTED
        for number in range(1, 4097):
            sent = answered(asking, now=number)
            assert asking.verify(sent, PASSWORDS, now=number).verdict is Verdict.ACCEPTED
        assert asking.verify(first, PASSWORDS, now=5000).verdict is Verdict.STALE
        assert len(asking._counts) == 4096

    def test_the_form_of_pyvoip_is_let_in_unless_a_qop_is_required(self) -> None:
        def as_pyvoip(asking: DigestServer) -> SipMessage:
            nonce = Challenge.parse(asking.challenges(now=0)[-1][1]).nonce
            uri = "sip:203.0.113.7;transport=UDP"
            ha1 = hashlib.md5(b"alice:example.org:secret").hexdigest()
            ha2 = hashlib.md5(f"REGISTER:{uri}".encode()).hexdigest()
            response = hashlib.md5(f"{ha1}:{nonce}:{ha2}".encode()).hexdigest()
            value = f'Digest username="alice",realm="example.org",nonce="{nonce}",uri="{uri}"'
            return request([("Authorization", f'{value},response="{response}",algorithm=MD5')])

        lax, strict = server(), server(is_qop_required=True)
        assert lax.verify(as_pyvoip(lax), PASSWORDS, now=1).verdict is Verdict.ACCEPTED
        verification = strict.verify(as_pyvoip(strict), PASSWORDS, now=1)
        assert (verification.verdict, verification.reason) == (Verdict.REFUSED, "the credentials have no qop")

    @pytest.mark.parametrize(
        ("old", "new", "told"),
        [
            ("username=", "user=", "no username"),
            ("nonce=", "n=", "no n"),
            ("uri=", "u=", "no uri"),
            ("response=", "r=", "no response"),
            ("algorithm=SHA-256", "algorithm=SHA-512-256", "was not offered"),
            ("algorithm=SHA-256", "algorithm=SHA-256-sess", "was not offered"),
            ("algorithm=SHA-256", "algorithm=ROT13", "was not offered"),
            ("qop=auth", "qop=auth-int", "was not offered"),
            ("nc=00000001", "nc=1", "no nc of eight digits"),
            ("cnonce=", "c=", "no cnonce"),
            ("Digest username", "Basic username", "not of the Digest scheme"),
        ],
    )
    def test_says_what_is_wrong_with_the_form(self, old: str, new: str, told: str) -> None:
        asking = server()
        verification = asking.verify(edited(answered(asking), old, new), PASSWORDS, now=1)
        assert verification.verdict is Verdict.REFUSED
        assert told in verification.reason

    def test_its_nonces_differ_and_nobody_can_make_one(self) -> None:
        asking = server()
        nonces = {Challenge.parse(asking.challenges(now=5)[0][1]).nonce for _ in range(50)}
        assert len(nonces) == 50
        nonce = min(nonces)
        for position in range(len(nonce) - 1):  # the last character carries bits of no byte
            forged = nonce[:position] + ("A" if nonce[position] != "A" else "B") + nonce[position + 1 :]
            assert asking._made_at(forged) is None
        assert asking._made_at(nonce) == 5
