"""Recognises the network addresses of this machine."""

from __future__ import annotations

import ipaddress
import socket


def is_loopback_host(host: str) -> bool:
    """Check whether a host is this machine: a loopback IP address or the name localhost.

    Other names are not resolved, because their address may change before the call is made.
    """
    if host == "localhost":
        addresses = {str(info[4][0]) for info in socket.getaddrinfo(host, None)}
        return bool(addresses) and all(ipaddress.ip_address(a).is_loopback for a in addresses)
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
