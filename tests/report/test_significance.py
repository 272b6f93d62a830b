"""The best layer and method in sentences, against letters that are read by hand."""

from __future__ import annotations

import pandas as pd
import pytest

from xaieval.report.significance import best_in_words, ties_of

DROP = {"name": "drop", "label": "AD %", "higher_is_better": False}
PAIRS = [("p2", "cam"), ("p3", "cam"), ("p4", "cam"), ("input", "random")]


def table(letters: list[str], best: int = 0, *also: int) -> pd.DataFrame:
    """Three pairs and a control map, whose letters are given."""
    frame = pd.DataFrame({"drop": [10.0, 20, 30, 5]}, index=pd.MultiIndex.from_tuples(PAIRS, names=["layer", "method"]))
    frame["drop_low"], frame["drop_high"] = frame["drop"] - 1, frame["drop"] + 1
    frame["drop_letters"], frame["drop_best"] = [*letters, ""], [place in (best, *also) for place in range(4)]
    return frame


@pytest.mark.parametrize(
    ("letters", "also", "end"),
    [
        (["a", "b", "c"], (), "cam at p2 has the lowest mean, 10.0 [9.0, 11.0], and differs significantly from all 2 others."),
        (
            ["a", "a", "b"],
            (),
            "It does not differ significantly from cam at p3. It differs significantly from the other one.",
        ),
        (["ab", "a", "b"], (), "11.0], but does not differ significantly from any of the 2 others."),
        (["", "", ""], (), "cam at p2 has the lowest mean, 10.0 [9.0, 11.0]; nothing was tested."),
        (
            ["a", "a", "b"],
            (1,),
            "p2 and cam at p3 have the lowest mean, 10.0, and differ significantly from the other one.",
        ),
        (["a", "a", "a"], (1,), "have the lowest mean, 10.0, but do not differ significantly from the other one."),
        (["a", "a", "a"], (1, 2), "cam at p2, cam at p3 and cam at p4 have the lowest mean, 10.0."),
    ],
)
def test_the_sentence_says_what_the_letters_say(letters, also, end):
    sentence = best_in_words(table(letters, 0, *also), DROP)
    assert sentence.startswith("AD %: cam at p2")
    assert sentence.endswith(end)


def test_higher_is_better_has_the_highest_mean_and_without_a_direction_nothing_is_said():
    frame = table(["b", "a", "a"], 2)
    assert (
        "cam at p4 has the highest mean, 30.0 [29.0, 31.0]. It does not differ significantly from cam at p3."
        in best_in_words(frame, DROP | {"higher_is_better": True})
    )
    assert best_in_words(frame, DROP | {"higher_is_better": None}) == ""
    assert best_in_words(frame.assign(drop_best=False), DROP) == ""


def test_many_ties_are_counted():
    pairs = pd.MultiIndex.from_tuples([(f"l{n}", "cam") for n in range(9)], names=["layer", "method"])
    frame = pd.DataFrame({"drop": range(9), "drop_low": 0.0, "drop_high": 9.0, "drop_letters": ["a"] * 8 + ["b"]}, index=pairs)
    sentence = best_in_words(frame.assign(drop_best=[True] + [False] * 8), DROP)
    assert (
        "from cam at l1, cam at l2, cam at l3, cam at l4 and 3 more. It differs significantly from the other one." in sentence
    )


def test_ties_share_a_letter_with_the_best():
    letters = table(["ab", "bc", "c"])["drop_letters"]
    assert ties_of(letters, PAIRS[0]) == [PAIRS[1]]
    assert ties_of(letters, PAIRS[3]) is None
