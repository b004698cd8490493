"""``essa doctor`` under a launcher: one report on all ranks, and the common faults in under a minute.

Ranks meet in a store first, where each waits a short time only (``meeting``); there they leave what they know of
themselves (``record``, ``run``), from which one of them finds what is wrong (``findings``). Only a world that passes
makes a process group (``trial``), whose faults could otherwise hang it for longer than anybody waits.
"""
