"""Which network interface has an address: what gloo must be told where a machine's own name leads to 127.0.0.1, as on Debian and Ubuntu."""

import os

import psutil


def interface_of(address: str) -> str | None:
    """The name of the interface with this IP address (`eth0`); None if there is none."""
    interfaces = psutil.net_if_addrs().items()
    return next((name for name, has in interfaces if address in {one.address for one in has}), None)


def tell_gloo(address: str) -> None:
    """Make torch.distributed's gloo listen on the interface with this address, unless GLOO_SOCKET_IFNAME says otherwise."""
    name = interface_of(address)
    if name:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
