"""What all tests share."""

from __future__ import annotations

from hypothesis import settings

# A shared machine may stall for longer than any deadline; tests assert no times. Every run has the same
# examples: what it finds comes of the code alone. `pytest --hypothesis-profile=others` has others each time.
settings.register_profile("others", deadline=None)
settings.register_profile("nattools", settings.get_profile("others"), derandomize=True, database=None)
settings.load_profile("nattools")
