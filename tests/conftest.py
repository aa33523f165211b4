"""What all tests share."""

from __future__ import annotations

from hypothesis import settings

# A shared machine may stall for longer than any deadline; tests assert no times.
settings.register_profile("nattools", deadline=None)
settings.load_profile("nattools")
