"""How long the zoo keeps `import torch`: loading and calling its entry point, in fresh interpreters.

    python recipes/benchmarks/import_time.py

torch scans the entry points of its group whether the zoo is installed or not; what is timed is the rest, all
that torch's hook does for us. The zoo promises to stay under 1 ms.
"""

import statistics
import subprocess
import sys

RUNS = 21
CODE = """
import os, time
os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
import torch
from importlib.metadata import entry_points
(entry,) = (entry for entry in entry_points(group="torch.backends") if entry.name == "vitseg_zoo")
start = time.perf_counter()
entry.load()()
print(time.perf_counter() - start)
"""


def main() -> None:
    run = [sys.executable, "-c", CODE]
    times = [
        float(subprocess.run(run, capture_output=True, text=True, check=True).stdout) for _ in range(RUNS)
    ]
    print(f"inside `import torch`: median {statistics.median(times) * 1e3:.2f} ms, ", end="")
    print(f"fastest {min(times) * 1e3:.2f} ms, slowest {max(times) * 1e3:.2f} ms of {RUNS} interpreters")


if __name__ == "__main__":
    main()
