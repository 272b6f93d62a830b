"""Words for the axes of a layer's output."""

from __future__ import annotations

import pytest

from xaieval.config.axes import check_layout, parse_axes
from xaieval.errors import UsageError


@pytest.mark.parametrize(
    ("words", "axes"),
    [
        ("TNC", (("T",), ("N",), ("C",))),
        ("N T C", (("N",), ("T",), ("C",))),
        ("NCHW", (("N",), ("C",), ("h",), ("w",))),
        ("N, h, w, C", (("N",), ("h",), ("w",), ("C",))),
        ("N*V C h w", (("N", "V"), ("C",), ("h",), ("w",))),
        ("(V N) C h w", (("V", "N"), ("C",), ("h",), ("w",))),
        ("N V C h w", (("N",), ("V",), ("C",), ("h",), ("w",))),
        ("N (t h w) C", (("N",), ("d", "h", "w"), ("C",))),
        ("N h*w*t C", (("N",), ("h", "w", "d"), ("C",))),
    ],
)
def test_words_name_the_axes(words, axes):
    assert parse_axes(words) == axes


@pytest.mark.parametrize(
    "words", ["", "C h w", "N T", "N C h", "N C h h", "N C h w x", "N T C h w", "N*C h w", "N C*h w", "(N C h w"]
)
def test_other_words_are_refused_with_the_forms(words):
    with pytest.raises(UsageError, match=r"does not name the axes of a layer's output; known forms are 'N C h w'"):
        parse_axes(words)


def test_a_layout_is_words_or_a_function_or_a_mapping_of_these():
    check_layout(None)
    check_layout({"blocks.*": "TNC", "head": lambda tensor: tensor})
    for wrong in (7, {"blocks.*": 7}):
        with pytest.raises(UsageError, match="layout takes words for the axes, a function"):
            check_layout(wrong)
