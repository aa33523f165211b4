"""What the providers' tests share."""

from __future__ import annotations

from tests.unit.mapping.conftest import open_client as open_client
