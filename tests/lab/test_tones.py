"""Tones are told apart, also in a recording that is still being written."""

from __future__ import annotations

import random
import wave
from array import array
from typing import TYPE_CHECKING

import pytest

from tests.lab import g711
from tests.lab.tones import RATE_HZ, TONES, Recording, hear, tones_in, write_tone

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

WINDOW = RATE_HZ // 10


def samples_of(path: Path) -> array[int]:
    with wave.open(str(path), "rb") as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, RATE_HZ)
        return array("h", file.readframes(file.getnframes()))


def tone(directory: Path, frequency_hz: int) -> array[int]:
    path = directory / f"{frequency_hz}.wav"
    write_tone(path, frequency_hz, seconds=1)
    return samples_of(path)


def mixed(*voices: Sequence[int]) -> list[int]:
    return [sum(samples) // len(voices) for samples in zip(*voices, strict=True)]


@pytest.mark.parametrize("frequency_hz", TONES)
def test_a_tone_is_found_wherever_the_window_begins(frequency_hz: int, tmp_path: Path) -> None:
    samples = tone(tmp_path, frequency_hz)
    assert all(tones_in(samples[at : at + WINDOW]) == {frequency_hz} for at in range(0, 400, 7))


def test_voices_at_once_are_all_found(tmp_path: Path) -> None:
    voices = [tone(tmp_path, frequency_hz) for frequency_hz in TONES]
    assert tones_in(mixed(*voices)[:WINDOW]) == set(TONES)
    assert tones_in(mixed(*voices[:2])[:WINDOW]) == set(TONES[:2])


@pytest.mark.parametrize("silence", [0, 8, -132, 30000])
def test_there_is_no_tone_in_silence(silence: int) -> None:
    assert tones_in([silence] * WINDOW) == set()


def test_there_is_no_tone_in_noise_or_in_another_one(tmp_path: Path) -> None:
    dice = random.Random(1)
    for _ in range(100):
        assert tones_in([dice.randint(-20000, 20000) for _ in range(WINDOW)]) == set()
    assert tones_in(tone(tmp_path, 660)[:WINDOW]) == set()


def test_a_recording_is_read_while_it_is_written(tmp_path: Path) -> None:
    whole = tmp_path / "whole.wav"
    write_tone(whole, 440, seconds=1)
    data = whole.read_bytes()
    path = tmp_path / "recording.wav"
    path.write_bytes(data[:20])
    recording = Recording(path)
    assert recording.next_window() is None
    path.write_bytes(data[: 44 + 2 * WINDOW - 1])
    assert recording.next_window() is None
    path.write_bytes(data[: 44 + 2 * WINDOW])
    assert recording.next_window() == samples_of(whole)[:WINDOW]
    assert recording.next_window() is None
    path.write_bytes(data[:44])  # another one of the same name
    assert recording.next_window() is None
    path.write_bytes(data[: 44 + 2 * WINDOW])
    assert recording.next_window() == samples_of(whole)[:WINDOW]


def test_what_was_recorded_before_is_not_heard(tmp_path: Path) -> None:
    path = tmp_path / "recording.wav"
    write_tone(path, 440, seconds=1)
    assert hear(lambda: [path], within_s=0.05) == set()
    other = tmp_path / "another.wav"

    def with_a_new_one() -> list[Path]:
        if not other.exists():
            other.touch()
            return [path]
        write_tone(other, 880, seconds=1)
        return [path, other]

    assert hear(with_a_new_one, within_s=10) == {880}


@pytest.mark.parametrize("frequency_hz", TONES)
def test_a_tone_outlives_g711(frequency_hz: int, tmp_path: Path) -> None:
    samples = tone(tmp_path, frequency_hz)
    heard = array("h", g711.decode(g711.encode(samples)))
    assert tones_in(heard[:WINDOW]) == {frequency_hz}
    assert all(abs(one - other) <= 1 + abs(one) / 16 for one, other in zip(samples, heard, strict=True))


def test_every_octet_of_g711_comes_back() -> None:
    octets = bytes(octet for octet in range(256) if octet != 0x7F)  # which is the other zero
    assert g711.encode(array("h", g711.decode(octets))) == octets
    assert g711.decode(b"\x7f\xff\x00\x80") == array("h", [0, 0, -32124, 32124]).tobytes()
