"""Tones, to tell whose voice was heard: made into WAV files, and found again in what somebody recorded.

A recording is read while it grows, so that a test learns within a tenth of a second that a tone is there.
"""

from __future__ import annotations

import math
import os
import struct
import sys
import time
import wave
from array import array
from typing import TYPE_CHECKING

from tests.lab.stalls import Since

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

RATE_HZ = 8000  # of G.711
TONES = (440, 880, 1320)  # each a whole number of periods in a window

_AMPLITUDE = 12000  # of 32767: loud, and below what any encoder would clip
_WINDOW_SAMPLES = RATE_HZ // 10
_SILENT_RMS = 300
_SHARE_OF_A_TONE = 0.2  # of the energy: three voices at once are still told apart
_POLL_SECONDS = 0.02
_CHUNK = struct.Struct("<4sI")
_RIFF_BYTES = 12


def write_tone(path: Path, frequency_hz: int, *, seconds: float = 120) -> None:
    """Write a WAV file with a steady tone: one channel of 16 bits at 8 kHz."""
    period = math.lcm(RATE_HZ, frequency_hz) // frequency_hz
    steps = (2 * math.pi * frequency_hz * n / RATE_HZ for n in range(period))
    samples = array("h", (round(_AMPLITUDE * math.sin(step)) for step in steps))
    samples *= math.ceil(seconds * RATE_HZ / period)
    if sys.byteorder == "big":
        samples.byteswap()
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE_HZ)
        file.writeframes(samples.tobytes())


def tones_in(samples: Sequence[int], among: Iterable[int] = TONES) -> set[int]:
    """Say which tones, in Hz, make up a good part of some audio at 8 kHz (Goertzel's algorithm)."""
    energy = sum(sample * sample for sample in samples)
    if energy <= _SILENT_RMS**2 * len(samples):
        return set()
    return {hertz for hertz in among if _power(samples, hertz) > _SHARE_OF_A_TONE * energy}


def _power(samples: Sequence[int], frequency_hz: int) -> float:
    """The part of the samples' energy that is at one frequency, as a sum of squares."""
    coefficient = 2 * math.cos(2 * math.pi * frequency_hz / RATE_HZ)
    last = before = 0.0
    for sample in samples:
        last, before = sample + coefficient * last - before, last
    return 2 * (last * last + before * before - coefficient * last * before) / len(samples)


class Recording:
    """A WAV file that somebody may still be writing: its samples from `position` on, as they come."""

    def __init__(self, path: Path, *, from_the_end: bool = False) -> None:
        self._path = path
        self._position = path.stat().st_size & ~1 if from_the_end else 0

    def next_window(self) -> array[int] | None:
        """A tenth of a second more of audio; None while there is none."""
        with self._path.open("rb") as file:
            if self._position > os.fstat(file.fileno()).st_size:
                self._position = 0  # it was begun anew
            self._position = max(self._position, _start_of_samples(file.read(256)))
            file.seek(self._position)
            data = file.read(2 * _WINDOW_SAMPLES)
        if self._position == 0 or len(data) < 2 * _WINDOW_SAMPLES:
            return None
        self._position += len(data)
        samples = array("h", data)
        if sys.byteorder == "big":
            samples.byteswap()
        return samples


def _start_of_samples(head: bytes) -> int:
    """Where the samples of a WAV file begin, whose length may not be known yet; 0 if that is not there."""
    at = _RIFF_BYTES
    while at + _CHUNK.size <= len(head):
        name, length = _CHUNK.unpack_from(head, at)
        at += _CHUNK.size
        if name == b"data":
            return at
        at += length + length % 2
    return 0


def hear(recordings: Callable[[], Iterable[Path]], *, within_s: float) -> set[int]:
    """Wait for a tone in what is recorded from now on; the empty set says that there was none.

    `recordings` lists the files, of which new ones may appear.
    """
    since = Since()
    heard = {path: Recording(path, from_the_end=True) for path in recordings()}
    while True:
        for path in recordings():
            recording = heard.setdefault(path, Recording(path))
            while (window := recording.next_window()) is not None:
                if found := tones_in(window):
                    return found
        if since.took_s() > within_s:
            return set()
        time.sleep(_POLL_SECONDS)
