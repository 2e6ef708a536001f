"""The verb `report` makes one self-contained HTML page from the files of a run folder. This package also has the parts of such
pages.

The page needs no server, no network and no model. It can be made on another machine, for a run that has ended, halted, was
killed, or is still training. Names are imported from the modules that define them.
"""
