# SPDX-License-Identifier: Apache-2.0
"""How the API reference is built: tox -e api-ref."""

extensions = ['os_api_ref', 'openstackdocstheme']

project = 'cyborg_lite'
copyright = 'The cyborg_lite developers'

html_theme = 'openstackdocs'
html_theme_options = {'sidebar_mode': 'toc', 'show_other_versions': False}
openstackdocs_auto_name = False
openstackdocs_repo_name = ''
openstackdocs_pdf_link = False
pygments_style = 'native'
