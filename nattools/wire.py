"""Bounds-checked big-endian reading, and wire numbers that keep what they do not know."""

from __future__ import annotations

from enum import IntEnum

from nattools.errors import DecodeError


class OpenIntEnum(IntEnum):
    """A registry of wire numbers; a number outside it becomes a nameless member instead of an error."""

    @classmethod
    def _missing_(cls, value: object) -> OpenIntEnum | None:
        if not isinstance(value, int) or value < 0:
            return None
        member = int.__new__(cls, value)
        member._name_ = f"UNKNOWN_0x{value:X}"
        member._value_ = value
        return member

    def __reduce_ex__(self, _protocol: object) -> tuple[type[OpenIntEnum], tuple[int]]:
        """Pickle by number: by name, as some Pythons do it, would lose the members without one."""
        return type(self), (int(self),)


class Reader:
    """Reads big-endian values off the front of `data`; raises `DecodeError` rather than read past the end."""

    __slots__ = ("_data", "_position")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    @property
    def remaining(self) -> int:
        """How many bytes are left."""
        return len(self._data) - self._position

    def take(self, size: int) -> bytes:
        """The next `size` bytes."""
        end = self._position + size
        if end > len(self._data):
            raise DecodeError(f"{size} bytes wanted, {self.remaining} left")
        taken = self._data[self._position : end]
        self._position = end
        return taken

    def uint(self, size: int) -> int:
        """The next `size` bytes as an unsigned number."""
        return int.from_bytes(self.take(size), "big")

    def rest(self) -> bytes:
        """Everything that is left."""
        return self.take(self.remaining)
