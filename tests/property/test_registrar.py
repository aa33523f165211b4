"""The registrar against a plain model of RFC 3261 §10.3, and against REGISTERs that are none."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from nattools.errors import DecodeError
from nattools.session.location import Bindings
from nattools.session.registrar import Refusal
from nattools.sip.message import SipMessage
from tests.unit.session.registering import SOURCE, Phone, contacts, register, registrar

SPELLINGS = (
    ("sip:alice@one.example.org", "sip:%61lice@ONE.example.org"),
    ("sip:alice@192.0.2.2:5070", "sip:alice@192.0.2.2:5070"),
    ("sips:alice@one.example.org", "SIPS:alice@one.example.org"),
    ("mailto:alice@example.org", "mailto:alice@example.org"),
)
MOST_CONTACTS = 3


@dataclass(frozen=True)
class Asked:
    """One Contact: which, in which spelling, and what its expires says."""

    index: int
    spelling: int
    expires: int | None


@dataclass(frozen=True)
class Step:
    """One REGISTER, some time after the one before."""

    pause_s: float
    call_id: str
    cseq: int
    asked: tuple[Asked, ...] | None  # None: all is to go
    general: int | None


ASKED = st.builds(
    Asked,
    st.integers(0, len(SPELLINGS) - 1),
    st.integers(0, 1),
    st.sampled_from([None, 0, 0, 30, 60, 600, 99999]),
)
STEPS = st.builds(
    Step,
    st.sampled_from([0.0, 0.0, 1.0, 59.0, 400.0, 8000.0]),
    st.sampled_from(["one", "two"]),
    st.integers(1, 6),
    st.none() | st.lists(ASKED, max_size=4).map(tuple),
    st.sampled_from([None, None, 0, 30, 300]),
)


@dataclass
class Model:
    """What the RFC says, in the fewest words: contact -> (Call-ID, CSeq, expires at)."""

    kept: dict[int, tuple[str, int, float]] = field(default_factory=dict)

    def take(self, step: Step, now: float) -> int:
        """The status code, after which `kept` is what it should be."""
        self.kept = {index: each for index, each in self.kept.items() if each[2] > now}
        if step.asked is None:
            meant, after = set(self.kept), dict[int, tuple[str, int, float]]()
        else:
            meant, after = {asked.index for asked in step.asked}, dict(self.kept)
            for asked in step.asked:
                expires = next((e for e in (asked.expires, step.general) if e is not None), 3600)
                if 0 < expires < 60:
                    return 423
                after.pop(asked.index, None)
                if expires:
                    after[asked.index] = (step.call_id, step.cseq, now + min(expires, 7200))
        before = (self.kept[index] for index in meant if index in self.kept)
        if any(call_id == step.call_id and cseq >= step.cseq for call_id, cseq, _ in before):
            return 500
        if len(after) > max(MOST_CONTACTS, len(self.kept)):
            return 403
        self.kept = after
        return 200


def written(step: Step) -> bytes:
    asked = ["*"]
    general = 0 if step.asked is None else step.general
    if step.asked is not None:
        asked = [
            f"<{SPELLINGS[each.index][each.spelling]}>"
            + ("" if each.expires is None else f";expires={each.expires}")
            for each in step.asked
        ]
    headers = [] if general is None else [("Expires", str(general))]
    return register(*asked, call_id=step.call_id, cseq=step.cseq, headers=headers)


def index_of(contact: str) -> int:
    return next(number for number, spellings in enumerate(SPELLINGS) if contact in spellings)


@given(st.lists(STEPS, max_size=12))
def test_it_does_what_the_model_does(steps: list[Step]) -> None:
    async def walk() -> None:
        phone, model, now = Phone(registrar(contacts_per_user=MOST_CONTACTS)), Model(), 1000.0
        for step in steps:
            now += step.pause_s
            response = await phone.answer(written(step), now=now)
            assert response.status_code == model.take(step, now)
            bindings = await phone.location.bindings("alice@example.com", now=now)
            found = [
                (index_of(each.contact.decode()), (each.call_id.decode(), each.cseq, each.expires_at))
                for each in bindings
            ]
            assert found == list(model.kept.items())
            if response.status_code == 200:
                told = {index_of(uri): seconds for uri, seconds in contacts(response).items()}
                assert told == {index: round(until - now) for index, (_, _, until) in model.kept.items()}

    asyncio.run(walk())


FULL = register(
    '"A" <sip:alice@192.168.1.10:5060;ob>;+sip.instance="<urn:uuid:1>";reg-id=1;q=0.5;expires=60',
    "mailto:alice@example.org;expires=90",
    headers=[
        ("Supported", "path, outbound, gruu"),
        ("Require", "path"),
        ("Path", "<sip:p1;lr>, <sip:p2;lr;ob>"),
        ("Expires", "120"),
    ],
)
PIECES = [
    b"\r\n",
    b"\r",
    b"\r\n ",
    b"\0",
    b"\xff",
    b'"',
    b"<",
    b">",
    b",",
    b";",
    b"*",
    b"0",
    b"%",
    b"@",
    b":",
]


@settings(max_examples=300)
@given(
    st.lists(
        st.tuples(
            st.integers(0, len(FULL)), st.integers(0, 6), st.sampled_from(PIECES) | st.binary(max_size=4)
        ),
        max_size=5,
    )
)
def test_whatever_comes_is_answered(changes: list[tuple[int, int, bytes]]) -> None:
    phone = Phone(registrar())
    challenge = phone.registrar.admit(SipMessage.parse(FULL), source=SOURCE, now=0.0)
    assert isinstance(challenge, Refusal)
    phone.digest.challenged(SipMessage.parse(challenge.response))
    data = phone.signed(FULL)
    for start, size, piece in changes:
        data = data[:start] + piece + data[start + size :]
    try:
        request = SipMessage.parse(data)
    except DecodeError:
        return
    if not phone.registrar.is_responsible(request):
        return
    admitted = phone.registrar.admit(request, source=SOURCE, now=0.0)
    if isinstance(admitted, Refusal):
        response = SipMessage.parse(admitted.response)
        assert response.status_code in (400, 401, 403, 404, 420, 423, 439)
        return
    registration = phone.registrar.register(admitted, (), now=0.0)
    response = SipMessage.parse(registration.response)
    assert (response.status_code == 200) == (not registration.reason)
    if response.status_code == 200:
        bindings: Bindings = registration.bindings or ()
        assert [
            response.data[slice(*each.uri.span)] for each in response.contacts if each.uri is not None
        ] == [each.contact for each in bindings]
        assert len(response.headers) < 20


def test_the_message_that_is_changed_is_a_good_one() -> None:
    phone = Phone(registrar())
    assert phone.run(FULL).status_code == 200
