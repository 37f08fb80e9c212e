# SPDX-License-Identifier: Apache-2.0
"""How the API reference is built: tox -e api-ref."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / 'ext'))

extensions = ['os_api_ref', 'openstackdocstheme', 'validator']

project = 'cyborg_lite'
copyright = 'The cyborg_lite developers'

html_theme = 'openstackdocs'
templates_path = ['../../doc/source/_templates']
html_theme_options = {'sidebar_mode': 'toc', 'show_other_versions': False}
openstackdocs_auto_name = False
openstackdocs_repo_name = ''
openstackdocs_pdf_link = False
pygments_style = 'native'
