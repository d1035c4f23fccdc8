"""How far results are apart on a processor with fewer instructions, which libraries can be told to play."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.console import machine
from pipeline.core import provenance

pytestmark = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="needs an x86-64 processor")

FEATURES = """
import sys
from pathlib import Path
import numpy as np
from pipeline.features import inference

compute = inference.ComputeParams(threads=2, batch_size=4, engine="openvino", precision="float32")
network = inference.FrozenNetwork(None, compute=compute, converted=Path(sys.argv[1]))
pixels = np.random.default_rng(0).integers(0, 256, (4, *network.input_shape)).astype(np.uint8)
np.save(sys.argv[2], network.run(pixels))
"""
CLASSIFIERS = """
import json, sys
import numpy as np
from threadpoolctl import threadpool_info
from tests.families import data, fit

train, validation, test = data("breast_cancer")
names = ("logistic_regression", "linear_svm", "rbf_svm", "k_nearest_neighbors")
np.savez(sys.argv[1], **{name: fit(name, train, validation, n_classes=2).model.predict_proba(test) for name in names})
print(json.dumps(sorted({pool["architecture"] for pool in threadpool_info() if "architecture" in pool})))
"""


def run(code: str, *arguments: object, **variables: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(provenance.ROOT), **variables}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


@pytest.mark.timeout(1500)
def test_features_of_a_processor_with_fewer_instructions_are_within_the_tolerance(finished: Path, tmp_path: Path):
    """AVX alone has no fused multiply-add: every product is rounded before it is added."""
    if "FMA" not in (machine.cpu_features() or ()):
        pytest.skip("needs a processor with more than AVX")
    converted = sorted(file.parent.parent for file in finished.glob(".cache/features/*/openvino-*/network.xml"))
    assert converted
    differences = []
    for place in converted:
        found = []
        for instructions in ("DEFAULT", "AVX"):
            file = tmp_path / f"{instructions}.npy"
            run(FEATURES, place, file, ONEDNN_MAX_CPU_ISA=instructions)
            found.append(np.load(file))
        one, other = found
        assert (np.abs(one - other).max(axis=1) < 1e-4 * np.abs(one).max(axis=1)).all()
        differences.append(np.abs(one - other).max())
    # Or it was not another processor that was played.
    assert max(differences) > 0


def test_classifiers_of_a_processor_with_fewer_instructions_are_within_the_tolerance(tmp_path: Path):
    usual = json.loads(run(CLASSIFIERS, tmp_path / "usual.npz"))
    other = "Haswell" if "Haswell" not in usual else "Nehalem"
    fewer = {"OPENBLAS_CORETYPE": other, "NPY_DISABLE_CPU_FEATURES": "X86_V4" if "SkylakeX" in usual else ""}
    assert json.loads(run(CLASSIFIERS, tmp_path / "fewer.npz", **fewer)) == [other]
    with np.load(tmp_path / "usual.npz") as one, np.load(tmp_path / "fewer.npz") as two:
        for name in one:
            np.testing.assert_allclose(two[name], one[name], atol=1e-6, err_msg=name)
