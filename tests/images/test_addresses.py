"""Which addresses a URL may lead to."""

from __future__ import annotations

from ipaddress import IPv4Address, ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmguard.images.addresses import is_allowed

PUBLIC = ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "2a00:1450:4001::200e"]
OWN_NETWORK = [
    "127.0.0.1",
    "127.255.255.254",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.1.1",
    "100.64.0.1",
    "::1",
    "fc00::1",
    "fd12:3456::1",
]
NEVER = [
    "0.0.0.0",
    "0.1.2.3",
    "169.254.169.254",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::7f00:1",
    "100::1",
    "64:ff9b:1::808:808",
    "2001::1",
    "2001:db8::1",
    "2002:808:808::1",
    "3fff::1",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "fd00:ec2::254",
    "fd20:ce::254",
    "ff02::1",
]


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_allowed(address: str) -> None:
    """Ordinary unicast addresses pass."""
    assert is_allowed(ip_address(address))


@pytest.mark.parametrize("address", OWN_NETWORK)
def test_ones_own_network_only_on_request(address: str) -> None:
    """Loopback and private addresses pass only with allow_private."""
    assert not is_allowed(ip_address(address))
    assert is_allowed(ip_address(address), allow_private=True)


@pytest.mark.parametrize("address", NEVER)
def test_special_addresses_never(address: str) -> None:
    """Metadata, link-local, multicast, documentation, translation: never, whatever is set."""
    assert not is_allowed(ip_address(address))
    assert not is_allowed(ip_address(address), allow_private=True)


@settings(deadline=None)
@given(st.ip_addresses(v=4), st.booleans())
def test_an_embedded_ipv4_address_is_judged_by_itself(address: IPv4Address, own: bool) -> None:
    """Mapped and NAT64 forms get the verdict of the IPv4 address inside."""
    verdict = is_allowed(address, allow_private=own)
    for form in (f"::ffff:{address}", f"64:ff9b::{address}"):
        assert is_allowed(ip_address(form), allow_private=own) == verdict
