"""Who can reach a binding behind cones, where STUN helps, tried with packets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.lab.binding_networks import CONES, BindingNetwork, faults

if TYPE_CHECKING:
    from pathlib import Path

    from tests.lab.conftest import OpenSockets


@pytest.mark.parametrize("network", CONES, ids=lambda network: network.name)
def test_whoever_is_promised_gets_in_and_no_less_is_promised_than_can_be(
    network: BindingNetwork, open_sockets: OpenSockets, tmp_path: Path
) -> None:
    assert faults(network, open_sockets, tmp_path) == {}
