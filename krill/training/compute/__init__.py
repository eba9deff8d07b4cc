"""How forward and backward pass are computed: attention, loss, kernels, sharding."""
