"""What does this live network show? The probe pass that leaves the training state untouched bit for
bit, the instruments that fill records from it, the fresh twin to compare with, and the `Monitor`
that watches a run through optimizer hooks. Observing never changes a network.
"""
