"""The audio of examples/softphone.py: its files and its packets."""

from __future__ import annotations

import struct
import sys
import wave
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def media() -> ModuleType:
    """The part of it that does the audio."""
    spec = spec_from_file_location("softphone_media", EXAMPLES / "softphone_media.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look it up
    spec.loader.exec_module(module)
    return module


def test_mu_law_is_that_of_g711(media: ModuleType) -> None:
    assert [media.decode(octet) for octet in (0x00, 0x0F, 0x7E, 0x7F, 0x80, 0xFE, 0xFF)] == [
        *(-32124, -16764, -8, 0, 32124, 8, 0)
    ]
    assert [media.encode(media.decode(octet)) for octet in range(256)] == [
        0xFF if octet == 0x7F else octet for octet in range(256)
    ]
    assert [media.encode(sample) for sample in (-32768, 32767, 3, -3)] == [0x00, 0x80, 0xFF, 0x7F]


@pytest.mark.parametrize("content", [b"", b"RIFF", b"RIFF\x04\x00\x00\x00WAVE", b"\x00" * 100])
def test_what_is_no_wav_file_is_told(media: ModuleType, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "me.wav"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"me\.wav is no WAV file: ."):
        media.read_tone(path)


def test_a_recording_is_silent_for_as_long_as_nothing_came(media: ModuleType, tmp_path: Path) -> None:
    tone, path = media.encode(1000), tmp_path / "heard.wav"
    recording = media.Recording(path)
    for timestamp, ssrc in ((2**32 - 160, 1), (320, 1), (160, 1), (900, 2), (900 + 10**6, 2)):
        recording.write(media.RtpPacket(0, timestamp, ssrc, bytes([tone]) * 160))
    recording.close()
    with wave.open(str(path)) as file:
        assert file.getparams()[:4] == (1, 2, 8000, 960)
        samples = struct.unpack("<960h", file.readframes(960))
    heard = [samples[start] != 0 for start in range(0, 960, 160)]
    assert heard == [True, False, True, True, True, True]  # what came late has its place, others theirs


@pytest.mark.parametrize(
    ("data", "payload"),
    [
        (b"\x80\x00" + bytes(10), b""),
        (b"\x80\x80" + bytes(10) + b"abc", b"abc"),
        (b"\x81\x00" + bytes(14) + b"abc", b"abc"),
        (b"\x90\x00" + bytes(12) + b"\x00\x01" + bytes(4) + b"abc", b"abc"),
        (b"\xa0\x00" + bytes(10) + b"abc\x00\x02", b"abc"),
        (b"\x80\x00" + bytes(9), None),
        (b"\x00\x01" + bytes(18), None),
        (b"\xa0\x00" + bytes(10) + b"\xff", None),
        (b"\x90\x00" + bytes(12) + b"\xff\xff", None),
    ],
)
def test_rtp_is_read_as_far_as_it_is_some(media: ModuleType, data: bytes, payload: bytes | None) -> None:
    packet = media.RtpPacket.parse(data)
    assert (packet and packet.payload) == payload
