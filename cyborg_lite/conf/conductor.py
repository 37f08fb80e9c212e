# SPDX-License-Identifier: Apache-2.0
"""The options of a conductor."""

from __future__ import annotations

from oslo_config import cfg

OPTS = [
    cfg.IntOpt(
        'absences',
        default=3,
        min=1,
        mutable=True,
        help='The number of reports in a row without a device after which the device is deleted. '
        'Until then it is kept but not allocated. A device that a request holds, that is '
        'disabled or that has an added attribute is never deleted.',
    ),
    cfg.StrOpt(
        'health_policy',
        help="A TOML file with the effects of a device's health. A key is a level (warning, "
        'critical), a reason such as pcie_width, or the beginning of a reason. A value is '
        '"none", "no_new" (no new allocations), "tell" (holders are notified), or a list of the '
        'last two. By default critical = ["no_new", "tell"] and warning = "tell"; keys that are '
        'not in the file keep their default. The file is read when a conductor starts: all '
        'conductors must have the same.',
    ),
    cfg.IntOpt(
        'health_bad_samples',
        default=3,
        min=1,
        help='The number of scans in a row with a worse health of a device after which the '
        'effects of its health begin. For a new device they begin at once.',
    ),
    cfg.IntOpt(
        'health_good_samples',
        default=3,
        min=1,
        help='The number of scans in a row with a better health of a device after which the '
        'effects of its health end. A scan with unknown health does not count.',
    ),
    cfg.IntOpt(
        'healing_interval',
        default=10,
        min=1,
        help='How often a conductor searches for hosts that no longer report, in seconds. '
        'Their inventory in Placement is reserved until they report again. At the same interval '
        'it reconciles Placement for one host after another, in case Placement has lost data.',
    ),
    cfg.IntOpt(
        'outbox_interval',
        default=10,
        min=1,
        max=15,
        help='How often a conductor searches for undelivered messages to Placement and Nova, in '
        'seconds. It sends its own messages at once; this search takes over those of a conductor '
        'that has stopped, within a minute.',
    ),
    cfg.StrOpt(
        'placing',
        default='binpack',
        help='The policy that chooses the host of an allocation, by the name of an entry point '
        'of ``cyborg_lite.placing``: ``binpack`` chooses the fullest host that has room, '
        '``spread`` the emptiest. Where more than 256 accelerators are free, it compares the hosts '
        'of the first 256 of them, and more only if the request does not fit there.',
    ),
    cfg.DictOpt(
        'user_projects',
        default={},
        mutable=True,
        help='The project of each user who leases accelerators from the agent of a host, or asks '
        'at ``[api] socket``, such as ``jane:lab,bob:lab``. A user who is not in it has a project '
        'of their own, with the name of the user. Quotas and the queue count by project.',
    ),
    cfg.StrOpt(
        'idle_leases',
        default='nothing',
        mutable=True,
        choices=[
            ('nothing', 'It is only shown: see ``[agent] idle_after``.'),
            (
                'tell',
                'It is logged once, the ``reason`` of the allocation tells the holder, and the '
                'agent writes it once to the terminal of a process that holds it.',
            ),
            (
                'release',
                'The holder is told, and after ``idle_grace`` the allocation is released if no '
                'process uses its devices.',
            ),
        ],
        help='What happens when all accelerators of an allocation do no work. With ``release``, '
        'nothing is released unless the agent sees that no process has a device of the allocation '
        'open: it has to run as root, and cards must be of a kind whose use shows. Accelerators of '
        'instances are never released.',
    ),
    cfg.IntOpt(
        'idle_grace',
        default=1800,
        min=0,
        max=31622400,
        mutable=True,
        help='With ``idle_leases = release``: how long after its holder was told an allocation is '
        'released, in seconds. A renewal of its lease begins the time anew.',
    ),
    cfg.IntOpt(
        'reservation_grace',
        default=900,
        min=1,
        mutable=True,
        help='How long an active reservation is kept until a process leases from it, in seconds. '
        'After that it is released. A reservation that names a consumer which is no process is '
        'kept until its end.',
    ),
    cfg.IntOpt(
        'keep_released',
        default=604800,
        min=0,
        mutable=True,
        help='How long a released allocation is kept and shown, in seconds. After that it is '
        'deleted together with its idempotency key.',
    ),
]
