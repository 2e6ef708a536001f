"""The verb `report` makes one self-contained HTML page from the files of a run folder. This unit also has the parts of such
pages.

It needs no server, no network and no model. The page can be made on another machine, for a run that has ended, halted, was
killed, or is still training. Names are imported from the modules that define them.
"""
