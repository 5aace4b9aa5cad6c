"""Which addresses are this machine."""

from __future__ import annotations

import ipaddress
import socket


def is_loopback_host(host: str) -> bool:
    """Whether a host is this machine: a loopback number, or the name localhost.

    Other names are not looked up: what they lead to may change between here and the call.
    """
    if host == "localhost":
        found = {str(info[4][0]) for info in socket.getaddrinfo(host, None)}
        return bool(found) and all(ipaddress.ip_address(a).is_loopback for a in found)
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
