"""`routed-rl report`: one self-contained HTML page, from the files of a run folder alone, and the parts of such pages.

It needs no server, no network and no model. It can be made on another machine, for a run that ended, halted, was killed or still
trains. Names are imported from the modules that define them.
"""
