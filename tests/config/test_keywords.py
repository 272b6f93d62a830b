"""Options as one object and as keywords: keywords win, the object stays, and what is unknown is refused by name."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from xaieval.config.keywords import with_keywords
from xaieval.errors import UsageError


@dataclass(frozen=True)
class Sizes:
    width: int = 1
    height: int = 1


def draw(shape, colour="red", sizes=None, **options):
    return with_keywords(draw, sizes or Sizes(), options)


def test_keywords_win_and_the_object_stays():
    sizes = Sizes(width=2, height=3)
    assert draw("circle", sizes=sizes, height=4) == Sizes(width=2, height=4)
    assert sizes == Sizes(width=2, height=3)
    assert draw("circle") == Sizes()


@pytest.mark.parametrize(
    ("keyword", "near"), [("heigth", "did you mean 'height'? "), ("color", "did you mean 'colour'? "), ("zzz", "")]
)
def test_an_unknown_keyword_is_refused_with_all_that_the_function_takes(keyword, near):
    with pytest.raises(UsageError) as caught:
        draw("circle", **{keyword: 1})
    assert str(caught.value) == f"draw() takes no {keyword!r}; {near}known: shape, colour, sizes, width, height"
