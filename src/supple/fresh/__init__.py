"""What is a fresh row of this layer, and a fresh slice of this optimizer's state? Initialisers read
off the layer or told by the user, one rule per optimizer class or a refusal by name, and random
generators keyed by (seed, step, layer) so that every replica draws the same numbers.
"""
