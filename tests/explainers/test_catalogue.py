"""The table of methods: on the command line, and in the documentation."""

from __future__ import annotations

import pytest

from tests import ROOT
from xaieval.cli import main
from xaieval.errors import ExplainerError
from xaieval.explainers import LIBRARY_METHODS, METHODS, joins_layers, resolve_methods
from xaieval.explainers.catalogue import LIBRARIES, catalogue

PAGE = ROOT / "docs/methods.md"


@pytest.mark.parametrize("entry", catalogue(), ids=lambda entry: entry.name)
def test_an_entry_says_what_the_method_says(entry):
    explainer = {**METHODS, **LIBRARY_METHODS}[entry.name]
    assert bool({"layer", "several layers"} & {*entry.needs.split(", ")}) is explainer.needs_layer
    assert ("several layers" in entry.needs) is joins_layers(explainer)
    assert not explainer.needs_gradient or "gradients" in entry.needs.split(", ")
    assert entry.passes, "the cost is known"
    assert entry.paper, "so is the source"


def test_every_method_of_a_library_has_the_library_s_name():
    for library in LIBRARIES:
        assert all(name.startswith(f"{library.name}:") and method.name == name for name, method in library.methods.items())
    assert len(LIBRARY_METHODS) == sum(len(library.methods) for library in LIBRARIES)


def test_the_page_has_the_table_that_the_command_prints(capsys):
    main(["methods", "--markdown"])
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) == len(METHODS) + len(LIBRARY_METHODS) + 2
    assert printed in PAGE.read_text(), "write what 'xaieval-bench methods --markdown' prints into docs/methods.md"


def test_our_methods_are_known_in_the_spellings_of_papers_and_libraries():
    plus = [("GradCAMPlusPlus", "gradcam++"), ("gradcam_pp", "gradcam++"), ("Grad-CAM++", "gradcam++")]
    for spelling, name in (*plus, ("GradCAM", "gradcam"), ("score_cam", "score-cam"), ("RISE", "rise")):
        assert resolve_methods(spelling) == [METHODS[name]]
    assert all(resolve_methods(spelling) == [METHODS[name]] for name in METHODS for spelling in (name, name.upper()))
    with pytest.raises(ExplainerError, match="each name once"):
        resolve_methods(["gradcam", "GradCAM"])
    with pytest.raises(ExplainerError, match="no method 'gradkam'; did you mean 'gradcam'"):
        resolve_methods("gradkam")
