"""Telephones of several makers, each with a way of its own to register, to call and to play."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.lab.linphone import Linphone, why_no_linphone
from tests.lab.sip_peers import Baresip, PyVoip, why_no_baresip, why_no_pyvoip
from tests.lab.sipp import Sipp, why_no_sipp


@dataclass(frozen=True, slots=True)
class Maker:
    """A telephone, and why it cannot be had here."""

    phone: type[Baresip | Linphone | PyVoip | Sipp]
    why_not: Callable[[], str | None]


MAKERS = {
    "baresip": Maker(Baresip, why_no_baresip),
    "linphone": Maker(Linphone, why_no_linphone),
    "pyvoip": Maker(PyVoip, why_no_pyvoip),
    "sipp": Maker(Sipp, why_no_sipp),
}
