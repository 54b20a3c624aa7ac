"""Which network addresses a stranger's URL may lead us to."""

from __future__ import annotations

from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)

# Addresses that the standard library, or the registries behind it, call global, and that lead
# into a provider's or one's own network all the same.
_NOT_PUBLIC_V4 = (
    IPv4Network("168.63.129.16/32"),  # Azure's platform service ("WireServer")
    IPv4Network("192.0.0.0/24"),  # protocol assignments; Oracle Cloud's metadata service
    IPv4Network("192.88.99.0/24"),  # 6to4 relays, withdrawn by RFC 7526
)
_GLOBAL_UNICAST = IPv6Network("2000::/3")  # all that is handed out for hosts (RFC 4291)
_NOT_PUBLIC_V6 = (
    IPv6Network("2001::/23"),  # protocol assignments, Teredo among them: an IPv4 address inside
    IPv6Network("2002::/16"),  # 6to4: an IPv4 address inside
    IPv6Network("3fff::/20"),  # documentation (RFC 9637)
)
_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052: what DNS64 makes of an IPv4 address
_OWN_NETWORK = tuple(
    ip_network(network)
    for network in (
        "127.0.0.0/8",
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "100.64.0.0/10",
        "::1/128",
        "fc00::/7",
    )
)
_METADATA = (
    ip_address("100.100.100.200"),  # Alibaba Cloud, in the shared range
    ip_address("fd00:ec2::254"),  # Amazon EC2, in the private range
    ip_address("fd20:ce::254"),  # Google Cloud, in the private range
)


def is_allowed(address: IPv4Address | IPv6Address, *, allow_private: bool = False) -> bool:
    """Whether to connect to an address that a URL of unknown origin leads to.

    Public unicast addresses only: no loopback, private, shared (CGNAT), link-local, metadata,
    multicast, documentation or reserved ones. An IPv4 address inside an IPv6 one (mapped, NAT64)
    is judged by itself. A NAT64 gateway with a prefix of its own cannot be recognized: set a
    domain allow list where there is one.

    Args:
        address: as resolved.
        allow_private: also loopback, RFC 1918, shared and unique local addresses; for servers
            whose pictures are in their own network. Metadata services stay closed.
    """
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped:
            address = address.ipv4_mapped
        elif address in _NAT64:
            address = IPv4Address(address.packed[-4:])
    if allow_private and any(
        address in network for network in _OWN_NETWORK if network.version == address.version
    ):
        return address not in _METADATA
    if isinstance(address, IPv4Address):
        special = any(address in network for network in _NOT_PUBLIC_V4)
    else:
        special = address not in _GLOBAL_UNICAST or any(
            address in network for network in _NOT_PUBLIC_V6
        )
    return address.is_global and not (special or address.is_multicast or address.is_reserved)
