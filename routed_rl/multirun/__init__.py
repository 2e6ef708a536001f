"""Many training runs of one experiment: `compare` has several arms, `sweep` several settings, `calibrate` several seeds.

All of them plan runs (`job`), do those that are missing a few at a time (`workers`), and tell what came of it (`reporter`).
"""
