"""Tensors in, scalar out. Collectives inside are identities on one process."""
