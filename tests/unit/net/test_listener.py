"""Which addresses this machine has, to listen on."""

from __future__ import annotations

import errno
import socket
from ipaddress import ip_address

import pytest

from nattools.net.listener import has_address


@pytest.mark.parametrize(
    ("address", "is_here"),
    [("127.0.0.1", True), ("198.51.100.7", False), ("2001:db8::7", False)],
)
def test_an_address_is_here_if_a_socket_can_have_it(address: str, is_here: bool) -> None:
    assert has_address(ip_address(address)) is is_here


@pytest.mark.parametrize(
    ("number", "is_here"), [(errno.EAFNOSUPPORT, False), (errno.EMFILE, True), (errno.ENOMEM, True)]
)
def test_a_lack_of_files_is_no_lack_of_addresses(
    number: int, is_here: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> socket.socket:
        raise OSError(number, "refused")

    monkeypatch.setattr("nattools.net.listener.socket.socket", refuse)
    assert has_address(ip_address("::1")) is is_here
