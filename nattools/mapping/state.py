"""The record of a mapping that outlives the process that made it: what is needed to renew or remove it.

A PCP mapping can be removed only with its nonce, and PCP and NAT-PMP routers list nothing. So every mapping
that is made from this machine has a record, one file of JSON each. `granted` is false from before the router
is asked until it has answered: of such a mapping the external port is not known for sure.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import cast

from nattools.endpoint import Endpoint, TransportProtocol
from nattools.errors import DecodeError
from nattools.mapping.model import MappingProtocol, PortMapping

SCHEMA = 1
MOST_RECORD_BYTES = 1 << 16
"""The name of a router may have thousands of characters."""


@dataclass(frozen=True, slots=True)
class Owner:
    """A process: its number, and since numbers are used again, when it started.

    Where `boot` names a start of the system, `started_at` is in seconds since then, which setting the clock
    does not change. Elsewhere `boot` is empty, and it is in seconds since 1970.
    """

    pid: int
    started_at: float
    boot: str = ""


@dataclass(frozen=True, slots=True)
class Record:
    """One mapping, the process that made it, and when (seconds since 1970).

    `kept` mappings belong to their process and are removed when it is gone; others stay for their lease.
    """

    record_id: str
    mapping: PortMapping
    owner: Owner
    made_at: float
    kept: bool
    granted: bool = False

    def with_mapping(self, mapping: PortMapping, *, made_at: float) -> Record:
        """The record of what the router granted."""
        return replace(self, mapping=mapping, made_at=made_at, granted=True)

    def expires_at(self) -> float | None:
        """When the router itself will have removed it, in seconds since 1970; None for never."""
        return None if self.mapping.lease_s is None else self.made_at + self.mapping.lease_s

    def encode(self) -> bytes:
        """The record as JSON."""
        mapping = self.mapping
        return json.dumps(
            {
                "schema": SCHEMA,
                "id": self.record_id,
                "pid": self.owner.pid,
                "pid_started_at": self.owner.started_at,
                "boot": self.owner.boot,
                "made_at": self.made_at,
                "kept": self.kept,
                "granted": self.granted,
                "protocol": mapping.protocol.value,
                "transport": mapping.transport.name.lower(),
                "internal": str(mapping.internal),
                "external_port": mapping.external_port,
                "external_address": None
                if mapping.external_address is None
                else str(mapping.external_address),
                "lease_s": mapping.lease_s,
                "gateway": str(mapping.gateway),
                "router": mapping.router,
                "description": mapping.description,
                "nonce": mapping.nonce.hex(),
            },
            indent=2,
        ).encode()

    @classmethod
    def parse(cls, data: bytes) -> Record:
        """Read what `encode` wrote. Raises `DecodeError`."""
        try:
            if len(data) > MOST_RECORD_BYTES:
                raise ValueError("too long")
            document = cast(dict[str, object], json.loads(data))
            if document["schema"] != SCHEMA:
                raise ValueError(f"schema {document['schema']!r}")
            external_address = document["external_address"]
            lease_s = document["lease_s"]
            mapping = PortMapping(
                protocol=MappingProtocol(document["protocol"]),
                transport=TransportProtocol[str(document["transport"]).upper()],
                internal=Endpoint.parse(_text(document["internal"])),
                external_port=_port(document["external_port"]),
                external_address=None if external_address is None else ip_address(_text(external_address)),
                lease_s=None if lease_s is None else int(_number(lease_s)),
                gateway=ip_address(_text(document["gateway"])),
                description=_text(document["description"]),
                router=_text(document["router"]),
                nonce=bytes.fromhex(_text(document["nonce"])),
            )
            return cls(
                record_id=_text(document["id"]),
                mapping=mapping,
                owner=Owner(
                    int(_number(document["pid"])),
                    _number(document["pid_started_at"]),
                    _text(document["boot"]),
                ),
                made_at=_number(document["made_at"]),
                kept=document["kept"] is True,
                granted=document["granted"] is True,
            )
        except (ValueError, KeyError, TypeError, RecursionError, OverflowError, DecodeError) as error:
            raise DecodeError(f"not the record of a mapping: {error}") from error


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no number")
    return value


def _port(value: object) -> int:
    port = int(_number(value))
    if not 0 <= port <= 0xFFFF:
        raise ValueError(f"{port} is no port")
    return port
