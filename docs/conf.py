"""The site: `make docs` builds it from the Markdown beside this file and the package's docstrings, into out/docs."""

import re
import textwrap

project = "dfdc_ray"
copyright = "the authors of dfdc_ray, Apache-2.0"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["deploy"]
highlight_language = "text"
html_theme = "furo"
html_title = project
html_copy_source = False
html_show_sphinx = False
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "undoc-members": True}
autodoc_typehints = "signature"
python_maximum_signature_line_length = 100

# Types of other packages have no page here, nor have these modules of our own.
_LEFT_OUT = ("evaluate.duplicates", "evaluate.videos", "preprocess.supervise", "s3", "shards.order", "train.blend")
nitpick_ignore_regex = [("py:.*", r"(?!dfdc_ray\.).*"), *(("py:class", rf"dfdc_ray\.{name}\..*") for name in _LEFT_OUT)]


def _as_rst(*arguments: object) -> None:
    """Docstrings are plain text: what is indented or aligned stays as it is, lists stay lists, and only `words` are markup."""
    lines: list[str] = arguments[-1]  # type: ignore[assignment]
    found = []
    for paragraph in "\n".join(lines).split("\n\n"):
        text = textwrap.dedent(paragraph).strip("\n")
        if paragraph.startswith("    ") or ("\n  " in text and not text.startswith("- ")):
            found.append("::\n\n" + textwrap.indent(text, "    "))
        else:
            text = re.sub(r"([*|\\]|_(?!\w))", r"\\\1", text)
            found.append(re.sub(r"`([^`]+)`", lambda match: f"``{match[1].replace(chr(92), '')}``", text))
    lines[:] = "\n\n".join(found).splitlines()


def setup(app):  # type: ignore[no-untyped-def]
    app.connect("autodoc-process-docstring", _as_rst)
