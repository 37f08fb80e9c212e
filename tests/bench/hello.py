# SPDX-License-Identifier: Apache-2.0
"""The least that a WSGI application can do: what is left is the server's."""

BODY = b'{"devices": []}'


def application(environ, start_response):
    headers = [('Content-Type', 'application/json'), ('Content-Length', str(len(BODY)))]
    start_response('200 OK', headers)
    return [BODY]
