"""The mu-law of G.711, for phones that take and give audio as bytes."""

from __future__ import annotations

import sys
from array import array
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_BIAS = 0x84
_CLIP = 32635


def _decoded(octet: int) -> int:
    octet = ~octet & 0xFF
    exponent, mantissa = octet >> 4 & 7, octet & 15
    magnitude = (((mantissa << 3) + _BIAS) << exponent) - _BIAS
    return -magnitude if octet & 0x80 else magnitude


def _encoded(sample: int) -> int:
    magnitude = min(abs(sample), _CLIP) + _BIAS
    exponent = magnitude.bit_length() - 8
    return ~((0x80 if sample < 0 else 0) | exponent << 4 | (magnitude >> (exponent + 3)) & 15) & 0xFF


_SAMPLES = tuple(_decoded(octet) for octet in range(256))


def encode(samples: Iterable[int]) -> bytes:
    """Samples of 16 bits as octets (ITU-T G.711, mu-law)."""
    return bytes(_encoded(sample) for sample in samples)


def decode(octets: bytes) -> bytes:
    """Octets as samples of 16 bits, as WAV files have them."""
    samples = array("h", (_SAMPLES[octet] for octet in octets))
    if sys.byteorder == "big":
        samples.byteswap()
    return samples.tobytes()
