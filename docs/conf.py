"""Settings of the documentation: Sphinx with MyST and Furo; ``make docs`` builds it with warnings as errors."""

from bitdance_edge import __version__

project = "bitdance-edge"
author = "the bitdance-edge authors"
copyright = "the bitdance-edge authors, Apache-2.0"
version = release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
nitpick_ignore_regex = [("py:.*", ".*")]  # docstrings name types of other projects
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence", "attrs_inline"]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autoclass_content = "class"
html_theme = "furo"
html_title = f"bitdance-edge {version}"
html_theme_options = {
    "source_repository": "https://github.com/bitdance-edge/bitdance-edge/",
    "source_branch": "main",
    "source_directory": "docs/",
}
