"""Which sequence of tasks? Data sets, non-stationarities and task sequences. A stream yields tasks;
it knows nothing of networks.
"""
