"""What torchrun starts in tests/test_memory_ranks.py: the command line, and then how far each rank's memory rose.

RANK.json in the run's folder has bytes: as planned of the run, and the most that was resident over that after imports.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from memory_child import resident

from sppo.experiments import shared_run
from sppo.experiments.cli import main
from sppo.experiments.config import read_config
from sppo.experiments.ranks import ranks
from sppo.experiments.text_memory import memory_plan

if __name__ == "__main__":
    # For speed a run keeps memory that was freed; here it goes back at once, so that what is held can be told.
    shared_run.tune_process = lambda: torch.set_num_threads(1)
    ranks()
    before = resident("VmRSS")
    main()
    folder = Path(sys.argv[sys.argv.index("--out") + 1])
    told = {"planned": memory_plan(read_config(folder)).peak, "rise": resident("VmHWM") - before}
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(told))
