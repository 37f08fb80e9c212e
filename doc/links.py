# SPDX-License-Identifier: Apache-2.0
"""Check the links within built pages: python doc/links.py DIRECTORY."""

import html
import pathlib
import re
import sys
import urllib.parse


def broken(root: pathlib.Path) -> list[str]:
    """The links of pages below a directory that lead to no file, or to no place in it."""
    texts = {page.resolve(): page.read_text(errors='replace') for page in root.rglob('*.html')}
    places = {page: set(re.findall(r'\b(?:id|name)="([^"]+)"', t)) for page, t in texts.items()}
    found = []
    for page, text in texts.items():
        for link in map(html.unescape, re.findall(r'href="([^"]+)"', text)):
            path, _, place = link.partition('#')
            # Other hosts; and what scripts of os-api-ref make when a page is shown.
            if re.match(r'[\w+.-]+:|//', link) or place.endswith('-selector'):
                continue
            target = page.parent / urllib.parse.unquote(path.partition('?')[0]) if path else page
            target = target.resolve()
            known = target.exists() and (not place or place in places.get(target, {place}))
            if not known:
                found.append(f'{page}: {link}')
    return found


if __name__ == '__main__':
    sys.exit('\n'.join(broken(pathlib.Path(sys.argv[1]))) or 0)
