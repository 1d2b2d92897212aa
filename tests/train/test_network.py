"""The interface that has an address."""

import os

import pytest

from dfdc_ray.train.network import interface_of, tell_gloo


def test_loopback_is_found_and_what_nobody_has_is_not():
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("192.0.2.254") is None  # RFC 5737: for documentation


def test_gloo_is_told_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    tell_gloo("127.0.0.1")
    assert os.environ["GLOO_SOCKET_IFNAME"] == "lo"
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "bond7")
    tell_gloo("127.0.0.1")
    assert os.environ["GLOO_SOCKET_IFNAME"] == "bond7"
