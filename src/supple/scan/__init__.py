"""What do weights on disk say? Checkpoints are streamed tensor by tensor, never executed, and compared
round against round.
"""
