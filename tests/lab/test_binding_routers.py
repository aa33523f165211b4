"""Who can reach a binding behind a router that grants mappings, tried with packets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from nattools.lab.namespaces import why_no_igd
from tests.lab.binding_networks import WITH_IGD, BindingNetwork, faults

if TYPE_CHECKING:
    from pathlib import Path

    from tests.lab.conftest import OpenSockets


@pytest.fixture(scope="module", autouse=True)
def _igd() -> None:
    if (missing := why_no_igd()) is not None:
        pytest.skip(missing)


@pytest.mark.parametrize("network", WITH_IGD, ids=lambda network: network.name)
def test_whoever_is_promised_gets_in_and_no_less_is_promised_than_can_be(
    network: BindingNetwork, open_sockets: OpenSockets, tmp_path: Path
) -> None:
    assert faults(network, open_sockets, tmp_path) == {}
