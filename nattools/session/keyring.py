"""The passwords of several phones, for requests that are made in their names after a change of address."""

from __future__ import annotations

from nattools.errors import AuthenticationError, DecodeError
from nattools.machine import Entropy
from nattools.session.users import Users
from nattools.sip.comparison import unescaped
from nattools.sip.digest import DigestClient
from nattools.sip.headers import NameAddress
from nattools.sip.message import SipMessage


class Keyring:
    """Answers challenges as `DigestClient` does, for whichever user a request is From."""

    def __init__(self, users: Users, *, entropy: Entropy) -> None:
        self._users = users
        self._entropy = entropy
        self._clients: dict[tuple[str, str], DigestClient] = {}
        self._current: DigestClient | None = None

    def challenged(self, response: SipMessage, request: SipMessage | None = None) -> None:
        """Take the challenges of a 401 or 407.

        Raises `AuthenticationError` where nobody has given the password, and where it was refused.
        """
        user = _user_of(response)
        password = self._users.password_of(user)
        if password is None:
            raise AuthenticationError(
                f"nobody has given the password of {user!r}: add it to the file of users",
                code=response.status_code or 401,
            )
        client = DigestClient(user, password, entropy=self._entropy)
        self._current = self._clients.setdefault((user, password), client)
        self._current.challenged(response, request)

    def headers(self, method: str, uri: str, body: bytes = b"") -> list[tuple[str, bytes]]:
        """The credentials of the next request, which is of the user that was challenged last."""
        return [] if self._current is None else self._current.headers(method, uri, body)


def _user_of(message: SipMessage) -> str:
    """The user in From; empty where it names none."""
    header = message.header("from")
    try:
        uri = None if header is None else NameAddress.parse(message.data, header.value_span).uri
    except DecodeError:
        return ""
    user = b"" if uri is None or uri.user is None else uri.user.partition(b":")[0]
    return (unescaped(user) or b"").decode("utf-8", "replace")
