"""What the settings of stund name and this machine has: users, keys, and the user that stund becomes."""

from __future__ import annotations

import logging
import os
import secrets
import sys
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from nattools.endpoint import Endpoint, IPAddress
from nattools.errors import CredentialError, DecodeError, TransportError
from nattools.files import is_open_to_others, read_bytes, read_toml
from nattools.net.tls import ServerCertificate
from nattools.stun.accounts import Accounts, Admission, Rejection
from nattools.stun.message import Message
from nattools.stun.peer import PeerLink
from nattools.stun.settings import StundSettings
from nattools.stun.shared_secrets import SharedSecrets

_SECRET_BYTES = 32

_log = logging.getLogger("nattools.stund")


class Users:
    """The users in a file, as they were when it was last read."""

    def __init__(self, settings: StundSettings) -> None:
        """Read the file of `settings`. Raises `DecodeError`."""
        self._secret = secrets.token_bytes(_SECRET_BYTES)
        self._accounts = self.read(settings)

    def read(self, settings: StundSettings) -> Accounts:
        """What the file has now. Raises `DecodeError`, with its path."""
        path = settings.users
        assert path is not None
        text = read_toml(path, "file of users")
        _warn_if_open(path)
        try:
            return settings.accounts(text, secret=self._secret)
        except DecodeError as error:
            raise DecodeError(f"{path}: {error}") from None

    def become(self, accounts: Accounts) -> None:
        """Have these users from now on."""
        self._accounts = accounts

    def judge(self, request: Message, source: Endpoint, *, now: float) -> Admission | Rejection:
        """As the accounts do that there are now."""
        return self._accounts.judge(request, source, now=now)


@dataclass(frozen=True, slots=True)
class Identity:
    """The user that stund becomes once it needs root no longer."""

    name: str
    user_id: int
    group_id: int

    def assume(self) -> None:
        """Become that user for good, with its groups and without any capability. Raises `TransportError`."""
        if sys.platform == "win32":
            return  # `_identity_of` gives none there
        try:
            os.initgroups(self.name, self.group_id)
            os.setgid(self.group_id)
            os.setuid(self.user_id)
        except OSError as error:
            raise TransportError(
                f"cannot become the user {self.name}: {(error.strerror or str(error)).lower()};"
                " start stund as root, or as that user without --user"
            ) from error


@dataclass(frozen=True, slots=True)
class Equipment:
    """All of it."""

    users: Users | None
    links: tuple[PeerLink, ...]
    """To the other machine, one for each family in which there is one."""
    certificate: ServerCertificate | None
    secrets: SharedSecrets | None
    """What several processes, and both of two machines, hand out alike and know from each other."""
    identity: Identity | None
    """Whom stund is to become, or None where it is to stay who it is."""

    @classmethod
    def of(cls, settings: StundSettings) -> Equipment:
        """Read the files that `settings` name. Raises `DecodeError`, with the path of what is wrong."""
        if settings.metrics is not None and find_spec("prometheus_client") is None:
            raise DecodeError("metrics need prometheus-client: pip install 'nattools[server]'")
        users = None if settings.users is None else Users(settings)
        key = None if settings.peer_key is None else _peer_key(settings.peer_key)
        return cls(
            users,
            () if key is None else _links_of(settings, key),
            _certificate_of(settings),
            _secrets_of(settings, key or secrets.token_bytes(_SECRET_BYTES)),
            _identity_of(settings),
        )

    def link_of(self, own: IPAddress) -> PeerLink | None:
        """The link of this address of this machine, if it has one."""
        return next((link for link in self.links if link.hosts.own == own), None)


def _peer_key(path: Path) -> bytes:
    key = read_bytes(path, "file with a key").strip()
    _warn_if_open(path)
    return key


def _certificate_of(settings: StundSettings) -> ServerCertificate | None:
    if settings.certificate is None or settings.key is None:
        return None
    certificate = ServerCertificate(settings.certificate, settings.key)
    _warn_if_open(settings.key)
    return certificate


def _secrets_of(settings: StundSettings, key: bytes) -> SharedSecrets | None:
    if not settings.shared_secrets:
        return None
    clock_ahead_s = time.time() - time.monotonic()
    return SharedSecrets(key, entropy=secrets.token_bytes, clock_ahead_s=clock_ahead_s)


def _links_of(settings: StundSettings, key: bytes) -> tuple[PeerLink, ...]:
    try:
        return tuple(
            PeerLink(hosts, Endpoint(hosts.other, settings.peer_port), key=key, entropy=secrets.token_bytes)
            for hosts in settings.hosts
        )
    except (DecodeError, CredentialError) as error:
        raise DecodeError(f"{settings.peer_key}: {error}") from None


def _identity_of(settings: StundSettings) -> Identity | None:
    if not settings.user:
        return None
    try:
        from pwd import getpwnam
    except ImportError as error:  # Windows
        raise DecodeError("user: this system has no other users to become") from error
    try:
        entry = getpwnam(settings.user)
    except (KeyError, ValueError) as error:  # a name with a zero byte is a ValueError
        raise DecodeError(f"user: this machine has no user {settings.user!r}") from error
    return Identity(settings.user, entry.pw_uid, entry.pw_gid)


def _warn_if_open(path: Path) -> None:
    if is_open_to_others(path):
        _log.warning("%s: other users of this machine can read the secrets in it: chmod 600 %s", path, path)
