"""The status socket: a Unix socket that tells what the running natgate knows, as one JSON document."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from nattools.errors import LocalAddressError, NatToolsError
from nattools.net.unix import DocumentSocket, read_document
from nattools.session.status import GateStatus

_NAME = "natgate.sock"
_DIRECTORY_MODE = 0o700

Tell = Callable[[], Awaitable[GateStatus]]


def usual_paths(environ: Mapping[str, str]) -> tuple[Path, ...]:
    """Where the socket may be unless the operator says otherwise: the user's own place, and the system's."""
    system = Path("/run/nattools") / _NAME
    own = environ.get("XDG_RUNTIME_DIR")
    return (Path(own) / "nattools" / _NAME, system) if own else (system,)


async def open_status_socket(path: Path, tell: Tell) -> DocumentSocket:
    """Listen at `path`, in a directory that is made where it is missing. Raises `LocalAddressError`."""

    async def document() -> bytes:
        try:
            told = (await tell()).as_json()
        except NatToolsError as error:  # the place of the registrations may be away
            told = {"error": str(error)}
        return json.dumps(told, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"

    try:
        path.parent.mkdir(mode=_DIRECTORY_MODE, parents=True, exist_ok=True)
    except OSError as error:
        raise LocalAddressError(
            f"cannot make {path.parent}: {(error.strerror or str(error)).lower()}; "
            "give the path of the status socket, in a directory of this user"
        ) from error
    return await DocumentSocket.open(path, document)


def read_status(path: Path) -> GateStatus:
    """Ask the natgate that listens at `path`. Raises `TransportError`, and `DecodeError` for what it says."""
    return GateStatus.parse(read_document(path))
