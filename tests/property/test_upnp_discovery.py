"""What holds for any datagram, any root description and any URL."""

from __future__ import annotations

from xml.sax.saxutils import escape

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nattools.endpoint import Endpoint
from nattools.errors import DecodeError
from nattools.upnp.description import parse_description
from nattools.upnp.location import Location
from nattools.upnp.ssdp import (
    MOST_LOCATIONS,
    MOST_RESPONDERS,
    MOST_UNLIKELY_RESPONDERS,
    Answer,
    Notification,
    NotificationKind,
    Search,
    Watch,
    parse,
    printable,
)
from tests.fuzz import __main__ as fuzz
from tests.fuzz.upnp_discovery import LOCATION, TARGET, check, check_datagram, check_description, check_url

SEEDS = TARGET.seeds()
XML_SEEDS = tuple(seed for seed in SEEDS if seed.lstrip().startswith(b"<"))

visible = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters="#"), max_size=40)
targets = visible.map(lambda text: f"/{text}")
ips = st.ip_addresses().filter(lambda ip: getattr(ip, "scope_id", None) is None)
locations = st.builds(Location, st.builds(Endpoint, ips, st.integers(1, 0xFFFF)), targets)
header_texts = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=40)


class TestAnyBytes:
    @settings(deadline=None)
    @given(st.binary(max_size=300))
    def test_are_a_value_or_a_decode_error(self, data: bytes) -> None:
        check(data)

    @settings(deadline=None)
    @given(st.sampled_from([b"HTTP/1.1 200 OK\r\n", b"NOTIFY * HTTP/1.1\r\n"]), st.binary(max_size=300))
    def test_behind_a_start_line_too(self, start: bytes, rest: bytes) -> None:
        check_datagram(start + rest)

    @settings(deadline=None)
    @given(st.sampled_from(SEEDS), st.data())
    def test_and_what_is_nearly_right(self, seed: bytes, data: st.DataObject) -> None:
        changed = bytearray(seed)
        for _ in range(data.draw(st.integers(1, 4))):
            position = data.draw(st.integers(0, len(changed) - 1))
            changed[position : position + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
        check(bytes(changed))

    @pytest.mark.parametrize("seed", range(len(XML_SEEDS)))
    def test_and_every_beginning_of_a_description(self, seed: int) -> None:
        whole = XML_SEEDS[seed].rstrip()
        step = len(whole) // 200 + 1
        for size in range(0, len(whole) - 1, step):
            with pytest.raises(DecodeError):
                parse_description(whole[:size], LOCATION)

    @settings(deadline=None)
    @given(st.text(st.sampled_from("<>/&;!?-[]\"' =x:"), max_size=60))
    def test_and_what_looks_like_xml(self, text: str) -> None:
        check_description(f"<root><device>{text}</device></root>".encode())


class TestUrls:
    @settings(deadline=None)
    @given(st.text(st.characters(exclude_categories=()), max_size=60))
    def test_any_text_is_a_location_or_a_decode_error(self, text: str) -> None:
        check_url(text)
        check_url(f"http://192.168.1.1{text}")

    @settings(deadline=None)
    @given(st.text(st.sampled_from("htp:/@[]?#.%\\127 \t"), max_size=20))
    def test_what_looks_like_a_url_does_too(self, text: str) -> None:
        check_url(text)

    @settings(deadline=None)
    @given(locations)
    def test_a_location_is_read_as_it_is_written(self, location: Location) -> None:
        assert Location.parse(str(location)) == location

    @settings(deadline=None)
    @given(locations, locations)
    def test_a_joined_location_stays_on_its_host(self, base: Location, reference: Location) -> None:
        try:
            joined = base.join(str(reference))
        except DecodeError:
            assert base.endpoint.ip != reference.endpoint.ip
        else:
            assert joined.endpoint == reference.endpoint
            assert base.endpoint.ip == reference.endpoint.ip

    @settings(deadline=None)
    @given(locations, visible)
    def test_an_absolute_path_replaces_the_target(self, base: Location, path: str) -> None:
        path = "/" + "".join(c for c in path if c not in "./?;")
        assert base.join(path) == Location(base.endpoint, path)


class TestMessages:
    @settings(deadline=None)
    @given(locations, header_texts, header_texts, st.integers(0, 2**31 - 1))
    def test_an_answer_says_what_was_put_into_it(
        self, location: Location, target: str, name: str, boot_id: int
    ) -> None:
        usn = f"uuid:{name}::{target}"
        data = (
            f"HTTP/1.1 200 OK\r\nST: {target}\r\nUSN: {usn}\r\n"
            f"BOOTID.UPNP.ORG: {boot_id}\r\nLOCATION: {location}\r\n\r\n"
        )
        assert parse(data.encode()) == Answer(str(location), target, usn, "", boot_id)

    @settings(deadline=None)
    @given(st.text(max_size=900))
    def test_what_is_printable_stays_so(self, text: str) -> None:
        line = printable(text)
        assert line.isprintable()
        assert len(line) <= 200
        assert printable(line) == line.strip()

    @settings(deadline=None)
    @given(
        st.lists(
            st.tuples(st.integers(1, 40), st.integers(1, 6), st.sampled_from(["WANDevice", "MediaServer"])),
            max_size=400,
        )
    )
    def test_a_search_hears_no_more_than_it_has_room_for(self, drawn: list[tuple[int, int, str]]) -> None:
        search = Search([], timeout_s=1, now=0)
        for host, number, device in drawn:
            source = Endpoint.of(f"192.168.1.{host}", 1900)
            lines = (
                "HTTP/1.1 200 OK",
                f"LOCATION: http://{source.ip}/{number}",
                f"ST: urn:x:device:{device}:1",
            )
            search.receive("\r\n".join(lines).encode(), source, now=0)
        heard = []
        while (event := search.next_event()) is not None:
            heard.append(event)
        assert len(heard) == len(set(map(repr, heard)))
        assert len(heard) <= (MOST_RESPONDERS + MOST_UNLIKELY_RESPONDERS) * MOST_LOCATIONS

    @settings(deadline=None)
    @given(
        st.lists(
            st.builds(
                Notification,
                st.sampled_from(NotificationKind),
                st.none(),
                st.just("upnp:rootdevice"),
                st.just("uuid:1"),
                st.just(""),
                st.none() | st.integers(1, 2),
                st.none() | st.integers(1, 2),
            ),
            max_size=12,
        )
    )
    def test_a_watch_that_hears_the_same_again_says_nothing_new(self, heard: list[Notification]) -> None:
        source = Endpoint.of("192.168.1.1", 1900)
        watch = Watch(udn="uuid:1", address=source.ip)
        for notification in heard:
            watch.heard(notification, source)
            assert watch.heard(notification, source) is None


@settings(deadline=None)
@given(
    st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="\ufffe\uffff"), max_size=60)
)
def test_a_name_is_read_from_a_description_as_it_may_be_shown(name: str) -> None:
    data = f"<root><device><friendlyName>{escape(name)}</friendlyName></device></root>".encode()
    assert parse_description(data, LOCATION).friendly_name == printable(name)


def test_a_short_run_of_the_fuzzer_holds_and_reaches_every_outcome(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert fuzz.main(["upnp_discovery", "--count", "3000"]) == 0
    report = capsys.readouterr().out
    for outcome in ("Answer", "Notification", "RootDescription", "Location", "DecodeError"):
        assert outcome in report
