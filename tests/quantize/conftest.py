"""One thread: test processes run side by side, and threads that wait for each other cost most of the time."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
