"""The computation of a training step: attention, loss, kernels, sharding."""
