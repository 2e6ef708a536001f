"""Parts that several benchmarks share: trainers with simulated completions, peaks of memory, repeated measurements, refused
settings, kept runs, verbs."""
