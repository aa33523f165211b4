"""The audio of a call, for softphone.py: PCMU over RTP (RFC 3550, RFC 3551), a file played, one recorded."""

from __future__ import annotations

import asyncio
import secrets
import struct
import sys
import wave
from array import array
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from nattools import AddressClass, Endpoint, TransportError
from nattools.binding.keeper import BindingPair
from nattools.binding.schedule import KeepaliveKind
from nattools.sip.keepalive import RtpSender

RATE_HZ = 8000
PACKET_S = 0.02
PACKET_SAMPLES = 160
PCMU = 0
"""Its RTP payload type (RFC 3551 §6)."""

_SILENCE = b"\xff" * PACKET_SAMPLES
_LATE_S = 0.2
"""Who was stopped for longer does not send all at once what is overdue."""
_DEAF_S = 1.0
"""After so long without its packets, the peer may have begun another stream."""
_LONGEST_GAP = 60 * RATE_HZ
_LARGEST = 2**32 - 1 - 36
"""So many octets a WAV file can say that it has."""
_HEADER = struct.Struct("!BBHII")
_BEHIND_NAT = (AddressClass.PRIVATE, AddressClass.SHARED)


def encode(sample: int) -> int:
    """A 16-bit sample as an octet of G.711 µ-law."""
    magnitude = min(abs(sample), 32635) + 132
    exponent = magnitude.bit_length() - 8
    octet = exponent << 4 | (magnitude >> (exponent + 3)) & 0x0F
    return ~(octet | 0x80 if sample < 0 else octet) & 0xFF


def decode(octet: int) -> int:
    """The 16-bit sample of an octet of G.711 µ-law."""
    octet = ~octet & 0xFF
    magnitude = (((octet & 0x0F) << 3) + 132 << (octet >> 4 & 7)) - 132
    return -magnitude if octet & 0x80 else magnitude


_SAMPLES = [struct.pack("<h", decode(octet)) for octet in range(256)]


def read_tone(path: Path) -> bytes:
    """A WAV file in µ-law. Raises `ValueError` unless it has one channel of 16 bits at 8000 Hz."""
    try:
        with wave.open(str(path)) as file:
            if (file.getnchannels(), file.getsampwidth(), file.getframerate()) != (1, 2, RATE_HZ):
                raise ValueError(
                    f"{path} must be 16-bit mono at 8000 Hz: sox {path} -r 8000 -c 1 -b 16 new.wav"
                )
            samples = array("h", file.readframes(file.getnframes()))
    except (wave.Error, EOFError) as error:
        raise ValueError(f"{path} is no WAV file: {str(error) or 'it ends too soon'}") from error
    if sys.byteorder == "big":
        samples.byteswap()
    return bytes(map(encode, samples))


@dataclass(frozen=True, slots=True)
class RtpPacket:
    """What counts of an RTP packet (RFC 3550 §5.1)."""

    payload_type: int
    timestamp: int
    ssrc: int
    payload: bytes

    @classmethod
    def parse(cls, data: bytes) -> Self | None:
        """None for what is no RTP."""
        if len(data) < _HEADER.size or data[0] >> 6 != 2:
            return None
        flags, kind, _sequence, timestamp, ssrc = _HEADER.unpack_from(data)
        start, end = _HEADER.size + 4 * (flags & 0x0F), len(data)
        if flags & 0x10 and len(data) >= start + 4:
            start += 4 + 4 * int.from_bytes(data[start + 2 : start + 4])
        if flags & 0x20:
            end -= data[-1]
        return cls(kind & 0x7F, timestamp, ssrc, data[start:end]) if start <= end else None


class Recording:
    """A WAV file of what is heard, each packet at its time: what was lost is silence as long."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb", buffering=0)
        self._length = 0
        self._ssrc: int | None = None
        self._start = self._last = 0
        self._write_header()

    def write(self, packet: RtpPacket) -> None:
        """Put a packet in its place; another stream begins where the file ends."""
        ahead = (packet.timestamp - self._last + 2**31) % 2**32 - 2**31
        if packet.ssrc != self._ssrc or abs(ahead) > _LONGEST_GAP:
            self._ssrc, self._start, self._last, ahead = packet.ssrc, self._length, packet.timestamp, 0
        self._start += ahead
        self._last = packet.timestamp
        if self._start >= 0:
            self._file.seek(44 + 2 * self._start)
            self._file.write(b"".join(_SAMPLES[octet] for octet in packet.payload))
            self._length = max(self._length, self._start + len(packet.payload))

    def close(self) -> None:
        """Say in the header how long it became."""
        self._write_header()
        self._file.close()

    def _write_header(self) -> None:
        size, layout = min(2 * self._length, _LARGEST), (16, 1, 1, RATE_HZ, 2 * RATE_HZ, 2, 16)
        self._file.seek(0)
        self._file.write(struct.pack("<4sI8sIHHIIHH", b"RIFF", 36 + size, b"WAVEfmt ", *layout))
        self._file.write(struct.pack("<4sI", b"data", size))


class Audio:
    """The RTP stream both ways, from and to one socket (RFC 4961), while `run` runs."""

    def __init__(self, pair: BindingPair, *, tone: bytes = b"", recording: Recording | None = None) -> None:
        self.pair = pair
        self._tone = tone
        self._recording = recording
        self._peer: Endpoint | None = None
        self._peer_rtcp: Endpoint | None = None
        self._is_behind_nat = False
        self._ssrc: int | None = None
        self._heard_at = float("-inf")
        self.is_on_hold = False
        """The peer wants to hear nothing for now."""
        # where the NAT gets another address in mid call, the peer's packets stop, and nothing else tells
        pair.rtp.check_when_quiet()

    def aim(self, rtp: Endpoint, rtcp: Endpoint) -> None:
        """Send to where the peer's SDP says, and to both at once: a NAT lets in only whom one has sent to."""
        if (rtp, rtcp) == (self._peer, self._peer_rtcp):
            return
        if self._peer is not None and self._peer_rtcp is not None:
            self.pair.rtp.let_go(self._peer)
            self.pair.rtcp.let_go(self._peer_rtcp)
        self.pair.rtp.keep_open(rtp, KeepaliveKind.EMPTY)  # also when there is nothing to say (RFC 6263)
        self.pair.rtcp.keep_open(rtcp, KeepaliveKind.EMPTY)
        self._peer, self._peer_rtcp, self._ssrc = rtp, rtcp, None
        self._is_behind_nat = rtp.address_class in _BEHIND_NAT

    async def run(self) -> None:
        """Send and receive until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._send())
            group.create_task(self._receive())
            group.create_task(self._read_rtcp())

    async def _send(self) -> None:
        stream, position = RtpSender(entropy=secrets.token_bytes, payload_type=PCMU), 0
        loop = asyncio.get_running_loop()
        due_at = loop.time()
        while True:
            if self._peer is not None and not self.is_on_hold:
                packet = stream.packet(self._piece(position), now=due_at, marker=position == 0)
                with suppress(TransportError):  # no network for now
                    self.pair.rtp.sendto(packet, self._peer)
                position += PACKET_SAMPLES
            due_at += PACKET_S
            if loop.time() > due_at + _LATE_S:
                due_at = loop.time()
            await asyncio.sleep(due_at - loop.time())

    def _piece(self, position: int) -> bytes:
        """The next piece of the tone, which begins anew when it is over."""
        if not self._tone:
            return _SILENCE
        position %= len(self._tone)
        piece = self._tone[position : position + PACKET_SAMPLES]
        return piece + self._tone[: PACKET_SAMPLES - len(piece)]

    async def _receive(self) -> None:
        while True:
            data, source = await self.pair.rtp.recvfrom()
            packet = RtpPacket.parse(data)
            if packet is None or packet.payload_type != PCMU or not self._is_peers(packet, source):
                continue
            if self._recording is not None:
                try:
                    self._recording.write(packet)
                except OSError as error:  # the disk may be full; the call goes on
                    print("not recorded any more:", error, file=sys.stderr)
                    self._recording = None

    def _is_peers(self, packet: RtpPacket, source: Endpoint) -> bool:
        """Whether the peer sent it. Where its SDP has a private address, its packets show the way back.

        They are the first that come, as nobody else knows this socket; then a stream with another SSRC is
        a stranger's until the first has ended.
        """
        now = asyncio.get_running_loop().time()
        if self._peer is None or (source.ip != self._peer.ip and not self._is_behind_nat):
            return False
        if packet.ssrc != self._ssrc and now < self._heard_at + _DEAF_S and self._ssrc is not None:
            return False
        self._ssrc, self._heard_at = packet.ssrc, now
        if self._is_behind_nat:
            self._peer = source
        return True

    async def _read_rtcp(self) -> None:
        """Take what comes, lest it waits; a phone that adapts to the network would read the reports."""
        while True:
            await self.pair.rtcp.recvfrom()
