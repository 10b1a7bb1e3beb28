"""Every test runs with the network refused, except to this machine, and on one thread."""

import torch

from mi_utils import offline

offline.refuse_network()
torch.set_num_threads(1)  # tiny tensors gain nothing from a second thread, and wait long for it on a busy machine
