"""The Korean phenomena, one file each or one for a few that share their rules."""
