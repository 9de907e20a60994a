"""The same from a shell: `supple demo`, `diagnose`, `scan`, `bench` and `report`."""
