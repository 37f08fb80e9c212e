# SPDX-License-Identifier: Apache-2.0
"""A program of Ray that says which devices its actors and tasks have."""

import json
import os
import pathlib
import sys

import ray


@ray.remote(resources={'NPU': 1}, num_cpus=0)
class Actor:
    def devices(self):
        return visible()


@ray.remote(num_cpus=1)
def task():
    return visible()


def visible():
    return os.environ.get('ASCEND_RT_VISIBLE_DEVICES', '').split(',')


def main():
    ray.init(address=sys.argv[1], logging_level='ERROR')
    first, second, third = (Actor.remote() for _ in range(3))
    found = {'actors': ray.get([first.devices.remote(), second.devices.remote()])}
    found['task'] = ray.get(task.remote())
    waiting = third.devices.remote()
    found['early'] = bool(ray.wait([waiting], timeout=1)[0])
    ray.kill(first)
    found['late'] = ray.get(waiting)
    pathlib.Path(sys.argv[2]).write_text(json.dumps(found))


if __name__ == '__main__':
    main()
