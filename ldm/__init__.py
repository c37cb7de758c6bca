"""Subject-driven fine-tuning of Stable Diffusion models."""

import os

# Large tensors on a CPU lie in huge pages (Linux): fewer page faults in every step. PyTorch reads
# this at its first allocation, so it is set before any room is imported.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
