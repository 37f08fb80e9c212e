# SPDX-License-Identifier: Apache-2.0
"""A minimal WSGI application, which shows the cost of the server."""

BODY = b'{"devices": []}'


def application(environ, start_response):
    headers = [('Content-Type', 'application/json'), ('Content-Length', str(len(BODY)))]
    start_response('200 OK', headers)
    return [BODY]
