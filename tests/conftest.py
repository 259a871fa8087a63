"""One thread for torch, and no clock in the properties: tests share their cores with others."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is first imported

import torch
from hypothesis import settings

torch.set_num_threads(1)

settings.register_profile("haq", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("haq")
