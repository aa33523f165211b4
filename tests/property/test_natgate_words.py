"""Whatever natgate reads in files, documents and headers: a value or `DecodeError`, and one line of log."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from contextlib import suppress

from hypothesis import given
from hypothesis import strategies as st

from nattools.errors import DecodeError
from nattools.session.controller.journal import Journal
from nattools.session.dialogs import Call, Party
from nattools.session.events import CallStarted
from nattools.session.flows import Flow
from nattools.session.settings import WORDS, GateSettings
from nattools.session.status import GateStatus
from tests.unit.session.gate_status import STATUS
from tests.unit.session.proxy_desk import ALICE

LIKELY = st.sampled_from(
    [
        "sip:h",
        "127.0.0.1:5060",
        "tls:[::1]",
        "1-2",
        "30000-40000",
        "memory",
        "sqlite:x",
        "kernel",
        "~nobody/x",
        "\0",
    ]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | LIKELY,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(sorted(WORDS)) | st.text(max_size=9), VALUES, max_size=4))
def test_words_are_settings_or_refused(words: Mapping[str, object]) -> None:
    with suppress(DecodeError):
        settings = GateSettings.of(words)
        assert GateSettings.of({name: getattr(settings, name) for name in WORDS}) == settings


@given(
    st.text(max_size=60)
    | st.sampled_from(sorted(WORDS)).flatmap(lambda it: st.text().map(f"{it} = {{}}".format))
)
def test_a_file_is_settings_or_refused(text: str) -> None:
    with suppress(DecodeError):
        GateSettings.parse(text)


@given(st.data())
def test_a_document_with_anything_in_one_place_is_a_status_or_none(data: st.DataObject) -> None:
    document = json.loads(json.dumps(STATUS.as_json()))
    place = document
    while True:
        key = data.draw(
            st.sampled_from(sorted(place) if isinstance(place, dict) else list(range(len(place))))
        )
        if isinstance(place[key], dict | list) and place[key] and data.draw(st.booleans()):
            place = place[key]
            continue
        place[key] = data.draw(JSON)
        break
    with suppress(DecodeError):
        assert GateStatus.parse(json.dumps(document)).as_json()


@given(call_id=st.binary(max_size=40), caller=st.binary(max_size=40), callee=st.binary(max_size=40))
def test_a_call_is_one_line_whatever_its_headers_hold(call_id: bytes, caller: bytes, callee: bytes) -> None:
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]  # on purpose
    logger = logging.getLogger("nattools.session.controller.journal")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        journal = Journal(now=lambda: 0.0)
        flow = Flow("udp", ALICE)
        call = Call(call_id, Party(b"a", caller, b"", (), flow), Party(b"b", callee, b"", (), flow))
        journal.take(CallStarted(1, call))
        assert all(
            it.isprintable() for each in journal.calls() for it in (each.call_id, each.caller, each.callee)
        )
        journal.ends(call, tuple)
        journal.ended(call)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    (line,) = lines
    assert line.isprintable()
    assert line.startswith("call call_id=")
