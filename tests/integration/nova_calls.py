# SPDX-License-Identifier: Apache-2.0
"""Make Nova's own calls, in a separate process: Nova's configuration is global in a process.

Arguments: a configuration file, the user's token, the accelerator service's URL and JSON text of
what to do: a list of [method of nova.accelerator.cyborg._CyborgClient, arguments ...]. Prints JSON
text of a list of what they return, or raise.
"""

import json
import os
import sys

os.environ['OS_NOVA_DISABLE_EVENTLET_PATCHING'] = '1'

from nova import conf
from nova import context
from nova import objects
from nova.accelerator import cyborg


def main(file, token, calls):
    conf.CONF([], project='nova', default_config_files=[file])
    objects.register_all()
    client = cyborg.get_client(context.RequestContext(auth_token=token))
    answers = []
    for method, *arguments in calls:
        try:
            answers.append(getattr(client, method)(*arguments))
        except Exception as error:
            answers.append(f'{type(error).__name__}: {error}')
    return answers


if __name__ == '__main__':
    print(json.dumps(main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3])), default=repr))
