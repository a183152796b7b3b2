"""Sphinx's settings for the documentation site: python -m sphinx -W -b html docs docs/_build/html."""

project = "agent_memory"
author = "agent_memory contributors"
project_copyright = author
extensions = ["myst_parser"]
exclude_patterns = ["_build", "**/__pycache__"]
html_theme = "furo"
html_title = "agent_memory"
html_extra_path = ["llms.txt"]
html_theme_options = {"navigation_with_keys": True}
myst_heading_anchors = 4
myst_links_external_new_tab = False
nitpicky = True
