"""Any phone behind any NAT is heard through `natgate`, and hears, whoever calls.

Each NAT and each registrar is here once or twice; `python -m bench.natgate_matrix` tries every pair of them.
"""

from __future__ import annotations

import pytest

from tests.lab.kamailio import why_no_kamailio
from tests.lab.makers import MAKERS
from tests.lab.natgate_matrix import NATS, Home, outcomes

SITES = [
    ("symmetric", Home.NATGATE),
    ("port-preserving", Home.KAMAILIO),
    ("SIP ALG", Home.KAMAILIO),
]


def test_every_nat_and_both_registrars_are_tried() -> None:
    assert {nat for nat, _ in SITES} == set(NATS)
    assert {home for _, home in SITES} == set(Home)


@pytest.mark.parametrize(("nat", "home"), SITES)
def test_every_phone_behind_it_calls_and_is_called_and_both_are_heard(nat: str, home: Home) -> None:
    reasons = {maker: its.why_not() for maker, its in MAKERS.items()}
    for reason in (reasons["baresip"], why_no_kamailio() if home is Home.KAMAILIO else None):
        if reason is not None:
            pytest.skip(reason)
    makers = [maker for maker, reason in reasons.items() if reason is None]
    tried = list(outcomes(nat, home, makers))
    assert len(tried) == 2 * len(makers)
    assert [f"{outcome.cell}: {outcome.fault}" for outcome in tried if outcome.fault] == []
