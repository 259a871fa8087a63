"""How the documentation site is built: ``sphinx-build -W -c docs . build/site``.

The root of the repository is the source, so that the pages of docs/ and the README of each room
appear as they are, under the links by which they name one another on any forge.
"""

import os
import sys
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

from haq_site import setup_site  # noqa: E402 - found through the path above
from jupyter_cache.executors import utils  # noqa: E402

# Notebooks call the command line of this environment, in one thread, and write no colour codes.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
os.environ |= {"OMP_NUM_THREADS": "1", "NO_COLOR": "1", "COLUMNS": "100"}

# Else a line is broken wherever a chunk of a program's output happens to end.
utils.executenb = partial(utils.executenb, coalesce_streams=True)

project = "HAQ"
author = copyright = "The HAQ authors"
root_doc = "docs/index"
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]

include_patterns = [
    "*.md",
    "docs/**.md",
    "agents/README.md",
    "envs/README.md",
    "hw_profiles/README.md",
    "results/haq-bench/README.md",
    "results/latency/README.md",
]
exclude_patterns = [".*", "build", "dist", "haq", "results/benchmarks", "tests", "examples"]

html_theme = "furo"
html_title = "HAQ"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_additional_pages = {"index": "to_first_page.html"}
templates_path = ["_templates"]
html_copy_source = False
html_show_sourcelink = False

myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence", "deflist"]

nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_timeout = 600
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_merge_streams = True
suppress_warnings = ["myst-nb.lexer"]  # of notebooks that are not run: -D nb_execution_mode=off

autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
python_maximum_signature_line_length = 80
copybutton_exclude = ".linenos, .gp, .go"


def setup(app):
    """Connect what this project adds to the generator."""
    setup_site(app)
