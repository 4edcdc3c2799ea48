"""Hardware type `dpu`: a server whose disks and NICs are its DPU's, with a Redfish or IPMI BMC."""

from ironic.drivers import hardware_type
from ironic.drivers.modules import ipmitool, noop
from ironic.drivers.modules.network import noop as noop_network
from ironic.drivers.modules.redfish import bios, management, power
from ironic.drivers.modules.storage import noop as noop_storage

from .boot import DPUBoot
from .deploy import DPUDeploy
from .inspect import DPUInspect
from .network import DPUNetwork
from .storage import DPUStorage
from .vendor import DPUVendor


class DPUHardware(hardware_type.AbstractHardwareType):
    """The first of each list that is enabled is a node's default."""

    supported_boot_interfaces = (DPUBoot,)
    supported_deploy_interfaces = (DPUDeploy,)
    supported_power_interfaces = (power.RedfishPower, ipmitool.IPMIPower)
    supported_management_interfaces = (management.RedfishManagement, ipmitool.IPMIManagement)
    supported_bios_interfaces = (noop.NoBIOS, bios.RedfishBIOS)
    supported_inspect_interfaces = (DPUInspect, noop.NoInspect)
    supported_network_interfaces = (DPUNetwork, noop_network.NoopNetwork)
    # Without NoopStorage among them a conductor that enables it does not start listening.
    supported_storage_interfaces = (DPUStorage, noop_storage.NoopStorage)
    supported_vendor_interfaces = (DPUVendor, noop.NoVendor)
