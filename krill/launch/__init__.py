"""Where a command runs: this process, ranks, a pool of processes, SLURM jobs; and where its result goes."""
