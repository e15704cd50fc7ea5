"""`python benchmarks/training.py`: see training_epoch.py.

Next to it, `import training` finds this file before the package of that name. Then it steps aside.
"""

import importlib
import sys
from pathlib import Path

here = str(Path(__file__).resolve().parent)
path, sys.path = sys.path, [entry for entry in sys.path if str(Path(entry).resolve()) != here]
sys.modules.pop("training", None)
importlib.import_module("training")
sys.path = path

if __name__ == "__main__":
    importlib.import_module("training_epoch").main()
