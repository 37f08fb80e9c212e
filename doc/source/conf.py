# SPDX-License-Identifier: Apache-2.0
"""How the documentation is built: tox -e docs."""

extensions = [
    'openstackdocstheme',
    'oslo_config.sphinxconfiggen',
    'oslo_config.sphinxext',
    'oslo_policy.sphinxext',
    'oslo_policy.sphinxpolicygen',
    'sphinx.ext.autodoc',
]

project = 'cyborg_lite'
copyright = 'The cyborg_lite developers'

config_generator_config_file = '../../etc/cyborg_lite/cyborg-lite-config-generator.conf'
sample_config_basename = '_static/cyborg_lite'
policy_generator_config_file = '../../etc/cyborg_lite/cyborg-lite-policy-generator.conf'
sample_policy_basename = '_static/cyborg-lite'

html_theme = 'openstackdocs'
html_static_path = ['_static']
html_theme_options = {'show_other_versions': False}
openstackdocs_auto_name = False
openstackdocs_repo_name = ''
openstackdocs_pdf_link = False
pygments_style = 'native'
