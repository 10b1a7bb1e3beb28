"""Every test runs with the network refused, except to this machine."""

from mi_utils import offline

offline.refuse_network()
