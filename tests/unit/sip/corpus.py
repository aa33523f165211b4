"""The call flows of RFC 3665, one message a file, which lie beside the repository."""

from __future__ import annotations

from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[4] / "shared" / "corpus" / "sip" / "rfc3665"

PATHS = sorted(FOLDER.glob("*.sip"))
"""None where the folder is missing; a test that needs them says so by `needs_corpus`."""

needs_corpus = pytest.mark.skipif(not PATHS, reason="../shared/corpus/sip/rfc3665 is not there")
