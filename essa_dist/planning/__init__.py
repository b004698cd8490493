"""What a run will take: memory, time and cost, without a GPU. The verb is :mod:`.plan`."""
