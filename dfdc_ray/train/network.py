"""Which network interface has an address: what gloo must be told where a machine's own name leads to 127.0.0.1, as on Debian and Ubuntu."""

import fcntl
import os
import socket
import struct

_SIOCGIFADDR = 0x8915  # linux/sockios.h


def interface_of(address: str) -> str | None:
    """The name of the interface with this IPv4 address (`eth0`); None if there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(asking, _SIOCGIFADDR, struct.pack("256s", name.encode()))
            except OSError:  # it has no IPv4 address
                continue
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return None


def tell_gloo(address: str) -> None:
    """Make torch.distributed's gloo listen on the interface with this address, unless GLOO_SOCKET_IFNAME says otherwise."""
    name = interface_of(address)
    if name:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
