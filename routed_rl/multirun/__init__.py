"""Many training runs of one experiment: `compare` has several arms, `sweep` several settings, `calibrate` several seeds.

All of them plan runs (`job`), do the missing ones a few at a time (`workers`), and show the results (`reporter`).
"""
