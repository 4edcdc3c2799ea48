"""The control plane of the lab: MariaDB, Neutron (ML2/OVN) and Ironic, configured and watched."""

from opendpu.lab.central.central import Central

__all__ = ["Central"]
