"""How training scales with the number of processes: real jobs under the launchers, and the planner beyond. The verb is :mod:`.scale`."""
