"""The worker's image has no trainer in it, so nothing that serves may need one."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "module",
    [
        "tidecast.service",
        "tidecast.service.worker.worker",
        "tidecast.service.commands.serve",
        "tidecast.service.commands.replay",
        "tidecast.service.watch.server",
    ],
)
def test_the_service_pulls_in_neither_torch_nor_onnx_nor_the_trainer(module):
    heavy = "{'torch', 'onnx', 'onnxscript', 'tidecast.training', 'polars', 'matplotlib', 'rich'}"
    code = f"import sys, {module}; sys.exit(', '.join({heavy} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
