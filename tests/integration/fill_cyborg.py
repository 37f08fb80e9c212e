# SPDX-License-Identifier: Apache-2.0
"""Run by the Python of OpenStack Cyborg: its code makes its fake card and three requests, two of
them bound, and prints them as in the API.
"""

import json
import sys
import uuid

from cyborg import context
from cyborg import objects
from cyborg.accelerator.drivers import fake
from cyborg.common import service
from cyborg.conf import CONF

service.prepare_service(['fill', *sys.argv[1:]])
admin = context.get_admin_context()
[card] = fake.FakeDriver().discover()
card.create(admin, CONF.host)
[part] = objects.Deployable.list(admin)
# As the conductor does once Placement has the provider.
part.rp_uuid = str(uuid.uuid3(uuid.NAMESPACE_DNS, part.name))
part.save(admin)
groups = [{'resources:FPGA': '3', 'trait:CUSTOM_FAKE_DEVICE': 'required'}]
profile = objects.DeviceProfile(admin, uuid=str(uuid.uuid4()), name='three', groups=groups)
profile.create(admin)
for number in range(3):
    arq = objects.ARQ(
        admin,
        uuid=str(uuid.uuid4()),
        device_profile_name='three',
        device_profile_group_id=0,
        project_id='a-project',
    )
    objects.ExtARQ(admin, arq=arq).create(admin, profile.id)
    if number:
        made = objects.ExtARQ.get(admin, arq.uuid)
        made.arq.hostname = CONF.host
        made.arq.device_rp_uuid = part.rp_uuid
        made.arq.instance_uuid = str(uuid.uuid4())
        made.update_check_state(admin, 'BindStarted')
        made.bind(admin, part)
print(
    json.dumps(
        {
            'devices': [row.uuid for row in objects.Device.list(admin)],
            'providers': [part.rp_uuid],
            'arqs': {
                row.arq.uuid: [row.arq.state, row.arq.instance_uuid, row.arq.attach_handle_uuid]
                for row in objects.ExtARQ.list(admin)
            },
        }
    )
)
