"""Many training runs of one experiment: `compare` runs several arms, `sweep` several settings, `calibrate` several seeds.

All of them plan runs (`job`), run those that are missing, a few at a time (`workers`), and show the results (`reporter`).
"""
