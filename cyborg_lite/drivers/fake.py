# SPDX-License-Identifier: Apache-2.0
"""A card that does not exist, for a trial of the service and for Tempest."""

from __future__ import annotations

from cyborg_lite import driver

HANDLES = 16


class FakeDriver(driver.Driver):
    """One FPGA with sixteen accelerators, as in Cyborg's fake driver: Nova's tests need it."""

    name = 'fake'

    def discover(self) -> list[driver.Device]:
        deployable = driver.Deployable(
            name='FakeDevice',
            driver_name=self.name,
            resource_class='FPGA',
            traits=['CUSTOM_FAKE_DEVICE'],
            attach_handles=[
                driver.AttachHandle(attach_type='TEST_PCI', attach_info=_address(number))
                for number in range(HANDLES)
            ],
        )
        return [
            driver.Device(
                type='FPGA',
                vendor='0xABCD',
                model='miss model info',
                address='FakeDevice',
                board={'product_id': '0xabcd', 'controller': None},
                vendor_board={'vendor_info': 'fake_vendor_info'},
                deployables=[deployable],
            )
        ]


def _address(number: int) -> dict[str, str]:
    device, function = divmod(number, 8)
    return {'domain': '0000', 'bus': '0c', 'device': f'{device:02x}', 'function': str(function)}
