"""How much hostile text a reader must get through, and how soon.

What takes time by the square of the text needs minutes for it; what does not, milliseconds. The deadline
has room for a machine that stalls.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

HOSTILE_BYTES = 512 * 1024
DEADLINE_S = 15.0


@contextmanager
def within_s(deadline_s: float) -> Iterator[None]:
    """Fail when what is done inside takes longer."""
    start = time.monotonic()
    yield
    taken_s = time.monotonic() - start
    assert taken_s < deadline_s, f"took {taken_s:.1f} s"
