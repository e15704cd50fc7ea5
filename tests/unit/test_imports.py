"""The worker's image has no trainer in it, so nothing that serves may need one."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "module", ["service", "service.worker", "service.commands.serve", "service.commands.replay", "service.watch.run"]
)
def test_the_service_pulls_in_neither_torch_nor_onnx_nor_the_trainer(module):
    heavy = "{'torch', 'onnx', 'onnxscript', 'training', 'polars', 'matplotlib', 'rich'}"
    code = f"import sys, {module}; sys.exit(', '.join({heavy} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
