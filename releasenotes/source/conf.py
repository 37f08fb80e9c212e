# SPDX-License-Identifier: Apache-2.0
"""How the release notes are built: tox -e releasenotes."""

extensions = ['openstackdocstheme', 'reno.sphinxext']

project = 'cyborg_lite'
copyright = 'The cyborg_lite developers'

html_theme = 'openstackdocs'
templates_path = ['../../doc/source/_templates']
html_theme_options = {'show_other_versions': False}
openstackdocs_auto_name = False
openstackdocs_repo_name = ''
openstackdocs_pdf_link = False
pygments_style = 'native'
