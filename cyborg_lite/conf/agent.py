# SPDX-License-Identifier: Apache-2.0
"""The options of an agent."""

from __future__ import annotations

from oslo_config import cfg
from oslo_config import types

OPTS = [
    cfg.ListOpt(
        'enabled_drivers',
        default=[
            'huawei_ascend',
            'nvidia_gpu',
            'amd_gpu',
            'intel_gpu',
            'intel_gaudi',
            'intel_qat',
            'xilinx_fpga',
            'pci',
            'intel_fpga',
            'inspur_fpga',
        ],
        help='The drivers that look for accelerators on this host, by the names of their entry '
        'points. If two drivers find a device at the same address, the first in this list owns '
        'it. The default has no fake card, and neither SSDs (``nvme_ssd``, ``spdk``) nor network '
        'cards (``nic``), which nearly every host has for itself.',
    ),
    cfg.Opt(
        'expected_devices',
        type=types.Dict(types.Integer(min=1, max=65535)),
        default={},
        mutable=True,
        help='The number of devices that each driver should find on this host, such as '
        '``huawei_ascend:8,intel_qat:2``. A driver that finds fewer is degraded, and the reason '
        'has the number of absent devices. By default nothing is expected.',
    ),
    cfg.ListOpt(
        'vgpu_types',
        default=[],
        mutable=True,
        help='The NVIDIA GPUs that are given to guests as mediated devices (mdev), each as '
        '``ADDRESS=TYPE``, such as ``0000:3b:00.0=nvidia-223``. TYPE is a directory of '
        '``mdev_supported_types`` of the GPU or of its virtual functions; ADDRESS is that of '
        'the GPU. Nova creates the devices. An invalid value does not affect the others: the '
        'driver is degraded and names it. By default no GPU is split so.',
    ),
    cfg.IntOpt(
        'report_interval',
        default=20,
        min=1,
        max=3600,
        mutable=True,
        help='How often this host is scanned and reported, in seconds. A host that has not '
        'reported for two and a half intervals is down, and its accelerators are not allocated.',
    ),
    cfg.IntOpt(
        'driver_timeout',
        default=30,
        min=1,
        mutable=True,
        help="The timeout of one driver's scan, in seconds, and at most report_interval. A "
        'driver that takes longer is shown as degraded, the host is reported without its answer, '
        'and the devices that it found before stay. A report waits for drivers for half of '
        'report_interval at most: a driver that has never answered is shown as degraded from '
        'then on, and one that has answered before is reported with that answer. A late answer '
        'causes a report at once, and the next scan of this driver starts an interval later.',
    ),
    cfg.BoolOpt(
        'offer_console_card',
        default=False,
        mutable=True,
        help='Whether the card that shows the console of this host (``boot_vga``) may be '
        'allocated. The host then loses its screen, and a kernel driver that uses the card may '
        'not release it. By default the card is reported but not allocated.',
    ),
    cfg.StrOpt(
        'spdk_socket',
        default='/var/tmp/spdk.sock',  # noqa: S108 # nosec B108 - the user of the peer is checked
        help='The Unix socket at which the driver ``spdk`` asks an application of SPDK for its '
        'block devices. Only an application of root or of the user of the agent is asked.',
    ),
    cfg.StrOpt(
        'socket',
        sample_default='/run/cyborg-lite/agent.sock',
        help='The Unix socket at which processes of this host request accelerators: '
        '``cyborg-lite run``, ``alloc`` and ``release`` use it. A lease is released when its '
        'process and all processes that it started have ended. An agent that does not run as '
        'root sees only processes of its own user. By default there is no socket; ``cyborg-lite '
        'up`` has ``agent.sock`` in its state directory.',
    ),
    cfg.StrOpt(
        'socket_group',
        help='The group whose members may use the socket, beside the user of the agent. By '
        'default no other user may.',
    ),
    cfg.StrOpt(
        'device_access',
        default='advisory',
        choices=[
            ('advisory', 'The modes of device nodes stay as they are.'),
            (
                'acl',
                'The nodes belong to root, and an access control list opens the nodes of a lease '
                'to its user.',
            ),
        ],
        help='Whether the kernel keeps users from devices that they have not leased. With ``acl`` '
        'the agent has to run as root and have a socket. Nodes that all processes need stay '
        'as they are. Root is not kept from any device. When this is ``advisory`` again, the '
        'agent puts the nodes back as it found them at its next start.',
    ),
    cfg.StrOpt(
        'access_file',
        sample_default='/var/lib/cyborg_lite/agent.access',
        help='The file in which the agent remembers how it found device nodes, with '
        '``device_access = acl``. By default it is ``agent.access`` in the directory that the '
        'variable STATE_DIRECTORY names, or in the state directory of ``cyborg-lite up``.',
    ),
    cfg.StrOpt(
        'cdi_directory',
        sample_default='/var/run/cdi',
        help='The directory in which the agent keeps a CDI specification for each active lease: '
        'a container is given the devices of a lease by the name '
        '``cyborg-lite.local/allocation=UUID``. A file is removed before its lease is released. '
        'The agent has to be able to write to the directory, which no other agent may use. By '
        'default no files are written.',
    ),
    cfg.BoolOpt(
        'withhold_rogues',
        default=True,
        mutable=True,
        help='Whether a device that a process uses without a lease is ``rogue`` and not given out. '
        'Turn it off where a service of this host has the device nodes open all the time.',
    ),
    cfg.BoolOpt(
        'tell_rogues',
        default=True,
        mutable=True,
        help='Whether the user of such a process is told so, once, in a line on the terminal of '
        'the process, if that terminal belongs to this user.',
    ),
    cfg.IntOpt(
        'idle_after',
        default=1800,
        min=0,
        max=31622400,
        mutable=True,
        help='How long a card has to tell in every scan that it does no work, in seconds, until '
        'whatever holds it is shown as idle. The drivers of NVIDIA, AMD and Intel GPUs and of '
        'Ascend NPUs read this. With 0 nothing is shown as idle. What happens then is decided '
        'by ``[conductor] idle_leases``.',
    ),
    cfg.StrOpt(
        'secret_file',
        sample_default='/var/lib/cyborg_lite/agent.secret',
        help='The file with the secret of this agent, which makes the file at its first start. '
        'Conductors pin the secret: they take no report of this host from another agent until '
        'the host is deleted or renamed. By default it is ``agent.secret`` in the directory that '
        'the variable STATE_DIRECTORY names, as with the unit of systemd, or in the state '
        'directory of ``cyborg-lite up``; otherwise the agent has no secret.',
    ),
]
