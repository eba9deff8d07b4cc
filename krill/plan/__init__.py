"""What a run will need before it starts: parameters, FLOPs, memory, disk, time, money, and advice."""
