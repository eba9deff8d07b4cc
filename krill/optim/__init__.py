"""Muon, its parameter groups and its distribution; learning rate schedules."""
