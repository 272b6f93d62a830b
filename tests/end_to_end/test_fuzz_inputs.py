"""What a user loads, made up: a short run of what benchmarks/fuzz_inputs.py does for as long as one likes."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings

import xaieval

pytestmark = pytest.mark.slow

PROGRAM = runpy.run_path(str(Path(xaieval.__file__).parents[1] / "benchmarks" / "fuzz_inputs.py"))
EXAMPLES = {"names": 6, "ids": 8, "rows": 12, "manifests": 12, "options": 15, "toml": 25}


@pytest.mark.parametrize("name", PROGRAM["TARGETS"])
def test_made_up_input_gives_a_result_or_one_clear_line(name):
    quick = settings(
        max_examples=EXAMPLES.get(name, 40),
        deadline=None,
        phases=[Phase.explicit, Phase.generate],  # shrinking takes longer than all else
        suppress_health_check=list(HealthCheck),
    )
    quick(PROGRAM["TARGETS"][name])()
