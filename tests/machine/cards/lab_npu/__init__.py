# SPDX-License-Identifier: Apache-2.0
"""The cards of the machine of these tests: each is a device node, /dev/labN, and nothing else."""

import pathlib

from cyborg_lite import driver

DEV = pathlib.Path('/dev')


class LabNpu(driver.Driver):
    """A card for each node."""

    name = 'lab_npu'

    def discover(self):
        return [self._card(int(node.name[-1])) for node in sorted(DEV.glob('lab[0-9]'))]

    def _card(self, number):
        address = f'0000:{number:02x}:00.0'
        place = {'domain': '0000', 'bus': f'{number:02x}', 'device': '00', 'function': '0'}
        handle = driver.AttachHandle(attach_type='PCI', attach_info=place, form='whole')
        part = driver.Deployable(
            name=f'lab_{number}',
            driver_name=self.name,
            resource_class='CUSTOM_NPU',
            traits=['CUSTOM_LAB'],
            attach_handles=[handle],
        )
        return driver.Device(
            type='AICHIP',
            vendor='1234',
            model='Lab NPU',
            address=address,
            board={'product_id': '0001', 'controller': None},
            vendor_board={'index': number},
            deployables=[part],
        )
