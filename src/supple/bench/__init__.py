"""Which method keeps plasticity, on which protocol, with what certainty? Protocols (a frozen dataclass
each), the runner over methods and seeds, and the statistics that make a comparison honest.
"""
