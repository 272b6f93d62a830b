"""The first screen says which layer and method is best, how sure that is, and what to doubt."""

from __future__ import annotations

import numpy as np
import pandas as pd

from xaieval.report.html.overview import Best, best_of, doubts_of, how_sure, size_note, winners_of
from xaieval.report.html.sections import controls_beaten
from xaieval.report.result_table import result_table
from xaieval.results.record import RunRecord

AD = {"name": "average_drop", "higher_is_better": False, "interval": "mean", "label": "AD %"}
IC = {"name": "increase_in_confidence", "higher_is_better": True, "interval": "wilson", "label": "IC %"}
SIZE = {"name": "map_size", "higher_is_better": None, "interval": "mean", "label": "size"}
PAIRS = [("p4", "a"), ("p5", "a"), ("p5", "b"), ("input", "random")]


def _record(drops: dict[tuple[str, str], float], increases: dict[tuple[str, str], float], count: int = 60) -> RunRecord:
    """Rows around given means, with the same noise at all pairs of a metric, in another order."""
    noise = np.linspace(-5, 5, count)
    rng = np.random.default_rng(0)
    parts = [
        pd.DataFrame(
            {
                "image_id": [f"{number:03d}" for number in range(count)],
                "layer": pair[0],
                "method": pair[1],
                "average_drop": drops[pair] + rng.permutation(noise),
                "increase_in_confidence": 100.0 * (np.arange(count) < count * increases[pair] / 100),
                "map_size": 1.0,
                "mask_area": 0.5,
                "confidence": np.linspace(0.5, 0.9, count),
                "status": "ok",
            }
        )
        for pair in drops
    ]
    return RunRecord(pd.concat(parts, ignore_index=True), {"metrics": [AD, IC, SIZE], "controls": ["random"]})


def _best(record: RunRecord) -> list[Best]:
    return best_of(record, result_table(record), {"average_drop": "it can be fooled"})


def test_the_best_of_each_metric_stands_beside_those_that_cannot_be_told_apart():
    drops = dict(zip(PAIRS, (60.0, 20.0, 20.1, 0.0), strict=True))
    increases = dict(zip(PAIRS, (0.0, 80.0, 30.0, 100.0), strict=True))
    record = _record(drops, increases)
    first, second = _best(record)
    assert (first.layer, first.method, first.value, first.ties) == ("p5", "a", "20.0", [("p5", "b")])
    assert (first.label, first.direction, first.fooled) == ("AD %", "lower is better", "it can be fooled")
    assert (second.layer, second.method, second.value, second.ties, second.fooled) == ("p5", "a", "80.0", [], "")
    beaten = controls_beaten(record, 0.95)
    [winner] = winners_of([first, second], beaten)
    assert (winner.layer, winner.method, winner.labels) == ("p5", "a", ["AD %", "IC %"])
    assert winner.controls == ["0 of 1 in AD %", "0 of 1 in IC %"]
    assert how_sure([first, second], "95%") == "Significantly better than all others in IC %, but not in AD % (95%)."


def test_of_several_winners_the_one_of_most_metrics_comes_first():
    drops = dict(zip(PAIRS, (10.0, 20.0, 90.0, 95.0), strict=True))
    increases = dict(zip(PAIRS, (0.0, 80.0, 30.0, 0.0), strict=True))
    record = _record(drops, increases)
    drop, increase = _best(record)
    other = increase._replace(label="other %")
    winners = winners_of([drop, increase, other], {("p4", "a"): [("1 of 1", [])] * 3})
    assert [(one.layer, one.labels, one.controls) for one in winners] == [
        ("p5", ["IC %", "other %"], []),
        ("p4", ["AD %"], ["1 of 1 in AD %"]),
    ]
    assert how_sure([drop, increase], "95%") == "Significantly better than all others in AD % and IC % (95%)."


def test_nothing_is_called_certain_that_was_not_tested():
    one = Best("", "AD %", "", "1.0", "", "p5", "a", None, "")
    assert how_sure([one], "95%") == "Not tested against the others: there is only one layer and method to rank."
    assert how_sure([one, one._replace(ties=[])], "95%") == "Not tested against the others."
    tied = one._replace(ties=[("p4", "a")] * 6)
    assert how_sure([tied], "95%") == "Not certain: in no metric significantly better than all others (95%)."
    assert len(tied.named_ties) == 4
    assert tied.more_ties == 2


def test_the_largest_maps_are_said_to_be_where_they_win():
    drops = dict(zip(PAIRS, (60.0, 20.0, 30.0, 0.0), strict=True))
    record = _record(drops, dict.fromkeys(PAIRS, 0.0))
    areas = dict(zip(PAIRS, (0.2, 0.4567, 0.3, 0.9), strict=True))
    record.rows["mask_area"] = [areas[pair] for pair in zip(record.rows["layer"], record.rows["method"], strict=True)]
    winners = winners_of(_best(record)[:1], {})
    frame = result_table(record).frame
    said = "The maps of p5 a are the largest: they keep 45.7 % of the image, the others at most 30.0 %."
    assert size_note(winners, frame, ["random"]) == said, "a control does not count"
    assert size_note(winners, frame, []) == "", "random is larger"
    assert size_note(winners, frame.drop(index=[("p4", "a"), ("p5", "b")]), ["random"]) == "", "there is no other"
    assert size_note([], frame, ["random"]) == ""
    assert size_note(winners, frame.assign(mask_area=0.5), ["random"]) == "", "all are as large"


def test_doubts_are_in_the_words_and_digits_of_the_table_and_begin_with_the_check():
    drops = dict(zip(PAIRS, (60.0, 20.0, 30.0, 0.04), strict=True))
    record = _record(drops, dict.fromkeys(PAIRS, 0.0), count=20)
    finding = {"name": "random_weights", "text": "the weights are random", "evidence": {}}
    record.manifest["findings"] = [finding]
    doubts = doubts_of(record, result_table(record).frame, 0.95)
    assert doubts[0] == "The weights are random"
    assert (
        "AD %: the control map random (0.0) is significantly better than every method, the best of which is a at p5 (20.0); so "
        "a good AD % alone proves nothing"
    ) in doubts
    assert doubts[-1].startswith("Only 20 images count for a layer and method; with fewer than 50,")
    assert not any("average_drop" in doubt for doubt in doubts)
