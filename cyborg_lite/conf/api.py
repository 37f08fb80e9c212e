# SPDX-License-Identifier: Apache-2.0
"""The options of the API."""

from __future__ import annotations

from oslo_config import cfg

OPTS = [
    cfg.StrOpt(
        'auth_strategy',
        default='keystone',
        choices=[
            ('keystone', 'Tokens of the Identity service, checked by keystonemiddleware.'),
            ('http_basic', 'Names and passwords of [api] http_basic_auth_user_file.'),
            (
                'noauth',
                'No authentication: every caller is administrator of one project. Only '
                'served on a loopback address.',
            ),
        ],
        help='How callers of the API are authenticated.',
    ),
    cfg.StrOpt(
        'http_basic_auth_user_file',
        default='/etc/cyborg_lite/htpasswd',
        help='An Apache htpasswd file with bcrypt hashes, in the format of ``htpasswd -B``. Used '
        'with ``auth_strategy = http_basic``.',
    ),
    cfg.StrOpt(
        'http_basic_auth_project_file',
        help='A file with the project and the roles of each user of '
        '``http_basic_auth_user_file``, one line ``USER:PROJECT:ROLE[,ROLE]`` for each. A role '
        'is one of ``admin``, ``manager``, ``member`` and ``reader``, and each includes those '
        'after it. The file is read again for each request. A user who is not in the file has no '
        'access. Without this option every user is administrator of one project.',
    ),
    cfg.StrOpt(
        'socket',
        sample_default='/run/cyborg-lite/api.sock',
        help='The Unix socket at which ``cyborg-lite up`` also serves the API. The kernel names '
        'the user of each client, whatever ``auth_strategy`` is: root and the user of the service '
        'are administrators, all others are members of the project that ``[conductor] '
        'user_projects`` says. By default it is ``api.sock`` in the state directory. Other web '
        'servers do not have it.',
    ),
    cfg.StrOpt(
        'socket_group',
        help='The group whose members may use the socket, beside root and the user of the '
        'service. By default no other user may.',
    ),
    cfg.ListOpt(
        'allowed_hosts',
        default=[],
        help='Names by which clients reach the API, in the form of the Host header, without the '
        'port. Used with ``noauth`` and ``http_basic``: a request for any other name is refused, '
        'because it may come from a web page of another site. Always allowed are ``localhost``, '
        'the host of ``public_endpoint`` and loopback addresses; with ``http_basic`` also every '
        'other IP address and the host name of this machine; with ``cyborg-lite up`` the '
        'argument of ``--bind``.',
    ),
    cfg.IntOpt(
        'max_limit',
        default=1000,
        min=1,
        max=10000,
        help='The maximum number of items in one page of a list. A link leads to the next page.',
    ),
    cfg.URIOpt(
        'public_endpoint',
        schemes=['http', 'https'],
        help='The URL by which clients reach the root of the API, for the links in answers. '
        'Without it links follow the request, which is right unless a proxy rewrites the path.',
    ),
    cfg.IntOpt(
        'max_request_body_size',
        default=114688,
        min=1024,
        help="The maximum size of a request's body, in bytes. The answer to a larger one is 413.",
    ),
    cfg.IntOpt(
        'response_timeout',
        default=60,
        min=1,
        help='The timeout of a request that waits for a conductor, in seconds. After it the '
        'answer is 503; the request may still be carried out later.',
    ),
    cfg.IntOpt(
        'max_waiting',
        default=4,
        min=0,
        help='The maximum number of requests in each process that wait for an allocation '
        '(``?wait=SECONDS``). Each of them occupies a thread of the web server: ``cyborg-lite '
        'up`` has 16, and the systemd unit gives 8 to each process; keep some for other '
        'requests. Further ones are answered at once, with the present state of the allocation. '
        'With 0 no request waits.',
    ),
]
