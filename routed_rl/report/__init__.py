"""The verb `report` makes one self-contained HTML page from the files of a run folder. The pages of `compare` and `sweep` are
made of the same parts, which are defined here.

The page needs no server, no network and no model. It can be made on another machine, for a run that has ended, halted, was
killed, or is still training. Import names from the modules of this package; the package itself exports none.
"""
