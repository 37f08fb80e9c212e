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
templates_path = ['_templates']
html_static_path = ['_static']
html_theme_options = {'show_other_versions': False}
openstackdocs_auto_name = False
openstackdocs_repo_name = ''
openstackdocs_pdf_link = False
pygments_style = 'native'

man_pages = [
    (f'cli/{name}', name, about, ['The cyborg_lite developers'], section)
    for name, about, section in (
        ('cyborg-lite', 'the whole accelerator service in one process', 1),
        ('cyborg-lite-agent', 'reports the accelerators of a host', 8),
        ('cyborg-lite-conductor', 'keeps accelerators, and binds them to workloads', 8),
        ('cyborg-lite-dbsync', 'cares for the database of cyborg_lite', 8),
        ('cyborg-lite-discover', 'leases accelerators for a process of Spark', 1),
        ('cyborg-lite-status', 'checks before an upgrade, and audits what is held', 8),
    )
]
