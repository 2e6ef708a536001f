"""Many training runs of one experiment: `compare` runs several arms, `sweep` several settings, `calibrate` several seeds.

Each of these verbs plans its runs (`job`), runs those that are missing, a few at a time (`workers`), and shows the results
(`reporter`).
"""
