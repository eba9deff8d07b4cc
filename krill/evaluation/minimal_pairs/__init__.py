"""Minimal pairs, made by rules from word lists: two sentences that differ in one place, one of them grammatical."""
